"""From AnnData and files to validated counts and covariates."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from scvae_jax.annotated import column_of, in_memory, read_h5ad
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.config import DataConfig
from scvae_jax.counts import SPLITS, prepare
from scvae_jax.selection import random_split

N_OBS, N_VARS = 12, 7


def table():
    """[12, 7] counts to 100; a gene without any, no cell without."""
    counts = np.random.default_rng(3).poisson(0.8, (N_OBS, N_VARS))
    counts[:, 4] = 0
    counts[:, 0] += 1
    counts[2, 1] = 100
    return counts


def make(x=None, **layers):
    """AnnData with a column for each use that a column can be put to."""
    x = scipy.sparse.csr_matrix(table(), dtype=np.float32) if x is None else x
    obs = pd.DataFrame(index=[f"cell_{n}" for n in range(N_OBS)])
    obs["batch"] = pd.Categorical(["b", "a", "b"] * 4, categories=["a", "unused", "b"])
    obs["run"] = [10, 9, 10] * 4
    obs["depth"] = np.linspace(50.0, 160.0, N_OBS)
    obs["split"] = ["train"] * 8 + ["validation"] * 3 + ["test"]
    var = pd.DataFrame(index=[f"gene_{g}" for g in range(N_VARS)])
    var["highly_variable"] = [True, False, True, True, False, False, True]
    var["none"] = False
    var["share"] = 0.5
    var["text"] = "True"
    return anndata.AnnData(X=x, obs=obs, var=var, layers=layers)


def assert_canonical(x):
    """The form that all else relies on."""
    assert isinstance(x, scipy.sparse.csr_matrix)
    assert x.dtype == np.float32
    assert x.has_canonical_format
    assert (x.data != 0).all()
    # the flag is a claim: look for oneself
    for row in range(x.shape[0]):
        assert (np.diff(x.indices[x.indptr[row] : x.indptr[row + 1]]) > 0).all()


def parts(x):
    """All that a matrix consists of, hidden zeros and order included."""
    if scipy.sparse.issparse(x):
        return [x.format, x.dtype, x.data, x.indices, x.indptr]
    return [x.dtype, np.asarray(x)]


def assert_same_adata(one, other):
    for a, b in zip(parts(one.X), parts(other.X), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(one.layers) == list(other.layers)
    for name in one.layers:
        for a, b in zip(
            parts(one.layers[name]), parts(other.layers[name]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    assert list(one.uns) == list(other.uns)
    assert list(one.obsm) == list(other.obsm)


# Forms of a matrix


def with_zeros_and_duplicates(counts):
    """CSR that stores zeros, splits entries in two and orders columns backwards."""
    n, g = counts.shape
    indices = np.tile(np.repeat(np.arange(g)[::-1], 2), n)
    data = np.stack([np.minimum(counts, 1), counts - np.minimum(counts, 1)], axis=-1)
    data = data[:, ::-1].reshape(-1).astype(np.float32)
    x = scipy.sparse.csr_matrix(
        (data, indices, np.arange(n + 1) * 2 * g), shape=(n, g), copy=True
    )
    assert x.nnz == 2 * n * g
    return x


FORMS = {
    "csr": lambda c: scipy.sparse.csr_matrix(c, dtype=np.float32),
    "csc": lambda c: scipy.sparse.csc_matrix(c, dtype=np.float32),
    "csr array": lambda c: scipy.sparse.csr_array(c, dtype=np.float32),
    "csc array": lambda c: scipy.sparse.csc_array(c, dtype=np.int64),
    "dense": lambda c: c.astype(np.float32),
    "dense, by columns": lambda c: np.asfortranarray(c.astype(np.float64)),
    "every other row of a larger one": lambda c: np.repeat(c, 2, axis=0)[::2],
    "zeros and duplicates": with_zeros_and_duplicates,
}
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_matrix(form):
    data = prepare(make(FORMS[form](table())), DataConfig())
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), table())
    np.testing.assert_array_equal(data.depth, table().sum(axis=1))
    assert data.depth.dtype == np.float32


def test_duplicates_whose_sum_overflows_their_type():
    parts = (np.array([100, 100], np.int8), [0, 0], [0, 2])
    data = prepare(
        anndata.AnnData(scipy.sparse.csr_matrix(parts, (1, 2))), DataConfig()
    )
    np.testing.assert_array_equal(data.x.toarray(), [[200, 0]])


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("dense", [True, False])
def test_every_type_gives_the_same_matrix(dtype, dense):
    x = table().astype(dtype)
    if not dense:
        if dtype == "float16":
            # scipy has no sparse matrices of them
            x = x.astype(np.float32)
        x = scipy.sparse.csr_matrix(x)
    data = prepare(make(x), DataConfig())
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), table())


@pytest.mark.parametrize("wrap", [np.asarray, scipy.sparse.csr_matrix])
def test_truth_values_are_counts_of_0_and_1(wrap):
    data = prepare(make(wrap(table() > 0)), DataConfig())
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), table() > 0)


def test_duplicates_are_summed_before_anything_is_judged():
    # 0.5 + 0.5 is a count, 2 - 3 is none, 1 - 1 is a zero
    x = scipy.sparse.csr_matrix(([0.5, 0.5, 1, -1], [1, 1, 2, 2], [0, 4]), (1, 3))
    adata = anndata.AnnData(X=x)
    data = prepare(adata, DataConfig())
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), [[0, 1, 0]])
    x = scipy.sparse.csr_matrix(([2.0, -3.0], [1, 1], [0, 2]), (1, 3))
    with pytest.raises(InputError, match="found 1 negative values"):
        prepare(anndata.AnnData(X=x), DataConfig())


@pytest.mark.parametrize("value", [2**16 - 1, 2**16, 10**6, 2**24])
def test_large_counts_are_exact(value):
    counts = table()
    counts[3, 3] = value
    data = prepare(make(counts), DataConfig())
    assert data.x[3, 3] == value
    assert data.depth[3] == np.float32(counts[3].sum())


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_values_beyond_float32():
    counts = table().astype(np.float64)
    counts[3, 3] = 1e300
    with pytest.raises(InputError, match="found 1 values in X"):
        prepare(make(counts), DataConfig())


# Where the data is


def test_nothing_is_changed():
    adata = make(with_zeros_and_duplicates(table()), other=table() * 1.2)
    adata.uns["note"] = "mine"
    adata.obsm["X_pca"] = np.ones((N_OBS, 2))
    before = adata.copy()
    config = DataConfig(
        batch_key="batch",
        size_factor_key="depth",
        genes="highly_variable",
        split_key="split",
    )
    data = prepare(adata, config)
    with pytest.warns(InputWarning, match="fractional and are rounded"):
        prepare(adata, DataConfig(layer="other", fractional="round"))
    prepare(adata, DataConfig(), genes=np.array(["gene_3", "gene_0"]))
    # nor does writing to the result reach back
    data.x.data[:] = 7
    data.depth[:] = 7
    data.batch[:] = 7
    data.split[:] = "train"
    assert_same_adata(adata, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("wrap", [np.asarray, scipy.sparse.csr_matrix])
def test_the_matrix_shares_no_memory_with_the_data(wrap, dtype):
    adata = make(wrap(table().astype(dtype)))
    before = adata.copy()
    prepare(adata, DataConfig()).x.data[:] = 9
    assert_same_adata(adata, before)


def test_layer():
    adata = make(table() * 0.1, counts=scipy.sparse.csc_matrix(table()))
    data = prepare(adata, DataConfig(layer="counts"))
    np.testing.assert_array_equal(data.x.toarray(), table())


def test_layer_without_x():
    adata = make(counts=table())
    adata.X = None
    data = prepare(adata, DataConfig(layer="counts"))
    np.testing.assert_array_equal(data.x.toarray(), table())
    with pytest.raises(InputError, match="found no X, .* one of the layers: counts"):
        prepare(adata, DataConfig())


def test_gene_mask():
    adata = make()
    mask = adata.var["highly_variable"].to_numpy()
    data = prepare(adata, DataConfig(genes="highly_variable"))
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), table()[:, mask])
    assert data.genes.tolist() == adata.var_names[mask].tolist()
    # the depth is that of the genes in use
    np.testing.assert_array_equal(data.depth, table()[:, mask].sum(axis=1))


def test_gene_mask_of_nullable_truth_values():
    adata = make()
    mask = adata.var["highly_variable"].to_numpy()
    adata.var["mask"] = pd.array(mask, dtype="boolean")
    data = prepare(adata, DataConfig(genes="mask"))
    assert data.genes.tolist() == adata.var_names[mask].tolist()


def test_genes_outside_the_mask_are_not_judged():
    counts = table().astype(np.float32)
    counts[:, 1] = -0.5
    data = prepare(make(counts), DataConfig(genes="highly_variable"))
    assert data.x.shape == (N_OBS, 4)


def test_cells_and_genes_keep_their_names():
    data = prepare(make(), DataConfig())
    assert data.cells.tolist() == [f"cell_{n}" for n in range(N_OBS)]
    assert data.genes.tolist() == [f"gene_{g}" for g in range(N_VARS)]
    assert data.cells.dtype.kind == data.genes.dtype.kind == "U"
    assert data.split is None
    assert data.batches == ()
    assert data.batch.tolist() == [0] * N_OBS


def test_views():
    adata = make()
    rows, columns = [7, 2, 4], [5, 0, 3]
    view = adata[rows, columns]
    assert view.is_view
    data = prepare(view, DataConfig(batch_key="batch"))
    assert view.is_view
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), table()[np.ix_(rows, columns)])
    assert data.genes.tolist() == ["gene_5", "gene_0", "gene_3"]
    assert data.cells.tolist() == ["cell_7", "cell_2", "cell_4"]
    assert data.batch.tolist() == [0, 1, 0]


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_backed_files(tmp_path, form, view):
    make(FORMS[form](table()), counts=table()).write_h5ad(tmp_path / "data.h5ad")
    adata = anndata.read_h5ad(tmp_path / "data.h5ad", backed="r")
    keep = np.arange(N_OBS)
    if view:
        keep = np.array([1, 4, 8])
        adata = adata[keep]
    for layer in (None, "counts"):
        data = prepare(adata, DataConfig(layer=layer, batch_key="batch"))
        assert_canonical(data.x)
        np.testing.assert_array_equal(data.x.toarray(), table()[keep])
    assert adata.isbacked
    adata.file.close()


# Genes of a fitted model


def test_genes_are_matched_by_name_in_any_order():
    order = np.random.default_rng(0).permutation(N_VARS)
    adata = make()
    genes = np.asarray(adata.var_names[order], dtype=str)
    data = prepare(adata, DataConfig(), genes=genes)
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), table()[:, order])
    assert data.genes.tolist() == genes.tolist()
    # the same genes from data in another order are the same bits
    shuffled = prepare(adata[:, order[::-1]], DataConfig(), genes=genes)
    for one, other in zip(parts(data.x), parts(shuffled.x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_surplus_genes_are_left_out():
    data = prepare(make(), DataConfig(), genes=np.array(["gene_6", "gene_0"]))
    np.testing.assert_array_equal(data.x.toarray(), table()[:, [6, 0]])
    np.testing.assert_array_equal(data.depth, table()[:, [6, 0]].sum(axis=1))


def test_surplus_genes_are_not_judged():
    counts = table().astype(np.float32)
    counts[:, 3] = np.nan
    data = prepare(make(counts), DataConfig(), genes=np.array(["gene_0", "gene_1"]))
    assert data.x.shape == (N_OBS, 2)


def test_a_models_genes_need_no_mask():
    adata = make()
    del adata.var["highly_variable"]
    data = prepare(
        adata, DataConfig(genes="highly_variable"), genes=np.array(["gene_1", "gene_0"])
    )
    assert data.genes.tolist() == ["gene_1", "gene_0"]


def test_missing_genes_are_counted_and_named():
    genes = np.array([f"gene_{g}" for g in range(N_VARS + 12)])
    with pytest.raises(
        InputError,
        match=r"found 12 of the model's 19 genes missing from the data \(gene_7, gene_8"
        r", .* and 4 more\), expected all of them, .*--missing-genes zeros",
    ):
        prepare(make(), DataConfig(), genes=genes)


def test_missing_genes_as_zeros():
    genes = np.array(["new_1", "gene_6", "gene_2", "new_2", "gene_0", "new_3"])
    said = r"3 of the model's 6 genes are missing \(new_1, new_2, new_3\) and taken as"
    with pytest.warns(InputWarning, match=said):
        data = prepare(make(), DataConfig(), genes=genes, missing_genes="zeros")
    assert_canonical(data.x)
    expected = np.zeros((N_OBS, 6))
    expected[:, [1, 2, 4]] = table()[:, [6, 2, 0]]
    np.testing.assert_array_equal(data.x.toarray(), expected)
    assert data.genes.tolist() == genes.tolist()


@pytest.mark.parametrize("missing_genes", ["error", "zeros"])
def test_no_gene_in_common(missing_genes):
    genes = np.array(["ENSG1", "ENSG2"])
    with pytest.raises(
        InputError,
        match=r"found none of the model's 2 genes \(it has ENSG1, ENSG2; the data has "
        r"gene_0, gene_1, gene_2 and 4 more\), .*symbols or identifiers",
    ):
        prepare(make(), DataConfig(), genes=genes, missing_genes=missing_genes)


def test_unknown_treatment_of_missing_genes():
    with pytest.raises(InputError, match="found missing_genes='ones', expected 'error"):
        prepare(make(), DataConfig(), missing_genes="ones")


# Covariates


def test_depth_is_at_least_1():
    counts = table()
    counts[5] = 0
    with pytest.warns(InputWarning, match="1 of 12 cells have no counts"):
        data = prepare(make(counts), DataConfig())
    assert data.depth[5] == 1
    np.testing.assert_array_equal(data.depth, counts.sum(axis=1).clip(1))


@pytest.mark.parametrize(
    "convert",
    [
        lambda depth: depth,
        lambda depth: depth.astype(np.int64),
        lambda depth: [str(int(d)) for d in depth],
        lambda depth: pd.Categorical([str(int(d)) for d in depth]),
        lambda depth: pd.array(depth.astype(int), dtype="Int64"),
    ],
    ids=["float", "int", "text", "categories of text", "nullable"],
)
def test_size_factor(convert):
    adata = make()
    depth = np.round(adata.obs["depth"].to_numpy())
    adata.obs["size"] = convert(depth)
    data = prepare(adata, DataConfig(size_factor_key="size", genes="highly_variable"))
    np.testing.assert_array_equal(data.depth, depth)
    assert data.depth.dtype == np.float32
    scaled = DataConfig(size_factor_key="size", size_factor_scale=0.5)
    np.testing.assert_array_equal(prepare(adata, scaled).depth, 0.5 * depth)


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0, np.inf, -np.inf, None, "many"])
def test_size_factors_that_are_refused(value):
    adata = make()
    size = adata.obs["depth"].astype(object)
    size.iloc[[2, 5]] = value
    adata.obs["size"] = size
    with pytest.raises(
        InputError,
        match="found 2 cells without a positive number in obs column 'size', expected",
    ):
        prepare(adata, DataConfig(size_factor_key="size"))


@pytest.mark.parametrize("value", [1e300, 1e-300])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_size_factors_beyond_float32(value):
    adata = make()
    adata.obs.loc["cell_3", "depth"] = value
    with pytest.raises(InputError, match="found 1 cells without a positive number"):
        prepare(adata, DataConfig(size_factor_key="depth"))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pd.Categorical(["b", "a", "b"], categories=["a", "unused", "b"]), ["a", "b"]),
        (pd.Categorical(["b", "a", "b"], categories=["b", "a"]), ["a", "b"]),
        (["b", "a", "b"], ["a", "b"]),
        ([2, 1, 2], ["1", "2"]),
        ([10, 9, 10], ["10", "9"]),
        ([2.5, 1.5, 2.5], ["1.5", "2.5"]),
        ([True, False, True], ["False", "True"]),
        (pd.Categorical([2, 1, 2]), ["1", "2"]),
        (pd.array([2, 1, 2], dtype="Int64"), ["1", "2"]),
        (pd.array(["b", "a", "b"], dtype="string"), ["a", "b"]),
        (["x y", "x,y", "x y"], ["x y", "x,y"]),
        (["one", "one", "one"], ["one"]),
    ],
)
def test_batch_codes(values, names):
    adata = make()
    adata.obs["key"] = pd.Series(values).iloc[[0, 1, 2] * 4].array
    data = prepare(adata, DataConfig(batch_key="key"))
    assert list(data.batches) == names
    assert data.batch.dtype == np.int32
    found = np.array(data.batches)[data.batch]
    np.testing.assert_array_equal(found, pd.Series(values).astype(str).tolist() * 4)


def test_batch_codes_of_a_fitted_model():
    adata = make()
    data = prepare(
        adata[:2], DataConfig(batch_key="batch"), batches=("z", "b", "c", "a")
    )
    assert data.batch.tolist() == [1, 3]
    assert data.batches == ("z", "b", "c", "a")


def test_unknown_batches_are_named_and_the_known_ones_listed():
    with pytest.raises(
        InputError,
        match=r"batches that the model has not seen \(a\), expected some of: b, c, d,",
    ):
        prepare(make(), DataConfig(batch_key="batch"), batches=("b", "c", "d"))


@pytest.mark.parametrize("kind", [object, "category", "string"])
@pytest.mark.parametrize(
    ("use", "text"), [("batch", "the batch of every cell"), ("split", "train, valid")]
)
def test_missing_values_in_a_column(use, text, kind):
    adata = make()
    values = adata.obs[use].astype(object)
    values.iloc[[0, 4, 9]] = None
    adata.obs["key"] = values.astype(kind)
    with pytest.raises(
        InputError,
        match=f"found 3 cells without a value in obs column 'key', expected {text}.*, "
        "fill it or leave these cells out",
    ):
        prepare(adata, DataConfig(**{f"{use}_key": "key"}))


@pytest.mark.parametrize("kind", [object, "category", "string"])
def test_split_column(kind):
    adata = make()
    adata.obs["split"] = adata.obs["split"].astype(kind)
    data = prepare(adata, DataConfig(split_key="split"))
    assert data.split.tolist() == ["train"] * 8 + ["validation"] * 3 + ["test"]


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["Train", "val", "test"], "Train, val"),
        (["train ", "validation", "test"], "train "),
        ([0, 1, 2], "0, 1, 2"),
        ([True, False, True], "False, True"),
    ],
)
def test_split_column_with_other_names(names, listed):
    adata = make()
    adata.obs["split"] = names * 4
    with pytest.raises(
        InputError,
        match=f"found {listed} in obs column 'split', expected train, validation, test",
    ):
        prepare(adata, DataConfig(split_key="split"))


@pytest.mark.parametrize("key", ["batch_key", "size_factor_key", "split_key"])
def test_a_column_that_is_there_twice(key):
    adata = make()
    name = "depth" if key == "size_factor_key" else key.removesuffix("_key")
    adata.obs = pd.concat([adata.obs, adata.obs[[name]]], axis=1)
    with pytest.raises(InputError, match=f"found 2 obs columns '{name}'"):
        prepare(adata, DataConfig(**{key: name}))


# Keys that do not exist


@pytest.mark.parametrize("wrong", ["nope", "Batch", ""])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("batch_key", "for the batch, expected one of: batch, run, depth, split"),
        ("size_factor_key", "for the size factor, expected one of: batch, run, depth"),
        ("split_key", "for the split, expected one of: batch, run, depth, split"),
        ("genes", "for the genes, expected one of: highly_variable, none, share, text"),
        ("layer", ", expected one of: counts, scaled,"),
    ],
)
def test_unknown_keys_list_those_that_exist(key, text, wrong):
    adata = make(counts=table(), scaled=table() * 0.1)
    kind = {"genes": "var column ", "layer": "layer "}.get(key, "obs column ")
    with pytest.raises(InputError, match=f"found no {kind}{wrong!r}.*{text}"):
        prepare(adata, DataConfig(**{key: wrong}))


def test_an_unknown_key_among_many_lists_some():
    adata = make()
    for n in range(40):
        adata.obs[f"score_{n}"] = n
    with pytest.raises(
        InputError, match="score_25 and 14 more, give one of these or a"
    ):
        prepare(adata, DataConfig(batch_key="nope"))


@pytest.mark.parametrize("key", ["batch_key", "genes", "layer"])
def test_a_list_where_a_name_belongs(key):
    with pytest.raises(InputError, match=f"found {key}=.*, expected one name"):
        DataConfig(**{key: ["gene_1", "gene_2"]})


def test_column_of():
    adata = make()
    pd.testing.assert_series_equal(column_of(adata, "run", "scores"), adata.obs["run"])
    with pytest.raises(InputError, match="found no obs column 'nope' for the scores"):
        column_of(adata, "nope", "scores")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("share", "found var column 'share' of type float64, expected true or false"),
        (
            "text",
            "found var column 'text' of type (object|str), expected true or false",
        ),
        ("share", r"compare it \(adata.var\[...\] == 1, or of text adata.var"),
        ("missing", "found 3 genes without a value in var column 'missing', expected"),
        ("missing", r"fill them \(adata.var\[...\].fillna\(False\)\)"),
        ("none", "found no gene marked in var column 'none', expected at least one"),
    ],
)
def test_gene_masks_that_are_refused(key, text):
    adata = make()
    adata.var["missing"] = pd.array([True, None] * 3 + [True], dtype="boolean")
    with pytest.raises(InputError, match=text):
        prepare(adata, DataConfig(genes=key))


# Values that are refused


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "csr_array"])
def test_a_damaged_sparse_matrix(form):
    adata = make(getattr(scipy.sparse, form)(table(), dtype=np.float32))
    adata.X.indices[-1] = 10**6
    text = r"found a damaged sparse matrix in X \(.*\), expected indices within it"
    with pytest.raises(InputError, match=text):
        prepare(adata, DataConfig())


def test_masked_values():
    values = np.ma.masked_array(table(), mask=table() == 100, dtype=np.float32)
    adata = make(table().astype(np.float32))
    # as older versions of anndata keep them
    adata.layers["masked"] = values
    if np.ma.is_masked(adata.layers["masked"]):
        with pytest.raises(InputError, match="found 1 masked values in layer 'masked'"):
            prepare(adata, DataConfig(layer="masked"))


def test_no_cells_or_no_genes():
    with pytest.raises(InputError, match="found 0 cells and 7 genes, expected at leas"):
        prepare(make()[:0], DataConfig())
    with pytest.raises(InputError, match="found 12 cells and 0 genes, expected at lea"):
        prepare(make()[:, :0], DataConfig())


def test_repeated_gene_names():
    adata = make()
    adata.var_names = ["a", "a", "a", "b", "b", "c", "d"]
    text = r"found 2 gene names more than once \(a, b\), expected unique names, call"
    with pytest.raises(InputError, match=text):
        prepare(adata, DataConfig())
    adata.var_names_make_unique()
    data = prepare(adata, DataConfig())
    assert data.genes.tolist() == ["a", "a-1", "a-2", "b", "b-1", "c", "d"]


def test_repeated_names_of_cells_are_allowed():
    adata = make()
    adata.obs_names = ["a"] * N_OBS
    data = prepare(adata, DataConfig())
    assert data.cells.tolist() == ["a"] * N_OBS


@pytest.mark.parametrize("support", ["counts", "integers", "binary", "real"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrap", [np.asarray, scipy.sparse.csc_matrix])
@pytest.mark.parametrize("layer", [None, "mine"])
def test_values_that_are_not_finite(wrap, value, support, layer):
    counts = table().astype(np.float32)
    counts[[1, 2, 3], 4] = value
    adata = make(**({"mine": wrap(counts)} if layer else {"x": wrap(counts)}))
    where = "layer 'mine'" if layer else "X"
    with pytest.raises(
        InputError,
        match=f"found 3 values in {where} that are NaN or infinite, expected finite",
    ):
        prepare(adata, DataConfig(layer=layer), support=support)


@pytest.mark.parametrize("support", ["counts", "integers", "binary"])
def test_negative_values(support):
    counts = table().astype(np.float64)
    counts[0, :3] = [-1, -2.5, -1e-9]
    with pytest.raises(
        InputError,
        match="found 3 negative values in X, expected counts, pass raw counts: scaled",
    ) as caught:
        prepare(make(counts), DataConfig(), support=support)
    assert "looks like counts" not in str(caught.value)
    # rounding is no way around it
    with pytest.raises(InputError, match="found 3 negative values in X"):
        prepare(make(counts), DataConfig(fractional="round"), support=support)
    with pytest.raises(InputError, match=r"X, .*\(layer 'raw' looks like counts\)"):
        prepare(make(counts, raw=table()), DataConfig(), support=support)


def test_x_named_as_a_layer_is_x():
    counts = table().astype(np.float64)
    with pytest.raises(InputError, match="in X .*given; or fit with") as caught:
        prepare(make(counts + 0.5), DataConfig(layer="X"))
    assert "layer 'X'" not in str(caught.value)
    np.testing.assert_array_equal(
        prepare(make(counts), DataConfig(layer="X")).x.toarray(), counts
    )


def test_a_cell_without_counts_keeps_the_depth_that_is_given():
    counts = table().astype(np.float64)
    counts[0] = 0
    adata = make(counts)
    adata.obs["depth"] = 7.0
    with pytest.warns(InputWarning, match="no counts in the genes in use$"):
        data = prepare(adata, DataConfig(size_factor_key="depth"))
    assert data.depth[0] == 7.0


def test_a_copy_of_cells_in_a_file_is_in_memory(tmp_path):
    make(table().astype(np.float32)).write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    adata.layers["more"] = table().astype(np.float32)
    copied = in_memory(adata)
    assert not copied.isbacked
    assert not np.shares_memory(copied.layers["more"], adata.layers["more"])


def normalised():
    x = scipy.sparse.csr_matrix(table(), dtype=np.float64)
    x.data = np.log1p(x.data)
    return x


def test_fractional_values_name_their_share():
    counts = table().astype(np.float64)
    counts[0, 0] += 0.25
    share = 1 / np.count_nonzero(counts)
    with pytest.raises(
        InputError,
        match=rf"found fractional values in X \({share:.1%} of the non-zero entries\), "
        "expected counts, pass raw counts: normalised data was probably given; or "
        r"fit with fractional='round' or 'allow' \(train or compare --fractional "
        r"round\|allow\)$",
    ):
        prepare(make(counts), DataConfig())


@pytest.mark.parametrize(
    ("x", "layers", "layer", "hint"),
    [
        (normalised, {"raw": table}, None, "layer 'raw' looks like counts"),
        (normalised, {"a": normalised, "raw": table}, None, "layer 'raw' looks like"),
        (normalised, {"raw": lambda: table() * 1.0}, None, "layer 'raw' looks like"),
        (table, {"norm": normalised}, "norm", "X looks like counts"),
        (normalised, {"raw": lambda: FORMS["csc"](table())}, None, "layer 'raw' looks"),
    ],
)
def test_fractional_values_name_the_matrix_that_looks_like_counts(
    x, layers, layer, hint
):
    adata = make(x(), **{name: build() for name, build in layers.items()})
    with pytest.raises(InputError, match=rf"found fractional values in .*\({hint}"):
        prepare(adata, DataConfig(layer=layer))


@pytest.mark.parametrize(
    "other",
    [
        normalised,
        lambda: -table(),
        lambda: table() * np.nan,
        lambda: table() * 1.0 + np.inf,
        lambda: table() * 0,
    ],
    ids=["normalised", "negative", "NaN", "infinite", "zeros"],
)
def test_fractional_values_name_no_matrix_that_does_not_look_like_counts(other):
    with pytest.raises(InputError, match="found fractional values in X") as caught:
        prepare(make(normalised(), other=other()), DataConfig())
    assert "looks like counts" not in str(caught.value)


def test_the_matrix_that_is_refused_is_not_what_looks_like_counts():
    # though its first cells do
    counts = np.tile(table(), (30, 1)).astype(np.float64)
    counts[-1, 0] = 0.5
    with pytest.raises(InputError, match="found fractional values in X") as caught:
        prepare(anndata.AnnData(X=counts), DataConfig())
    assert "looks like counts" not in str(caught.value)


def test_fractional_values_rounded():
    counts = np.array([[0.4, 0.6, 1.2, 2.0], [0.0, 0.1, 2.7, 3.0]])
    adata = anndata.AnnData(X=scipy.sparse.csr_matrix(counts))
    with pytest.warns(InputWarning, match="71.4% of the non-zero .* and are rounded"):
        data = prepare(adata, DataConfig(fractional="round"))
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), [[0, 1, 1, 2], [0, 0, 3, 3]])
    np.testing.assert_array_equal(data.depth, [4, 6])


def test_fractional_values_rounded_to_nothing():
    adata = anndata.AnnData(X=np.array([[0.4, 0.1], [2.2, 0.0]]))
    with (
        pytest.warns(InputWarning, match="are fractional and are rounded"),
        pytest.warns(InputWarning, match="1 of 2 cells have no counts"),
    ):
        data = prepare(adata, DataConfig(fractional="round"))
    np.testing.assert_array_equal(data.depth, [1, 2])


def test_fractional_values_allowed():
    with pytest.warns(InputWarning, match="are fractional and are taken as they are"):
        data = prepare(make(normalised()), DataConfig(fractional="allow"))
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), normalised().toarray().astype("f4"))


def test_fractional_values_do_not_suit_a_categorised_likelihood():
    adata = make(normalised())
    with pytest.raises(
        InputError,
        match=r"found fractional values in X \(.*%.*\), expected integers for a categor"
        r"ised likelihood, fit with fractional='round' \(train or compare "
        r"--fractional round\)",
    ):
        prepare(adata, DataConfig(fractional="allow"), support="integers")
    with pytest.warns(InputWarning, match="are fractional and are rounded"):
        data = prepare(adata, DataConfig(fractional="round"), support="integers")
    np.testing.assert_array_equal(data.x.toarray(), normalised().toarray().round())


def test_binary_support():
    other = int((table() > 1).sum())
    with pytest.raises(
        InputError,
        match=f"found {other} values in X other than 0 and 1, expected binary data",
    ):
        prepare(make(), DataConfig(), support="binary")
    data = prepare(make((table() > 0) * 1), DataConfig(), support="binary")
    np.testing.assert_array_equal(data.x.toarray(), table() > 0)


def test_real_support_takes_any_finite_value():
    values = np.random.default_rng(0).normal(size=(N_OBS, N_VARS))
    data = prepare(make(values), DataConfig(), support="real")
    assert_canonical(data.x)
    np.testing.assert_array_equal(data.x.toarray(), values.astype(np.float32))
    assert (data.depth >= 1).all()


@pytest.mark.parametrize("n_empty", [1, 4, N_OBS - 1])
@pytest.mark.parametrize("support", ["counts", "integers"])
def test_empty_cells_warn_with_their_number(n_empty, support):
    counts = table()
    counts[:n_empty] = 0
    with pytest.warns(InputWarning, match=f"{n_empty} of 12 cells have no counts"):
        data = prepare(make(counts), DataConfig(), support=support)
    np.testing.assert_array_equal(data.x.toarray(), counts)
    assert (data.depth[:n_empty] == 1).all()


@pytest.mark.parametrize("support", ["counts", "integers", "binary"])
def test_nothing_but_zeros(support):
    zeros = make(table() * 0, raw=table())
    with pytest.raises(
        InputError,
        match=r"found nothing but zeros .*, choose another layer \(layer 'raw' looks",
    ):
        prepare(zeros, DataConfig(), support=support)
    # cells for a fitted model may be empty, every one of them
    with pytest.warns(InputWarning, match="12 of 12 cells have no counts"):
        prepare(zeros, DataConfig(), genes=np.asarray(zeros.var_names))


def test_empty_cells_are_counted_over_the_genes_in_use():
    counts = table()
    counts[2, [0, 2, 3, 6]] = 0
    counts[2, 1] = 5
    with pytest.warns(InputWarning, match="1 of 12 cells have no counts in the genes "):
        prepare(make(counts), DataConfig(genes="highly_variable"))


@pytest.mark.parametrize("kind", [object, str, complex])
def test_data_that_is_no_number(kind):
    adata = make()
    x = table().astype(kind)
    adata.layers["odd"] = x
    with pytest.raises(
        InputError, match=f"found data of type {x.dtype}, expected numbers, convert it"
    ):
        prepare(adata, DataConfig(layer="odd"))


@pytest.mark.parametrize("given", [table(), pd.DataFrame(table()), "data.h5ad", None])
def test_something_that_is_not_anndata(given):
    with pytest.raises(InputError, match="found .*, expected an AnnData object"):
        prepare(given, DataConfig())


def test_one_cell_and_one_gene():
    data = prepare(anndata.AnnData(X=np.array([[3.0]])), DataConfig())
    assert data.x.toarray().tolist() == [[3.0]]
    assert data.depth.tolist() == [3.0]


# Random splits


@pytest.mark.parametrize(
    ("n_obs", "validation", "test", "sizes"),
    [
        (100, 0.1, 0.0, (90, 10, 0)),
        (100, 0.1, 0.2, (70, 10, 20)),
        (7, 0.1, 0.0, (6, 1, 0)),
        (2, 0.1, 0.0, (1, 1, 0)),
        (1000, 0.0001, 0.5, (499, 1, 500)),
        (15, 0.1, 0.1, (11, 2, 2)),
    ],
)
def test_random_split_has_the_sizes_asked_for(n_obs, validation, test, sizes):
    split = random_split(n_obs, validation, test, seed=0)
    assert tuple(int((split == part).sum()) for part in SPLITS) == sizes
    assert len(split) == n_obs


def test_random_split_depends_on_the_seed_alone():
    one, two = (random_split(200, 0.2, 0.1, seed=4) for _ in range(2))
    other = random_split(200, 0.2, 0.1, seed=5)
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    # drawn, not cut off at an end
    places = np.flatnonzero(one == "validation")
    assert places.min() < 50
    assert places.max() > 150


# Files


def test_a_file_is_read(tmp_path):
    adata = make(counts=table())
    adata.write_h5ad(tmp_path / "data.h5ad")
    for path in (tmp_path / "data.h5ad", str(tmp_path / "data.h5ad")):
        found = read_h5ad(path)
        np.testing.assert_array_equal(found.X.toarray(), table())
        assert not found.isbacked


def test_a_file_with_layers_alone_is_read(tmp_path):
    adata = make(counts=table())
    adata.X = None
    adata.write_h5ad(tmp_path / "data.h5ad")
    assert read_h5ad(tmp_path / "data.h5ad").layers["counts"].sum() == table().sum()


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (BlockingIOError(11, "unable to lock file"), InputError, "locked by another"),
        (OSError(37, "unable to lock file"), InputError, "HDF5_USE_FILE_LOCKING=FALSE"),
        (PermissionError(13, "not for you"), InputError, "which may not be read"),
        # of the machine, not of the file
        (MemoryError(), MemoryError, None),
    ],
)
def test_a_good_file_is_not_blamed(tmp_path, monkeypatch, error, expected, message):
    def read(path):
        raise error

    make().write_h5ad(tmp_path / "data.h5ad")
    monkeypatch.setattr(anndata, "read_h5ad", read)
    with pytest.raises(expected, match=message):
        read_h5ad(tmp_path / "data.h5ad")


def write_damaged(path, kind):
    make().write_h5ad(path)
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("gene,count\nACTB,3\n")
    elif kind == "empty":
        path.touch()
    elif kind.startswith("cut"):
        path.write_bytes(content[: int(len(content) * float(kind[4:]))])
    elif kind == "other HDF5":
        with h5py.File(path, "w") as file:
            file.create_group("matrix")["data"] = np.arange(3)
    elif kind == "HDF5 without anything":
        h5py.File(path, "w").close()
    elif kind == "neither X nor layers":
        anndata.AnnData(obs=make().obs, var=make().var).write_h5ad(path)
    else:
        assert kind == "absent"


FILES = {
    "absent": "found no file at .*data.h5ad, expected an .h5ad file, check the path",
    "folder": "found a folder at .*data.h5ad, expected an .h5ad file, check the path",
    "text": "found a file that is not HDF5 at .*data.h5ad, expected an .h5ad file",
    "empty": "found a file that is not HDF5 at .*data.h5ad, expected an .h5ad file",
    "cut 0.1": "found a damaged or truncated HDF5 file at .*, expected a whole .h5ad",
    "cut 0.5": "found a damaged or truncated HDF5 file at .*, expected a whole .h5ad",
    "cut 0.99": "found a damaged or truncated HDF5 file at .*, expected a whole .h5ad",
    "other HDF5": "found an HDF5 file that anndata cannot read at .*, expected an .h5a",
    "HDF5 without anything": "found an HDF5 file that anndata cannot read at .*, expec",
    "neither X nor layers": "found neither X nor layers in .*, expected counts of cell",
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_refused(tmp_path, kind):
    write_damaged(tmp_path / "data.h5ad", kind)
    with pytest.raises(InputError, match=FILES[kind]) as caught:
        read_h5ad(tmp_path / "data.h5ad")
    assert "\n" not in str(caught.value)


def test_counts_in_raw_are_named_and_rounding_is_not():
    adata = make(normalised())
    adata.raw = make(table())
    with pytest.raises(InputError, match="raw.X looks like counts") as caught:
        prepare(adata, DataConfig())
    assert str(caught.value).endswith(
        "(raw.X looks like counts: take adata.raw.to_adata())"
    )
    counts = prepare(adata.raw.to_adata(), DataConfig())
    np.testing.assert_array_equal(counts.x.toarray(), table())


def test_a_file_without_x(tmp_path):
    adata = anndata.AnnData(obs=make().obs, var=make().var)
    adata.layers["counts"] = table()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(InputError, match="found no X, .* one of the layers: counts"):
        prepare(backed, DataConfig())
    counts = prepare(backed, DataConfig(layer="counts"))
    np.testing.assert_array_equal(counts.x.toarray(), table())
