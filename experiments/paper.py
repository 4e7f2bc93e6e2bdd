"""Likelihoods by models with the recipes of scVAE's paper, beside our defaults.

    python experiments/paper.py --data ../shared/data --out experiments/paper.json

The recipes are those of Gronbech et al. 2020: for blood cells two hidden layers of 100,
100 latents; for tissues two of 1,000, 50 latents and the 5,000 genes of highest
variance (here between training cells); both 500 epochs, 200 of them warm-up, batches of
100, Adam at 1e-4, no dropout, means that are free and dispersions of each gene and
cell; of a mixture as many components as there are labels, equal weights, scales of
their own, and q(y|x) from a network. Three things are not the paper's: the cells (its
own take hours to fetch and fit), LayerNorm where it had batch normalisation, and the
start of a mixture, as its components would not survive without one. Validation cells
choose the epoch; test cells are scored with 500 decodes each. Our defaults have as many
latents here and free means as well, so that all bounds are of the whole of log p(x).
"""

import argparse
import itertools
from pathlib import Path

import anndata
import common
import numpy as np
import optax

import scvae_jax as sv

LIKELIHOODS = (
    "poisson",
    "zero_inflated_poisson",
    "categorised_poisson",
    "negative_binomial",
    "zero_inflated_negative_binomial",
)
N_SAMPLES = 500
OF_PAPER = {
    "thinning": 0.0,
    "dropout_input": 0.0,
    "dropout_hidden": 0.0,
    "dropout_decoder": 0.0,
    "posterior": "conditional",
    "mixture_weights": "uniform",
    "component_covariance": "diagonal",
}
# name -> (set, settings of the model, number of genes)
RECIPES = {
    "default": ("pbmc4k", {"n_latent": 100}, None),
    "paper, blood": (
        "pbmc4k",
        OF_PAPER | {"hidden_sizes": (100, 100), "n_latent": 100},
        None,
    ),
    "paper, tissues": (
        "worm_neurons",
        OF_PAPER | {"hidden_sizes": (1000, 1000), "n_latent": 50},
        5000,
    ),
}
TRAIN = sv.TrainConfig(
    epochs=500, batch_size=100, kl_warmup=0.4, free_rate=1.0, patience=500
)


def of_highest_variance(adata: anndata.AnnData, n_genes: int | None):
    """The cells with these genes alone."""
    if n_genes is None:
        return adata
    x = adata.X[(adata.obs["split"] == "train").to_numpy()].astype(np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
    return adata[:, np.sort(np.argsort(-variance)[:n_genes])].copy()


def one(data: Path, recipe: str, model: str, likelihood: str) -> dict:
    """A fit, its bounds of the test cells, and agreement of all cells with labels."""
    name, settings, n_genes = RECIPES[recipe]
    adata = of_highest_variance(anndata.read_h5ad(data / f"{name}.h5ad"), n_genes)
    k = adata.obs["cell_type"].nunique()
    given = {"split_key": "split", "progress": False}
    options = {"mean": "free"}
    if recipe != "default":
        if "negative_binomial" in likelihood:
            options["dispersion"] = "gene_cell"
        given["optimizer"] = optax.adam(1e-4)
    config = sv.ModelConfig(
        model=model,
        n_clusters=k,
        likelihood=likelihood,
        likelihood_options=options,
        **settings,
    )
    fitted = sv.fit(
        adata, config, sv.TrainConfig() if recipe == "default" else TRAIN, **given
    )
    decodes = k if model == "gmvae" and config.posterior == "conditional" else 1
    found = sv.evaluate(adata, fitted, split="test", n_samples=N_SAMPLES // decodes)
    everything = sv.evaluate(
        adata, fitted, split="all", n_samples=1, score_key="cell_type"
    )
    return {
        "set": name,
        "n_genes": adata.n_vars,
        "elbo": found["elbo"],
        "importance_weighted_bound": found["importance_weighted_bound"],
        "ari": everything["ari"],
        "best_epoch": fitted.summary["best_epoch"],
        "epochs": fitted.summary["epochs"],
        "seconds": fitted.summary["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    axes = {
        "recipes": list(RECIPES),
        "models": ["vae", "gmvae"],
        "likelihoods": list(LIKELIHOODS),
    }
    for name, known in axes.items():
        parser.add_argument(f"--{name}", nargs="*", default=known, choices=known)
    arguments = parser.parse_args()

    def place(row: dict) -> list[int]:
        return [known.index(row[name[:-1]]) for name, known in axes.items()]

    wanted = itertools.product(*(getattr(arguments, name) for name in axes))
    for key in wanted:
        named = dict(zip(("recipe", "model", "likelihood"), key, strict=True))
        done = common.written(arguments.out)
        if any(named.items() <= row.items() for row in done):
            continue
        row = named | one(arguments.data, *key)
        print(row, flush=True)
        common.add_row(arguments.out, row, place, n_samples=N_SAMPLES)


if __name__ == "__main__":
    main()
