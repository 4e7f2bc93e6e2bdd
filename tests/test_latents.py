"""Priors and posteriors of the latent space against closed forms and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scvae_jax import latents

N_CELLS, N_LATENT = 5, 3


@pytest.fixture(scope="module")
def moments():
    random = np.random.default_rng(6)
    mean, log_scale = random.normal(size=(2, N_CELLS, N_LATENT))
    return jnp.asarray(mean, "float32"), jnp.asarray(log_scale, "float32")


def closed_form(mean, log_scale):
    """KL(N(m, s^2) || N(0, 1)) = 1/2 sum (m^2 + s^2 - 1 - log s^2)."""
    mean, log_scale = np.asarray(mean, float), np.asarray(log_scale, float)
    terms = mean**2 + np.exp(2 * log_scale) - 1 - 2 * log_scale
    return 0.5 * terms.sum(-1)


def test_shapes(moments):
    prior = latents.standard_normal(N_LATENT)
    posterior = latents.diagonal_normal(*moments)
    assert prior.event_shape == posterior.event_shape == (N_LATENT,)
    assert prior.batch_shape == (1,)
    assert posterior.batch_shape == (N_CELLS,)
    key = jax.random.key(0)
    z = posterior.sample(seed=key, sample_shape=(2,))
    assert z.shape == (2, N_CELLS, N_LATENT)
    # a prior of one row broadcasts over cells, and `vmap` covers samples
    assert prior.log_prob(z[0]).shape == (N_CELLS,)
    assert jax.vmap(prior.log_prob)(z).shape == (2, N_CELLS)


def test_log_prob(moments):
    mean, log_scale = moments
    z = jnp.asarray(np.random.default_rng(8).normal(size=mean.shape), "float32")
    expected = stats.norm.logpdf(z, mean, np.exp(log_scale)).sum(-1)
    posterior = latents.diagonal_normal(mean, log_scale)
    np.testing.assert_allclose(posterior.log_prob(z), expected, rtol=1e-5)
    prior = latents.standard_normal(N_LATENT)
    expected = stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-5)


def test_divergence_is_the_closed_form(moments):
    prior = latents.standard_normal(N_LATENT)
    ours = latents.diagonal_normal(*moments).kl_divergence(prior)
    assert ours.shape == (N_CELLS,)
    np.testing.assert_allclose(ours, closed_form(*moments), rtol=1e-5)


def test_a_posterior_departs_by_a_shift_and_a_factor(moments):
    random = np.random.default_rng(2)
    shift, log_factor = random.normal(size=(2, N_CELLS, 4, N_LATENT)).astype("float32")
    posterior = latents.diagonal_normal(*moments)
    found = latents.departed(posterior, shift, log_factor)
    assert found.batch_shape == (N_CELLS, 4) and found.event_shape == (N_LATENT,)
    mean, log_scale = moments
    np.testing.assert_allclose(found.mean(), mean[:, None] + shift, rtol=1e-6)
    np.testing.assert_allclose(
        found.stddev(), np.exp(log_scale[:, None] + log_factor), rtol=1e-5
    )


@pytest.mark.parametrize("scales", [(1, 1), (2, N_LATENT)])
@pytest.mark.parametrize("draws", [1, 2])
def test_density_and_divergence_of_components_in_value_and_gradient(
    moments, scales, draws
):
    random = np.random.default_rng(3)
    z = jnp.asarray(random.normal(size=(N_CELLS, draws, N_LATENT)), "float32")
    mean = jnp.asarray(random.normal(size=(2, N_LATENT)), "float32")
    q_mean, q_log_scale = (value[:, None] for value in moments)

    def of(function):
        def total(mean, log_scale, z, q_mean):
            prior = latents.components(mean, log_scale)
            q = latents.diagonal_normal(q_mean, q_log_scale)
            value = function(q, prior, z)
            return (
                value * jnp.arange(1.0, 1.0 + value.size).reshape(value.shape)
            ).sum()

        log_scale = jnp.linspace(-0.5, 0.5, scales[0] * scales[1]).reshape(scales)
        arguments = (mean, log_scale, z, q_mean)
        return jax.value_and_grad(total, argnums=(0, 1, 2, 3))(*arguments)

    for ours, plain in (
        (
            lambda q, prior, z: latents.log_density(prior, z),
            lambda q, p, z: p.log_prob(z),
        ),
        (lambda q, p, z: latents.divergence(q, p), lambda q, p, z: q.kl_divergence(p)),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            of(ours),
            of(plain),
        )


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize(("dtype", "x64"), [("bfloat16", False), ("float32", True)])
def test_gradients_of_mixtures_have_the_types_of_their_inputs(dtype, x64, draws):
    """Beside which the default float of jax is wider."""
    with jax.enable_x64(x64):
        mean = jnp.ones((2, N_LATENT), dtype)
        log_scale = jnp.zeros((1, 1), dtype)
        z = jnp.full((N_CELLS, draws, N_LATENT), 2.0, dtype)

        def total(mean, log_scale, z):
            prior = latents.components(mean, log_scale)
            q = latents.diagonal_normal(z, 0.0 * z)
            return (latents.log_density(prior, z) - latents.divergence(q, prior)).sum()

        value, slopes = jax.value_and_grad(total, argnums=(0, 1, 2))(mean, log_scale, z)
        found = {value.dtype.name, *(slope.dtype.name for slope in slopes)}
        assert found == {dtype}
        # d/dm [log N(z; m, 1) - (z - m)^2 / 2] = 2 (z - m), of each cell
        np.testing.assert_allclose(slopes[0].astype(float), 2.0 * N_CELLS)


def test_samples_of_a_full_covariance_keep_its_correlations():
    correlation = jnp.array([[[0.0, 0.0], [5.0, 0.0]]])
    prior = latents.components(jnp.zeros((1, 2)), jnp.zeros((1, 2)), correlation)
    z = latents.sample(prior, jax.random.key(0), 20_000)
    assert z.shape == (20_000, 1, 1, 2)
    found = np.cov(np.asarray(z).reshape(-1, 2).T)
    np.testing.assert_allclose(found, [[1.0, 5.0], [5.0, 26.0]], rtol=0.05)
