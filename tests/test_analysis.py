"""What a fitted model writes into AnnData, and pictures of it."""

import dataclasses
import json

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from matplotlib.axes import Axes

import scvae_jax as sv
from scvae_jax import analysis, batches, clusters, evaluation, latents, plots
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.config import from_json

WRITTEN = {"obsm": {"X_scvae"}, "obs": {"scvae_elbo", "scvae_split"}, "uns": {"scvae"}}


@pytest.fixture
def cells(small):
    """A copy of the cells that were fitted, with all that must be left alone."""
    adata = small.copy()
    adata.raw = adata.copy()
    adata.layers["normalised"] = np.log1p(adata.X.toarray())
    adata.layers["counts"] = scipy.sparse.csc_matrix(adata.X)
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    return adata


@pytest.fixture(scope="module")
def applied(small, fitted):
    """The fitted cells after `apply`, to be read only."""
    return sv.apply(small, fitted, copy=True)


@pytest.fixture
def quick(monkeypatch):
    """Figures without a model, where only what becomes of them is tested."""

    def cell_bounds(model, params, cells, **settings):
        depth = np.asarray(cells.depth)
        latent = np.stack([depth, depth + 1, depth + 2], axis=1)
        r = np.ones((len(latent), 1))
        return evaluation.CellBounds(latent, -depth, -depth, -depth, depth, depth, r)

    monkeypatch.setattr(analysis, "cell_bounds", cell_bounds)


def fields(adata):
    return {name: set(getattr(adata, name).keys()) for name in WRITTEN}


def assert_same_counts(one, other):
    for matrix in ("X", "raw"):
        a, b = getattr(one, matrix), getattr(other, matrix)
        a, b = (a.X, b.X) if matrix == "raw" else (a, b)
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.data, b.data)
        np.testing.assert_array_equal(a.indices, b.indices)
    assert set(one.layers) == set(other.layers)
    np.testing.assert_array_equal(one.layers["normalised"], other.layers["normalised"])
    np.testing.assert_array_equal(
        one.layers["counts"].data, other.layers["counts"].data
    )
    pd.testing.assert_frame_equal(one.var, other.var)


# What is written


def test_the_fields_and_their_types(applied, small, fitted):
    before = fields(small)
    assert fields(applied) == {name: before[name] | WRITTEN[name] for name in WRITTEN}
    latent = applied.obsm["X_scvae"]
    assert latent.shape == (120, 3)
    assert latent.dtype == np.float32
    assert np.isfinite(latent).all()
    # 40 genes: coordinates that differ from cell to cell
    assert (latent.std(axis=0) > 0).all()
    elbo = applied.obs["scvae_elbo"]
    assert elbo.dtype == np.float32
    assert np.isfinite(elbo).all()
    assert (elbo < 0).all()
    split = applied.obs["scvae_split"]
    assert isinstance(split.dtype, pd.CategoricalDtype)
    assert split.cat.categories.tolist() == ["train", "validation"]
    assert split.astype(str).tolist() == fitted.split.tolist()


def test_the_settings_that_are_written(applied, fitted):
    settings = applied.uns["scvae"]
    assert settings["model"] == "vae"
    assert settings["likelihood"] == "negative_binomial"
    assert settings["n_latent"] == 3
    assert settings["seed"] == 0
    data = {"batch_key": "batch", "fractional": "error", "size_factor_scale": 1.0}
    assert settings["data"] == data
    for name in ("model_config", "train_config"):
        config = getattr(fitted, name.removeprefix("model_"))
        assert from_json(type(config), json.loads(settings[name])) == config
    assert settings["n_samples"] == analysis.N_SAMPLES
    # those of the fit, which may be older
    assert settings["versions"] == fitted.versions
    assert settings["versions"]["jax"] == jax.__version__
    assert settings["split_seed"] == fitted.summary["split_seed"] == 0
    assert json.loads(json.dumps(settings)) == settings


def test_genes_of_a_cluster_are_expressed_more_in_it():
    prototypes = np.array([[5.0, 1.0, 1.0], [1.0, 4.0, 3.0]])
    genes = np.array(["a", "b", "c"])
    sizes = np.array([10, 10])
    found = analysis.distinguishing_genes(prototypes, sizes, genes, counted=True)
    assert found["0"].tolist() == ["a", "", ""]
    assert found["1"].tolist() == ["b", "c", ""]


