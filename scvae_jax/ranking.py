"""Fits of a comparison to a tidy table, and to ranks with intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scvae_jax.checks import listing
from scvae_jax.scores import between

# resamples behind an interval, and what it covers
N_RESAMPLES = 2000
LEVEL = 0.95
# held-out cells below which a bootstrap over them is said to fall short
FEW_CELLS = 30

OF_OTHER_SEEDS = ", so that its rank is by other seeds than that of others"

Row = dict[str, Any]
# (data set, what its entries are ranked with)
Column = tuple[str, str]
# comparable bounds [n] by split and seed
Splits = dict[Any, dict[int, np.ndarray]]


class Fit(NamedTuple):
    """One fit: what is said of it, and figures of each cell that it was evaluated on.

    Attributes:
        row: of the table, as far as one fit knows it; `note` says why one failed.
        cells: name -> [n], or empty for a fit that failed. In nats: elbo,
            importance_weighted_bound, log_likelihood, kl_z, kl_y, log_prob_total (0
            where a bound does not condition on the total) and null_log_prob. Also cell
            (its position in the data set) and cluster (-1 for none).
    """

    row: Row
    cells: dict[str, np.ndarray]

    @property
    def entry(self) -> str:
        """What is ranked: "likelihood/model"."""
        return entry_name(self.row["likelihood"], self.row["model"])

    @property
    def column(self) -> Column:
        """Where it is ranked."""
        return self.row["data"], self.row["ranked_with"]

    @property
    def comparable(self) -> np.ndarray:
        """Bound [n] on log p(x), whether or not the model reads the total of a cell."""
        # log p(x) = log p(x | total) + log p(total)
        bound = self.cells["importance_weighted_bound"]
        return bound.astype(np.float64) + self.cells["log_prob_total"]


def entry_name(likelihood: str, model: str) -> str:
    """The name of what is ranked, as `reference` takes it."""
    return f"{likelihood}/{model}"


def nested_interval(
    differences: Sequence[np.ndarray],
    cells: Sequence[np.ndarray] | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of a mean over seeds and cells, by a bootstrap over both.

    A resample draws cells with replacement, the same for all seeds and splits, as all
    seeds saw the same cells and splits share some; and seeds of each split. Splits are
    averaged and not resampled. The variance of R resampled seeds is (R - 1) / R of what
    it should be, a half with two of them, so deviations between seeds are stretched by
    the root of R / (R - 1).

    Args:
        differences: for each split [R, n], a row for each seed.
        cells: for each split [n] which cells these are; None: those of a single split.
        n_resamples: their number.
        level: share of the resamples that the interval holds.
        seed: of the draws.

    Returns:
        Its ends, or None if a split has fewer than two seeds.
    """
    if min(len(each) for each in differences) < 2:
        return None
    if cells is None:
        (only,) = differences
        cells = [np.arange(only.shape[1])]
    distinct, position = np.unique(np.concatenate(cells), return_inverse=True)
    positions = np.split(position, np.cumsum([len(each) for each in cells])[:-1])
    stretched = []
    for each in differences:
        centre = each.mean(axis=0, dtype=np.float64)
        stretched.append(
            centre + (each - centre) * (len(each) / (len(each) - 1)) ** 0.5
        )
    rng = np.random.default_rng(seed)
    means = np.zeros(n_resamples)
    for i in range(n_resamples):
        of_seeds = [
            each[rng.integers(len(each), size=len(each))].mean(axis=0)
            for each in stretched
        ]
        drawn = rng.integers(len(distinct), size=len(distinct))
        times = np.bincount(drawn, minlength=len(distinct))
        means[i] = np.mean(
            [
                np.average(each, weights=times[mine])
                for each, mine in zip(of_seeds, positions, strict=True)
                # of a split with very few cells none may be drawn
                if times[mine].any()
            ]
        )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def tabulate(fits: Sequence[Fit]) -> list[Row]:
    """The tidy table: a row for each fit.

    Args:
        fits: all of them.

    Returns:
        Their rows; what is not defined is None.
    """
    bounds = _bounds(fits)
    best = {column: _best(entries) for column, entries in bounds.items()}
    stability = _stability(fits)
    rows = []
    for fit in fits:
        row = dict(fit.row)
        if fit.cells:
            split, total = row["split"], fit.cells["log_prob_total"].mean()
            row["comparable_bound"] = float(fit.comparable.mean())
            row["stability"] = stability[fit.column, fit.entry, split]
            # (L - L_null) / (L_best - L_null), all of them given the total where L is
            null = row["null_log_likelihood"]
            top = bounds[fit.column].get(best[fit.column], {}).get(split)
            if top:
                gain = row["importance_weighted_bound"] - null
                possible = _of_seeds(top) - total - null
                row["share_explained"] = gain / possible if possible > 0 else None
        rows.append(row)
    return rows


