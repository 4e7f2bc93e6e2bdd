"""What an encoder reads of a batch: in training thinned, and sparse where it may."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from scvae_jax.batches import Counts, lay_out, product

Array = jax.Array

# counts up to which thinning is exact, but for the 16 bits of a draw
FEW = 8


def _normal_quantile(p: Array) -> Array:
    """To 4.5e-4, which is less than whole counts tell (Abramowitz & Stegun 26.2.23)."""
    t = jnp.sqrt(-2.0 * jnp.log(jnp.minimum(p, 1.0 - p)))
    above = 2.515517 + t * (0.802853 + t * 0.010328)
    below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    return jnp.sign(p - 0.5) * (t - above / below)


def n_words(x: Array) -> int:
    """How many words `thinned` takes for x: one for two entries of a row."""
    *rows, size = x.shape
    return math.prod(rows) * -(-size // 2)


def thinned(words: Array, x: Array, share: Array) -> Array:
    """Binomial thinning: y ~ Binomial(x, share), what a shallower sample would count.

    Of a fractional count the whole part is thinned, and the rest kept or not.

    Args:
        words: [n_words(x)] random uint32.
        x: counts [..., n].
        share: probability with which each count is kept; broadcasts against x.

    Returns:
        Counts like x; those from more than FEW counts as a rounded normal.
    """
    share = jnp.asarray(share, jnp.promote_types(jnp.result_type(share), jnp.float32))
    # short of 1, where log(1 - share) is finite
    share = jnp.minimum(share, 1.0 - 1e-7)
    # 16 bits for an entry, which are half the work
    words = words.reshape(*x.shape[:-1], -(-x.shape[-1] // 2))
    bits = jnp.concatenate([words >> 16, words & 0xFFFF], axis=-1)[..., : x.shape[-1]]
    uniform = (bits.astype(share.dtype) + 0.5) * 2.0**-16
    rest = jnp.where(uniform > 1.0 - share, x - jnp.floor(x), 0.0)

    def exact(uniform: Array, x: Array, share: Array) -> Array:
        # how many of P(y <= 0), P(y <= 1), ... lie below a uniform number, with
        # P(y = k + 1) = P(y = k) (x - k) / (k + 1) odds
        odds = share / (1.0 - share)
        mass = jnp.exp(x * jnp.log1p(-share))
        below, kept = mass, jnp.zeros_like(x)
        for k in range(FEW):
            kept += uniform > below
            mass *= jnp.maximum(x - k, 0.0) * (odds * (1.0 / (k + 1)))
            below += mass
        return jnp.minimum(kept, x)

    def either(uniform: Array, x: Array, share: Array) -> Array:
        mean = x * share
        scale = jnp.sqrt(mean * (1.0 - share))
        normal = jnp.round(mean + scale * _normal_quantile(uniform))
        drawn = jnp.where(x > FEW, jnp.clip(normal, 0.0, x), exact(uniform, x, share))
        return drawn.astype(x.dtype)

    given = (uniform, jnp.floor(x), share)
    if jax.default_backend() != "cpu":
        # a GPU waits at a branch
        return either(*given) + rest
    # a branch also for its own sake: joined with what looks counts up and lays them
    # out, these formulas take a CPU twice as long
    return jax.lax.cond(jnp.any(x >= FEW + 1), either, exact, *given) + rest


def entries_of(
    counts: Counts, counted: bool, key: Array | None, thinning: float | Array
) -> Array:
    """What the encoder reads of one modality: log1p(x) of counts, x of other data.

    Args:
        counts: the modality, of B cells.
        counted: whether it is of counts.
        key: of what is hidden in training; None: nothing is.
        thinning: of each cell a share between 0 and this is hidden; what is not a count
            is seen whole or not at all.

    Returns:
        Where their addresses are known the non-zero entries [R, ROW] alone (zeros stay
        zero under any mask, so dropout need not draw one for them), else [B, G].
    """
    x = counts.x if counts.nonzero is None else counts.nonzero[2]
    if key is not None:
        n_cells = len(counts.depth)
        # of cells first, which entries to spare must not move; one draw, as for masks
        words = jax.random.bits(key, (n_cells + n_words(x),), jnp.uint32)
        share = 1.0 - thinning * (words[:n_cells, None] * 2.0**-32)
        if counts.nonzero is not None:
            share = share[counts.nonzero[0]]
        seen = x if counted else jnp.ones_like(x)
        seen = thinned(words[n_cells:], seen, share)
        x = seen if counted else x * seen
    return jnp.log1p(x) if counted else x


def laid_out(entries: Array, counts: Counts) -> Array:
    """What the encoder reads, in dense form.

    Args:
        entries: from `entries_of`.
        counts: the modality.

    Returns:
        [B, G].
    """
    if counts.nonzero is None:
        return entries
    return lay_out(counts.nonzero, entries, counts.x.shape)


def measured(counts: Counts) -> Counts:
    """Counts that are 0 where a modality was not observed, whatever stands there.

    Args:
        counts: the modality.

    Returns:
        The same, of depth 1 where it was not observed.
    """
    if counts.observed is None:
        return counts
    seen = counts.observed > 0
    nonzero = counts.nonzero
    if nonzero is not None:
        cell, gene, value = nonzero
        nonzero = cell, gene, jnp.where(seen[cell][:, None], value, 0.0)
    x = jnp.where(seen[:, None], counts.x, 0.0)
    depth = jnp.where(seen, counts.depth, 1.0)
    return counts._replace(x=x, nonzero=nonzero, depth=depth)


def first_product(
    entries: Sequence[Array], counts: Sequence[Counts], matmul: Callable
) -> Callable[..., Array]:
    """How the encoder multiplies x: sparse if it is one modality of sparse entries.

    Args:
        entries: of each modality, from `entries_of`.
        counts: the modalities.
        matmul: of dense arrays, from `networks.matmul_of`.

    Returns:
        (x [B, G], kernel [G, n], whatever flax adds) -> [B, n].
    """
    if len(counts) > 1 or counts[0].nonzero is None or counts[0].observed is not None:
        return lambda x, kernel, *_, **__: matmul(x, kernel)
    nonzero, entries = counts[0].nonzero, entries[0]
    return lambda x, kernel, *_, **__: product(nonzero, entries, x, kernel, matmul)
