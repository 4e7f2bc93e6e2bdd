"""Run folders: bit for bit, readable, whole or not there at all."""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest

import scvae_jax as sv
from scvae_jax import building, checkpoints, files, likelihoods
from scvae_jax.checks import InputError, InputWarning

TEXTS = ("config.json", "genes.json", "cells.csv", "history.json")
PARTS = (*TEXTS, "params")


@pytest.fixture(scope="module")
def run(fitted, tmp_path_factory):
    """A saved run, to be read only."""
    path = tmp_path_factory.mktemp("runs") / "run"
    fitted.save(path)
    return path


@pytest.fixture
def copied(run, tmp_path):
    """A saved run to damage, alone in its folder."""
    return shutil.copytree(run, tmp_path / "run")


def content(folder):
    """Every file below a folder with its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_same_params(one, other):
    one, other = (
        jax.tree.flatten_with_path(one)[0],
        jax.tree.flatten_with_path(other)[0],
    )
    assert [path for path, _ in one] == [path for path, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# What comes back


def test_load_gives_back_all_that_was_saved(fitted, run):
    loaded = sv.load(run)
    assert_same_params(fitted.params, loaded.params)
    for name in ("config", "train_config", "data_config", "batches", "history"):
        assert getattr(loaded, name) == getattr(fitted, name), name
    assert loaded.summary == fitted.summary
    assert loaded.versions == fitted.versions
    for name in ("genes", "cells", "split"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))
    assert loaded.likelihood.name == fitted.likelihood.name == "negative_binomial"


def test_a_loaded_model_gives_the_same_numbers(fitted, run, small):
    settings = {"split": "all", "n_samples": 3, "seed": 2}
    figures = sv.evaluate(small, fitted, **settings)
    assert sv.evaluate(small, sv.load(str(run)), **settings) == figures


def test_saving_what_was_loaded_gives_the_same_run(run, tmp_path):
    sv.load(run).save(tmp_path / "again")
    for name in TEXTS:
        if name != "config.json":
            assert (tmp_path / "again" / name).read_text() == (run / name).read_text()
    configs = [
        json.loads((path / "config.json").read_text())
        for path in (run, tmp_path / "again")
    ]
    # orbax gives its files other names each time, and not always as many
    sums = [config.pop("sha256") for config in configs]
    assert all(sums[0][name] == sums[1][name] for name in TEXTS)
    assert configs[0] == configs[1]
    assert_same_params(sv.load(run).params, sv.load(tmp_path / "again").params)


def test_names_that_look_like_something_else_survive(fitted, tmp_path):
    names = ["NA", "007", "1e5", "a,b", 'a "b"', " a ", "Größe", "", "None", "#1"]
    names += ["a\r", "a\nb", "a\r\n"]
    odd = dataclasses.replace(
        fitted,
        genes=np.array(names + fitted.genes.tolist()[len(names) :]),
        cells=np.array(names + fitted.cells.tolist()[len(names) :]),
        batches=("NA", "1,0"),
    )
    odd.save(tmp_path / "run")
    loaded = sv.load(tmp_path / "run")
    assert loaded.genes.tolist() == odd.genes.tolist()
    assert loaded.cells.tolist() == odd.cells.tolist()
    assert loaded.batches == odd.batches


# What lies in the folder


def test_the_run_is_readable(fitted, run):
    assert {path.name for path in run.iterdir()} == set(PARTS)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["format"] == checkpoints.FORMAT
    assert config["model"]["n_latent"] == 3
    assert config["train"]["epochs"] == 2
    assert config["data"]["batch_key"] == "batch"
    assert config["batches"] == ["batch_0", "batch_1"]
    assert config["likelihood"] == "negative_binomial"
    assert config["versions"]["jax"] == metadata.version("jax")
    assert config["versions"]["scvae_jax"] == metadata.version("scvae_jax")
    assert config["versions"]["device"].startswith(jax.devices()[0].platform)
    assert json.loads((run / "genes.json").read_text()) == fitted.genes.tolist()
    history = json.loads((run / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(np.isfinite(row["validation_elbo"]) for row in history)
    lines = (run / "cells.csv").read_text().splitlines()
    assert lines[0] == '"cell","split","total"'
    assert len(lines) == 1 + 120
    parts = {json.loads(line.split(",")[1]) for line in lines[1:]}
    assert parts == {"train", "validation"}


def test_nothing_is_pickled(run):
    for name, data in content(run).items():
        if data is not None:
            assert not name.endswith((".pkl", ".pickle", ".npy", ".npz"))
            # the opcode with which every pickle since protocol 2 begins
            assert not data.startswith(b"\x80")


def test_the_run_has_the_usual_rights(run, tmp_path):
    (tmp_path / "usual").mkdir()
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert stat.S_IMODE(run.stat().st_mode) == usual
    assert os.access(run / "config.json", os.R_OK)


# Where it may be written


def test_an_existing_run_is_refused(fitted, copied):
    before = content(copied.parent)
    with pytest.raises(
        InputError,
        match=r"found a run folder at .*run, expected a new path, choose another one "
        r"or replace it \(overwrite=True, --overwrite\)",
    ):
        fitted.save(copied)
    assert content(copied.parent) == before


def test_overwrite_replaces_the_whole_run(fitted, copied):
    seed = dataclasses.replace(fitted.train_config, seed=99)
    dataclasses.replace(fitted, train_config=seed).save(copied, overwrite=True)
    assert sv.load(copied).train_config.seed == 99
    assert [path.name for path in copied.parent.iterdir()] == ["run"]
    assert {path.name for path in copied.iterdir()} == set(PARTS)


def test_other_files_in_a_run_are_neither_read_nor_lost(fitted, copied, monkeypatch):
    (copied / "annotated.h5ad").write_text("years of work")
    (copied / "params" / ".DS_Store").write_text("")
    read, digest = [], hashlib.file_digest

    def file_digest(file, name):
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    assert sv.load(copied).versions == fitted.versions
    assert "genes.json" in read
    assert not {"annotated.h5ad", ".DS_Store"} & set(read)
    with pytest.raises(
        InputError, match="found annotated.h5ad in the run folder .*move them elsewhere"
    ):
        fitted.save(copied, overwrite=True)
    assert (copied / "annotated.h5ad").read_text() == "years of work"


def test_the_top_of_a_file_system_is_refused_before_the_work(tmp_path, monkeypatch):
    """It cannot be replaced, be it empty, as a folder given to a container is."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(InputError, match="found the top of a file system at .*inside"):
        checkpoints.check_free(tmp_path, overwrite=False)
    checkpoints.check_free(tmp_path / "run", overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "broken run"])
