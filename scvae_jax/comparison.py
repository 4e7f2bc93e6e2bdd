"""Likelihoods and models compared on the same held-out cells, in a folder of results.

comparison.json  settings and what the data was; a run with others is refused
fits/            figures of each cell, one .npz for each fit, whole or not there
table.csv        a row for each fit
ranks.csv        a row for each likelihood and model, with differences and intervals
table.json       both, and remarks
differences.png  differences in nats per cell with their intervals
clusters.png     bound against clusters
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd

from scvae_jax import plots
from scvae_jax.baselines import null_log_prob, totals_log_prob
from scvae_jax.checkpoints import Fitted, versions
from scvae_jax.config import (
    DataConfig,
    InputError,
    InputWarning,
    ModelConfig,
    TrainConfig,
    check_count,
    listing,
    parse_options,
    to_json,
)
from scvae_jax.counts import CountData, obs_column, prepare
from scvae_jax.epochs import ALIVE
from scvae_jax.evaluation import CellBounds, cell_bounds, kmeans, scores
from scvae_jax.likelihoods import Likelihood
from scvae_jax.models import from_config, named_likelihood
from scvae_jax.ranking import Fit, Row, entry_name, rank, remarks, tabulate
from scvae_jax.training import cells_to_device, fit_many, split_cells

FORMAT = 1
# what a fit that failed has no value for, in the order of the table
FIGURES = (
    "n_samples",
    "elbo",
    "importance_weighted_bound",
    "importance_weighted_bound_se",
    "log_likelihood",
    "kl_z",
    "kl_y",
    "log_prob_total",
    "comparable_bound",
    "null_log_likelihood",
    "share_explained",
    "ari",
    "nmi",
    "oracle_k",
    "n_labels",
    "n_scored",
    "n_clusters",
    "clusters_used",
    "stability",
    "epochs",
    "best_epoch",
    "skipped_steps",
    "seconds",
    "compile_seconds",
)
# what is ranked together, and what its data must be
SUPPORTS = {"counts": "counts", "binary": "binary", "densities": "real"}
RESULTS = ("table.csv", "ranks.csv", "table.json", "differences.png", "clusters.png")


class Comparison(NamedTuple):
    """What `compare` found.

    Attributes:
        table: a row for each fit.
        ranks: a row for each data set, likelihood and model, best first.
        remarks: what a reader of the two must know.
        folder: where all of it is.
    """

    table: pd.DataFrame
    ranks: pd.DataFrame
    remarks: tuple[str, ...]
    folder: Path


class Cells(NamedTuple):
    """A data set and one split of it.

    Attributes:
        name: of the data set.
        data: validated cells.
        labels: [n] strings, missing ones None; None without a score key.
        split: the seed that drew it, or the key that names it.
        train: [n] which cells are for training.
        held_out: [n] which cells are looked at.
        part: of the split that these are.
        seed: of the draw.
    """

    name: str
    data: CountData
    labels: np.ndarray | None
    split: int | str
    train: np.ndarray
    held_out: np.ndarray
    part: str
    seed: int


def compare(
    adata: anndata.AnnData | Mapping[str, anndata.AnnData],
    *,
    likelihoods: Sequence[str],
    out: str | Path,
    models: Sequence[str] = ("vae",),
    seeds: int = 5,
    splits: int = 1,
    config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    genes: str | None = None,
    split_key: str | None = None,
    score_key: str | None = None,
    n_samples: int = 100,
    reference: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare likelihoods and models on the same held-out cells.

    Every data set x likelihood x model x seed (x split) is fitted, all seeds of one in
    one compiled program, and evaluated on the same cells: test cells if there are any,
    else validation cells. A fit is written as soon as it is done: the same call goes on
    where it was stopped, and with more likelihoods, models, seeds, splits or data sets
    runs what is missing. The tables hold what the call asks for.

    Entries are ranked only where their nats compare: on the same cells and genes, and
    counts apart from binary data and from densities. Library means condition on the
    total of a cell; log p(total), fitted to training cells, is added to them in
    `comparable_bound`.

    Args:
        adata: cells by genes, or several of them by name; left as they are.
        likelihoods: names, with options as in "negative_binomial:mean=free" or
            "negative_binomial:dispersion=gene_cell:mean=free".
        out: the folder to write, or to go on with.
        models: "vae", "gmvae" or both.
        seeds: number of fits of each; from `train_config.seed` on.
        splits: number of random splits, where there is no split key; from
            `train_config.seed` on.
        config: all else about the models; its model and likelihood are not used.
        train_config: how they are fitted.
        layer: layer with the counts; None for X.
        batch_key: obs column with the batch of a cell.
        genes: boolean var column of the genes to use; None for all.
        split_key: obs column with train, validation and test; None: drawn by seed.
        score_key: obs column with labels, to score clusters by; only scores.
        n_samples: decodes of each cell: importance samples, a K-th of them where each
            takes K decodes (a gmvae with posterior="conditional").
        reference: "likelihood/model" to take differences to; None: the best.
        overwrite: replace a comparison that is in the folder, once the input is known
            to be good.
        progress: show progress on standard error.

    Returns:
        `table`, a row for each fit, in nats per cell: elbo, importance_weighted_bound
        with its standard error over cells, log_likelihood, kl_z and kl_y; log_prob_total
        (0 where nothing is to be added) and comparable_bound; null_log_likelihood, of
        depth x the mean profile of the training cells under the same family, its
        dispersions fitted to them, given the total where the bound is; share_explained,
        (L - L_null) / (L_best - L_null); ari and nmi of a mixture's own clusters, or of
        k-means on the latents with as many clusters as labels (`oracle_k`); stability,
        the median adjusted Rand index between pairs of seeds; seconds of training, a
        fit's share of its program, and compile_seconds of the program.
        `ranks`, with the difference to the reference on identical cells, over seeds,
        and its 95 % interval by a bootstrap over seeds and cells; None with one seed.
        `remarks`, sentences. `folder`, where all of it is, with two pictures.

    Raises:
        InputError: for data or settings that cannot be used, or a folder that holds
            something else.
        ImportError: without matplotlib, or without scikit-learn where clusters are
            scored or compared.
        FloatingPointError: if every single fit fails.
    """
    train_config = train_config or TrainConfig()
    entries = _entries(likelihoods, models, config or ModelConfig())
    check_count("seeds", seeds, 1, 2**10)
    check_count("splits", splits, 1, 2**10)
    check_count("n_samples", n_samples, 1)
    names = [entry_name(*key) for key in entries]
    if reference is not None and reference not in names:
        raise InputError(
            f"found reference {reference!r}, expected one of {listing(names, 30)}, "
            "choose one of these"
        )
    if split_key is not None and splits > 1:
        raise InputError(
            f"found {splits} splits and split key {split_key!r}, expected one of the "
            "two, leave one out"
        )
    _expect_packages("gmvae" in models and seeds > 1 or score_key is not None)
    data_config = DataConfig(layer, batch_key, None, genes, split_key)
    sources = adata if isinstance(adata, Mapping) else {"data": adata}
    parts = []
    for name, source in sources.items():
        try:
            data, labels = _prepare(source, data_config, score_key, entries)
            parts += _split(
                name, data, labels, data_config, train_config, splits, entries
            )
        except InputError as error:
            raise InputError(f"{error} (in data set {name})") from None
    settings = {
        "format": FORMAT,
        "data": _fingerprints(parts),
        "model": to_json(config or ModelConfig()),
        "train": to_json(train_config),
        "source": to_json(data_config),
        "score_key": score_key,
        "n_samples": n_samples,
    }
    # what the axes of the table say is no setting
    for name in ("model", "likelihood", "likelihood_options"):
        del settings["model"][name]
    del settings["train"]["seed"]
    folder = Path(out).absolute()
    settings = _open(folder, json.loads(json.dumps(settings)), overwrite)

    numbers = range(train_config.seed, train_config.seed + seeds)
    jobs = [(cells, *key) for cells in parts for key in entries]
    files = []
    for number, (cells, label, model) in enumerate(jobs, start=1):
        paths = {
            seed: folder / "fits" / _file_name(cells, label, model, seed)
            for seed in numbers
        }
        files += paths.values()
        missing = [seed for seed, path in paths.items() if not path.exists()]
        if not missing:
            continue
        if progress:
            print(
                f"[{number} of {len(jobs)}] {cells.name}, {label}, {model}, split "
                f"{cells.split}, seeds {listing(missing)}",
                file=sys.stderr,
            )
        try:
            with warnings.catch_warnings():
                # what fits warn of, the table says
                warnings.simplefilter("ignore", InputWarning)
                fitted = fit_many(
                    sources[cells.name],
                    entries[label, model],
                    dataclasses.replace(train_config, seed=cells.seed),
                    seeds=missing,
                    layer=layer,
                    batch_key=batch_key,
                    genes=genes,
                    split_key=split_key,
                    progress=progress,
                )
            fits = (fitted, *fitted.alternatives)
        except FloatingPointError:
            fits = ()
        done = _evaluate(
            cells, label, entries[label, model], fits, n_samples, missing, score_key
        )
        for seed in missing:
            _write_fit(paths[seed], done[seed])
    return _report(folder, [_read_fit(path) for path in files], settings, reference)


