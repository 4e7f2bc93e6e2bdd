"""A fitted model, and its run folder: parameters by orbax, all else as plain text.

config.json   settings, batches, figures of the training, versions
genes.json    gene names, in the model's order
cells.csv     the cells that were fitted, their part of the split and their totals
history.json  the bounds of every epoch
params/       orbax
alternatives/ other fits of the same cells, if any, each a run folder
"""

import csv
import dataclasses
import errno
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from scvae_jax.building import from_config, named_likelihood
from scvae_jax.checks import (
    InputError,
    expect,
    is_lack_of_memory,
    listing,
    one_line,
)
from scvae_jax.config import DataConfig, ModelConfig, TrainConfig, from_json
from scvae_jax.files import expect_writable, whole_folder
from scvae_jax.likelihoods import Likelihood
from scvae_jax.models import Model

FORMAT = 5
PARTS = ("config.json", "genes.json", "cells.csv", "history.json", "params")
PACKAGES = ("scvae_jax", "jax", "flax", "optax", "distrax")
PACKAGES += ("numpy", "scipy", "anndata")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted model and what is needed to use it on other cells.

    Attributes:
        model: pure functions.
        params: the parameters of the best epoch.
        config: what was fitted.
        train_config: how.
        data_config: where the data was found.
        genes: [G] names.
        batches: the known batches, none without a batch key.
        cells: [n] names of the cells that were fitted or held out.
        split: [n] train, validation or test.
        totals: [n] of the counts that were used, by which cells of the same name are
            told from them; None: not known.
        history: for each epoch a dict: epoch, phase, loss, kl_weight, skipped_steps,
            validation_elbo, validation_bound (nats per cell) and seconds; of mixtures
            also validation_kl_y, clusters_used and effective_clusters.
        summary: n_train, n_validation, n_genes and n_fits; epochs, best_epoch,
            stopped_early, steps and skipped_steps; seconds (of training),
            compile_seconds, place_seconds (of a mixture's components) and
            total_seconds, of all fits together, seconds_per_epoch and cells_per_second;
            validation_elbo and validation_bound of the best epoch, nats per cell;
            split_seed where the split was drawn; of mixtures n_clusters, clusters_used
            and cluster_sizes [K]. own_optimizer and own_kl_weight are true where they
            were passed as values.
        versions: of Python's packages and of the device at the time.
        alternatives: other fits of the same cells, best first; clusters that match
            have the same number in all.
        own_likelihood: whether the likelihood was passed to the fit as a value.
    """

    model: Model
    params: Any
    config: ModelConfig
    train_config: TrainConfig
    data_config: DataConfig
    genes: np.ndarray
    batches: tuple[str, ...]
    cells: np.ndarray
    split: np.ndarray
    history: list[dict[str, float]]
    summary: dict[str, Any]
    versions: dict[str, str]
    alternatives: tuple["Fitted", ...] = ()
    own_likelihood: bool = False
    totals: np.ndarray | None = None

    def __repr__(self) -> str:
        parts = zip(*np.unique(self.split, return_counts=True), strict=True)
        cells = ", ".join(f"{n} {part}" for part, n in parts)
        bound = self.summary.get("validation_bound", np.nan)
        return (
            f"Fitted({self.config.model}, {self.likelihood.name}, {len(self.genes)} "
            f"genes; cells: {cells}; validation bound {bound:.2f} nats a cell)"
        )

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the counts."""
        return self.model.modalities[0].likelihood

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the run folder; it appears whole or not at all.

        Args:
            path: of the folder.
            overwrite: replace a run that is there.

        Raises:
            InputError: if the folder exists and `overwrite` is false, or if it is
                there and is not a run folder.
        """
        path = Path(path).absolute()
        check_free(path, overwrite)
        with whole_folder(path) as part:
            self._write(part)

    def _write(self, folder: Path) -> None:
        import orbax.checkpoint

        try:
            with orbax.checkpoint.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder / "params", self.params)
        except ValueError as error:
            # what orbax makes of a full disk
            raise OSError(errno.EIO, one_line(error), str(folder)) from None
        for number, other in enumerate(self.alternatives, start=1):
            place = folder / "alternatives" / f"{number:04d}"
            place.mkdir(parents=True)
            other._write(place)
        config = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.config),
            "train": dataclasses.asdict(self.train_config),
            "data": dataclasses.asdict(self.data_config),
            "likelihood": self.likelihood.name,
            "own_likelihood": self.own_likelihood,
            "batches": list(self.batches),
            "summary": self.summary,
            "versions": self.versions,
        }
        _write_json(folder / "genes.json", self.genes.tolist(), indent=0)
        _write_json(folder / "history.json", self.history, indent=0)
        cells = pd.DataFrame({"cell": self.cells, "split": self.split})
        if self.totals is not None:
            cells["total"] = self.totals
        # in quotes, as a name may have an end of line in it
        cells.to_csv(folder / "cells.csv", index=False, quoting=csv.QUOTE_ALL)
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = sorted(path.relative_to(folder).as_posix() for path in files)
        config["sha256"] = _checksums(folder, names, config)
        _write_json(folder / "config.json", config, indent=2)


def _write_json(path: Path, values: Any, indent: int) -> None:
    path.write_text(json.dumps(values, indent=indent) + "\n", encoding="utf-8")


def check_free(path: str | Path, overwrite: bool) -> None:
    """Refuse to write a run where something is, before any work is done.

    Args:
        path: of the run folder to be.
        overwrite: allow a run folder to be replaced.

    Raises:
        InputError: if something is there that must not be replaced.
    """
    path = Path(path)
    expect_writable(path)
    if path.is_symlink():
        raise InputError(
            f"found a link at {path}, expected a new path or a run folder, "
            "choose another path"
        )
    if Path.cwd().is_relative_to(path.resolve()):
        raise InputError(
            f"found that {path} holds the folder that you are in, which cannot be "
            "replaced, expected a new path or a run folder, choose a folder inside it"
        )
    if path.is_mount():
        raise InputError(
            f"found the top of a file system at {path}, which cannot be replaced, "
            "expected a new path or a run folder, choose a folder inside it"
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not _is_run(path):
        raise InputError(
            f"found {path}, which is not a run folder, expected a new path or a run "
            "folder, choose another path"
        )
    if not overwrite:
        raise InputError(
            f"found a run folder at {path}, expected a new path, choose another one or "
            "replace it (overwrite=True, --overwrite)"
        )
    runs = [path, *(path / "alternatives").glob("*")]
    inside = [p for run in runs if run.is_dir() for p in run.iterdir()]
    inside += [run for run in runs if not run.is_dir()]
    known = {*PARTS, "alternatives"}
    others = sorted(str(p.relative_to(path)) for p in inside if p.name not in known)
    if others:
        raise InputError(
            f"found {listing(others)} in the run folder {path}, expected nothing but "
            "the run that is to be replaced, move them elsewhere"
        )


def _is_run(path: Path) -> bool:
    try:
        return {"format", "sha256"} <= set(
            json.loads((path / "config.json").read_text())
        )
    except (OSError, ValueError, TypeError):
        return False


def _checksums(
    folder: Path, names: Sequence[str], config: dict[str, Any]
) -> dict[str, str | None]:
    """SHA-256 of files in the folder; of config.json, of all but these sums."""
    sums = {}
    for name in names:
        sums[name] = None
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    rest = {name: value for name, value in config.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True).encode()
    return sums | {"config.json": hashlib.sha256(text).hexdigest()}


def load(path: str | Path, *, likelihood: Likelihood | None = None) -> Fitted:
    """Read a run folder.

    Args:
        path: of the folder.
        likelihood: the likelihood of one's own that the run was fitted with, if so.

    Returns:
        The fitted model; its numbers are those that were saved, bit for bit (of 64
        bits where jax has them).

    Raises:
        InputError: if the folder is not a run, has parts missing or damaged, is of
            another version, or needs a likelihood that is not given, or none that is.
    """
    import orbax.checkpoint

    path = Path(path).absolute()
    missing = [part for part in PARTS if not (path / part).exists()]
    if missing:
        raise InputError(
            f"found no {', '.join(missing)} in {path}, expected a run folder with "
            f"{', '.join(PARTS)}, check the path or fit again"
        )
    config = _read_json(path / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise InputError(
            f"found a run folder of format {found} at {path}, expected format "
            f"{FORMAT}, use the version of scvae_jax that wrote it or fit again"
        )
    try:
        model_config = from_json(ModelConfig, config["model"])
        train_config = from_json(TrainConfig, config["train"])
        data_config = from_json(DataConfig, config["data"])
        name, batches = config["likelihood"], tuple(config["batches"])
        summary, versions = config["summary"], config["versions"]
        saved, own_likelihood = {**config["sha256"]}, config["own_likelihood"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"found no {error} in {path / 'config.json'}, expected a whole run folder, "
            "fit again"
        ) from None
    given = "none" if likelihood is None else repr(likelihood.name)
    if own_likelihood and (likelihood is None or likelihood.name != name):
        raise InputError(
            f"found {given} given for a run of likelihood {name!r}, expected that "
            "likelihood, pass it: load(path, likelihood=...)"
        )
    if not own_likelihood:
        expect(
            likelihood is None,
            f"{given} given for a run of the named likelihood {name!r}",
            "none, as its options are in the run",
            "leave it out",
        )
    used = likelihood if own_likelihood else named_likelihood(model_config)
    genes, history = _read_json(path / "genes.json"), _read_json(path / "history.json")
    # of other files in the folder nothing is read; alternatives look at their own, and
    # this at the settings that have the sums of those
    names = [
        name
        for name in saved
        if not name.startswith("alternatives/") or name.endswith("/config.json")
    ]
    found = _checksums(path, names, config)
    damaged = [name for name in sorted(found) if found[name] != saved.get(name)]
    if damaged:
        raise InputError(
            f"found {listing(damaged, 3)} damaged or changed in {path}, expected the "
            "files as they were saved, fit again"
        )
    genes = np.asarray(genes, dtype=str)
    # names such as NA or 007 are names
    cells = pd.read_csv(path / "cells.csv", dtype=str, keep_default_na=False)
    model = from_config(model_config, used, n_genes=len(genes), n_batches=len(batches))
    # of the default device, as data goes there
    place = jnp.zeros(()).sharding
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    try:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(path / "params", template)
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        reason = one_line(error)
        raise InputError(
            f"found parameters that cannot be read in {path / 'params'} ({reason}), "
            "expected those of the configuration beside them, fit again"
        ) from None
    return Fitted(
        model=model,
        params=params,
        config=model_config,
        train_config=train_config,
        data_config=data_config,
        genes=genes,
        batches=batches,
        cells=cells["cell"].to_numpy(dtype=str),
        split=cells["split"].to_numpy(dtype=str),
        history=history,
        summary=summary,
        versions=versions,
        alternatives=tuple(
            load(path / folder, likelihood=likelihood)
            for folder in sorted({"/".join(name.split("/")[:2]) for name in saved})
            if folder.startswith("alternatives/")
        ),
        own_likelihood=own_likelihood,
        totals=cells["total"].to_numpy(np.float64) if "total" in cells else None,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"found a file that is not JSON at {path} ({error}), expected a whole run "
            "folder, fit again"
        ) from None


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers, and the device."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    (device,) = jnp.zeros(()).devices()
    return found | {"device": f"{device.platform}: {device.device_kind}"}
