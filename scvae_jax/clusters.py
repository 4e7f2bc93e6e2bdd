"""Clusters of a mixture: where they start, their order, and how fits are matched."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # its parts are loaded where they are used

from scvae_jax.latents import MAX_DEPARTURE

Array = jax.Array
Tree = Any

# the least share of cells with which a cluster counts as alive
ALIVE = 0.01
# cells that suffice to place components
MOST_CELLS = 20_000
N_STARTS = 20
N_ITERATIONS = 100
# of Adam, over all cells at once, to fit the layer that gives q(y|x)
LOGIT_STEPS = 300
# gain of the bound, nats per cell, below which the start has settled
TOLERANCE = 1e-5
# share of the variance of q(z|x) that counts as spread while a start is fitted
UNCERTAIN = 0.8


class Start(NamedTuple):
    """A mixture of normals with one scale, fitted to the posteriors of cells.

    Attributes:
        mean: [K, L].
        variance: of every dimension of every component.
        share: [K] weights.
        bound: what the fit maximised, nats per cell.
    """

    mean: np.ndarray
    variance: float
    share: np.ndarray
    bound: float


def mixture_start(
    mean: np.ndarray, variance: np.ndarray, n_clusters: int, seed: int
) -> Start:
    """Expectation-maximisation from k-means, the best of 20 starts.

    k-means alone cuts large clusters up and merges small ones; a mixture with weights
    does not. For posteriors N(m, diag v) of cells::

        r[n, k] ~ share_k exp(-|m_n - mean_k|^2 / (2 variance))
        mean_k  = sum_n r m / sum_n r,   variance = E[|m - mean|^2 + u sum_l v] / L

    With u = 1 this is the prior that is trained next, but where counts are few it
    merges clusters that training can tell apart; with u = 0 it is close to k-means. The
    fit takes u = 0.8, and the variance that is returned is that of u = 1.

    Args:
        mean: [n, L] of q(z|x).
        variance: [n, L] of q(z|x).
        n_clusters: K, at most n.
        seed: of the starts.

    Returns:
        The mixture with the highest bound.
    """
    random = np.random.default_rng(seed)
    if len(mean) > MOST_CELLS:
        part = random.choice(len(mean), MOST_CELLS, replace=False)
        mean, variance = mean[part], variance[part]
    mean = mean.astype(np.float64)
    uncertain = float(variance.sum(axis=1, dtype=np.float64).mean())
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        # with more clusters than cells that differ some are empty: see _maximise
        warnings.simplefilter("ignore", UserWarning)
        found = [
            scipy.cluster.vq.kmeans2(
                mean, n_clusters, iter=N_ITERATIONS, minit="++", rng=random
            )
            for _ in range(N_STARTS)
        ]
    starts = [
        _maximise(mean, uncertain, centres, np.eye(n_clusters)[code])
        for centres, code in found
    ]
    return max(starts, key=lambda start: start.bound)


def _maximise(
    mean: np.ndarray, uncertain: float, centres: np.ndarray, r: np.ndarray
) -> Start:
    """Expectation-maximisation from centres [K, L] and responsibilities [n, K]."""
    (n, n_latent), n_clusters = mean.shape, len(centres)
    bound, old = -np.inf, -np.inf
    for _ in range(N_ITERATIONS):
        size = r.sum(axis=0)
        # a cluster without cells stays where it is
        found = r.T @ mean / np.maximum(size, 1e-12)[:, None]
        centres = np.where(size[:, None] > 1e-6, found, centres)
        share = (size + 1.0) / (n + n_clusters)
        square = distances(mean, centres)
        within = (r * square).sum() / n
        spread = (within + UNCERTAIN * uncertain) / n_latent
        logits = np.log(share) - 0.5 * square / spread
        total = scipy.special.logsumexp(logits, axis=1)
        r = np.exp(logits - total[:, None])
        constant = n_latent * np.log(2 * np.pi * spread)
        constant += UNCERTAIN * uncertain / spread
        old, bound = bound, total.mean() - 0.5 * constant
        if bound - old < TOLERANCE:
            break
    return Start(centres, (within + uncertain) / n_latent, share, bound)


def distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [n, K] of points [n, L] from centres [K, L]."""
    squares = np.square(points).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    return np.maximum(squares - 2.0 * points @ centres.T, 0.0)


