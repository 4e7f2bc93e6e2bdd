"""Tests of the data sets: recovered counts, labels, and the simulator's truth."""

import gzip
import inspect
import sys

import anndata
import numpy as np
import pytest
from scipy import sparse

from scvae_jax import datasets
from scvae_jax.checks import InputError


def _assert_csr_counts(matrix):
    assert sparse.issparse(matrix) and matrix.format == "csr"
    assert matrix.dtype == np.float32
    assert matrix.data.min() >= 0
    np.testing.assert_array_equal(matrix.data, np.rint(matrix.data))


def _true_mean_from_fields(data):
    """Recompute the mean of every entry from the other fields only."""
    types, batches = data.obs["cell_type"].cat.codes, data.obs["batch"].cat.codes
    weights = data.varm["type_profiles"].T[types]
    weights = weights * np.exp(data.varm["batch_effects"].T[batches])
    shares = weights / weights.sum(axis=1, keepdims=True)
    return data.obs["depth"].to_numpy()[:, None] * shares


# Real data


def test_pbmc_counts_are_integers_of_plausible_size():
    """The counts are integers, every cell has a 1, and totals fit in the known ones."""
    pytest.importorskip("scanpy")
    data = datasets.pbmc68k_reduced()
    assert data.shape == (700, 765)
    _assert_csr_counts(data.X)
    assert data.X.data.min() > 0
    # IGLL5 in one B cell; all other genes but immunoglobulins stay below 130.
    assert data.X.max() == 259
    np.testing.assert_array_equal(
        np.minimum.reduceat(data.X.data, data.X.indptr[:-1]), 1
    )
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    assert np.all(totals < data.obs["total_counts_all_genes"])
    assert 300 < totals.min() < 600 < np.median(totals) < 700 < totals.max() < 1700


def test_pbmc_counts_give_back_the_shipped_values():
    """Normalising the counts again gives scanpy's values to their 3 decimals."""
    scanpy = pytest.importorskip("scanpy")
    shipped = scanpy.datasets.pbmc68k_reduced()
    data = datasets.pbmc68k_reduced()
    totals = shipped.obs["n_counts"].to_numpy(dtype=np.float64)
    again = np.log1p(data.X.toarray() * (1e4 / totals)[:, None])
    # Half of the last decimal, and float32.
    np.testing.assert_allclose(again, shipped.raw.X.toarray(), rtol=0, atol=5.02e-4)


def test_pbmc_labels_and_names_are_scanpys():
    """Labels and names equal the shipped ones and nothing derived is kept."""
    scanpy = pytest.importorskip("scanpy")
    shipped = scanpy.datasets.pbmc68k_reduced()
    data = datasets.pbmc68k_reduced()
    for label, number in (("bulk_labels", 10), ("louvain", 11)):
        assert data.obs[label].dtype == "category"
        assert len(data.obs[label].cat.categories) == number
        assert data.obs[label].tolist() == shipped.obs[label].tolist()
    assert data.obs_names.tolist() == shipped.obs_names.tolist()
    assert data.var_names.tolist() == shipped.raw.var_names.tolist()
    assert data.var_names.is_unique and data.obs_names.is_unique
    kept = ["bulk_labels", "louvain", "total_counts_all_genes"]
    assert list(data.obs.columns) == kept
    assert data.var.empty and data.raw is None
    for field in (data.uns, data.obsm, data.varm, data.obsp, data.layers):
        assert len([name for name in field if name is not None]) == 0


def test_pbmc_survives_write_and_read(tmp_path):
    """The recovered data set can be written and read again."""
    pytest.importorskip("scanpy")
    data = datasets.pbmc68k_reduced()
    data.write_h5ad(tmp_path / "pbmc.h5ad")
    again = anndata.read_h5ad(tmp_path / "pbmc.h5ad")
    assert abs(again.X - data.X).max() == 0
    assert again.obs["bulk_labels"].tolist() == data.obs["bulk_labels"].tolist()


def _log_normalised(counts, totals):
    return sparse.csr_matrix(np.log1p(np.asarray(counts) * 1e4 / totals[:, None]))