def _entries(
    likelihoods: Sequence[str], models: Sequence[str], config: ModelConfig
) -> dict[tuple[str, str], ModelConfig]:
    """The configuration of each likelihood (as it was written) and model."""
    for what, given in (("likelihoods", likelihoods), ("models", models)):
        if isinstance(given, str) or not given or len(set(given)) < len(given):
            raise InputError(
                f"found {what} {given if isinstance(given, str) else listing(given)}, "
                "expected a list of one or more, each once, change it"
            )
    entries = {}
    for label in likelihoods:
        name, *options = label.split(":")
        for model in models:
            entries[label, model] = dataclasses.replace(
                config,
                model=model,
                likelihood=name,
                likelihood_options=parse_options(options),
            )
            named_likelihood(entries[label, model])
    return entries


def _expect_packages(clusters: bool) -> None:
    """Fail before the work and not after it."""
    needed = {"matplotlib": "pictures"} | ({"sklearn": "clusters"} if clusters else {})
    for package, purpose in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"found no {package}, expected it for {purpose}, "
                "pip install 'scvae_jax[analysis]'"
            )


def _prepare(
    source: anndata.AnnData,
    data_config: DataConfig,
    score_key: str | None,
    entries: dict[tuple[str, str], ModelConfig],
) -> tuple[CountData, np.ndarray | None]:
    """Cells that are good for every entry, and their labels, missing ones None."""
    named = [(config, named_likelihood(config)) for config in entries.values()]
    for kind in dict.fromkeys(_kind(likelihood) for _, likelihood in named):
        data = prepare(source, data_config, support=SUPPORTS[kind])
    for config, likelihood in named:
        sizes = {"n_genes": len(data.genes), "n_batches": len(data.batches)}
        from_config(config, likelihood, **sizes)
    if score_key is None:
        return data, None
    column = obs_column(source, score_key, "scores")
    labels = column.astype(str).to_numpy(dtype=object)
    return data, np.where(column.notna(), labels, None)


