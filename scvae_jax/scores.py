"""Agreement of clusters with labels, and with each other. No jax."""

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from scvae_jax.checks import InputError, listing


def expect_scikit_learn() -> None:
    """Fail before the work and not after it.

    Raises:
        ImportError: without scikit-learn.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            "found no scikit-learn, expected it for k-means and scores, "
            "pip install 'scvae_jax[analysis]'"
        )


def kmeans(latent: np.ndarray, n_clusters: int, seed: int = 0) -> np.ndarray:
    """k-means with 10 starts.

    Args:
        latent: [n, L].
        n_clusters: their number.
        seed: of the starts.

    Returns:
        [n] integer clusters, 0 the largest.

    Raises:
        ImportError: without scikit-learn.
        InputError: for more clusters than cells.
    """
    expect_scikit_learn()
    from sklearn.cluster import KMeans

    if n_clusters > len(latent):
        raise InputError(
            f"found {n_clusters} clusters for {len(latent)} cells, expected fewer "
            "clusters than cells, ask for fewer"
        )
    codes = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(latent)
    rank = np.argsort(np.argsort(-np.bincount(codes, minlength=n_clusters)))
    return rank[codes]


def label_scores(codes: np.ndarray, labels: np.ndarray, key: str) -> dict[str, Any]:
    """Agreement of clusters with labels.

    Args:
        codes: [n] clusters.
        labels: [n] strings.
        key: their name, for messages.

    Returns:
        ari (adjusted Rand index), nmi (normalised mutual information), n_labels,
        n_scored.

    Raises:
        ImportError: without scikit-learn.
        InputError: with fewer than two labels, for which nothing is defined.
    """
    kinds = expect_labels(labels, f"in {key!r} among the cells")
    ari = rand_index(labels, codes)
    from sklearn import metrics

    return {
        "ari": ari,
        "nmi": float(metrics.normalized_mutual_info_score(labels, codes)),
        "n_labels": len(kinds),
        "n_scored": len(labels),
    }


def against_labels(
    codes: np.ndarray | None,
    latent: np.ndarray,
    labels: np.ndarray,
    key: str,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Agreement of own clusters with labels, or of k-means with as many clusters.

    Args:
        codes: [n] own clusters; None: there are none.
        latent: [n, L] what k-means looks at.
        labels: [n] strings.
        key: their name, for messages.
        seed: of k-means.

    Returns:
        [n] the clusters, and their `label_scores` with `oracle_k`, whether they were
        told the number of labels.

    Raises:
        ImportError: without scikit-learn.
        InputError: with fewer than two labels.
    """
    oracle_k = codes is None
    if oracle_k:
        codes = kmeans(latent, len(np.unique(labels)), seed)
    return codes, label_scores(codes, labels, key) | {"oracle_k": oracle_k}


def rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """Adjusted Rand index of two partitions [n]: 1 where equal, 0 as by chance.

    Raises:
        ImportError: without scikit-learn.
    """
    expect_scikit_learn()
    from sklearn import metrics

    return float(metrics.adjusted_rand_score(one, other))


def between(partitions: Sequence[np.ndarray]) -> list[float]:
    """Adjusted Rand index of each pair of partitions [n].

    Two with all cells in one cluster agree on nothing, and are left out.

    Raises:
        ImportError: without scikit-learn.
    """
    return [
        rand_index(one, other)
        for one, other in itertools.combinations(partitions, 2)
        if max(len(np.unique(one)), len(np.unique(other))) > 1
    ]


def expect_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """The kinds of labels there are.

    Args:
        labels: [n] strings.
        where: they were found, for messages.

    Returns:
        [n_labels] each once.

    Raises:
        InputError: with fewer than two, for which no agreement is defined.
    """
    kinds = np.unique(labels)
    if len(kinds) < 2:
        raise InputError(
            f"found {len(kinds)} label {where} ({listing(kinds)}), expected two or "
            "more, as agreement is undefined, choose another column"
        )
    return kinds
