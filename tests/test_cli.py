"""The command line: what it prints, what it writes, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

import scvae_jax as sv
from scvae_jax import (
    analysis,
    annotated,
    cli,
    datasets,
    evaluation,
    phases,
    plots,
    printing,
    process,
    training,
)
from scvae_jax.checks import InputWarning

TINY = ("--epochs", 2, "--latent-size", 2, "--hidden-sizes", 8, "--batch-size", 64)
TRAIN_KEYS = {
    "epochs",
    "steps",
    "seconds",
    "compile_seconds",
    "seconds_per_epoch",
    "cells_per_second",
    "validation_elbo",
}
EVALUATE_KEYS = {
    "n_cells",
    "elbo",
    "importance_weighted_bound",
    "n_samples",
    "log_likelihood",
    "kl_z",
    "kl_y",
    "clusters_used",
    "conditions_on_total",
}


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scvae-jax", *map(str, arguments)])
        capsys.readouterr()
        # the command sets filters of its own
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            cli.main()
        return Result(stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def data(small, tmp_path_factory):
    """The file of cells that all commands read."""
    adata = small.copy()
    adata.obs["part"] = ["train"] * 80 + ["validation"] * 20 + ["test"] * 20
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def run(fitted, tmp_path_factory):
    """A run folder, to be read only."""
    path = tmp_path_factory.mktemp("runs") / "run"
    fitted.save(path)
    return path


def listing(folder):
    """All files and folders below, with what the files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_one_line(err, text=""):
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: found "), err
    assert ", expected " in lines[0], err
    assert text in lines[0], err


def in_another_process(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "scvae_jax.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


# Commands that work


def test_the_command_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="scvae-jax")
    assert script.load() is cli.main


