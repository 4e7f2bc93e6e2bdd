"""Counts on the device in compressed sparse form, and batches cut from them there.

A batch has static shapes: its non-zero entries fill the first of `n_slots` slots, and
there are slots for the fullest batch of a run, so no count is ever dropped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from scvae_jax.config import InputError

Array = jax.Array


class Counts(NamedTuple):
    """One modality of a batch.

    Attributes:
        x: [B, G] float32.
        nonzero: (cell [N], gene [N]) addresses of the non-zero entries of x, those past
            the last one out of range; None: x is to be read in dense form.
        depth: [B] expected total of a cell, counts.
        observed: [B] 1 where the modality was measured, 0 where not; None: everywhere.
    """

    x: Array
    nonzero: tuple[Array, Array] | None
    depth: Array
    observed: Array | None = None


class Batch(NamedTuple):
    """What a model sees of B cells.

    Attributes:
        counts: one `Counts` per modality.
        categorical: [B, n_keys] integer codes of categorical covariates; the first is
            the batch of a cell.
        continuous: [B, n] covariates.
        label: [B] integer label, -1 where unknown.
        weight: [B] 1 for a cell, 0 for padding.
        cell: [B] index of a cell in its data set.
    """

    counts: tuple[Counts, ...]
    categorical: Array
    continuous: Array
    label: Array
    weight: Array
    cell: Array


class CellData(NamedTuple):
    """Cells on the device, compressed by rows: 4 bytes a non-zero where codes fit.

    Attributes:
        gene: [nnz] gene of each non-zero entry, 16 bits where they suffice.
        value: [nnz] its count, 16 bits where they suffice, else float32.
        start: [n] where a cell begins.
        length: [n] number of its non-zero entries.
        depth: [n] counts.
        categorical: [n, n_keys].
    """

    gene: Array
    value: Array
    start: Array
    length: Array
    depth: Array
    categorical: Array


def to_device(
    x: scipy.sparse.csr_matrix, depth: np.ndarray, categorical: np.ndarray
) -> CellData:
    """Put cells on the default device.

    Args:
        x: [n, G] in canonical form, without stored zeros.
        depth: [n] counts.
        categorical: [n, n_keys] codes.

    Returns:
        The cells.

    Raises:
        InputError: from 2^31 non-zero entries on.
    """
    if x.nnz >= 2**31:
        raise InputError(
            f"found {x.nnz} non-zero entries, expected fewer than 2^31, "
            "use fewer cells or genes"
        )
    whole = x.nnz == 0 or (
        x.data.min() >= 0
        and x.data.max() < 2**16
        and np.array_equal(x.data, np.floor(x.data))
    )
    # one entry at least, so that addresses have something to point at
    gene = x.indices if x.nnz else np.zeros(1, np.int32)
    value = x.data if x.nnz else np.zeros(1, np.float32)
    return CellData(
        gene=jnp.asarray(gene.astype(np.uint16 if x.shape[1] <= 2**16 else np.int32)),
        value=jnp.asarray(value.astype(np.uint16 if whole else np.float32)),
        start=jnp.asarray(x.indptr[:-1].astype(np.int32)),
        length=jnp.asarray(np.diff(x.indptr).astype(np.int32)),
        depth=jnp.asarray(depth.astype(np.float32)),
        categorical=jnp.asarray(categorical.astype(np.int32)),
    )


def n_slots(n_nonzero: int) -> int:
    """Slots for a batch of so many non-zero entries: the next multiple of 128."""
    return max(128, -(-n_nonzero // 128) * 128)


def cut(
    cells: CellData, index: Array, weight: Array, n_genes: int, n_slots: int
) -> Batch:
    """Cut a batch out of the cells, on the device.

    Args:
        cells: all cells.
        index: [B] the cells to take.
        weight: [B] 1 for a cell, 0 for padding.
        n_genes: G.
        n_slots: at least the non-zero entries of the batch, from `n_slots`.

    Returns:
        The batch.
    """
    batch_size = index.shape[0]
    length = jnp.where(weight > 0, cells.length[index], 0)
    end = jnp.cumsum(length)
    # slot s belongs to the first cell whose end lies past it; B for padding
    slot = jnp.arange(n_slots, dtype=jnp.int32)
    cell = jnp.searchsorted(end, slot, side="right").astype(jnp.int32)
    owner = jnp.minimum(cell, batch_size - 1)
    offset = cells.start[index] - (end - length)
    address = jnp.where(cell < batch_size, slot + offset[owner], 0)
    gene = cells.gene[address].astype(jnp.int32)
    value = cells.value[address].astype(jnp.float32)
    x = jnp.zeros((batch_size, n_genes), jnp.float32)
    x = x.at[cell, gene].set(value, mode="drop", unique_indices=True)
    return Batch(
        counts=(Counts(x=x, nonzero=(cell, gene), depth=cells.depth[index]),),
        categorical=cells.categorical[index],
        continuous=jnp.zeros((batch_size, 0), jnp.float32),
        label=jnp.full((batch_size,), -1, jnp.int32),
        weight=weight,
        cell=index,
    )


def dense_batch(
    x: Array, *, depth: Array | None = None, categorical: Array | None = None
) -> Batch:
    """A batch from a dense array, for models of one modality used without AnnData.

    Args:
        x: [B, G].
        depth: [B]; None: the totals of x, at least 1.
        categorical: [B, n_keys] codes; None for no covariates.

    Returns:
        The batch.
    """
    n = x.shape[0]
    x = jnp.asarray(x, jnp.float32)
    if depth is None:
        depth = jnp.maximum(x.sum(axis=-1), 1.0)
    if categorical is None:
        categorical = jnp.zeros((n, 0), jnp.int32)
    return Batch(
        counts=(Counts(x=x, nonzero=None, depth=depth),),
        categorical=categorical,
        continuous=jnp.zeros((n, 0), jnp.float32),
        label=jnp.full((n,), -1, jnp.int32),
        weight=jnp.ones((n,), jnp.float32),
        cell=jnp.arange(n, dtype=jnp.int32),
    )


def in_order(
    cells: CellData, batch_size: int
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """All cells in order, in batches; the last is padded with cells of weight 0.

    Args:
        cells: n of them.
        batch_size: B, clipped to n.

    Returns:
        (index [n_batches, B], weight [n_batches, B]), and the slots that they need.
    """
    length = np.asarray(cells.length)
    batch_size = min(batch_size, len(length))
    index, weight = pad_to_batches(np.arange(len(length), dtype=np.int32), batch_size)
    fullest = np.where(weight > 0, length[index], 0).sum(axis=1).max()
    return (index, weight), n_slots(int(fullest))


def pad_to_batches(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay an order of cells out in batches of equal size, padding with weight 0.

    Args:
        order: [n] indices of cells.
        batch_size: B.

    Returns:
        index [n_batches, B] and weight [n_batches, B].
    """
    n_batches = -(-len(order) // batch_size)
    padding = n_batches * batch_size - len(order)
    index = np.pad(order, (0, padding)).reshape(n_batches, batch_size)
    weight = np.pad(np.ones(len(order), np.float32), (0, padding))
    return index, weight.reshape(n_batches, batch_size)
