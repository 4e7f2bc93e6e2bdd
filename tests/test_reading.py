"""What an encoder reads in training: cells as if sampled less deeply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scvae_jax import batches, reading

KEY = jax.random.key(0)


def thinned(counts, share, key=KEY):
    words = jax.random.bits(key, (reading.n_words(counts),), jnp.uint32)
    return reading.thinned(words, counts, share)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_thinning_is_binomial(share):
    counts = jnp.repeat(jnp.array([0.0, 1.0, 2.0, 5.0, 8.0, 9.0, 60.0]), 40_000)
    drawn = thinned(counts, jnp.float32(share)).reshape(7, -1)
    assert np.array_equal(drawn, np.round(drawn))
    for found, n in zip(np.asarray(drawn), (0, 1, 2, 5, 8, 9, 60), strict=True):
        # shares of each number, within five standard errors of their own; from more
        # than 8 counts a rounded normal, whose mean and variance are near
        expected = stats.binom(n, share)
        assert found.min() >= 0 and found.max() <= n
        if n <= 8:
            mass = expected.pmf(np.arange(n + 1))
            shares = np.bincount(found.astype(int), minlength=n + 1) / found.size
            error = np.sqrt(mass * (1 - mass) / found.size)
            assert np.all(np.abs(shares - mass) <= 5 * error + 1e-6)
        else:
            assert found.mean() == pytest.approx(expected.mean(), abs=0.1)
            assert found.var() == pytest.approx(expected.var(), rel=0.15, abs=1e-6)


def test_the_quantile_of_a_normal():
    # all numbers that 16 bits give
    p = (np.arange(2**16) + 0.5) / 2**16
    found = np.asarray(reading._normal_quantile(jnp.float32(p)))
    assert np.abs(found - stats.norm.ppf(p)).max() < 4.6e-4


@pytest.mark.parametrize("n", [1, 7, 16])
def test_entries_of_a_row_are_thinned_by_words_of_their_own(n):
    """So that rows to spare move nothing, and no two entries are thinned alike."""
    counts = jnp.full((3000, n), 1.0)
    words = jax.random.bits(KEY, (reading.n_words(counts),), jnp.uint32)
    drawn = np.asarray(reading.thinned(words, counts, 0.5))
    fewer = counts[:5]
    assert reading.thinned(words[:0], counts[:0], 0.5).shape == (0, n)
    first = reading.thinned(words[: reading.n_words(fewer)], fewer, 0.5)
    np.testing.assert_array_equal(first, drawn[:5])
    off = np.corrcoef(drawn.T).reshape(n, n) - np.eye(n)
    assert np.abs(off).max() < 5 / np.sqrt(len(drawn))


@pytest.mark.parametrize("share", [0.3, 0.75])
def test_fractional_counts_are_thinned_as_much(share):
    counts = jnp.repeat(jnp.array([0.2, 0.5, 1.5, 7.25, 20.5]), 40_000)
    drawn = thinned(counts, jnp.float32(share)).reshape(5, -1)
    for found, x in zip(np.asarray(drawn), (0.2, 0.5, 1.5, 7.25, 20.5), strict=True):
        assert found.min() >= 0 and found.max() <= x
        error = np.sqrt((x + 1.0) / found.size)
        assert found.mean() == pytest.approx(x * share, abs=5 * error + 0.003 * x)


def test_a_gpu_thins_alike(monkeypatch):
    """Without the branch, at which it would wait."""
    counts = jnp.array([[0.0, 1.0, 8.0, 9.0, 60.5]] * 20)
    here = thinned(counts, 0.5)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = thinned(counts, 0.5)
    np.testing.assert_allclose(here, there, rtol=1e-6)
    assert "cond" not in str(jax.make_jaxpr(thinned)(counts, 0.5))


@pytest.mark.parametrize("most", [8.0, 20.0])
def test_thinned_counts_keep_their_type(most):
    with jax.enable_x64(True):
        counts = jnp.array([[1.0, most]], jnp.float32)
        drawn = thinned(counts, 0.5, jax.random.key(0))
    assert drawn.dtype == jnp.float32 and drawn.max() <= most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("x64", [False, True])
def test_what_is_read_does_not_depend_on_the_width_of_numbers(x64, dtype):
    x = jnp.tile(jnp.array([1.0, 6.0, 20.0, 100.0], dtype), (500, 1))
    with jax.enable_x64(x64):
        counts = batches.Counts(x, None, jnp.ones(500))
        seen = reading.entries_of(counts, True, KEY, jnp.float32(0.5))
        assert seen.dtype == dtype
    seen = np.expm1(np.asarray(seen, float)) / np.asarray(x, float)
    # of half to all
    assert seen.min() >= 0.0 and seen.max() < 1.05
    np.testing.assert_allclose(seen.mean(axis=0), 0.75, atol=0.06)
    assert seen[:, -1].min() > 0.25