def test_what_is_not_a_run_is_never_replaced(fitted, tmp_path, kind, overwrite):
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("years of work")
    else:
        path.mkdir()
        name = "genes.json" if kind == "broken run" else "chapter.txt"
        (path / name).write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(
        InputError,
        match="found .*thesis, which is not a run folder, expected a new path or a run",
    ):
        fitted.save(path, overwrite=overwrite)
    assert content(tmp_path) == before


def test_a_folder_with_some_config_is_not_a_run(fitted, tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "config.json").write_text('{"theme": "dark"}')
    (path / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="found .*thesis, which is not a run folder"):
        fitted.save(path, overwrite=True)


def test_an_empty_folder_and_folders_that_are_missing_are_fine(fitted, tmp_path):
    (tmp_path / "empty").mkdir()
    fitted.save(tmp_path / "empty")
    fitted.save(tmp_path / "new" / "er" / "run")
    assert sv.load(tmp_path / "empty").genes.tolist() == fitted.genes.tolist()
    assert sv.load(tmp_path / "new" / "er" / "run").versions == fitted.versions
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "new"}


def test_relative_paths(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted.save("run")
    assert sv.load("run").genes.tolist() == fitted.genes.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_check_free_comes_before_the_work(tmp_path, copied, overwrite):
    checkpoints.check_free(tmp_path / "new", overwrite)
    (tmp_path / "empty").mkdir()
    checkpoints.check_free(tmp_path / "empty", overwrite)
    if overwrite:
        checkpoints.check_free(copied, overwrite)
    else:
        with pytest.raises(InputError, match="found a run folder at"):
            checkpoints.check_free(copied, overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "run"}


# A save that fails


class Full(OSError):
    """What a full disk would raise."""


def fail_at(monkeypatch, place):
    """Let the disk be full while something is written."""
    import orbax.checkpoint

    def write_json(path, values, indent):
        if path.name == place:
            # half of it is there already
            path.write_text("{")
            raise Full
        original(path, values, indent)

    def fail(*arguments, **keywords):
        raise Full

    original = checkpoints._write_json
    if place == "params":
        monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "save", fail)
    elif place == "cells.csv":
        monkeypatch.setattr("pandas.DataFrame.to_csv", fail)
    elif place == "move":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(checkpoints, "_write_json", write_json)


