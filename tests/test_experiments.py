"""What experiments make of the fits that they find: which are kept, paired, chosen."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import scvae_jax as sv
from scvae_jax import clusters

FOLDER = Path(__file__).parents[1] / "experiments"
N_TEST = 12


@pytest.fixture
def experiment(monkeypatch):
    """An experiment's module by its name."""
    # benchmarks have a module of that name too
    names = ("common", "against_peers", "clusters", "tuned_peer", "recipe")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def gathered(experiment, monkeypatch, tmp_path):
    """Write fits {(tool, seed): (bound, seconds[, those again])} and gather all."""
    against_peers = experiment("against_peers")
    monkeypatch.setattr(against_peers, "SETS", {"tiny": None})
    monkeypatch.setattr(against_peers, "LIKELIHOODS", {"poisson": "poisson"})
    adata = sv.datasets.simulate(60, 8)
    parts = np.repeat(["train", "validation", "test"], [40, 60 - 40 - N_TEST, N_TEST])
    adata.obs["split"] = parts
    adata.write_h5ad(tmp_path / "tiny.h5ad")
    out = tmp_path / "out.json"

    def run(fits, work):
        work = tmp_path / work
        work.mkdir()
        for (tool, seed), (bound, seconds, *again) in fits.items():
            bounds = np.full(N_TEST, bound, np.float32)
            np.savez(
                against_peers.file_of(work, "tiny", "poisson", tool, seed),
                elbo=bounds - 1,
                marginal=bounds,
                latent=np.arange(120.0).reshape(60, 2),
                seconds=seconds,
                epochs=10 * (seed + 1),
                commit=work.name,
                **({"seconds_programs_kept": again[0]} if again else {}),
            )
        found, kept = against_peers.gathered(tmp_path, work, out)
        out.write_text(json.dumps(found))
        against_peers.keep_bounds(out, kept)
        (row,) = found["rows"]
        return row, {(fit["tool"], fit["seed"]): fit for fit in found["fits"]}

    run.bounds = out.with_suffix(".npz")
    return run


FIRST = {
    ("scvae_jax", 0): (-10.0, 1.0),
    ("scvi", 0): (-12.0, 6.0),
    ("scvae_jax", 1): (-11.0, np.nan),
    ("scvi", 1): (-14.0, 8.0),
    # without a partner
    ("scvi", 2): (-90.0, 9.0),
}


def test_bounds_are_compared_seed_by_seed(gathered):
    row, fits = gathered(FIRST, "first")
    assert row["seeds"] == [0, 1] and row["n_cells"] == N_TEST
    assert row["difference"] == pytest.approx(2.5)
    assert row["bounds"] == {"scvae_jax": -10.5, "scvi": -13.0}
    assert row["relative_gain"] == pytest.approx(2.5 / 13)
    low, high = row["interval"]
    assert low < 2.5 < high
    # a median of each side's own; of one seed of ours, of three of theirs
    assert row["timed_seeds"] == {"scvae_jax": [0], "scvi": [0, 1, 2]}
    assert row["times_faster"] == 8.0
    assert row["times_faster_programs_kept"] is None
    gain = [-10.5 - row["null"], -13.0 - row["null"]]
    share = gain[0] / gain[1] if gain[1] > 0 else None
    assert row["share_explained"] == share
    assert fits["scvi", 1]["elbo"] == -15.0 and fits["scvi", 1]["epochs"] == 20


def test_more_seeds_join_those_whose_bounds_are_kept(gathered):
    gathered(FIRST, "first")
    row, fits = gathered({("scvae_jax", 2): (-80.0, np.nan)}, "second")
    assert row["seeds"] == [0, 1, 2]
    assert row["difference"] == pytest.approx((2 + 3 + 10) / 3)
    assert fits["scvae_jax", 2]["commit"] == "second"
    assert fits["scvae_jax", 0]["commit"] == "first"


def test_fits_with_programs_that_were_kept_are_timed_apart(gathered):
    fits = {
        ("scvae_jax", 0): (-10.0, 4.0),
        ("scvae_jax", 1): (-10.0, 5.0, 2.0),
        ("scvae_jax", 2): (-10.0, 9.0, 3.0),
        # made beside others
        ("scvae_jax", 3): (-10.0, np.nan, 1.0),
        ("scvi", 0): (-12.0, 20.0),
    }
    row, found = gathered(fits, "first")
    assert row["seconds"] == {"scvae_jax": 5.0, "scvi": 20.0, "programs_kept": 2.5}
    assert row["times_faster"] == 4.0 and row["times_faster_programs_kept"] == 8.0
    assert found["scvae_jax", 2]["seconds_programs_kept"] == 3.0
    # a fit that is made anew beside others keeps the times that it had
    row, found = gathered({("scvae_jax", 1): (-9.0, np.nan)}, "second")
    assert found["scvae_jax", 1]["elbo"] == -10.0
    assert found["scvae_jax", 1]["seconds_programs_kept"] == 2.0
    assert row["times_faster_programs_kept"] == 8.0


