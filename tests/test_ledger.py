"""The folder of a comparison: what is whole, what goes on, what is refused."""

import json
import os
import shutil

import numpy as np
import pytest

from scvae_jax import files, ledger
from scvae_jax.checks import InputError
from scvae_jax.ranking import Fit

SETTINGS = {
    "format": 1,
    "data": {"one": "a"},
    "model": {"n_latent": 2},
    "n_samples": 10,
}


def fit_of(data, model):
    return Fit({"data": data, "model": model}, {})


def stopped_after(moved, monkeypatch, work, folder):
    """A replacement that is stopped in its place, after so many moves."""
    replace, calls = os.replace, []

    def stop(source, target):
        if len(calls) == moved:
            raise KeyboardInterrupt
        calls.append(source)
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        ledger.take_place(work, folder)


def test_a_fit_comes_back_as_it_was(tmp_path):
    fit = Fit(
        {"data": "a", "elbo": -0.1, "ari": None, "note": None},
        {"elbo": np.array([1.5, -2.25], np.float32), "cluster": np.array([0, -1])},
    )
    ledger.write_fit(tmp_path / "fit.npz", fit)
    found = ledger.read_fit(tmp_path / "fit.npz")
    assert found.row == fit.row
    for name, value in fit.cells.items():
        np.testing.assert_array_equal(found.cells[name], value)
        assert found.cells[name].dtype == value.dtype
    assert os.listdir(tmp_path) == ["fit.npz"]
    content = bytearray((tmp_path / "fit.npz").read_bytes())
    for damaged in (content[:100], b"", b"text"):
        (tmp_path / "fit.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="found a damaged file at .*remove it"):
            ledger.read_fit(tmp_path / "fit.npz")


def test_what_cannot_be_read_is_not_called_damaged(tmp_path):
    """Or a user would remove it."""
    with pytest.raises(IsADirectoryError):
        ledger.read_fit(tmp_path)
    folder = tmp_path / "out"
    ledger.open_folder(folder, SETTINGS, False)
    (folder / "comparison.json").unlink()
    (folder / "comparison.json").mkdir()
    with pytest.raises(IsADirectoryError):
        ledger.open_folder(folder, SETTINGS, False)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with files.whole(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_names_of_files_tell_fits_apart():
    keys = [
        ("a b", "nb:mean=free", "vae", 0, 0),
        ("a_b", "nb:mean=free", "vae", 0, 0),
        ("a_b", "nb", "vae", 0, 0),
        ("a_b", "nb", "vae", "0", 0),
        ("a_b", "nb", "vae", 0, 1),
        ("../" * 40, "nb", "vae", 0, 1),
        (".cells", "nb", "vae", 0, 1),
        ("\u0436" * 200, "nb", "vae", 0, 1),
        ("\u0436" * 201, "nb", "vae", 0, 1),
    ]
    names = [ledger.fit_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert not any("/" in name or len(name.encode()) > 140 for name in names)
    assert names[0].startswith("a_b-nb_mean=free-vae-split-0-seed-0-")
    # as parts have that are removed
    assert not any(name.startswith(".") for name in names)


def test_a_folder_goes_on_and_grows(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert ledger.open_folder(folder, SETTINGS, False) == (folder, SETTINGS)
    (folder / "fits" / "one.npz").write_text("finished")
    (folder / "fits" / ".0123456789abcdef-two.npz").write_text("ha")
    assert ledger.open_folder(folder, SETTINGS, False) == (folder, SETTINGS)
    assert os.listdir(folder / "fits") == ["one.npz"]
    # another data set, and settings that only a mixture has
    more = SETTINGS | {"data": {"two": "b"}, "gmvae": {"n_clusters": 3}}
    _, grown = ledger.open_folder(folder, more, False)
    assert grown["data"] == {"one": "a", "two": "b"}
    assert ledger.open_folder(folder, SETTINGS, False) == (folder, grown)
    assert json.loads((folder / "comparison.json").read_text()) == grown
    assert (folder / "fits" / "one.npz").read_text() == "finished"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"n_latent": 3}}, "n_latent=2, now 3"),
        ({"n_samples": 20}, "n_samples=10, now 20"),
        ({"data": {"one": "b"}}, "the cells themselves"),
        # a recipe that has more is another one
        ({"model": {"n_latent": 2, "thinning": 0.5}}, "thinning=None, now 0.5"),
        ({"model": {}}, "n_latent=2, now None"),
    ],
)
def test_other_settings_are_refused_or_overwrite(tmp_path, changes, text):
    folder = tmp_path / "out"
    ledger.open_folder(folder, SETTINGS, False)
    names = ["fits/one.npz", *ledger.TABLES, *ledger.PICTURES, "of the user.txt"]
    for name in names:
        (folder / name).write_text("there")
    with pytest.raises(
        InputError, match=f"found a comparison at .*{text}.*--overwrite"
    ):
        ledger.open_folder(folder, SETTINGS | changes, False)
    work, settings = ledger.open_folder(folder, SETTINGS | changes, True)
    assert settings == SETTINGS | changes
    # the old one stays until the new one is finished, which goes on if it was stopped
    (work / "fits" / "two.npz").write_text("new")
    assert ledger.open_folder(folder, SETTINGS | changes, True) == (work, settings)
    assert all((folder / name).read_text() == "there" for name in names)
    ledger.take_place(work, folder)
    assert sorted(os.listdir(folder)) == [
        "comparison.json",
        "fits",
        "of the user.txt",
    ]
    assert os.listdir(folder / "fits") == ["two.npz"]
    assert json.loads((folder / "comparison.json").read_text()) == settings
    assert os.listdir(tmp_path) == ["out"]
    # with other settings it does not go on
    work, _ = ledger.open_folder(folder, SETTINGS, True)
    (work / "fits" / "three.npz").write_text("new")
    work, _ = ledger.open_folder(folder, SETTINGS | {"seed": 1}, True)
    assert os.listdir(work / "fits") == ["three.npz"]
    work, _ = ledger.open_folder(folder, SETTINGS | {"n_samples": 11}, True)
    assert os.listdir(work / "fits") == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_call_leaves_that_is_stopped_at_once_is_nothing(tmp_path, overwrite):
    folder = tmp_path / "out"
    (folder / "fits").mkdir(parents=True)
    (folder / ".123-comparison.json").write_text("{")
    _, settings = ledger.open_folder(folder, SETTINGS, overwrite)
    assert settings == SETTINGS
    assert json.loads((folder / "comparison.json").read_text()) == SETTINGS


