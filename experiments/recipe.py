"""The recipe of a VAE: each setting changed alone, validation bounds paired by seed.

    python experiments/recipe.py --data ../shared/data --out experiments/recipe.json

Everything else is as in the first variant, the default before there was thinning.
Validation cells alone, 100 samples; test cells are not looked at. A fit that `--out`
has already is not made again, so that --variants, --only and --likelihoods may take it
part by part: all of it takes hours. No fit has more than 400 epochs: on kang_batches,
of ten batches of 128, more than 4,000 steps are 4,000.
"""

import argparse
import itertools
import json
import platform
from pathlib import Path

import anndata
import common
import numpy as np

import scvae_jax as sv
from scvae_jax.checkpoints import versions
from scvae_jax.config import parse_options

SETS = {
    "kang_batches": {"batch_key": "batch"},
    "pbmc4k": {},
    "paul15": {},
    "worm_neurons": {},
}
# a free mean is compared with itself: its bounds are of the totals as well
LIKELIHOODS = (
    "negative_binomial",
    "poisson",
    "negative_binomial:mean=free",
    "poisson:mean=free",
)
SEEDS = (0, 1)
BASE = {"thinning": 0.0, "dropout_input": 0.3, "dropout_hidden": 0.1}


def thinned(share: float, dropout_hidden: float = BASE["dropout_hidden"]) -> dict:
    """Thinning in place of dropout of the input."""
    return {
        "thinning": share,
        "dropout_input": 0.0,
        "dropout_hidden": dropout_hidden,
    }


# variant -> (settings of the model, of the training, steps)
VARIANTS = {
    "base": ({}, {}, 6000),
    "free_rate 1": ({}, {"free_rate": 1.0}, 6000),
    "free_rate 100": ({}, {"free_rate": 100.0}, 6000),
    "3,000 steps, learning_rate 4e-3": ({}, {"learning_rate": 4e-3}, 3000),
    "3,000 steps, learning_rate 8e-3": ({}, {"learning_rate": 8e-3}, 3000),
    "12,000 steps, learning_rate 1e-3": ({}, {"learning_rate": 1e-3}, 12000),
    "kl_warmup 0": ({}, {"kl_warmup": 0.0}, 6000),
    "kl_warmup 0.5": ({}, {"kl_warmup": 0.5}, 6000),
    "weight_decay 1e-2": ({}, {"weight_decay": 1e-2}, 6000),
    "batch_size 64": ({}, {"batch_size": 64}, 6000),
    "batch_size 256": ({}, {"batch_size": 256}, 6000),
    "n_samples 5": ({}, {"n_samples": 5}, 6000),
    "dropout_input 0": ({"dropout_input": 0.0}, {}, 6000),
    "dropout_input 0.5": ({"dropout_input": 0.5}, {}, 6000),
    "thinning 0.3": (thinned(0.3), {}, 6000),
    "thinning 0.5": (thinned(0.5), {}, 6000),
    "thinning 0.8": (thinned(0.8), {}, 6000),
    # the default, but for free means
    "thinning 0.5, dropout_hidden 0": (thinned(0.5, 0.0), {}, 6000),
    "thinning 0.5, dropout_hidden 0.05": (thinned(0.5, 0.05), {}, 6000),
    "thinning 0.8, dropout_hidden 0": (thinned(0.8, 0.0), {}, 6000),
    "thinning 0.5, dropout_hidden 0, 3,000 steps": (thinned(0.5, 0.0), {}, 3000),
    # the default of free means
    "nothing hidden": (thinned(0.0, 0.0), {}, 6000),
    "dropout_hidden 0": ({"dropout_hidden": 0.0}, {}, 6000),
    "dropout_hidden 0.3": ({"dropout_hidden": 0.3}, {}, 6000),
    "dropout_decoder 0.1": ({"dropout_decoder": 0.1}, {}, 6000),
    "dropout_decoder 0.2": ({"dropout_decoder": 0.2}, {}, 6000),
    "dropout_decoder 0.4": ({"dropout_decoder": 0.4}, {}, 6000),
    "hidden_sizes 128": ({"hidden_sizes": (128,)}, {}, 6000),
    "hidden_sizes 256,256": ({"hidden_sizes": (256, 256)}, {}, 6000),
    "hidden_sizes 128,128,128": ({"hidden_sizes": (128, 128, 128)}, {}, 6000),
    "layer_norm off": ({"layer_norm": False}, {}, 6000),
    "n_latent 20": ({"n_latent": 20}, {}, 6000),
    "dispersion gene_cell": (
        {"likelihood_options": {"dispersion": "gene_cell"}},
        {},
        6000,
    ),
    # whose free_rate is 1
    "a mixture of 10": ({"model": "gmvae", "n_clusters": 10}, {}, 6000),
}


