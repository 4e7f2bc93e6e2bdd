"""The null model and the distribution of totals, against direct computation."""

import anndata
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.stats

from scvae_jax import baselines, likelihoods
from scvae_jax.config import DataConfig
from scvae_jax.counts import prepare


def cells_of(x, batch=None):
    adata = anndata.AnnData(scipy.sparse.csr_matrix(np.asarray(x, np.float32)))
    if batch is not None:
        adata.obs["batch"] = batch
    config = DataConfig(batch_key=None if batch is None else "batch")
    return prepare(adata, config, support="real")


@pytest.fixture(scope="module")
def counts():
    """150 cells, 5 genes of unequal dispersion, one of them never seen in training."""
    rng = np.random.default_rng(0)
    depth = rng.gamma(8.0, 1.0, size=(150, 1))
    x = np.concatenate(
        [
            rng.poisson(depth * rng.gamma(theta, mean / theta, size=(150, 1)))
            for theta, mean in ((0.5, 1.0), (2.0, 2.0), (8.0, 0.5), (1.0, 4.0))
        ]
        + [np.zeros((150, 1), int)],
        axis=1,
    )
    x[140, 4] = 1
    return x


TRAIN = np.arange(150) < 120


def profile_means(x):
    """Depth x mean profile of the training cells, half a count more for each gene."""
    share = x[TRAIN].mean(axis=0) + 0.5 / TRAIN.sum()
    depth = np.maximum(x.sum(axis=1, keepdims=True), 1)
    return depth * share / share.sum()


def test_a_poisson_null_is_depth_times_profile(counts):
    found = baselines.null_log_prob(
        likelihoods.poisson(), cells_of(counts), TRAIN, ~TRAIN
    )
    direct = scipy.stats.poisson.logpmf(counts, profile_means(counts)).sum(axis=1)
    np.testing.assert_allclose(found, direct[~TRAIN], rtol=1e-5)


def negative_binomial(x, mean, theta):
    return scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mean))


def test_dispersions_are_those_of_highest_likelihood(counts):
    found = baselines.null_log_prob(
        likelihoods.negative_binomial(), cells_of(counts), TRAIN, ~TRAIN
    )
    means = profile_means(counts)
    direct = np.zeros(150)
    for gene in range(5):
        x, mean = counts[:, gene], means[:, gene]

        def loss(w, x=x, mean=mean):
            # the weak prior, which decides for the last gene alone
            log_prob = negative_binomial(x[TRAIN], mean[TRAIN], np.exp(w))
            return w**2 / (2 * baselines.PRIOR_SCALE**2) - log_prob.sum()

        best = scipy.optimize.minimize_scalar(loss, bounds=(-9, 9), method="bounded")
        direct += negative_binomial(x, mean, np.exp(best.x))
    np.testing.assert_allclose(found, direct[~TRAIN], atol=0.02)
    # the count of the gene that was never seen is rare, not impossible
    assert np.isfinite(found).all()
    assert found[20] < found[21]


def test_a_null_has_zeros_and_dispersions_of_its_own(counts):
    """Where zeros are too many, it finds their share; elsewhere it adds none."""
    rng = np.random.default_rng(1)
    x = rng.poisson(6.0, size=(300, 3)) * (rng.random((300, 3)) > [0.5, 0.0, 0.2])
    x = np.concatenate([x, rng.poisson(200.0, size=(300, 1))], axis=1)
    train = np.arange(300) < 250
    family = likelihoods.zero_inflated(likelihoods.poisson())
    found = baselines.null_log_prob(family, cells_of(x), train, train)
    share = x[train].mean(axis=0) + 0.5 / train.sum()
    means = x.sum(axis=1, keepdims=True) * share / share.sum()
    best, prior = 0.0, 2 * baselines.PRIOR_SCALE**2
    for gene in range(4):
        at = scipy.stats.poisson.logpmf(x[train, gene], means[train, gene])

        def loss(w, at=at, zero=x[train, gene] == 0):
            pi = 1 / (1 + np.exp(-w))
            each = np.where(
                zero, np.log(pi + (1 - pi) * np.exp(at)), np.log1p(-pi) + at
            )
            return -each.sum()

        logit = scipy.optimize.minimize_scalar(
            lambda w, loss=loss: loss(w) + w**2 / prior,
            bounds=(-12, 12),
            method="bounded",
        ).x
        best -= loss(logit)
    assert found.sum() == pytest.approx(best, abs=0.1)
    poisson = baselines.null_log_prob(likelihoods.poisson(), cells_of(x), train, train)
    assert found.sum() > poisson.sum() + 100


