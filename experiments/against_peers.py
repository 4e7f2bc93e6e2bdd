"""Held-out bounds and clusters beside SCVI at its defaults, same cells and cores.

    taskset -c 0 python experiments/against_peers.py --data ../shared/data \
        --scvi SCVI_PYTHON --work peers --out experiments/against_peers.json

Both train on cells marked train, each fit in a process of its own; ours is the command
`scvae-jax train` at its defaults, which stops by the validation cells. Test cells are
scored by importance-weighted bounds of 500 samples, averaged over cells, and compared
cell by cell; intervals are nested bootstraps over seeds and cells. Beside them the
share explained, (ours - null) / (SCVI's - null), where the null is depth x the mean
profile of the training cells; if SCVI is below the null there is none. Seconds are
those of the process: ours from its start to a saved run, SCVI's from the start of its
imports to the end of its training; `taskset` holds both to the same core. As the
command keeps what it compiles for the next run, ours are timed with nothing kept, and,
of all seeds but the first, once more with what that has left: so it is for a user who
fits one seed after another.

A fit that `--work` has already is not made again; SCVI takes hours (worm_neurons: half
an hour a fit on one core). With `--accelerator gpu` SCVI trains on a GPU, and with
`--jobs` several fits are made at a time: such fits give bounds and no seconds. Bounds
of each test cell are kept beside `--out` (.npz), so that seeds can be added; what
`--out` has and they have not stays.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import common
import numpy as np
import readme_tables
from sklearn.metrics import adjusted_rand_score

import scvae_jax as sv
from scvae_jax import evaluation, scores, selection
from scvae_jax.baselines import null_log_prob
from scvae_jax.building import named_likelihood
from scvae_jax.checkpoints import versions
from scvae_jax.counts import prepare
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
# of a fit, what is of when it was last made with nothing beside it
TIMES = ("seconds", "seconds_commit", "seconds_programs_kept")
# that are looked for
SEEDS = range(100)
N_SAMPLES = 500


def ours(
    path: Path,
    likelihood: str,
    seed: int,
    batch_key: str | None,
    *,
    n_samples: int = N_SAMPLES,
    programs: Path | None = None,
) -> dict:
    """A fit by the command line; bounds of the test cells, latents of all cells.

    If one of another seed and the same commit has left its programs in a folder whose
    name begins with `programs`, it is timed with these as well; else it leaves its own
    there, where they have to stay: jax knows them by their folder too.
    """
    # of what is started now, whatever was committed since this script was
    commit = str(common.head())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        def trained(out: str, compiled: Path) -> tuple[float, dict]:
            """Seconds of the process, and what it says."""
            command = [sys.executable, "-m", "scvae_jax.cli", "train", str(path)]
            command += ["--out", str(folder / out), "--split-key", "split"]
            command += ["--likelihood", likelihood, "--latent-size", "10", "--json"]
            command += ["--seed", str(seed)]
            command += ["--batch-key", batch_key] if batch_key else []
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
            start = time.perf_counter()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, env=environment
            )
            return time.perf_counter() - start, json.loads(done.stdout)

        own, others = folder / "compiled", []
        if programs:
            left = programs.parent.glob(f"{programs.name}.{commit}.*")
            others = sorted(path for path in left if path.suffix != f".{seed}")
        if programs and not others:
            own = programs.with_name(f"{programs.name}.{commit}.{seed}")
            # of a fit that did not end
            shutil.rmtree(own, ignore_errors=True)
        # what this compiles, it compiles anew
        seconds, said = trained("run", own)
        again = {}
        if others:
            again["seconds_programs_kept"], same = trained("again", others[0])
            assert same["validation_elbo"] == said["validation_elbo"]
            assert same["compile_seconds"] < 0.5 * said["compile_seconds"]
        fitted = sv.load(folder / "run")
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
        "epochs": said["epochs"],
        "commit": commit,
    } | again


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
        np.savez(part, **{"commit": str(common.commit())} | row)


def figures(row: dict, labels: np.ndarray | None, seed: int) -> dict:
    """Of one fit; agreement of k-means on its latents with the labels, if any."""
    seconds = float(row["seconds"])
    commit = str(row["commit"]) if "commit" in row else None
    found = {
        "elbo": float(row["elbo"].mean(dtype=np.float64)),
        "importance_weighted_bound": float(row["marginal"].mean(dtype=np.float64)),
        "seconds": None if np.isnan(seconds) else seconds,
        "epochs": int(row["epochs"]),
        "commit": commit,
        "seconds_commit": None if np.isnan(seconds) else commit,
    }
    if "seconds_programs_kept" in row and found["seconds"]:
        found["seconds_programs_kept"] = float(row["seconds_programs_kept"])
    if str(row.get("accelerator", "cpu")) != "cpu":
        found["accelerator"] = str(row["accelerator"])
    if labels is not None:
        k = len(np.unique(labels))
        codes = scores.kmeans(row["latent"], k, seed)
        found["kmeans_ari"] = float(adjusted_rand_score(labels, codes))
    return found


def compared(bounds: dict[str, dict[int, np.ndarray]], seeds: list[int]) -> dict:
    """Differences of importance-weighted bounds, ours minus theirs, in nats a cell."""
    stacked = {
        tool: np.stack([bounds[tool][seed] for seed in seeds]).astype(float)
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


def null_of(path: Path, likelihood: str, batch_key: str | None) -> float:
    """Mean log-probability of the test cells under depth x the mean profile."""
    data_config = sv.DataConfig(batch_key=batch_key, split_key="split")
    data = prepare(anndata.read_h5ad(path), data_config)
    family = named_likelihood(sv.ModelConfig(likelihood=likelihood))
    train, test = (data.split == part for part in ("train", "test"))
    return float(null_log_prob(family, data, train, test).mean(dtype=np.float64))


def timed(fits: list[dict]) -> dict:
    """Medians over the seeds that were timed, which need not be those of both sides.

    SCVI's epochs do not depend on the seed; ours stop sooner or later.
    """

    def of_seeds(tool: str, name: str) -> dict[int, float]:
        seconds = {f["seed"]: f.get(name) for f in fits if f["tool"] == tool}
        return {seed: known for seed, known in seconds.items() if known is not None}

    found = {tool: of_seeds(tool, "seconds") for tool in TOOLS}
    again = of_seeds("scvae_jax", "seconds_programs_kept")
    medians = {tool: statistics.median(of.values()) for tool, of in found.items() if of}
    if again:
        medians["programs_kept"] = statistics.median(again.values())

    def faster(name: str) -> float | None:
        known = {"scvi", name} <= medians.keys()
        return medians["scvi"] / medians[name] if known else None

    return {
        "timed_seeds": {tool: sorted(of) for tool, of in found.items()},
        "seconds": medians,
        "times_faster": faster("scvae_jax"),
        "times_faster_programs_kept": faster("programs_kept"),
    }


def file_of(work: Path, name: str, likelihood: str, tool: str, seed: int) -> Path:
    """Where a fit is kept."""
    return work / f"{tool}.{name}.{likelihood}.{seed}.npz"


def of_cells(out: Path) -> Path:
    """Where bounds of test cells are kept."""
    return out.with_suffix(".npz")


def known_bounds(out: Path) -> dict[str, np.ndarray]:
    """Bounds of each test cell of each fit that is known."""
    file = of_cells(out)
    return dict(np.load(file)) if file.exists() else {}


def keep_bounds(out: Path, bounds: dict[str, np.ndarray]) -> None:
    """Keep them in the place of those that are there."""
    with whole(of_cells(out)) as part, part.open("wb") as file:
        np.savez_compressed(file, **bounds)


def gathered(data: Path, work: Path, out: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """All that is known: the figures, and the bounds of each test cell of each fit."""
    old = json.loads(out.read_text()) if out.exists() else {}
    rows = {(row["set"], row["likelihood"]): row for row in old.get("rows", ())}
    fits = {tuple(fit[name] for name in NAMES): fit for fit in old.get("fits", ())}
    known_versions = old.get("versions", {}) | versions()
    kept = known_bounds(out)
    for name, likelihood in itertools.product(SETS, LIKELIHOODS):
        path = data / f"{name}.h5ad"
        labels = anndata.read_h5ad(path, backed="r").obs.get("cell_type")
        labels = None if labels is None else labels.astype(str).to_numpy()
        places = list(itertools.product([name], [likelihood], TOOLS, SEEDS))
        files = {place: file_of(work, *place) for place in places}
        new = {p: dict(np.load(file)) for p, file in files.items() if file.exists()}
        now = dict(kept)
        for place, found in new.items():
            now[files[place].stem] = found["marginal"].astype(np.float32)
            known_versions |= json.loads(str(found.get("versions", "{}")))
        bounds = {tool: {} for tool in TOOLS}
        for place in places:
            if files[place].stem in now:
                bounds[place[2]][place[3]] = now[files[place].stem]
        seeds = sorted(set(bounds["scvae_jax"]) & set(bounds["scvi"]))
        row = rows.get((name, likelihood), {"seeds": []})
        renewed = bool(seeds) and set(seeds) >= set(row["seeds"])
        if renewed or not row["seeds"]:
            kept = now
        elif new:
            print(
                f"{name} {likelihood}: bounds of seeds {row['seeds']} are gone but for "
                f"{[s for s in seeds if s in row['seeds']]}, so that only seconds are "
                "renewed",
                file=sys.stderr,
            )
        for place, found in new.items():
            fit = dict(zip(NAMES, place, strict=True))
            fit |= figures(found, labels, place[-1])
            old_fit = fits.get(place, fit)
            timed_fit = fit if fit["seconds"] else old_fit
            if not renewed and row["seeds"] and place not in fits:
                # a seed that the row cannot have
                continue
            made = fit if renewed else old_fit
            fits[place] = {name: v for name, v in made.items() if name not in TIMES} | {
                name: v for name, v in timed_fit.items() if name in TIMES
            }
        if renewed:
            row |= {"set": name, "likelihood": likelihood} | compared(bounds, seeds)
            if new or "null" not in row:
                row["null"] = null_of(path, likelihood, SETS[name])
        if not row["seeds"]:
            continue
        gain, theirs = (row["bounds"][tool] - row["null"] for tool in TOOLS)
        row["share_explained"] = gain / theirs if theirs > 0 else None
        own = [fit for key, fit in fits.items() if key[:2] == (name, likelihood)]
        rows[name, likelihood] = row | timed(own)
    of_rows = itertools.product(SETS, LIKELIHOODS)
    of_fits = itertools.product(SETS, LIKELIHOODS, TOOLS, SEEDS)
    result = {
        "rows": [rows[place] for place in of_rows if place in rows],
        "fits": [fits[place] for place in of_fits if place in fits],
        "n_samples": N_SAMPLES,
        "versions": known_versions | {"python": platform.python_version()},
        "cores": len(os.sched_getaffinity(0)),
    }
    return result, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", help="a Python that has scvi-tools")
    parser.add_argument("--work", type=Path, required=True, help="keeps each fit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    families = list(LIKELIHOODS)
    parser.add_argument("--likelihoods", nargs="*", default=families, choices=families)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--known", action="store_true", help="only those with SCVI's")
    parser.add_argument("--tools", nargs="*", default=TOOLS, choices=TOOLS)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if not set(arguments.seeds) <= set(SEEDS):
        parser.error(f"found seeds {arguments.seeds}, expected some of 0 to 99")
    arguments.work.mkdir(exist_ok=True)

    timed_here = arguments.jobs == 1 and arguments.accelerator == "cpu"

    def make(place: tuple[int, str, str]) -> None:
        seed, name, likelihood = place
        given = (arguments.data / f"{name}.h5ad", likelihood, seed, SETS[name])
        known = file_of(arguments.work, name, likelihood, "scvi", seed).exists()
        for tool in arguments.tools:
            file = file_of(arguments.work, name, likelihood, tool, seed)
            if file.exists() or (arguments.known and not known):
                continue
            if tool == "scvae_jax":
                programs = arguments.work / f"programs.{name}.{likelihood}"
                row = ours(*given, programs=programs.resolve() if timed_here else None)
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
    result, kept = gathered(arguments.data, arguments.work, arguments.out)
    # the bounds first: what they are of can be made again from them
    keep_bounds(arguments.out, kept)
    common.write(arguments.out, result)
    print("\n".join(readme_tables.lines_of(readme_tables.against_peers(result))))


if __name__ == "__main__":
    main()
