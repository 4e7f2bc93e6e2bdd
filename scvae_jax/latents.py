"""Priors and posteriors of the latent space, on distrax."""

import distrax
import jax
import jax.numpy as jnp

Array = jax.Array

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


def sample(distribution: distrax.Independent, key: Array, n_samples: int) -> Array:
    """Samples of each distribution of the batch.

    Args:
        distribution: normal, of batch shape [B].
        key: of the draw.
        n_samples: S.

    Returns:
        [S, B, L].
    """
    mean, scale = distribution.mean(), distribution.stddev()
    # a flat draw: numbers in the shape [S, B, L] take XLA five times as long to compile
    noise = jax.random.normal(key, (n_samples * mean.size,), mean.dtype)
    return mean[None] + scale[None] * noise.reshape(n_samples, *mean.shape)
