"""Batches cut on the device, held to slices of the scipy matrix."""

import types
from functools import partial

import jax
import numpy as np
import pytest
import scipy.sparse

from scvae_jax import batches
from scvae_jax.checks import InputError

cut = jax.jit(batches.cut, static_argnames=("n_genes", "n_slots"))


def random_counts(n_obs, n_genes, density, seed, largest=50):
    """Canonical CSR; about one cell in five is empty, the first and last among them."""
    generator = np.random.default_rng(seed)
    x = generator.integers(1, largest + 1, (n_obs, n_genes))
    x[generator.random(x.shape) > density] = 0
    x[generator.random(n_obs) < 0.2] = 0
    x[[0, -1]] = 0
    return scipy.sparse.csr_matrix(x, dtype=np.float32)


def put(x, n_slots=0):
    """On the device, with a depth and two codes that differ from cell to cell."""
    number = np.arange(x.shape[0])
    codes = np.stack([number, 3 * number], axis=1)
    return batches.to_device(x, 100.0 + number, codes, n_slots)


def assert_batch(x, cells, index, weight, n_slots=None):
    """All that a batch holds is what scipy finds at the same cells."""
    index, weight = np.asarray(index, np.int32), np.asarray(weight, np.float32)
    expected = np.where(weight[:, None] > 0, x[index].toarray(), 0)
    n_nonzero = np.count_nonzero(expected)
    if n_slots is None:
        rows = -(-np.count_nonzero(expected, axis=1) // batches.ROW)
        n_slots = batches.slots_for(batches.ROW * rows.sum())
    batch = cut(cells, index, weight, n_genes=x.shape[1], n_slots=n_slots)
    (counts,) = batch.counts
    assert counts.x.dtype == np.float32
    np.testing.assert_array_equal(counts.x, expected)
    # each non-zero entry has one address, and nothing else is in range
    cell, gene, value = (np.asarray(part) for part in counts.nonzero)
    n_rows = n_slots // batches.ROW
    assert cell.shape == (n_rows,) and gene.shape == value.shape == (
        n_rows,
        batches.ROW,
    )
    assert ((gene >= 0) & (gene < x.shape[1])).all()
    assert (value[cell == len(index)] == 0).all()
    found = scipy.sparse.find(expected)
    present = value != 0
    assert present.sum() == n_nonzero
    cell = np.repeat(cell[:, None], batches.ROW, axis=1)
    triples = zip(cell[present], gene[present], value[present], strict=True)
    assert set(triples) == set(zip(*found, strict=True))
    np.testing.assert_array_equal(counts.depth, 100.0 + index)
    np.testing.assert_array_equal(batch.categorical, np.stack([index, 3 * index], 1))
    np.testing.assert_array_equal(batch.weight, weight)
    np.testing.assert_array_equal(batch.cell, index)
    assert batch.continuous.shape == (len(index), 0)
    assert (np.asarray(batch.label) == -1).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_random_batches_are_slices(density, seed):
    x = random_counts(60, 23, density, seed)
    cells = put(x)
    index = np.random.default_rng(seed).permutation(60)[:16]
    # one shape for all seeds and densities: compiled once
    assert_batch(x, cells, index, np.ones(16), n_slots=512)


@pytest.mark.parametrize("where", ["end", "start", "middle", "everywhere"])
def test_padding_holds_nothing(where):
    x = random_counts(30, 23, 0.5, seed=1)
    weight = np.ones(16)
    weight[{"end": [14, 15], "start": [0], "middle": [5, 9]}.get(where, slice(16))] = 0
    assert_batch(x, put(x), np.arange(5, 21), weight, n_slots=512)


def test_a_cell_may_be_in_a_batch_twice():
    x = random_counts(30, 23, 0.5, seed=2)
    assert_batch(x, put(x), [7, 7, 1, 0] * 4, np.ones(16), n_slots=512)


def test_the_fullest_cells_fill_the_last_slot():
    x = random_counts(40, 64, 0.9, seed=3)
    fullest = np.argsort(-np.diff(x.indptr))[:8]
    # all 64 genes in each of 8 cells: 512 entries in 32 rows and no slot to spare
    dense = x.toarray()
    dense[fullest] = np.arange(1, 65)
    x = scipy.sparse.csr_matrix(dense)
    assert batches.slots_for(8 * 64) == 512
    assert_batch(x, put(x), fullest, np.ones(8))


def test_what_does_not_fit_is_no_number():
    x = random_counts(40, 64, 0.9, seed=3)
    cells, index = put(x), np.arange(8)
    enough = batches.slots_for(int(cells.length[:8].sum()))
    for n_slots, fits in ((enough, True), (enough // 2, False)):
        batch = batches.cut(cells, index, np.ones(8), 64, n_slots)
        assert np.isfinite(batch.counts[0].x).all() == fits
        assert np.isfinite(batch.counts[0].nonzero[2]).all() == fits


@pytest.mark.parametrize("n_slots", [512, 128])
def test_a_gpu_cuts_the_same_batches(monkeypatch, n_slots):
    x = random_counts(30, 23, 0.5, seed=1)
    weight = np.ones(16, np.float32)
    weight[[0, 5, 15]] = 0.0
    found = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
        found.append(batches.cut(put(x), np.arange(5, 21), weight, 23, n_slots))
    same = jax.tree.map(partial(np.array_equal, equal_nan=True), *found)
    assert all(jax.tree.leaves(same))


def test_a_gene_beyond_the_last_is_no_number():
    """Of it counts would be dropped in silence."""
    x = scipy.sparse.csr_matrix(np.eye(3, 5, 2, dtype=np.float32))
    cells, index = put(x), np.arange(3)
    for n_genes, fits in ((5, True), (6, True), (4, False)):
        batch = batches.cut(cells, index, np.ones(3), n_genes, batches.slots_for(48))
        assert np.isfinite(batch.counts[0].x).all() == fits


def test_cells_without_any_counts():
    x = scipy.sparse.csr_matrix((10, 5), dtype=np.float32)
    cells = put(x)
    assert_batch(x, cells, np.arange(10), np.ones(10))
    (index, weight), n_slots = batches.in_order(cells, 4)
    assert_batch(x, cells, index[-1], weight[-1], n_slots)


def test_one_cell_with_one_gene():
    x = scipy.sparse.csr_matrix([[3.0]], dtype=np.float32)
    assert_batch(x, put(x), [0], [1])


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        (1.0, np.uint16),
        (2**16 - 1, np.uint16),
        (2**16, np.float32),
        (2**24, np.float32),
        (0.5, np.float32),
        (7.25, np.float32),
        (-3.0, np.float32),
    ],
)
def test_values_keep_their_digits(largest, dtype):
    x = random_counts(30, 23, 0.5, seed=4)
    x.data[11] = largest
    cells = put(x)
    assert cells.value.dtype == dtype
    assert_batch(x, cells, np.arange(30), np.ones(30))


@pytest.mark.parametrize(
    ("n_genes", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32), (10**5, np.int32)]
)
def test_many_genes(n_genes, dtype):
    generator = np.random.default_rng(0)
    x = scipy.sparse.random_array(
        (5, n_genes), density=1e-3, rng=generator, dtype=np.float32
    ).tolil()
    x[1, n_genes - 1] = 4
    x[3, [0, n_genes - 1]] = 2, 9
    x = scipy.sparse.csr_matrix(x)
    cells = put(x)
    assert cells.gene.dtype == dtype
    assert_batch(x, cells, [3, 1, 4], np.ones(3))


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 128), (1, 128), (128, 128), (129, 256), (1000, 1024)],
)
def test_slots_are_enough_and_a_multiple_of_128(length, expected):
    assert batches.slots_for(length) == expected