def test_train_prints_one_json_object_and_writes_a_run(data, tmp_path):
    options = ("--split-key", "part", "--batch-key", "batch", "--json")
    done = in_another_process(
        "train", data, "--out", "a/run", *TINY, *options, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert set(figures) >= TRAIN_KEYS
    assert figures["epochs"] == 2
    assert figures["steps"] == 2 * 2
    assert all(np.isfinite(figures[name]) for name in TRAIN_KEYS)
    assert figures["n_train"] == 80
    # progress goes where it does not mix with figures
    assert "validation bound" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(listing(tmp_path)) >= {"a/run/config.json", "a/run/params"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
    fitted = sv.load(tmp_path / "a" / "run")
    assert fitted.config.n_latent == 2
    assert fitted.config.hidden_sizes == (8,)
    assert fitted.train_config.batch_size == 64
    assert fitted.data_config.split_key == "part"
    assert fitted.batches == ("batch_0", "batch_1")
    assert fitted.summary["validation_elbo"] == figures["validation_elbo"]


def test_compiled_programs_are_kept_for_the_next_run(data, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    figures, kept = [], []
    seeds = {"first": 0, "second": 0, "another": 1, "one more": 2}
    for name, seed in seeds.items():
        out = ("--out", name, "--json", "--seed", seed)
        done = in_another_process(
            "train", data, *out, *TINY, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path)
        )
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(done.stdout)["validation_elbo"])
        kept.append(set(listing(tmp_path / "scvae_jax")))
    assert any(name.endswith("-cache") for name in kept[0])
    # on a busy machine a small one too may come to take long enough to be kept
    assert kept[0] <= kept[1] <= kept[2] <= kept[3]
    # programs of other seeds, with other cells set aside, are the same
    assert not any("jit_program" in name for name in kept[3] - kept[0])
    assert figures[0] == figures[1] and len(set(figures)) == 3


@pytest.mark.parametrize(
    ("given", "plugin", "then"),
    [
        ("", "jax_cuda13_plugin", "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "jax_cuda13", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "jax_cuda13", None),
        ("--xla_a=1", "jax", None),
    ],
)
def test_kernels_are_chosen_by_rule_unless_told(
    command, monkeypatch, given, plugin, then
):
    monkeypatch.setenv("XLA_FLAGS", given)
    modules = [SimpleNamespace(name="numpy"), SimpleNamespace(name=plugin)]
    monkeypatch.setattr(process.pkgutil, "iter_modules", lambda: modules)
    then = given if then is None else then
    assert command("--help").code == 0
    assert os.environ["XLA_FLAGS"] == then


def test_no_place_for_compiled_programs_is_no_matter(run, data, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    done = in_another_process(
        "evaluate", run, data, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_counts_in_another_layer(command, run, data, tmp_path):
    adata = anndata.read_h5ad(data)
    adata.layers["counts"], adata.X = adata.X.copy(), np.log1p(adata.X)
    adata.write_h5ad(tmp_path / "other.h5ad")
    bounds = []
    for given in ((data,), (tmp_path / "other.h5ad", "--layer", "counts")):
        done = command("evaluate", run, *given, "--json")
        bounds.append(json.loads(done.out)["elbo"])
        done = command("apply", run, *given, "--out", f"{len(bounds)}.h5ad", "--json")
        assert done.code == 0, done.err
    assert bounds[0] == bounds[1]


def test_apply_in_another_process(data, run, tmp_path):
    done = in_another_process("apply", run, data, "--out", "b/out.h5ad", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert set(listing(tmp_path)) == {"b", "b/out.h5ad"}
    adata = anndata.read_h5ad(tmp_path / "b" / "out.h5ad")
    assert adata.obsm["X_scvae"].shape == (120, 3)
    assert {"scvae_elbo", "scvae_split"} <= set(adata.obs)


def test_train_refuses_a_run_that_is_there_then_overwrites(
    command, data, run, tmp_path
):
    shutil.copytree(run, tmp_path / "run")
    before = listing(tmp_path)
    refused = command("train", data, "--out", "run", *TINY)
    assert refused.code == 2
    assert_one_line(refused.err, "found a run folder at run")
    assert "--overwrite" in refused.err
    assert listing(tmp_path) == before
    # a file that cannot be used costs nobody the run that is there
    broken = command("train", tmp_path / "no.h5ad", "--out", "run", "--overwrite")
    assert broken.code == 2
    assert listing(tmp_path) == before
    done = command("train", data, "--out", "run", *TINY, "--seed", 4, "--overwrite")
    assert done.code == 0, done.err
    assert sv.load(tmp_path / "run").train_config.seed == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # for people, not for programs
    assert "validation elbo" in done.out
    assert "compile seconds" in done.out
    assert "{" not in done.out


def test_evaluate_prints_one_json_object(command, data, run, small, fitted, tmp_path):
    done = command("evaluate", run, data, "--samples", 3, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    figures = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert set(figures) >= EVALUATE_KEYS
    assert figures == sv.evaluate(small, fitted, n_samples=3)
    assert figures["n_cells"] == 12
    assert figures["split"] == "validation"
    assert listing(tmp_path) == {}


def test_evaluate_with_scores_for_people(command, data, run):
    options = ("--split", "all", "--samples", 2, "--score-key", "cell_type")
    done = command("evaluate", run, data, *options)
    assert done.code == 0, done.err
    for name in ("importance weighted bound", "ari", "nmi", "oracle k", "n cells"):
        assert name in done.out


def test_apply_refuses_then_overwrites(command, data, run, tmp_path):
    done = command("apply", run, data, "--out", "out.h5ad", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert figures["n_cells"] == 120
    assert figures["out"] == "out.h5ad"
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert figures["elbo"] == pytest.approx(adata.obs["scvae_elbo"].mean(), rel=1e-6)
    # beside what another model has written
    options = ("--key-added", "other", "--denoised", "--out", "both.h5ad")
    assert command("apply", run, "out.h5ad", *options).code == 0
    both = anndata.read_h5ad(tmp_path / "both.h5ad")
    assert {"X_scvae", "X_other"} <= set(both.obsm) and "other_denoised" in both.layers
    (tmp_path / "both.h5ad").unlink()
    before = listing(tmp_path)
    again = command("apply", run, data, "--out", "out.h5ad")
    assert again.code == 2
    assert_one_line(again.err, "found out.h5ad there already")
    assert listing(tmp_path) == before
    other = command("apply", run, data, "--out", "out.h5ad", "--seed", 1, "--overwrite")
    assert other.code == 0, other.err
    assert set(listing(tmp_path)) == {"out.h5ad"}
    again = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert (again.obs["scvae_elbo"] != adata.obs["scvae_elbo"]).any()


def test_missing_genes_as_zeros_and_empty_cells_warn(command, data, run, tmp_path):
    adata = anndata.read_h5ad(data)[:, 3:].copy()
    adata.X = adata.X.multiply(~np.isin(np.arange(120), [0, 5])[:, None]).tocsr()
    adata.write_h5ad(tmp_path / "few.h5ad")
    options = ("--out", "out.h5ad", "--missing-genes", "zeros")
    done = command("apply", run, "few.h5ad", *options)
    assert done.code == 0
    missing, empty = done.err.splitlines()
    assert missing.startswith("warning: 3 of the model's 40 genes are missing")
    assert empty.startswith("warning: 2 of 120 cells have no counts")
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert np.isfinite(written.obsm["X_scvae"]).all()
    assert np.isfinite(written.obs["scvae_elbo"]).all()


def test_a_mixture_from_end_to_end(command, data, tmp_path):
    mixture = ("--model", "gmvae", "--clusters", 3, "--seeds", 2)
    done = command(
        "train", data, "--out", "run", *mixture, *TINY, "--batch-key", "batch", "--json"
    )
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert TRAIN_KEYS | {"clusters_used", "cluster_sizes"} <= set(figures)
    assert figures["n_fits"] == 2 and figures["n_clusters"] == 3
    assert len(sv.load("run").alternatives) == 1
    done = command("evaluate", "run", data, "--score-key", "cell_type", "--json")
    figures = json.loads(done.out)
    assert EVALUATE_KEYS | {"kl_y", "clusters_used", "ari", "nmi"} <= set(figures)
    assert figures["oracle_k"] is False
    out = ("--out", "cells.h5ad", "--denoised", "--batch", "batch_1")
    done = command("apply", "run", data, *out)
    assert done.code == 0, done.err
    adata = anndata.read_h5ad("cells.h5ad")
    assert {"scvae_cluster", "scvae_cluster_confidence"} <= set(adata.obs)
    assert np.isfinite(adata.layers["scvae_denoised"]).all()
    done = command("apply", "run", data, "--out", "b.h5ad", "--denoised", "--batch", 9)
    assert done.code == 2
    assert_one_line(done.err, "found batch='9', expected one of batch_0, batch_1")
    done = command("apply", "run", data, "--out", "b.h5ad", "--batch", "batch_1")
    assert done.code == 2
    assert_one_line(done.err, "found --batch without --denoised")
    assert not Path("b.h5ad").exists()


def test_clusters_that_were_not_asked_for_are_said(command, data, monkeypatch):
    def fit(*arguments, **keywords):
        raise sv.InputError("found training, expected none, stop")

    monkeypatch.setattr(training, "fit_many", fit)
    done = command("train", data, "--out", "run", "--model", "gmvae", *TINY)
    assert done.code == 2
    assert "warning: 10 clusters are used, as --clusters was not given" in done.err


@pytest.fixture
def small_demo(monkeypatch, small):
    """The demo with another data set, a smaller model and a quicker layout."""
    adata = small.copy()
    adata.obs["bulk_labels"] = adata.obs["cell_type"]
    latent_space = plots.latent_space
    monkeypatch.setattr(datasets, "pbmc68k_reduced", lambda: adata)
    monkeypatch.setattr(cli, "MODEL", sv.ModelConfig(n_latent=2, hidden_sizes=(8,)))
    monkeypatch.setattr(
        plots, "latent_space", lambda *a, **k: latent_space(*a, **k | {"method": "pca"})
    )


def assert_demo(done, folder, n_obs):
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert {"elbo", "importance_weighted_bound", "ari", "nmi", "kl_y"} <= set(figures)
    assert {path.name for path in folder.iterdir()} == {
        "run",
        "annotated.h5ad",
        "latent.png",
    }
    adata = anndata.read_h5ad(folder / "annotated.h5ad")
    assert adata.obsm["X_scvae"].shape[0] == n_obs
    assert {"bulk_labels", "scvae_cluster", "scvae_elbo"} <= set(adata.obs)
    assert Path(figures["picture"]).samefile(folder / "latent.png")
    assert (folder / "latent.png").read_bytes().startswith(b"\x89PNG")
    assert sv.load(folder / "run").summary["epochs"] == figures["epochs"] == 2
    return figures


@pytest.mark.slow
def test_demo_with_another_data_set(command, small_demo, tmp_path):
    done = command("demo", "--epochs", 2, "--out", "here", "--json")
    assert_demo(done, tmp_path / "here", 120)
    before = listing(tmp_path)
    again = command("demo", "--epochs", 2, "--out", "here")
    assert again.code == 2
    assert_one_line(again.err, "found a run folder at here/run")
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing(command, small_demo, tmp_path, monkeypatch):
    def latent_space(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "latent_space", latent_space)
    done = command("demo", "--epochs", 2, "--out", "here")
    assert done.code == 130
    assert not listing(tmp_path)


@pytest.mark.slow
def test_demo(command, tmp_path):
    done = command("demo", "--epochs", 2, "--json")
    figures = assert_demo(done, tmp_path / "scvae_demo", 700)
    assert figures["n_scored"] == 700
    assert figures["layout"] == "UMAP"


# Help, and wrong use


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--help"], ["train", "evaluate", "apply", "compare", "demo"]),
        (
            ["train", "--help"],
            [
                *("--latent-size", "--fractional", "--json", "--clusters"),
                *("zero_inflated_negative_binomial", "lists all"),
            ],
        ),
        (["evaluate", "--help"], ["--score-key", "--samples", "--json"]),
        (["apply", "--help"], ["--missing-genes", "--out", "--overwrite"]),
        (["compare", "--help"], ["--likelihoods", "--models", "--seeds", "--json"]),
        (["demo", "--help"], ["--epochs", "--seed"]),
    ],
)
def test_help(command, arguments, texts, tmp_path):
    done = command(*arguments)
    assert done.code == 0
    assert done.err == ""
    for text in texts:
        assert text in done.out
    assert listing(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing command"),
        (["grow"], "No such command 'grow'"),
        (["--version-of-everything"], "No such option"),
        (["train"], "Missing argument"),
        (["train", "cells.h5ad"], "Missing option '--out'"),
        (["train", "cells.h5ad", "--out"], "requires an argument"),
        (["train", "cells.h5ad", "--out", "run", "--clown", "3"], "No such option"),
        (["train", "cells.h5ad", "more.h5ad", "--out", "run"], "unexpected extra arg"),
        (["train", "cells.h5ad", "--out", "run", "--epochs", "ten"], "'--epochs'"),
        (["train", "cells.h5ad", "--out", "run", "--epochs", "1.5"], "'--epochs'"),
        (["train", "cells.h5ad", "--out", "run", "--learning-rate", "x"], "-rate'"),
        (["train", "cells.h5ad", "--out", "run", "--latent-size", ""], "'--latent-si"),
        (["evaluate", "run"], "Missing argument"),
        (["evaluate", "run", "cells.h5ad", "--samples", "many"], "'--samples'"),
        (["apply", "run", "cells.h5ad"], "Missing option '--out'"),
        (["compare", "cells.h5ad", "--out", "c"], "Missing option '--likelihoods'"),
        (["compare", "--likelihoods", "poisson", "--out", "c"], "Missing argument"),
        (["demo", "here"], "unexpected extra argument"),
    ],
)
def test_wrong_use(command, arguments, text, tmp_path):
    done = command(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert_one_line(done.err, text)
    assert "--help" in done.err
    assert listing(tmp_path) == {}


# Bad input


def edit(adata, **changes):
    """Set columns of obs, X, or names, in a copy."""
    adata = adata.copy()
    for name, value in changes.items():
        if name in ("X", "var_names", "obs_names"):
            setattr(adata, name, value)
        else:
            adata.obs[name] = value
    return adata


def dense_with(adata, value, layer=None):
    """The counts with one of them replaced; the true ones in a layer, if asked for."""
    x = adata.X.toarray()
    x[3, 4] = value
    changed = edit(adata, X=x)
    if layer is not None:
        changed.layers[layer] = adata.X.copy()
    return changed


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["matrix"] = np.arange(4)


# files to be read: from the good cells to an AnnData object, or to a file by its path
ADATA = {
    "cells": lambda a: a,
    "negative": lambda a: dense_with(a, -1.0),
    "fractional": lambda a: dense_with(a, 0.5, layer="spliced"),
    "nan": lambda a: dense_with(a, np.nan),
    "infinite": lambda a: dense_with(a, np.inf),
    "no_cells": lambda a: a[:0].copy(),
    "no_genes": lambda a: a[:, :0].copy(),
    "one_cell": lambda a: a[:1].copy(),
    "all_zero": lambda a: edit(a, X=a.X * 0),
    "twice": lambda a: edit(a, var_names=["gene_0", *a.var_names[:-1]]),
    "cells_twice": lambda a: edit(a, obs_names=["cell_0", *a.obs_names[:-1]]),
    "gaps": lambda a: edit(
        a,
        donor=[None, "x"] * 60,
        split=["train", None, "validation"] * 40,
        size=[np.nan, 3.0] * 60,
    ),
    "splits": lambda a: edit(
        a,
        no_train=["validation", "test"] * 60,
        no_validation=["train", "test"] * 60,
        misspelt=["Train", "val"] * 60,
        number=[0, 1] * 60,
    ),
    "fewer_genes": lambda a: a[:, 2:].copy(),
    "other_genes": lambda a: edit(a, var_names=[f"ENSG{g}" for g in range(a.n_vars)]),
    "other_batch": lambda a: edit(a, batch="batch_9"),
    "one_type": lambda a: edit(a, cell_type="same"),
}
FILES = {
    "absent": lambda path, good: None,
    "folder": lambda path, good: path.mkdir(),
    "text": lambda path, good: path.write_text("gene,count\n"),
    "empty": lambda path, good: path.touch(),
    "cut_short": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "not_anndata": lambda path, good: write_hdf5(path),
}
# command line with names of files above, and what the message says
TRAIN = [
    ("train negative", "found 1 negative values in X, expected counts"),
    ("train fractional", "0% of the non-zero entries), expected counts"),
    ("train fractional", "(layer 'spliced' looks like counts)"),
    ("train fractional", "normalised data was probably given"),
    ("train nan", "found 1 values in X that are NaN or infinite"),
    ("train infinite", "found 1 values in X that are NaN or infinite"),
    ("train no_cells", "found 0 cells and 40 genes"),
    ("train no_genes", "found 120 cells and 0 genes"),
    ("train cells --clusters 3", "found --clusters or --posterior for a vae"),
    ("train cells --posterior shared", "found --clusters or --posterior for a vae"),
    ("train cells --model gmm", "found model='gmm', expected vae or gmvae"),
    ("train cells --model gmvae --clusters 0", "found n_clusters=0, expected a whole"),
    (
        "train cells --model gmvae --clusters 109",
        "found n_clusters=109 for 108 training cells",
    ),
    (
        "train cells --model gmvae --clusters 2 --posterior all",
        "found posterior='all', expected shared or conditional",
    ),
    ("train cells --seeds 0", "found seeds=0, expected a whole number, at least 1"),
    ("train one_cell", "found 0 training and 1 validation cells"),
    ("train twice", "found 1 gene names more than once (gene_0)"),
    ("train cells --layer nope", "found no layer 'nope', expected one of: none"),
    ("train fractional --layer nope", "'nope', expected one of: spliced"),
    (
        "train cells --batch-key nope",
        "obs column 'nope' for the batch, expected one of",
    ),
    ("train cells --batch-key nope", "cell_type, batch, depth"),
    ("train cells --size-factor-key nope", "obs column 'nope' for the size factor"),
    ("train cells --split-key nope", "obs column 'nope' for the split"),
    (
        "train splits --split-key no_train --test-fraction 0.2",
        "found test_fraction=0.2 beside obs column 'no_train', which says what each ce",
    ),
    (
        "train cells --size-factor-key depth --likelihood-option mean=free",
        "found size_factor_key='depth' for a likelihood that does not read the depth",
    ),
    ("train cells --genes nope", "no var column 'nope' for the genes, expected one of"),
    ("train cells --genes dispersion", "var column 'dispersion' of type float64"),
    ("train gaps --batch-key donor", "60 cells without a value in obs column 'donor'"),
    ("train gaps --split-key split", "40 cells without a value in obs column 'split'"),
    ("train gaps --size-factor-key size", "60 cells without a positive number"),
    ("train splits --split-key no_train", "0 training and 60 validation cells in obs"),
    ("train splits --split-key no_validation", "60 training and 0 validation cells"),
    ("train splits --split-key misspelt", "found Train, val in obs column 'misspelt'"),
    ("train splits --split-key number", "found 0, 1 in obs column 'number'"),
    ("train absent", "found no file at absent"),
    ("train folder", "found a folder at folder"),
    ("train text", "found a file that is not HDF5 at text"),
    ("train empty", "found a file that is not HDF5 at empty"),
    ("train cut_short", "found a damaged or truncated HDF5 file at cut_short"),
    ("train not_anndata", "found an HDF5 file that anndata cannot read at not_anndata"),
    ("train cells --likelihood normal", "found likelihood 'normal', expected one of"),
    ("train cells --likelihood normal", "zero_inflated_negative_binomial"),
    ("train cells --likelihood bernoulli", "other than 0 and 1, expected binary data"),
    ("train cells --likelihood-option k_max", "found likelihood option 'k_max'"),
    (
        "train cells --likelihood categorised_poisson --likelihood-option k_max=--3",
        "found k_max='--3', expected a whole number",
    ),
    ("train cells --likelihood-option k_max=3", "found options {'k_max': 3}"),
    ("train cells --likelihood-option dispersion=x", "found dispersion='x', expected"),
    (
        "train cells --likelihood-option dispersion=gene_batch",
        "with parameters per batch and no batches",
    ),
    (
        "train cells --likelihood categorised_poisson --likelihood-option k_max=0",
        "found k_max=0, expected a whole number",
    ),
    ("train cells --latent-size 0", "found n_latent=0, expected a whole number, at"),
    ("train cells --latent-size -3", "found n_latent=-3"),
    ("train cells --hidden-sizes 0", "found hidden_sizes=0"),
    ("train cells --hidden-sizes 128;128", "found hidden sizes '128;128', expected"),
    ("train cells --hidden-sizes 12.5", "found hidden sizes '12.5'"),
    ("train cells --hidden-sizes=", "found hidden sizes '', expected"),
    ("train cells --hidden-sizes 128,,64", "found hidden sizes '128,,64', expected"),
    ("train cells --precision half", "found precision='half', expected one of float32"),
    ("evaluate RUN cells --batch-size 0", "found batch_size=0, expected a whole"),
    (
        "apply RUN cells --out new --batch-size 0",
        "found batch_size=0, expected a whole",
    ),
    ("train cells --hidden-sizes big", "found hidden sizes 'big'"),
    ("train cells --epochs 0", "found epochs=0"),
    ("train cells --batch-size 0", "found batch_size=0"),
    ("train cells --samples 0", "found n_samples=0"),
    ("train cells --seed -1", "found seed=-1"),
    ("train cells --learning-rate -0.1", "found learning_rate=-0.1"),
    ("train cells --learning-rate nan", "found learning_rate=nan"),
    ("train cells --learning-rate inf", "found learning_rate=inf"),
    ("train cells --test-fraction 1", "found test_fraction=1.0"),
    ("train cells --test-fraction 0.95", "and test_fraction=0.95, expected a valid"),
    ("train cells --fractional maybe", "found fractional='maybe', expected error, ro"),
    ("train cells --out RUN", "found a run folder at"),
    ("train cells --out taken", "found taken, which is not a run folder"),
    ("train cells --out taken --overwrite", "found taken, which is not a run folder"),
    ("train cells --out taken/notes.txt", "taken/notes.txt, which is not a run folder"),
]
LATER = [
    ("evaluate absent cells", "found no config.json, genes.json"),
    ("evaluate taken cells", "found no config.json, genes.json"),
    ("evaluate cells RUN", "found no config.json, genes.json"),
    ("evaluate RUN absent", "found no file at absent"),
    ("evaluate RUN cut_short", "found a damaged or truncated HDF5 file"),
    ("evaluate RUN negative", "found 1 negative values in X"),
    ("evaluate RUN fewer_genes", "found 2 of the model's 40 genes missing from the da"),
    ("evaluate RUN other_genes", "found none of the model's 40 genes"),
    ("evaluate RUN other_batch", "the model has not seen (batch_9), expected some of:"),
    ("evaluate RUN cells --split test", "found no test cells (there are 108 train, 12"),
    ("evaluate RUN cells --split nope", "found split='nope', expected train, validat"),
    ("evaluate RUN cells --score-key nope", "obs column 'nope' for the scores, expec"),
    ("evaluate RUN cells --samples 0", "found n_samples=0, expected a whole"),
    ("evaluate RUN cells --missing-genes x", "found missing_genes='x', expected 'err"),
    ("evaluate RUN_without_genes.json cells", "found no genes.json in"),
    ("evaluate RUN_without_params cells", "found no params in"),
    ("evaluate RUN_of_version_9 cells", "found a run folder of format 9 at"),
    ("evaluate RUN_cut_short cells", "found a file that is not JSON at"),
    ("apply absent cells --out new.h5ad", "found no config.json, genes.json"),
    ("apply RUN absent --out new.h5ad", "found no file at absent"),
    ("apply RUN text --out new.h5ad", "found a file that is not HDF5 at text"),
    ("apply RUN nan --out new.h5ad", "found 1 values in X that are NaN or infinite"),
    ("apply RUN fewer_genes --out new.h5ad", "found 2 of the model's 40 genes missi"),
    ("apply RUN other_genes --out new.h5ad", "found none of the model's 40 genes"),
    ("apply RUN other_batch --out new.h5ad", "model has not seen (batch_9), expecte"),
    ("apply RUN cells_twice --out new.h5ad", "found names of cells that repeat, exp"),
    ("apply RUN cells --out taken", "found a folder at taken, expected a new file"),
    ("apply RUN cells --out taken/notes.txt", "found taken/notes.txt there already"),
    ("apply RUN negative --out taken/notes.txt --overwrite", "found 1 negative value"),
    ("apply RUN cells --out new.h5ad --missing-genes x", "found missing_genes='x'"),
    ("train cells --likelihood-option name=x", "found options {'name': 'x'} for lik"),
    ("apply RUN cells --out link.h5ad --overwrite", "found a link at link.h5ad"),
    ("demo --epochs 0", "found epochs=0"),
    ("demo --seed -1", "found seed=-1"),
    ("demo --out taken", "found taken/run, which is not a run folder"),
]


EXTREME = [
    ("train all_zero", "found nothing but zeros"),
    ("train cells --latent-size 4000000000000", "n_latent="),
    ("train cells --hidden-sizes 8,4000000000000", "hidden_sizes="),
    (f"train cells --seed {10**30}", "found seed="),
    ("evaluate RUN cells --samples 5000000000", "found n_samples="),
    (
        "evaluate RUN cells --samples 1 --seed -1 --score-key cell_type",
        "found seed=-1",
    ),
]


@pytest.fixture
def folder(request, data, run, tmp_path):
    """The files that a command line names, and some that must not be touched."""
    words = request.node.callspec.params["line"].split()
    good = anndata.read_h5ad(data)
    for name in words:
        if name in ADATA:
            with warnings.catch_warnings():
                # anndata's own remarks on names that repeat
                warnings.simplefilter("ignore")
                ADATA[name](good).write_h5ad(tmp_path / name)
        elif name in FILES:
            FILES[name](tmp_path / name, data.read_bytes())
        elif name.startswith("RUN_"):
            damage_run(shutil.copytree(run, tmp_path / name), name)
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run").mkdir()
    for place in ("taken", "taken/run"):
        (tmp_path / place / "notes.txt").write_text("years of work")
    return tmp_path


def damage_run(path, name):
    config = path / "config.json"
    if name == "RUN_of_version_9":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 9}))
    elif name == "RUN_cut_short":
        config.write_text(config.read_text()[:200])
    elif name == "RUN_without_params":
        shutil.rmtree(path / "params")
    else:
        assert name == "RUN_without_genes.json"
        (path / "genes.json").unlink()


@pytest.mark.parametrize(("line", "text"), [*TRAIN, *LATER, *EXTREME])
def test_bad_input_ends_with_one_line_and_nothing_written(
    command, folder, run, line, text, monkeypatch
):
    # found out before any training begins
    monkeypatch.setattr(phases, "init_train_state", None)
    words = [str(run) if word == "RUN" else word for word in line.split()]
    if words[0] == "train" and "--out" not in words:
        words += ["--out", "new_run"]
    if words[0] == "train" and "--epochs" not in words:
        words += ["--epochs", "1"]
    before = listing(folder), listing(run)
    done = command(*words)
    assert done.code == 2
    assert done.out == ""
    assert_one_line(done.err, text)
    assert (listing(folder), listing(run)) == before


@pytest.mark.parametrize("line", ["train negative --out run"])
def test_bad_input_in_another_process(folder, line):
    before = listing(folder)
    done = in_another_process(*line.split(), cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert_one_line(done.stderr, "found 1 negative values in X")
    assert listing(folder) == before


# Places that cannot be written


@pytest.fixture
def quick_apply(monkeypatch):
    """Nothing to compile, where only the writing is tested."""

    def apply(adata, fitted, **options):
        adata.obs["scvae_elbo"] = 0.0

    monkeypatch.setattr(analysis, "apply", apply)


@pytest.mark.parametrize(
    "line", ["train cells --out cells/run", "apply RUN cells --out cells/new.h5ad"]
)
def test_a_place_to_write_to_is_looked_at_before_the_work(
    command, folder, run, line, monkeypatch
):
    work, before = [], listing(folder)

    def begin(*arguments, **keywords):
        work.append(arguments)
        raise sv.InputError("found work, expected none, stop")

    monkeypatch.setattr(training, "fit_many", begin)
    monkeypatch.setattr(analysis, "apply", begin)
    done = command(*line.replace("RUN", str(run)).split())
    assert done.code == 2
    assert_one_line(done.err, "cells is not a folder that can be written to")
    assert work == []
    assert listing(folder) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing_of_a_file(
    command, data, run, tmp_path, monkeypatch, quick_apply, overwrite
):
    def write(self, path, **options):
        Path(path).write_text("half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", write)
    if overwrite:
        (tmp_path / "out.h5ad").write_text("of last week")
    before = listing(tmp_path)
    done = command("apply", run, data, "--out", "out.h5ad", "--overwrite")
    assert done.code == 2
    assert_one_line(done.err, "No space left on device")
    assert listing(tmp_path) == before


def test_names_of_cells_may_be_nullable_strings(
    command, data, run, tmp_path, quick_apply
):
    adata = anndata.read_h5ad(data)
    adata.obs.index = adata.obs.index.astype("string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "nullable.h5ad")
    done = command("apply", run, tmp_path / "nullable.h5ad", "--out", "out.h5ad")
    assert done.code == 0, done.err
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs_names) == list(
        adata.obs_names
    )


def test_what_a_file_cannot_hold_is_said_in_one_line(
    command, data, run, tmp_path, quick_apply
):
    before = listing(tmp_path)
    adata = anndata.read_h5ad(data)
    adata.uns["odd"] = object()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotated, "read_h5ad", lambda _: adata)
        done = command("apply", run, data, "--out", "new/out.h5ad")
    assert done.code == 2
    assert_one_line(done.err, "found what anndata does not write")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 TB")],
)
def test_too_little_memory_is_said_in_one_line(command, data, monkeypatch, error):
    def fit(*arguments, **keywords):
        raise error

    monkeypatch.setattr(training, "fit_many", fit)
    done = command("train", data, "--out", "run")
    assert done.code == 1
    assert_one_line(done.err, "found too little memory")


def test_an_interruption_is_said_in_one_line(command, data, monkeypatch):
    def fit(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit_many", fit)
    done = command("train", data, "--out", "run")
    assert done.code == 130
    assert_one_line(done.err, "found an interruption")


@pytest.mark.parametrize("name", ["run[/b]", "run[bold]"])
def test_brackets_in_a_path_are_printed(capsys, name):
    printing.figures({"run": name}, as_json=False)
    assert name in capsys.readouterr().out


def test_what_is_long_is_printed_whole(capsys):
    path = "/".join(["a_folder"] * 30)
    printing.figures({"run": path}, as_json=False)
    assert capsys.readouterr().out == f"run  {path}\n"
    row = dict.fromkeys(printing.FORMATS) | {"likelihood": "family:" * 30, "rank": 1.0}
    printing.ranks(pd.DataFrame([row]))
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert words == [["likelihood", "rank"], ["family:" * 30, "1"]]


def test_what_does_not_compare_is_told_apart_in_the_printed_table(capsys):
    rows = [dict.fromkeys(printing.FORMATS) | {"rank": 1.0, "likelihood": "poisson"}]
    rows += [rows[0] | {"likelihood": "gaussian"}]

    def printed(**columns):
        table = pd.DataFrame(rows).assign(**columns)
        printing.ranks(table)
        return capsys.readouterr().out.splitlines()[0].split()

    assert printed(ranked_with=["counts"] * 2) == ["likelihood", "rank"]
    apart = printed(ranked_with=["counts", "densities"])
    assert apart == ["likelihood", "ranked", "with", "rank"]
    apart = printed(oracle_k=[True, False], ari=[0.9, 0.8])
    assert apart == ["likelihood", "rank", "ari", "oracle", "k"]


def test_a_failed_training_says_what_to_change(command, data, tmp_path, monkeypatch):
    def fit(*arguments, **keywords):
        raise FloatingPointError("found 25 steps, expected none, lower learning_rate")

    monkeypatch.setattr(training, "fit_many", fit)
    done = command("train", data, "--out", "run")
    # neither wrong use nor bad input
    assert done.code == 1
    assert_one_line(done.err, "lower learning_rate")
    assert listing(tmp_path) == {}


def test_only_warnings_about_the_input_are_shown(command, data, run, monkeypatch):
    def evaluate(*arguments, **keywords):
        warnings.warn("of a library", DeprecationWarning, stacklevel=1)
        warnings.warn("of the input", InputWarning, stacklevel=1)
        warnings.warn("of arithmetic", RuntimeWarning, stacklevel=1)
        return {"n_cells": 3}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    done = command("evaluate", run, data, "--json")
    assert done == Result(0, '{"n_cells": 3}\n', "warning: of the input\n")


def test_other_errors_are_not_hidden(command, data, monkeypatch):
    def fit(*arguments, **keywords):
        raise RuntimeError("a bug")

    monkeypatch.setattr(training, "fit_many", fit)
    with pytest.raises(RuntimeError, match="a bug"):
        command("train", data, "--out", "run")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_process_that_is_told_to_end_leaves_nothing(tmp_path, name, code, ignored):
    """Unless it is to go on, as nohup has it."""
    if not hasattr(signal, name):
        pytest.skip(f"there is no {name}")
    work = f"""
import os, pathlib, signal
from scvae_jax import files, process

NUMBER = signal.{name}
# else it may be ignored where the tests are, as under nohup
signal.signal(NUMBER, signal.SIG_IGN if {ignored} else signal.SIG_DFL)

def work():
    with files.whole(pathlib.Path("file")) as part:
        part.write_text("half")
        os.kill(os.getpid(), NUMBER)
        {ignored} or signal.pause()

process.exit_code(work)
"""
    done = subprocess.run([sys.executable, "-c", work], cwd=tmp_path, timeout=60)
    assert done.returncode == (0 if ignored else code)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] * ignored