def test_a_null_of_densities_has_the_scales_of_the_genes():
    x = np.random.default_rng(2).normal([1.0, -2.0], [0.3, 4.0], size=(200, 2))
    train = np.arange(200) < 150
    found = baselines.null_log_prob(likelihoods.gaussian(), cells_of(x), train, ~train)
    mean, scale = x[train].mean(axis=0), x[train].std(axis=0)
    direct = scipy.stats.norm.logpdf(x[~train], mean, scale).sum(axis=1)
    np.testing.assert_allclose(found, direct, atol=0.05)


def test_dispersions_of_batches_are_their_own(counts):
    batch = np.where(np.arange(150) % 2, "a", "b")
    x = counts.copy()
    # in one batch no dispersion to speak of
    rng = np.random.default_rng(3)
    x[batch == "a"] = rng.poisson(profile_means(counts)[batch == "a"])
    data = cells_of(x, batch)
    one, two = (
        baselines.null_log_prob(
            likelihoods.negative_binomial(dispersion=kind), data, TRAIN, TRAIN
        ).sum()
        for kind in ("gene", "gene_batch")
    )
    assert two > one + 5


def totals(values, batch=None):
    return cells_of(np.asarray(values)[:, None], batch)


def test_log_prob_of_totals_is_a_distribution():
    rng = np.random.default_rng(0)
    known = rng.negative_binomial(3, 0.1, size=200)
    every = np.arange(1, 2000)
    data = totals(np.concatenate([known, every]))
    train = np.arange(len(known) + len(every)) < 200
    found = baselines.totals_log_prob(data, train, ~train)
    # all but the total 0
    mean, theta = baselines._fit_totals(known.astype(float))
    none = scipy.stats.nbinom.pmf(0, theta, theta / (theta + mean))
    assert np.exp(found).sum() + none == pytest.approx(1.0, abs=1e-9)
    assert mean == pytest.approx(known.mean())
    best = negative_binomial(known, mean, theta).sum()
    for other in (0.9 * theta, 1.1 * theta):
        assert negative_binomial(known, mean, other).sum() < best
    assert negative_binomial(known, 1.05 * mean, theta).sum() < best


def test_totals_are_of_the_training_cells_alone():
    values = np.r_[np.random.default_rng(0).poisson(50.0, size=100), [50, 5000]]
    train = np.arange(102) < 100
    found = baselines.totals_log_prob(totals(values), train, ~train)
    values[-1] = 4000
    other = baselines.totals_log_prob(totals(values), train, ~train)
    assert found[0] == other[0]
    assert found[1] < -100
    # without overdispersion, a Poisson
    poisson = scipy.stats.poisson.logpmf(50, values[:100].mean())
    assert found[0] == pytest.approx(poisson, abs=0.1)


def test_totals_of_batches_are_their_own_where_there_are_enough():
    rng = np.random.default_rng(0)
    values = np.r_[rng.poisson(50.0, size=60), rng.poisson(500.0, size=60), 50, 500, 50]
    batch = np.array(["a"] * 60 + ["b"] * 60 + ["a", "b", "c"])
    train = np.arange(123) < 120
    found = baselines.totals_log_prob(totals(values, batch), train, ~train)
    pooled = baselines.totals_log_prob(totals(values), train, ~train)
    assert (found[:2] > pooled[:2] + 1).all()
    # a batch without training cells has the totals of all
    assert found[2] == pooled[2]


def test_a_batch_of_twenty_cells_has_totals_of_its_own():
    rng = np.random.default_rng(0)
    values = rng.poisson(50.0, size=100)
    for n, own in ((19, False), (20, True)):
        batch = np.array(["a"] * (100 - n - 1) + ["b"] * (n + 1))
        train = np.arange(100) < 99
        found = baselines.totals_log_prob(totals(values, batch), train, ~train)
        pooled = baselines.totals_log_prob(totals(values), train, ~train)
        assert (found != pooled) == own


@pytest.mark.parametrize("theta", [1e-3, 1.0, 1e7])
def test_negative_binomial_in_float64(theta):
    x = np.array([0.0, 1.0, 40.0, 1e5])
    found = baselines.negative_binomial_log_prob(x, 30.0, theta)
    np.testing.assert_allclose(found, negative_binomial(x, 30.0, theta), rtol=1e-6)
