"""Held-out counts and what is expected of them, summed over cells.

References:
    [1] Czado, Gneiting & Held, Predictive model assessment for count data, 2009.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import scipy.sparse

from scvae_jax import batches
from scvae_jax.batches import CellData
from scvae_jax.checkpoints import Fitted
from scvae_jax.evaluation import is_given_total
from scvae_jax.prediction import Predicted, predict

# bins of the histograms of the probability integral transform
N_BINS = 20
# instead of a division by nothing
TINY = 1e-300


class Measured(NamedTuple):
    """Sums over cells, of one model.

    Attributes:
        sums: [8 + N_BINS, G] from `_sums`, of the first fit.
        scores: [n_fits, G] sums of log p(x_g | x_seen).
        totals: [n, 3] as in `Predicted`, of the first fit.
    """

    sums: np.ndarray
    scores: np.ndarray
    totals: np.ndarray


def measure(
    fits: Mapping[str, tuple[Fitted, ...]],
    cells: CellData,
    x: scipy.sparse.csr_matrix,
    *,
    n_samples: int,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Measured], dict[tuple[str, str], np.ndarray]]:
    """Predict all cells by all fits, a batch at a time, and sum up.

    Args:
        fits: of each model, the first of which is looked at.
        cells: n of them, on the device.
        x: [n, G] their counts.
        n_samples: samples S of a prediction.
        batch_size: cells at a time.
        seed: of the halves, the samples and the transform.

    Returns:
        The sums of each model; and of each pair of them [2, G] the sums over cells of
        the differences in log score, fits averaged, and of their squares.
    """
    n_genes = x.shape[1]
    sums = {name: np.zeros((8 + N_BINS, n_genes)) for name in fits}
    scores = {name: np.zeros((len(models), n_genes)) for name, models in fits.items()}
    totals = {name: [] for name in fits}
    moments = {pair: np.zeros((2, n_genes)) for pair in itertools.combinations(fits, 2)}
    generator = np.random.default_rng(seed)
    positions, n_slots = batches.in_order(cells, batch_size)
    for number, (index, weight) in enumerate(zip(*positions, strict=True)):
        # the same halves and noise for all models: differences are of pairs
        key = jax.random.fold_in(jax.random.key(seed), number)
        real = weight > 0
        counts = x[index[real]].toarray()
        uniform = generator.random(counts.shape)
        mean_score = {name: np.zeros(counts.shape) for name in fits}
        for name, models in fits.items():
            for i, fitted in enumerate(models):
                # fits of one program: one model for all, compiled once
                found = predict(
                    models[0].model,
                    fitted.params,
                    cells,
                    (index, weight),
                    n_slots,
                    n_samples=n_samples,
                    key=key,
                    with_below=i == 0,
                    given_total=is_given_total(models[0]),
                )
                found = Predicted(*(part[real] for part in found))
                mean_score[name] += found.log_prob / len(models)
                scores[name][i] += found.log_prob.sum(axis=0, dtype=np.float64)
                if i == 0:
                    sums[name] += _sums(counts, found, uniform)
                    totals[name].append(found.total)
        for one, other in moments:
            difference = mean_score[other] - mean_score[one]
            moments[one, other] += difference.sum(axis=0), (difference**2).sum(axis=0)
    measured = {
        name: Measured(sums[name], scores[name], np.concatenate(totals[name]))
        for name in fits
    }
    return measured, moments


def _sums(x: np.ndarray, found: Predicted, uniform: np.ndarray) -> np.ndarray:
    """Sums over cells that `table_of` needs, and the histogram: [8 + N_BINS, G]."""
    # u = P(X < x) + v P(X = x), v ~ U(0, 1): uniform where the model is right [1]
    u = found.below + uniform * np.exp(found.log_prob)
    weight = np.where(np.isnan(u), 0.0, np.clip(1.0 - found.zero, 0.0, 1.0))
    parts = (
        x,
        x.astype(np.float64) ** 2,
        x == 0,
        found.mean,
        found.mean.astype(np.float64) ** 2,
        found.variance,
        found.zero,
        weight**2,
    )
    sums = np.stack([part.sum(axis=0, dtype=np.float64) for part in parts])
    n_genes = x.shape[1]
    code = np.minimum(np.nan_to_num(u) * N_BINS, N_BINS - 1).astype(np.int64)
    code = code * n_genes + np.arange(n_genes)[None]
    pit = np.bincount(code.ravel(), weight.ravel(), N_BINS * n_genes)
    return np.concatenate([sums, pit.reshape(N_BINS, n_genes)])


def table_of(
    found: Measured, n_cells: int, genes: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """What `Calibration` has of a model.

    Args:
        found: its sums.
        n_cells: over how many cells.
        genes: [G] names.

    Returns:
        Its `genes`, and its `pit`.
    """
    mean, square, zeros, expected, expected_square, within, zero, squares = (
        found.sums[:-N_BINS] / n_cells
    )
    pit = found.sums[-N_BINS:]
    columns = {
        "mean": mean,
        "expected_mean": expected,
        "variance": np.maximum(square - mean**2, 0.0),
        # Var x = E Var(x_n) + Var E(x_n) over cells n
        "expected_variance": within + np.maximum(expected_square - expected**2, 0.0),
        "zeros": zeros,
        "expected_zeros": zero,
        # Kish's: (sum of weights)^2 / sum of their squares
        "effective_cells": pit.sum(axis=0) ** 2 / np.maximum(squares * n_cells, TINY),
        "pit_distance": _distance(pit),
        "log_score": found.scores.mean(axis=0) / n_cells,
    }
    pit = pit.sum(axis=1)
    return pd.DataFrame(columns, index=genes), pit / max(pit.sum(), TINY)


def _distance(pit: np.ndarray) -> np.ndarray:
    """Largest difference of cumulative histograms [N_BINS, ...] from uniform."""
    total = pit.sum(axis=0)
    share = np.cumsum(pit, axis=0) / np.maximum(total, TINY)
    uniform = np.arange(1, N_BINS + 1) / N_BINS
    difference = np.abs(share.T - uniform).max(axis=-1)
    return np.where(total > 0, difference, np.nan)


def summary_of(
    genes: pd.DataFrame, pit: np.ndarray, cells: pd.DataFrame
) -> dict[str, float]:
    """Figures of all genes and cells together.

    Args:
        genes: as `Calibration` has them.
        pit: [N_BINS] likewise.
        cells: likewise.

    Returns:
        Those of `Calibration.summary` that are of counts.
    """
    seen = genes["mean"] > 0
    ratio = genes["variance"][seen] / genes["expected_variance"][seen]
    off = (cells["total"] - cells["expected_total"]).abs()
    return {
        "log_score": float(genes["log_score"].sum()),
        "pit_distance": float(_distance(pit)),
        "zeros": float(genes["zeros"].mean()),
        "expected_zeros": float(genes["expected_zeros"].mean()),
        "variance_ratio": float(ratio.median()),
        "totals_within_95": float((off <= 1.96 * cells["expected_sd"]).mean()),
    }
