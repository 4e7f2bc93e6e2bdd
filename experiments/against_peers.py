"""Held-out bounds and clusters beside SCVI at its defaults, same cells and cores.

    taskset -c 0 python experiments/against_peers.py --data ../shared/data \
        --scvi SCVI_PYTHON --work peers --out experiments/against_peers.json

Both train on cells marked train, each fit in a process of its own and with nothing
kept from the one before; ours is the command `scvae-jax train` at its defaults, which
stops by the validation cells. Test cells are scored by importance-weighted bounds of
500 samples, averaged over cells, and compared cell by cell; intervals are nested
bootstraps over seeds and cells. Seconds are those of the process: ours from its start
to a saved run, SCVI's from the start of its imports to the end of its training;
`taskset` holds both to the same core. A fit that `--work` has already is not made
again; SCVI takes hours (worm_neurons: half an hour a fit on one core). With
`--accelerator gpu` SCVI trains on a GPU, and with `--jobs` several fits are made at a
time: such fits give bounds and no seconds. What `--out` has and `--work` has not stays.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import numpy as np
import readme_tables
from sklearn.metrics import adjusted_rand_score

import scvae_jax as sv
from scvae_jax import evaluation, scores, selection
from scvae_jax.checkpoints import versions
from scvae_jax.files import whole
from scvae_jax.ranking import nested_interval

SETS = {
    "kang_batches": "batch",
    "pbmc4k": None,
    "paul15": None,
    "pbmc10k_citeseq": None,
    "worm_neurons": None,
}
LIKELIHOODS = {
    "negative_binomial": "nb",
    "zero_inflated_negative_binomial": "zinb",
    "poisson": "poisson",
}
TOOLS = ("scvae_jax", "scvi")
# what tells a fit from the others
NAMES = ("set", "likelihood", "tool", "seed")
N_SAMPLES = 500


def ours(
    path: Path,
    likelihood: str,
    seed: int,
    batch_key: str | None,
    *,
    n_samples: int = N_SAMPLES,
) -> dict:
    """A fit by the command line; bounds of the test cells, latents of all cells."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "scvae_jax.cli", "train", str(path)]
        command += ["--out", str(run), "--split-key", "split", "--seed", str(seed)]
        command += ["--likelihood", likelihood, "--latent-size", "10", "--json"]
        command += ["--batch-key", batch_key] if batch_key else []
        # what it compiles, it compiles anew
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        start = time.perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env=environment
        )
        seconds = time.perf_counter() - start
        fitted = sv.load(run)
    adata = anndata.read_h5ad(path)
    data = evaluation.prepare_as(adata, fitted)

    def bounds(where, n_samples: int) -> evaluation.CellBounds:
        cells = selection.cells_to_device(data, where)
        return evaluation.cell_bounds(
            fitted.model, fitted.params, cells, n_samples=n_samples
        )

    test = bounds((adata.obs["split"] == "test").to_numpy(), n_samples)
    return {
        "elbo": test.elbo,
        "marginal": test.importance_weighted_bound,
        "latent": bounds(slice(None), 1).latent,
        "seconds": seconds,
        "epochs": json.loads(done.stdout)["epochs"],
    }