def test_genes_of_a_cluster_are_those_that_counts_tell_it_by():
    """Poisson divergence, not the difference; clusters count by their sizes."""
    prototypes = np.array([[100.0, 5.0, 3.0], [90.0, 0.1, 0.5], [80.0, 0.1, 9.0]])
    genes = np.array(["a", "b", "c"])
    named = {
        sizes: analysis.distinguishing_genes(
            prototypes, np.array(sizes), genes, counted=True
        )["0"].tolist()
        for sizes in ((10, 1000, 10), (10, 10, 1000))
    }
    # 5 against 0.1 says more than 100 against 90; c is above the large cluster alone
    assert named == {(10, 1000, 10): ["b", "c", "a"], (10, 10, 1000): ["b", "a", ""]}


def test_prototypes_are_averaged_over_batches(untrained):
    fitted = untrained("shared")
    assert len(fitted.batches) == 2
    means = []
    for code in (0, 1):
        batch = batches.dense_batch(
            np.zeros((3, 40)), depth=np.full(3, 50.0), categorical=np.full((3, 1), code)
        )
        centres = fitted.params["prior"]["mean"]
        (decoded,) = fitted.model.decode(fitted.params, centres, batch)
        means.append(np.asarray(fitted.likelihood.mean(decoded)))
    assert not np.allclose(means[0], means[1], rtol=0.1)
    found = analysis.prototypes(fitted, depth=50.0)
    np.testing.assert_allclose(found, (means[0] + means[1]) / 2, rtol=1e-5)


@pytest.mark.parametrize("posterior", ["shared", "conditional"])
def test_denoised_counts_are_those_of_a_loop(posterior, small, untrained):
    """The mean over samples, and over clusters by their probabilities."""
    fitted = untrained(posterior)
    denoised = sv.denoise(small, fitted, copy=True, batch_size=120, seed=3)
    data = evaluation.prepare_as(small, fitted)
    batch = batches.dense_batch(
        data.x.toarray(), depth=data.depth, categorical=data.batch[:, None]
    )
    q = fitted.model.encode(fitted.params, batch)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(3), 0), 10)
    expected = 0.0
    for key in keys:
        z = latents.sample(q, key, 1)[0]
        weighed = [(1.0, z)]
        if posterior == "conditional":
            r = np.asarray(jax.nn.softmax(q.mixture_distribution.logits))
            assert r.std() > 0.05
            weighed = [(r[:, [k]], z[:, k]) for k in range(3)]
        for weight, z in weighed:
            (decoded,) = fitted.model.decode(fitted.params, z, batch)
            expected += weight * np.asarray(fitted.likelihood.mean(decoded)) / 10
    np.testing.assert_allclose(
        denoised.layers["scvae_denoised"], expected, rtol=1e-3, atol=1e-4
    )


def test_confidence_is_the_share_of_fits_that_agree(small, untrained):
    fitted = untrained("shared")
    other = clusters.reorder(fitted.params, np.array([1, 2, 0]))
    others = [dataclasses.replace(fitted, params=p) for p in (fitted.params, other)]
    fitted = dataclasses.replace(fitted, alternatives=tuple(others))
    applied = sv.apply(small, fitted, copy=True)
    assert applied.obs["scvae_cluster"].nunique() > 1
    assert (applied.obs["scvae_cluster_confidence"] == 2 / 3).all()


def test_genes_of_a_cluster_of_what_is_no_count():
    """Means below 0 are as good as others."""
    prototypes = np.array([[2.0, -3.0, 0.1, 0.0], [-0.01, -1.0, 0.0, 0.0]])
    genes, sizes = np.array(["a", "b", "c", "d"]), np.array([10, 10])
    found = analysis.distinguishing_genes(prototypes, sizes, genes, counted=False)
    assert found["0"].tolist() == ["a", "c", "", ""]
    assert found["1"].tolist() == ["b", "", "", ""]


