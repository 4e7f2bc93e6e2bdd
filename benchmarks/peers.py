"""Training and encoding against SCVI, and both against the floor, in one run.

    python benchmarks/peers.py --scvi SCVI_PYTHON --out benchmarks/peers.json

Simulated counts, a tenth of them non-zero; one hidden layer of 128, latent 10, batch
128, dispersion per gene, library means on both sides; encoding takes 512 cells at a
time. Each side keeps the dropout and the normalisation of its own defaults; the floor
is that of `floor.py`. Epochs after the first are timed, compilation apart; ours and
SCVI's alternate.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import anndata
import jax
import numpy as np
from common import first_state, step_seconds
from floor import BATCH_SIZE, counts_of, floor

from scvae_jax import batches, objectives, phases, steps, training
from scvae_jax.checkpoints import versions
from scvae_jax.config import DataConfig, ModelConfig
from scvae_jax.counts import prepare
from scvae_jax.models import from_config, named_likelihood

SIZES = {2000: 10_000, 20_000: 4_000}
LIKELIHOODS = {
    "poisson": ("poisson", 1),
    "negative_binomial": ("nb", 1),
    "zero_inflated_negative_binomial": ("zinb", 2),
}


def ours(adata: anndata.AnnData, likelihood: str, repeats: int) -> dict:
    """Seconds of an epoch of training, and of encoding all cells."""
    config = ModelConfig(likelihood=likelihood, hidden_sizes=(128,))
    model = from_config(config, named_likelihood(config), n_genes=adata.n_vars)
    cells = training.cells_to_device(prepare(adata, DataConfig()), slice(None))
    optimizer = steps.default_optimizer(10_000)
    step = steps.make_train_step(model, objectives.elbo(), optimizer)
    state = first_state(model, optimizer)
    positions, n_slots = batches.in_order(cells, BATCH_SIZE)

    def epoch(state, cells, positions):
        def one(state, position):
            batch = batches.cut(cells, *position, adata.n_vars, n_slots)
            return step(state, batch)

        return jax.lax.scan(one, state, positions)[0]

    program = jax.jit(epoch).lower(state, cells, positions).compile()

    def train():
        jax.block_until_ready(program(state, cells, positions))

    def encode():
        np.asarray(phases._encode(model, state.params, cells)[0])

    return {
        name: [_seconds(function) for _ in range(repeats + 1)][1:]
        for name, function in (("train", train), ("encode", encode))
    }


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def scvi(python: str, path: Path, likelihood: str, repeats: int) -> dict:
    """The same of SCVI, in a process of its own."""
    command = [python, str(Path(__file__).with_name("peer_scvi.py")), "speed"]
    command += [str(path), "--likelihood", likelihood, "--epochs", str(repeats)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def floor_rate(n_genes: int, n_heads: int) -> float:
    """Training cells a second that the matrix products and the optimiser allow."""
    name = f"floor {n_heads}"
    times = step_seconds({name: floor(n_genes, n_heads, 128)}, 9)
    return BATCH_SIZE / times[name]


def measure(adata: anndata.AnnData, likelihood: str, arguments) -> list[dict]:
    theirs, n_heads = LIKELIHOODS[likelihood]
    half = -(-arguments.repeats // 2)
    rates: dict[tuple[str, str], list[float]] = {}
    known = {}
    for _ in range(2):
        sides = {"scvae_jax": ours(adata, likelihood, half)}
        if arguments.scvi:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "cells.h5ad"
                adata.write_h5ad(path)
                sides["scvi"] = scvi(arguments.scvi, path, theirs, half)
            known = sides["scvi"].pop("versions")
        for side, tasks in sides.items():
            for task, seconds in tasks.items():
                rates.setdefault((side, task), []).extend(
                    adata.n_obs / s for s in seconds
                )
    rows = []
    for task in ("train", "encode"):
        row = {"n_genes": adata.n_vars, "n_obs": adata.n_obs, "likelihood": likelihood}
        row |= {"task": task, "scvi_versions": known}
        for side in ("scvae_jax", "scvi"):
            if (side, task) in rates:
                row[f"{side}_cells_per_second"] = round(
                    statistics.median(rates[side, task])
                )
        if task == "train":
            row["floor_cells_per_second"] = round(floor_rate(adata.n_vars, n_heads))
        if known:
            ratio = row["scvae_jax_cells_per_second"] / row["scvi_cells_per_second"]
            row["speedup"] = round(ratio, 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scvi", help="a Python that has scvi-tools")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=6)
    arguments = parser.parse_args()
    rows = []
    for n_genes, n_obs in SIZES.items():
        adata = anndata.AnnData(counts_of(n_obs, n_genes))
        for likelihood in LIKELIHOODS:
            rows += measure(adata, likelihood, arguments)
    result = {
        "rows": rows,
        "repeats": arguments.repeats,
        "versions": versions() | {"python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