def place(
    prior: dict[str, Array],
    mean: np.ndarray,
    variance: np.ndarray,
    seed: int,
) -> dict[str, Array]:
    """Parameters of a mixture prior from the posteriors of cells.

    The components are those of `mixture_start`; those with a scale of their own get the
    second moments of q(z|x) of their cells about them, and of weights that are given
    the largest goes to the one with most cells.

    Args:
        prior: params["prior"] of a mixture, whose entries say what there is to place.
        mean: [n, L] of q(z|x).
        variance: [n, L] of q(z|x).
        seed: of the starts.

    Returns:
        The same entries, placed.
    """
    n_clusters, n_latent = prior["mean"].shape
    start = mixture_start(mean, variance, n_clusters, seed)
    placed = {}
    if "log_weights" in prior:
        placed["log_weights"] = np.asarray(prior["log_weights"])
        order = np.empty(n_clusters, int)
        order[np.argsort(-placed["log_weights"])] = np.argsort(-start.share)
        start = start._replace(mean=start.mean[order], share=start.share[order])
    shared = start.variance
    placed["mean"] = start.mean
    placed["log_scale"] = np.full((1, 1), 0.5 * np.log(shared))
    if "departure" in prior:
        logits = np.log(start.share) - 0.5 * distances(mean, start.mean) / shared
        code = logits.argmax(axis=1)
        centred = mean - start.mean[code]
        # a few cells' worth of the shared scale, so that a small cluster has a scale
        weight = n_latent + 1.0
        factors = np.empty((n_clusters, n_latent, n_latent))
        for k in range(n_clusters):
            mine = code == k
            own = centred[mine].T @ centred[mine] + np.diag(variance[mine].sum(axis=0))
            own = (own + weight * shared * np.eye(n_latent)) / (mine.sum() + weight)
            if "correlation" not in prior:
                own = np.diag(np.diag(own))
            factors[k] = np.linalg.cholesky(own)
        diagonal = np.diagonal(factors, axis1=1, axis2=2)
        ratio = (np.log(diagonal) - 0.5 * np.log(shared)) / MAX_DEPARTURE
        held = np.clip(ratio, -0.95, 0.95)
        placed["departure"] = np.arctanh(held)
        if "correlation" in prior:
            # a column as far as its diagonal, so that axes keep their direction
            columns = np.exp(MAX_DEPARTURE * (held - ratio))[:, None, :]
            placed["correlation"] = np.tril(factors, -1) * columns
    if "logits" in prior:
        placed["logits"] = np.log(start.share)
    return {
        name: jnp.asarray(value, prior[name].dtype) for name, value in placed.items()
    }


def fit_logits(layer: Tree, hidden: Array, target: Array) -> Tree:
    """Fit the linear layer that gives q(y|x) to responsibilities, by cross-entropy.

    Args:
        layer: its kernel [n, K] and bias [K].
        hidden: [cells, n] what it reads.
        target: [cells, K] responsibilities.

    Returns:
        The layer, fitted.
    """
    optimizer = optax.adam(0.05)

    def loss(layer: Tree) -> Array:
        logits = hidden @ layer["kernel"] + layer["bias"][None]
        # a little weight decay: separable clusters would drive the logits to infinity
        penalty = 1e-4 * jnp.square(layer["kernel"]).sum()
        return optax.losses.softmax_cross_entropy(logits, target).mean() + penalty

    def step(carry, _):
        layer, state = carry
        updates, state = optimizer.update(jax.grad(loss)(layer), state)
        return (optax.apply_updates(layer, updates), state), None

    start = (jax.tree.map(jnp.zeros_like, layer), optimizer.init(layer))
    return jax.lax.scan(step, start, length=LOGIT_STEPS)[0][0]


def reorder(params: Tree, order: np.ndarray) -> Tree:
    """Number the clusters anew: cluster order[k] becomes cluster k.

    Args:
        params: of a mixture.
        order: [K] permutation.

    Returns:
        Params of the same model.
    """
    prior = {
        name: value if name == "log_scale" else value[order]
        for name, value in params["prior"].items()
    }
    params = params | {"prior": prior}
    if "clusters" in params:
        old = params["clusters"]
        logits = {name: value[..., order] for name, value in old["logits"].items()}
        rest = {
            name: value[order] if name == "kernel" else value
            for name, value in old.items()
        }
        params |= {"clusters": rest | {"logits": logits}}
    return params


def matched(first: np.ndarray, other: np.ndarray, n_clusters: int) -> np.ndarray:
    """How to number the clusters of a fit so that they are those of another one.

    Clusters are matched one to one, so that as many cells as possible agree.

    Args:
        first: [n] the cluster of each cell in the fit that sets the numbers.
        other: [n] that in the one to be numbered anew.
        n_clusters: K of both.

    Returns:
        [K] for `reorder`: cluster order[k] of the other one is cluster k of the first.
    """
    table = np.zeros((n_clusters, n_clusters))
    np.add.at(table, (first, other), 1)
    return scipy.optimize.linear_sum_assignment(-table)[1]


def clusters_used(codes: np.ndarray) -> int:
    """How many clusters have at least 1 % of the cells; `codes` [n] are theirs."""
    return int((np.bincount(codes) / len(codes) >= ALIVE).sum())


def effective_number(share: Array) -> Array:
    """How many clusters are in use: exp of the entropy of their shares [K]."""
    return jnp.exp(jax.scipy.special.entr(share).sum())
