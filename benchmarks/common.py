"""What the benchmarks of train steps share: data, timing, and their JSON."""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import optax

import scvae_jax
from scvae_jax import batches, compiling, datasets, selection
from scvae_jax.batches import Batch, CellData
from scvae_jax.checkpoints import versions
from scvae_jax.config import DataConfig
from scvae_jax.counts import prepare
from scvae_jax.models import Model
from scvae_jax.steps import TrainState, init_train_state

# train steps of one program, as in an epoch
N_STEPS = 4


def simulated_cells(n_genes: int, batch_size: int) -> tuple[CellData, tuple, int]:
    """Cells for N_STEPS batches, on the device; their positions, and slots."""
    adata = datasets.simulate(
        N_STEPS * batch_size, n_genes, depth=0.15 * n_genes, seed=0
    )
    cells = selection.cells_to_device(prepare(adata, DataConfig()), slice(None))
    return cells, *batches.in_order(cells, batch_size)


def simulated_batches(n_genes: int, batch_size: int) -> Batch:
    """N_STEPS batches, stacked."""
    cells, positions, n_slots = simulated_cells(n_genes, batch_size)
    cut = partial(batches.cut, cells, n_genes=n_genes, n_slots=n_slots)
    return jax.jit(jax.vmap(cut))(*positions)


def first_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, of one seed."""
    init = jax.jit(lambda key: init_train_state(model, optimizer, key))
    return init(jax.random.key(0))


def as_in_fits(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiled as a fit of many steps compiles its programs."""
    with compiling.compilers() as pool:
        return compiling.ahead(pool, lowered, math.inf)()


def epoch_of(step: Callable[[Any, Batch], Any], state: Any, stacked: Batch) -> Callable:
    """A compiled program of a step for each batch, ready to be called.

    Args:
        step: (state, batch) -> state.
        state: of the first step; every call begins with it.
        stacked: the batches.
    """

    def epoch(state: Any, stacked: Batch) -> Any:
        return jax.lax.scan(lambda s, batch: (step(s, batch), None), state, stacked)[0]

    compiled = as_in_fits(jax.jit(epoch).lower(state, stacked))
    return partial(compiled, state, stacked)


def seconds(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median time of a call; they take turns, so that drift hits all alike."""
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def step_seconds(programs: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Seconds a step of each program from `epoch_of`."""
    times = seconds(programs, repeats)
    return {name: time / N_STEPS for name, time in times.items()}


def answer_of(*command: str) -> dict:
    """The JSON that a peer's script prints last."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@cache
def commit() -> str | None:
    """The commit that is measured, with "+" where code was changed since.

    None where it is not known: without git, or of a package that is installed
    elsewhere.
    """
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True)
    head = git(["git", "rev-parse", "--short", "HEAD"])
    package = Path(scvae_jax.__file__).parent
    if head.returncode or package.parent != Path(__file__).parents[1]:
        return None
    changed = git(["git", "diff", "--quiet", "HEAD", "--", "*.py", "../*.py"])
    return head.stdout.decode().strip() + "+" * bool(changed.returncode)


# of what is imported now, whatever is committed while it runs
commit()


def machine() -> dict:
    """What a result was measured with and on."""
    return {
        "commit": commit(),
        "versions": versions() | {"python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
    }


def write(
    description: str,
    rows: Callable[[int], list[dict]],
    heading: str,
    repeats: int = 15,
) -> None:
    """Parse the command line, measure, print, and write the JSON.

    Args:
        description: of the benchmark.
        rows: repeats -> the measurements, each with a list "steps".
        heading: a format of what stands above each list.
        repeats: the default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=repeats)
    arguments = parser.parse_args()
    result = {"rows": rows(arguments.repeats), "repeats": arguments.repeats}
    result |= machine()
    for row in result["rows"]:
        print(heading.format(**row))
        for step in row["steps"]:
            print("   ", step)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
