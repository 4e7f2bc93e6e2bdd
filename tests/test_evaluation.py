"""Held-out bounds, parts of the split, scores."""

import dataclasses
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

import scvae_jax as sv
from scvae_jax import (
    building,
    evaluation,
    latents,
    objectives,
    plots,
    scores,
    selection,
)
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.config import DataConfig
from scvae_jax.counts import prepare


@pytest.fixture(scope="module")
def cells(small):
    return selection.cells_to_device(
        prepare(small, DataConfig(batch_key="batch")), slice(None)
    )


@pytest.mark.parametrize("kind", ["vae", "shared", "conditional"])
def test_streamed_bounds_are_those_of_all_samples_at_once(
    kind, fitted, untrained, cells, small
):
    fitted = fitted if kind == "vae" else untrained(kind)
    n_samples, batch_size = 6, 120
    ours = evaluation.cell_bounds(
        fitted.model,
        fitted.params,
        cells,
        n_samples=n_samples,
        batch_size=batch_size,
        seed=5,
    )
    (index, weight), n_slots = sv.batches.in_order(cells, batch_size)
    batch = sv.batches.cut(cells, index[0], weight[0], small.n_vars, n_slots)
    posterior = jax.jit(fitted.model.encode)(fitted.params, batch)

    @jax.jit
    def draw(key):
        z = latents.sample(posterior, key, 1)[0]
        return fitted.model.weigh(fitted.params, z, posterior, batch)

    key = jax.random.fold_in(jax.random.key(5), 0)
    keys = [jax.random.fold_in(key, s) for s in range(n_samples)]
    terms = jax.tree.map(
        lambda *leaves: np.stack(leaves),
        *(draw(k) for k in keys),
    )
    parts = objectives.elbo_parts(terms)
    np.testing.assert_allclose(ours.elbo, parts.elbo, rtol=1e-5)
    np.testing.assert_allclose(
        ours.importance_weighted_bound,
        objectives.importance_weighted_bound(terms),
        rtol=1e-5,
    )
    np.testing.assert_allclose(ours.kl_z, parts.kl_z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.kl_y, parts.kl_y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.latent, posterior.mean(), rtol=1e-4, atol=1e-6)
    assert (ours.importance_weighted_bound > ours.elbo - 1).all()


def test_many_samples_of_deep_cells_all_count(fitted, cells):
    """A logarithm of 1,000 weights of -40,000 nats feels the last one as the first."""

    def weigh(params, z, posterior, batch, key=None):
        log_px = jnp.full(len(z), -40_000.0)
        zeros = jnp.zeros(len(z))
        return objectives.Terms(z, log_px, zeros, zeros, zeros)

    model = fitted.model._replace(weigh=weigh)
    found = evaluation.cell_bounds(model, fitted.params, cells, n_samples=1000)
    np.testing.assert_allclose(found.importance_weighted_bound, -40_000.0, atol=0.01)


def test_a_short_last_batch_weighs_by_its_cells(fitted, small):
    whole = sv.evaluate(small, fitted, split="all", n_samples=400, batch_size=120)
    parts = sv.evaluate(small, fitted, split="all", n_samples=400, batch_size=50)
    # the same cells, other noise: its standard error over 48,000 draws is below 0.02
    assert whole["n_cells"] == parts["n_cells"] == 120
    assert abs(whole["elbo"] - parts["elbo"]) < 0.1
    assert whole["kl_z"] == pytest.approx(parts["kl_z"], rel=1e-5)


def test_a_given_depth_is_not_the_total(fitted, small):
    config = dataclasses.replace(fitted.data_config, size_factor_key="depth")
    given = dataclasses.replace(fitted, data_config=config)
    adata = small.copy()
    adata.obs["depth"] = 2.0 * np.asarray(adata.X.sum(axis=1)).ravel() + 1.0
    figures = sv.evaluate(adata, given, n_samples=1)
    assert figures["conditions_on_total"] is False


def test_the_figures_add_up(fitted, small):
    figures = sv.evaluate(small, fitted, n_samples=20)
    assert list(figures) == [
        "n_cells",
        "split",
        "elbo",
        "importance_weighted_bound",
        "n_samples",
        "log_likelihood",
        "kl_z",
        "kl_y",
        "clusters_used",
        "conditions_on_total",
    ]
    assert figures["kl_y"] == figures["clusters_used"] == 0
    assert figures["conditions_on_total"] is True
    assert figures["split"] == "validation" and figures["n_cells"] == 12
    total = figures["log_likelihood"] - figures["kl_z"]
    assert figures["elbo"] == pytest.approx(total, rel=1e-6)
    assert figures["importance_weighted_bound"] > figures["elbo"]


