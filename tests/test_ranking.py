"""Tables, ranks and intervals, from fits that are made up."""

import numpy as np
import pytest

from scvae_jax import ranking
from scvae_jax.ranking import Fit, nested_interval, rank, remarks, tabulate
from scvae_jax.scores import between

# Intervals


def test_an_interval_is_that_of_a_loop():
    differences = np.random.default_rng(0).normal(size=(3, 7))
    rng = np.random.default_rng(5)
    centre = differences.mean(axis=0)
    means = []
    for _ in range(200):
        seeds, cells = rng.integers(3, size=3), rng.integers(7, size=7)
        total = 0.0
        for seed in seeds:
            for cell in cells:
                own = differences[seed, cell] - centre[cell]
                total += centre[cell] + own * (3 / 2) ** 0.5
        means.append(total / 21)
    low, high = nested_interval([differences], n_resamples=200, level=0.8, seed=5)
    assert low == pytest.approx(np.quantile(means, 0.1))
    assert high == pytest.approx(np.quantile(means, 0.9))


@pytest.mark.parametrize(("of_seeds", "of_cells"), [(1.0, 0.0), (0.0, 8.0), (0.3, 8.0)])
def test_an_interval_has_the_variance_of_seeds_and_of_cells(of_seeds, of_cells):
    rng = np.random.default_rng(0)
    n_seeds, n_cells = 6, 500
    seeds = of_seeds * rng.normal(size=(n_seeds, 1))
    cells = of_cells * rng.normal(size=(1, n_cells))
    low, high = nested_interval([seeds + cells], n_resamples=4000)
    # two independent means
    known = seeds.var(ddof=1) / n_seeds + cells.var(ddof=1) / n_cells
    assert (high - low) / (2 * 1.96) == pytest.approx(known**0.5, rel=0.08)
    assert (low + high) / 2 == pytest.approx((seeds + cells).mean(), abs=known**0.5 / 5)


@pytest.mark.parametrize(("n_seeds", "percent"), [(2, 61), (3, 81), (5, 86)])
def test_intervals_of_few_seeds_are_too_narrow_by_what_the_readme_says(
    n_seeds, percent
):
    """Where seeds alone differ."""
    rng = np.random.default_rng(0)
    found = [
        nested_interval([rng.normal(size=(n_seeds, 1))], n_resamples=300, seed=i)
        for i in range(500)
    ]
    held = np.mean([low <= 0 <= high for low, high in found])
    # some three standard errors or more
    assert held == pytest.approx(percent / 100, abs=0.06)


def test_splits_are_averaged():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4, 300))
    width = np.diff(nested_interval([one]))
    apart = [np.arange(300), np.arange(300, 600)]
    low, high = nested_interval([one, one + 2.0], apart)
    assert (low + high) / 2 == pytest.approx(one.mean() + 1.0, abs=0.05)
    assert high - low == pytest.approx(width[0] / 2**0.5, rel=0.1)


def test_cells_that_splits_share_vary_together():
    """Splits of a third each: 1 + (k - 1) / 3 times the variance of cells apart."""
    rng = np.random.default_rng(0)
    of_cells, n_splits = rng.normal(size=3000), 5
    cells = [rng.choice(3000, 1000, replace=False) for _ in range(n_splits)]
    differences = [np.tile(of_cells[mine], (2, 1)) for mine in cells]
    low, high = nested_interval(differences, cells)
    error = of_cells.std() * ((1 + (n_splits - 1) / 3) / (1000 * n_splits)) ** 0.5
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    # a split of one cell is left out where that is not drawn
    few = nested_interval([differences[0], differences[0][:, :1]], [cells[0], [3000]])
    assert np.isfinite(few).all()


def test_an_interval_is_the_same_again_and_needs_two_seeds():
    differences = np.random.default_rng(0).normal(size=(3, 50))
    assert nested_interval([differences]) == nested_interval([differences])
    assert nested_interval([differences[:1]]) is None
    both = [np.arange(50)] * 2
    assert nested_interval([differences, differences[:1]], both) is None


# Tables

N = 40
NOISE = np.random.default_rng(0).normal(size=N)


