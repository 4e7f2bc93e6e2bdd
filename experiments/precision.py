r"""Gene-wide products in lower precision: held-out bounds, paired by seed.

    python experiments/precision.py --data ../shared/data \
        --out experiments/precision.json

The same seeds, cells and settings, a VAE, negative binomial, with the recipe of a
mixture; differences of held-out ELBO to float32 in nats per cell, of bfloat16 and on a
GPU of tensorfloat32, with their standard error over seeds. The default stays float32
unless no set loses beyond two standard errors. A quarter of an hour on two cores.
"""

import argparse
from pathlib import Path

import anndata
import common
import jax
import numpy as np

import scvae_jax as sv
from scvae_jax.config import completed

SETS = {"kang_batches": {"batch_key": "batch"}, "pbmc4k": {}}
SEEDS = (0, 1, 2, 3, 4)


def bounds(adata: anndata.AnnData, precision: str, options: dict) -> list[dict]:
    """Validation ELBO of each seed's fit, and figures of test cells."""
    fitted = sv.fit_many(
        adata,
        completed(sv.ModelConfig(precision=precision), "gmvae"),
        completed(sv.TrainConfig(), "gmvae"),
        seeds=SEEDS,
        split_key="split",
        **options,
    )
    return [
        {
            "validation_elbo": fit.summary["validation_elbo"],
            "elbo": sv.evaluate(adata, fit, n_samples=100)["elbo"],
            "skipped_steps": fit.summary["skipped_steps"],
            "cells_per_second": fit.summary["cells_per_second"],
        }
        for fit in common.fits_of(fitted)
    ]


def paired(low: list[dict], full: list[dict], name: str, precision: str) -> dict:
    difference = [a[name] - b[name] for a, b in zip(low, full, strict=True)]
    return {
        "float32": float(np.mean([row[name] for row in full])),
        precision: float(np.mean([row[name] for row in low])),
        "difference": float(np.mean(difference)),
        "standard_error": float(np.std(difference, ddof=1) / len(difference) ** 0.5),
    }


def place(row: dict) -> tuple[int, str]:
    """What a row is of, and where it stands."""
    return list(SETS).index(row["set"]), row["precision"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    # elsewhere tensorfloat32 is float32
    on_gpu = jax.default_backend() == "gpu"
    lower = ("tensorfloat32", "bfloat16") if on_gpu else ("bfloat16",)
    for name, options in SETS.items():
        adata = anndata.read_h5ad(arguments.data / f"{name}.h5ad")
        full = bounds(adata, "float32", options)
        for precision in lower:
            low = bounds(adata, precision, options)
            row = {"set": name, "precision": precision}
            row |= {"seeds": list(SEEDS), "options": options}
            for part in ("validation_elbo", "elbo"):
                row[part] = paired(low, full, part, precision)
            row |= {"float32_fits": full, f"{precision}_fits": low}
            print(name, row["validation_elbo"], row["elbo"], flush=True)
            common.add_row(arguments.out, row, place)


if __name__ == "__main__":
    main()
