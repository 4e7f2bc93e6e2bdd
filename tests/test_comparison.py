"""Comparisons: what runs, what is not run again, and what is refused."""

import json
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest

import scvae_jax as sv
from scvae_jax import (
    baselines,
    building,
    cli,
    comparison,
    evaluation,
    ledger,
    subjects,
    trials,
)
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.config import RECIPES, DataConfig
from scvae_jax.counts import prepare
from scvae_jax.files import alone_in

TINY = sv.ModelConfig(n_latent=2, hidden_sizes=(8,), n_clusters=3)
QUICK = sv.TrainConfig(epochs=2, batch_size=64)
WIDTH = {"poisson": 30.0, "negative_binomial": 0.0, "gaussian": -500.0}


@pytest.fixture(scope="module")
def cells(small):
    """Cells with a split, labels (some missing), and binary counts in a layer."""
    adata = small.copy()
    adata.obs["part"] = ["train"] * 70 + ["validation"] * 20 + ["test"] * 30
    labels = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[-1] = None
    adata.obs["label"] = labels
    adata.obs["same"] = "one"
    adata.layers["binary"] = (adata.X > 0).astype(np.float32)
    adata.var["half"] = np.arange(adata.n_vars) < 20
    return adata


def test_a_batch_without_a_training_cell_is_warned_of(cells):
    adata = cells.copy()
    adata.obs["part"] = np.where(adata.obs["batch"] == "batch_1", "test", "train")
    adata.obs.loc[adata.obs_names[:5], "part"] = "validation"
    config = DataConfig(batch_key="batch", split_key="part")
    data = prepare(adata, config)
    with pytest.warns(InputWarning, match="1 of 2 batches have no training cell"):
        subjects._split("cells", data, None, config, QUICK, 1, {})


@pytest.fixture
def quick(monkeypatch):
    """Fits and figures that are made up at once; a list of what was fitted."""
    calls = []

    def fit_many(adata, config, train_config, *, seeds, **data):
        calls.append((config.likelihood, config.model, train_config.seed, [*seeds]))
        fits = [
            SimpleNamespace(
                model=None,
                params=(config, seed),
                train_config=SimpleNamespace(seed=seed),
                summary={
                    "epochs": seed + 1,
                    "best_epoch": 1,
                    "skipped_steps": 0,
                    "seconds_per_epoch": 2.0,
                    "compile_seconds": 2.0,
                    **({"place_seconds": 3.0} if config.model == "gmvae" else {}),
                },
            )
            for seed in reversed(seeds)
        ]
        fits[0].alternatives = fits[1:]
        return fits[0]

    def cell_bounds(model, params, cells, *, n_samples):
        config, seed = params
        n = len(cells.start)
        rng = np.random.default_rng(seed)
        noise = np.arange(n, dtype=np.float32) / n
        bound = -100 - WIDTH[config.likelihood] - noise - seed + 0.01 * n_samples
        r = rng.random((n, config.n_clusters if config.model == "gmvae" else 1))
        latent = rng.normal(size=(n, 2))
        return evaluation.CellBounds(latent, bound - 1, bound, bound, noise, noise, r)

    def null_log_prob(likelihood, data, train, held_out):
        # a free mean would be another null
        assert building.reads_depth(likelihood, 3, 0) == likelihood.is_of_counts
        return np.full(held_out.sum(), -200.0)

    monkeypatch.setattr(trials, "fit_many", fit_many)
    monkeypatch.setattr(trials, "cell_bounds", cell_bounds)
    monkeypatch.setattr(trials, "null_log_prob", null_log_prob)
    return calls


