"""Components of a mixture and cells: where they start, and which cells each has.

Cells are encoded a fixed number at a time, in one program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches, clusters
from scvae_jax.batches import Batch, CellData
from scvae_jax.models import Model

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
    mean, variance = encode_cells(model, params, cells)
    prior = clusters.place(
        params["prior"], np.asarray(mean), np.asarray(variance), seed
    )
    params = params | {"prior": prior}
    if "clusters" in params:
        # every so many cells, as the first ones may be of one kind
        stride = -(-len(mean) // clusters.MOST_CELLS)
        names = ("start", "length", "depth", "categorical")
        some = {name: getattr(cells, name)[::stride] for name in names}
        hidden = _of_cells(_hidden, model, params, cells._replace(**some))
        target = jnp.exp(model.infer(params, mean[::stride]))
        layer = jax.jit(clusters.fit_logits)(
            params["clusters"]["logits"], hidden, target
        )
        params |= {"clusters": params["clusters"] | {"logits": layer}}
    return params


def encode_cells(model: Model, params: Any, cells: CellData) -> tuple[Array, Array]:
    """Encode cells, N_ENCODED at a time.

    Args:
        model: a VAE or a mixture.
        params: its parameters.
        cells: n of them, on the device.

    Returns:
        Mean and variance [n, L] of q(z|x) of the VAE.
    """
    return _of_cells(_encoded, model, params, cells)


def cluster_codes(model: Model, params: Any, cells: CellData) -> np.ndarray:
    """The most probable cluster of each cell.

    Args:
        model: a mixture.
        params: its parameters.
        cells: n of them, on the device.

    Returns:
        [n] numbers of clusters.
    """
    return np.asarray(_of_cells(_code, model, params, cells))


def _encoded(model: Model, params: Any, batch: Batch) -> tuple[Array, Array]:
    q, _ = model.hidden(params, batch)
    return q.mean(), q.variance()


def _hidden(model: Model, params: Any, batch: Batch) -> Array:
    return model.hidden(params, batch)[1]


def _code(model: Model, params: Any, batch: Batch) -> Array:
    return model.assign(params, model.encode(params, batch)).argmax(axis=-1)


def _of_cells(function: Callable, model: Model, params: Any, cells: CellData) -> Any:
    """What a function (model, params, batch) -> [B, ...] says of each cell."""
    positions, n_slots = batches.in_order(cells, N_ENCODED)
    rows = _of_batches(function, model, n_slots, params, cells, positions)
    return batches.of_cells(rows, cells.start.shape[0])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batches(
    function: Callable,
    model: Model,
    n_slots: int,
    params: Any,
    cells: CellData,
    positions: tuple[Array, Array],
) -> Any:
    def one(position: tuple[Array, Array]):
        n_genes = model.modalities[0].n_features
        return function(model, params, batches.cut(cells, *position, n_genes, n_slots))

    return jax.lax.map(one, positions)