def peer(
    python: str,
    path: Path,
    likelihood: str,
    seed: int,
    batch_key: str | None,
    *,
    settings: dict | None = None,
    part: str = "test",
    n_samples: int = N_SAMPLES,
    accelerator: str = "cpu",
) -> dict:
    """The same of SCVI, in its own environment, with settings of its own if any."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.npz"
        command = [python, str(Path(__file__).with_name("peer_scvi.py")), str(path)]
        command += ["--likelihood", LIKELIHOODS[likelihood], "--seed", str(seed)]
        command += ["--samples", str(n_samples), "--out", str(out)]
        command += ["--settings", json.dumps(settings or {}), "--part", part]
        command += ["--accelerator", accelerator]
        command += ["--batch-key", batch_key] if batch_key else []
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        row = dict(np.load(out))
    return row | {"versions": json.dumps(json.loads(done.stdout.splitlines()[-1]))}


def save(file: Path, row: dict) -> None:
    """Keep a fit: what is there is whole."""
    with whole(file) as part:
        np.savez(part, **row)


def figures(row: dict, labels: np.ndarray | None, seed: int) -> dict:
    """Of one fit; agreement of k-means on its latents with the labels, if any."""
    seconds = float(row["seconds"])
    found = {
        "elbo": float(row["elbo"].mean(dtype=np.float64)),
        "importance_weighted_bound": float(row["marginal"].mean(dtype=np.float64)),
        "seconds": None if np.isnan(seconds) else seconds,
        "epochs": int(row["epochs"]),
    }
    if str(row.get("accelerator", "cpu")) != "cpu":
        found["accelerator"] = str(row["accelerator"])
    if labels is not None:
        k = len(np.unique(labels))
        codes = scores.kmeans(row["latent"], k, seed)
        found["kmeans_ari"] = float(adjusted_rand_score(labels, codes))
    return found


def compared(rows: dict[str, dict[int, dict]], seeds: list[int]) -> dict:
    """Differences of importance-weighted bounds, ours minus theirs, in nats a cell."""
    stacked = {
        tool: np.stack([rows[tool][seed]["marginal"] for seed in seeds]).astype(float)
        for tool in TOOLS
    }
    differences = stacked["scvae_jax"] - stacked["scvi"]
    interval = nested_interval([differences])
    of_cells = differences.mean(axis=0)
    return {
        "seeds": seeds,
        "n_cells": differences.shape[1],
        "bounds": {tool: float(stacked[tool].mean()) for tool in TOOLS},
        "difference": float(differences.mean()),
        "median_difference": float(np.median(differences)),
        # of the sum over cells, what one cell is
        "largest_share": float(of_cells.max() / of_cells.sum()),
        "interval": interval and list(interval),
        "relative_gain": float(differences.mean() / -stacked["scvi"].mean()),
    }


def timed(fits: list[dict]) -> dict:
    """Medians over the seeds of which both sides have seconds."""
    seconds = {
        tool: {
            fit["seed"]: fit["seconds"]
            for fit in fits
            if fit["tool"] == tool and fit["seconds"] is not None
        }
        for tool in TOOLS
    }
    seeds = sorted(set.intersection(*map(set, seconds.values())))
    if not seeds:
        return {"timed_seeds": [], "seconds": None, "times_faster": None}
    medians = {
        tool: statistics.median(of_seed[seed] for seed in seeds)
        for tool, of_seed in seconds.items()
    }
    return {
        "timed_seeds": seeds,
        "seconds": medians,
        "times_faster": medians["scvi"] / medians["scvae_jax"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", help="a Python that has scvi-tools")
    parser.add_argument("--work", type=Path, required=True, help="keeps each fit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--likelihoods", nargs="*", default=list(LIKELIHOODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--known", action="store_true", help="only those with SCVI's")
    parser.add_argument("--tools", nargs="*", default=TOOLS, choices=TOOLS)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)

    def file_of(tool: str, name: str, likelihood: str, seed: int) -> Path:
        return arguments.work / f"{tool}.{name}.{likelihood}.{seed}.npz"

    timed_here = arguments.jobs == 1 and arguments.accelerator == "cpu"

    def make(place: tuple[int, str, str]) -> None:
        seed, name, likelihood = place
        given = (arguments.data / f"{name}.h5ad", likelihood, seed, SETS[name])
        known = file_of("scvi", name, likelihood, seed).exists()
        for tool in arguments.tools:
            file = file_of(tool, name, likelihood, seed)
            if file.exists() or (arguments.known and not known):
                continue
            if tool == "scvae_jax":
                row = ours(*given)
            elif arguments.scvi:
                row = peer(arguments.scvi, *given, accelerator=arguments.accelerator)
            else:
                continue
            save(file, row if timed_here else row | {"seconds": np.nan})
            print(file.name, figures(row, None, seed), flush=True)

    # seeds first: an early end leaves all sets with some
    places = itertools.product(arguments.seeds, arguments.only, arguments.likelihoods)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(make, places))
    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows = {(row["set"], row["likelihood"]): row for row in old.get("rows", ())}
    fits = {tuple(fit[name] for name in NAMES): fit for fit in old.get("fits", ())}
    known_versions = old.get("versions", {}) | versions()
    for name, likelihood in itertools.product(SETS, LIKELIHOODS):
        found = {tool: {} for tool in TOOLS}
        obs = anndata.read_h5ad(arguments.data / f"{name}.h5ad", backed="r").obs
        labels = obs["cell_type"].astype(str).to_numpy() if "cell_type" in obs else None
        for tool, seed in itertools.product(TOOLS, range(100)):
            file = file_of(tool, name, likelihood, seed)
            if file.exists():
                row = found[tool][seed] = dict(np.load(file))
                known_versions |= json.loads(str(row.get("versions", "{}")))
                place = (name, likelihood, tool, seed)
                fit = figures(row, labels, seed)
                if fit["seconds"] is None:
                    # what it took when it was last made with nothing beside it
                    fit["seconds"] = fits.get(place, fit)["seconds"]
                fits[place] = dict(zip(NAMES, place, strict=True)) | fit
        seeds = sorted(set(found["scvae_jax"]) & set(found["scvi"]))
        row = rows.get((name, likelihood), {"seeds": []})
        if seeds and len(seeds) >= len(row["seeds"]):
            row = {"set": name, "likelihood": likelihood} | compared(found, seeds)
        if row["seeds"]:
            own = [
                fit for place, fit in fits.items() if place[:2] == (name, likelihood)
            ]
            rows[name, likelihood] = row | timed(own)
    of_rows = itertools.product(SETS, LIKELIHOODS)
    of_fits = itertools.product(SETS, LIKELIHOODS, TOOLS, range(100))
    result = {
        "rows": [rows[place] for place in of_rows if place in rows],
        "fits": [fits[place] for place in of_fits if place in fits],
        "n_samples": N_SAMPLES,
        "versions": known_versions,
        "cores": len(os.sched_getaffinity(0)),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(readme_tables.lines_of(readme_tables.against_peers(result))))


if __name__ == "__main__":
    main()
