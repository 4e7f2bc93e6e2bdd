"""Cost of a train step with S importance samples, against what one sample allows.

    python benchmarks/importance_samples.py --out benchmarks/importance_samples.json

With d the share of a one-sample step that follows the draw of z, S samples should cost
no more than 1.1 (1 + (S - 1) d) steps of one. The part before the draw is timed as a
program of its own: encoder, its gradient, and the optimiser's pass over all weights.
Temporary memory of an evaluation program is read off the compiler at each S.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches, datasets, evaluation, objectives, steps, training
from scvae_jax.checkpoints import versions
from scvae_jax.config import DataConfig, ModelConfig
from scvae_jax.counts import prepare
from scvae_jax.models import from_config, named_likelihood

SAMPLES = (1, 2, 5, 10, 20)


def seconds(functions: dict, repeats: int) -> dict[str, float]:
    """Median time of each function; they take turns, so that drift hits all alike."""
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def measure(likelihood: str, n_genes: int, batch_size: int, repeats: int) -> dict:
    adata = datasets.simulate(4 * batch_size, n_genes, depth=0.15 * n_genes, seed=0)
    config = ModelConfig(likelihood=likelihood)
    data = prepare(adata, DataConfig())
    cells = training.cells_to_device(data, slice(None))
    (index, weight), n_slots = batches.in_order(cells, batch_size)
    batch = jax.jit(partial(batches.cut, n_genes=n_genes, n_slots=n_slots))(
        cells, index[0], weight[0]
    )
    model = from_config(config, named_likelihood(config), n_genes=n_genes)
    optimizer = steps.default_optimizer(1000)
    state = jax.jit(lambda key: steps.init_train_state(model, optimizer, key))(
        jax.random.key(0)
    )

    def before_draw(state, batch):
        def loss(params):
            # the weights of the decoder take part in the optimiser's pass alone
            keys = jax.random.split(state.key)
            posterior = model.encode(params, batch, keys[0])
            z = posterior.sample(seed=keys[1])
            return z.sum() + posterior.mean().sum()

        gradients = jax.grad(loss)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new = jax.tree.map(jnp.add, state.params, updates)
        return new, opt_state

    programs = {"before the draw": jax.jit(before_draw).lower(state, batch).compile()}
    for n_samples in SAMPLES:
        objective = objectives.importance_weighted(n_samples)
        train_step = jax.jit(steps.make_train_step(model, objective, optimizer))
        programs[str(n_samples)] = train_step.lower(state, batch).compile()
    calls = {n: partial(program, state, batch) for n, program in programs.items()}
    times = seconds(calls, repeats)
    one = times["1"]
    share = 1 - times["before the draw"] / one
    rows = [
        {
            "n_samples": n,
            "milliseconds": round(1e3 * times[str(n)], 3),
            "steps_of_one": round(times[str(n)] / one, 3),
            "allowed": round(1.1 * (1 + (n - 1) * share), 3),
        }
        for n in SAMPLES
    ]
    key = jax.random.key(0)
    memory = {}
    for n_samples in (1, 10, 1000):
        analysis = evaluation._cell_bounds.lower(
            model, n_samples, n_slots, state.params, cells, (index, weight), key
        ).compile()
        memory[n_samples] = analysis.memory_analysis().temp_size_in_bytes
    return {
        "likelihood": likelihood,
        "n_genes": n_genes,
        "batch_size": batch_size,
        "share_after_draw": round(share, 3),
        "steps": rows,
        "evaluation_temporary_bytes": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    result = {
        "rows": [
            measure(likelihood, n_genes, 128, arguments.repeats)
            for likelihood in ("poisson", "negative_binomial")
            for n_genes in (500, 2000)
        ],
        "versions": versions() | {"python": platform.python_version()},
        "cores": len(__import__("os").sched_getaffinity(0)),
        "numpy": np.__version__,
    }
    for row in result["rows"]:
        name = f"{row['likelihood']}, {row['n_genes']} genes"
        print(f"{name}: share after the draw {row['share_after_draw']}")
        for step in row["steps"]:
            print("   ", step)
        print("    temporary bytes", row["evaluation_temporary_bytes"])
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
