"""SCVI with its main settings chosen on validation cells, beside our one default.

    python experiments/tuned_peer.py --data ../shared/data --scvi SCVI_PYTHON \
        --work peers --out experiments/tuned_peer.json

Negative binomial, 10 latents, each set by itself, which favours SCVI: ours has one
default for all. Each setting is first changed alone; then the best value of each that
gained is added, largest gain first, and kept where the validation ELBO rises once more.
What is best then is trained twice as long for as long as that gains; where it did, what
had gained alone is added anew. The best of all is trained with each seed, and test
cells are scored by importance-weighted bounds of 500 samples, which are kept cell by
cell beside `--out` (.npz). Ours are the fits of `against_peers.py`, of the same seeds,
in the same folder. A trial that `--work` has is not made again; there are thirty to
forty of a set, of one to ten minutes each on one core.
"""

import argparse
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import against_peers
import common
import numpy as np

# None of them is SCVI's default
SETTINGS = {
    "n_layers": [2],
    "n_hidden": [16, 32, 64, 256],
    "dropout_rate": [0.0, 0.2, 0.3, 0.5, 0.7, 0.8],
    "lr": [2e-4, 5e-4, 2e-3, 4e-3],
    "weight_decay": [1e-4, 1e-2, 1e-1],
    "n_epochs_kl_warmup": [1, 2, 5, 20, 50, 150],
    # more than its 400 are tried at the end
    "max_epochs": [100, 200],
    "early_stopping": [True],
}
# SCVI's default of sets of fewer than 20,000 cells
EPOCHS = 400
SETS = ("kang_batches", "pbmc4k")
LIKELIHOOD = "negative_binomial"


class Trials:
    """Fits of SCVI on one set, kept in a folder."""

    def __init__(
        self,
        python: str,
        data: Path,
        work: Path,
        name: str,
        accelerator: str,
        jobs: int,
    ):
        self.python, self.work, self.name = python, work, name
        self.accelerator, self.jobs = accelerator, jobs
        self.commits: set[str] = set()
        self.path = data / f"{name}.h5ad"
        self.tried: list[dict] = []

    def fit(self, settings: dict, seed: int, part: str, n_samples: int) -> dict:
        """Bounds of each cell of a part."""
        said = " ".join(f"{key}={value}" for key, value in settings.items())
        file = self.work / f"tuned.{self.name}.{part}.{seed}.{said}.npz"
        if not file.exists():
            row = against_peers.peer(
                self.python,
                self.path,
                LIKELIHOOD,
                seed,
                against_peers.SETS[self.name],
                settings=settings,
                part=part,
                n_samples=n_samples,
                accelerator=self.accelerator,
            )
            # what it took beside others says nothing
            alone = self.jobs == 1 and self.accelerator == "cpu"
            against_peers.save(file, row if alone else row | {"seconds": np.nan})
        found = dict(np.load(file))
        self.commits.add(str(found.get("commit")))
        return found

    def __call__(self, settings: dict) -> float:
        """The validation ELBO of the first seed, nats a cell."""
        row = self.fit(settings, 0, "validation", 1)
        elbo = float(row["elbo"].mean(dtype=np.float64))
        trial = {"settings": settings, "validation_elbo": elbo}
        seconds = float(row["seconds"])
        seconds = None if np.isnan(seconds) else seconds
        trial |= {"epochs": int(row["epochs"]), "seconds": seconds}
        self.tried.append(trial)
        print(self.name, self.tried[-1], flush=True)
        return elbo

    def make(self, fits: list[tuple]) -> list[dict]:
        """Several fits at a time, for now or later."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda one: self.fit(*one), fits))


def searched(trials: Trials) -> dict:
    """The settings with the best validation ELBO that the search finds."""
    alone = [{name: value} for name, values in SETTINGS.items() for value in values]
    trials.make([(one, 0, "validation", 1) for one in [{}, *alone]])
    default = trials({})
    gains = []
    for name, values in SETTINGS.items():
        elbo, value = max((trials({name: value}), value) for value in values)
        if elbo > default:
            gains.append((elbo, name, value))
    best, settings = default, {}

    def add() -> None:
        nonlocal best, settings
        for elbo, name, value in sorted(gains, reverse=True):
            if name in settings:
                continue
            together = settings | {name: value}
            if settings:
                elbo = trials(together)
            if elbo > best:
                best, settings = elbo, together

    add()
    if "max_epochs" in settings:
        # fewer were better
        return settings
    epochs = EPOCHS
    while True:
        longer = settings | {"max_epochs": 2 * epochs}
        elbo = trials(longer)
        if elbo <= best:
            break
        best, settings, epochs = elbo, longer, 2 * epochs
    if epochs > EPOCHS:
        add()
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", required=True, help="a Python that has scvi-tools")
    parser.add_argument("--work", type=Path, required=True, help="keeps each fit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)

    def of_ours(name: str, seed: int) -> Path:
        place = (name, LIKELIHOOD, "scvae_jax", seed)
        return against_peers.file_of(arguments.work, *place)

    for name, seed in itertools.product(arguments.only, arguments.seeds):
        if not of_ours(name, seed).exists():
            parser.error(f"found no {of_ours(name, seed)}, run against_peers.py first")
    for name in arguments.only:
        known = {}
        trials = Trials(
            arguments.scvi,
            arguments.data,
            arguments.work,
            name,
            arguments.accelerator,
            arguments.jobs,
        )
        settings = searched(trials)
        found = {tool: {} for tool in against_peers.TOOLS}
        of_test = ("test", against_peers.N_SAMPLES)
        tested = trials.make([(settings, seed, *of_test) for seed in arguments.seeds])
        for seed, theirs in zip(arguments.seeds, tested, strict=True):
            found["scvi"][seed] = theirs["marginal"]
            mine = np.load(of_ours(name, seed))
            found["scvae_jax"][seed] = mine["marginal"]
            trials.commits.add(str(mine.get("commit")))
            known |= json.loads(str(theirs["versions"]))
        row = {"set": name, "likelihood": LIKELIHOOD, "settings": settings}
        row |= against_peers.compared(found, list(arguments.seeds))
        print(row, flush=True)
        # those of other settings or seeds are of another row
        known_bounds = against_peers.known_bounds(arguments.out)
        kept = {key: v for key, v in known_bounds.items() if f".{name}." not in key}
        for tool, seed in itertools.product(found, arguments.seeds):
            bounds = found[tool][seed].astype(np.float32)
            kept[f"{tool}.{name}.{LIKELIHOOD}.{seed}"] = bounds
        against_peers.keep_bounds(arguments.out, kept)
        row |= {"trials": trials.tried, "commit": ", ".join(sorted(trials.commits))}
        common.add_row(
            arguments.out, row, lambda row: SETS.index(row["set"]), versions=known
        )


if __name__ == "__main__":
    main()
