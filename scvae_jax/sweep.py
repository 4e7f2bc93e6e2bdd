"""How many clusters: mixtures of several numbers, and which of them to take."""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd

from scvae_jax.checks import InputError, InputWarning, expect, listing, plain
from scvae_jax.config import ModelConfig, TrainConfig
from scvae_jax.evaluation import prepare_as
from scvae_jax.placing import cluster_codes
from scvae_jax.scores import between, expect_scikit_learn
from scvae_jax.selection import cells_to_device
from scvae_jax.training import fit_many

# how much stability weighs as much as the standard deviation of bounds between seeds;
# anything from 0.03 to 0.1 chose the same (experiments/number_of_clusters.py)
STABILITY_OF_A_DEVIATION = 0.05
# instead of a division by nothing
TINY = 1e-12
FIGURES = ("validation_bound", "validation_bound_sd", "stability", "clusters_used")


def sweep_clusters(
    adata: anndata.AnnData,
    config: ModelConfig,
    train_config: TrainConfig | None = None,
    *,
    n_clusters: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    **data: Any,
) -> pd.DataFrame:
    """Fit mixtures of several numbers of clusters, to choose one.

    Args:
        adata: the cells.
        config: a ModelConfig with model="gmvae".
        train_config: a TrainConfig; None for the defaults.
        n_clusters: the numbers K to try.
        seeds: fits of each.
        **data: where the data is, as in `fit`; also a likelihood or optimizer of one's
            own, and `progress`.

    Returns:
        A row for each K: validation_bound (mean over seeds) and its standard deviation,
        stability (mean adjusted Rand index between pairs of seeds over all cells but
        test cells, where they use more than one cluster), clusters_used (mean), and
        whether it is the recommended one, see `recommended`. Figures are NaN where
        every fit of a number ended early. `plots.cluster_sweep` draws it.

    Raises:
        InputError: for data or settings that cannot be used.
        ImportError: without scikit-learn.
        FloatingPointError: if every single fit ended early.
    """
    numbers = plain(list(n_clusters)) if isinstance(n_clusters, Iterable) else ()
    if getattr(config, "model", None) != "gmvae" or not numbers:
        raise InputError(
            f"found {config!r} and n_clusters={n_clusters!r}, expected a "
            "ModelConfig of model='gmvae' and numbers to try, pass them"
        )
    values = (data.get("settings") or {}).values()
    expect(
        all(np.size(each) <= 1 for each in values),
        f"settings={data.get('settings')!r}",
        "one setting of all fits, as stability is that between seeds",
        "sweep each by itself",
    )
    # what is wrong with any is said before the first fit
    configs = [dataclasses.replace(config, n_clusters=k) for k in numbers]
    expect_scikit_learn()
    rows: list[dict[str, Any]] = []
    cells = None
    # the largest first: more clusters than training cells end a sweep at its start
    for chosen in sorted(configs, key=lambda config: -config.n_clusters):
        row = {"n_clusters": chosen.n_clusters} | dict.fromkeys(FIGURES, np.nan)
        rows.append(row)
        try:
            fitted = fit_many(adata, chosen, train_config, seeds=seeds, **data)
        except FloatingPointError as error:
            # the rows of other numbers stay
            warnings.warn(f"{chosen.n_clusters} clusters: {error}", InputWarning, 2)
            continue
        fits = (fitted, *fitted.alternatives)
        if cells is None:
            seen = fitted.split != "test"
            cells = cells_to_device(prepare_as(adata, fitted), seen)
        codes = [cluster_codes(fitted.model, f.params, cells) for f in fits]
        agree = between(codes)
        bounds = np.array([f.summary["validation_bound"] for f in fits])
        row |= {
            "validation_bound": bounds.mean(),
            "validation_bound_sd": bounds.std(ddof=1) if len(fits) > 1 else np.nan,
            "stability": np.mean(agree) if agree else np.nan,
            "clusters_used": np.mean([f.summary["clusters_used"] for f in fits]),
        }
    if cells is None:
        raise FloatingPointError(
            f"found that all fits of {listing(numbers)} clusters ended early, expected "
            "finite gradients, lower the learning rate or look for extreme counts"
        )
    rows.sort(key=lambda row: numbers.index(row["n_clusters"]))
    table = pd.DataFrame(rows)
    return table.assign(recommended=recommended(table))


def recommended(table: pd.DataFrame) -> np.ndarray:
    """Which row of a sweep has a good bound and is stable.

    It has the highest sum of the validation bound, in standard deviations between seeds
    (their root mean square over the rows), and of the stability, in units of
    STABILITY_OF_A_DEVIATION: more clusters than there are raise the bound by less than
    seeds differ, and seeds then disagree.

    Args:
        table: from `sweep_clusters`.

    Returns:
        [rows] true for one, or for none if no row has a stability.
    """
    # without those that have no stability, be it that fits ended early
    judged = table.dropna(subset=["stability"])
    if judged.empty:
        return np.zeros(len(table), bool)
    deviation = (judged["validation_bound_sd"] ** 2).mean() ** 0.5
    score = judged["validation_bound"] / max(deviation, TINY)
    score += judged["stability"] / STABILITY_OF_A_DEVIATION
    return table.index == score.idxmax()