def test_more_samples_raise_the_weighted_bound_alone(fitted, small):
    few, many = (sv.evaluate(small, fitted, split="all", n_samples=n) for n in (4, 200))
    assert many["importance_weighted_bound"] > few["importance_weighted_bound"] + 0.2
    # a handful of standard errors: 5 nats a draw, 480 draws
    assert abs(many["elbo"] - few["elbo"]) < 1.2


def test_memory_does_not_grow_with_samples(fitted, cells, small):
    positions, n_slots = sv.batches.in_order(cells, 64)
    sizes = []
    for n_samples in (2, 2000):
        lowered = evaluation._cell_bounds.lower(
            fitted.model,
            n_samples,
            n_slots,
            fitted.params,
            cells,
            positions,
            jax.random.key(0),
        )
        sizes.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 1.1 * sizes[0]


def test_no_bound_depends_on_dropout(fitted, small):
    config = dataclasses.replace(fitted.config, thinning=0.0, dropout_decoder=0.0)
    assert fitted.config.thinning and fitted.config.dropout_decoder
    sizes = {"n_genes": len(fitted.genes), "n_batches": len(fitted.batches)}
    whole = building.from_config(config, fitted.likelihood, **sizes)
    one, two = (
        sv.evaluate(small, dataclasses.replace(fitted, model=model), n_samples=3)
        for model in (fitted.model, whole)
    )
    assert one == two
    other = sv.evaluate(small, fitted, n_samples=3, seed=1)
    assert other["elbo"] != one["elbo"] and other["kl_z"] == one["kl_z"]


def test_parts_of_the_split(fitted, small):
    split = evaluation.split_of(small, fitted)
    assert (split == "train").sum() == 108 and (split == "validation").sum() == 12
    backwards = small[::-1].copy()
    np.testing.assert_array_equal(evaluation.split_of(backwards, fitted), split[::-1])
    held_out = sv.evaluate(small, fitted, split="validation", n_samples=2)
    alone = small[split == "validation"].copy()
    again = sv.evaluate(alone, fitted, split="all", n_samples=2)
    assert held_out["elbo"] == pytest.approx(again["elbo"], rel=1e-6)
    new = small[:7].copy()
    new.obs_names = [f"new_{i}" for i in range(7)]
    figures = sv.evaluate(new, fitted, n_samples=2)
    assert figures["split"] == "new" and figures["n_cells"] == 7


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["train", "validation", "new"], "new"),
        (["train", "validation"], "validation"),
        (["validation", "test"], "test"),
    ],
)
def test_the_part_that_is_looked_at(there, chosen):
    """Validation cells chose the epoch: any others come before them."""
    part, where = evaluation.part_of(np.array(there), None)
    assert part == chosen and where.tolist() == [name == chosen for name in there]


def test_training_cells_alone_are_not_held_out():
    with pytest.raises(InputError, match="found no held-out cells .there are 2 train"):
        evaluation.part_of(np.array(["train", "train"]), None)


def test_new_cells_beside_known_ones_are_not_passed_over(fitted, small):
    tested = dataclasses.replace(fitted, split=np.array(["test"] * 120))
    mixed = small.copy()
    mixed.obs_names = [*small.obs_names[:3], *(f"new_{i}" for i in range(117))]
    with pytest.warns(InputWarning, match="3 test cells are looked at and 117 new"):
        assert sv.evaluate(mixed, tested, n_samples=1)["n_cells"] == 3
    figures = sv.evaluate(mixed, tested, n_samples=1, split="new")
    assert figures["n_cells"] == 117 and figures["split"] == "new"


def test_a_split_column_decides(small):
    adata = small.copy()
    adata.obs["part"] = ["train"] * 80 + ["validation"] * 15 + ["test"] * 25
    result = sv.fit(
        adata,
        sv.ModelConfig(n_latent=2, hidden_sizes=(8,)),
        sv.TrainConfig(epochs=1),
        split_key="part",
        progress=False,
    )
    assert result.summary["n_train"] == 80 and result.summary["n_validation"] == 15
    figures = sv.evaluate(adata, result, n_samples=1)
    assert figures["split"] == "test" and figures["n_cells"] == 25
    # without the column, names tell
    del adata.obs["part"]
    assert sv.evaluate(adata, result, n_samples=1) == figures


