"""Likelihoods as distrax distributions: the same figures, and distrax's mixtures."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scvae_jax import likelihoods
from scvae_jax.distributions import Counts

SHAPE = (3, 4)
KEY = jax.random.key(2)


@pytest.fixture(params=likelihoods.FACTORIES)
def wrapped(request):
    """A likelihood, its params with free ones as [1, G], and both as a distribution."""
    likelihood = likelihoods.from_name(request.param)
    random = np.random.default_rng(4)
    shapes = {h.name: (*SHAPE, *h.shape) for h in likelihood.heads}
    shapes |= {f.name: (1, SHAPE[1]) for f in likelihood.free}
    params = {
        name: jnp.asarray(random.normal(size=shape), "float32")
        for name, shape in shapes.items()
    }
    return likelihood, params, Counts(likelihood, params)


def test_figures_are_the_likelihood(wrapped):
    likelihood, params, distribution = wrapped
    x = jnp.arange(12.0).reshape(SHAPE) % 2
    assert distribution.event_shape == ()
    assert distribution.batch_shape == SHAPE
    pairs = [
        (distribution.log_prob(x), likelihood.log_prob(x, params)),
        (distribution.mean(), likelihood.mean(params)),
        (distribution.variance(), likelihood.variance(params)),
    ]
    for ours, expected in pairs:
        assert ours.shape == SHAPE
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("sample_shape", [(), (5,), (5, 2)], ids=str)
def test_sample_shapes(wrapped, sample_shape):
    _, _, distribution = wrapped

    def draw(key):
        return distribution.sample(seed=key, sample_shape=sample_shape)

    assert jax.eval_shape(draw, KEY).shape == sample_shape + SHAPE


def test_samples_differ_and_follow_the_key():
    params = {"mean": jnp.zeros(SHAPE), "log_scale": jnp.zeros(SHAPE)}
    distribution = Counts(likelihoods.gaussian(), params)
    draws = distribution.sample(seed=KEY, sample_shape=(2,))
    assert not np.array_equal(draws[0], draws[1])
    assert np.array_equal(draws, distribution.sample(seed=KEY, sample_shape=(2,)))


def test_is_an_argument_of_jit_and_grad(wrapped):
    likelihood, params, distribution = wrapped
    x = jnp.arange(12.0).reshape(SHAPE) % 2

    def total(distribution, x):
        return distribution.log_prob(x).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(distribution, x)
    expected = jax.grad(lambda p: likelihood.log_prob(x, p).sum())(
        {name: jnp.broadcast_to(p, SHAPE + p.shape[2:]) for name, p in params.items()}
    )
    np.testing.assert_allclose(value, total(distribution, x), rtol=1e-5)
    # a gradient in a distribution is a distribution: its leaves are those of the params
    slopes, truth = jax.tree.leaves(gradient), jax.tree.leaves(expected)
    assert len(slopes) == len(truth)
    for ours, slope in zip(slopes, truth, strict=True):
        np.testing.assert_allclose(ours, slope, rtol=1e-5, atol=1e-6)


def test_log_prob_under_vmap():
    distribution = Counts(likelihoods.poisson(), {"log_mean": jnp.zeros(SHAPE)})
    x = jnp.arange(12.0).reshape(SHAPE)
    ours = jax.vmap(lambda row, x: row.log_prob(x))(distribution, x)
    np.testing.assert_allclose(ours, distribution.log_prob(x), rtol=1e-6)


def test_batch_shape_under_vmap():
    distribution = Counts(likelihoods.poisson(), {"log_mean": jnp.zeros(SHAPE)})
    seen = []
    jax.vmap(lambda row: (seen.append(row.batch_shape), row.mean())[1])(distribution)
    assert seen == [SHAPE[1:]]


@pytest.fixture(scope="module")
def mixture():
    """Two negative binomials for each of 3 entries, as distrax mixes them."""
    logits = jnp.log(jnp.array([[0.3, 0.7], [0.5, 0.5], [0.9, 0.1]]))
    params = {
        "log_mean": jnp.log(jnp.array([[1.0, 20.0], [0.1, 5.0], [4.0, 4.0]])),
        "log_dispersion": jnp.log(jnp.array([[2.0, 10.0]])),
    }
    components = Counts(likelihoods.negative_binomial(mean="free"), params)
    mixed = distrax.MixtureSameFamily(distrax.Categorical(logits=logits), components)
    return mixed, logits, params


def test_mixture_log_prob(mixture):
    mixed, logits, params = mixture
    x = jnp.array([0.0, 7.0, 3.0])
    log_prob = jax.jit(likelihoods.negative_binomial().log_prob)(x[:, None], params)
    expected = jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_prob, axis=-1)
    ours = jax.jit(lambda mixed, x: mixed.log_prob(x))(mixed, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_mixture_samples(mixture):
    mixed, logits, params = mixture
    n = 4000
    weight, mean = np.exp(logits), np.exp(params["log_mean"])
    expected = (weight * mean).sum(-1)
    square = mean + mean**2 / np.exp(params["log_dispersion"]) + mean**2
    variance = (weight * square).sum(-1) - expected**2
    draw = jax.jit(lambda mixed: mixed.sample(seed=KEY, sample_shape=(n,)))
    draws = draw(mixed)
    np.testing.assert_allclose(mixed.mean(), expected, rtol=1e-6)
    np.testing.assert_allclose(mixed.variance(), variance, rtol=1e-5)
    # five standard errors
    error = np.abs(draws.mean(0) - expected)
    assert np.all(error < 5 * np.sqrt(variance / n))


@pytest.mark.parametrize(
    "params",
    [
        {"log_mean": jnp.zeros((3, 4)), "log_dispersion": jnp.zeros((1, 5))},
        {"log_mean": jnp.zeros((3, 4)), "log_dispersion": jnp.zeros((3,))},
    ],
    ids=["genes", "cells"],
)
def test_params_that_do_not_broadcast(params):
    with pytest.raises(ValueError, match="Incompatible shapes for broadcasting"):
        Counts(likelihoods.negative_binomial(), params)