def _bounds(fits: Sequence[Fit]) -> dict[Column, dict[str, Splits]]:
    """Comparable bounds of columns and their entries; a fit that failed has none."""
    found: dict[Column, dict[str, Splits]] = {}
    for fit in fits:
        splits = found.setdefault(fit.column, {}).setdefault(fit.entry, {})
        seeds = splits.setdefault(fit.row["split"], {})
        if fit.cells:
            seeds[fit.row["seed"]] = fit.comparable
    return found


def _of_seeds(seeds: dict[int, np.ndarray]) -> float:
    return float(np.mean([bound.mean() for bound in seeds.values()]))


def _mean(splits: Splits) -> float:
    """Mean over splits, seeds and cells; the lowest of all if a split has no fit."""
    if not all(splits.values()):
        return -np.inf
    return float(np.mean([_of_seeds(seeds) for seeds in splits.values()]))


def _best(entries: dict[str, Splits]) -> str | None:
    name = max(entries, key=lambda name: _mean(entries[name]))
    return name if np.isfinite(_mean(entries[name])) else None


def _stability(fits: Sequence[Fit]) -> dict[tuple[Column, str, Any], float | None]:
    """Median adjusted Rand index between pairs of seeds, of each entry and split."""
    codes: dict[tuple[Column, str, Any], list[np.ndarray]] = {}
    for fit in fits:
        if fit.cells:
            key, code = (fit.column, fit.entry, fit.row["split"]), fit.cells["cluster"]
            codes.setdefault(key, []).append(code[code >= 0])
    agree = {key: between(seeds) for key, seeds in codes.items()}
    return {key: float(np.median(of)) if of else None for key, of in agree.items()}


def rank(
    fits: Sequence[Fit], rows: Sequence[Row], reference: str | None = None
) -> list[Row]:
    """Rank entries within their columns, with differences to one of them.

    Args:
        fits: all of them.
        rows: from `tabulate`.
        reference: "likelihood/model"; None, and in columns where it has no rank: the
            best.

    Returns:
        A row for each entry of each column, best first. `difference` is the mean of
        per-cell differences of comparable bounds to the reference, over the seeds that
        both have, in nats per cell; `low` and `high` are the ends of its 95 % interval.
        What is not defined is None.
    """
    found = []
    for column, entries in _bounds(fits).items():
        mine = [fit for fit in fits if fit.cells and fit.column == column]
        cells = {fit.row["split"]: fit.cells["cell"] for fit in mine}
        means = {name: _mean(splits) for name, splits in entries.items()}
        known = np.isfinite(means.get(reference, -np.inf))
        versus = reference if known else _best(entries)
        names = sorted(entries, key=lambda name: -means[name])
        for place, name in enumerate(names, start=1):
            ranked = np.isfinite(means[name])
            row = _entry(
                [
                    row
                    for fit, row in zip(fits, rows, strict=True)
                    if (fit.column, fit.entry) == (column, name)
                ]
            ) | {
                "rank": place if ranked else None,
                "comparable_bound": means[name] if ranked else None,
                "reference": versus,
            }
            if versus == name:
                row["difference"] = 0.0
            elif versus is not None:
                row |= _difference(entries[name], entries[versus], cells)
            found.append(row)
    return found


