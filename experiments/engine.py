"""Bounds with the sparse engine against dense arithmetic, retrained over five seeds.

    python experiments/engine.py --data ../shared/data --out experiments/engine.json

A VAE with the negative binomial on pbmc4k, 60 epochs with the recipe of a mixture, once
as it is, and once without the addresses of the non-zero entries: the encoder then
multiplies dense arrays, and every entry goes through the special functions. Differences
of validation ELBO, sparse minus dense, paired by seed. Five minutes on two cores.
"""

import argparse
import json
import platform
from pathlib import Path

import anndata
import common
import numpy as np

import scvae_jax as sv
from scvae_jax import batches
from scvae_jax.checkpoints import versions
from scvae_jax.config import completed

SEEDS = (0, 1, 2, 3, 4)


def bounds(adata: anndata.AnnData) -> list[float]:
    """Validation ELBO of each seed."""
    # a VAE with the recipe of a mixture
    configs = (sv.ModelConfig(), sv.TrainConfig(epochs=60))
    configs = [completed(config, "gmvae") for config in configs]
    fitted = sv.fit_many(adata, *configs, seeds=SEEDS, split_key="split")
    return [
        sv.evaluate(adata, fit, split="validation", n_samples=100)["elbo"]
        for fit in common.fits_of(fitted)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    adata = anndata.read_h5ad(arguments.data / "pbmc4k.h5ad")
    sparse = bounds(adata)
    cut = batches.cut

    def dense_cut(*cells, **options):
        batch = cut(*cells, **options)
        counts = tuple(each._replace(nonzero=None) for each in batch.counts)
        return batch._replace(counts=counts)

    batches.cut = dense_cut
    dense = bounds(adata)
    batches.cut = cut
    difference = np.subtract(sparse, dense)
    result = {
        "seeds": list(SEEDS),
        "sparse": sparse,
        "dense": dense,
        "difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / len(SEEDS) ** 0.5),
        "versions": versions() | {"python": platform.python_version()},
        "commit": common.commit(),
    }
    print(json.dumps(result, indent=1))
    common.write(arguments.out, result)


if __name__ == "__main__":
    main()