def _kind(likelihood: Likelihood) -> str:
    """What a likelihood is ranked with: the nats of other kinds do not compare."""
    return {"binary": "binary", "real": "densities"}.get(likelihood.support, "counts")


def _split(
    name: str,
    data: CountData,
    labels: np.ndarray | None,
    data_config: DataConfig,
    train_config: TrainConfig,
    splits: int,
    entries: dict[tuple[str, str], ModelConfig],
) -> list[Cells]:
    """A data set and each of its splits."""
    key = data_config.split_key
    n_clusters = [c.n_clusters for c in entries.values() if c.model == "gmvae"]
    found = []
    for seed in range(train_config.seed, train_config.seed + splits):
        drawn = dataclasses.replace(train_config, seed=seed)
        split = split_cells(data, drawn, key)
        part = "test" if (split == "test").any() else "validation"
        train, held_out = split == "train", split == part
        if n_clusters and n_clusters[0] > train.sum():
            raise InputError(
                f"found n_clusters={n_clusters[0]} for {train.sum()} training cells, "
                "expected fewer clusters than cells, ask for fewer"
            )
        if labels is not None:
            kinds = {label for label in labels[held_out] if label is not None}
            if len(kinds) < 2:
                raise InputError(
                    f"found {len(kinds)} label among the {part} cells "
                    f"({listing(sorted(kinds))}), expected two or more, as agreement "
                    "is undefined, choose another score key"
                )
        where = seed if key is None else key
        found.append(Cells(name, data, labels, where, train, held_out, part, seed))
    return found


def _fingerprints(parts: Sequence[Cells]) -> dict[str, str]:
    """What tells each data set from another, or from itself changed."""
    found: dict[str, str] = {}
    for cells in parts:
        if cells.name in found:
            continue
        data, digest = cells.data, hashlib.sha256()
        for array in (data.x.data, data.x.indices, data.x.indptr, data.batch):
            digest.update(np.ascontiguousarray(array))
        texts = [data.genes.tolist(), data.cells.tolist(), list(data.batches)]
        for array in (data.split, cells.labels):
            texts.append(None if array is None else array.tolist())
        digest.update(json.dumps(texts).encode())
        same = [name for name, other in found.items() if other == digest.hexdigest()]
        if same:
            raise InputError(
                f"found the same cells as {same[0]} and as {cells.name}, expected each "
                "data set once, leave one out"
            )
        found[cells.name] = digest.hexdigest()
    return found


