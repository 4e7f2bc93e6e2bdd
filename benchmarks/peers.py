"""Training and encoding against SCVI, and both against the floor, in one run.

    python benchmarks/peers.py --scvi SCVI_PYTHON --out benchmarks/peers.json

Simulated counts, a tenth of them non-zero; one hidden layer of 128, latent 10, batch
128, dispersion per gene, library means on both sides; encoding takes 512 cells at a
time. Each side keeps the dropout and the normalisation of its own defaults; the floor
is that of `floor.py`. Epochs after the first are timed, compilation apart, and medians
given; ours, the floor and SCVI take turns for each likelihood.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import anndata
import floor
import jax
import numpy as np
from common import machine, seconds, step_seconds

from scvae_jax import phases, training
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
    params = jax.jit(model.init)(jax.random.key(0))
    train = floor.ours(config, adata.n_vars, cells)

    def encode() -> np.ndarray:
        return np.asarray(phases._encode(model, params, cells)[0])

    return seconds({"train": train, "encode": encode}, repeats)


def scvi(python: str, path: Path, likelihood: str, repeats: int) -> dict:
    """The same of SCVI, in a process of its own."""
    command = [python, str(Path(__file__).with_name("peer_scvi.py")), "speed"]
    command += [str(path), "--likelihood", likelihood, "--epochs", str(repeats)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return result | {n: statistics.median(result[n]) for n in ("train", "encode")}


def floor_seconds(n_genes: int, n_heads: int, repeats: int) -> float:
    """Seconds of a step that the matrix products and the optimiser allow."""
    return step_seconds({"floor": floor.floor(n_genes, n_heads, 128)}, repeats)["floor"]


def measure(
    adata: anndata.AnnData, likelihood: str, python: str | None, repeats: int
) -> list[dict]:
    theirs, n_heads = LIKELIHOODS[likelihood]
    shape = {"n_genes": adata.n_vars, "n_obs": adata.n_obs, "likelihood": likelihood}
    sides = {"scvae_jax": ours(adata, likelihood, repeats)}
    least = floor_seconds(adata.n_vars, n_heads, repeats)
    if python:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            adata.write_h5ad(path)
            sides["scvi"] = scvi(python, path, theirs, repeats)
    rows = []
    for task in ("train", "encode"):
        row = shape | {"task": task}
        for side, taken in sides.items():
            row[f"{side}_cells_per_second"] = round(adata.n_obs / taken[task])
        if task == "train":
            row["floor_cells_per_second"] = round(floor.BATCH_SIZE / least)
        if python:
            row["speedup"] = round(sides["scvi"][task] / sides["scvae_jax"][task], 2)
            row["scvi_versions"] = sides["scvi"]["versions"]
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
        adata = anndata.AnnData(floor.counts_of(n_obs, n_genes))
        for likelihood in LIKELIHOODS:
            rows += measure(adata, likelihood, arguments.scvi, arguments.repeats)
    result = {"rows": rows, "repeats": arguments.repeats} | machine()
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
