"""One likelihood and model on one split of a data set: its fits, and what they show."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import anndata
import numpy as np

from scvae_jax.baselines import null_log_prob, totals_log_prob
from scvae_jax.building import conditions_on_total, named_likelihood
from scvae_jax.checkpoints import Fitted, versions
from scvae_jax.checks import InputWarning
from scvae_jax.clusters import clusters_used
from scvae_jax.config import DataConfig, ModelConfig, TrainConfig
from scvae_jax.counts import CountData
from scvae_jax.evaluation import CellBounds, cell_bounds
from scvae_jax.likelihoods import Likelihood
from scvae_jax.ranking import Fit, Row
from scvae_jax.scores import against_labels
from scvae_jax.selection import cells_to_device
from scvae_jax.training import fit_many

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


def kind_of(likelihood: Likelihood) -> str:
    """What a likelihood is ranked with: the nats of other kinds do not compare.

    Args:
        likelihood: any.

    Returns:
        "counts", "binary" or "densities".
    """
    return {"binary": "binary", "real": "densities"}.get(likelihood.support, "counts")


def fit_seeds(
    source: anndata.AnnData,
    config: ModelConfig,
    train_config: TrainConfig,
    data_config: DataConfig,
    seeds: Sequence[int],
    progress: bool,
) -> tuple[Fitted, ...]:
    """The fits of one program that did not fail.

    Args:
        source: the data set.
        config: of the model.
        train_config: of the training; its seed draws the split.
        data_config: where the data is.
        seeds: one fit for each.
        progress: show a bar on standard error.

    Returns:
        Those that did not end early, none if all of them did.

    Raises:
        InputError: for data or settings that cannot be used.
    """
    with warnings.catch_warnings():
        # what fits warn of, the table says
        warnings.simplefilter("ignore", InputWarning)
        try:
            fitted = fit_many(
                source,
                config,
                train_config,
                seeds=seeds,
                layer=data_config.layer,
                batch_key=data_config.batch_key,
                genes=data_config.genes,
                split_key=data_config.split_key,
                fractional=data_config.fractional,
                progress=progress,
            )
        except FloatingPointError:
            return ()
    return fitted, *fitted.alternatives


def total_and_null(cells: Cells, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Log p(total) that a bound lacks, and the null model's log-probability.

    Args:
        cells: of a split.
        config: of the model whose bounds they are for.

    Returns:
        [n_held_out] nats each; the first 0 where the bound has it already, or where the
        data are no counts.
    """
    likelihood = named_likelihood(config)
    split = (cells.data, cells.train, cells.held_out)
    if kind_of(likelihood) != "counts":
        null = null_log_prob(likelihood, *split)
        return np.zeros(len(null)), null
    # the mean of the null is depth x profile, whatever that of the family
    options = config.likelihood_options | {"mean": "library"}
    family = dataclasses.replace(config, likelihood_options=options)
    null = null_log_prob(named_likelihood(family), *split)
    total = totals_log_prob(*split)
    if conditions_on_total(config):
        return total, null
    return np.zeros(len(null)), null + total


def evaluate_seeds(
    cells: Cells,
    label: str,
    config: ModelConfig,
    fits: Sequence[Fitted],
    given: tuple[np.ndarray, np.ndarray],
    n_samples: int,
    seeds: Sequence[int],
    score_key: str | None,
) -> dict[int, Fit]:
    """What is found of each seed of one program, be it that the fit failed.

    Args:
        cells: of a split, the held-out ones being looked at.
        label: the likelihood as it was written.
        config: of the model.
        fits: from `fit_seeds`.
        given: from `total_and_null`.
        n_samples: decodes of a cell.
        seeds: that were asked for.
        score_key: whose labels the cells have; None for none.

    Returns:
        A row of the table and figures of each cell, by seed.
    """
    identity = _identity(cells, label, config)
    failed = identity | {"note": "it ended early, or its bounds are not finite"}
    found = {seed: Fit(failed | {"seed": seed}, {}) for seed in seeds}
    if not fits:
        return found
    total, null = given
    on_device = cells_to_device(cells.data, cells.held_out)
    if config.model == "gmvae" and config.posterior == "conditional":
        n_samples //= config.n_clusters
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
            "seconds": summary["seconds_per_epoch"] * summary["epochs"]
            # of all fits together
            + summary.get("place_seconds", 0.0) / len(fits),
            "compile_seconds": summary["compile_seconds"],
        }
        per_cell |= {"log_prob_total": total, "null_log_prob": null, "cluster": codes}
        per_cell["cell"] = np.flatnonzero(cells.held_out)
        found[seed] = Fit(row, per_cell)
    return found


def _identity(cells: Cells, label: str, config: ModelConfig) -> Row:
    """All columns of the table; those that a fit decides are empty."""
    return {
        "data": cells.name,
        "likelihood": label,
        "model": config.model,
        "seed": None,
        "split": cells.split,
        "part": cells.part,
        "n_cells": int(cells.held_out.sum()),
        "ranked_with": kind_of(named_likelihood(config)),
        "conditions_on_total": conditions_on_total(config),
        **dict.fromkeys(FIGURES),
        "versions": " ".join(f"{name}={v}" for name, v in versions().items()),
        "note": None,
    }


def _clusters(
    cells: Cells, config: ModelConfig, bounds: CellBounds, score_key: str | None
) -> tuple[np.ndarray, Row]:
    """Clusters [n] of the cells, -1 for none, and their scores."""
    codes, row = np.full(len(bounds.latent), -1), {}
    if config.model == "gmvae":
        codes = bounds.probabilities.argmax(axis=1)
        row["n_clusters"] = config.n_clusters
        row["clusters_used"] = clusters_used(codes)
    if cells.labels is None:
        return codes, row
    labels = cells.labels[cells.held_out]
    known = np.array([label is not None for label in labels])
    names = labels[known].astype(str)
    own = codes[known] if config.model == "gmvae" else None
    codes[known], scored = against_labels(own, bounds.latent[known], names, score_key)
    return codes, row | scored