def test_a_replacement_stays_in_its_folder(tmp_path):
    """A link to a folder may lead to another file system."""
    (tmp_path / "far").mkdir()
    folder = tmp_path / "link"
    folder.symlink_to(tmp_path / "far")
    ledger.open_folder(folder, SETTINGS, False)
    (folder / ledger.LAST).write_text("finished")
    work, _ = ledger.open_folder(folder, SETTINGS | {"n_samples": 20}, True)
    assert work.resolve().parent == tmp_path / "far"
    (work / "fits" / "new.npz").write_text("new")
    ledger.take_place(work, folder)
    assert sorted(os.listdir(folder)) == ["comparison.json", "fits"]
    assert folder.is_symlink() and os.listdir(folder / "fits") == ["new.npz"]


def test_a_stopped_removal_of_a_replacement_is_not_taken_for_one_that_was_moved(
    tmp_path, monkeypatch
):
    folder, other = tmp_path / "out", SETTINGS | {"n_samples": 20}
    ledger.open_folder(folder, SETTINGS, False)
    (folder / ledger.LAST).write_text("finished")
    work, _ = ledger.open_folder(folder, other, True)
    (work / "fits" / "one.npz").touch()
    rmtree = shutil.rmtree

    def stop(path):
        rmtree(path / "fits")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.shutil, "rmtree", stop)
        ledger.open_folder(folder, SETTINGS | {"n_samples": 30}, True)
    assert ledger.open_folder(folder, SETTINGS, False) == (folder, SETTINGS)


def test_one_stopped_before_its_last_table_is_gone_on_with(tmp_path):
    folder = tmp_path / "out"
    ledger.open_folder(folder, SETTINGS, False)
    for name in ("fits/one.npz", "table.csv", "differences.png"):
        (folder / name).write_text("there")
    assert ledger.open_folder(folder, SETTINGS, True) == (folder, SETTINGS)
    (folder / ledger.LAST).write_text("there")
    assert ledger.open_folder(folder, SETTINGS, True) == (folder / ".new", SETTINGS)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moved", [2, 3, 5])
