"""Whether the count model is right: half the genes of a cell given the other half.

The cells are held out, so what is compared with their counts was predicted:

    p(x_g | x_seen) = E_q(z | x_seen) p(x_g | z)    for each gene g that was not seen

The genes of each cell are split in two at random, and each half is predicted from the
other, so that every count is scored once and was never seen by the encoder. What the
encoder is given follows its training. There, input dropout hides a share r of the
non-zero inputs log1p(x) and multiplies the others by 1 / (1 - r), so that the sums of
its first layer keep their mean. A hidden half is such a mask with r = 1/2, so the other
inputs are doubled. (On 4,271 blood cells no factor from 1 to 2.5 is better or worse by
more than 0.1 nats a cell, LayerNorm after that layer taking most of it out.) The
decoder is given the depth of the whole cell, as in training: a library mean predicts
how a known total is shared out.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse
import scipy.special
import scipy.stats

from scvae_jax import batches
from scvae_jax.batches import Batch, CellData
from scvae_jax.checkpoints import Fitted
from scvae_jax.config import InputError, InputWarning, check_count, listing
from scvae_jax.evaluation import part_of, prepare_as, split_of
from scvae_jax.likelihoods import Likelihood
from scvae_jax.models import Model
from scvae_jax.training import cells_to_device

Array = jax.Array

# bins of the histograms of the probability integral transform
N_BINS = 20
# cells in which a gene must be seen to be tested: with fewer the rare large differences
# are missing from the variance, and a t-test is wrong
LEAST_SEEN = 20
# counts above it have no transform, as it is a sum over all smaller counts
LARGEST = 10_000
# non-zero counts whose distribution functions are summed together
CHUNK = 2048
# nats to which float32 gives log p: a smaller difference is none
ROUNDING = 1e-5
# instead of a division by nothing
TINY = 1e-300


class Calibration(NamedTuple):
    """What a model expects of held-out counts beside what there is.

    Attributes:
        summary: n_cells, n_genes, split, n_samples and n_fits; log_score, the mean
            over cells of the sum over genes of log p(x_g | x_seen), nats;
            pit_distance, the largest difference of the cumulative `pit` from uniform;
            zeros and expected_zeros, shares of all entries; variance_ratio, the
            median of observed by expected variance over the genes that are seen;
            totals_within_95, the share of cells whose total lies within 1.96 expected
            standard deviations.
        pit: [20] shares of the randomised probability integral transform in equal bins
            from 0 to 1; 1/20 each where the model is right. An entry weighs as much as
            a non-zero was probable there, which is known before the count is: else the
            many entries that are all but surely zero would drown the others.
        genes: a row for each gene, over cells: mean, expected_mean, variance,
            expected_variance (squared counts), zeros, expected_zeros (shares),
            pit_distance (some 0.9 / sqrt(cells) by chance), log_score (nats per cell).
        cells: a row for each cell: total, expected_total and expected_sd of the counts
            of its first hidden half.
    """

    summary: dict[str, Any]
    pit: np.ndarray
    genes: pd.DataFrame
    cells: pd.DataFrame


def calibrate(
    adata: anndata.AnnData,
    fitted: Fitted | Mapping[str, Fitted],
    *,
    split: str | None = None,
    n_samples: int = 20,
    false_discovery_rate: float = 0.05,
    key_added: str = "scvae",
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, Calibration]:
    """Compare held-out counts with what a model expects of them, gene by gene.

    Half the genes of each cell are predicted from the other half, and the other way
    round (see the module for how). A model trained without input dropout has not
    learned to read half a cell: its figures are those of its encoder too. One that was
    trained for a thousand steps has not learned its dispersions yet.

    With several models, such as one of each likelihood, it also says which of them each
    gene prefers. For each pair and each gene seen in 20 cells or more, the mean over
    cells of the difference in log p(x_g | x_seen) is tested against 0 by a t-test; all
    tests together go through [2], for dependent genes as usual. Further fits of a
    model, its `alternatives` from `fit_many`, are averaged and their spread is part of
    the error. Of models without any, the error is that of cells alone, and a warning
    says so.

    Args:
        adata: the cells; fields of `var` are written, all else stays as it is.
        fitted: a model, or several by name, of the same data and split.
        split: "train", "validation", "test" or "all"; None: cells that were never
            trained on: test cells, else new ones, else validation cells.
        n_samples: samples S of q(z | x_seen) that a prediction averages over.
        false_discovery_rate: of the preferences.
        key_added: prefix of the fields.
        batch_size: cells at a time.
        seed: of the halves, the samples and the transform.

    Returns:
        A `Calibration` for each model, by its name; that of a single model is the name
        of its likelihood. `scvae_jax.plots.calibration` draws them. Fields written, NaN
        for genes that the models do not know:

        var["scvae_log_score_NAME"]: mean log p(x_g | x_seen), nats per cell.
        var["scvae_pit_distance_NAME"]: largest difference of the cumulative transform
            of the gene from uniform.

        Of several models also:

        var["scvae_family"]: the models that no other beats at this rate, joined by
            " | "; one name where the gene has a preference; missing if not tested
            (categorical).
        var["scvae_gain_NAME"]: of each model after the first, its log score less that
            of the first, nats per cell.
        var["scvae_gain_q_NAME"]: the least false discovery rate at which that
            difference counts, in either direction; NaN if not tested.

    Raises:
        InputError: for models without counts or of different data, for counts that are
            not whole, or a part of the split without cells.

    References:
        [1] Czado, Gneiting & Held, Predictive model assessment for count data, 2009.
        [2] Benjamini & Hochberg, Controlling the false discovery rate, 1995.
    """
    check_count("n_samples", n_samples, 1)
    check_count("batch_size", batch_size, 1, 2**31 - 1)
    check_count("seed", seed, 0, 2**32 - 1)
    if not 0 < false_discovery_rate < 1:
        raise InputError(
            f"found false_discovery_rate={false_discovery_rate!r}, expected a number "
            "between 0 and 1, change it"
        )
    fits = _fits_of(adata, fitted)
    first = next(iter(fits.values()))[0]
    data = prepare_as(adata, first)
    if not np.array_equal(data.x.data, np.floor(data.x.data)):
        raise InputError(
            "found fractional counts, expected whole ones, as only they have a "
            "distribution function, round them (fractional='round') and fit again"
        )
    chosen, where = part_of(split_of(adata, first), split)
    x = data.x[where]
    if x.nnz and x.data.max() > LARGEST:
        warnings.warn(
            f"{int((x.data > LARGEST).sum())} counts above {LARGEST} are left out of "
            "the probability integral transform",
            InputWarning,
            stacklevel=2,
        )
    cells = cells_to_device(data, where)
    options = {"n_samples": n_samples, "batch_size": batch_size, "seed": seed}
    measured, moments = _measure(fits, cells, x, **options)
    result = {}
    for name, found in measured.items():
        genes, pit = _table(found.sums, x.shape[0], data.genes)
        columns = ["total", "expected_total", "expected_sd"]
        of_cells = pd.DataFrame(found.totals, data.cells[where], columns)
        summary = {
            "n_cells": x.shape[0],
            "n_genes": x.shape[1],
            "split": chosen,
            "n_samples": n_samples,
            "n_fits": len(fits[name]),
            **_summary(genes, pit, of_cells),
        }
        result[name] = Calibration(summary, pit, genes, of_cells)
    fields = {}
    for name, found in result.items():
        fields[f"log_score_{name}"] = found.genes["log_score"].to_numpy()
        fields[f"pit_distance_{name}"] = found.genes["pit_distance"].to_numpy()
    if len(fits) > 1:
        single = [name for name, models in fits.items() if len(models) == 1]
        if single:
            warnings.warn(
                f"{listing(single)}: one fit only, so preferences of genes hold for "
                "this fit and not for others; give what sv.fit_many returned",
                InputWarning,
                stacklevel=2,
            )
        scores = {name: found.scores / x.shape[0] for name, found in measured.items()}
        tested = np.bincount(x.indices, minlength=x.shape[1]) >= LEAST_SEEN
        fields |= _preferences(
            scores, moments, x.shape[0], tested, false_discovery_rate
        )
    _write(adata, first.genes, fields, key_added)
    return result


def _fits_of(
    adata: anndata.AnnData, fitted: Fitted | Mapping[str, Fitted]
) -> dict[str, tuple[Fitted, ...]]:
    """The fits of each model by its name; refuses those that cannot be compared."""
    if isinstance(fitted, Fitted):
        fitted = {fitted.likelihood.name: fitted}
    if (
        not isinstance(fitted, Mapping)
        or not fitted
        or not all(isinstance(model, Fitted) for model in fitted.values())
    ):
        raise InputError(
            f"found a {type(fitted).__name__}, expected a fitted model after the "
            "AnnData object or a dict of them, pass what sv.fit or sv.load returned"
        )
    first_name, first = next(iter(fitted.items()))
    for name, model in fitted.items():
        if model.likelihood.support == "real":
            raise InputError(
                f"found {name!r} with a {model.likelihood.name} likelihood, expected "
                "families of counts, leave it out"
            )
        same = {
            "data options": model.data_config == first.data_config,
            "genes": np.array_equal(model.genes, first.genes),
            "batches": model.batches == first.batches,
            "split": np.array_equal(split_of(adata, model), split_of(adata, first)),
            "mean option": _mean_option(model) == _mean_option(first),
        }
        odd = [what for what, is_same in same.items() if not is_same]
        if odd:
            raise InputError(
                f"found {name!r} and {first_name!r} of different {', '.join(odd)}, "
                "expected models of the same data, fit them on the same cells with the "
                "same options"
            )
    return {name: (model, *model.alternatives) for name, model in fitted.items()}


def _mean_option(model: Fitted) -> str:
    """Whether the total of a cell is given or explained; scores differ for it alone."""
    return model.config.likelihood_options.get("mean", "library")


class _Measured(NamedTuple):
    """Sums over cells, of one model.

    Attributes:
        sums: [8 + N_BINS, G] from `_sums`.
        scores: [n_fits, G] sums of log p(x_g | x_seen).
        totals: [n, 3] as in `Predicted`.
    """

    sums: np.ndarray
    scores: np.ndarray
    totals: np.ndarray


def _measure(
    fits: Mapping[str, tuple[Fitted, ...]],
    cells: CellData,
    x: scipy.sparse.csr_matrix,
    *,
    n_samples: int,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, _Measured], dict[tuple[str, str], np.ndarray]]:
    """Predict all cells by all fits, a batch at a time, and sum up.

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
                # fits of one program differ in rates of dropout at the most, which is
                # off here: one model for all, compiled once
                found = predict(
                    models[0].model,
                    fitted.params,
                    cells,
                    (index, weight),
                    n_slots,
                    n_samples=n_samples,
                    key=key,
                    with_below=i == 0,
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
        name: _Measured(sums[name], scores[name], np.concatenate(totals[name]))
        for name in fits
    }
    return measured, moments


