"""Own clusters beside k-means and Leiden on SCVI's latents and on components.

    python experiments/clusters_against_peers.py --data ../shared/data \
        --scvi SCVI_PYTHON --work peers --own experiments/clusters.json \
        --out experiments/clusters_against_peers.json

First the sets whose truth does not come from their RNA: lines told by antibodies, kinds
told by gates on proteins, simulated types. Labels of the others may be a clustering of
principal components themselves. The mixture's own clusters are those of clusters.json.
SCVI (negative binomial, 10 latents) trains at its defaults on the same training cells.
Leiden works on 15 neighbours, its resolution bisected until there are K clusters, or as
near as it gets; "best" is the best of a range of resolutions by the labels, which
nobody has. Fits that --work has are not made again.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import anndata
import clusters
import numpy as np
import scanpy

from scvae_jax import counts, evaluation
from scvae_jax.checkpoints import versions

SETS = [
    "hashed_doublets",
    "pbmc10k_citeseq, protein gates",
    "simulated, depth 200",
    "simulated, depth 400",
    "simulated, depth 800",
    "pbmc4k",
    "kang_batches, batch given",
    "paul15",
]
RESOLUTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)


def scvi_latents(python: str, adata, options: dict, seed: int, file: Path) -> dict:
    """Latents of all cells, from SCVI in its own environment."""
    if not file.exists():
        cells = anndata.AnnData(adata.X, obs=adata.obs.copy())
        if "split" not in cells.obs:
            cells.obs["split"] = counts.random_split(cells.n_obs, 0.1, 0.0, 0)
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder) / "cells.h5ad", Path(folder) / "row.npz"
            cells.write_h5ad(path)
            command = [python, str(Path(__file__).with_name("peer_scvi.py")), str(path)]
            command += ["--likelihood", "nb", "--seed", str(seed), "--out", str(out)]
            command += ["--samples", "0"]
            if "batch_key" in options:
                command += ["--batch-key", options["batch_key"]]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            )
            known = json.dumps(json.loads(done.stdout.splitlines()[-1]))
            np.savez(file, **np.load(out), versions=known)
    return dict(np.load(file))


def leiden_of(points: np.ndarray, seed: int) -> Callable[[float], np.ndarray]:
    """Leiden on 15 neighbours of points: resolution -> codes."""
    cells = anndata.AnnData(np.asarray(points, np.float32))
    scanpy.pp.neighbors(cells, n_neighbors=15, use_rep="X", random_state=seed)

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


def of_points(points: np.ndarray, labels: np.ndarray, k: int, seed: int) -> dict:
    """ARI of k-means and of Leiden with the labels."""
    leiden = leiden_of(points, seed)
    same_k = matched(leiden, k)
    codes = [leiden(resolution) for resolution in RESOLUTIONS]
    best = max(codes, key=lambda c: clusters.agreement(c, labels)["ari"])
    kmeans = evaluation.kmeans(points, k, seed)
    return {
        "kmeans": clusters.agreement(kmeans, labels)["ari"],
        "leiden": clusters.agreement(same_k, labels)["ari"],
        "leiden_n_clusters": len(np.unique(same_k)),
        "leiden_best": clusters.agreement(best, labels)["ari"],
        "leiden_best_n_clusters": len(np.unique(best)),
    }


def table(rows: list[dict]) -> str:
    """The README's table, in Markdown."""
    lines = [
        "| cells | own clusters | SCVI, k-means | SCVI, Leiden | PCA, k-means "
        "| PCA, Leiden | Leiden's best, SCVI | PCA |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        of = {tool: row[tool] for tool in ("own", "scvi", "components")}
        figures = [f"{of['own']['mean']:.3f} ± {of['own']['sd']:.3f}"]
        for name in ("kmeans", "leiden"):
            figures += [f"{of['scvi'][name]['mean']:.3f}"]
        for name in ("kmeans", "leiden"):
            figures += [f"{of['components'][name]['mean']:.3f}"]
        figures += [f"{of[t]['leiden_best']['mean']:.3f}" for t in list(of)[1:]]
        lines.append(f"| {row['set']} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", required=True, help="a Python that has scvi-tools")
    parser.add_argument("--work", type=Path, required=True, help="keeps each fit")
    parser.add_argument("--own", type=Path, required=True, help="of clusters.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)
    own = {row["set"]: row for row in json.loads(arguments.own.read_text())["rows"]}
    rows = []
    if arguments.out.exists():
        rows = json.loads(arguments.out.read_text())["rows"]
    for name in arguments.only:
        read_set, k, options, _ = clusters.SETS[name]
        adata, labels = read_set(arguments.data)
        components = clusters.components_of(adata)
        found = {"scvi": [], "components": []}
        for seed in arguments.seeds:
            file = arguments.work / f"clusters.{name.replace(', ', '.')}.{seed}.npz"
            fit = scvi_latents(arguments.scvi, adata, options, seed, file)
            peer_versions = json.loads(str(fit["versions"]))
            found["scvi"].append(of_points(fit["latent"], labels, k, seed))
            found["components"].append(of_points(components, labels, k, seed))
            print(name, seed, found["scvi"][-1], found["components"][-1], flush=True)
        row = {"set": name, "n_obs": adata.n_obs, "k": k, "seeds": arguments.seeds}
        row |= {tool: clusters.spread(of) for tool, of in found.items()}
        row["own"] = own[name]["gmvae, shared"]["end"]["ari"]
        rows = [other for other in rows if other["set"] != name] + [row]
        rows.sort(key=lambda row: SETS.index(row["set"]))
        known = versions() | peer_versions | {"scanpy": scanpy.__version__}
        known |= {"python": platform.python_version()}
        result = {"rows": rows, "versions": known}
        result |= {"cores": len(os.sched_getaffinity(0))}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
