"""Priors and posteriors of the latent space, on distrax."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp

Array = jax.Array

# scales of single components stay within exp(this) of the one they share
MAX_DEPARTURE = 0.6931471805599453

# Independent normals rather than MultivariateNormalDiag: they leave `jax.jit` whole


def standard_normal(n_latent: int) -> distrax.Independent:
    """The prior N(0, I).

    Args:
        n_latent: its dimension L.

    Returns:
        A distribution over [L], of batch shape [1] so that it broadcasts over cells.
    """
    shape = (1, n_latent)
    return distrax.Independent(distrax.Normal(jnp.zeros(shape), jnp.ones(shape)), 1)


def diagonal_normal(mean: Array, log_scale: Array) -> distrax.Independent:
    """The posterior N(mean, diag exp(log_scale)^2).

    Args:
        mean: [B, L].
        log_scale: [B, L], the logarithm of the standard deviations.

    Returns:
        A distribution over [L], of batch shape [B].
    """
    return distrax.Independent(distrax.Normal(mean, jnp.exp(log_scale)), 1)


def departed(
    posterior: distrax.Independent, shift: Array, log_factor: Array
) -> distrax.Independent:
    """The posteriors q(z|x,y) that depart from q(z|x).

    Args:
        posterior: normal with independent dimensions, of batch shape [B].
        shift: [B, K, L], added to its mean.
        log_factor: [B, K, L], its exponential multiplies the standard deviation.

    Returns:
        Normal distributions over [L], of batch shape [B, K].
    """
    mean = posterior.mean()[:, None] + shift
    scale = posterior.stddev()[:, None] * jnp.exp(log_factor)
    return distrax.Independent(distrax.Normal(mean, scale), 1)


def components(
    mean: Array, log_scale: Array, correlation: Array | None = None
) -> distrax.Distribution:
    """The components p(z|y) of a mixture prior.

    Args:
        mean: [K, L].
        log_scale: log of the standard deviations: [1, 1] for one that all share, else
            [K, L]; of a full covariance, log of the diagonal of its Cholesky factor.
        correlation: [K, L, L] whose part below the diagonal is that of the Cholesky
            factors; None for independent dimensions.

    Returns:
        Normal distributions over [L], of batch shape [1, K].
    """
    scale = jnp.broadcast_to(jnp.exp(log_scale), mean.shape)[None]
    if correlation is None:
        return distrax.Independent(distrax.Normal(mean[None], scale), 1)
    diagonal = scale[..., None] * jnp.eye(mean.shape[-1])[None, None]
    factor = jnp.tril(correlation, -1)[None] + diagonal
    return distrax.MultivariateNormalTri(mean[None], factor)


def log_density(prior: distrax.Distribution, z: Array) -> Array:
    """Log p(z|y) of each component.

    Args:
        prior: from `components`.
        z: [..., 1, L], or [..., K, L].

    Returns:
        [..., K] nats.
    """
    if isinstance(prior, distrax.MultivariateNormalTri):
        return prior.log_prob(z)
    normal = prior.distribution
    if z.shape[-2] > 1:
        return _total(normal.log_prob(z))
    mean, scale = normal.loc[0], normal.scale[0]
    each = _of_each(z.reshape(-1, z.shape[-1]), mean, scale)
    return each.reshape(*z.shape[:-2], len(mean))


def divergence(posterior: distrax.Independent, prior: distrax.Distribution) -> Array:
    """KL(q(z|x,y) || p(z|y)) in closed form.

    Args:
        posterior: normal with independent dimensions, of batch shape [B, K].
        prior: from `components`.

    Returns:
        [B, K] nats.
    """
    if isinstance(prior, distrax.MultivariateNormalTri):
        posterior = distrax.MultivariateNormalDiag(posterior.mean(), posterior.stddev())
        return posterior.kl_divergence(prior)
    return _total(posterior.distribution.kl_divergence(prior.distribution))


@jax.custom_vjp
def _total(each: Array) -> Array:
    """Sum over the last axis, as a product: twice as fast as XLA's if it is short."""
    return jnp.matmul(each, jnp.ones(each.shape[-1], each.dtype), precision="highest")


_total.defvjp(
    lambda each: (_total(each), each),
    lambda each, slope: (jnp.broadcast_to(slope[..., None], each.shape),),
)


@jax.custom_vjp
def _of_each(z: Array, mean: Array, scale: Array) -> Array:
    """Log N(z; mean, scale^2) of all z [B, L] under each component [K, L]: [B, K]."""
    return _total(distrax.Normal(mean[None], scale[None]).log_prob(z[:, None]))


def _slopes_of_each(inputs: tuple[Array, Array, Array], slope: Array):
    """Gradients as products over B or K, so that none is as large as [B, K, L].

    With u [B, K] and p = 1 / scale^2: of z, sum_k u p (mean - z); of the mean,
    sum_b u p (z - mean); of the scale, sum_b u (p (z - mean)^2 - 1) / scale.
    """
    z, mean, scale = inputs
    product = partial(jnp.matmul, precision="highest")
    p, total = scale**-2, slope.sum(axis=0)[:, None]
    first, second = product(slope.T, z), product(slope.T, z**2)
    squares = second - 2 * mean * first + mean**2 * total
    slopes = (
        product(slope, mean * p) - z * product(slope, p),
        p * (first - mean * total),
        (p * squares - total) / scale,
    )
    # each of the type of its input, where these differ
    return tuple(s.astype(given.dtype) for s, given in zip(slopes, inputs, strict=True))


_of_each.defvjp(lambda *inputs: (_of_each(*inputs), inputs), _slopes_of_each)


def sample(distribution: distrax.Distribution, key: Array, n_samples: int) -> Array:
    """Samples of each normal of the batch.

    Args:
        distribution: normal, of batch shape [B]; of a mixture over clusters, each of
            its components is sampled.
        key: of the draw.
        n_samples: S.

    Returns:
        [S, B, L], of a mixture [S, B, K, L].
    """
    if isinstance(distribution, distrax.MixtureSameFamily):
        distribution = distribution.components_distribution
    if isinstance(distribution, distrax.MultivariateNormalTri):
        return distribution.sample(seed=key, sample_shape=(n_samples,))
    mean, scale = distribution.mean(), distribution.stddev()
    # a flat draw: numbers in the shape [S, B, L] take XLA five times as long to compile
    noise = jax.random.normal(key, (n_samples * mean.size,), mean.dtype)
    return mean[None] + scale[None] * noise.reshape(n_samples, *mean.shape)