class Predicted(NamedTuple):
    """What is expected of the counts of B cells, each half given the other.

    Attributes:
        log_prob: [B, G] log p(x_g | x_seen), nats.
        zero: [B, G] p(0 | x_seen).
        mean: [B, G] counts.
        variance: [B, G] squared counts.
        below: [B, G] p(X < x | x_seen), NaN above LARGEST.
        total: [B, 3] of the first hidden half: the total of x, its expectation and its
            standard deviation.
    """

    log_prob: np.ndarray
    zero: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    below: np.ndarray
    total: np.ndarray


def predict(
    model: Model,
    params: Any,
    cells: CellData,
    position: tuple[np.ndarray, np.ndarray],
    n_slots: int,
    *,
    n_samples: int,
    key: Array,
    with_below: bool = True,
) -> Predicted:
    """Predict each random half of the genes of a batch of cells from the other half.

    Args:
        model: pure functions.
        params: its parameters.
        cells: on the device.
        position: index [B] and weight [B], from `batches.in_order`.
        n_slots: slots of the batch.
        n_samples: S.
        key: of the halves and samples.
        with_below: sum the distribution functions; else they are 0.

    Returns:
        The predictions.
    """
    halves = []
    for half in (0, 1):
        dense, total, at_nonzero, slots = _half(
            model, n_slots, n_samples, half, params, cells, position, key
        )
        dense = [np.asarray(part) for part in dense]
        below = np.zeros_like(dense[0])
        if with_below:
            cell, gene, value = (np.asarray(part).reshape(-1) for part in slots)
            below[cell[value > LARGEST], gene[value > LARGEST]] = np.nan
            log_prob = model.modalities[0].likelihood.log_prob
            for chosen in _chunks(value):
                padded = np.pad(chosen, (0, CHUNK - len(chosen)))
                limit = np.pad(value[chosen], (0, CHUNK - len(chosen)))
                summed = np.asarray(_below(log_prob, at_nonzero, padded, limit))
                below[cell[chosen], gene[chosen]] = summed[: len(chosen)]
        halves.append((*dense, below, np.asarray(total)))
    # an entry is 0 in the half in which it was seen
    first, second = halves
    sums = [a + b for a, b in zip(first[:-1], second[:-1], strict=True)]
    return Predicted(*sums, first[-1])