def test_slots_to_spare_are_enough_for_any_order():
    random = np.random.default_rng(0)
    # skewed, as those of real cells are
    length = random.lognormal(4.5, 0.4, 2000).astype(int)
    n_slots = batches.slots_to_spare(length, 128)
    fullest = [random.permutation(length)[:1920].reshape(15, 128) for _ in range(400)]
    assert np.sum(fullest, axis=-1).max() <= n_slots
    assert n_slots == batches.slots_to_spare(length[::-1], 128)
    assert n_slots < 1.25 * 128 * length.mean()


@pytest.mark.parametrize("n", [1, 2, 57])
def test_of_all_cells_in_one_batch_no_slots_are_to_spare(n):
    length = np.arange(10, 10 + n)
    assert batches.slots_to_spare(length, n) == batches.slots_for(length.sum())


def test_rows_to_spare_are_of_no_cell():
    x = random_counts(30, 23, 0.5, seed=1)
    n = len(put(x).gene)
    assert batches.slots_of_cells(x).sum() == n * batches.ROW
    more = put(x, (n + 5) * batches.ROW)
    assert len(more.gene) == len(more.value) == n + 5
    assert not np.asarray(more.value[n:]).any()
    assert_batch(x, more, np.arange(30), np.ones(30))
    # those that are there suffice
    assert len(put(x, batches.ROW).gene) == n


