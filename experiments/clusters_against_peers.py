"""Own clusters beside k-means and Leiden on SCVI's latents and on components.

    python experiments/clusters_against_peers.py --data ../shared/data \
        --scvi SCVI_PYTHON --work peers --out experiments/clusters_against_peers.json

First the sets whose truth does not come from their RNA: lines told by antibodies, kinds
told by gates on proteins, simulated types. Labels of the others may be a clustering of
principal components themselves. The mixture and SCVI (negative binomial, 10 latents)
train at their defaults on the same cells; components are those of all cells. Leiden
works on 15 neighbours, its resolution bisected until there are K clusters, or as near
as it gets; "best" is the best of a range of resolutions by the labels, which nobody
has. Cells that were not trained on are then thinned to a half and a quarter of their
counts: the share that keeps its cluster (for peers and a VAE of ours, at its defaults:
the nearest centre of k-means), and the share of its 15 neighbours among all cells that
each keeps. Fits that --work has are not made again, and with --tools those of others
stay as --out has them, which must be of the same seeds. Leiden needs igraph.
"""

import argparse
import importlib
import json
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import anndata
import clusters
import common
import numpy as np
import readme_tables
import scanpy
import scipy.sparse
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

import scvae_jax as sv
from scvae_jax import evaluation, selection
from scvae_jax.files import whole

SETS = [
    "hashed_doublets",
    "pbmc10k_citeseq, protein gates",
    "simulated, depth 200",
    "simulated, depth 400",
    "simulated, depth 800",
    "pbmc4k",
    "kang_batches, batch given",
]
RESOLUTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)
THINNED = {"half": 0.5, "quarter": 0.25}
N_NEIGHBORS = 15


def prepared(adata: anndata.AnnData) -> anndata.AnnData:
    """Counts with a split, and layers with each count thinned binomially."""
    x = scipy.sparse.csr_matrix(adata.X)
    cells = anndata.AnnData(x, obs=adata.obs.copy())
    if "split" not in cells.obs:
        cells.obs["split"] = selection.random_split(cells.n_obs, 0.1, 0.0, 0)
    random = np.random.default_rng(0)
    for name, share in THINNED.items():
        thinned = x.copy()
        thinned.data = random.binomial(x.data.astype(int), share).astype(np.float32)
        thinned.eliminate_zeros()
        cells.layers[name] = thinned
    return cells


def of_ours(
    cells: anndata.AnnData, config: sv.ModelConfig, options: dict, seed: int
) -> dict:
    """Latents of all cells, full and thinned, and clusters of a mixture."""
    train = sv.TrainConfig(seed=seed)
    given = options | {"split_key": "split", "progress": False}
    fitted = sv.fit(cells, config, train, **given)
    found = {}
    for name in ("latent", *THINNED):
        seen = cells.copy()
        seen.X = cells.X if name == "latent" else cells.layers[name]
        data = evaluation.prepare_as(seen, fitted)
        bounds = evaluation.cell_bounds(
            fitted.model,
            fitted.params,
            selection.cells_to_device(data, slice(None)),
            n_samples=1,
        )
        found[name] = bounds.latent
        if config.model == "gmvae":
            found[f"{name}_codes"] = bounds.probabilities.argmax(axis=1)
    return found


