"""What neighbours of thinned cells have in common: their type, or less.

    python experiments/neighbours.py --data ../shared/data \
        --out experiments/neighbours.json

Cells that were not trained on are cut in two halves that share no count, as cells of
`clusters_against_peers.py` are thinned. Of the 15 neighbours among all cells, in the
latents of a mixture and on 30 principal components: the share that a half keeps of the
whole cell's, that both halves have in common, and that are of the cell's own type, of
the whole and of a half. In simulations nothing but its type and depth sets a cell
apart, beside the noise of single genes, which one of them lacks.
"""

import argparse
from functools import partial
from pathlib import Path

import clusters
import clusters_against_peers as peers
import common
import numpy as np

import scvae_jax as sv

SETS = {
    name: clusters.SETS[name]
    for name in (
        "hashed_doublets",
        "simulated, depth 200",
        "simulated, depth 800",
        "kang_batches, batch given",
    )
} | {
    "simulated, depth 800, Poisson": (
        partial(clusters.simulated, depth=800.0, dispersion=1e6),
        8,
        {},
        {},
    )
}


def figures(fit: dict, labels: np.ndarray, where: np.ndarray) -> dict:
    """Of one set of coordinates; the second half of a cell is under "quarter"."""
    whole, half, other = (
        peers.neighbours(fit["latent"], fit[name], where)
        for name in ("latent", "half", "quarter")
    )

    def of_type(near: list[set]) -> float:
        pairs = zip(near, labels[where], strict=True)
        return float(np.mean([np.mean(labels[list(a)] == of) for a, of in pairs]))

    return {
        "whole_and_half": peers.in_common(whole, half),
        "half_and_half": peers.in_common(half, other),
        "of_type_whole": of_type(whole),
        "of_type_half": of_type(half),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    arguments = parser.parse_args()
    for name in arguments.only:
        read_set, k, options, _ = SETS[name]
        adata, labels = read_set(arguments.data)
        cells = peers.prepared(adata)
        cells.layers["quarter"] = (cells.X - cells.layers["half"]).tocsr()
        where = np.flatnonzero((cells.obs["split"] != "train").to_numpy())
        row = {"set": name, "n_cells": len(where), "seed": 0}
        mixture = sv.ModelConfig(model="gmvae", n_clusters=k)
        row["own"] = figures(peers.of_ours(cells, mixture, options, 0), labels, where)
        row["components"] = figures(peers.of_components(cells), labels, where)
        print(row, flush=True)
        common.add_row(arguments.out, row, lambda row: list(SETS).index(row["set"]))


if __name__ == "__main__":
    main()