def test_recovery_gives_known_counts():
    """Counts that went through the normalisation come back."""
    counts = np.array([[0.0, 1.0, 7.0], [3.0, 1.0, 0.0]])
    totals = np.array([20.0, 9.0])
    found = datasets._recover_counts(_log_normalised(counts, totals), totals)
    np.testing.assert_array_equal(found.toarray(), counts)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1.0, 2.4], [1.0, 3.0]], r"found recovered counts up to 0\.400 from an int"),
        ([[2.0, 4.0], [1.0, 3.0]], r"found recovered cell totals 0\.500 to 1\.000"),
        ([[0.0, 0.0], [1.0, 3.0]], r"found 1 cells without counts"),
        ([[1.0, np.nan], [1.0, 3.0]], r"found recovered cell totals nan to nan"),
    ],
)
def test_recovery_refuses_what_is_not_counts(counts, message):
    """Values that are no counts, or whose unit is not 1, are refused with a reason."""
    totals = np.array([20.0, 9.0])
    with pytest.raises(InputError, match=message + ".*, expected .*, install a scanpy"):
        datasets._recover_counts(_log_normalised(counts, totals), totals)


def test_digits_equal_sklearns():
    """Images and labels equal those of scikit-learn."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    bunch = sklearn_datasets.load_digits()
    data = datasets.digits()
    assert data.shape == (1797, 64)
    _assert_csr_counts(data.X)
    assert data.X.max() == 16
    np.testing.assert_array_equal(data.X.toarray(), bunch.data)
    assert data.obs["digit"].dtype == "category"
    assert data.obs["digit"].tolist() == [str(digit) for digit in bunch.target]
    assert list(data.obs["digit"].cat.categories) == list("0123456789")
    assert data.var_names.tolist() == list(bunch.feature_names)


@pytest.mark.parametrize(
    ("function", "module", "package"),
    [
        (datasets.pbmc68k_reduced, "scanpy", "scanpy"),
        (datasets.digits, "sklearn.datasets", "scikit-learn"),
    ],
)
def test_missing_package_is_named(monkeypatch, function, module, package):
    """Without the extra package the error names it and the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    expected = rf"{package}.*pip install 'scvae_jax\[analysis\]'"
    with pytest.raises(ImportError, match=expected):
        function()


# Handwritten digits