@pytest.mark.parametrize(
    ("n", "batch_size"), [(12, 5), (12, 4), (12, 12), (12, 1), (1, 1)]
)
def test_pad_to_batches(n, batch_size):
    order = np.random.default_rng(0).permutation(n).astype(np.int32)
    index, weight = batches.pad_to_batches(order, batch_size)
    assert index.shape == weight.shape == (-(-n // batch_size), batch_size)
    assert index.dtype == np.int32
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(index[weight > 0], order)
    # padding comes last, and points at a cell that exists
    np.testing.assert_array_equal(weight.ravel(), np.arange(weight.size) < n)
    assert ((index >= 0) & (index < n)).all()


@pytest.mark.parametrize("batch_size", [1, 7, 20, 53, 1000])
def test_in_order_nothing_is_dropped(batch_size):
    x = random_counts(53, 23, 0.4, seed=5)
    cells = put(x)
    (index, weight), n_slots = batches.in_order(cells, batch_size)
    assert index.shape[1] == min(batch_size, 53)
    np.testing.assert_array_equal(index[weight > 0], np.arange(53))
    length = batches.ROW * -(-np.diff(x.indptr) // batches.ROW)
    fullest = max(length[i[w > 0]].sum() for i, w in zip(index, weight, strict=True))
    assert n_slots == batches.slots_for(fullest)
    one = partial(cut, cells, n_genes=23, n_slots=n_slots)
    found = [one(i, w).counts[0].x for i, w in zip(index, weight, strict=True)]
    np.testing.assert_array_equal(np.concatenate(found)[:53], x.toarray())
    assert np.concatenate(found)[53:].sum() == 0


def test_a_last_short_batch():
    x = random_counts(53, 23, 0.4, seed=5)
    cells = put(x)
    (index, weight), n_slots = batches.in_order(cells, 20)
    assert weight[-1].tolist() == [1] * 13 + [0] * 7
    assert_batch(x, cells, index[-1], weight[-1], n_slots)


def test_cells_are_laid_out_some_at_a_time(monkeypatch):
    x = random_counts(53, 23, 0.4, seed=5)
    at_once = put(x)
    monkeypatch.setattr(batches, "CELLS_AT_ONCE", 7)
    for one, other in zip(at_once, put(x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_too_many_rows_for_32_bits():
    x = types.SimpleNamespace(
        nnz=2**35,
        indptr=np.array([0, 2**35]),
        shape=(1, 2**35),
        format="csr",
        has_canonical_format=True,
    )
    with pytest.raises(
        InputError,
        match=r"found 34359738368 non-zero entries in 2147483648 rows of 16, expected "
        r"fewer than 2.31 rows, use fewer cells or genes",
    ):
        batches.to_device(x, np.ones(1), np.zeros((1, 0)))


def test_cells_in_another_form_are_refused():
    x = scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32))
    twice = scipy.sparse.csr_matrix(
        (np.ones(2, np.float32), np.array([1, 1]), np.array([0, 2, 2, 2])), (3, 3)
    )
    depth, codes = np.ones(3, np.float32), np.zeros((3, 0), np.int32)
    for given in (
        (x.tocsc(), depth, codes),
        (twice, depth, codes),
        (x, depth[:2], codes),
        (x, depth, codes[:2]),
    ):
        with pytest.raises(InputError, match="expected csr in canonical form"):
            batches.to_device(*given)


def test_more_entries_than_32_bits_count_are_addressed_by_row():
    """Cells begin at a row, not at an entry, so 32 bits reach 16 times as far."""
    cells = put(random_counts(30, 23, 0.5, seed=1))
    assert cells.start.dtype == np.int32 and cells.gene.shape[1] == batches.ROW
    # each cell begins where the one before it ends, counted in rows
    ends = np.asarray(cells.start) + np.asarray(cells.length) // batches.ROW
    np.testing.assert_array_equal(cells.start[1:], ends[:-1])
    assert ends[-1] == len(cells.gene)


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_memory_of_a_non_zero_entry(density):
    """4 bytes a slot, and less than a row of slots wasted on a cell."""
    x = random_counts(200, 1000, density, seed=0)
    cells = put(x)
    n_bytes = cells.gene.nbytes + cells.value.nbytes
    assert 4 * x.nnz <= n_bytes < 4 * (x.nnz + batches.ROW * x.shape[0])


def test_one_cell_of_many_genes_among_small_ones_is_not_padded_to():
    x = random_counts(500, 2000, 0.005, seed=0).tolil()
    x[7] = 1
    cells = put(x.tocsr())
    assert cells.gene.size < x.nnz + batches.ROW * 500


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": np.ones((2, 1))}, r"found depth of shape \(2, 1\), expected \[B\],"),
        (
            {"categorical": np.array([0, 1])},
            r"found categorical of shape \(2,\), expected \[B, n_keys\], change its",
        ),
    ],
)
def test_dense_batch_of_other_axes(given, message):
    with pytest.raises(ValueError, match=message):
        batches.dense_batch(np.ones((2, 3)), **given)


def test_dense_batch():
    x = np.array([[0, 0, 0], [1, 0, 2]])
    batch = batches.dense_batch(x)
    (counts,) = batch.counts
    np.testing.assert_array_equal(counts.x, x)
    assert counts.x.dtype == np.float32
    assert counts.nonzero is None
    np.testing.assert_array_equal(counts.depth, [1, 3])
    assert batch.categorical.shape == (2, 0)
    np.testing.assert_array_equal(batch.weight, [1, 1])
    given = batches.dense_batch(
        x, depth=np.array([5.0, 6.0]), categorical=np.array([[1], [0]])
    )
    np.testing.assert_array_equal(given.counts[0].depth, [5, 6])
    np.testing.assert_array_equal(given.categorical, [[1], [0]])


@pytest.mark.parametrize("density", [0.05, 0.4])
def test_product_is_that_of_dense_arrays(density):
    x = random_counts(30, 200, density, seed=3)
    cells = put(x)
    index = np.arange(1, 25)
    n_slots = batches.slots_for(int(np.asarray(cells.length)[index].sum()))
    batch = cut(cells, index, np.ones(24, np.float32), n_genes=200, n_slots=n_slots)
    (counts,) = batch.counts
    entries = jax.numpy.log1p(counts.nonzero[2])
    dense = batches.lay_out(counts.nonzero, entries, (24, 200))
    kernel = jax.random.normal(jax.random.key(0), (200, 7))

    def product(x, kernel):
        return batches.product(counts.nonzero, entries, x, kernel, jax.numpy.matmul)

    def score(function, argument):
        return jax.grad(lambda *a: (function(*a) ** 2).sum(), argnums=argument)(
            dense, kernel
        )

    def close(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)

    close(product(dense, kernel), dense @ kernel)
    for argument in (0, 1):
        close(score(product, argument), score(jax.numpy.matmul, argument))
    lower = kernel.astype(jax.numpy.bfloat16)
    slopes = jax.grad(lambda *a: product(*a).sum(), argnums=(0, 1))(dense, lower)
    assert [slope.dtype for slope in slopes] == [dense.dtype, lower.dtype]
    # rows of any width
    single = tuple(a.reshape(-1, 1) for a in counts.nonzero[1:])
    single = (np.repeat(counts.nonzero[0], batches.ROW), *single)
    of_single = batches.product(
        single, entries.reshape(-1, 1), dense, kernel, jax.numpy.matmul
    )
    close(of_single, dense @ kernel)
    # where entries are few and only the value is asked for, nothing dense is multiplied
    few = jax.default_backend() == "cpu" and density < 0.1
    assert ("dot_general" in str(jax.make_jaxpr(product)(dense, kernel))) != few
