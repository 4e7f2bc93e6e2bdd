"""Counts on the device in compressed sparse form, and batches cut from them there.

The non-zero entries of a cell fill rows of ROW slots, the last of them in part. A batch
takes whole rows, so that what is looked up for each slot of a flat layout is looked up
once for a row, and rows are numbered, so that more than 2^31 entries can be addressed
with 32 bits. A batch has static shapes: there are rows for the fullest batch of a run,
and no count is ever dropped.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from scvae_jax.checks import InputError

Array = jax.Array

# slots of a row: 64 bytes, and 8 of them wasted on a cell in the mean
ROW = 16
# cells that are laid out in rows at a time
CELLS_AT_ONCE = 2**14
# share of slots, one in so many, from which on a product of dense arrays is faster
SPARSE_BELOW = 6


class Counts(NamedTuple):
    """One modality of a batch.

    Attributes:
        x: [B, G] float32.
        nonzero: (cell [R], gene [R, ROW], value [R, ROW]) of the non-zero entries of x,
            each row those of one cell; a value of 0 is padding. None: x is to be read
            in dense form.
        depth: [B] expected total of a cell, counts.
        observed: [B] 1 where the modality was measured, 0 where not; None: everywhere.
    """

    x: Array
    nonzero: tuple[Array, Array, Array] | None
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
    """Cells on the device, compressed: 4 bytes a slot where codes and counts fit.

    Attributes:
        gene: [n_rows, ROW] gene of each non-zero entry, 16 bits where they suffice; the
            last rows may be of no cell.
        value: [n_rows, ROW] its count, 16 bits where they suffice, else float32; 0
            for padding.
        start: [n] the first row of a cell.
        length: [n] number of its slots, a multiple of ROW.
        depth: [n] counts.
        categorical: [n, n_keys].
    """

    gene: Array
    value: Array
    start: Array
    length: Array
    depth: Array
    categorical: Array


def slots_of_cells(x: scipy.sparse.csr_matrix) -> np.ndarray:
    """Slots [n] of each cell of x [n, G], a multiple of ROW."""
    return -(-np.diff(x.indptr) // ROW) * ROW


def to_device(
    x: scipy.sparse.csr_matrix,
    depth: np.ndarray,
    categorical: np.ndarray,
    n_slots: int = 0,
) -> CellData:
    """Put cells on the default device.

    Args:
        x: [n, G] in canonical form, without stored zeros.
        depth: [n] counts.
        categorical: [n, n_keys] codes.
        n_slots: that there are at least, a multiple of ROW, so that a program serves
            others of as many cells as well.

    Returns:
        The cells.

    Raises:
        InputError: from 2^31 rows on, and for cells in another form.
    """
    canonical = x.format == "csr" and x.has_canonical_format
    if not (canonical and len(depth) == len(categorical) == x.shape[0]):
        raise InputError(
            f"found x of format {x.format} and shape {x.shape}, with {len(depth)} "
            f"depths and {len(categorical)} codes, expected csr in canonical form and "
            "one of each for a cell, convert it (tocsr, sum_duplicates) or give as many"
        )
    n_nonzero = np.diff(x.indptr)
    n_rows = slots_of_cells(x) // ROW
    end = np.cumsum(n_rows, dtype=np.int64)
    total = int(end[-1]) if len(end) else 0
    if total >= 2**31:
        raise InputError(
            f"found {x.nnz} non-zero entries in {total} rows of {ROW}, expected fewer "
            "than 2^31 rows, use fewer cells or genes"
        )
    # a part at a time, as there may be billions
    whole = all(
        part.min() >= 0 and part.max() < 2**16 and np.array_equal(part, np.floor(part))
        for part in np.array_split(x.data, x.nnz // 2**24 + 1)
        if len(part)
    )
    start = end - n_rows

    def in_rows(entries: np.ndarray, dtype: type) -> Array:
        # one row at least, so that addresses have something to point at
        slots = np.zeros((max(total, n_slots // ROW, 1), ROW), dtype)
        # entry e of a cell that begins at row r has slot e of that row and those after
        # it; some cells at a time, as an address takes more than what it is of
        for first in range(0, len(n_rows), CELLS_AT_ONCE):
            last = min(first + CELLS_AT_ONCE, len(n_rows))
            begin, stop = x.indptr[first], x.indptr[last]
            offset = start[first:last] * ROW - x.indptr[first:last]
            slot = np.arange(begin, stop) + np.repeat(offset, n_nonzero[first:last])
            slots.reshape(-1)[slot] = entries[begin:stop]
        return jax.device_put(slots)

    return CellData(
        gene=in_rows(x.indices, np.uint16 if x.shape[1] <= 2**16 else np.int32),
        value=in_rows(x.data, np.uint16 if whole else np.float32),
        start=jax.device_put(start.astype(np.int32)),
        length=jax.device_put((n_rows * ROW).astype(np.int32)),
        depth=jax.device_put(depth.astype(np.float32)),
        categorical=jax.device_put(categorical.astype(np.int32)),
    )


def slots_for(length: int) -> int:
    """Slots for a batch whose cells have so many: the next multiple of 8 rows."""
    return max(8 * ROW, -(-length // (8 * ROW)) * 8 * ROW)


def slots_to_spare(length: np.ndarray, n_drawn: int) -> int:
    """Slots for so many cells that are drawn by chance, but for the rarest draws.

    They do not depend on the draw, so that a program that was compiled for one seed
    serves others.

    Args:
        length: [n] slots of each cell that may be drawn.
        n_drawn: a batch, or the cells of a part; at most n.

    Returns:
        Five standard deviations above the mean.
    """
    n = len(length)
    # of the sum of values that are drawn from n without putting back
    variance = length.var() * n_drawn * (n - n_drawn) / max(n - 1, 1)
    return slots_for(math.ceil(n_drawn * length.mean() + 5 * math.sqrt(variance)))


def cut(
    cells: CellData, index: Array, weight: Array, n_genes: int, n_slots: int
) -> Batch:
    """Cut a batch out of the cells, on the device.

    Args:
        cells: all cells.
        index: [B] the cells to take.
        weight: [B] 1 for a cell, 0 for padding.
        n_genes: G.
        n_slots: at least the slots of the batch's cells, from `slots_for`.

    Returns:
        The batch; if they do not fit, or there are more genes, its counts are NaN.
    """
    batch_size = index.shape[0]
    n_rows = jnp.where(weight > 0, cells.length[index] // ROW, 0)
    end = jnp.cumsum(n_rows)
    # row r belongs to the first cell whose end lies past it, B for padding: the number
    # of that cell is the number of ends at r or before
    row = jnp.arange(n_slots // ROW, dtype=jnp.int32)
    if jax.default_backend() == "cpu":
        # a search would be made anew for every slot, by all that read what it finds
        ends = jnp.zeros(len(row) + 1, jnp.int32).at[jnp.minimum(end, len(row))].add(1)
        cell = jnp.cumsum(ends)[:-1]
    else:
        # a sum takes a GPU some kernels, each turn of a loop as well
        cell = jnp.searchsorted(end, row, side="right", method="scan_unrolled")
        cell = cell.astype(jnp.int32)
    owner = jnp.minimum(cell, batch_size - 1)
    offset = cells.start[index] - (end - n_rows)
    address = jnp.where(cell < batch_size, row + offset[owner], 0)
    gene = cells.gene[address].astype(jnp.int32)
    value = cells.value[address].astype(jnp.float32)
    # no count is dropped in silence
    fits = (end[-1] * ROW <= n_slots) & (gene.max() < n_genes)
    missing = jnp.where(fits, 0.0, jnp.nan)
    value = jnp.where((fits & (cell < batch_size))[:, None], value, missing)
    nonzero, shape = (cell, gene, value), (batch_size, n_genes)
    return Batch(
        counts=(Counts(lay_out(nonzero, value, shape), nonzero, cells.depth[index]),),
        categorical=cells.categorical[index],
        continuous=jnp.zeros((batch_size, 0), jnp.float32),
        label=jnp.full((batch_size,), -1, jnp.int32),
        weight=weight,
        cell=index,
    )


def lay_out(
    nonzero: tuple[Array, Array, Array], entries: Array, shape: tuple[int, int]
) -> Array:
    """An array of zeros but for the entries at the addresses of non-zero counts.

    Args:
        nonzero: (cell [R], gene [R, ROW], value [R, ROW]), as in `Counts`.
        entries: [R, ROW].
        shape: (B, G).

    Returns:
        [B, G].
    """
    cell, gene, value = nonzero
    # what is padding is sent out of range
    cell = jnp.where(value == 0, shape[0], cell[:, None])
    zeros = jnp.zeros(shape, entries.dtype)
    return zeros.at[cell, gene].set(entries, mode="drop", unique_indices=True)


def product(
    nonzero: tuple[Array, Array, Array],
    entries: Array,
    x: Array,
    kernel: Array,
    matmul: Callable[[Array, Array], Array],
) -> Array:
    """The product of x with a kernel, from its entries alone where that is faster.

    On a CPU it is where fewer than one in SPARSE_BELOW of the slots hold an entry: each
    row then adds up its rows of the kernel. Gradients, in reverse mode, take x.

    Args:
        nonzero: the addresses of the entries, as in `Counts`.
        entries: [R, ROW], 0 for padding.
        x: [B, G], the entries laid out.
        kernel: [G, n].
        matmul: of dense arrays.

    Returns:
        [B, n].
    """
    if jax.default_backend() != "cpu" or SPARSE_BELOW * entries.size > x.size:
        return matmul(x, kernel)

    @jax.custom_vjp
    def sparse(cell, gene, entries, x, kernel):
        # a sum that is written out is one loop, without an array [R, ROW, n]
        rows = sum(
            entries[:, slot, None]
            * kernel.at[gene[:, slot]].get(
                mode="promise_in_bounds", wrap_negative_indices=False
            )
            for slot in range(entries.shape[1])
        )
        return jax.ops.segment_sum(rows, cell, x.shape[0])

    def forward(cell, gene, entries, x, kernel):
        return sparse(cell, gene, entries, x, kernel), (x, kernel)

    def backward(kept, slope):
        x, kernel = kept
        slopes = matmul(slope, kernel.T), matmul(x.T, slope)
        # each of the type of its operand, where these differ
        return None, None, None, *map(jnp.astype, slopes, (x.dtype, kernel.dtype))

    sparse.defvjp(forward, backward)
    return sparse(*nonzero[:2], entries, x, kernel)


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

    Raises:
        ValueError: for depths or codes with other axes.
    """
    n = x.shape[0]
    x = jnp.asarray(x, jnp.float32)
    for name, value, axes in (("depth", depth, 1), ("categorical", categorical, 2)):
        if value is not None and jnp.ndim(value) != axes:
            raise ValueError(
                f"found {name} of shape {jnp.shape(value)}, expected "
                f"{'[B]' if axes == 1 else '[B, n_keys]'}, change its axes"
            )
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
    return (index, weight), slots_for(int(fullest))


def of_cells(rows: Any, n_obs: int) -> Any:
    """What was found for the batches of `in_order`, without padding.

    Args:
        rows: arrays [n_batches, B, ...].
        n_obs: n.

    Returns:
        The same, [n, ...].
    """
    return jax.tree.map(lambda row: row.reshape(-1, *row.shape[2:])[:n_obs], rows)


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
