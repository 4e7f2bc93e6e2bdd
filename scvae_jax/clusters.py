"""Clusters of a mixture: where they start, their order, and agreement between fits."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.cluster.vq
import scipy.optimize

Array = jax.Array
Tree = Any

# cells that suffice to place components
MOST_CELLS = 50_000
N_STARTS = 10
N_ITERATIONS = 100


def kmeans_start(
    latent: np.ndarray, n_clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """k-means with k-means++ starts, the best of ten.

    Args:
        latent: [n, L].
        n_clusters: K, at most n.
        seed: of the starts.

    Returns:
        Centres [K, L] and the cluster of each row [n].
    """
    random = np.random.default_rng(seed)
    part = latent
    if len(latent) > MOST_CELLS:
        part = latent[random.choice(len(latent), MOST_CELLS, replace=False)]
    part = part.astype(np.float64)
    best, least = None, np.inf
    for _ in range(N_STARTS):
        centres, _ = scipy.cluster.vq.kmeans2(
            part, n_clusters, iter=N_ITERATIONS, minit="++", rng=random
        )
        spread = np.square(scipy.cluster.vq.vq(part, centres)[1]).sum()
        if spread < least:
            best, least = centres, spread
    return best, scipy.cluster.vq.vq(latent.astype(np.float64), best)[0]


def place(
    prior: dict[str, Array],
    mean: np.ndarray,
    variance: np.ndarray,
    seed: int,
    bound: float,
) -> dict[str, Array]:
    """Parameters of a mixture prior from the posteriors of cells.

    The components get the means of k-means clusters, and the second moments of
    q(z|x) of their cells about them.

    Args:
        prior: params["prior"] of a mixture, whose entries say what there is to place.
        mean: [n, L] of q(z|x).
        variance: [n, L] of q(z|x).
        seed: of k-means.
        bound: how far, in log, a scale may depart from the one that all share.

    Returns:
        The same entries, placed.
    """
    n_clusters, n_latent = prior["mean"].shape
    centres, code = kmeans_start(mean, n_clusters, seed)
    centred = mean - centres[code]
    shared = np.mean(np.square(centred) + variance)
    placed = {"mean": centres, "log_scale": np.full((1, 1), 0.5 * np.log(shared))}
    size = np.bincount(code, minlength=n_clusters)
    # a few cells' worth of the shared scale, so that a small cluster has a scale
    weight = n_latent + 1.0
    if "departure" in prior:
        factors = np.empty((n_clusters, n_latent, n_latent))
        for k in range(n_clusters):
            own = centred[code == k].T @ centred[code == k]
            own += np.diag(variance[code == k].sum(axis=0))
            own = (own + weight * shared * np.eye(n_latent)) / (size[k] + weight)
            if "correlation" not in prior:
                own = np.diag(np.diag(own))
            factors[k] = np.linalg.cholesky(own)
        diagonal = np.diagonal(factors, axis1=1, axis2=2)
        ratio = (np.log(diagonal) - 0.5 * np.log(shared)) / bound
        placed["departure"] = np.arctanh(np.clip(ratio, -0.95, 0.95))
        if "correlation" in prior:
            placed["correlation"] = np.tril(factors, -1)
    if "logits" in prior:
        placed["logits"] = np.log((size + 1.0) / (len(code) + n_clusters))
    return {name: jnp.asarray(value, jnp.float32) for name, value in placed.items()}


def fit_logits(layer: Tree, hidden: Array, target: Array, n_steps: int = 300) -> Tree:
    """Fit the linear layer that gives q(y|x) to responsibilities, by cross-entropy.

    Args:
        layer: its kernel [n, K] and bias [K].
        hidden: [cells, n] what it reads.
        target: [cells, K] responsibilities.
        n_steps: of Adam, over all cells at once.

    Returns:
        The layer, fitted.
    """
    optimizer = optax.adam(0.05)
    # every so many cells, as the first ones may be of one kind
    stride = -(-len(hidden) // MOST_CELLS)
    hidden, target = hidden[::stride], target[::stride]

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
    return jax.lax.scan(step, start, length=n_steps)[0][0]


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
        cluster = {"kernel": old["cluster"]["kernel"][order]}
        params |= {"clusters": old | {"logits": logits, "cluster": cluster}}
    return params


def agreement(codes: Sequence[np.ndarray]) -> np.ndarray:
    """For each cell the share of fits that put it where the first one does.

    Clusters of each fit are matched to those of the first, one to one, so that as many
    cells as possible agree.

    Args:
        codes: for each fit the cluster of each cell, [n] integers.

    Returns:
        [n], 1 where all fits agree.
    """
    first = codes[0]
    agreed = np.ones(len(first))
    for other in codes[1:]:
        table = np.zeros((first.max() + 1, other.max() + 1))
        np.add.at(table, (first, other), 1)
        rows, columns = scipy.optimize.linear_sum_assignment(-table)
        match = np.full(other.max() + 1, -1)
        match[columns] = rows
        agreed += match[other] == first
    return agreed / len(codes)
