"""Our likelihoods in other people's models: each test is an example to copy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scvae_jax.likelihoods import Covariates, negative_binomial, total_log_prob

N_CELLS, N_GENES = 200, 12


@pytest.fixture(scope="module")
def counts():
    """Two types of cells, which differ in half of the genes: [B, G]."""
    random = np.random.default_rng(0)
    means = np.ones((2, N_GENES))
    means[0, :3] = means[1, 3:6] = 20.0
    mean = np.repeat(means, N_CELLS // 2, axis=0)
    x = random.poisson(mean * random.gamma(5.0, 1 / 5.0, mean.shape))
    return jnp.asarray(x, "float32")


def test_equinox_autoencoder(counts):
    eqx = pytest.importorskip("equinox")
    likelihood = negative_binomial(dispersion="gene", mean="library")

    class Autoencoder(eqx.Module):
        encoder: eqx.nn.Linear
        decoder: eqx.nn.Linear
        log_dispersion: jax.Array

        def __init__(self, n_latent, key):
            key_encoder, key_decoder = jax.random.split(key)
            self.encoder = eqx.nn.Linear(N_GENES, n_latent, key=key_encoder)
            self.decoder = eqx.nn.Linear(n_latent, N_GENES, key=key_decoder)
            self.log_dispersion = jnp.zeros(N_GENES)

        def __call__(self, x):
            """Counts [B, G] to the params of their distribution."""
            z = jax.nn.tanh(jax.vmap(self.encoder)(jnp.log1p(x)))
            heads = {"log_mean": jax.vmap(self.decoder)(z)}
            free = {"log_dispersion": self.log_dispersion}
            return likelihood.link(heads, free, Covariates(depth=x.sum(-1)))

    def loss(model, x):
        return -total_log_prob(likelihood, x, model(x)).mean()

    optimizer = optax.adam(0.03)

    @eqx.filter_jit
    def step(model, state, x):
        value, gradient = eqx.filter_value_and_grad(loss)(model, x)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    model = Autoencoder(2, jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    losses = []
    for _ in range(150):
        model, state, value = step(model, state, counts)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    # better than one profile for all cells, with the best of some dispersions
    log_mean = jnp.log(counts.sum(-1, keepdims=True) * counts.mean(0, keepdims=True))
    log_mean = log_mean - jnp.log(counts.mean(0).sum())
    for log_theta in jnp.linspace(-2.0, 4.0, 7):
        params = {"log_mean": log_mean, "log_dispersion": jnp.full((1, 1), log_theta)}
        null = -total_log_prob(likelihood, counts, params).mean()
        assert losses[-1] < null


def test_numpyro_posterior_of_means(counts):
    numpyro = pytest.importorskip("numpyro")
    from numpyro.distributions import Normal

    likelihood = negative_binomial(mean="free")
    x = counts[: N_CELLS // 2, 2:5]

    def model(x):
        shape = (1, x.shape[1])
        params = {
            "log_mean": numpyro.sample("log_mean", Normal(0.0, 3.0).expand(shape)),
            "log_dispersion": numpyro.sample(
                "log_dispersion", Normal(0.0, 3.0).expand(shape)
            ),
        }
        numpyro.factor("counts", total_log_prob(likelihood, x, params).sum())

    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=100, num_samples=200, progress_bar=False
    )
    mcmc.run(jax.random.key(0), x)
    mean = np.exp(mcmc.get_samples()["log_mean"])[:, 0].mean(0)
    # the posterior of a mean lies about the sample mean, within its standard error
    error = np.abs(mean - x.mean(0))
    assert np.all(error < x.std(0) / np.sqrt(len(x)))