def _open(folder: Path, settings: Row, overwrite: bool) -> Row:
    """Make the folder, or go on with one of the same settings."""
    marker = folder / "comparison.json"
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        known = _read_settings(marker)
        if known is None:
            raise InputError(
                f"found {folder}, which is not a comparison, expected a new path or "
                "one that is, choose another path"
            )
        changed = _changed(known, settings)
        if changed and not overwrite:
            raise InputError(
                f"found a comparison at {folder} with other settings "
                f"({listing(changed)}), expected the same to go on with, choose "
                "another path or replace it (overwrite=True, --overwrite)"
            )
        if overwrite:
            shutil.rmtree(folder / "fits", ignore_errors=True)
            for name in RESULTS:
                (folder / name).unlink(missing_ok=True)
        else:
            settings = settings | {"data": known["data"] | settings["data"]}
    (folder / "fits").mkdir(parents=True, exist_ok=True)
    with _whole(marker) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return settings


def _read_settings(path: Path) -> Row | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    mine = isinstance(known, dict) and {"format", "data", "n_samples"} <= set(known)
    return known if mine else None


def _changed(known: Row, settings: Row) -> list[str]:
    """The settings that differ; data sets may come and go."""
    found = []
    for name, value in settings.items():
        old = known.get(name)
        if name == "data":
            found += [
                f"the cells of {key}"
                for key in value
                if old.get(key, value[key]) != value[key]
            ]
        elif isinstance(value, dict) and isinstance(old, dict):
            found += [
                f"{key}={old.get(key)!r}, now {value.get(key)!r}"
                for key in sorted(value.keys() | old.keys())
                if old.get(key) != value.get(key)
            ]
        elif old != value:
            found.append(f"{name}={old!r}, now {value!r}")
    return found


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` at the end, or is gone."""
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _file_name(cells: Cells, label: str, model: str, seed: int) -> str:
    """A name that can be read, and a digest that tells apart what looks alike."""
    words = (cells.name, label, model, f"split-{cells.split}", f"seed-{seed}")
    digest = hashlib.sha256(json.dumps([*words, str(type(cells.split))]).encode())
    readable = re.sub(r"[^\w.=-]+", "_", "-".join(words))[:120]
    return f"{readable}-{digest.hexdigest()[:8]}.npz"


def _evaluate(
    cells: Cells,
    label: str,
    config: ModelConfig,
    fits: Sequence[Fitted],
    n_samples: int,
    seeds: Sequence[int],
    score_key: str | None,
) -> dict[int, Fit]:
    """What is found of each seed of one program, be it that the fit failed."""
    identity = _identity(cells, label, config)
    failed = identity | {"note": "it ended early, or its bounds are not finite"}
    found = {seed: Fit(failed | {"seed": seed}, {}) for seed in seeds}
    if not fits:
        return found
    total, null = _given(cells, config, identity["conditions_on_total"])
    on_device = cells_to_device(cells.data, cells.held_out)
    if config.model == "gmvae" and config.posterior == "conditional":
        n_samples = max(1, n_samples // config.n_clusters)
    all_epochs = sum(fit.summary["epochs"] for fit in fits)
    for fit in fits:
        # with the model of the first, whose program serves all
        bounds = cell_bounds(fits[0].model, fit.params, on_device, n_samples=n_samples)
        per_cell = {name: getattr(bounds, name) for name in CellBounds._fields[1:-1]}
        if not all(np.isfinite(value).all() for value in per_cell.values()):
            continue
        codes, clusters = _clusters(cells, config, bounds, score_key)
        seed, summary = fit.train_config.seed, fit.summary
        n_cells, bound = len(total), per_cell["importance_weighted_bound"]
        row = identity | clusters | {"seed": seed, "n_samples": n_samples}
        row |= {n: float(v.mean(dtype=np.float64)) for n, v in per_cell.items()}
        if n_cells > 1:
            spread = float(bound.std(ddof=1, dtype=np.float64))
            row["importance_weighted_bound_se"] = spread / n_cells**0.5
        row |= {
            "log_prob_total": float(total.mean()),
            "null_log_likelihood": float(null.mean(dtype=np.float64)),
            "epochs": summary["epochs"],
            "best_epoch": summary["best_epoch"],
            "skipped_steps": summary["skipped_steps"],
            "seconds": summary["seconds"] * summary["epochs"] / all_epochs,
            "compile_seconds": summary["compile_seconds"],
        }
        per_cell |= {"log_prob_total": total, "null_log_prob": null, "cluster": codes}
        per_cell["cell"] = np.flatnonzero(cells.held_out)
        found[seed] = Fit(row, per_cell)
    return found


def _identity(cells: Cells, label: str, config: ModelConfig) -> Row:
    """All columns of the table; those that a fit decides are empty."""
    kind = _kind(named_likelihood(config))
    mean = config.likelihood_options.get("mean", "library")
    return {
        "data": cells.name,
        "likelihood": label,
        "model": config.model,
        "seed": None,
        "split": cells.split,
        "part": cells.part,
        "n_cells": int(cells.held_out.sum()),
        "ranked_with": kind,
        "conditions_on_total": kind == "counts" and mean == "library",
        **dict.fromkeys(FIGURES),
        "versions": " ".join(f"{name}={v}" for name, v in versions().items()),
        "note": None,
    }


def _given(
    cells: Cells, config: ModelConfig, conditions: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Log p(total) [n] that a bound lacks, and the null model's log-probability [n]."""
    if _kind(named_likelihood(config)) != "counts":
        null = null_log_prob(
            named_likelihood(config), cells.data, cells.train, cells.held_out
        )
        return np.zeros(len(null)), null
    # the mean of the null is depth x profile, whatever that of the family
    options = config.likelihood_options | {"mean": "library"}
    family = dataclasses.replace(config, likelihood_options=options)
    null = null_log_prob(
        named_likelihood(family), cells.data, cells.train, cells.held_out
    )
    total = totals_log_prob(cells.data, cells.train, cells.held_out)
    return (total, null) if conditions else (np.zeros(len(null)), null + total)


def _clusters(
    cells: Cells, config: ModelConfig, bounds: CellBounds, score_key: str | None
) -> tuple[np.ndarray, Row]:
    """Clusters [n] of the cells, -1 for none, and their scores."""
    codes, row = np.full(len(bounds.latent), -1), {}
    if config.model == "gmvae":
        codes = bounds.probabilities.argmax(axis=1)
        share = np.bincount(codes, minlength=config.n_clusters) / len(codes)
        row["n_clusters"] = config.n_clusters
        row["clusters_used"] = int((share >= ALIVE).sum())
    if cells.labels is None:
        return codes, row
    labels = cells.labels[cells.held_out]
    known = np.array([label is not None for label in labels])
    names = labels[known].astype(str)
    if config.model != "gmvae":
        codes[known] = kmeans(bounds.latent[known], len(np.unique(names)))
    row["oracle_k"] = config.model != "gmvae"
    return codes, row | scores(codes[known], names, score_key)


def _write_fit(path: Path, fit: Fit) -> None:
    with _whole(path) as part:
        np.savez(part, row=np.array(json.dumps(fit.row)), **fit.cells)


def _read_fit(path: Path) -> Fit:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return Fit(json.loads(str(arrays.pop("row"))), arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"found a damaged file at {path} ({error}), expected the figures of a fit, "
            "remove it and compare again"
        ) from None


def _report(
    folder: Path, fits: Sequence[Fit], settings: Row, reference: str | None
) -> Comparison:
    """Write the tables and pictures."""
    rows = tabulate(fits)
    ranks = rank(fits, rows, reference)
    said = remarks(fits, ranks)
    table, ranked = pd.DataFrame(rows), pd.DataFrame(ranks)
    drawn = {
        "differences.png": lambda path: plots.differences(ranked, path),
        "clusters.png": lambda path: plots.bounds_and_clusters(table, path),
    }
    if table[["ari", "stability"]].isna().all(axis=None):
        said.append(
            "there are no clusters to draw: they need a score key, or a gmvae and two "
            "seeds or more"
        )
        del drawn["clusters.png"]
    if table["comparable_bound"].isna().all():
        drawn = {}
    for name, frame in (("table.csv", table), ("ranks.csv", ranked)):
        with _whole(folder / name) as part:
            frame.to_csv(part, index=False)
    found = {"settings": settings, "rows": rows, "ranks": ranks, "remarks": said}
    with _whole(folder / "table.json") as part:
        text = json.dumps(found, indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
    for name in RESULTS[3:]:
        if name not in drawn:
            # one of an earlier call, that shows other rows
            (folder / name).unlink(missing_ok=True)
            continue
        with _whole(folder / name) as part:
            drawn[name](part)
    if not drawn:
        raise FloatingPointError(
            f"found that all {len(fits)} fits ended early, expected finite gradients "
            "and bounds, lower the learning rate or look for extreme counts"
        )
    return Comparison(table, ranked, tuple(said), folder)
