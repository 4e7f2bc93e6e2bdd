"""Bounds on log p(x), and what is minimised in training, from a model's terms.

Axes: S samples of the posterior, B cells. Bounds are in nats per cell, and higher is
better; they hold at KL weight 1 alone, so objectives return a loss, not a bound.

References:
    [1] Burda et al., Importance weighted autoencoders, 2016.
    [2] Kingma et al., Improved variational inference with inverse autoregressive flow,
        2016 (free nats).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Terms(NamedTuple):
    """What a model says of samples z ~ q(z|x).

    Attributes:
        z: [S, B, L].
        log_px: [S, B] log p(x|z).
        log_pz: [S, B] log p(z).
        log_qz: [S, B] log q(z|x).
        kl_z: [S, B] KL(q(z|x) || p(z)) in closed form; the same in every sample.
    """

    z: Array
    log_px: Array
    log_pz: Array
    log_qz: Array
    kl_z: Array


def kl_divergence(terms: Terms, kl: str = "analytic") -> Array:
    """KL(q(z|x) || p(z)) of each cell.

    Args:
        terms: of S samples.
        kl: "analytic", or "sampled": the mean of log q(z|x) - log p(z).

    Returns:
        [B] nats per cell.

    Raises:
        ValueError: for another `kl`.
    """
    if kl == "analytic":
        return terms.kl_z.mean(axis=0)
    if kl == "sampled":
        return (terms.log_qz - terms.log_pz).mean(axis=0)
    raise ValueError(
        f"found kl={kl!r}, expected 'analytic' or 'sampled', choose one of these"
    )


def elbo_bound(terms: Terms, kl: str = "analytic") -> Array:
    """The evidence lower bound E_q[log p(x|z)] - KL(q(z|x) || p(z)).

    Args:
        terms: of S samples, over which log p(x|z) is averaged.
        kl: as in `kl_divergence`.

    Returns:
        [B] nats per cell.
    """
    return terms.log_px.mean(axis=0) - kl_divergence(terms, kl)


def importance_weighted_bound(terms: Terms) -> Array:
    """The bound of [1]: log 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x).

    Args:
        terms: of S samples.

    Returns:
        [B] nats per cell.
    """
    return _weighted(terms, 1.0)


def _weighted(terms: Terms, kl_weight: float | Array) -> Array:
    # log w_s = log p(x|z_s) + beta [log p(z_s) - log q(z_s|x)]
    log_weight = terms.log_px + kl_weight * (terms.log_pz - terms.log_qz)
    n_samples = log_weight.shape[0]
    return jax.nn.logsumexp(log_weight, axis=0) - jnp.log(n_samples)


class Objective(NamedTuple):
    """What training minimises.

    Attributes:
        n_samples: samples S of the posterior that it asks for.
        loss: (terms, KL weight) -> [B].
    """

    n_samples: int
    loss: Callable[[Terms, float | Array], Array]


def elbo(*, kl: str = "analytic", free_nats: float = 0.0) -> Objective:
    """Minimise -E_q[log p(x|z)] + beta max(KL, free_nats), with one sample.

    Args:
        kl: "analytic" or "sampled".
        free_nats: KL of a cell, in nats over all latent dimensions, that costs nothing
            ([2]; theirs is per dimension and averaged over a batch).

    Returns:
        An objective.

    Raises:
        ValueError: for negative free nats or another `kl`.
    """
    if free_nats < 0 or kl not in ("analytic", "sampled"):
        raise ValueError(
            f"found free_nats={free_nats} and kl={kl!r}, expected free_nats of at "
            "least 0 and kl 'analytic' or 'sampled', change them"
        )

    def loss(terms: Terms, kl_weight: float | Array) -> Array:
        divergence = kl_divergence(terms, kl)
        if free_nats > 0:
            divergence = jnp.maximum(divergence, free_nats)
        return kl_weight * divergence - terms.log_px.mean(axis=0)

    return Objective(n_samples=1, loss=loss)


def importance_weighted(n_samples: int) -> Objective:
    """Minimise the negative bound of [1]; the KL weight acts inside the weights.

    Args:
        n_samples: S, at least 1.

    Returns:
        An objective.

    Raises:
        ValueError: if S is below 1.
    """
    if n_samples < 1:
        raise ValueError(
            f"found n_samples={n_samples}, expected at least 1, draw more samples"
        )
    return Objective(n_samples, lambda terms, kl_weight: -_weighted(terms, kl_weight))
