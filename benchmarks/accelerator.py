"""Train steps on an accelerator, beside SCVI there; a part of `speed.py`.

What the device reaches: a copy, and a product of large matrices in each precision. Our
steps of 2,000 and 28,000 genes in batches of 128 to 4,096 cells, all on the device,
against their floor (`floor.py`) and against what the device reaches; the lower
precisions in the largest batches, as products are a small part of the others. SCVI
trains on the same device, in batches of 128 and of 4,096 cells. 32 steps to a program,
as in epochs.
"""

import json
import statistics
import tempfile
from pathlib import Path

import anndata
import floor
import jax
from common import N_STEPS, answer_of, seconds

from scvae_jax.config import PRECISIONS
from scvae_jax.networks import matmul_of

TIMES = 8
SIZES = [(n_genes, n) for n_genes in (2000, 28_000) for n in (128, 512, 4096)]
LARGE = 4096


def reached(repeats: int) -> dict:
    """What the device reaches at best."""
    size = 8192
    square = jax.random.normal(jax.random.key(0), (size, size))
    programs = {
        precision: floor.Program(matmul_of(precision), square, square)
        for precision in PRECISIONS
    }
    times = seconds(programs, repeats)
    return {
        "copy_gigabytes_per_second": floor.bandwidth(repeats),
        "teraflops": {
            precision: round(2e-12 * size**3 / taken, 1)
            for precision, taken in times.items()
        },
    }


def steps(n_genes: int, batch_size: int, repeats: int) -> list[dict]:
    """Steps, negative binomial; of each precision in large batches."""
    cells = floor.cells_of(n_genes, N_STEPS * batch_size)
    rows = []
    for precision in PRECISIONS if batch_size >= LARGE else ("float32",):
        config = floor.plain_config(precision=precision)
        programs = {
            "ours": floor.ours(config, n_genes, cells, batch_size, times=TIMES),
            "floor": floor.floor(
                n_genes, 1, 128, batch_size, precision=precision, times=TIMES
            ),
        }
        times = seconds(programs, repeats)
        step = times["ours"] / (N_STEPS * TIMES)
        # five products, and the least traffic: Adam reads 4 and writes 3 arrays of the
        # weights, and what is as large as the batch is passed some 8 times
        operations = 2.0 * batch_size * n_genes * 128 * 5
        traffic = 4.0 * (7 * 2 * n_genes * 128 + 8 * batch_size * n_genes)
        row = {"n_genes": n_genes, "batch_size": batch_size, "precision": precision}
        row |= {
            "milliseconds": round(1e3 * step, 4),
            "cells_per_second": round(batch_size / step),
            "ratio_to_floor": round(times["ours"] / times["floor"], 2),
            "teraflops": round(1e-12 * operations / step, 3),
            "least_gigabytes_per_second": round(1e-9 * traffic / step, 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def of_scvi(python: str, repeats: int) -> list[dict]:
    """SCVI's training on the same device, 2,000 genes, negative binomial."""
    script = str(Path(__file__).with_name("peer_scvi.py"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch_size, n_obs in ((128, 10_240), (LARGE, 40_960)):
            path = Path(folder) / f"{batch_size}.h5ad"
            anndata.AnnData(floor.counts_of(n_obs, 2000)).write_h5ad(path)
            options = ["--likelihood", "nb", "--accelerator", "gpu"]
            options += ["--batch-size", str(batch_size), "--epochs", str(repeats)]
            answer = answer_of(python, script, "speed", str(path), *options)
            theirs = n_obs / statistics.median(answer["train"])
            row = {"n_genes": 2000, "batch_size": batch_size}
            row |= {"scvi_cells_per_second": round(theirs)}
            rows.append(row | {"peer_versions": answer["versions"]})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def measure(scvi: str | None, repeats: int) -> dict:
    """All of it; SCVI where its Python is given."""
    peers = of_scvi(scvi, repeats) if scvi else []
    result = {"device_reaches": reached(repeats)}
    result["steps"] = [row for size in SIZES for row in steps(*size, repeats)]
    for row in peers:
        for ours in result["steps"]:
            if all(row[name] == ours[name] for name in ("n_genes", "batch_size")):
                times = ours["cells_per_second"] / row["scvi_cells_per_second"]
                row[f"times_scvi_{ours['precision']}"] = round(times, 1)
    return result | {"peers": peers}