@pytest.mark.parametrize(
    ("place", "there"),
    [
        *((part, there) for part in PARTS for there in (False, True)),
        ("move", False),
        ("move", True),
    ],
)
def test_a_failed_save_leaves_what_was_there(
    fitted, copied, tmp_path, monkeypatch, place, there
):
    path = copied if there else tmp_path / "other"
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        fail_at(patch, place)
        with pytest.raises(Full):
            fitted.save(path, overwrite=True)
    assert content(tmp_path) == before


def test_a_save_that_fails_between_two_moves_puts_the_old_run_back(
    fitted, copied, tmp_path, monkeypatch
):
    before = content(tmp_path)
    moves = []
    original = os.replace

    def replace(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise Full
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Full):
            fitted.save(copied, overwrite=True)
    assert content(tmp_path) == before


def test_a_link_is_not_replaced(fitted, copied, tmp_path):
    (tmp_path / "link").symlink_to(copied)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="found a link at .*link, expected a new"):
            fitted.save(tmp_path / "link", overwrite=overwrite)


def test_a_link_that_leads_nowhere_is_found_before_any_work(tmp_path):
    (tmp_path / "scratch").symlink_to(tmp_path / "not mounted")
    with pytest.raises(InputError, match="scratch is not a folder that can be written"):
        checkpoints.check_free(tmp_path / "scratch" / "run", overwrite=False)


