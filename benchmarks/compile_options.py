"""What compiling takes, and what steps take then, by what XLA is asked for.

    python benchmarks/compile_options.py --out benchmarks/compile_options.json

The program of an epoch of a VAE at its defaults, alone: with XLA's own options, with
those of fits, and with those of short fits, which `scvae_jax/compiling.py` chooses up
to so many entries (steps x cells x genes). The three take turns; medians.
"""

import statistics
import time
from functools import partial
from typing import Any

import floor
import jax
from common import step_seconds, write

from scvae_jax import compiling
from scvae_jax.config import ModelConfig

OPTIONS = {"default": {}, "fits": compiling.ENOUGH, "short fits": compiling.SOON}


def measure(likelihood: str, n_genes: int, repeats: int) -> dict:
    config, cells = ModelConfig(likelihood=likelihood), floor.cells_of(n_genes)
    taken: dict[str, list[float]] = {name: [] for name in OPTIONS}
    programs = {}

    def compiled(name: str, lowered: jax.stages.Lowered) -> Any:
        started = time.perf_counter()
        made = lowered.compile(compiler_options=OPTIONS[name])
        taken[name].append(time.perf_counter() - started)
        return made

    for _ in range(min(repeats, 5)):
        for name in OPTIONS:
            programs[name] = floor.ours(
                config, n_genes, cells, compiled=partial(compiled, name)
            )
    steps = step_seconds(programs, repeats)
    return {
        "likelihood": likelihood,
        "n_genes": n_genes,
        "entries_of_short_fits": compiling.FEW,
        "steps": [
            {
                "options": name,
                "compile_seconds": round(statistics.median(taken[name]), 3),
                "of_default": round(
                    statistics.median(taken[name])
                    / statistics.median(taken["default"]),
                    3,
                ),
                "milliseconds": round(1e3 * steps[name], 3),
                "steps_of_default": round(steps[name] / steps["default"], 3),
            }
            for name in OPTIONS
        ],
    }


def rows(repeats: int) -> list[dict]:
    return [
        measure(likelihood, n_genes, repeats)
        for n_genes in (2000, 20_000)
        for likelihood in floor.LIKELIHOODS
    ]


if __name__ == "__main__":
    write(__doc__.splitlines()[0], rows, "{likelihood}, {n_genes} genes")
