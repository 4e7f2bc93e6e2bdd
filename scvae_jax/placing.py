"""Components of a mixture and cells: where they start, and how many cells each has.

Cells are encoded a fixed number at a time, in one program.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches, clusters
from scvae_jax.batches import CellData
from scvae_jax.models import MAX_DEPARTURE, Model

Array = jax.Array

# cells that are encoded at a time: what they fill stays in a CPU's cache
N_ENCODED = 128


def place_clusters(model: Model, params: Any, cells: CellData, seed: int) -> Any:
    """Place the components of a mixture on the latents of cells.

    Args:
        model: a mixture.
        params: its parameters, those that it shares with its VAE trained.
        cells: training cells.
        seed: of the starts.

    Returns:
        Params with "prior" placed and, where a network gives q(y|x), fitted to it.
    """
    mean, variance, hidden = encode_cells(model, params, cells)
    prior = clusters.place(
        params["prior"], np.asarray(mean), np.asarray(variance), seed, MAX_DEPARTURE
    )
    params = params | {"prior": prior}
    if "clusters" in params:
        target = jnp.exp(model.infer(params, mean))
        layer = jax.jit(clusters.fit_logits)(
            params["clusters"]["logits"], hidden, target
        )
        params |= {"clusters": params["clusters"] | {"logits": layer}}
    return params


def encode_cells(
    model: Model, params: Any, cells: CellData
) -> tuple[Array, Array, Array]:
    """Encode cells, N_ENCODED at a time.

    Args:
        model: a VAE or a mixture.
        params: its parameters.
        cells: n of them, on the device.

    Returns:
        Mean and variance [n, L] of q(z|x) of the VAE, and the last hidden layer
        [n, size] of the encoder.
    """
    positions, n_slots = batches.in_order(cells, N_ENCODED)
    rows = _encode_batches(model, n_slots, params, cells, positions)
    n_cells = cells.start.shape[0]
    return tuple(row.reshape(-1, row.shape[-1])[:n_cells] for row in rows)


@partial(jax.jit, static_argnums=(0, 1))
def _encode_batches(
    model: Model, n_slots: int, params: Any, cells: CellData, positions: tuple
) -> tuple[Array, Array, Array]:
    def one(position: tuple[Array, Array]):
        n_genes = model.modalities[0].n_features
        batch = batches.cut(cells, *position, n_genes, n_slots)
        q, hidden = model.hidden(params, batch)
        return q.mean(), q.variance(), hidden

    return jax.lax.map(one, positions)


def cluster_sizes(model: Model, params: Any, cells: CellData) -> np.ndarray:
    """Count the cells that each cluster has for its own.

    Args:
        model: a mixture.
        params: its parameters.
        cells: n of them, on the device.

    Returns:
        Their number [K].
    """
    positions, n_slots = batches.in_order(cells, N_ENCODED)
    return np.asarray(_count(model, n_slots, params, cells, positions)).astype(int)


@partial(jax.jit, static_argnums=(0, 1))
def _count(
    model: Model, n_slots: int, params: Any, cells: CellData, positions: tuple
) -> Array:
    def one(position: tuple[Array, Array]):
        n_genes = model.modalities[0].n_features
        batch = batches.cut(cells, *position, n_genes, n_slots)
        r = model.assign(params, model.encode(params, batch))
        mine = jax.nn.one_hot(r.argmax(axis=-1), model.n_clusters)
        return (mine * batch.weight[:, None]).sum(axis=0)

    return jax.lax.map(one, positions).sum(axis=0)