@pytest.mark.slow
def test_prototypes_of_many_genes_survive_a_file(tmp_path):
    x = np.random.default_rng(0).poisson(1.0, (40, 5000)).astype(np.float32)
    adata = anndata.AnnData(scipy.sparse.csr_matrix(x))
    adata.obs_names = [f"cell {i}" for i in range(40)]
    config = sv.ModelConfig(
        model="gmvae", n_clusters=1, n_latent=2, hidden_sizes=(4,), likelihood="poisson"
    )
    train = sv.TrainConfig(epochs=2)
    sv.apply(adata, sv.fit(adata, config, train, progress=False))
    adata.write_h5ad(tmp_path / "applied.h5ad")
    prototypes = anndata.read_h5ad(tmp_path / "applied.h5ad").uns["scvae"]
    assert prototypes["cluster_prototypes"].shape == (5000, 1)


def test_the_figures_are_those_of_evaluate(applied, small, fitted):
    figures = sv.evaluate(small, fitted, split="all", n_samples=analysis.N_SAMPLES)
    mean = applied.obs["scvae_elbo"].to_numpy().mean(dtype=np.float64)
    assert mean == pytest.approx(figures["elbo"], rel=1e-6)


@pytest.mark.parametrize("name", ["obs", "uns"])
def test_the_fields_survive_a_file(applied, tmp_path, name):
    applied.write_h5ad(tmp_path / "applied.h5ad")
    again = anndata.read_h5ad(tmp_path / "applied.h5ad")
    np.testing.assert_array_equal(again.obsm["X_scvae"], applied.obsm["X_scvae"])
    assert again.obsm["X_scvae"].dtype == np.float32
    if name == "obs":
        pd.testing.assert_frame_equal(again.obs, applied.obs)
    else:
        assert again.uns["scvae"] == applied.uns["scvae"]


def test_applying_twice_gives_the_same_bits(applied, fitted):
    # what an earlier call wrote does not get in the way either
    again = sv.apply(applied, fitted, copy=True)
    np.testing.assert_array_equal(again.obsm["X_scvae"], applied.obsm["X_scvae"])
    np.testing.assert_array_equal(again.obs["scvae_elbo"], applied.obs["scvae_elbo"])
    assert fields(again) == fields(applied)


def test_the_coordinates_may_be_written_to(applied):
    assert applied.obsm["X_scvae"].flags.writeable


def test_what_was_there_is_left_alone(cells, fitted, quick):
    before = cells.copy()
    assert sv.apply(cells, fitted) is None
    assert_same_counts(cells, before)
    np.testing.assert_array_equal(cells.obsm["X_pca"], before.obsm["X_pca"])
    pd.testing.assert_frame_equal(cells.obs[before.obs.columns], before.obs)
    assert fields(cells) == {
        name: fields(before)[name] | WRITTEN[name] for name in WRITTEN
    }


def test_copy_leaves_the_original_alone(cells, fitted, quick):
    before = cells.copy()
    copied = sv.apply(cells, fitted, copy=True)
    assert copied is not cells
    assert fields(cells) == fields(before)
    assert_same_counts(cells, before)
    assert_same_counts(copied, before)
    assert WRITTEN["obsm"] <= set(copied.obsm)
    # the two share nothing
    copied.X.data[:] = 7
    assert_same_counts(cells, before)


@pytest.mark.parametrize("copy", [False, True])
def test_views(cells, fitted, quick, copy):
    view = cells[10:30]
    result = sv.apply(view, fitted, copy=copy)
    written = result if copy else view
    assert not written.is_view
    assert (result is None) != copy
    assert written.n_obs == 20
    np.testing.assert_array_equal(
        written.obs["scvae_elbo"], -np.asarray(cells.X.sum(axis=1)).ravel()[10:30]
    )
    # the cells that the view was taken from have none of it
    assert fields(cells)["obsm"] == {"X_pca"}
    assert "scvae_elbo" not in cells.obs
    assert view.is_view is copy


def test_key_added(cells, fitted, quick):
    sv.apply(cells, fitted, key_added="mine")
    sv.apply(cells, fitted)
    assert {"X_mine", "X_scvae"} <= set(cells.obsm)
    assert {"mine_elbo", "mine_split", "scvae_elbo"} <= set(cells.obs)
    assert cells.uns["mine"] == cells.uns["scvae"]


