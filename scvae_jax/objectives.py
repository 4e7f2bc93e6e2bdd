"""Bounds on log p(x), and what is minimised in training, from a model's terms.

Axes: S samples of the posterior, B cells, K clusters. Bounds are in nats per cell, and
higher is better; they hold at KL weight 1 alone, so objectives return a loss, not a
bound.

References:
    [1] Burda et al., Importance weighted autoencoders, 2016.
    [2] Kingma et al., Improved variational inference with inverse autoregressive flow,
        2016 (free nats).
    [3] Gronbech et al., scVAE, Bioinformatics 36(16):4415, 2020 (the mixture's ELBO).
    [4] Roeder et al., Sticking the landing, 2017.
    [5] Tucker et al., Doubly reparameterized gradient estimators for Monte Carlo
        objectives, 2019.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

KINDS_OF_KL = ("analytic", "sampled")
GRADIENTS = ("total", "path")


class Terms(NamedTuple):
    """What a model says of samples z ~ q.

    Without clusters every array but z is [S, B]. With clusters y there is a last axis
    of K, or of 1 where nothing depends on y.

    Attributes:
        z: [S, B, L], or [S, B, K, L] where each cluster has samples of its own.
        log_px: log p(x|z).
        log_pz: log p(z), or log p(z|y).
        log_qz: log q(z|x), or log q(z|x,y).
        kl_z: KL(q(z|x) || p(z)), or that to p(z|y), in as closed a form as there is.
        log_py: log p(y); None without clusters.
        log_qy: log q(y|x) of a network; None where y is inferred from z exactly,
            q(y|x,z) = p(y|z).
        log_qz_path: log q(z|x) with the parameters of q held fixed, so that it has a
            slope in z alone; for gradient="path", like `tag`.
        tag: [S, B, 2] of `gated`, or [S, B, K, 2].
    """

    z: Array
    log_px: Array
    log_pz: Array
    log_qz: Array
    kl_z: Array
    log_py: Array | None = None
    log_qy: Array | None = None
    log_qz_path: Array | None = None
    tag: Array | None = None


class Parts(NamedTuple):
    """Parts of the ELBO, [B] nats each: elbo = log_likelihood - kl_z - kl_y.

    Attributes:
        log_likelihood: E_q[log p(x|z)].
        kl_z: E_q(y)[KL(q(z|x,y) || p(z|y))]; KL(q(z|x) || p(z)) without clusters.
        kl_y: KL(q(y) || p(y)), 0 without clusters.
    """

    log_likelihood: Array
    kl_z: Array
    kl_y: Array

    @property
    def elbo(self) -> Array:
        """The evidence lower bound, nats per cell."""
        return self.log_likelihood - self.kl_z - self.kl_y


def _with_clusters(terms: Terms) -> Terms:
    """Terms of one cluster where the model has none."""
    expected = 2 if terms.log_py is None else 3
    if terms.log_px.ndim != expected:
        raise ValueError(
            f"found log_px of shape {terms.log_px.shape}, expected an axis of samples "
            "before that of cells (and of clusters), take terms from model.terms(...), "
            "or give those of one sample an axis ([None])"
        )
    if terms.log_py is not None:
        return terms
    values = (terms.log_px, terms.log_pz, terms.log_qz, terms.kl_z)
    values = [value[..., None] for value in values]
    return Terms(terms.z, *values, log_py=jnp.zeros_like(values[0]))


@jax.custom_vjp
def gated(z: Array) -> tuple[Array, Array]:
    """Samples whose slope a loss can scale without knowing how it is scaled itself.

    Args:
        z: [..., L].

    Returns:
        z, and a tag of zeros [..., 2]. Of a loss with slopes u and v in the two entries
        of the tag, the slope that passes through z is multiplied by v / u, or by 1
        where u is 0.
    """
    return z, jnp.zeros((*z.shape[:-1], 2), z.dtype)


def _gated_backward(_: None, slopes: tuple[Array, Array]) -> tuple[Array]:
    of_z, (u, v) = slopes[0], jnp.moveaxis(slopes[1], -1, 0)
    factor = jnp.where(u == 0, 1.0, v / jnp.where(u == 0, 1.0, u))
    return (of_z * factor[..., None],)


gated.defvjp(lambda z: (gated(z), None), _gated_backward)


def _along_path(terms: Terms) -> Terms:
    """The same values, without the slope that q(z|x) has in its own parameters."""
    if terms.log_qz_path is None or terms.tag is None:
        raise ValueError(
            "found terms without log_qz_path or tag, expected those of a training step "
            "for gradient='path', take them from model.terms(..., train=True)"
        )
    return terms._replace(log_qz=terms.log_qz_path)


def _expect_one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(
            f"found {name}={value!r}, expected {' or '.join(map(repr, known))}, choose "
            "one of these"
        )


def log_responsibilities(terms: Terms) -> Array:
    """Log q(y|x), or where y is inferred from z, log p(y|z) of each sample.

    Args:
        terms: of S samples.

    Returns:
        [S, B, K]; K is 1 without clusters.

    Raises:
        ValueError: for terms without the axis of samples.
    """
    terms = _with_clusters(terms)
    if terms.log_qy is not None:
        return terms.log_qy
    # r_y(z) = p(y) p(z|y) / sum_k p(k) p(z|k)
    return jax.nn.log_softmax(terms.log_py + terms.log_pz, axis=-1)


def elbo_parts(terms: Terms, kl: str = "analytic") -> Parts:
    """Parts of the evidence lower bound; the sum over clusters is exact ([3]).

    Args:
        terms: of S samples, over which each part is averaged.
        kl: "analytic", or "sampled": kl_z is the mean of log q(z|x) - log p(z).

    Returns:
        The parts, [B] nats per cell each.

    Raises:
        ValueError: for another `kl`, or terms without the axis of samples.
    """
    _expect_one_of("kl", kl, KINDS_OF_KL)
    log_qy = log_responsibilities(terms)
    terms = _with_clusters(terms)
    kl_z = terms.kl_z if kl == "analytic" else terms.log_qz - terms.log_pz

    def expected(value: Array) -> Array:
        # 1/S sum_s sum_y q(y) value, where q(y) sums to one if the value knows no y
        if value.shape[-1] == 1:
            return value[..., 0].mean(axis=0)
        return (jnp.exp(log_qy) * value).sum(axis=-1).mean(axis=0)

    return Parts(
        expected(terms.log_px), expected(kl_z), expected(log_qy - terms.log_py)
    )


def importance_weighted_bound(terms: Terms) -> Array:
    """The bound of [1]: log 1/S sum_s sum_y p(x|z_s) p(z_s|y) p(y) / q(z_s|x,y).

    Args:
        terms: of S samples; with samples of their own for each cluster, S K decodes.

    Returns:
        [B] nats per cell.

    Raises:
        ValueError: for terms without the axis of samples.
    """
    log_weight = _log_weight(terms, 1.0)
    return jax.nn.logsumexp(log_weight, axis=(0, 2)) - jnp.log(len(log_weight))


def _log_weight(terms: Terms, kl_weight: float | Array) -> Array:
    """[S, B, K]: log p(x|z) + log p(y) + beta [log p(z|y) - log q(z|x,y)].

    Where y is inferred from z: log p(x|z) + log p(y|z) + beta [log p(z) - log q(z|x)],
    with log p(z) = log sum_y p(y) p(z|y); the same for a beta of 1.
    """
    log_r = log_responsibilities(terms)
    inferred = terms.log_qy is None
    terms = _with_clusters(terms)
    log_py, log_pz = terms.log_py, terms.log_pz
    if inferred:
        log_pz = jax.nn.logsumexp(log_py + log_pz, axis=-1, keepdims=True)
        log_py = log_r
    return terms.log_px + log_py + kl_weight * (log_pz - terms.log_qz)


class Objective(NamedTuple):
    """What training minimises.

    Attributes:
        n_samples: samples S of the posterior that it asks for.
        loss: (terms, KL weight) -> [B].
    """

    n_samples: int
    loss: Callable[[Terms, float | Array], Array]


def elbo(
    *,
    kl: str = "analytic",
    free_nats: float = 0.0,
    free_nats_y: float = 0.0,
    gradient: str = "total",
) -> Objective:
    """Minimise -E_q[log p(x|z)] + beta (max(KL_z, free) + max(KL_y, free_y)).

    Args:
        kl: "analytic" or "sampled".
        free_nats: KL of z, in nats of a cell over all latent dimensions, that costs
            nothing ([2]; theirs is per dimension and averaged over a batch). Where the
            KL is sampled, as that of a shared posterior always is, of each sample.
        free_nats_y: KL of y that costs nothing.
        gradient: "total", or with kl="sampled" "path": without the part of the
            encoder's gradient that is 0 in the mean ([4]).

    Returns:
        An objective, of one sample.

    Raises:
        ValueError: for negative free nats, another `kl` or `gradient`, or a path with
            another KL.
    """
    _expect_one_of("gradient", gradient, GRADIENTS)
    _expect_one_of("kl", kl, KINDS_OF_KL)
    free = (free_nats, free_nats_y)
    # a traced value, of one of many fits at once, was checked before
    known = [value for value in free if not isinstance(value, jax.core.Tracer)]
    if min(known, default=0) < 0:
        raise ValueError(
            f"found free_nats={free_nats} and free_nats_y={free_nats_y}, expected at "
            "least 0, change them"
        )
    if gradient == "path" and (kl != "sampled" or known != [0.0, 0.0]):
        raise ValueError(
            f"found gradient='path' with kl={kl!r} and free nats of {free}, expected "
            "kl='sampled' and none, change them"
        )

    def loss(terms: Terms, kl_weight: float | Array) -> Array:
        parts = elbo_parts(_along_path(terms) if gradient == "path" else terms, kl)
        # a sampled KL may be negative, so none is not the same as zero free nats
        divergence = sum(
            jnp.where(f > 0, jnp.maximum(value, f), value)
            for value, f in zip(parts[1:], free, strict=True)
        )
        return kl_weight * divergence - parts.log_likelihood

    return Objective(n_samples=1, loss=loss)


def importance_weighted(n_samples: int, *, gradient: str = "total") -> Objective:
    """Minimise the negative bound of [1]; the KL weight acts inside the weights.

    Where a network gives q(y|x), which does not occur in the bound, it is fitted to
    the responsibilities of the weights, r_y = sum_s w_sy / sum_sk w_sk.

    With v_s = w_s / sum_k w_k, the share of a sample, the encoder's gradient is

        total:  sum_s v_s [d log w_s / dz dz - beta d log q(z_s|x)]
        path:   sum_s v_s [1 - beta (1 - v_s)] d log w_s / dz dz

    with d over the encoder's parameters. Both have the same mean ([5], there for a beta
    of 1), and the second less variance the more samples there are.

    Args:
        n_samples: S, at least 1.
        gradient: "total" or "path".

    Returns:
        An objective.

    Raises:
        ValueError: if S is below 1, or for another `gradient`.
    """
    _expect_one_of("gradient", gradient, GRADIENTS)
    if n_samples < 1:
        raise ValueError(
            f"found n_samples={n_samples}, expected at least 1, draw more samples"
        )

    def loss(terms: Terms, kl_weight: float | Array) -> Array:
        if gradient == "path":
            terms = _along_path(terms)
        log_weight = _log_weight(terms, kl_weight)
        per_cluster = jax.nn.logsumexp(log_weight, axis=0)
        total = jax.nn.logsumexp(per_cluster, axis=-1)
        loss = jnp.log(len(log_weight)) - total
        if gradient == "path":
            share = jax.lax.stop_gradient(jnp.exp(log_weight - total[None, :, None]))
            # one z for all clusters where y is inferred from it
            share = share.sum(-1) if terms.tag.ndim == 3 else share
            factor = 1.0 - kl_weight * (1.0 - share)
            slopes = jnp.stack([jnp.ones_like(factor), factor], axis=-1)
            axes = (0, *range(2, slopes.ndim))
            loss += (slopes * terms.tag).sum(axis=axes)
        if terms.log_qy is None:
            return loss
        r = jax.lax.stop_gradient(jax.nn.softmax(per_cluster, axis=-1))
        # worth nothing in value, so that what is reported stays the bound's loss
        misfit = -(r * terms.log_qy.mean(axis=0)).sum(axis=-1)
        return loss + misfit - jax.lax.stop_gradient(misfit)

    return Objective(n_samples, loss)
