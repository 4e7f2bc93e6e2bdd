"""Bounds against a linear-Gaussian model, whose log p(x) is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scvae_jax import batches, likelihoods, models, objectives

N_GENES, N_LATENT, N_CELLS = 6, 2, 5


@pytest.fixture(scope="module")
def linear():
    """A VAE without hidden layers is x = W z + b + noise, with q(z|x) linear in x."""
    model = models.vae(
        [models.Modality("x", N_GENES, likelihoods.gaussian())],
        n_latent=N_LATENT,
        hidden_sizes=(),
    )
    params = model.init(jax.random.key(0))
    random = np.random.default_rng(0)
    weights = random.normal(size=(N_LATENT, N_GENES))
    offset, log_scale = random.normal(size=N_GENES), -0.3

    variance = np.exp(2 * log_scale)
    # the exact posterior N(m, V): V = (I + W W' / s^2)^-1, m = (x - b) W' V / s^2
    posterior_covariance = np.linalg.inv(
        np.eye(N_LATENT) + weights @ weights.T / variance
    )
    to_mean = weights.T @ posterior_covariance / variance
    # q is near it: shifted, and its scales a little too wide
    decoder, encoder = params["decoder"], params["encoder"]
    decoder["output_0"] = {"kernel": weights, "bias": offset}
    decoder["output_1"]["kernel"] *= 0.0
    decoder["output_1"]["bias"] += log_scale
    encoder["Dense_0"] = {"kernel": to_mean, "bias": 0.3 - offset @ to_mean}
    encoder["Dense_1"]["kernel"] *= 0.0
    encoder["Dense_1"]["bias"] += 0.5 * np.log(np.diag(posterior_covariance)) + 0.3
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    x = random.normal(size=(N_CELLS, N_GENES)) * 1.5
    covariance = weights.T @ weights + variance * np.eye(N_GENES)
    log_px = multivariate_normal(offset, covariance).logpdf(x)
    posterior_mean = (x - offset) @ to_mean
    return {
        "model": model,
        "params": params,
        "batch": batches.dense_batch(x),
        "log_px": log_px,
        "posterior": (posterior_mean, posterior_covariance),
    }


def terms_of(linear, n_samples, n_repeats, seed=0):
    """Terms [n_repeats, S, B] of independent draws."""
    keys = jax.random.split(jax.random.key(seed), n_repeats)
    model = linear["model"]

    @jax.jit
    @jax.vmap
    def terms(key):
        return model.terms(linear["params"], key, linear["batch"], n_samples)

    return terms(keys)


def test_elbo_is_log_px_less_the_gap_of_the_posterior(linear):
    terms = terms_of(linear, 1, 4000)
    for kl in ("analytic", "sampled"):
        parts = jax.vmap(partial(objectives.elbo_parts, kl=kl))(terms)
        elbo = np.asarray(parts.elbo)
        mean, error = elbo.mean(0), elbo.std(0) / np.sqrt(len(elbo))
        q = linear["model"].encode(linear["params"], linear["batch"])
        q_mean, q_variance = np.asarray(q.mean()), np.asarray(q.variance())
        p_mean, p_covariance = linear["posterior"]
        precision = np.linalg.inv(p_covariance)
        # KL(q || p) between two normals
        gap = 0.5 * (
            np.einsum("bl,ll->b", q_variance, precision * np.eye(N_LATENT))
            + np.einsum("bi,ij,bj->b", p_mean - q_mean, precision, p_mean - q_mean)
            - N_LATENT
            + np.log(np.linalg.det(p_covariance))
            - np.log(q_variance).sum(1)
        )
        assert (np.abs(mean - (linear["log_px"] - gap)) < 5 * error + 1e-4).all()


def test_importance_weighted_bound_rises_to_log_px_and_never_passes(linear):
    n_samples = (1, 4, 16, 64, 1024)
    means, errors = [], []
    for s in n_samples:
        n_repeats = 60_000 // s + 40
        terms = terms_of(linear, s, n_repeats, seed=s)
        bound = np.asarray(jax.vmap(objectives.importance_weighted_bound)(terms))
        means.append(bound.mean(0))
        errors.append(bound.std(0) / np.sqrt(n_repeats))
    means, errors = np.array(means), np.array(errors)
    assert (means < linear["log_px"] + 4 * errors + 1e-3).all()
    assert (np.diff(means, axis=0) > -4 * (errors[1:] + errors[:-1])).all()
    # at one sample it is far away, at many close: the test could fail
    gaps = linear["log_px"] - means
    assert gaps[0].min() > 0.2
    assert gaps[-1].max() < 0.1 * gaps[0].min()


def test_importance_weighted_bound_against_a_loop(linear):
    terms = linear["model"].terms(
        linear["params"], jax.random.key(3), linear["batch"], 7
    )
    weights = np.zeros((7, N_CELLS))
    for s in range(7):
        for b in range(N_CELLS):
            weights[s, b] = np.exp(
                float(terms.log_px[s, b])
                + float(terms.log_pz[s, b])
                - float(terms.log_qz[s, b])
            )
    bound = objectives.importance_weighted_bound(terms)
    np.testing.assert_allclose(bound, np.log(weights.mean(0)), rtol=1e-4)


def test_one_weighted_sample_is_the_sampled_elbo(linear):
    terms = linear["model"].terms(
        linear["params"], jax.random.key(3), linear["batch"], 1
    )
    np.testing.assert_allclose(
        objectives.importance_weighted_bound(terms),
        objectives.elbo_parts(terms, "sampled").elbo,
        rtol=1e-5,
    )


def some_terms(n_samples):
    random = np.random.default_rng(0)
    log_px, log_pz, log_qz = random.normal(size=(3, n_samples, 4))
    kl_z = np.broadcast_to(np.array([0.5, 1.0, 2.0, 4.0]), (n_samples, 4))
    return objectives.Terms(
        z=np.zeros((n_samples, 4, 2)),
        log_px=log_px,
        log_pz=log_pz,
        log_qz=log_qz,
        kl_z=kl_z,
    )


@pytest.mark.parametrize("clusters", [False, True])
def test_terms_of_one_sample_need_an_axis(clusters):
    """Cells would be taken for samples."""
    terms = some_terms(1)
    if clusters:
        names = ("log_px", "log_pz", "log_qz", "kl_z")
        wider = {name: getattr(terms, name)[..., None] for name in names}
        terms = terms._replace(**wider, log_py=np.zeros((1, 4, 1)))
    whole = objectives.elbo_parts(terms).elbo
    assert whole.shape == (4,)
    one = jax.tree.map(lambda leaf: leaf[0], terms)
    for function in (
        objectives.elbo_parts,
        objectives.importance_weighted_bound,
        lambda terms: objectives.elbo().loss(terms, 1.0),
    ):
        with pytest.raises(ValueError, match="expected an axis of samples before"):
            function(one)
    again = jax.tree.map(lambda leaf: leaf[None], one)
    np.testing.assert_array_equal(objectives.elbo_parts(again).elbo, whole)


def test_kl_weight_and_free_nats():
    terms = some_terms(1)
    nll = -terms.log_px[0]
    loss = objectives.elbo().loss(terms, 0.25)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(loss, nll + 0.25 * terms.kl_z[0], **close)
    sampled = objectives.elbo(kl="sampled").loss(terms, 0.25)
    expected = nll + 0.25 * (terms.log_qz - terms.log_pz)[0]
    np.testing.assert_allclose(sampled, expected, **close)
    free = objectives.elbo(free_nats=1.5).loss(terms, 0.25)
    expected = nll + 0.25 * np.array([1.5, 1.5, 2.0, 4.0])
    np.testing.assert_allclose(free, expected, **close)
    # the bounds themselves know neither
    bound = objectives.elbo_parts(terms).elbo
    np.testing.assert_allclose(bound, -nll - terms.kl_z[0], **close)


def test_kl_weight_acts_inside_the_weights():
    terms = some_terms(3)
    loss = objectives.importance_weighted(3).loss(terms, 0.25)
    log_weight = terms.log_px + 0.25 * (terms.log_pz - terms.log_qz)
    np.testing.assert_allclose(loss, -np.log(np.exp(log_weight).mean(0)), rtol=1e-6)


def test_kl_weight_acts_on_the_prior_of_a_mixture():
    one = some_terms(3)
    log_pz = one.log_pz[..., None] + np.array([0.0, -1.5])
    log_py = np.broadcast_to(np.log([0.2, 0.8]), log_pz.shape)
    by_cluster = {"log_pz": log_pz, "log_py": log_py}
    axis = {
        name: getattr(one, name)[..., None] for name in ("log_px", "log_qz", "kl_z")
    }
    mixture = one._replace(**by_cluster, **axis)
    loss = objectives.importance_weighted(3).loss(mixture, 0.25)
    prior = np.log((np.exp(log_py) * np.exp(log_pz)).sum(axis=-1))
    log_weight = one.log_px + 0.25 * (prior - one.log_qz)
    np.testing.assert_allclose(loss, -np.log(np.exp(log_weight).mean(0)), rtol=1e-6)


def test_a_network_is_fitted_to_responsibilities_for_nothing():
    """In value the loss stays the bound's; its slope is that of a cross-entropy."""
    one, logits = (
        some_terms(3),
        np.array([[0.3, -0.2], [1.0, 0.0], [0.0, 0.0], [-2, 1]]),
    )
    axis = {
        name: getattr(one, name)[..., None] for name in ("log_px", "log_qz", "kl_z")
    }
    log_pz = one.log_pz[..., None] + np.array([0.0, -1.5])
    log_py = np.broadcast_to(np.log([0.2, 0.8]), log_pz.shape)
    mixture = one._replace(log_pz=log_pz, log_py=log_py, **axis)

    def loss(logits):
        log_qy = jnp.broadcast_to(jax.nn.log_softmax(logits), log_pz.shape)
        terms = mixture._replace(log_qy=log_qy)
        return objectives.importance_weighted(3).loss(terms, 1.0)

    bound = objectives.importance_weighted_bound(mixture)
    np.testing.assert_allclose(loss(logits), -bound, rtol=1e-5)
    weights = np.exp(axis["log_px"] + log_pz + log_py - axis["log_qz"]).sum(axis=0)
    r = weights / weights.sum(axis=-1, keepdims=True)
    slopes = jax.grad(lambda logits: loss(logits).sum())(jnp.asarray(logits))
    expected = jax.nn.softmax(logits) - r
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.elbo(free_nats=-1.0), "found free_nats=-1.0"),
        (lambda: objectives.elbo(kl="none"), "found kl='none', expected 'analytic' or"),
        (lambda: objectives.importance_weighted(0), "found n_samples=0, expected at"),
        (
            lambda: objectives.elbo_parts(some_terms(1), "none"),
            "found kl='none', expected 'analytic' or 'sampled'",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
