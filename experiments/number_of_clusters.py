"""Clusters where their number is not known, against the best that Leiden could do.

    python experiments/number_of_clusters.py --data ../shared/data \
        --out experiments/number_of_clusters.json

Sets whose truth does not come from their RNA. `sv.sweep_clusters` fits mixtures of 2 to
15 clusters, three seeds each, without labels. Four rules take a number from it: the one
that it recommends, which weighs the validation bound against the stability between
seeds; the most stable; the smallest whose bound is within a standard error (over seeds)
of the best; and of those within 0.02 of the most stable, the one with the best bound.
The last three were there before the first, and each fails on some sets. What is
recommended was at first the best bound among peaks of stability, which took ten
clusters for the four lines once every number was tried, then that among peaks within
0.1 of the most stable, which took three for "7 types", and was replaced: with 0.03 to
0.1 of stability for a standard deviation of the bound the rule as it is leads to the
same clusters on all sets until then; "9 types" alone was run after that. Fits of each
number are then scored by the labels (ARI, mean over seeds), to be held against those
with the true number and against the best of Leiden on principal components over its
range of resolutions, which takes labels to find (on SCVI's latents:
`clusters_against_peers.json`). Leiden needs igraph. Some ten minutes a set on
one core.
"""

import argparse
import importlib
import json
from functools import partial
from pathlib import Path

import clusters
import clusters_against_peers as peers
import common
import numpy as np
import pandas as pd

import scvae_jax as sv
from scvae_jax import sweep


def simulated(_: Path, n_types: int, depth: float, seed: int):
    adata = sv.datasets.simulate(1500, 400, n_types=n_types, depth=depth, seed=seed)
    return adata, adata.obs["cell_type"].astype(str).to_numpy()


# name -> (cells and labels, K, options of the fit)
SETS = {
    name: clusters.SETS[name][:3]
    for name in (
        "hashed_doublets",
        "simulated, depth 200",
        "simulated, depth 400",
        "simulated, depth 800",
        "pbmc10k_citeseq, protein gates",
    )
} | {
    "simulated, 5 types": (partial(simulated, n_types=5, depth=300.0, seed=21), 5, {}),
    "simulated, 12 types": (
        partial(simulated, n_types=12, depth=600.0, seed=22),
        12,
        {},
    ),
    "simulated, 7 types": (partial(simulated, n_types=7, depth=350.0, seed=23), 7, {}),
    "simulated, 9 types": (partial(simulated, n_types=9, depth=450.0, seed=24), 9, {}),
}
NUMBERS = tuple(range(2, 16))
SEEDS = (0, 1, 2)


def most_stable(table) -> int:
    """The number on whose clusters seeds agree best."""
    return int(table.loc[table["stability"].idxmax(), "n_clusters"])


def within_an_error(table) -> int:
    """The smallest number whose bound is within a standard error of the best."""
    best = table.loc[table["validation_bound"].idxmax()]
    error = best["validation_bound_sd"] / len(SEEDS) ** 0.5
    near = table["validation_bound"] >= best["validation_bound"] - error
    return int(table.loc[near, "n_clusters"].min())


def best_of_stable(table) -> int:
    """Of those about as stable as the most stable, the one with the best bound."""
    stable = table[table["stability"] >= table["stability"].max() - 0.02]
    return int(stable.loc[stable["validation_bound"].idxmax(), "n_clusters"])


def recommended(table) -> int:
    """What `sv.sweep_clusters` says."""
    return int(table.loc[table["recommended"], "n_clusters"].item())


RULES = (recommended, best_of_stable, most_stable, within_an_error)


def judged(table) -> dict[str, int]:
    """The number that each rule chooses."""
    table = table.assign(recommended=sweep.recommended(table))
    return {rule.__name__: rule(table) for rule in RULES}


def scores(adata, labels, fitted: sv.Fitted) -> dict[str, float]:
    """Agreement of each seed's clusters with the labels."""
    found = []
    for fit in common.fits_of(fitted):
        annotated = sv.apply(adata, fit, copy=True)
        codes = annotated.obs["scvae_cluster"].to_numpy()
        found.append(common.agreement(codes, labels)["ari"])
    return {"mean": float(np.mean(found)), "sd": float(np.std(found, ddof=1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--numbers", type=int, nargs="*", default=list(NUMBERS))
    arguments = parser.parse_args()

    # what Leiden needs, before hours of fits
    importlib.import_module("igraph")

    def place(row: dict) -> int:
        return list(SETS).index(row["set"])

    for name in arguments.only:
        read_set, k, options = SETS[name]
        adata, labels = read_set(arguments.data)
        if "split" in adata.obs:
            options = options | {"split_key": "split"}
        config = sv.ModelConfig(model="gmvae")
        table = sv.sweep_clusters(
            adata,
            config,
            n_clusters=tuple(arguments.numbers),
            seeds=SEEDS,
            progress=False,
            **options,
        )
        row = {"set": name, "n_obs": adata.n_obs, "types": len(np.unique(labels))}
        row |= {"k_of_truth": k, "seeds": list(SEEDS)}
        row["sweep"] = table.drop(columns="recommended").to_dict("records")
        row |= judged(table)
        row["ari"] = {}
        for number in sorted({k, *judged(table).values()}):
            config = sv.ModelConfig(model="gmvae", n_clusters=number)
            fitted = sv.fit_many(adata, config, seeds=SEEDS, progress=False, **options)
            row["ari"][str(number)] = scores(adata, labels, fitted)
        points = peers.of_components(peers.prepared(adata))["latent"]
        best = [peers.of_leiden(points, labels, k, seed) for seed in SEEDS]
        row["leiden_best"] = float(np.mean([found["leiden_best"] for found in best]))
        print(json.dumps(row), flush=True)
        common.add_row(arguments.out, row, place)
    # those of former runs by the rules as they are now
    for row in common.written(arguments.out):
        row |= {"commit": row.get("commit")} | judged(pd.DataFrame(row["sweep"]))
        common.add_row(arguments.out, row, place)


if __name__ == "__main__":
    main()