def test_scores(fitted, small):
    adata = small.copy()
    adata.obs["type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[adata.obs_names[:10], "type"] = None
    figures = sv.evaluate(adata, fitted, split="train", n_samples=1, score_key="type")
    assert figures["oracle_k"] is True
    # labels of the cells that are looked at, and of those the ones that have any
    mine = (fitted.split == "train") & adata.obs["type"].notna().to_numpy()
    assert figures["n_labels"] == 3 and figures["n_scored"] == mine.sum() < 108
    sv.apply(adata, fitted)
    codes = scores.kmeans(adata.obsm["X_scvae"][mine], 3)
    labels = adata.obs["type"][mine].astype(str).to_numpy()
    ari = metrics.adjusted_rand_score(labels, codes)
    assert figures["ari"] == pytest.approx(ari, abs=1e-6)
    nmi = metrics.normalized_mutual_info_score(labels, codes)
    assert figures["nmi"] == pytest.approx(nmi, abs=1e-6)


def test_scores_of_a_mixture_are_those_of_its_own_clusters(untrained, small):
    mixture = untrained("shared")
    adata = small.copy()
    adata.obs["type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc[adata.obs_names[:10], "type"] = None
    options = {"split": "all", "n_samples": 1}
    figures = sv.evaluate(adata, mixture, score_key="type", **options)
    cells = selection.cells_to_device(
        evaluation.prepare_as(adata, mixture), slice(None)
    )
    r = evaluation.cell_bounds(mixture.model, mixture.params, cells, n_samples=1)
    share = r.probabilities.mean(axis=0)
    effective = np.exp(-(share * np.log(share)).sum())
    assert figures["effective_clusters"] == pytest.approx(effective, rel=1e-4)
    ari = metrics.adjusted_rand_score(
        adata.obs["type"][10:], r.probabilities.argmax(axis=1)[10:]
    )
    assert figures["ari"] == pytest.approx(ari, abs=1e-6)
    assert figures["n_scored"] == 110 and not figures["oracle_k"]


def test_kmeans_finds_what_is_there_and_numbers_by_size():
    random = np.random.default_rng(0)
    sizes = (10, 40, 20)
    latent = np.concatenate(
        [random.normal(10.0 * i, 0.1, (n, 2)) for i, n in enumerate(sizes)]
    )
    labels = np.repeat(["a", "b", "c"], sizes)
    codes = scores.kmeans(latent, 3)
    assert np.bincount(codes).tolist() == [40, 20, 10]
    found = scores.label_scores(codes, labels, "labels")
    assert found["ari"] == 1 and found["nmi"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "found no test cells .there are 108 train, 12 validation"),
        ({"split": "tset"}, "found split='tset', expected train, validation, test, n"),
        ({"n_samples": 0}, "found n_samples=0, expected a whole number"),
        ({"score_key": "nothing"}, "found no obs column 'nothing' for the scores"),
        ({"score_key": "one"}, "found 1 label in 'one' among the cells"),
    ],
)
def test_errors(fitted, small, options, message):
    adata = small.copy()
    adata.obs["one"] = pd.Categorical(["same"] * 120)
    with pytest.raises(InputError, match=message):
        sv.evaluate(adata, fitted, **options)


def test_absent_packages_are_named(small, fitted, tmp_path, monkeypatch):
    applied = sv.apply(small, fitted, copy=True)
    for name in ("scanpy", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="found no scanpy.*method='pca'"):
        plots.latent_space(applied, tmp_path / "latent.png")
    mixture = sv.ModelConfig(model="gmvae")
    for call in (
        lambda: sv.evaluate(small, fitted, split="all", score_key="cell_type"),
        lambda: sv.sweep_clusters(small, mixture, n_clusters=(2,)),
    ):
        with pytest.raises(ImportError, match="found no scikit-learn"):
            call()


def test_names_that_are_numbers_tell_little(fitted, small):
    # as filtering leaves them
    numbers = np.arange(0, 240, 2).astype(str)
    numbered = dataclasses.replace(fitted, cells=numbers)
    adata = small.copy()
    adata.obs_names = numbers
    for n in (120, 50):
        with pytest.warns(InputWarning, match=f"by that alone {n} of them are taken"):
            split = evaluation.split_of(adata[:n], numbered)
        np.testing.assert_array_equal(split, fitted.split[:n])