def _idx(array):
    sizes = np.array(array.shape, ">i4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def _write_mnist(folder, part, images, labels):
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{part}-{kind}-ubyte.gz"
        path.write_bytes(gzip.compress(_idx(array)))


def test_mnist_reads_both_parts(tmp_path):
    """Pixels, labels and names are those of the files, train first."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 28, 28)) * random.integers(0, 2, (5, 28, 28))
    labels = np.array([7, 0, 3, 9, 7])
    _write_mnist(tmp_path, "t10k", images[:2], labels[:2])
    data = datasets.mnist(tmp_path)
    assert data.shape == (2, 784) and list(data.obs_names) == ["t10k_0", "t10k_1"]
    _write_mnist(tmp_path, "train", images[2:], labels[2:])
    data = datasets.mnist(tmp_path)
    _assert_csr_counts(data.X)
    order = [2, 3, 4, 0, 1]
    np.testing.assert_array_equal(data.X.toarray(), images[order].reshape(5, 784))
    assert data.obs["digit"].tolist() == labels[order].astype(str).tolist()
    assert data.obs["part"].tolist() == ["train"] * 3 + ["t10k"] * 2
    assert list(data.obs_names[2:4]) == ["train_2", "t10k_0"]
    assert data.var_names[29] == "pixel_1_1"
    binary = datasets.mnist(tmp_path, binarised=True).X.toarray()
    np.testing.assert_array_equal(binary, images[order].reshape(5, 784) > 127)
    assert 0 < binary.mean() < 1


def test_mnist_refuses_what_is_not_mnist(tmp_path):
    """Absent, damaged and other files are named, with what to do."""
    images, labels = np.zeros((2, 28, 28), int), np.array([1, 2])
    with pytest.raises(InputError, match="found neither in .*, expected train-images"):
        datasets.mnist(tmp_path)
    _write_mnist(tmp_path, "train", images, labels[:1])
    with pytest.raises(InputError, match="found 2 images and 1 labels of train in"):
        datasets.mnist(tmp_path)
    _write_mnist(tmp_path, "train", images, labels + 9)
    with pytest.raises(InputError, match="found a label 11 of train, expected 0 to 9"):
        datasets.mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    packed = gzip.compress
    for content, message in (
        (whole[:-9], "found a damaged file .*, expected a whole gzip file, download"),
        (b"text", "found a damaged file .*train-images"),
        (
            packed(b"text"),
            "found something else in .*, expected bytes in 3 axes in idx",
        ),
        (packed(_idx(labels)), "found something else in .*train-images"),
        (packed(_idx(images)[:-1]), r"found 1567 bytes for shape \(2, 28, 28\) in"),
        (packed(_idx(images[:, 1:])), "found images of 27 by 28 pixels in .*, expect"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            datasets.mnist(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="found no file .*images.*, expected images a"):
        datasets.mnist(tmp_path)


@pytest.mark.shared
def test_real_mnist(shared):
    """The test images: 10,000, as many of each digit as is known."""
    data = datasets.mnist(shared / "mnist")
    assert data.shape == (10_000, 784) and data.X.max() == 255
    counts = data.obs["digit"].value_counts().sort_index().tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# Simulated data


def test_simulated_fields_have_the_documented_shapes():
    """Shapes, types and names are as documented, also for more rows than one block."""
    data = datasets.simulate(
        5000, 7, n_types=3, n_batches=2, dispersion_scale=0.5, fraction_marker=0.3
    )
    assert data.shape == (5000, 7)
    _assert_csr_counts(data.X)
    assert list(data.obs["cell_type"].cat.categories) == ["type_0", "type_1", "type_2"]
    assert list(data.obs["batch"].cat.categories) == ["batch_0", "batch_1"]
    assert set(data.obs["batch"]) == {"batch_0", "batch_1"}
    assert data.varm["type_profiles"].shape == (7, 3)
    assert data.varm["type_log_fold"].shape == (7, 3)
    assert data.varm["batch_effects"].shape == (7, 2)
    assert data.layers["true_mean"].dtype == np.float32
    assert data.var_names[6] == "gene_6" and data.obs_names[4999] == "cell_4999"
    np.testing.assert_allclose(data.varm["type_profiles"].sum(axis=0), 1)
    # round(0.3 * 7) markers of each type.
    np.testing.assert_array_equal((data.varm["type_log_fold"] != 0).sum(axis=0), 2)
    assert np.all(data.varm["batch_effects"][:, 0] == 0)
    assert np.all(data.varm["batch_effects"][:, 1] != 0)
    assert data.var["dispersion"].nunique() == 7


def test_true_mean_follows_from_the_other_fields():
    """The true mean is the documented formula, and its row sum the depth."""
    data = datasets.simulate(5000, 30, n_types=4, n_batches=3, batch_scale=0.7)
    expected = _true_mean_from_fields(data)
    np.testing.assert_allclose(data.layers["true_mean"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        data.layers["true_mean"].sum(axis=1), data.obs["depth"], rtol=1e-5
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_moments_of_equal_cells(dropout):
    """Mean and variance over equal cells are those of the documented model."""
    n_obs, theta = 20_000, np.geomspace(0.5, 50, 12)
    data = datasets.simulate(
        n_obs, 12, n_types=1, depth=300, depth_scale=0, dispersion=theta,
        dropout=dropout, seed=3,
    )  # fmt: skip
    np.testing.assert_array_equal(data.var["dispersion"], theta)
    mean = data.layers["true_mean"][0].astype(np.float64)
    np.testing.assert_allclose(data.layers["true_mean"], mean[None].repeat(n_obs, 0))
    keep = 1 - dropout
    # Var(kept * count) = keep Var(count) + keep (1 - keep) mean^2
    variance = keep * (mean + mean**2 / theta) + keep * dropout * mean**2
    counts = data.X.toarray().astype(np.float64)
    standard_error = np.sqrt(variance / n_obs)
    assert np.all(np.abs(counts.mean(axis=0) - keep * mean) < 4.5 * standard_error)
    squares = (counts - keep * mean) ** 2
    standard_error = squares.std(axis=0) / np.sqrt(n_obs)
    assert np.all(np.abs(squares.mean(axis=0) - variance) < 4.5 * standard_error)
    # The bound above must be narrow enough to tell theta from half or twice of it.
    assert np.all(4.5 * standard_error < 0.25 * variance)


def test_standardised_counts_of_unequal_cells():
    """Every entry, not just the average one, has its own true mean and variance."""
    data = datasets.simulate(
        3000, 60, n_batches=3, depth_scale=0.8, batch_scale=1.0, dispersion_scale=0.5,
        dispersion=5.0,
    )  # fmt: skip
    mean = data.layers["true_mean"].astype(np.float64)
    variance = mean + mean**2 / data.var["dispersion"].to_numpy()
    scores = (data.X.toarray() - mean) / np.sqrt(variance)
    assert abs(scores.mean()) < 4.5 / np.sqrt(scores.size)
    assert abs((scores**2).mean() - 1) < 4.5 * (scores**2).std() / np.sqrt(scores.size)
    # Binned by what the mean depends on, the residuals stay centred.
    for codes in (data.obs["cell_type"].cat.codes, data.obs["batch"].cat.codes):
        for code in np.unique(codes):
            group = scores[codes == code]
            assert np.abs(group.mean(axis=0)).max() < 5 / np.sqrt(len(group))


def test_dropout_zeroes_its_share_and_nothing_else():
    """The same seed with dropout gives the same counts, a share of them zeroed."""
    full = datasets.simulate(1000, 50, seed=5).X.toarray()
    thinned = datasets.simulate(1000, 50, seed=5, dropout=0.35).X.toarray()
    positive = full > 0
    lost = positive & (thinned == 0)
    np.testing.assert_array_equal(thinned[~lost], full[~lost])
    share, number = lost.sum() / positive.sum(), positive.sum()
    assert abs(share - 0.35) < 4.5 * np.sqrt(0.35 * 0.65 / number)
    # Technical: the share lost is the same for small and for large counts.
    large = full > np.median(full[positive])
    assert abs(lost[large].mean() - 0.35) < 4.5 * np.sqrt(0.35 * 0.65 / large.sum())


def test_depth_is_log_normal_with_the_given_mean():
    """Depths have the asked mean and log spread, and counts sum to them."""
    n_obs = 20_000
    data = datasets.simulate(n_obs, 20, depth=500.0, depth_scale=0.4, dispersion=20)
    depth = data.obs["depth"].to_numpy()
    # Var(depth) = depth^2 (exp(s^2) - 1)
    standard_error = 500 * np.sqrt(np.expm1(0.16) / n_obs)
    assert abs(depth.mean() - 500) < 4.5 * standard_error
    assert abs(np.log(depth).std() - 0.4) < 4.5 * 0.4 / np.sqrt(2 * n_obs)
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    assert abs((totals / depth).mean() - 1) < 0.01
    assert np.corrcoef(totals, depth)[0, 1] > 0.8


def _nearest_type(data):
    """The most likely type of every cell under Poisson counts of known profiles."""
    return np.asarray(data.X @ np.log(data.varm["type_profiles"])).argmax(axis=1)


def test_types_are_separable_unless_they_are_equal():
    """Known profiles find the type of a cell; without markers there is none to find."""
    data = datasets.simulate(500, 300)
    correct = _nearest_type(data) == data.obs["cell_type"].cat.codes
    assert correct.mean() > 0.97
    same = datasets.simulate(500, 300, type_scale=0.0)
    np.testing.assert_allclose(
        np.ptp(same.varm["type_profiles"], axis=1), 0, atol=1e-12
    )
    none = datasets.simulate(500, 300, fraction_marker=0.0)
    assert np.all(none.varm["type_log_fold"] == 0)


def test_type_proportions_are_uneven_or_as_given():
    """Drawn proportions differ; given ones are followed, with their zeros."""
    drawn = datasets.simulate(50, 3).uns["simulation"]["type_proportions"]
    assert len(set(drawn)) == 5 and abs(sum(drawn) - 1) < 1e-12
    given = [0.7, 0.0, 0.3]
    data = datasets.simulate(10_000, 2, n_types=3, type_proportions=given)
    shares = data.obs["cell_type"].value_counts(normalize=True, sort=False)
    np.testing.assert_allclose(shares, given, atol=4.5 * np.sqrt(0.21 / 10_000))
    assert shares["type_1"] == 0


def test_gene_scales_are_as_given():
    """Baselines, marker folds and batch effects have the given log spread."""
    n_vars = 5000
    data = datasets.simulate(
        2, n_vars, n_types=1, n_batches=2, fraction_marker=0.0, baseline_scale=0.8,
        batch_scale=0.6,
    )  # fmt: skip
    bound = 4.5 / np.sqrt(2 * n_vars)
    assert abs(np.log(data.varm["type_profiles"]).std() / 0.8 - 1) < bound
    assert abs(data.varm["batch_effects"][:, 1].std() / 0.6 - 1) < bound
    fold = datasets.simulate(2, n_vars, fraction_marker=1.0, type_scale=1.7).varm
    assert abs(fold["type_log_fold"].std() / 1.7 - 1) < bound / np.sqrt(5)
    without = datasets.simulate(2, 50, n_batches=2, batch_scale=0.0)
    assert np.all(without.varm["batch_effects"] == 0)


def test_markers_differ_between_types():
    """Each type has its share of markers, at positions of its own."""
    is_marker = datasets.simulate(2, 400).varm["type_log_fold"] != 0
    np.testing.assert_array_equal(is_marker.sum(axis=0), 40)
    assert len({column.tobytes() for column in is_marker.T}) == 5
    # By chance two types share 40 * 40 / 400 = 4 markers.
    assert (is_marker[:, 0] & is_marker[:, 1]).sum() < 15


def _arrays(data):
    return [
        data.X.data, data.X.indices, data.X.indptr, data.layers["true_mean"],
        data.obs["depth"].to_numpy(), data.obs["cell_type"].cat.codes.to_numpy(),
        data.obs["batch"].cat.codes.to_numpy(), data.var["dispersion"].to_numpy(),
        *(data.varm[name] for name in sorted(data.varm)),
    ]  # fmt: skip


def test_seed_decides_every_bit():
    """The same seed gives the same bytes, another seed other ones in every field."""
    settings = {"n_batches": 3, "dropout": 0.1, "dispersion_scale": 0.2}
    first = _arrays(datasets.simulate(200, 40, **settings, seed=1))
    again = _arrays(datasets.simulate(200, 40, **settings, seed=1))
    other = _arrays(datasets.simulate(200, 40, **settings, seed=2))
    for one, same, different in zip(first, again, other, strict=True):
        assert one.dtype == same.dtype and one.tobytes() == same.tobytes()
        assert one.tobytes() != different.tobytes()


def test_global_random_state_is_left_alone():
    """The simulator neither reads nor changes numpy's global generator."""
    np.random.seed(0)
    before = datasets.simulate(20, 5).X.toarray()
    expected = np.random.RandomState(0).rand()
    assert np.random.rand() == expected
    np.testing.assert_array_equal(datasets.simulate(20, 5).X.toarray(), before)


def test_settings_name_every_argument_and_repeat_the_data():
    """The stored settings cover the signature and simulate the same data again."""
    data = datasets.simulate(
        np.int64(60), 9, n_types=2, dispersion=np.arange(1, 10), dropout=0.2, seed=7
    )
    settings = data.uns["simulation"]
    assert set(settings) == set(inspect.signature(datasets.simulate).parameters)
    for value in settings.values():
        assert type(value) in (int, float, list)
    again = datasets.simulate(**settings)
    np.testing.assert_array_equal(again.X.toarray(), data.X.toarray())


@pytest.mark.parametrize("dispersion", [1.5, np.linspace(1, 2, 12)])
def test_simulation_survives_write_and_read(tmp_path, dispersion):
    """All fields come back equal from an h5ad file."""
    data = datasets.simulate(
        40, 12, n_types=12, n_batches=2, dispersion=dispersion, dropout=0.1
    )
    data.write_h5ad(tmp_path / "simulated.h5ad")
    again = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    for one, same in zip(_arrays(data), _arrays(again), strict=True):
        np.testing.assert_array_equal(one, same)
    for label in ("cell_type", "batch"):
        categories = list(data.obs[label].cat.categories)
        assert list(again.obs[label].cat.categories) == categories
    assert set(again.uns["simulation"]) == set(data.uns["simulation"])
    for name, value in data.uns["simulation"].items():
        np.testing.assert_array_equal(again.uns["simulation"][name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_obs": 0}, "found n_obs = 0, expected an integer of at least 1"),
        ({"n_obs": 10.0}, r"found n_obs = 10\.0, expected an integer"),
        ({"n_vars": -3}, "found n_vars = -3, expected an integer of at least 1"),
        ({"n_types": 0}, "found n_types = 0, expected an integer of at least 1"),
        ({"n_batches": 0}, "found n_batches = 0, expected an integer of at least 1"),
        ({"seed": -1}, "found seed = -1, expected an integer of at least 0"),
        ({"seed": None}, "found seed = None, expected an integer of at least 0"),
        ({"depth": 0.0}, r"found depth = 0\.0, expected a finite number above 0"),
        ({"depth": np.inf}, "found depth = inf, expected a finite number above 0"),
        ({"depth_scale": -0.1}, r"found depth_scale = -0\.1, expected a finite"),
        ({"dispersion_scale": -1}, "found dispersion_scale = -1, expected a finite"),
        ({"baseline_scale": np.nan}, "found baseline_scale = nan, expected a finite"),
        ({"type_scale": -2}, "found type_scale = -2, expected a finite"),
        ({"batch_scale": np.inf}, "found batch_scale = inf, expected a finite"),
        ({"dropout": 1.0}, r"found dropout = 1\.0, expected a probability in \[0, 1\)"),
        ({"dropout": -0.1}, r"found dropout = -0\.1, expected a probability"),
        ({"fraction_marker": 1.1}, r"found fraction_marker = 1\.1, expected a share"),
        ({"dispersion": 0.0}, r"found dispersion from 0\.0 to 0\.0, expected finite"),
        ({"dispersion": np.inf}, "found dispersion from inf to inf, expected finite"),
        (
            {"dispersion": [1.0, -1.0, 2.0, 1.0]},
            r"found dispersion from -1\.0 to 2\.0, expected finite numbers above 0",
        ),
        (
            {"dispersion": [1.0, np.nan, 2.0, 1.0]},
            r"found dispersion from nan to nan, expected finite numbers above 0",
        ),
        (
            {"dispersion": [1.0, 2.0]},
            r"found dispersion of shape \(2,\), expected a scalar or shape \(4,\)",
        ),
        (
            {"type_proportions": [0.5, 0.4]},
            r"found type_proportions = \[0\.5, 0\.4\], expected 5 numbers from 0",
        ),
        (
            {"n_types": 2, "type_proportions": [0.5, 0.4]},
            r"found type_proportions = \[0\.5, 0\.4\], expected 2 numbers from 0",
        ),
        (
            {"n_types": 2, "type_proportions": [1.5, -0.5]},
            r"found type_proportions = \[1\.5, -0\.5\], expected 2 numbers from 0",
        ),
        ({"depth": 1e10}, "found a count of [0-9]+, expected at most 16777216"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    """Each argument out of range is named, with what was found and what to do."""
    with pytest.raises(InputError, match=message + r"[^\n]*, (change|lower) [^\n]+$"):
        datasets.simulate(**({"n_obs": 5, "n_vars": 4} | arguments))