def one(
    adata: anndata.AnnData, likelihood: str, options: dict, variant: str
) -> list[dict]:
    """Bounds of the validation cells for each seed."""
    of_model, of_train, n_steps = VARIANTS[variant]
    config = sv.TrainConfig(**of_train)
    n_train = int((adata.obs["split"] == "train").sum())
    steps_per_epoch = -(-n_train // config.batch_size)
    epochs = min(round(n_steps / steps_per_epoch), 400)
    family, *written = likelihood.split(":")
    written = parse_options(written) | of_model.get("likelihood_options", {})
    of_model = of_model | {"likelihood_options": written}
    fitted = sv.fit_many(
        adata,
        sv.ModelConfig(likelihood=family, **BASE | of_model),
        sv.TrainConfig(epochs=epochs, **of_train),
        seeds=SEEDS,
        split_key="split",
        **options,
    )
    rows = []
    for fit in (fitted, *fitted.alternatives):
        found = sv.evaluate(adata, fit, split="validation", n_samples=100)
        rows.append(
            {
                "seed": fit.train_config.seed,
                "elbo": found["elbo"],
                "importance_weighted_bound": found["importance_weighted_bound"],
                "best_epoch": fit.summary["best_epoch"],
                "epochs": fit.summary["epochs"],
                "seconds": fit.summary["seconds"],
                "commit": common.commit(),
            }
        )
    return rows


def differences(rows: list[dict]) -> list[dict]:
    """Importance-weighted bounds minus those of the base, where there are both."""
    found = {(key(row), row["seed"]): row["importance_weighted_bound"] for row in rows}
    # what a seed draws may be drawn otherwise at another commit
    commits = {key(row): row.get("commit") for row in rows}
    table = []
    for variant, likelihood, name in sorted({key(row) for row in rows}, key=place):
        if variant == "base":
            continue
        base = ("base", likelihood, name)
        pairs = [
            found[(variant, likelihood, name), seed] - found[base, seed]
            for seed in SEEDS
            if {(base, seed), ((variant, likelihood, name), seed)} <= found.keys()
        ]
        if pairs:
            table.append(
                {
                    "variant": variant,
                    "likelihood": likelihood,
                    "set": name,
                    "difference": float(np.mean(pairs)),
                    "between_seeds": float(np.ptp(pairs)),
                    "commits": [commits[base], commits[variant, likelihood, name]],
                }
            )
    return table


def key(row: dict) -> tuple[str, str, str]:
    return row["variant"], row["likelihood"], row["set"]


def place(keys: tuple[str, str, str]) -> tuple[int, ...]:
    """The order of the table."""
    known = (list(VARIANTS), list(LIKELIHOODS), list(SETS))
    return tuple(one.index(name) for one, name in zip(known, keys, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    for name, known in (("--variants", VARIANTS), ("--likelihoods", LIKELIHOODS)):
        parser.add_argument(name, nargs="*", default=list(known), choices=list(known))
    arguments = parser.parse_args()

    def written() -> list[dict]:
        out = arguments.out
        return json.loads(out.read_text())["rows"] if out.exists() else []

    wanted = itertools.product(
        arguments.variants, arguments.likelihoods, arguments.only
    )
    for variant, likelihood, name in wanted:
        named = {"variant": variant, "likelihood": likelihood, "set": name}
        if any(key(row) == key(named) for row in written()):
            continue
        of_dispersion = "likelihood_options" in VARIANTS[variant][0]
        if of_dispersion and not likelihood.startswith("negative_binomial"):
            continue
        adata = anndata.read_h5ad(arguments.data / f"{name}.h5ad")
        new = one(adata, likelihood, SETS[name], variant)
        # read again: another run may have written rows meanwhile
        rows = [*written(), *({**named, **row} for row in new)]
        rows.sort(key=lambda row: (*place(key(row)), row["seed"]))
        bounds = [round(row["importance_weighted_bound"], 2) for row in new]
        print(variant, likelihood, name, bounds, flush=True)
        known = versions() | {"python": platform.python_version()}
        result = {"differences": differences(rows), "rows": rows, "versions": known}
        common.write(arguments.out, result)


if __name__ == "__main__":
    main()