def fit(likelihood="poisson", seed=0, bound=-100.0, failed=False, **changes):
    """A fit whose cells differ in the same way as those of all others."""
    total = changes.pop("total", -5.0)
    cluster = changes.pop("cluster", np.full(N, -1))
    null = changes.pop("null", -150.0)
    row = {
        "data": "cells",
        "likelihood": likelihood,
        "model": "vae",
        "seed": seed,
        "split": 0,
        "part": "test",
        "n_cells": N,
        "ranked_with": "counts",
        "conditions_on_total": True,
        "elbo": bound - 1.0,
        "importance_weighted_bound": bound,
        "comparable_bound": None,
        "null_log_likelihood": null,
        "share_explained": None,
        "ari": None,
        "nmi": None,
        "oracle_k": None,
        "stability": None,
        "seconds": 1.0,
        "versions": "1",
        "note": "failed" if failed else None,
    } | changes
    cells = {
        "importance_weighted_bound": bound + NOISE - NOISE.mean(),
        "log_prob_total": np.full(N, total),
        "cell": np.arange(N),
        "cluster": cluster,
    }
    return Fit(row, {} if failed else cells)


def ranked(fits, reference=None):
    return rank(fits, tabulate(fits), reference)


def test_ranks_and_differences_on_identical_cells():
    fits = [
        fit("poisson", 0, -110.0),
        fit("poisson", 1, -112.0),
        fit("nb", 0, -100.0),
        fit("nb", 1, -101.0),
    ]
    best, other = ranked(fits)
    assert (best["likelihood"], best["rank"], best["difference"]) == ("nb", 1, 0.0)
    assert best["low"] is best["high"] is None
    assert (other["likelihood"], other["rank"]) == ("poisson", 2)
    assert other["difference"] == pytest.approx(-10.5)
    # what cells have in common is gone: seeds alone differ, by -10 and -11
    assert -11.3 < other["low"] < -10.9
    assert -10.1 < other["high"] < -9.7
    assert other["importance_weighted_bound"] == pytest.approx(-111.0)
    assert other["comparable_bound"] == pytest.approx(-116.0)
    assert other["reference"] == "nb/vae"
    assert (other["n_fits"], other["n_cells"]) == (2, N)
    # to another than the best
    by_name = {row["likelihood"]: row for row in ranked(fits, "poisson/vae")}
    assert by_name["nb"]["difference"] == pytest.approx(10.5)
    assert by_name["nb"]["rank"] == 1


def test_log_p_of_the_total_decides_between_library_and_free_means():
    fits = [
        fit("library", 0, -100.0, total=-8.0),
        fit("free", 0, -103.0, total=0.0, conditions_on_total=False),
    ]
    first, second = ranked(fits)
    assert (first["likelihood"], second["likelihood"]) == ("free", "library")
    assert second["difference"] == pytest.approx(-5.0)
    assert any("log p(total)" in remark for remark in remarks(fits, [first, second]))
    assert not any("log p(total)" in remark for remark in remarks(fits[:1], [second]))


def test_what_does_not_compare_is_ranked_apart():
    fits = [
        fit("nb", 0, -100.0),
        fit("gaussian", 0, 50.0, ranked_with="densities", total=0.0),
        fit("bernoulli", 0, -20.0, ranked_with="binary", total=0.0),
        fit("nb", 0, -10.0, data="others"),
    ]
    rows = ranked(fits, "nb/vae")
    assert [row["rank"] for row in rows] == [1, 1, 1, 1]
    assert [row["difference"] for row in rows] == [0.0, 0.0, 0.0, 0.0]
    assert any("ranked apart" in remark for remark in remarks(fits, rows))


def test_share_explained_over_the_null():
    fits = [
        fit("nb", 0, -100.0, null=-140.0),
        # the best of a column is judged given the total by those that are
        fit("free", 0, -95.0, total=0.0, null=-150.0, conditions_on_total=False),
        fit("poisson", 0, -120.0, null=-200.0),
    ]
    shares = [row["share_explained"] for row in tabulate(fits)]
    assert shares == pytest.approx([40 / (-90 + 140), 1.0, 80 / (-90 + 200)])
    # nothing is explained where the best is no better than knowing nothing
    (row,) = tabulate([fit(null=-90.0)])
    assert row["share_explained"] is None


def test_one_seed_has_no_interval_and_says_so():
    fits = [fit("poisson", 0, -110.0), fit("nb", 0, -100.0)]
    rows = ranked(fits)
    assert rows[1]["difference"] == pytest.approx(-10.0)
    assert rows[1]["low"] is rows[1]["high"] is None
    assert any("no interval can be given" in remark for remark in remarks(fits, rows))
    fits += [fit("poisson", 1, -110.0), fit("nb", 1, -100.0)]
    assert remarks(fits, ranked(fits)) == []


