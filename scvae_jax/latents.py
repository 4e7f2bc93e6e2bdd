"""Priors and posteriors of the latent space, on distrax."""

import distrax
import jax
import jax.numpy as jnp

Array = jax.Array


def standard_normal(n_latent: int) -> distrax.MultivariateNormalDiag:
    """The prior N(0, I).

    Args:
        n_latent: its dimension L.

    Returns:
        A distribution over [L], of batch shape [1] so that it broadcasts over cells.
    """
    return distrax.MultivariateNormalDiag(
        jnp.zeros((1, n_latent)), jnp.ones((1, n_latent))
    )


def diagonal_normal(mean: Array, log_scale: Array) -> distrax.MultivariateNormalDiag:
    """The posterior N(mean, diag exp(log_scale)^2).

    Args:
        mean: [B, L].
        log_scale: [B, L], the logarithm of the standard deviations.

    Returns:
        A distribution over [L], of batch shape [B].
    """
    return distrax.MultivariateNormalDiag(mean, jnp.exp(log_scale))
