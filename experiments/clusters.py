"""Clusters of the Gaussian-mixture VAE against labels, over five seeds and many sets.

    python experiments/clusters.py --data ../shared/data --out experiments/clusters.json

One default for all sets; labels only score. For each set: agreement (ARI, NMI) of the
model's own clusters with the labels where they start and at the end, beside k-means
on the latents of a VAE of the same sizes and k-means on 30 principal components;
stability between seeds; held-out bounds. Reaches an ARI of .97 for the cell lines of
hashed_doublets. An hour and a half on two cores; --only takes a part.

With `--parts from_labels` the components start at the means of the labels instead,
which no user has: where they end, and at what bound, says whether the model would tell
the labels from what it finds, or has only not been started well.
"""

import argparse
import contextlib
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anndata
import common
import jax
import numpy as np
import scanpy
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

import scvae_jax as sv
from scvae_jax import clusters as mixtures
from scvae_jax import evaluation, phases, scores, selection
from scvae_jax.config import completed

SEEDS = (0, 1, 2, 3, 4)
PARTS = ["mixture", "vae", "components"]
# which is made if it is asked for
FROM_LABELS = "from_labels"


def read(data: Path, name: str) -> anndata.AnnData:
    return anndata.read_h5ad(data / f"{name}.h5ad")


def lines(data: Path) -> tuple[anndata.AnnData, np.ndarray]:
    """Single cells of four lines, told apart by antibodies, not by their RNA."""
    adata = read(data, "hashed_doublets")
    adata = adata[(adata.obs["hashing"] == "Singlet").to_numpy()].copy()
    line = adata.obs["hash_id"].astype(str).str.split("_").str[0]
    return adata, line.to_numpy()


