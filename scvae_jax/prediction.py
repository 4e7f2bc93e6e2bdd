"""Each half of the genes of a cell predicted from the other half.

    p(x_g | x_seen) = E_q(z | x_seen) p(x_g | z)    for each gene g that was not seen

The genes of each cell are split in two at random, so that every count is predicted once
and was never seen by the encoder. What the encoder is given keeps the sums of its first
layer: hiding half of its inputs log1p(x) is a dropout mask of rate 1/2, so the others
are doubled (LayerNorm after that layer takes most of a factor out). The decoder is
given the depth of the whole cell, as in training: a library mean predicts how a known
total is shared out.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches
from scvae_jax.batches import Batch, CellData
from scvae_jax.likelihoods import Likelihood
from scvae_jax.models import Model

Array = jax.Array

# counts above it have no distribution function, as it is a sum over all smaller counts
LARGEST = 10_000
# instead of a division by nothing
TINY = 1e-30
# non-zero counts whose distribution functions are summed together
CHUNK = 2048


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
    given_total: bool = False,
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
        given_total: the depth of a cell is its total t, so that the total of a half is
            that given the total of both, as if both were normal: with means m and n and
            variances v and w of the two halves, its mean is m + v / (v + w) (t - m - n)
            and its variance v w / (v + w), of a Poisson those of a binomial.

    Returns:
        The predictions.
    """
    halves = []
    for half in (0, 1):
        dense, total, at_nonzero, slots = _half(
            model,
            n_slots,
            n_samples,
            half,
            given_total,
            params,
            cells,
            position,
            key,
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
    given_total: Array,
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

    def log_prob_zero(decoded):
        if likelihood.log_prob_zero is None:
            return likelihood.log_prob(jnp.zeros_like(x), decoded)
        return likelihood.log_prob_zero(decoded)

    def share_of_hidden(variance):
        within, other = (
            jnp.where(part, variance, 0.0).sum(axis=-1) for part in (hidden, ~hidden)
        )
        return within / jnp.maximum(within + other, TINY)

    def of_sample(z):
        (decoded,) = model.decode(params, z, batch)
        mean, variance = likelihood.mean(decoded), likelihood.variance(decoded)
        of_half = jnp.where(hidden, mean, 0.0).sum(axis=-1)
        # means of a zero-inflated family do not add up to the total
        rest = share_of_hidden(variance) * (x - mean).sum(axis=-1)
        of_half += jnp.where(given_total, rest, 0.0)
        new = (jnp.exp(log_prob_zero(decoded)), variance, mean, of_half)
        full = {
            name: jnp.broadcast_to(p, x.shape + likelihood.trailing.get(name, ()))
            for name, p in decoded.items()
        }
        at_nonzero = {
            name: p[owner, gene].reshape(-1, *p.shape[2:]) for name, p in full.items()
        }
        return likelihood.log_prob(x, decoded), new, at_nonzero

    def one(carry, numbered):
        # running means, and squares about them: those about 0 of large numbers would
        # not tell how little they vary (Welford)
        log_total, means, squares = carry
        s, z = numbered
        log_prob, new, at_nonzero = of_sample(z)
        off = tuple(map(jnp.subtract, new, means))
        means = tuple(
            mean + one / (s + 1) for mean, one in zip(means, off, strict=True)
        )
        added = (one**2 * s / (s + 1) for one in off[2:])
        squares = tuple(map(jnp.add, squares, added))
        return (jnp.logaddexp(log_total, log_prob), means, squares), at_nonzero

    shape, *shapes = jax.eval_shape(of_sample, z[0])[:2]
    # a likelihood of one's own may have whole numbers
    floats = partial(jnp.promote_types, jnp.float32)
    means = jax.tree.map(lambda s: jnp.zeros(s.shape, floats(s.dtype)), *shapes)
    start = (jnp.full(shape.shape, -jnp.inf, shape.dtype), means, means[2:])
    numbered = (jnp.arange(n_samples), z)
    (log_total, means, squares), at_nonzero = jax.lax.scan(one, start, numbered)
    zero, variance, mean, total = means
    within = jnp.where(hidden, variance, 0.0).sum(axis=-1)
    within *= jnp.where(given_total, 1.0 - share_of_hidden(variance), 1.0)
    # Var = E Var(x | z) + Var E(x | z)
    of_gene, of_total = (square / n_samples for square in squares)
    variance += of_gene
    total_sd = jnp.sqrt(within + of_total)
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
        is_counts = likelihood.is_of_counts
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
        return total + jnp.where(k < x, p.mean(axis=0), 0.0).astype(x.dtype)

    steps = x.max().astype(jnp.int32)
    return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(x))
