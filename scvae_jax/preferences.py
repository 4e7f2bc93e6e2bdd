"""Which of several models each gene prefers, with false-discovery control.

References:
    [1] Benjamini & Hochberg, Controlling the false discovery rate, 1995.
    [2] Satterthwaite, An approximate distribution of estimates of variance
        components, 1946.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

# nats to which float32 gives log p: a smaller difference is none
ROUNDING = 1e-5


def preferences(
    scores: dict[str, np.ndarray],
    moments: dict[tuple[str, str], np.ndarray],
    n_cells: int,
    tested: np.ndarray,
    rate: float,
) -> dict[str, Any]:
    """Which models each gene prefers.

    Args:
        scores: of each model [n_fits, G] mean log scores of its fits.
        moments: of each pair [2, G] sums over cells of the differences in log score,
            fits averaged, and of their squares.
        n_cells: n.
        tested: [G].
        rate: of false discoveries.

    Returns:
        The fields of `var`.
    """
    p, gain = {}, {}
    for pair in moments:
        mean, square = moments[pair] / n_cells
        # squared standard errors of the mean: of cells, and of the fits of each model
        of_cells = np.maximum(square - mean**2, 0.0) / max(n_cells - 1, 1)
        of_fits = [
            (of.var(axis=0, ddof=1) / len(of), len(of) - 1)
            for of in (scores[name] for name in pair)
            if len(of) > 1
        ]
        gain[pair] = mean
        p[pair] = two_sided(mean, of_cells, of_fits, n_cells, tested)
    q = np.full((len(p), len(tested)), np.nan)
    if tested.any():
        values = np.stack(list(p.values()))[:, tested]
        adjusted = scipy.stats.false_discovery_control(values.ravel())
        q[:, tested] = adjusted.reshape(values.shape)
    beaten = {name: np.zeros(len(tested), bool) for name in scores}
    for (one, other), of_pair in zip(p, q, strict=True):
        clear = tested & (of_pair <= rate)
        beaten[one] |= clear & (gain[one, other] > 0)
        beaten[other] |= clear & (gain[one, other] < 0)
    family = np.array(
        [
            " | ".join(name for name in scores if not beaten[name][gene])
            for gene in range(len(tested))
        ],
        dtype=object,
    )
    family[~tested] = None
    fields: dict[str, Any] = {"family": family}
    first = next(iter(scores))
    for (one, other), of_pair in zip(p, q, strict=True):
        if one == first:
            fields[f"gain_{other}"] = gain[one, other]
            fields[f"gain_q_{other}"] = of_pair
    return fields


def two_sided(
    mean: np.ndarray,
    of_cells: np.ndarray,
    of_fits: Sequence[tuple[np.ndarray, int]],
    n_cells: int,
    tested: np.ndarray,
) -> np.ndarray:
    """Two-sided p-values of means against 0 (give or take ROUNDING), by Student's t.

    A few fits say little of the spread between fits of a single gene. It is therefore
    taken to be at least the share of the spread between cells that it is in the mean
    over the tested genes, of each model. Degrees of freedom are those of [2].

    Args:
        mean: [G].
        of_cells: [G] squared standard error of the mean by the spread between cells.
        of_fits: of each model with several fits [G] that by the spread between them,
            and its degrees of freedom.
        n_cells: n.
        tested: [G] the genes in question.

    Returns:
        [G]; 1 where nothing varies.
    """
    varies = of_cells > 0
    safe = np.where(varies, of_cells, 1.0)
    counts = tested & varies
    share, weighed = np.zeros(len(mean)), np.zeros(len(mean))
    for variance, freedom in of_fits:
        own = variance / safe
        floored = np.maximum(own, own[counts].mean() if counts.any() else 0.0)
        share += floored
        weighed += floored**2 / freedom
    excess = np.maximum(np.abs(mean) - ROUNDING, 0.0)
    t = excess / np.sqrt(safe * (1.0 + share))
    # (sum_i v_i)^2 / df = sum_i v_i^2 / df_i, v the variances of cells and fits [2]
    df = (1.0 + share) ** 2 / (1.0 / max(n_cells - 1, 1) + weighed)
    p = 2.0 * scipy.special.stdtr(df, -t)
    return np.where(varies, p, 1.0)
