"""Gradients along the path of z alone, against formulas and against the total ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scvae_jax import batches, latents, likelihoods, models, objectives

N_GENES, N_CELLS = 7, 4


def some_model(posterior):
    modality = models.Modality("rna", N_GENES, likelihoods.negative_binomial())
    sizes = {"n_latent": 2, "hidden_sizes": (5,)}
    if posterior is None:
        return models.vae([modality], **sizes)
    return models.gmvae([modality], n_clusters=3, posterior=posterior, **sizes)


def some_params(model):
    """Params none of which is where it starts, as zeros hide what multiplies them."""
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def batch():
    x = np.random.default_rng(2).poisson(3.0, (N_CELLS, N_GENES))
    return batches.dense_batch(x)


def log_weights(terms, beta):
    """[S, B], or [S, B, K] where each cluster has samples of its own."""
    if terms.log_py is None:
        return terms.log_px + beta * (terms.log_pz - terms.log_qz)
    if terms.log_qy is None:
        log_pz = jax.nn.logsumexp(terms.log_py + terms.log_pz, axis=-1)
        return terms.log_px[..., 0] + beta * (log_pz - terms.log_qz[..., 0])
    return terms.log_px + terms.log_py + beta * (terms.log_pz - terms.log_qz)


def of_encoder(gradients):
    return {
        name: gradients[name] for name in ("encoder", "clusters") if name in gradients
    }


@pytest.mark.parametrize("beta", [pytest.param(1.0, marks=pytest.mark.slow), 0.4])
@pytest.mark.parametrize("posterior", [None, "shared", "conditional"])
def test_the_path_of_weighted_samples_is_the_formula(posterior, beta, batch):
    model, key, n_samples = some_model(posterior), jax.random.key(5), 3
    params = some_params(model)
    objective = objectives.importance_weighted(n_samples, gradient="path")
    # by cells of different weight, as the mean over a padded batch is
    of_cells = jnp.array([0.5, 2.0, 1.0, 0.0])

    def loss_of(params):
        terms = model.terms(params, key, batch, n_samples, train=True)
        return (of_cells * objective.loss(terms, beta)).sum()

    found = jax.jit(jax.grad(loss_of))(params)

    held = model.encode(params, batch)
    terms = model.terms(params, key, batch, n_samples)
    log_weight = log_weights(terms, beta)
    axes = tuple(i for i in range(log_weight.ndim) if i != 1)
    share = jax.nn.softmax(log_weight, axis=axes)
    factor = share * (1.0 - beta * (1.0 - share))

    def surrogate(moving):
        q = model.encode(params | moving, batch)
        z = latents.sample(q, jax.random.split(key, 3)[0], n_samples)
        terms = jax.vmap(lambda z: model.weigh(params, z, held, batch))(z)
        weighed = -(factor * log_weights(terms, beta)).sum(axes)
        if posterior == "conditional":
            # what fits q(y|x) to the shares is no part of it
            log_qy = jax.nn.log_softmax(q.mixture_distribution.logits)
            weighed -= (share.sum(0) * log_qy).sum(-1)
        return (of_cells * weighed).sum()

    expected = jax.jit(jax.grad(surrogate))(of_encoder(params))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5),
        of_encoder(found),
        expected,
    )


@pytest.mark.parametrize("posterior", [None, "shared", "conditional"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(objectives.elbo, kl="sampled"), marks=pytest.mark.slow),
        partial(objectives.importance_weighted, 4),
    ],
)
def test_path_and_total_agree_in_the_mean_and_in_value(make, posterior, batch):
    model = some_model(posterior)
    params = some_params(model)
    keys = jax.random.split(jax.random.key(7), 3000)

    def gradients(gradient):
        objective = make(gradient=gradient)

        def loss_of(params, key):
            terms = model.terms(params, key, batch, objective.n_samples, train=True)
            return objective.loss(terms, 0.5).mean()

        of_keys = jax.vmap(jax.value_and_grad(loss_of), (None, 0))
        return jax.jit(of_keys)(params, keys)

    (total_loss, total), (path_loss, path) = map(gradients, ("total", "path"))
    np.testing.assert_allclose(path_loss, total_loss, rtol=1e-5)
    differ = False
    for name in params:
        for one, other in zip(
            jax.tree.leaves(total[name]), jax.tree.leaves(path[name]), strict=True
        ):
            one, other = np.asarray(one, float), np.asarray(other, float)
            if name in ("decoder", "free", "prior"):
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
                continue
            difference = one - other
            error = difference.std(0) / np.sqrt(len(keys))
            assert (np.abs(difference.mean(0)) < 5 * error + 1e-5).all()
            differ |= bool((error > 1e-4).any())
    assert differ


def test_the_path_has_no_noise_where_q_is_exact():
    # x = w z + noise with one latent: q(z|x) is normal and linear in x
    model = models.vae(
        [models.Modality("x", 3, likelihoods.gaussian())], n_latent=1, hidden_sizes=()
    )
    params = model.init(jax.random.key(0))
    weights = np.array([[0.5, -1.0, 2.0]])
    variance = 1.0 / (1.0 + (weights**2).sum())
    params["decoder"]["output_0"] = {"kernel": weights, "bias": np.zeros(3)}
    params["decoder"]["output_1"] = {"kernel": np.zeros((1, 3)), "bias": np.zeros(3)}
    params["encoder"]["Dense_0"] = {"kernel": weights.T * variance, "bias": np.zeros(1)}
    params["encoder"]["Dense_1"] = {
        "kernel": np.zeros((3, 1)),
        "bias": 0.5 * np.log([variance]),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    cells = batches.dense_batch(np.random.default_rng(0).normal(size=(5, 3)))
    makers = (
        partial(objectives.importance_weighted, 1),
        partial(objectives.importance_weighted, 4),
        partial(objectives.elbo, kl="sampled"),
    )
    for make in makers:
        size = {}
        for gradient in ("total", "path"):
            objective = make(gradient=gradient)

            def loss_of(params, objective=objective):
                key, n = jax.random.key(3), objective.n_samples
                terms = model.terms(params, key, cells, n, train=True)
                return objective.loss(terms, 1.0).sum()

            leaves = jax.tree.leaves(jax.jit(jax.grad(loss_of))(params)["encoder"])
            size[gradient] = max(float(jnp.abs(leaf).max()) for leaf in leaves)
        assert size["path"] < 1e-4 < 1e-1 < size["total"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(objectives.elbo, gradient="score"),
            "found gradient='score', expected",
        ),
        (partial(objectives.importance_weighted, 2, gradient=""), "found gradient=''"),
        (partial(objectives.elbo, gradient="path"), "with kl='analytic' and free nats"),
        (
            partial(objectives.elbo, kl="sampled", free_nats=1.0, gradient="path"),
            "expected kl='sampled' and none, change them",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_terms_of_evaluation_have_no_path(batch):
    model = some_model(None)
    terms = model.terms(some_params(model), jax.random.key(0), batch, 2)
    objective = objectives.importance_weighted(2, gradient="path")
    with pytest.raises(ValueError, match="expected those of a training step"):
        objective.loss(terms, 1.0)