@pytest.fixture
def compare(cells, tmp_path):
    """`sv.compare` with most of its arguments given."""

    def run(adata=cells, **changes):
        options = {
            "likelihoods": ["poisson", "negative_binomial"],
            "out": tmp_path / "out",
            "seeds": 2,
            "config": TINY,
            "train_config": QUICK,
            "split_key": "part",
            "n_samples": 10,
            "progress": False,
        }
        return sv.compare(adata, **options | changes)

    return run


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scvae-jax", *map(str, arguments)])
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def files(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is found


def test_figures_are_those_of_evaluate(cells, command, monkeypatch, tmp_path):
    """The command in earnest: one JSON object, and the bounds that `evaluate` gives."""
    cells.write_h5ad(tmp_path / "cells.h5ad")
    fit_many, kept = trials.fit_many, []

    def keeping(*arguments, **options):
        kept.append(fit_many(*arguments, **options))
        return kept[0]

    monkeypatch.setattr(trials, "fit_many", keeping)
    line = (
        *("compare", "cells.h5ad", "--likelihoods", "poisson", "--seeds", 2),
        *("--split-key", "part", "--score-key", "label", "--samples", 5, "--epochs", 2),
        *("--batch-size", 64, "--latent-size", 2, "--hidden-sizes", 8, "--out", "a/b"),
    )
    code, out, err = command(*line, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found["out"] == "a/b"
    assert "[1 of 1] cells, poisson, vae, split part, seeds 0, 1" in err
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    (fitted,) = kept
    assert len(fitted.alternatives) == 1
    row = found["rows"][fitted.train_config.seed]
    figures = sv.evaluate(cells, fitted, n_samples=5, score_key="label")
    assert row["part"] == figures["split"] == "test"
    for name in ("elbo", "importance_weighted_bound", "log_likelihood", "kl_z"):
        assert row[name] == pytest.approx(figures[name], rel=1e-6)
    for name in ("n_cells", "n_samples", "ari", "nmi", "n_labels", "n_scored"):
        assert row[name] == figures[name]
    data = prepare(cells, DataConfig(split_key="part"))
    train, test = (data.split == part for part in ("train", "test"))
    null = baselines.null_log_prob(sv.likelihoods.poisson(), data, train, test)
    assert row["null_log_likelihood"] == pytest.approx(null.mean(), rel=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {"cells.h5ad", "a"}
    # nothing runs again; for people, a table
    code, out, err = command(*line)
    assert (code, err, len(kept)) == (0, "", 1)
    assert "poisson" in out and "see a/b" in out and "{" not in out


def test_tables_in_the_folder_are_those_returned(quick, compare):
    found = compare(models=["vae", "gmvae"], score_key="label")
    folder = found.folder
    assert {p.name for p in folder.iterdir()} == {
        "comparison.json",
        "fits",
        *ledger.TABLES,
        *ledger.PICTURES,
    }
    assert len(list((folder / "fits").iterdir())) == 8
    table = pd.read_csv(folder / "table.csv")
    assert table.columns.tolist() == found.table.columns.tolist()
    assert len(table) == 8
    assert table["elbo"].tolist() == pytest.approx(found.table["elbo"].tolist())
    content = json.loads((folder / "table.json").read_text())
    assert content["remarks"] == list(found.remarks) == []
    for name, frame in (("rows", found.table), ("ranks", found.ranks)):
        assert [row["comparable_bound"] for row in content[name]] == frame[
            "comparable_bound"
        ].tolist()
    # all seeds of one in one program, split by the training's seed
    assert quick == [
        (likelihood, model, 0, [0, 1])
        for likelihood in ("poisson", "negative_binomial")
        for model in ("vae", "gmvae")
    ]
    row = found.table.iloc[0]
    assert (row["likelihood"], row["model"], row["seed"]) == ("poisson", "vae", 0)
    assert (row["split"], row["part"], row["n_cells"]) == ("part", "test", 30)
    bound = -100 - 30 - np.arange(30) / 30 + 0.1
    assert row["importance_weighted_bound"] == pytest.approx(bound.mean())
    se = bound.std(ddof=1) / 30**0.5
    assert row["importance_weighted_bound_se"] == pytest.approx(se, rel=1e-4)
    assert row["null_log_likelihood"] == -200.0
    total = row["log_prob_total"]
    assert row["comparable_bound"] == pytest.approx(bound.mean() + total)
    # of one and two epochs
    assert found.table["seconds"][:2].tolist() == [2.0, 4.0]
    assert "jax=" in row["versions"] and "device=" in row["versions"]
    # of labels 29 are known; a vae has k-means, a gmvae clusters of its own
    assert (row["n_scored"], row["n_labels"], row["oracle_k"]) == (29, 3, True)
    mixture = found.table[found.table["model"] == "gmvae"].iloc[0]
    # and its part of what placing the components of both took
    assert mixture["seconds"] == 2.0 + 3.0 / 2
    assert (mixture["n_clusters"], mixture["oracle_k"]) == (3, False)
    kinds = found.ranks.set_index("model")["oracle_k"]
    assert kinds["vae"].all() and not kinds["gmvae"].any()
    first = found.ranks.iloc[0]
    assert (first["rank"], first["likelihood"]) == (1, "negative_binomial")
    assert found.ranks["difference"].min() == pytest.approx(-30.0, abs=1e-4)


def test_cells_of_a_fit_are_kept(quick, compare, cells):
    found = compare(likelihoods=["poisson"], seeds=1)
    (path,) = (found.folder / "fits").iterdir()
    with np.load(path) as file:
        held_out = np.flatnonzero(cells.obs["part"] == "test")
        np.testing.assert_array_equal(file["cell"], held_out)
        for name in ("elbo", "importance_weighted_bound", "kl_z", "log_prob_total"):
            assert file[name].shape == (30,)
        mean = file["importance_weighted_bound"].mean(dtype=np.float64)
    assert mean == found.table["importance_weighted_bound"][0]


def test_free_means_have_no_total_added_and_its_null_has(quick, compare):
    found = compare(
        likelihoods=["negative_binomial", "negative_binomial:mean=free", "gaussian"]
    )
    library, free, density = (found.table.iloc[i] for i in (0, 2, 4))
    assert library["conditions_on_total"] and not free["conditions_on_total"]
    assert free["log_prob_total"] == density["log_prob_total"] == 0.0
    assert library["log_prob_total"] < -1.0
    assert free["comparable_bound"] == free["importance_weighted_bound"]
    # both nulls know the depth; the free one pays for it
    gap = free["null_log_likelihood"] - library["null_log_likelihood"]
    assert gap == pytest.approx(library["log_prob_total"])
    assert density["null_log_likelihood"] == -200.0
    ranks = found.ranks.set_index("likelihood")
    assert ranks.loc["negative_binomial:mean=free", "rank"] == 1
    difference = ranks.loc["negative_binomial", "difference"]
    assert difference == pytest.approx(library["log_prob_total"], abs=1e-4)
    # far above, but of another kind
    assert ranks.loc["gaussian", "rank"] == 1
    assert ranks.loc["gaussian", "reference"] == "gaussian/vae"


def test_equal_numbers_of_decodes(quick, compare):
    config = sv.ModelConfig(n_latent=2, posterior="conditional", n_clusters=3)
    found = compare(likelihoods=["poisson"], models=["vae", "gmvae"], config=config)
    assert found.table["n_samples"].tolist() == [10, 10, 3, 3]


def test_random_splits(quick, compare, cells):
    config = sv.TrainConfig(epochs=2, test_fraction=0.2, seed=3)
    found = compare(split_key=None, splits=2, train_config=config)
    assert [call[2:] for call in quick] == [(seed, [3, 4]) for seed in (3, 3, 4, 4)]
    assert sorted(set(found.table["split"])) == [3, 4]
    assert set(found.table["part"]) == {"test"}
    assert found.ranks["n_cells"].tolist() == [48, 48]
    held_out = {
        tuple(np.load(path)["cell"]) for path in (found.folder / "fits").iterdir()
    }
    assert len(held_out) == 2
    # without test cells those that stopped the training, which is said
    said = compare(split_key=None, out=found.folder.with_name("other")).remarks
    assert any("validation cells" in remark for remark in said)


def test_several_data_sets(quick, compare, cells):
    found = compare({"a": cells, "b": cells[::-1].copy()})
    assert found.table["data"].tolist() == ["a"] * 4 + ["b"] * 4
    assert found.ranks["rank"].tolist() == [1, 2, 1, 2]


def test_a_name_with_dollars_is_drawn_and_one_that_cannot_be_is_refused(
    quick, compare, cells
):
    found = compare({"run_$A_$B": cells}, n_samples=np.int64(10), score_key="label")
    for name in ledger.PICTURES:
        assert (found.folder / name).stat().st_size > 5000
    for name in ("caf\udce9", "a\tb"):
        with pytest.raises(InputError, match="a name of printable characters"):
            compare({name: cells})


def test_the_data_is_left_alone(quick, compare, cells):
    before = cells.copy()
    compare()
    assert before.obs.equals(cells.obs)
    assert (before.X != cells.X).nnz == 0


# Going on


def test_a_run_that_was_stopped_goes_on(quick, compare, monkeypatch, tmp_path):
    whole = compare(out=tmp_path / "whole", models=["vae", "gmvae"]).table
    quick.clear()
    fit_many = trials.fit_many

    def stopped(adata, config, *rest, **options):
        if config.likelihood == "negative_binomial":
            raise KeyboardInterrupt
        return fit_many(adata, config, *rest, **options)

    monkeypatch.setattr(trials, "fit_many", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(models=["vae", "gmvae"])
    before = files(tmp_path / "out")
    assert len(before) == 1 + 4
    monkeypatch.setattr(trials, "fit_many", fit_many)
    quick.clear()
    found = compare(models=["vae", "gmvae"])
    assert [call[:2] for call in quick] == [
        ("negative_binomial", "vae"),
        ("negative_binomial", "gmvae"),
    ]
    after = files(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    pd.testing.assert_frame_equal(found.table, whole)
    # and a third time nothing is left to do
    quick.clear()
    pd.testing.assert_frame_equal(compare(models=["vae", "gmvae"]).table, whole)
    assert quick == []


def test_a_damaged_fit_is_found_before_the_work(quick, compare):
    found = compare()
    file = next((found.folder / "fits").iterdir())
    file.write_bytes(b"")
    quick.clear()
    with pytest.raises(InputError, match=f"found a damaged file at .*{file.name}"):
        compare(likelihoods=["poisson", "negative_binomial", "zero_inflated_poisson"])
    assert not quick


def test_whole_counts_are_compared_with_rounding_beside_real_data(cells, tmp_path):
    """Not refused by the second fit, when the first is done."""
    found = sv.compare(
        cells,
        likelihoods=["poisson", "gaussian"],
        out=tmp_path / "out",
        seeds=1,
        config=TINY,
        train_config=QUICK,
        split_key="part",
        n_samples=2,
        fractional="round",
        progress=False,
    )
    assert found.table["comparable_bound"].notna().all()


def test_data_whose_name_begins_with_a_dot_goes_on(quick, compare, cells):
    compare({".cells": cells})
    quick.clear()
    compare({".cells": cells})
    assert not quick


def test_a_seed_that_was_not_written_runs_again(quick, compare, monkeypatch, tmp_path):
    write_fit = comparison.write_fit

    def full(path, fit):
        if fit.row["seed"] == 1:
            raise OSError("no space left")
        write_fit(path, fit)

    monkeypatch.setattr(comparison, "write_fit", full)
    with pytest.raises(OSError, match="no space left"):
        compare()
    monkeypatch.setattr(comparison, "write_fit", write_fit)
    quick.clear()
    assert len(compare().table) == 4
    assert quick == [
        ("poisson", "vae", 0, [1]),
        ("negative_binomial", "vae", 0, [0, 1]),
    ]


def test_a_folder_grows(quick, compare, cells):
    compare(likelihoods=["poisson"])
    quick.clear()
    found = compare({"data": cells, "more": cells[:, ::-1].copy()}, seeds=3)
    assert quick == [
        ("poisson", "vae", 0, [2]),
        ("negative_binomial", "vae", 0, [0, 1, 2]),
        ("poisson", "vae", 0, [0, 1, 2]),
        ("negative_binomial", "vae", 0, [0, 1, 2]),
    ]
    assert len(found.table) == 12
    # a mixture has settings that a vae has not
    quick.clear()
    compare(likelihoods=["poisson"], models=["vae", "gmvae"])
    assert quick == [("poisson", "gmvae", 0, [0, 1])]
    # the tables hold what was asked for, the folder all there is
    found = compare(likelihoods=["poisson"], seeds=1)
    assert len(found.table) == 1
    assert len(list((found.folder / "fits").iterdir())) == 14
    # a picture of other rows does not stay
    assert not (found.folder / "clusters.png").exists()
    assert any("no clusters to draw" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_config": sv.TrainConfig(epochs=3, batch_size=64)}, "epochs=2, now 3"),
        ({"config": sv.ModelConfig(n_latent=3)}, "n_latent=2, now 3"),
        ({"n_samples": 20}, "n_samples=10, now 20"),
        ({"genes": "half"}, "genes=None, now 'half'"),
        ({"score_key": "label"}, "score_key=None, now 'label'"),
    ],
)
def test_other_settings_are_refused(quick, compare, tmp_path, changes, text):
    compare()
    before = files(tmp_path)
    quick.clear()
    with pytest.raises(InputError, match=f"with other settings .*{text}"):
        compare(**changes)
    assert files(tmp_path) == before
    assert quick == []
    # bad input costs nothing, overwrite or not
    with pytest.raises(InputError, match="batch"):
        compare(**changes | {"batch_key": "none", "overwrite": True})
    assert files(tmp_path) == before
    compare(**changes, overwrite=True)
    assert len(quick) == 2


def test_a_replacement_that_was_stopped_goes_on(tmp_path):
    settings = {"format": 1, "data": {}, "n_samples": 10}
    folder, _ = ledger.open_folder(tmp_path / "found", settings, True)
    (folder / "fits" / "one.npz").touch()
    again, _ = ledger.open_folder(tmp_path / "found", settings, True)
    assert again == folder and (again / "fits" / "one.npz").exists()
    # of a finished one, the next is made beside it
    (folder / "table.json").touch()
    beside, _ = ledger.open_folder(tmp_path / "found", settings, True)
    assert beside != folder and list((beside / "fits").iterdir()) == []
    (beside / "fits" / "two.npz").touch()
    (beside / "table.json").touch()

    def stop(source, target):
        if Path(source).name == ledger.SETTINGS:
            raise KeyboardInterrupt
        os.rename(source, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.os, "replace", stop)
        ledger.take_place(beside, folder)
    # the next call finishes it
    again, _ = ledger.open_folder(tmp_path / "found", settings, True)
    assert again == folder and not beside.exists()
    assert (folder / "fits" / "two.npz").exists() and (folder / "table.json").exists()


def test_two_processes_do_not_compare_in_one_folder(quick, compare, tmp_path):
    pytest.importorskip("fcntl")
    before = compare().folder
    quick.clear()
    busy = r"another process is at work in .*/out, expected one at a time, wait"
    with alone_in(before):
        for options in ({"seeds": 3}, {"n_samples": 20, "overwrite": True}):
            with pytest.raises(InputError, match=busy):
                compare(**options)
    assert not quick
    # it is free again, and what is not a folder is still told
    compare(seeds=3)
    (tmp_path / "file").write_text("of the user")
    with pytest.raises(InputError, match="file, which is not a comparison"):
        compare(out=tmp_path / "file")


def test_pictures_that_fail_leave_an_unfinished_comparison(
    quick, compare, monkeypatch, tmp_path
):
    """Which is gone on with, be it to be overwritten."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(comparison.plots, "differences", interrupt)
        compare()
    quick.clear()
    compare(overwrite=True)
    assert not quick and (tmp_path / "out" / ledger.LAST).exists()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_fractional_counts(quick, compare, cells, monkeypatch, tmp_path):
    adata = cells.copy()
    del adata.layers["binary"]
    adata.X = adata.X * 0.75
    asked, fit_many = [], trials.fit_many

    def noted(adata, config, *rest, fractional, **options):
        asked.append(fractional)
        return fit_many(adata, config, *rest, **options)

    monkeypatch.setattr(trials, "fit_many", noted)
    with pytest.raises(InputError, match=r"fractional='round' or 'allow' \(train or"):
        compare(adata)
    with pytest.warns(InputWarning, match="are fractional and are rounded"):
        compare(adata, fractional="round")
    assert set(asked) == {"round"}
    # before anything is fitted
    asked.clear()
    names = ["negative_binomial", "gaussian"]
    with (
        pytest.warns(InputWarning, match="are fractional and are rounded"),
        pytest.raises(InputError, match="rounded for one of counts, densities and not"),
    ):
        compare(adata, likelihoods=names, fractional="round", out=tmp_path / "other")
    names = ["negative_binomial", "categorised_poisson"]
    with pytest.raises(InputError, match="expected integers for a categorised"):
        compare(adata, likelihoods=names, fractional="allow", out=tmp_path / "third")
    assert not asked


def test_fits_of_another_recipe_are_refused(quick, compare, monkeypatch):
    compare()
    other = RECIPES | {"vae": RECIPES["vae"] | {"thinning": 0.25}}
    monkeypatch.setattr(subjects, "RECIPES", other)
    with pytest.raises(InputError, match="with other settings .*thinning=0.5, now 0.2"):
        compare()


def test_other_cells_are_refused(quick, compare, cells):
    compare()
    other = cells.copy()
    other.X[0, 0] += 1
    with pytest.raises(InputError, match="the cells themselves"):
        compare(other)


# Fits that fail


def test_fits_that_fail_are_said_and_not_run_again(quick, compare, monkeypatch):
    fit_many = trials.fit_many

    def failing(adata, config, *rest, seeds, **options):
        if config.likelihood == "poisson":
            raise FloatingPointError("found 25 steps, expected fewer, stop")
        return fit_many(adata, config, *rest, seeds=seeds[1:], **options)

    monkeypatch.setattr(trials, "fit_many", failing)
    found = compare()
    assert found.table["note"].notna().tolist() == [True, True, True, False]
    assert found.table["elbo"].isna().tolist() == [True, True, True, False]
    assert found.ranks["n_failed"].tolist() == [1, 2]
    assert np.isnan(found.ranks["rank"].tolist()[1])
    assert len([remark for remark in found.remarks if "ended early" in remark]) == 2
    quick.clear()
    compare()
    assert quick == []


def test_bounds_that_are_not_finite_are_no_figures(quick, compare, monkeypatch):
    cell_bounds = trials.cell_bounds

    def broken(*arguments, **options):
        found = cell_bounds(*arguments, **options)
        found.kl_z[3] = np.nan
        return found

    monkeypatch.setattr(trials, "cell_bounds", broken)
    with pytest.raises(FloatingPointError, match="all 4 fits ended early"):
        compare()


# Bad input


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"likelihoods": ["poison"]},
            "found likelihood 'poison', expected one of pois",
        ),
        ({"likelihoods": ["poisson:k_max=3"]}, "found options .*poisson"),
        ({"likelihoods": ["poisson:mean"]}, "found likelihood option 'mean'"),
        ({"likelihoods": ["poisson:mean=fre"]}, "found mean='fre'"),
        ({"likelihoods": []}, "found likelihoods none, expected a list"),
        ({"likelihoods": np.array(["poisson"] * 2)}, "poisson, poisson, .*each once"),
        ({"config": {"n_latent": 2}}, "found config=.*, expected a ModelConfig"),
        ({"train_config": {"epochs": 3}}, "expected a TrainConfig"),
        ({"likelihoods": "poisson"}, "found likelihoods poisson, expected a list"),
        ({"likelihoods": ["poisson"] * 2}, "poisson, poisson, expected .*each once"),
        ({"models": ["tae"]}, "found model='tae', expected vae or gmvae"),
        ({"models": []}, "found models none"),
        (
            {"likelihoods": [sv.likelihoods.poisson()]},
            "expected a list of one or more names",
        ),
        (
            {
                "models": ["vae", "gmvae"],
                "config": sv.ModelConfig(posterior="conditional", n_clusters=11),
            },
            "found n_samples=10 and 11 clusters in poisson/gmvae",
        ),
        ({"seeds": 0}, "found seeds=0, expected a whole number, at least 1"),
        ({"seeds": 1.5}, "found seeds=1.5"),
        ({"splits": 0, "split_key": None}, "found splits=0"),
        ({"splits": 2}, "found 2 splits and split key 'part', expected one of"),
        ({"n_samples": 0}, "found n_samples=0"),
        ({"split_key": "none"}, "no obs column 'none' for the split.*in data set data"),
        (
            {"score_key": "none"},
            "no obs column 'none' for the scores.*in data set data",
        ),
        ({"score_key": "same"}, "found 1 label among the test cells .one.*undefined"),
        ({"batch_key": "none"}, "no obs column 'none' for the batch"),
        ({"layer": "none"}, "found no layer 'none'"),
        ({"genes": "none"}, "found no var column 'none'"),
        ({"reference": "poisson"}, "found reference 'poisson', expected .*poisson/vae"),
        ({"likelihoods": ["bernoulli"]}, "other than 0 and 1, expected binary"),
        (
            {"likelihoods": ["negative_binomial:dispersion=gene_batch"]},
            "parameters per batch and no batches",
        ),
        (
            {"models": ["gmvae"], "config": sv.ModelConfig(n_clusters=71)},
            "found n_clusters=71 for 70 training cells",
        ),
        ({"adata": {}}, "found data sets none, expected one or more by name"),
        ({"adata": "cells.h5ad"}, "found a dict|found a str, expected an AnnData"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(
    quick, compare, tmp_path, changes, text
):
    with pytest.raises(InputError, match=text) as error:
        compare(**changes)
    assert str(error.value).startswith("found ")
    assert ", expected " in str(error.value)
    assert quick == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_cells_twice_are_refused(quick, compare, cells, tmp_path):
    with pytest.raises(InputError, match="the same cells as a and as b"):
        compare({"a": cells, "b": cells.copy()})
    assert list(tmp_path.iterdir()) == []


def test_binary_data_and_counts_are_ranked_apart(quick, compare, monkeypatch):
    monkeypatch.setitem(WIDTH, "bernoulli", -50.0)
    found = compare(likelihoods=["bernoulli", "poisson"], layer="binary")
    assert found.ranks["ranked_with"].tolist() == ["binary", "counts"]
    assert found.ranks["rank"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("package", "changes"),
    [("matplotlib", {}), ("sklearn", {"models": ["gmvae"]}), ("sklearn", {"seeds": 2})],
)
def test_a_missing_package_is_named_before_the_work(
    quick, compare, monkeypatch, tmp_path, package, changes
):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "sklearn" and "models" not in changes:
        # clusters are not asked for
        assert len(compare(**changes).table) == 4
        return
    name = {"sklearn": "scikit-learn"}.get(package, package)
    with pytest.raises(ImportError, match=f"found no {name}.*scvae_jax.analysis"):
        compare(**changes)
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.fixture
def folder(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "sub").mkdir()
    cells.write_h5ad(tmp_path / "sub" / "cells.h5ad")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "cells.h5ad --likelihoods poison",
            "expected one of poisson, negative_binomial",
        ),
        ("cells.h5ad cells.h5ad --likelihoods poisson", "named cells twice"),
        ("cells.h5ad sub/cells.h5ad --likelihoods poisson", "named cells twice"),
        ("cells.h5ad --likelihoods poisson --seeds 0", "found seeds=0"),
        ("cells.h5ad --likelihoods ,", "found likelihoods none"),
        ("cells.h5ad --likelihoods poisson --split-key no", "no obs column 'no'"),
        ("cells.h5ad --likelihoods poisson --score-key no", "no obs column 'no'"),
        ("cells.h5ad --likelihoods poisson --clusters 3", "for a vae"),
        ("cells.h5ad --likelihoods poisson --out other", "not a comparison"),
        ("cells.h5ad --likelihoods poisson --out cells.h5ad", "not a comparison"),
        ("no.h5ad --likelihoods poisson", "found no file at no.h5ad"),
        ("cells.h5ad", "--likelihoods"),
    ],
)
def test_bad_input_ends_with_one_line(quick, command, folder, line, text):
    before = files(folder)
    out = () if "--out" in line else ("--out", "new")
    code, printed, err = command("compare", *line.split(), *out)
    assert (code, printed) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: found ") and ", expected " in err
    assert text in err
    assert files(folder) == before
    assert not (folder / "new").exists()
    assert quick == []


def test_options_of_the_command(quick, command, folder):
    other = anndata.read_h5ad(folder / "cells.h5ad")[:, ::-1].copy()
    other.write_h5ad(folder / "second.h5ad")
    code, out, err = command(
        *("compare", "cells.h5ad", "second.h5ad", "--models", "vae,gmvae"),
        *("--likelihoods", "poisson, negative_binomial:mean=free", "--clusters", 4),
        *("--seeds", 1, "--seed", 7, "--splits", 2, "--test-fraction", 0.2),
        *("--reference", "poisson/vae", "--batch-key", "batch", "--genes", "half"),
        *("--learning-rate", 0.01, "--posterior", "conditional", "--out", "new"),
        *("--latent-size", 3, "--hidden-sizes", "9,7"),
        *("--epochs", 2, "--batch-size", 50),
    )
    assert code == 0, err
    # the two that are not tied to a file: remarks on seeds and on totals
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert ["one seed" in notes[0], "log p(total)" in notes[1]] == [True, True]
    settings = json.loads((folder / "new" / "comparison.json").read_text())
    assert settings["gmvae"]["n_clusters"] == 4
    assert settings["gmvae"]["posterior"] == "conditional"
    assert settings["train"]["learning_rate"] == 0.01
    assert settings["source"]["batch_key"] == "batch"
    model, train, source = (settings[name] for name in ("model", "train", "source"))
    assert (model["n_latent"], model["hidden_sizes"]) == (3, [9, 7])
    assert (train["epochs"], train["batch_size"]) == (2, 50)
    assert train["test_fraction"] == 0.2
    assert source["genes"] == "half"
    assert set(settings["data"]) == {"cells", "second"}
    table = json.loads((folder / "new" / "table.json").read_text())
    assert len(table["rows"]) == 2 * 2 * 2 * 2
    assert {row["seed"] for row in table["rows"]} == {7}
    assert {row["split"] for row in table["rows"]} == {7, 8}
    assert {row["reference"] for row in table["ranks"]} == {"poisson/vae"}


def test_a_comparison_is_replaced_on_the_command_line(quick, command, folder):
    line = "compare cells.h5ad --likelihoods poisson --out new"
    assert command(*line.split())[0] == 0
    more = "--layer binary --fractional round --overwrite"
    code, _, err = command(*line.split(), *more.split())
    assert code == 0, err
    source = json.loads((folder / "new" / "comparison.json").read_text())["source"]
    assert (source["layer"], source["fractional"]) == ("binary", "round")


def test_clusters_that_were_not_asked_for_are_said(quick, command, folder):
    line = "compare cells.h5ad --likelihoods poisson --models gmvae --seeds 2 --out new"
    code, _, err = command(*line.split())
    assert code == 0
    assert "warning: 10 clusters are used, as --clusters was not given" in err