def backed_file(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")


def test_backed_files(cells, fitted, quick, tmp_path):
    backed = backed_file(cells, tmp_path)
    sv.apply(backed, fitted)
    assert backed.isbacked
    np.testing.assert_array_equal(
        backed.obs["scvae_elbo"], -np.asarray(cells.X.sum(axis=1)).ravel()
    )
    backed.file.close()


@pytest.mark.parametrize("how", ["copy", "view"])
def test_backed_files_that_have_to_be_copied(cells, fitted, quick, tmp_path, how):
    backed = backed_file(cells, tmp_path)
    try:
        given = backed[:10] if how == "view" else backed
        result = sv.apply(given, fitted, copy=how == "copy")
        assert "X_scvae" in (given if result is None else result).obsm
    finally:
        backed.file.close()


@pytest.mark.parametrize("how", ["copy", "view"])
def test_backed_files_without_x(cells, fitted, quick, tmp_path, how):
    cells = cells.copy()
    cells.layers["counts"], cells.X = cells.X, None
    cells.uns["kept"] = {"of": "the user"}
    cells.raw = anndata.AnnData(cells.layers["counts"][:, :3], obs=cells.obs)
    backed = backed_file(cells, tmp_path)
    try:
        given = backed[:10] if how == "view" else backed
        result = sv.apply(given, fitted, layer="counts", copy=how == "copy")
        written = given if result is None else result
        assert "X_scvae" in written.obsm and written.uns["kept"] == cells.uns["kept"]
        expected = cells.layers["counts"][: len(given)]
        assert (written.layers["counts"] != expected).nnz == 0
        assert (expected[:, :3] != written.raw.X).nnz == 0
        assert written.raw.var_names.equals(cells.raw.var_names)
    finally:
        backed.file.close()


@pytest.mark.parametrize("function", [sv.apply, sv.denoise, sv.evaluate])
def test_a_model_in_another_place(small, fitted, function):
    for arguments in ((small, "run"), (fitted, small)):
        with pytest.raises(InputError, match="a fitted model after the AnnData object"):
            function(*arguments)


@pytest.mark.parametrize("function", [sv.apply, sv.denoise, sv.evaluate, sv.calibrate])
@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("seed", -1)])
def test_sizes_and_seeds_of_a_pass(small, fitted, function, name, value):
    with pytest.raises(InputError, match=f"found {name}={value}, expected a whole"):
        function(small.copy(), fitted, **{name: value})


def test_fields_of_a_mixture_under_another_name(small, untrained):
    found = sv.apply(small, untrained("shared"), key_added="mine", copy=True)
    written = {"mine_elbo", "mine_split", "mine_cluster", "mine_cluster_entropy"}
    assert set(found.obs) - set(small.obs) == written
    fields = {"X_mine", "mine_cluster_probabilities"}
    assert set(found.obsm) - set(small.obsm) == fields
    assert "cluster_genes" in found.uns["mine"]


def test_denoised_as_of_another_batch_and_elsewhere(small, untrained):
    fitted = untrained("shared")

    def denoised(adata=small, layer_added="scvae_denoised", **options):
        options |= {"layer_added": layer_added, "copy": True}
        return sv.denoise(adata, fitted, **options).layers[layer_added]

    own, first = denoised(), denoised(batch=fitted.batches[0])
    of_first = (small.obs["batch"] == fitted.batches[0]).to_numpy()
    np.testing.assert_allclose(first[of_first], own[of_first], rtol=1e-5)
    assert np.abs(first[~of_first] / own[~of_first] - 1).mean() > 0.01
    np.testing.assert_array_equal(denoised(layer_added="mine"), own)
    moved = small.copy()
    moved.layers["counts"], moved.X = small.X, None
    np.testing.assert_array_equal(denoised(moved, layer="counts"), own)
    with pytest.warns(InputWarning, match="5 of the model's 40 genes are missing"):
        found = denoised(small[:, 5:].copy(), missing_genes="zeros")
    assert found.shape == (120, 35)


# Genes


def test_genes_in_another_order_with_others_among_them(applied, small, fitted):
    other = anndata.AnnData(
        X=np.full((120, 7), 3.0),
        obs=small.obs,
        var=pd.DataFrame(index=[f"other_{g}" for g in range(7)]),
    )
    joined = anndata.concat([small, other], axis="var", merge="same")
    order = np.random.default_rng(0).permutation(47)
    joined = joined[:, order].copy()
    with pytest.warns(
        InputWarning, match="^7 of 47 genes are not in the model and are ignored$"
    ):
        sv.apply(joined, fitted)
    np.testing.assert_array_equal(joined.obsm["X_scvae"], applied.obsm["X_scvae"])
    np.testing.assert_array_equal(joined.obs["scvae_elbo"], applied.obs["scvae_elbo"])
    assert joined.n_vars == 47
    with pytest.warns(InputWarning, match="^7 of 47 genes are not in the model"):
        sv.evaluate(joined, fitted, n_samples=1)
    # a mask that was asked for leaves genes out as it should
    data_config = dataclasses.replace(fitted.data_config, genes="kept")
    sv.evaluate(joined, dataclasses.replace(fitted, data_config=data_config))