def of_scvi(python: str, cells: anndata.AnnData, options: dict, seed: int) -> dict:
    """Latents of all cells, full and thinned, of SCVI in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "cells.h5ad", Path(folder) / "row.npz"
        cells.write_h5ad(path)
        command = [python, str(Path(__file__).with_name("peer_scvi.py")), str(path)]
        command += ["--likelihood", "nb", "--seed", str(seed), "--out", str(out)]
        command += ["--samples", "0"]
        if "batch_key" in options:
            command += ["--batch-key", options["batch_key"]]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        known = json.dumps(json.loads(done.stdout.splitlines()[-1]))
        return dict(np.load(out)) | {"versions": known}


def of_tool(
    tool: str,
    cells: anndata.AnnData,
    k: int,
    options: dict,
    seed: int,
    python: str,
) -> dict:
    """What `of_scvi` or `of_ours` finds, the latter of a mixture ("own") or a VAE."""
    if tool == "scvi":
        return of_scvi(python, cells, options, seed)
    mixture = sv.ModelConfig(model="gmvae", n_clusters=k)
    config = mixture if tool == "own" else sv.ModelConfig()
    return of_ours(cells, config, options, seed)


def of_components(cells: anndata.AnnData) -> dict:
    """30 principal components of log-normalised expression; thinned cells on them."""
    logged, depth = {}, float(np.median(np.asarray(cells.X.sum(axis=1))))
    for name in ("latent", *THINNED):
        x = cells.X if name == "latent" else cells.layers[name]
        # normalising works in place
        seen = anndata.AnnData(x.copy())
        # depths as of the full cells' median, as if a thinned cell had come with them
        scanpy.pp.normalize_total(seen, target_sum=depth)
        scanpy.pp.log1p(seen)
        logged[name] = seen
    scanpy.pp.pca(logged["latent"], n_comps=30)
    mean = np.asarray(logged["latent"].X.mean(axis=0))
    axes = logged["latent"].varm["PCs"]
    return {
        name: np.asarray(seen.X @ axes - mean @ axes) for name, seen in logged.items()
    }


def kept(made: Callable[[], dict], file: Path) -> dict:
    """What a fit has left in a file, or leaves there now."""
    if not file.exists():
        with whole(file) as part:
            np.savez(part, **made(), commit=str(common.commit()))
    return dict(np.load(file))


def leiden_of(points: np.ndarray, seed: int) -> Callable[[float], np.ndarray]:
    """Leiden on the neighbours of points: resolution -> codes."""
    cells = anndata.AnnData(np.asarray(points, np.float32))
    scanpy.pp.neighbors(cells, n_neighbors=N_NEIGHBORS, use_rep="X", random_state=seed)

    def leiden(resolution: float) -> np.ndarray:
        given = {"flavor": "igraph", "n_iterations": 2, "directed": False}
        scanpy.tl.leiden(cells, resolution=resolution, random_state=seed, **given)
        return cells.obs["leiden"].to_numpy().astype(int)

    return leiden


def matched(leiden: Callable[[float], np.ndarray], k: int) -> np.ndarray:
    """Codes at the resolution that gives k clusters, or the number nearest to k."""
    low, high, tried = 0.0, 4.0, {}
    for _ in range(20):
        resolution = 0.5 * (low + high)
        codes = leiden(resolution)
        found = len(np.unique(codes))
        tried.setdefault(found, codes)
        if found == k:
            break
        low, high = (resolution, high) if found < k else (low, resolution)
    return tried[min(tried, key=lambda found: abs(found - k))]


def of_leiden(points: np.ndarray, labels: np.ndarray, k: int, seed: int) -> dict:
    """Agreement of Leiden with the labels, at K clusters and at its best."""
    leiden = leiden_of(points, seed)
    same_k = matched(leiden, k)
    codes = [leiden(resolution) for resolution in RESOLUTIONS]
    best = max(codes, key=lambda c: common.agreement(c, labels)["ari"])
    return {
        "leiden": common.agreement(same_k, labels)["ari"],
        "leiden_n_clusters": len(np.unique(same_k)),
        "leiden_best": common.agreement(best, labels)["ari"],
        "leiden_best_n_clusters": len(np.unique(best)),
    }


def with_codes(fit: dict, k: int, seed: int) -> dict:
    """With clusters of k-means: of thinned cells those of the nearest centre."""
    # as scores.kmeans, which keeps no centres
    found = KMeans(k, n_init=10, random_state=seed).fit(fit["latent"])
    codes = {f"{name}_codes": found.predict(fit[name]) for name in ("latent", *THINNED)}
    return fit | codes


def neighbours(points: np.ndarray, of: np.ndarray, where: np.ndarray) -> list[set]:
    """For cells `where`, put at `of`, their nearest among points but for themselves."""
    tree = NearestNeighbors(n_neighbors=N_NEIGHBORS + 1).fit(points)
    near = tree.kneighbors(of[where], return_distance=False)
    return [
        set(row[row != cell][:N_NEIGHBORS])
        for row, cell in zip(near, where, strict=True)
    ]


def in_common(ours: list[set], theirs: list[set]) -> float:
    """Share of neighbours that both have, in the mean over cells."""
    pairs = zip(ours, theirs, strict=True)
    return float(np.mean([len(a & b) / N_NEIGHBORS for a, b in pairs]))


def figures(fit: dict, labels: np.ndarray, held_out: np.ndarray) -> dict:
    """Agreement with the labels, and what thinned cells keep."""
    found = {"ari": common.agreement(fit["latent_codes"], labels)["ari"]}
    full = neighbours(fit["latent"], fit["latent"], held_out)
    for name in THINNED:
        same = fit["latent_codes"][held_out] == fit[f"{name}_codes"][held_out]
        found[f"cluster_kept_{name}"] = float(same.mean())
        thinned = neighbours(fit["latent"], fit[name], held_out)
        found[f"neighbours_kept_{name}"] = in_common(full, thinned)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", help="a Python that has scvi-tools")
    parser.add_argument("--work", type=Path, required=True, help="keeps each fit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    every = readme_tables.TOOLS
    parser.add_argument("--tools", nargs="*", default=list(every), choices=every)
    arguments = parser.parse_args()
    if "scvi" in arguments.tools and not arguments.scvi:
        parser.error("found no Python for scvi, give --scvi or other --tools")
    arguments.work.mkdir(exist_ok=True)
    # what Leiden needs, before hours of fits
    importlib.import_module("igraph")
    before = {row["set"]: row for row in common.written(arguments.out)}
    for name in arguments.only:
        seeds = before.get(name, {}).get("seeds", arguments.seeds)
        if seeds != arguments.seeds and set(arguments.tools) != set(every):
            parser.error(f"found seeds {seeds} of {name}, give these or all --tools")
    for name in arguments.only:
        read_set, k, options, _ = clusters.SETS[name]
        adata, labels = read_set(arguments.data)
        cells = prepared(adata)
        held_out = np.flatnonzero((cells.obs["split"] != "train").to_numpy())
        found = {tool: [] for tool in arguments.tools}
        # of each tool that of its fits, which may have been kept
        commits = {tool: set() for tool in arguments.tools}
        peer_versions = {}
        for tool in arguments.tools:
            if tool == "components":
                # without a seed of their own
                fit = of_components(cells) | {"commit": common.commit()}
            for seed in arguments.seeds:
                if tool != "components":
                    file = f"clusters.{tool}.{name.replace(', ', '.')}.{seed}.npz"
                    given = (tool, cells, k, options, seed, arguments.scvi)
                    fit = kept(partial(of_tool, *given), arguments.work / file)
                commits[tool].add(str(fit.get("commit")))
                if tool == "scvi":
                    peer_versions = json.loads(str(fit["versions"]))
                if tool == "own":
                    row = figures(fit, labels, held_out)
                else:
                    row = figures(with_codes(fit, k, seed), labels, held_out)
                    row |= of_leiden(fit["latent"], labels, k, seed)
                found[tool].append(row)
                print(name, seed, tool, row, flush=True)
        # read again: another run may have written it meanwhile
        rows = {row["set"]: row for row in common.written(arguments.out)}
        old = rows.get(name, {})
        row = {"set": name, "n_obs": cells.n_obs, "n_held_out": len(held_out), "k": k}
        row |= {"seeds": arguments.seeds}
        row |= {tool: common.spread(of) for tool, of in found.items()}
        commits = {tool: ", ".join(sorted(of)) for tool, of in commits.items()}
        row = old | row | {"commit": old.get("commit", {}) | commits}
        known = peer_versions | {"scanpy": metadata.version("scanpy")}
        common.add_row(
            arguments.out, row, lambda row: SETS.index(row["set"]), versions=known
        )
    result = json.loads(arguments.out.read_text())
    for rows_of in (readme_tables.clusters_against_peers, readme_tables.depth):
        print("\n".join(readme_tables.lines_of(rows_of(result))))


if __name__ == "__main__":
    main()