def test_of_bounds_that_are_gone_the_figures_stay_and_seconds_are_renewed(
    gathered, capsys
):
    before, old = gathered(FIRST, "first")
    gathered.bounds.unlink()
    new = {
        ("scvae_jax", 0): (-1.0, 2.0),
        ("scvi", 0): (-2.0, 6.0),
        # of a seed that the row cannot have
        ("scvae_jax", 7): (-3.0, 1.0),
        ("scvi", 7): (-4.0, 1.0),
    }
    row, fits = gathered(new, "second")
    assert "bounds of seeds [0, 1] are gone but for [0], so" in capsys.readouterr().err
    changed = ("seconds", "times_faster", "times_faster_programs_kept", "timed_seeds")
    assert {k: v for k, v in row.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    # seconds of a seed of theirs that is not made again stay
    assert row["seconds"] == {"scvae_jax": 2.0, "scvi": 8.0}
    assert row["times_faster"] == 4.0
    assert fits.keys() == old.keys()
    assert fits["scvae_jax", 0]["commit"] == "first"
    assert fits["scvae_jax", 0]["seconds_commit"] == "second"


def test_components_can_start_at_clusters_that_are_given(experiment):
    random = np.random.default_rng(0)
    codes = random.integers(3, size=600)
    mean = 9.0 * np.eye(3, 4)[codes] + random.normal(size=(600, 4))
    # a number that k-means would not put together
    given = np.where(codes == 2, 0, codes)
    given[:50] = 2
    start = clusters.mixture_start
    with experiment("clusters").started_at(given):
        found = clusters.mixture_start(mean, np.full_like(mean, 0.5), 3, 0)
    assert clusters.mixture_start is start
    for k in range(3):
        np.testing.assert_allclose(found.mean[k], mean[given == k].mean(axis=0))
        assert found.share[k] == pytest.approx((given == k).mean())
    within = np.square(mean - found.mean[given]).mean()
    assert found.variance == pytest.approx(within + 0.5)


class Trials:
    """Validation ELBOs from a function of settings; what was tried."""

    def __init__(self, elbo):
        self.elbo, self.tried = elbo, []

    def make(self, fits):
        pass

    def __call__(self, settings):
        self.tried.append(settings)
        return self.elbo(**settings)


def test_settings_are_added_largest_gain_first_and_trained_for_longer(experiment):
    tuned_peer = experiment("tuned_peer")

    def elbo(max_epochs=400, n_hidden=128, dropout_rate=0.1, lr=1e-3, **others):
        gain = {32: 5.0, 64: 4.0}.get(n_hidden, 0.0)
        # beside few units dropout hurts until it has long been trained
        dropout = 2.0 * (dropout_rate == 0.5)
        gain += dropout if n_hidden == 128 or max_epochs > 400 else -dropout
        gain += 1.0 * (lr == 5e-4)
        # 1600 epochs are the best
        gain -= abs(np.log2(max_epochs / 1600)) if len(others) == 0 else 9.0
        return -100.0 + gain

    trials = Trials(elbo)
    best = {"n_hidden": 32, "lr": 5e-4, "max_epochs": 1600, "dropout_rate": 0.5}
    assert tuned_peer.searched(trials) == best
    longer = [one["max_epochs"] for one in trials.tried if "lr" in one and len(one) > 2]
    assert longer == [800, 1600, 3200, 1600]


def test_what_gains_nothing_is_left_and_fewer_epochs_are_not_doubled(experiment):
    tuned_peer = experiment("tuned_peer")
    trials = Trials(lambda **settings: -100.0 - len(settings))
    assert tuned_peer.searched(trials) == {}
    assert trials.tried[-1] == {"max_epochs": 800}
    trials = Trials(lambda max_epochs=400, **_: -max_epochs)
    assert tuned_peer.searched(trials) == {"max_epochs": 100}
    assert all(one.get("max_epochs", 400) <= 400 for one in trials.tried)


def test_variants_of_a_recipe_are_paired_with_their_base(experiment):
    recipe = experiment("recipe")
    variant = next(name for name in recipe.VARIANTS if name != "base")
    likelihood, name = next(iter(recipe.LIKELIHOODS)), next(iter(recipe.SETS))
    one, other = recipe.SEEDS
    rows = [
        {
            "variant": of,
            "likelihood": likelihood,
            "set": name,
            "seed": seed,
            "importance_weighted_bound": bound,
            "commit": commit,
        }
        for of, seed, bound, commit in (
            ("base", one, -10.0, "a"),
            ("base", other, -12.0, "a"),
            (variant, one, -9.0, "b"),
            (variant, other, -9.5, "b"),
        )
    ]
    (line,) = recipe.differences(rows)
    assert line["difference"] == 1.75 and line["between_seeds"] == 1.5
    assert line["commits"] == ["a", "b"]