def test_missing_genes(small, fitted):
    lacking = small[:, 5:].copy()
    before = fields(lacking)
    with pytest.raises(
        InputError,
        match=r"found 5 of the model's 40 genes missing from the data \(gene_0, "
        r"gene_1, gene_2, gene_3, gene_4\), expected all of them, .*'zeros'",
    ):
        sv.apply(lacking, fitted)
    assert fields(lacking) == before
    zeros = small.copy()
    zeros.X = zeros.X.multiply(np.arange(40) >= 5).tocsr()
    with pytest.warns(InputWarning, match="5 of the model's 40 genes are missing"):
        sv.apply(lacking, fitted, missing_genes="zeros")
    # whose totals are others
    sv.apply(zeros, dataclasses.replace(fitted, totals=None))
    np.testing.assert_array_equal(lacking.obsm["X_scvae"], zeros.obsm["X_scvae"])
    np.testing.assert_array_equal(lacking.obs["scvae_elbo"], zeros.obs["scvae_elbo"])


# Cells


def test_unknown_batch(small, fitted):
    adata = small.copy()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata.obs.iloc[3, adata.obs.columns.get_loc("batch")] = "batch_7"
    before = fields(adata)
    with pytest.raises(
        InputError,
        match=r"batches that the model has not seen \(batch_7\), expected some of: "
        "batch_0, batch_1, leave these cells out or fit again",
    ):
        sv.apply(adata, fitted)
    assert fields(adata) == before


def test_a_batch_key_that_new_cells_lack(small, fitted):
    adata = small.copy()
    del adata.obs["batch"]
    with pytest.raises(InputError, match="found no obs column 'batch' for the batch"):
        sv.apply(adata, fitted)


def test_one_batch_alone_keeps_its_code(small, fitted, quick, monkeypatch):
    seen = []
    bounds = analysis.cell_bounds

    def look(model, params, cells, **settings):
        seen.append(np.asarray(cells.categorical))
        return bounds(model, params, cells, **settings)

    monkeypatch.setattr(analysis, "cell_bounds", look)
    chosen = (small.obs["batch"] == "batch_1").to_numpy()
    sv.apply(small[chosen], fitted, copy=True)
    np.testing.assert_array_equal(seen, np.ones((1, chosen.sum(), 1)))


def test_cells_without_counts_get_finite_figures(small, fitted):
    adata = small.copy()
    adata.X = adata.X.multiply((np.arange(120) > 1)[:, None]).tocsr()
    with pytest.warns(InputWarning, match="2 of 120 cells have no counts"):
        sv.apply(adata, dataclasses.replace(fitted, totals=None))
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert np.isfinite(adata.obs["scvae_elbo"]).all()


def test_one_cell(applied, small, fitted):
    one = sv.apply(small[7], fitted, copy=True)
    np.testing.assert_allclose(
        one.obsm["X_scvae"], applied.obsm["X_scvae"][[7]], rtol=1e-4, atol=1e-5
    )


def test_the_split_follows_the_names_of_the_cells(small, fitted, quick):
    part = dict(zip(fitted.cells.tolist(), fitted.split.tolist(), strict=True))
    order = np.random.default_rng(1).permutation(120)[:50]
    adata = small[order].copy()
    names = adata.obs_names.tolist()
    names[7] = "someone else"
    adata.obs_names = names
    sv.apply(adata, fitted)
    expected = [part.get(name, "new") for name in names]
    assert adata.obs["scvae_split"].astype(str).tolist() == expected
    assert set(expected) == {"train", "validation", "new"}
    assert expected.count("new") == 1


def test_the_split_of_all_new_cells(small, fitted, quick):
    adata = small.copy()
    adata.obs_names = "other_" + adata.obs_names
    sv.apply(adata, fitted)
    assert adata.obs["scvae_split"].cat.categories.tolist() == ["new"]