def test_few_cells_are_said_and_one_has_no_interval():
    cut = {"few": 2, "one": 1}
    fits = [
        each._replace(cells={name: value[:n] for name, value in each.cells.items()})
        for name, n in cut.items()
        for each in [
            fit(likelihood, seed, bound, data=name, n_cells=n)
            for seed in range(2)
            for likelihood, bound in (("poisson", -110.0 - seed), ("nb", -100.0))
        ]
    ]
    rows = ranked(fits)
    assert [row["low"] is None for row in rows] == [True, False, True, True]
    assert [r for r in remarks(fits, rows) if "few, one fewer than 30 cells" in r]


def test_a_fit_that_failed_is_left_out_and_said():
    fits = [fit("poisson", s, -110.0 - s) for s in range(3)]
    fits += [fit("nb", s, -100.0, failed=s == 0) for s in range(3)]
    best, other = ranked(fits)
    assert (best["n_fits"], best["n_failed"]) == (2, 1)
    # the seeds that both have
    assert other["difference"] == pytest.approx(-11.5)
    assert remarks(fits, [best, other]) == [
        "1 of 3 fits of nb/vae on cells ended early and are left out, so that its rank "
        "is by other seeds than that of others"
    ]
    row = tabulate(fits)[3]
    assert row["comparable_bound"] is row["share_explained"] is None


def test_an_entry_without_fits_has_no_rank():
    fits = [fit("poisson", 0, -110.0), fit("nb", 0, failed=True)]
    first, second = ranked(fits)
    assert (first["likelihood"], first["rank"]) == ("poisson", 1)
    assert second["rank"] is second["difference"] is second["comparable_bound"] is None
    # and no difference can be taken to it
    assert ranked(fits, "nb/vae")[0]["reference"] == "poisson/vae"
    # nor one that lacks a split that others have
    fits = [fit("nb", 0, -1.0, split=s, failed=s == 1) for s in range(2)]
    fits += [fit("poisson", 0, -110.0, split=s) for s in range(2)]
    assert [row["rank"] for row in ranked(fits)] == [1, None]
    assert ranked([fit(failed=True)])[0]["reference"] is None


def test_splits_count_alike():
    fits = [fit("nb", s, -100.0 - 2 * k, split=k) for k in range(2) for s in range(2)]
    (row,) = ranked(fits)
    assert row["comparable_bound"] == pytest.approx(-106.0)
    assert row["n_cells"] == 2 * N


def test_stability_is_between_the_seeds_of_an_entry():
    half, odd = np.arange(N) // (N // 2), np.arange(N) % 2
    fits = [
        fit("nb", 0, cluster=half),
        fit("nb", 1, cluster=1 - half),
        fit("nb", 2, cluster=half),
        fit("poisson", 0, cluster=half),
        fit("poisson", 1, cluster=odd),
        fit("none", 0),
        fit("none", 1),
        # a cluster for all cells is no agreement
        fit("collapsed", 0, cluster=np.zeros(N, int)),
        fit("collapsed", 1, cluster=np.zeros(N, int)),
    ]
    found = [row["stability"] for row in tabulate(fits)]
    assert found[:3] == [1.0, 1.0, 1.0]
    assert found[3] == found[4] < 0.1
    assert found[5:] == [None] * 4
    # of three pairs the one in the middle
    codes = [half, *(np.where(np.arange(N) < n, 1 - half, half) for n in (2, N // 4))]
    fits = [fit("nb", seed, cluster=code) for seed, code in enumerate(codes)]
    pairs = sorted(between(codes))
    assert pairs[0] < pairs[1] < pairs[2] and abs(np.mean(pairs) - pairs[1]) > 0.01
    assert tabulate(fits)[0]["stability"] == pytest.approx(pairs[1])


def test_other_remarks():
    fits = [fit("nb", s, part="validation", versions=str(s)) for s in range(2)]
    said = remarks(fits, ranked(fits))
    assert any("cells of cells are validation cells" in remark for remark in said)
    assert any("more than one version" in remark for remark in said)


def test_entries_are_named_as_a_reference_is():
    assert ranking.entry_name("poisson", "vae") == fit("poisson").entry == "poisson/vae"