def above(protein: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Cells whose log counts of a protein are nearer the upper of two normals.

    The normals are fitted to the cells `where`, and the threshold is where they cross.
    """
    fitted = GaussianMixture(2, n_init=3, random_state=0).fit(protein[where][:, None])
    low, high = np.sort(fitted.means_.ravel())
    between = np.linspace(low, high, 1000)
    upper = fitted.predict(between[:, None]) == fitted.means_.argmax()
    return protein > between[upper.argmax()]


def gated(data: Path) -> tuple[anndata.AnnData, np.ndarray]:
    """Blood cells of five kinds that their proteins tell, whatever their RNA says.

    Cells in no gate are left out, CD16 monocytes with them: they are less than 1 %.
    """
    adata = read(data, "pbmc10k_citeseq")
    proteins = np.log1p(adata.obsm["protein"].astype(float))
    counts = {name.split("_")[0]: proteins[name].to_numpy() for name in proteins}
    everything = np.ones(adata.n_obs, bool)
    cd3, cd19, cd14 = (above(counts[n], everything) for n in ("CD3", "CD19", "CD14"))
    t = cd3 & ~cd19 & ~cd14
    neither = ~cd3 & ~cd19 & ~cd14
    cd4, cd8 = above(counts["CD4"], t), above(counts["CD8a"], t)
    gates = {
        "CD4 T": t & cd4 & ~cd8,
        "CD8 T": t & cd8 & ~cd4,
        "B": cd19 & ~cd3 & ~cd14,
        "monocyte": cd14 & ~cd3 & ~cd19,
        "NK": neither & above(counts["CD56"], neither),
    }
    label = np.select(list(gates.values()), list(gates), "")
    return adata[label != ""].copy(), label[label != ""]


def labelled(data: Path, name: str, key: str = "cell_type"):
    adata = read(data, name)
    return adata, adata.obs[key].astype(str).to_numpy()


def reduced(data: Path):
    adata = sv.datasets.pbmc68k_reduced()
    return adata, adata.obs["bulk_labels"].astype(str).to_numpy()


def digits(data: Path):
    adata = sv.datasets.digits()
    return adata, adata.obs["digit"].astype(str).to_numpy()


def simulated(data: Path, **options: float):
    adata = sv.datasets.simulate(
        2000, 500, n_types=8, type_scale=1.0, seed=11, **options
    )
    return adata, adata.obs["cell_type"].astype(str).to_numpy()


# name -> (cells and labels, K, options of the fit, options of the training)
SETS = {
    "hashed_doublets": (lines, 4, {}, {}),
    # depths at which 30 principal components do poorly, fairly and well
    "simulated, depth 200": (partial(simulated, depth=200.0), 8, {}, {}),
    "simulated, depth 400": (partial(simulated, depth=400.0), 8, {}, {}),
    "simulated, depth 800": (partial(simulated, depth=800.0), 8, {}, {}),
    "pbmc10k_citeseq, protein gates": (gated, 5, {}, {}),
    "pbmc4k": (partial(labelled, name="pbmc4k"), 8, {}, {}),
    "kang_batches": (partial(labelled, name="kang_batches"), 5, {}, {}),
    "kang_batches, batch given": (
        partial(labelled, name="kang_batches"),
        5,
        {"batch_key": "batch"},
        {},
    ),
    "pbmc68k_reduced": (reduced, 10, {}, {}),
    "digits": (digits, 10, {}, {}),
    "paul15": (partial(labelled, name="paul15"), 19, {}, {}),
    # all genes of the worm take long: a tenth of the default's epochs
    "worm_neurons": (partial(labelled, name="worm_neurons"), 10, {}, {"epochs": 20}),
}


def principal_components(adata: anndata.AnnData, labels: np.ndarray, k: int, seeds):
    """k-means on 30 principal components of log-normalised expression."""
    cells = anndata.AnnData(adata.X.astype(np.float32).copy())
    scanpy.pp.normalize_total(cells)
    scanpy.pp.log1p(cells)
    scanpy.pp.pca(cells, n_comps=30)
    codes = [scores.kmeans(cells.obsm["X_pca"], k, seed) for seed in seeds]
    found = common.spread([common.agreement(c, labels) for c in codes])
    return found | {"seeds": list(seeds)}


def mixture(adata, labels, k, options, train, seeds, **model) -> dict:
    """Own clusters at the start and the end, bounds and stability, over seeds."""
    starts = []
    place = phases.place_clusters

    def placing(model, params, cells, seed):
        """Note the start of each seed, as it is placed."""
        params = place(model, params, cells, seed)
        starts.append(jax.device_get(params))
        return params

    phases.place_clusters = placing
    config = sv.ModelConfig(model="gmvae", n_clusters=k, **model)
    try:
        fitted = sv.fit_many(
            adata, config, sv.TrainConfig(**train), seeds=seeds, **options
        )
    finally:
        phases.place_clusters = place
    fits = common.fits_of(fitted)
    cells = selection.cells_to_device(evaluation.prepare_as(adata, fitted), slice(None))
    rows, codes, start_rows = [], [], []
    for fit, start in zip(fits, starts, strict=True):
        bounds = partial(evaluation.cell_bounds, fit.model, cells=cells, n_samples=1)
        own = bounds(fit.params).probabilities.argmax(1)
        codes.append(own)
        begun = bounds(start).probabilities.argmax(1)
        start_rows.append(common.agreement(begun, labels))
        figures = sv.evaluate(adata, fit, n_samples=100)
        rows.append(
            common.agreement(own, labels)
            | {
                "validation_elbo": fit.summary["validation_elbo"],
                "held_out_elbo": figures["elbo"],
                "held_out_importance_weighted": figures["importance_weighted_bound"],
                "clusters_used": fit.summary["clusters_used"],
            }
        )
    pairs = [adjusted_rand_score(a, b) for a, b in itertools.combinations(codes, 2)]
    return {
        "end": common.spread(rows),
        "start": common.spread(start_rows),
        "seeds": list(seeds),
        "stability_median_ari": float(np.median(pairs)) if pairs else None,
        "held_out": sv.evaluate(adata, fitted, n_samples=1)["split"],
        "seconds": fitted.summary["total_seconds"],
        "n_fits": fitted.summary["n_fits"],
        "epochs": fitted.summary["epochs"],
    }


@contextlib.contextmanager
def started_at(codes: np.ndarray) -> Iterator[None]:
    """Components start at the means of these clusters [n] of the training cells."""
    place = mixtures.mixture_start

    def start(mean, variance, n_clusters, seed):
        share = np.eye(n_clusters)[codes].mean(axis=0)
        means = [mean[codes == k].mean(axis=0) for k in range(n_clusters)]
        spread = np.square(mean - np.array(means)[codes]) + variance
        return mixtures.Start(np.array(means), float(spread.mean()), share, np.nan)

    mixtures.mixture_start = start
    try:
        yield
    finally:
        mixtures.mixture_start = place


def plain(adata, labels, k, options, train, seeds) -> dict:
    """A VAE of these sizes, trained alike: k-means on its latents, its bounds."""
    configs = (sv.ModelConfig(), sv.TrainConfig(**train))
    configs = [completed(config, "gmvae") for config in configs]
    fitted = sv.fit_many(adata, *configs, seeds=seeds, **options)
    cells = selection.cells_to_device(evaluation.prepare_as(adata, fitted), slice(None))
    rows = []
    for fit in common.fits_of(fitted):
        seed = fit.train_config.seed
        latent = evaluation.cell_bounds(fit.model, fit.params, cells, n_samples=1)
        codes = scores.kmeans(latent.latent, k, seed)
        figures = sv.evaluate(adata, fit, n_samples=100)
        rows.append(
            common.agreement(codes, labels)
            | {
                "validation_elbo": fit.summary["validation_elbo"],
                "held_out_elbo": figures["elbo"],
                "held_out_importance_weighted": figures["importance_weighted_bound"],
            }
        )
    return common.spread(rows) | {"seeds": list(seeds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--posterior", default="shared")
    parser.add_argument("--covariance", default="shared")
    parser.add_argument(
        "--parts", nargs="*", default=PARTS, choices=[*PARTS, FROM_LABELS]
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    arguments = parser.parse_args()
    seeds = tuple(arguments.seeds)
    model = {
        "posterior": arguments.posterior,
        "component_covariance": arguments.covariance,
    }
    kind = f"gmvae, {arguments.posterior}"
    if arguments.covariance != "shared":
        kind += f", {arguments.covariance}"
    asked_for = {"mixture": kind, "vae": "kmeans_vae", "components": "kmeans_pca"}
    asked_for |= {FROM_LABELS: f"{kind}, {FROM_LABELS}"}
    asked = [asked_for[part] for part in arguments.parts]
    for row in common.written(arguments.out):
        there = asked if row["set"] in arguments.only else []
        for part in there:
            # older parts do not say so, and have all of them
            known = row.get(part, {"seeds": []}).get("seeds", SEEDS)
            if not set(known) <= set(seeds):
                parser.error(
                    f"found {part} of {row['set']} in {arguments.out}, of seeds "
                    f"{known}, expected these or more, ask for them or another --out"
                )
    for name in arguments.only if FROM_LABELS in arguments.parts else ():
        if "split" not in SETS[name][0](arguments.data)[0].obs:
            parser.error(f"found no split in {name}, leave it out of {FROM_LABELS}")
    for name in arguments.only:
        read_set, k, options, train = SETS[name]
        adata, labels = read_set(arguments.data)
        if "split" in adata.obs:
            options = options | {"split_key": "split"}
        row = {"set": name, "n_obs": adata.n_obs, "n_genes": adata.n_vars, "k": k}
        row |= {"options": options, "train": train}
        made = {}
        if "mixture" in arguments.parts:
            made[kind] = mixture(adata, labels, k, options, train, seeds, **model)
        if FROM_LABELS in arguments.parts:
            codes = np.unique(labels, return_inverse=True)[1]
            with started_at(codes[(adata.obs["split"] == "train").to_numpy()]):
                found = mixture(adata, labels, k, options, train, seeds, **model)
            made[asked_for[FROM_LABELS]] = found
        if "vae" in arguments.parts:
            made["kmeans_vae"] = plain(adata, labels, k, options, train, seeds)
        if "components" in arguments.parts:
            made["kmeans_pca"] = principal_components(adata, labels, k, seeds)
        # parts that are not asked for stay as they are now
        old = [other for other in common.written(arguments.out) if other["set"] == name]
        row = (old[0] if old else {}) | row
        commits = row.get("commit", {}) | dict.fromkeys(made, common.commit())
        row |= made | {"commit": commits}
        print(name, json.dumps(row), flush=True)
        common.add_row(arguments.out, row, lambda row: list(SETS).index(row["set"]))


if __name__ == "__main__":
    main()