def test_the_split_column_decides_for_cells_of_other_names(small, fitted, quick):
    data_config = dataclasses.replace(fitted.data_config, split_key="part")
    with_key = dataclasses.replace(fitted, data_config=data_config)
    adata = small.copy()
    adata.obs["part"] = ["test", "train", "validation"] * 40
    adata.obs_names = [f"other {i}" for i in range(adata.n_obs)]
    sv.apply(adata, with_key)
    assert adata.obs["scvae_split"].tolist() == adata.obs["part"].tolist()
    del adata.obs["part"]
    sv.apply(adata, with_key)
    assert set(adata.obs["scvae_split"]) == {"new"}
    # of cells of the fit the names do
    adata.obs_names = small.obs_names
    sv.apply(adata, with_key)
    assert adata.obs["scvae_split"].astype(str).tolist() == fitted.split.tolist()
    adata.obs["part"] = ["test", "train", None] * 40
    with pytest.raises(InputError, match="found 40 cells without a value in obs colum"):
        sv.apply(adata, with_key)


def test_a_split_column_may_be_what_apply_wrote(small, fitted, quick):
    data_config = dataclasses.replace(fitted.data_config, split_key="scvae_split")
    with_key = dataclasses.replace(fitted, data_config=data_config)
    adata = small.copy()
    adata.obs_names = [f"other {i}" for i in range(adata.n_obs)]
    for _ in range(2):
        sv.apply(adata, with_key)
        assert set(adata.obs["scvae_split"]) == {"new"}


def test_what_another_model_said_of_clusters_is_gone(small, fitted, quick):
    adata = small.copy()
    for name in ("cluster", "cluster_entropy", "cluster_confidence", "mine"):
        adata.obs[f"scvae_{name}"] = 0.5
    adata.obsm["scvae_cluster_probabilities"] = np.ones((120, 2))
    sv.apply(adata, fitted)
    of_obs = {name for name in adata.obs if name.startswith("scvae_")}
    assert of_obs == {"scvae_elbo", "scvae_split", "scvae_mine"}
    assert set(adata.obsm) == {"X_scvae"}


def test_names_of_genes_may_be_numbers(small, fitted):
    adata = small.copy()
    adata.var.index = np.arange(40)
    numbered = dataclasses.replace(fitted, genes=np.arange(40).astype(str))
    sv.denoise(adata, numbered)
    assert np.isfinite(adata.layers["scvae_denoised"]).all()


def test_a_slash_in_a_name_is_refused(small, fitted):
    with pytest.raises(InputError, match="found key_added='a/b', expected a name wit"):
        sv.apply(small, fitted, key_added="a/b", copy=True)
    with pytest.raises(InputError, match="found layer_added='a/b', expected a name"):
        sv.denoise(small, fitted, layer_added="a/b", copy=True)
    with pytest.raises(InputError, match="model or key_added='one/vae', expected a n"):
        sv.calibrate(small, {"one/vae": fitted})


def test_names_that_repeat_cannot_tell_cells_apart(small, fitted, quick):
    adata = small.copy()
    adata.obs_names = ["cell_0", "cell_0", *adata.obs_names[2:]]
    before = fields(adata)
    with pytest.raises(
        InputError,
        match="found names of cells that repeat, expected unique ones to tell training "
        "cells from new ones, rename those that are not of the fit",
    ):
        sv.apply(adata, fitted)
    assert fields(adata) == before


def test_names_that_repeated_in_fitting_are_fine_for_the_same_cells(
    small, fitted, quick
):
    names = np.array([f"cell_{n // 2}" for n in range(120)])
    repeated = dataclasses.replace(fitted, cells=names)
    adata = small.copy()
    adata.obs_names = names
    sv.apply(adata, repeated)
    assert adata.obs["scvae_split"].astype(str).tolist() == fitted.split.tolist()
    adata.obs_names = names[::-1]
    with pytest.raises(InputError, match="found names of cells that repeat"):
        sv.apply(adata, repeated)
    # other cells have nothing to do with them
    adata.obs_names = [f"other_{n}" for n in range(120)]
    sv.apply(adata, repeated)
    assert set(adata.obs["scvae_split"]) == {"new"}


# Pictures