def test_fits_of_two_settings_never_meet(tmp_path, monkeypatch, moved, overwrite):
    """A replacement that was stopped in its place, before its settings were there."""
    folder, other = tmp_path / "out", SETTINGS | {"n_samples": 20}
    ledger.open_folder(folder, SETTINGS, False)
    for name in ("fits/old.npz", *ledger.TABLES):
        (folder / name).write_text("old")
    work, _ = ledger.open_folder(folder, other, True)
    for name in ("fits/new.npz", *ledger.TABLES):
        (work / name).write_text("new")
    stopped_after(moved, monkeypatch, work, folder)
    # of the old settings: they are others now
    if not overwrite:
        with pytest.raises(InputError, match="with other settings"):
            ledger.open_folder(folder, SETTINGS, False)
        assert os.listdir(folder / "fits") == ["new.npz"]
        return
    work, settings = ledger.open_folder(folder, SETTINGS, True)
    assert settings["n_samples"] == 10 and os.listdir(work / "fits") == []
    assert os.listdir(folder / "fits") == ["new.npz"]


@pytest.mark.parametrize("moved", [0, 1])
def test_old_fits_are_whole_until_new_ones_are_there(tmp_path, monkeypatch, moved):
    folder, other = tmp_path / "out", SETTINGS | {"n_samples": 20}
    ledger.open_folder(folder, SETTINGS, False)
    ledger.write_fit(folder / "fits" / "old.npz", fit_of("one", "vae"))
    work, _ = ledger.open_folder(folder, other, True)
    (work / "fits" / "new.npz").write_text("new")
    stopped_after(moved, monkeypatch, work, folder)
    assert ledger.open_folder(folder, SETTINGS, False) == (folder, SETTINGS)
    assert os.listdir(folder / "fits") == ["old.npz"]
    # and the new ones have not gone either
    assert ledger.open_folder(folder, other, True)[0] == work
    assert os.listdir(work / "fits") == ["new.npz"]


def test_a_replacement_of_fits_that_are_gone(tmp_path):
    folder, other = tmp_path / "out", SETTINGS | {"n_samples": 20}
    ledger.open_folder(folder, SETTINGS, False)
    (folder / ledger.LAST).write_text("finished")
    work, _ = ledger.open_folder(folder, other, True)
    ledger.write_fit(work / "fits" / "new.npz", fit_of("one", "vae"))
    shutil.rmtree(folder / "fits")
    ledger.take_place(work, folder)
    assert os.listdir(folder / "fits") == ["new.npz"] and not work.exists()


def test_what_was_not_begun_replaces_nothing(tmp_path):
    folder, other = tmp_path / "out", SETTINGS | {"n_samples": 20}
    ledger.open_folder(folder, SETTINGS, False)
    ledger.write_fit(folder / "fits" / "old.npz", fit_of("one", "vae"))
    assert ledger.open_folder(folder, other, True)[0] == folder / ".new"
    # half done, it is gone on with
    assert ledger.open_folder(folder, SETTINGS, True) == (folder, SETTINGS)


def test_what_nothing_was_fitted_of_may_change(tmp_path):
    folder = tmp_path / "out"
    more = {"data": {"one": "a", "two": "b"}, "gmvae": {"n_clusters": 8}}
    ledger.open_folder(folder, SETTINGS | {"n_samples": 20} | more, False)
    ledger.open_folder(folder, SETTINGS | more, False)
    ledger.write_fit(folder / "fits" / "a.npz", fit_of("one", "vae"))
    other = {"data": {"one": "a", "two": "c"}, "gmvae": {"n_clusters": 10}}
    assert ledger.open_folder(folder, SETTINGS | other, False)[1] == SETTINGS | other
    ledger.write_fit(folder / "fits" / "b.npz", fit_of("two", "gmvae"))
    for changes in ({"data": more["data"]}, {"gmvae": more["gmvae"]}):
        with pytest.raises(InputError, match="with other settings"):
            ledger.open_folder(folder, SETTINGS | other | changes, False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", ["file", "folder", "other", "damaged"])
def test_what_is_no_comparison_is_left_alone(tmp_path, overwrite, there):
    path = tmp_path / "out"
    if there == "file":
        path.write_text("text")
    else:
        path.mkdir()
        content = {"folder": None, "other": "{}", "damaged": "{"}[there]
        name = "notes.txt" if content is None else "comparison.json"
        (path / name).write_text(content or "text")
    with pytest.raises(InputError, match="which is not a comparison, expected a new"):
        ledger.open_folder(path, SETTINGS, overwrite)
    assert os.listdir(tmp_path) == ["out"]
    assert path.is_file() or len(os.listdir(path)) == 1