def _entry(rows: Sequence[Row]) -> Row:
    """What the fits of an entry have in the mean."""
    good = [row for row in rows if row["note"] is None]

    def mean(name: str) -> float | None:
        values = [row[name] for row in good if row[name] is not None]
        return float(np.mean(values)) if values else None

    names = ("data", "likelihood", "model", "ranked_with")
    return {name: rows[0][name] for name in names} | {
        "rank": None,
        "n_fits": len(good),
        "n_failed": len(rows) - len(good),
        "n_cells": sum({row["split"]: row["n_cells"] for row in good}.values()),
        "elbo": mean("elbo"),
        "importance_weighted_bound": mean("importance_weighted_bound"),
        "comparable_bound": None,
        "reference": None,
        "difference": None,
        "low": None,
        "high": None,
        "share_explained": mean("share_explained"),
        "ari": mean("ari"),
        "nmi": mean("nmi"),
        "oracle_k": good[0]["oracle_k"] if good else None,
        "stability": mean("stability"),
        "seconds": mean("seconds"),
    }


def _difference(mine: Splits, other: Splits, cells: dict[Any, np.ndarray]) -> Row:
    """Mean difference on identical cells over the seeds of both, and its interval."""
    common = {split: sorted(mine[split].keys() & other[split].keys()) for split in mine}
    if not all(common.values()):
        return {}
    differences = [
        np.stack([mine[split][seed] - other[split][seed] for seed in seeds])
        for split, seeds in common.items()
    ]
    seen = [cells[split] for split in common]
    # of one cell it would be an interval of seeds alone
    several = len(np.unique(np.concatenate(seen))) > 1
    interval = nested_interval(differences, seen) if several else None
    low, high = interval or (None, None)
    mean = float(np.mean([each.mean() for each in differences]))
    return {"difference": mean, "low": low, "high": high}


def remarks(fits: Sequence[Fit], ranks: Sequence[Row]) -> list[str]:
    """What a reader of the table must know.

    Args:
        fits: all of them.
        ranks: from `rank`.

    Returns:
        Sentences.
    """
    said = []
    if len({fit.row["seed"] for fit in fits}) == 1:
        said.append(
            "with one seed no interval can be given, and no difference is sure; ask "
            "for two seeds or more"
        )
    few = {row["data"] for row in ranks if 0 < row["n_cells"] < FEW_CELLS}
    if few:
        said.append(
            f"of {listing(sorted(few))} fewer than {FEW_CELLS} cells are looked at, "
            "too few to tell how much cells differ: an interval is too narrow"
        )
    chose = {fit.row["data"] for fit in fits if fit.row["part"] == "validation"}
    if chose:
        said.append(
            f"the cells of {listing(sorted(chose))} are validation cells, which also "
            "chose the epoch; test cells (a split key, a test fraction) did not"
        )
    counts = [fit for fit in fits if fit.row["ranked_with"] == "counts"]
    if len({fit.row["conditions_on_total"] for fit in counts}) > 1:
        said.append(
            "library means condition on the total of a cell and free means do not: "
            "they are ranked by comparable_bound, with log p(total), fitted to "
            "training cells, added to the library side"
        )
    if len({fit.row["ranked_with"] for fit in fits}) > 1:
        said.append(
            "counts, binary data and densities are ranked apart, as their nats do not "
            "compare"
        )
    said += [
        f"{row['n_failed']} of {row['n_failed'] + row['n_fits']} fits of "
        f"{entry_name(row['likelihood'], row['model'])} on {row['data']} ended early "
        f"and are left out{OF_OTHER_SEEDS if row['rank'] else ''}"
        for row in ranks
        if row["n_failed"]
    ]
    if len({fit.row["versions"] for fit in fits}) > 1:
        said.append("the fits are of more than one version, which the table names")
    return said