def _chunks(value: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of values from 1 to LARGEST, least first, CHUNK at a time.

    A chunk takes as many steps as its largest value, so they are sorted.
    """
    order = np.argsort(value, kind="stable")
    order = order[(value[order] > 0) & (value[order] <= LARGEST)]
    for start in range(0, len(order), CHUNK):
        yield order[start : start + CHUNK]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _half(
    model: Model,
    n_slots: int,
    n_samples: int,
    half: Array,
    params: Any,
    cells: CellData,
    position: tuple[Array, Array],
    key: Array,
):
    """One half of the genes of each cell given the other.

    Returns:
        log_prob, zero, mean and variance, each [B, G], 0 where a gene was seen; the
        total and its expectation and standard deviation, [B, 3]; the likelihood's
        params [S, R * ROW] at the non-zero counts; and their cell, gene and value,
        where 0 is padding or a gene that was seen.
    """
    modality = model.modalities[0]
    likelihood = modality.likelihood
    batch = batches.cut(cells, *position, modality.n_features, n_slots)
    x = batch.counts[0].x
    key_half, key_z = jax.random.split(key)
    hidden = jax.random.bernoulli(key_half, 0.5, x.shape) ^ (half == 1)
    posterior = model.encode(params, hide(batch, hidden, likelihood))
    # of a mixture over clusters, a cluster is drawn with each sample
    z = posterior.sample(
        seed=jax.random.fold_in(key_z, half), sample_shape=(n_samples,)
    )
    cell, gene, value = batch.counts[0].nonzero
    owner = jnp.minimum(cell, x.shape[0] - 1)[:, None]
    value = jnp.where(hidden[owner, gene], value, 0.0)
    trailing = {head.name: head.shape for head in likelihood.heads}
    dense, row = jnp.zeros_like(x), jnp.zeros(x.shape[0])

    def log_prob_zero(decoded):
        if likelihood.log_prob_zero is None:
            return likelihood.log_prob(dense, decoded)
        return likelihood.log_prob_zero(decoded)

    def one(sums, z):
        (decoded,) = model.decode(params, z, batch)
        log_prob = likelihood.log_prob(x, decoded)
        mean = likelihood.mean(decoded)
        total = jnp.where(hidden, mean, 0.0).sum(axis=-1)
        new = (
            jnp.exp(log_prob_zero(decoded)),
            mean,
            mean**2,
            likelihood.variance(decoded),
            total,
            total**2,
        )
        full = {
            name: jnp.broadcast_to(p, x.shape + trailing.get(name, ()))
            for name, p in decoded.items()
        }
        at_nonzero = {
            name: p[owner, gene].reshape(-1, *p.shape[2:]) for name, p in full.items()
        }
        log_total, sums = sums
        sums = jax.tree.map(jnp.add, sums, new)
        return (jnp.logaddexp(log_total, log_prob), sums), at_nonzero

    start = (dense - jnp.inf, (dense,) * 4 + (row,) * 2)
    (log_total, sums), at_nonzero = jax.lax.scan(one, start, z)
    zero, mean, square, variance, total, total_square = (
        part / n_samples for part in sums
    )
    # Var = E Var(x | z) + Var E(x | z)
    variance += jnp.maximum(square - mean**2, 0.0)
    within = jnp.where(hidden, sums[3] / n_samples, 0.0).sum(axis=-1)
    total_sd = jnp.sqrt(within + jnp.maximum(total_square - total**2, 0.0))
    dense = (log_total - jnp.log(n_samples), zero, mean, variance)
    dense = tuple(jnp.where(hidden, part, 0.0) for part in dense)
    observed = jnp.where(hidden, x, 0.0).sum(axis=-1)
    slots = (jnp.broadcast_to(owner, gene.shape), gene, value)
    return dense, jnp.stack([observed, total, total_sd], axis=-1), at_nonzero, slots


def hide(batch: Batch, hidden: Array, likelihood: Likelihood) -> Batch:
    """A batch in which some genes are zero to the encoder, and the others twice.

    Args:
        batch: B cells of one modality; its depth stays.
        hidden: [B, G] what the encoder is not to see.
        likelihood: of the modality, which says what the encoder reads.

    Returns:
        The batch, for the encoder alone.
    """
    (counts,) = batch.counts

    def double(x: Array) -> Array:
        # log1p(y) = 2 log1p(x) for y = x (x + 2); other data is read as it is
        is_counts = likelihood.support in ("counts", "integers")
        return x * (x + 2.0) if is_counts else 2.0 * x

    x = jnp.where(hidden, 0.0, double(counts.x))
    nonzero = counts.nonzero
    if nonzero is not None:
        cell, gene, value = nonzero
        owner = jnp.minimum(cell, x.shape[0] - 1)[:, None]
        value = jnp.where(hidden[owner, gene], 0.0, double(value))
        nonzero = (cell, gene, value)
    return batch._replace(counts=(counts._replace(x=x, nonzero=nonzero),))


@partial(jax.jit, static_argnums=0)
def _below(log_prob, params: dict[str, Array], slot: Array, x: Array) -> Array:
    """P(X < x) in the mean over samples: params [S, n, ...] at slot [m], x [m]."""
    params = {name: p[:, slot] for name, p in params.items()}

    def add(k: Array, total: Array) -> Array:
        p = jnp.exp(log_prob(jnp.full((1, len(x)), k, x.dtype), params))
        return total + jnp.where(k < x, p.mean(axis=0), 0.0)

    steps = x.max().astype(jnp.int32)
    return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(x))


def _sums(x: np.ndarray, found: Predicted, uniform: np.ndarray) -> np.ndarray:
    """Sums over cells that `_table` needs, and the histogram: [8 + N_BINS, G]."""
    parts = (
        x,
        x.astype(np.float64) ** 2,
        x == 0,
        found.mean,
        found.mean.astype(np.float64) ** 2,
        found.variance,
        found.zero,
        found.log_prob,
    )
    sums = np.stack([part.sum(axis=0, dtype=np.float64) for part in parts])
    # u = P(X < x) + v P(X = x), v ~ U(0, 1): uniform where the model is right [1]
    u = found.below + uniform * np.exp(found.log_prob)
    weight = np.where(np.isnan(u), 0.0, np.clip(1.0 - found.zero, 0.0, 1.0))
    n_genes = x.shape[1]
    code = np.minimum(np.nan_to_num(u) * N_BINS, N_BINS - 1).astype(np.int64)
    code = code * n_genes + np.arange(n_genes)[None]
    pit = np.bincount(code.ravel(), weight.ravel(), N_BINS * n_genes)
    return np.concatenate([sums, pit.reshape(N_BINS, n_genes)])


def _table(
    sums: np.ndarray, n_cells: int, genes: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """`Calibration.genes` and its `pit`."""
    mean, square, zeros, expected, expected_square, within, zero, score = (
        sums[:-N_BINS] / n_cells
    )
    pit = sums[-N_BINS:]
    columns = {
        "mean": mean,
        "expected_mean": expected,
        "variance": np.maximum(square - mean**2, 0.0),
        # Var x = E Var(x_n) + Var E(x_n) over cells n
        "expected_variance": within + np.maximum(expected_square - expected**2, 0.0),
        "zeros": zeros,
        "expected_zeros": zero,
        "pit_distance": _distance(pit),
        "log_score": score,
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


def _summary(
    genes: pd.DataFrame, pit: np.ndarray, cells: pd.DataFrame
) -> dict[str, float]:
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


def _preferences(
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
        # squared standard errors of the mean: of cells, and of fits
        of_cells = np.maximum(square - mean**2, 0.0) / max(n_cells - 1, 1)
        of_fits = sum(
            scores[name].var(axis=0, ddof=1) / len(scores[name])
            for name in pair
            if len(scores[name]) > 1
        )
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
    of_fits: np.ndarray | float,
    n_cells: int,
    tested: np.ndarray,
) -> np.ndarray:
    """Two-sided p-values of means against 0 (give or take ROUNDING), by Student's t.

    A few fits say little of the spread between fits of a single gene. It is therefore
    taken to be at least the share of the spread between cells that it is in the mean
    over the tested genes.

    Args:
        mean: [G].
        of_cells: [G] squared standard error of the mean by the spread between cells.
        of_fits: [G] that by the spread between fits; 0 where there is one of each.
        n_cells: n.
        tested: [G] the genes in question.

    Returns:
        [G]; 1 where nothing varies.
    """
    varies = of_cells > 0
    safe = np.where(varies, of_cells, 1.0)
    share = np.broadcast_to(of_fits, mean.shape) / safe
    pooled = share[tested & varies].mean() if (tested & varies).any() else 0.0
    excess = np.maximum(np.abs(mean) - ROUNDING, 0.0)
    t = excess / np.sqrt(safe * (1.0 + np.maximum(share, pooled)))
    p = 2.0 * scipy.special.stdtr(max(n_cells - 1, 1), -t)
    return np.where(varies, p, 1.0)


def _write(
    adata: anndata.AnnData, genes: np.ndarray, fields: dict[str, Any], key: str
) -> None:
    """Write fields of the model's genes into `var`, missing for others."""
    if adata.is_view:
        # as scanpy does: a view becomes an object of its own before it is written to
        adata._init_as_actual(adata.to_memory())
    column = pd.Index(genes).get_indexer(adata.var_names)
    for name, values in fields.items():
        spread = pd.Series(values).reindex(column).to_numpy()
        if name == "family":
            spread = pd.Categorical(spread)
        adata.var[f"{key}_{name}"] = spread