@pytest.fixture
def drawn(applied):
    """Cells with a column of every kind to colour by."""
    adata = applied.copy()
    n = adata.n_obs
    adata.obs["truth"] = np.arange(n) % 2 == 0
    adata.obs["text"] = np.where(np.arange(n) % 3, "a", "$b$")
    adata.obs["gap"] = np.where(np.arange(n) % 3, np.nan, 1.0)
    adata.obs["category_gap"] = pd.Categorical(["a", None] * (n // 2))
    adata.obs["hidden"] = "_leading underscore"
    adata.obs["text_gap"] = pd.array(["a", pd.NA] * (n // 2), dtype="string")
    adata.obs["many"] = [f"cluster {i % 60}" for i in range(n)]
    return adata


def size_of_png(path):
    """Width and height, from the file itself."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


@pytest.mark.parametrize(
    "colors",
    [
        (),
        ("batch",),
        ["cell_type", "scvae_elbo"],
        ("truth", "text", "gap", "category_gap"),
        ("scvae_split",),
    ],
)
def test_a_picture_for_each_colour(drawn, tmp_path, colors):
    path = tmp_path / "latent.png"
    plots.latent_space(drawn, path, colors=colors, method="pca")
    width, height = size_of_png(path)
    assert height > 400
    # a panel each, one without any
    assert width == pytest.approx(max(1, len(colors)) * 6.4 * 130, abs=2)
    assert [file.name for file in tmp_path.iterdir()] == ["latent.png"]


@pytest.mark.parametrize("color", ["hidden", "text_gap", "many"])
def test_a_picture_of_odd_columns(drawn, tmp_path, color):
    plots.latent_space(drawn, tmp_path / "latent.png", colors=(color,), method="pca")
    assert size_of_png(tmp_path / "latent.png")[0] > 400


def test_every_category_has_a_colour_of_its_own(drawn, tmp_path, monkeypatch):
    """Or there is no legend; names are drawn as they are."""
    legends = []
    real = Axes.legend

    def legend(axes, handles, *rest, **options):
        legends.append({tuple(handle.get_facecolor()[0]) for handle in handles})
        return real(axes, handles, *rest, **options)

    monkeypatch.setattr(Axes, "legend", legend)
    for n in (20, 21):
        adata = drawn.copy()
        names = np.array([f"$\\frac{{$ {i}" for i in range(n)])
        adata.obs["kind"] = names[np.arange(adata.n_obs) % n]
        plots.latent_space(adata, tmp_path / f"{n}.png", colors="kind", method="pca")
    assert [len(colours) for colours in legends] == [20]


@pytest.mark.parametrize("shape", [(20, 1), (1, 3), (2, 2)])
def test_a_picture_of_little(tmp_path, shape):
    adata = anndata.AnnData(obsm={"X_scvae": np.ones(shape, np.float32)})
    plots.latent_space(adata, str(tmp_path / "latent.png"), method="pca")
    assert size_of_png(tmp_path / "latent.png")[0] > 400


def test_principal_components():
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(50, 4)) * [1.0, 10.0, 0.1, 3.0]
    points = plots._pca(latent)
    # the two widest directions, up to their sign
    for component, axis in ((0, 1), (1, 3)):
        correlation = np.corrcoef(points[:, component], latent[:, axis])[0, 1]
        assert abs(correlation) > 0.97
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:n_jobs value:UserWarning")
def test_umap(applied, tmp_path):
    pytest.importorskip("umap")
    path = tmp_path / "latent.png"
    plots.latent_space(applied[:30], path, colors=("cell_type",))
    assert size_of_png(path)[0] > 400
    # the layout stays out of the data
    assert "X_umap" not in applied.obsm


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "tsne"}, "found method='tsne', expected 'umap' or 'pca', choose"),
        (
            {"basis": "X_other"},
            "found no X_other, expected fields of obsm and obs, cal",
        ),
        (
            {"colors": ("nope", "batch")},
            "found no nope, expected fields of obsm and obs",
        ),
        ({"basis": "a", "colors": ("b", "c")}, "found no a, b, c, expected fields of"),
    ],
)
def test_pictures_that_are_refused(applied, tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        plots.latent_space(applied, tmp_path / "latent.png", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_one_colour_without_a_list(applied, tmp_path):
    path = tmp_path / "latent.png"
    plots.latent_space(applied, path, colors="batch", method="pca")
    assert size_of_png(path)[0] > 400
