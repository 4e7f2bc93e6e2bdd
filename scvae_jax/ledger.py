"""The folder of a comparison: what is finished stays, and is read again.

comparison.json  settings and what the data was; a run with others is refused
fits/            figures of each cell, one .npz for each fit, whole or not there
table.csv        a row for each fit
ranks.csv        a row for each likelihood and model, with differences and intervals
table.json       both, and remarks
differences.png  differences in nats per cell with their intervals
clusters.png     bound against clusters
.new/            what will take the place of all of these when it is finished
"""

import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np

from scvae_jax.checks import InputError, listing
from scvae_jax.files import whole
from scvae_jax.ranking import Fit, Row

SETTINGS = "comparison.json"
# what is written last of a comparison that is finished
LAST = "table.json"
TABLES = ("table.csv", "ranks.csv", LAST)
PICTURES = ("differences.png", "clusters.png")
# fits that are replaced, in the folder of those that take their place
OLD = "old"


def open_folder(folder: Path, settings: Row, overwrite: bool) -> tuple[Path, Row]:
    """Make the folder, or go on with one of the same settings.

    Args:
        folder: its path.
        settings: JSON values. There may be more or fewer of them than before, and of
            the digests of data sets by name, "data"; what is not used now stays, where
            something was fitted of it.
        overwrite: replace a comparison that is there, by one made inside its folder
            (beside it may be another file system) that takes its place when it is
            finished (`take_place`). One of the same settings that was stopped before it
            was finished is gone on with.

    Returns:
        The folder to work in, and the settings that it now has.

    Raises:
        InputError: if something else is there, or a comparison of other settings.
        OSError: if what is there cannot be read.
    """
    if not _is_new(folder):
        beside = folder / ".new"
        begins = (beside / SETTINGS).exists()
        placed = begins and not (beside / "fits").exists()
        if placed:
            # it was stopped while it took its place
            take_place(beside, folder)
        elif begins and (beside / OLD).exists() and not (folder / "fits").exists():
            # or just before
            os.replace(beside / OLD, folder / "fits")
        known = _read_settings(folder / SETTINGS)
        if known is None:
            raise InputError(
                f"found {folder}, which is not a comparison, expected a new path or "
                "one that is, choose another path"
            )
        for part in (*folder.glob("fits/.*.npz"), *beside.glob("fits/.*.npz")):
            # of a process that was killed while it wrote
            part.unlink()
        known = _in_use(known, folder)
        changed = _changed(known, settings)
        if changed and not overwrite:
            raise InputError(
                f"found a comparison at {folder} with other settings "
                f"({listing(changed)}), expected the same to go on with, choose "
                "another path or replace it (overwrite=True, --overwrite)"
            )
        begun = _read_settings(beside / SETTINGS)
        begun = begun and _in_use(begun, beside)
        stopped = bool(begun) and not _changed(begun, settings)
        finished = (folder / LAST).exists() and not placed
        if overwrite and (changed or finished or stopped):
            folder, known = beside, begun
            if not stopped:
                known = {}
                if beside.exists():
                    # of an earlier call that was stopped; never settings without fits
                    (beside / SETTINGS).unlink(missing_ok=True)
                    shutil.rmtree(beside)
        settings = known | {
            name: known.get(name, {}) | value if isinstance(value, dict) else value
            for name, value in settings.items()
        }
    (folder / "fits").mkdir(parents=True, exist_ok=True)
    with whole(folder / SETTINGS) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return folder, settings


def _is_new(folder: Path) -> bool:
    """Whether nothing is there, or what is left of a call stopped before it began."""
    if not folder.is_dir():
        return not folder.exists()
    names = {path.name for path in folder.iterdir()}
    parts = {name for name in names if re.fullmatch(rf"\.[0-9a-f]+-{SETTINGS}", name)}
    return names - parts <= {"fits"} and not any(folder.glob("fits/*"))


def take_place(work: Path, folder: Path) -> None:
    """Put a finished comparison in the place of an old one; other files stay.

    Args:
        work: where it was made, from `open_folder`.
        folder: where it belongs; it may be the same.
    """
    if work == folder:
        return
    if (work / "fits").exists():
        for name in (*TABLES, *PICTURES):
            (folder / name).unlink(missing_ok=True)
        if (folder / "fits").exists():
            # aside first: they are there as a whole until the new ones are
            os.replace(folder / "fits", work / OLD)
        os.replace(work / "fits", folder / "fits")
    # its settings last: by them `open_folder` knows one that was stopped here
    for path in sorted(work.iterdir(), key=lambda path: path.name == SETTINGS):
        if path.name != OLD:
            os.replace(path, folder / path.name)
    shutil.rmtree(work, ignore_errors=True)


def _read_settings(path: Path) -> Row | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    mine = isinstance(known, dict) and {"format", "data", "n_samples"} <= set(known)
    return known if mine else None


def _in_use(known: Row, folder: Path) -> Row:
    """Settings without those of mixtures or data of which nothing was fitted yet."""
    try:
        rows = [read_fit(path).row for path in (folder / "fits").glob("*.npz")]
    except InputError:
        # whatever it was of
        return known
    if not rows:
        return {}
    fitted = {row["data"] for row in rows}
    data = {name: known["data"][name] for name in known["data"] if name in fitted}
    mixtures = any(row["model"] == "gmvae" for row in rows)
    kept = {n: value for n, value in known.items() if mixtures or n != "gmvae"}
    return kept | {"data": data}


def _changed(known: Row, settings: Row, grows: bool = True) -> list[str]:
    """The settings that differ; where it grows, not those that only one of them has."""
    found = []
    for name in sorted(known.keys() & settings.keys() if grows else known | settings):
        old, value = known.get(name), settings.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            # of data sets there may be more; a recipe with more is another one
            inner = _changed(old, value, grows=name == "data")
            # a digest tells nobody anything
            found += ["the cells themselves"] if inner and name == "data" else inner
        elif old != value:
            found.append(f"{name}={old!r}, now {value!r}")
    return found


def fit_name(key: tuple[str, str, str, int | str, int]) -> str:
    """Name of the file of a fit.

    Args:
        key: data set, likelihood, model, split and seed.

    Returns:
        A name that can be read, and a digest that tells apart what looks alike.
    """
    digest = hashlib.sha256(json.dumps(key).encode())
    data, likelihood, model, split, seed = key
    words = (data, likelihood, model, f"split-{split}", f"seed-{seed}")
    # names with a dot in front are those of parts
    readable = re.sub(r"[^\w.=-]+", "_", "-".join(words)).lstrip(".")
    # the length of a name is limited in bytes
    readable = readable.encode()[:120]
    return f"{readable.decode(errors='ignore')}-{digest.hexdigest()[:8]}.npz"


def write_fit(path: Path, fit: Fit) -> None:
    """Write a fit to a file.

    Args:
        path: of the file.
        fit: what was found.
    """
    with whole(path) as part:
        np.savez(part, row=np.array(json.dumps(fit.row)), **fit.cells)


def read_fit(path: Path) -> Fit:
    """Read a fit from its file.

    Args:
        path: of the file.

    Returns:
        What `write_fit` wrote.

    Raises:
        InputError: if it is damaged.
        OSError: if it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file) as saved:
            arrays = {name: saved[name] for name in saved.files}
        return Fit(json.loads(str(arrays.pop("row"))), arrays)
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"found a damaged file at {path} ({error}), expected the figures of a fit, "
            "remove it and compare again"
        ) from None