def test_an_interruption_after_both_moves_keeps_the_new_run(
    fitted, copied, tmp_path, monkeypatch
):
    seed = dataclasses.replace(fitted.train_config, seed=99)
    other = dataclasses.replace(fitted, train_config=seed)
    moves, original = [], os.replace

    def replace(source, target):
        original(source, target)
        moves.append(target)
        if target == copied and len(moves) > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        other.save(copied, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [copied.name]
    assert checkpoints.load(copied).train_config.seed == 99
    # and it can be replaced again
    other.save(copied, overwrite=True)


def test_an_old_run_that_cannot_be_removed_is_no_failure(fitted, copied, monkeypatch):
    original = os.unlink

    def unlink(path, *arguments, **keywords):
        if "-old-" in os.fspath(path) or "dir_fd" in keywords:
            raise OSError("busy")
        original(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.warns(InputWarning, match=r"run cannot be removed and is left at "):
            fitted.save(copied, overwrite=True)
    assert checkpoints.load(copied).genes.tolist() == fitted.genes.tolist()


def test_a_run_is_loaded_to_the_default_device(copied):
    code = f"""
import jax
from scvae_jax import checkpoints

device = jax.devices("cpu")[1]
with jax.default_device(device):
    loaded = checkpoints.load({str(copied)!r})
places = [leaf.devices() for leaf in jax.tree.leaves(loaded.params)]
assert places and all(place == {{device}} for place in places), places
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | flags, check=True)


def test_what_orbax_makes_of_a_full_disk(fitted, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\n[source]")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.StandardCheckpointer.save", fail)
        with pytest.raises(OSError, match="No space left on device .source."):
            fitted.save(tmp_path / "run")
    assert content(tmp_path) == {}


def test_a_failed_save_leaves_no_folders_above_it(fitted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, "config.json")
        with pytest.raises(Full):
            fitted.save(tmp_path / "new" / "run")
    assert content(tmp_path) == {}


def test_a_folder_that_another_needs_stays(tmp_path):
    """And what failed is what is told."""
    with pytest.raises(Full), files.folders_above(tmp_path / "new" / "run"):
        (tmp_path / "new" / "other").mkdir()
        raise Full
    assert (tmp_path / "new" / "other").is_dir()


# Runs that are not whole


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part(copied, part):
    target = copied / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(
        InputError,
        match=f"found no {part} in .*run, expected a run folder with config.json, .* or"
        " fit again",
    ):
        sv.load(copied)


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_a_path_without_a_run(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(
        InputError, match="found no config.json, genes.json, .* in .*ru"
    ):
        sv.load(path)


def change(run, **values):
    """Set fields of config.json; `part__field` for one inside, ... to remove it."""
    config = json.loads((run / "config.json").read_text())
    for name, value in values.items():
        *outer, last = name.split("__")
        inner = config
        for key in outer:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("number", [0, 1, "2", None, ...])
def test_a_run_of_another_version(copied, number):
    change(copied, format=number)
    found = None if number is ... else number
    with pytest.raises(
        InputError,
        match=f"found a run folder of format {found} at .*run, expected format "
        f"{checkpoints.FORMAT}, use the version of scvae_jax that wrote it or fit",
    ):
        sv.load(copied)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model": {}}, "found settings none, expected those of ModelConfig"),
        ({"model__new": 1}, "found settings .*new.*, exp"),
        ({"train__new": 1}, "found settings .*new.*, expected those of TrainConfig"),
        ({"data__new": 1}, "found settings .*new, .*expected those of DataConfig"),
        ({"model__n_latent": ...}, "found settings .*, expected those of ModelConfig"),
        ({"model__n_latent": 0}, "found n_latent=0, expected a whole number"),
        ({"train__epochs": "x"}, "found epochs='x', expected a whole number"),
        ({"model__likelihood": "new", "likelihood": "new"}, "found likelihood 'new'"),
        ({"model": ...}, "found no 'model' in .*config.json, expected a whole run"),
        ({"batches": ...}, "found no 'batches' in .*config.json, expected a whole run"),
        ({"summary": ...}, "found no 'summary' in .*config.json, expected a whole run"),
        ({"model": None}, "found .*expected .*ModelConfig"),
        ({"batches": None}, "found .*expected .*"),
        ({"sha256": None}, "found .*expected a whole run"),
        ({"model__hidden_sizes": 8}, "found hidden_sizes=8"),
        ({"model__likelihood_options": None}, "found .*expected"),
    ],
)
def test_a_damaged_configuration(copied, values, text):
    change(copied, **values)
    with pytest.raises(InputError, match=text):
        sv.load(copied)


@pytest.mark.parametrize("name", ["config.json", "genes.json", "history.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", "half"])
def test_a_file_that_is_not_json(copied, name, damage):
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[: len(data) // 2] if damage == "half" else damage)
    with pytest.raises(
        InputError,
        match=f"found a file that is not JSON at .*{name} .*, expected a whole run",
    ):
        sv.load(copied)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[]", "found a run folder of format None"),
        ("genes.json", "null", "found genes.json damaged or changed"),
        ("genes.json", "{}", "found genes.json damaged or changed"),
        ("genes.json", '[["a"], ["b", "c"]]', "found genes.json damaged or changed"),
        ("history.json", "null", "found history.json damaged or changed"),
        ("cells.csv", "", "found cells.csv damaged or changed"),
        ("cells.csv", "name,part\na,train\n", "found cells.csv damaged or changed"),
        ("cells.csv", "cell,split\n", "found cells.csv damaged or changed"),
        (
            "cells.csv",
            "cell,split\ncell_0,training\n",
            "found cells.csv damaged or changed",
        ),
    ],
)
def test_a_file_that_holds_something_else(copied, name, text, message):
    (copied / name).write_text(text)
    with pytest.raises(InputError, match=f"{message} .*, expected .*, .*fit again"):
        sv.load(copied)


def test_a_list_of_cells_that_is_cut_short(copied):
    lines = (copied / "cells.csv").read_text().splitlines(keepends=True)
    (copied / "cells.csv").write_text("".join(lines[:60]))
    with pytest.raises(InputError, match="found cells.csv damaged or changed"):
        sv.load(copied)


def damage(run, how):
    """Spoil the parameters, or something that they must agree with."""
    params = run / "params"
    data = max((params / "d").iterdir(), key=lambda path: path.stat().st_size)
    if how == "no files":
        shutil.rmtree(params)
        params.mkdir()
    elif how == "a file":
        shutil.rmtree(params)
        params.write_text("weights")
    elif how == "data absent":
        data.unlink()
    elif how == "data cut short":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif how == "one bit":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif how == "latent size":
        change(run, model__n_latent=5)
    elif how == "batches":
        change(run, batches=["a"])
    else:
        assert how == "genes"
        (run / "genes.json").write_text('["gene_0", "gene_1"]')


DAMAGES = [
    "no files",
    "a file",
    "data absent",
    "data cut short",
    "one bit",
    "latent size",
    "batches",
    "genes",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_parameters(copied, how, capfd):
    damage(copied, how)
    with pytest.raises(InputError, match="found .* damaged or changed in .*fit again"):
        sv.load(copied)
    assert "Traceback" not in capfd.readouterr().err


# A likelihood of one's own


@pytest.fixture(scope="module")
def own(fitted):
    """A likelihood that no name stands for, and a model with it."""
    mine = likelihoods.poisson()._replace(name="mine")
    model = building.from_config(fitted.config, mine, n_genes=40, n_batches=2)
    params = model.init(jax.random.key(7))
    given = {"model": model, "params": params, "own_likelihood": True}
    return mine, dataclasses.replace(fitted, **given)


def test_own_likelihood_gives_the_same_numbers(own, small, tmp_path):
    mine, original = own
    original.save(tmp_path / "run")
    loaded = sv.load(tmp_path / "run", likelihood=mine)
    assert loaded.likelihood is mine
    assert_same_params(loaded.params, original.params)
    figures = sv.evaluate(small, original, n_samples=2)
    assert sv.evaluate(small, loaded, n_samples=2) == figures


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (None, "none"),
        ("yours", "'yours'"),
        ("negative_binomial", "'negative_binomial'"),
    ],
)
def test_own_likelihood_must_be_passed(own, tmp_path, name, given):
    mine, original = own
    original.save(tmp_path / "run")
    likelihood = None if name is None else mine._replace(name=name)
    with pytest.raises(
        InputError,
        match=f"found {given} given for a run of likelihood 'mine', expected that "
        r"likelihood, pass it: load\(path, likelihood=...\)",
    ):
        sv.load(tmp_path / "run", likelihood=likelihood)


def test_a_variant_that_kept_a_name_must_be_passed(small, tmp_path, capfd):
    mine = likelihoods.negative_binomial(mean="free")
    train = sv.TrainConfig(epochs=1, batch_size=64)
    config = sv.ModelConfig(n_latent=2, hidden_sizes=(8,), thinning=0.0)
    sv.fit(small, config, train, likelihood=mine, progress=False).save(tmp_path / "run")
    with pytest.raises(InputError, match="found none given for a run of likelihood"):
        sv.load(tmp_path / "run")
    loaded = sv.load(tmp_path / "run", likelihood=mine)
    assert loaded.likelihood is mine and loaded.own_likelihood
    # one of the same name that has other heads
    other = mine._replace(heads=(*mine.heads, likelihoods.Head("more")))
    # more than once, as threads differ in who is first
    for _ in range(3):
        with pytest.raises(InputError, match="found parameters that cannot be read in"):
            sv.load(tmp_path / "run", likelihood=other)
    assert "Traceback" not in capfd.readouterr().err


def test_another_likelihood_than_the_named_one(run):
    with pytest.raises(
        InputError,
        match="found 'poisson' given for a run of the named likelihood 'negative_bin",
    ):
        sv.load(run, likelihood=likelihoods.poisson())
    # of the same name, with options that the run has not
    free = likelihoods.negative_binomial(mean="free")
    with pytest.raises(InputError, match="named likelihood .*leave it out"):
        sv.load(run, likelihood=free)


def test_a_file_beside_an_alternative_is_not_replaced(fitted, tmp_path):
    run = tmp_path / "run"
    dataclasses.replace(fitted, alternatives=(fitted,)).save(run)
    (beside,) = (run / "alternatives").iterdir()
    checkpoints.check_free(run, True)
    for own in (beside / "annotated.h5ad", run / "alternatives" / "notes.txt"):
        own.write_text("years of work")
        with pytest.raises(InputError, match=f"found .*{own.name} in the run folder"):
            checkpoints.check_free(run, True)
        own.unlink()


@pytest.mark.parametrize("place", [".", "..", "../here"])
def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="holds the folder that you are in"):
        checkpoints.check_free(place, False)
    checkpoints.check_free("run", False)