def test_other_cells_of_the_same_names_are_told(fitted, small, tmp_path):
    fitted.save(tmp_path / "run")
    loaded = sv.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.totals, small.X.sum(axis=1).A1)
    numbered = dataclasses.replace(loaded, cells=np.arange(120).astype(str))
    other = small.copy()
    other.X = small.X.copy()
    other.X[:7] *= 2
    said = "^7 of 120 cells that have the name of a cell of the fit have other counts"
    for model, names in ((loaded, small.obs_names), (numbered, numbered.cells)):
        adata = small.copy()
        adata.obs_names = other.obs_names = names
        # by their counts they are those of the fit, whatever they are called
        sv.evaluate(adata, model, n_samples=1)
        sv.apply(adata, model)
        for function in (sv.apply, sv.calibrate, partial(sv.evaluate, split="all")):
            with pytest.warns(InputWarning, match=said):
                function(other.copy(), model)
    # by place where names repeat, and by their numbers where totals are all alike
    twice = np.array([f"cell_{n // 2}" for n in range(120)])
    repeated = dataclasses.replace(loaded, cells=twice)
    other.obs_names = twice
    with pytest.warns(InputWarning, match=said):
        sv.evaluate(other, repeated, split="all", n_samples=1)
    alike = dataclasses.replace(numbered, totals=np.linspace(5.0, 5.00001, 120))
    other.obs_names = numbered.cells
    with pytest.warns(InputWarning, match="by that alone 120 of them are taken"):
        evaluation.split_of(other, alike, alike.totals)
    # one cell that is as it was
    one = small[3:4].copy()
    one.obs_names = ["3"]
    sv.evaluate(one, numbered, split="all", n_samples=1)
    # of a fit without names all are new
    empty = {"cells": np.array([], str), "split": np.array([], str), "totals": None}
    nameless = dataclasses.replace(loaded, **empty)
    assert (evaluation.split_of(small, nameless) == "new").all()
    # where they could have been elsewhere, or of fewer genes, and are not
    other.obs_names = loaded.cells
    for options in ({"layer": "X"}, {"missing_genes": "zeros"}):
        with pytest.warns(InputWarning, match=said):
            sv.apply(other.copy(), loaded, **options)
    # elsewhere they may be others, as those of fewer genes
    other.obs_names = small.obs_names
    other.layers["half"] = other.X
    sv.evaluate(other, loaded, layer="half", n_samples=1)
    with pytest.warns(InputWarning, match="5 of the model's 40 genes are missing"):
        sv.evaluate(small[:, 5:].copy(), loaded, missing_genes="zeros")


def test_size_factors_are_those_of_the_genes_in_use(small):
    """Of all genes, or near 1: expected counts add up to the counts there are."""
    adata = small.copy()
    adata.var["some"] = np.arange(40) < 10
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    denoised = []
    for size in (total, total / total.mean()):
        adata.obs["size"] = size
        fitted = sv.fit(
            adata,
            sv.ModelConfig(n_latent=2, hidden_sizes=(8,)),
            sv.TrainConfig(epochs=2),
            genes="some",
            size_factor_key="size",
            progress=False,
        )
        train = fitted.split == "train"
        scale = adata.X[train, :10].sum() / size[train].sum()
        assert fitted.data_config.size_factor_scale == pytest.approx(scale, rel=1e-5)
        found = sv.denoise(adata, fitted, copy=True).layers["scvae_denoised"]
        denoised.append(found[:, :10])
        assert denoised[-1][train].sum() == pytest.approx(adata.X[train, :10].sum())
    np.testing.assert_allclose(*denoised, rtol=1e-2)


def test_names_that_repeat_cannot_tell_the_split(fitted, small):
    adata = small[::-1].copy()
    adata.obs_names = [fitted.cells[0]] * 120
    with pytest.raises(InputError, match="found names of cells that repeat"):
        evaluation.split_of(adata, fitted)
    # of cells that are all new
    adata.obs_names = ["cell"] * 120
    assert (evaluation.split_of(adata, fitted) == "new").all()


def test_counts_in_another_place_than_for_fitting(fitted, small):
    figures = sv.evaluate(small, fitted, n_samples=2)
    elsewhere = small.copy()
    elsewhere.layers["counts"], elsewhere.X = small.X, None
    assert sv.evaluate(elsewhere, fitted, layer="counts", n_samples=2) == figures
    data_config = dataclasses.replace(fitted.data_config, layer="counts")
    of_layer = dataclasses.replace(fitted, data_config=data_config)
    with pytest.raises(InputError, match="found no layer 'counts'.*or 'X' for X itsel"):
        sv.evaluate(small, of_layer)
    assert sv.evaluate(small, of_layer, layer="X", n_samples=2) == figures


def test_cells_of_the_fit_stay_what_they_were(fitted, small):
    data_config = dataclasses.replace(fitted.data_config, split_key="part")
    split = dataclasses.replace(fitted, data_config=data_config)
    adata = small[:80].copy()
    adata.obs["part"] = "test"
    np.testing.assert_array_equal(evaluation.split_of(adata, split), fitted.split[:80])
    # the column speaks of others alone
    adata.obs_names = [*adata.obs_names[:50], *(f"other {i}" for i in range(30))]
    found = evaluation.split_of(adata, split)
    assert found.tolist() == [*fitted.split[:50], *["test"] * 30]


def test_one_cluster_against_several_does_not_agree():
    one, several = np.zeros(6, int), np.array([0, 0, 1, 1, 2, 2])
    assert scores.rand_index(one, several) == 0
    assert scores.rand_index(several, one) == 0
    assert scores.rand_index(one, one) == scores.rand_index(several, several) == 1


def test_more_clusters_than_cells():
    with pytest.raises(InputError, match="found 5 clusters for 3 cells"):
        scores.kmeans(np.zeros((3, 2)), 5)
