"""What is compared: configurations, cells and splits, and what tells them apart."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import anndata
import numpy as np

from scvae_jax.annotated import column_of
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.checks import InputError, expect, listing
from scvae_jax.config import (
    OF_MIXTURES,
    RECIPES,
    DataConfig,
    ModelConfig,
    TrainConfig,
    parse_options,
)
from scvae_jax.counts import CountData, prepare
from scvae_jax.ranking import Row
from scvae_jax.scores import expect_labels
from scvae_jax.selection import (
    expect_cells,
    expect_varying,
    split_cells,
    warn_of_cells,
)
from scvae_jax.trials import Cells, kind_of

FORMAT = 1
# what is ranked together, and what its data must be
SUPPORTS = {"counts": "counts", "binary": "binary", "densities": "real"}


def entries_of(
    likelihoods: Sequence[str], models: Sequence[str], config: ModelConfig
) -> dict[tuple[str, str], ModelConfig]:
    """The configuration of each likelihood and model.

    Args:
        likelihoods: as they are written, "name:option=value".
        models: their names.
        config: all else.

    Returns:
        Configurations by likelihood (as it was written) and model.

    Raises:
        InputError: for what is no list, is empty or repeats, or is not known.
    """
    for what, given in (("likelihoods", likelihoods), ("models", models)):
        named = not isinstance(given, str) and all(isinstance(n, str) for n in given)
        if not named or not len(given) or len(set(given)) < len(given):
            raise InputError(
                f"found {what} {given if isinstance(given, str) else listing(given)}, "
                "expected a list of one or more names, each once, change it"
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


def parts_of(
    sources: Mapping[str, anndata.AnnData],
    data_config: DataConfig,
    train_config: TrainConfig,
    splits: int,
    score_key: str | None,
    entries: dict[tuple[str, str], ModelConfig],
) -> list[Cells]:
    """Every data set and each of its splits, good for every entry.

    Args:
        sources: data sets by name.
        data_config: where the data is.
        train_config: fractions held out, and the seed of the first split.
        splits: their number.
        score_key: obs column with labels; None for none.
        entries: from `entries_of`.

    Returns:
        The cells of each.

    Raises:
        InputError: for data that cannot be used, naming the data set.
    """
    if not sources or not all(isinstance(name, str) for name in sources):
        raise InputError(
            f"found data sets {listing(sources)}, expected one or more by name, "
            "pass an AnnData object or a dict of them"
        )
    parts = []
    for name, source in sources.items():
        # names stand in tables and above pictures
        expect(
            name.isprintable(),
            f"a data set named {name!r}",
            "a name of printable characters",
            "choose another name",
        )
        try:
            data, labels = _prepare(source, data_config, score_key, entries)
            parts += _split(
                name, data, labels, data_config, train_config, splits, entries
            )
        except InputError as error:
            raise InputError(f"{error} (in data set {name})") from None
    return parts


def _prepare(
    source: anndata.AnnData,
    data_config: DataConfig,
    score_key: str | None,
    entries: dict[tuple[str, str], ModelConfig],
) -> tuple[CountData, np.ndarray | None]:
    """Cells that are good for every entry, and their labels, missing ones None."""
    named = [(config, named_likelihood(config)) for config in entries.values()]
    supports = {}
    for _, likelihood in named:
        # whole counts suit all families of counts
        kind, whole = kind_of(likelihood), likelihood.support == "integers"
        supports[kind] = "integers" if whole else supports.get(kind, SUPPORTS[kind])
    prepared = [prepare(source, data_config, support=s) for s in supports.values()]
    data = prepared[0]
    expect(
        all(np.array_equal(data.x.data, other.x.data) for other in prepared),
        f"fractional counts that are rounded for one of {listing(list(supports))} and "
        "not for another",
        "the same for all",
        "compare one kind of likelihood at a time, or round before",
    )
    for config, likelihood in named:
        sizes = {"n_genes": len(data.genes), "n_batches": len(data.batches)}
        from_config(config, likelihood, **sizes)
    if score_key is None:
        return data, None
    column = column_of(source, score_key, "scores")
    labels = column.astype(str).to_numpy(dtype=object)
    return data, np.where(column.notna(), labels, None)


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
        warn_of_cells(data, split)
        if any(named_likelihood(c).support == "real" for c in entries.values()):
            expect_varying(data, split == "train")
        part = "test" if (split == "test").any() else "validation"
        train, held_out = split == "train", split == part
        expect_cells(max(n_clusters, default=0), int(train.sum()))
        if labels is not None:
            given = [label for label in labels[held_out] if label is not None]
            expect_labels(np.array(given, dtype=str), f"among the {part} cells")
        where = seed if key is None else key
        found.append(Cells(name, data, labels, where, train, held_out, part, seed))
    return found


def settings_of(
    parts: Sequence[Cells],
    models: Sequence[str],
    config: ModelConfig,
    train_config: TrainConfig,
    data_config: DataConfig,
) -> Row:
    """What all fits of a folder share, as JSON gives it back.

    Args:
        parts: from `parts_of`.
        models: their kinds; settings of mixtures are those of mixtures alone.
        config: of the models.
        train_config: how they are fitted.
        data_config: where the data is.

    Returns:
        Settings by name, with a digest of each data set.

    Raises:
        InputError: if a data set is there twice.
    """
    of_model, of_train = dataclasses.asdict(config), dataclasses.asdict(train_config)
    # the axes of the table are no settings
    for name in ("model", "likelihood", "likelihood_options"):
        del of_model[name]
    del of_train["seed"]
    settings = {
        "format": FORMAT,
        "data": _fingerprints(parts),
        "gmvae": {name: of_model.pop(name) for name in OF_MIXTURES},
        "model": of_model,
        "train": of_train,
        "recipes": RECIPES,
        "source": dataclasses.asdict(data_config),
    }
    if "gmvae" not in models:
        del settings["gmvae"]
    return json.loads(json.dumps(settings))


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
