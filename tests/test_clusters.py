"""Clusters: their start, their order, and agreement between fits."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.cluster.vq

from scvae_jax import clusters, latents, likelihoods, models

N_LATENT = 2
CENTRES = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
SIZES = (40, 200, 100)


@pytest.fixture(scope="module")
def blobs():
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(3), SIZES)
    mean = CENTRES[label] + 0.5 * random.normal(size=(len(label), N_LATENT))
    variance = np.full(mean.shape, 0.11)
    return mean, variance, label


def prior_of(covariance, weights="uniform"):
    model = models.gmvae(
        [models.Modality("x", 4, likelihoods.poisson())],
        n_clusters=3,
        n_latent=N_LATENT,
        hidden_sizes=(5,),
        mixture_weights=weights,
        component_covariance=covariance,
    )
    return model, model.init(jax.random.key(0))


def test_mixture_start_finds_the_blobs(blobs):
    mean, variance, label = blobs
    start = clusters.mixture_start(mean, variance, 3, seed=0)
    nearest = np.abs(start.mean[:, None] - CENTRES).sum(-1)
    assert nearest.min(1).max() < 0.3
    order = nearest.argmin(1)
    np.testing.assert_allclose(start.share, np.array(SIZES)[order] / 340, rtol=0.05)
    code = clusters.distances(mean, start.mean).argmin(1)
    assert (order[code] == label).all()
    again = clusters.mixture_start(mean, variance, 3, seed=0)
    np.testing.assert_array_equal(start.mean, again.mean)


def test_mixture_start_is_a_maximum_of_its_bound(blobs):
    mean, variance, _ = blobs
    start = clusters.mixture_start(mean, variance, 3, seed=0)

    # a part of the variance of q(z|x) counts in the fit, all of it in what is returned
    uncertain = variance.sum(axis=1).mean()
    counted = clusters.UNCERTAIN * uncertain
    fitted = start.variance - (uncertain - counted) / 2

    def bound(centres, scale, share):
        square = clusters.distances(mean, centres)
        logits = np.log(share) - 0.5 * square / scale - np.log(2 * np.pi * scale)
        return np.log(np.exp(logits).sum(1)).mean() - 0.5 * counted / scale

    here = bound(start.mean, fitted, start.share)
    assert here == pytest.approx(start.bound, abs=1e-4)
    step = np.random.default_rng(1).normal(size=start.mean.shape)
    for shift, factor in ((0.05, 1.0), (-0.05, 1.0), (0.0, 1.1), (0.0, 0.9)):
        assert bound(start.mean + shift * step, fitted * factor, start.share) < here


def test_mixture_start_keeps_a_large_cluster_whole():
    random = np.random.default_rng(0)
    mean = np.concatenate(
        [random.normal(0, 1.0, (3000, 2)), [7.0, 0] + random.normal(0, 1.0, (30, 2))]
    )
    # k-means cuts it in two
    _, code = scipy.cluster.vq.kmeans2(mean, 2, minit="++", rng=random)
    assert np.bincount(code).min() > 1000
    start = clusters.mixture_start(mean, np.full(mean.shape, 0.01), 2, seed=0)
    assert start.share.min() < 0.05
    assert start.mean[start.share.argmin(), 0] > 6.0


def test_as_many_clusters_as_cells():
    mean = np.random.default_rng(0).normal(size=(5, 2))
    start = clusters.mixture_start(mean, np.full(mean.shape, 0.1), 5, seed=0)
    assert np.isfinite(start.mean).all() and np.isfinite(start.bound)


@pytest.mark.parametrize("covariance", ["shared", "diagonal", "full"])
def test_components_are_placed_on_the_moments_of_their_cells(blobs, covariance):
    mean, variance, label = blobs
    model, params = prior_of(covariance, "learned")
    prior = clusters.place(params["prior"], mean, variance, 0)
    assert jax.tree.structure(prior) == jax.tree.structure(params["prior"])
    order = [np.abs(CENTRES - m).sum(1).argmin() for m in np.asarray(prior["mean"])]
    assert sorted(order) == [0, 1, 2]
    # variance about the centre and that of q(z|x): 0.25 + 0.11
    assert float(jnp.exp(2 * prior["log_scale"][0, 0])) == pytest.approx(0.36, rel=0.05)
    share = np.exp(prior["logits"])
    np.testing.assert_allclose(share, np.array(SIZES)[order] / 340, rtol=0.05)
    # cells belong to the component of their group
    joint = model.infer(params | {"prior": prior}, jnp.asarray(mean, jnp.float32))
    codes = np.asarray(joint).argmax(1)
    assert (np.array(order)[codes] == label).all()


def test_a_wide_cluster_gets_a_wide_component():
    random = np.random.default_rng(0)
    mean = np.concatenate(
        [random.normal(0, 0.5, (300, 2)), [20, 0] + random.normal(0, 1.5, (300, 2))]
    )
    model = models.gmvae(
        [models.Modality("x", 4, likelihoods.poisson())],
        n_clusters=2,
        n_latent=2,
        hidden_sizes=(5,),
        component_covariance="full",
    )
    prior = model.init(jax.random.key(0))["prior"]
    placed = clusters.place(prior, mean, np.full(mean.shape, 1e-3), 0)
    wide = int(np.asarray(placed["mean"])[:, 0].argmax())
    departure = np.tanh(placed["departure"]) * np.log(2.0)
    scale = np.exp(np.asarray(placed["log_scale"]) + departure)
    assert (scale[wide] > scale[1 - wide]).all()
    np.testing.assert_allclose(scale[wide], 1.5, rtol=0.1)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_long_cluster_gets_a_long_component_of_its_direction(covariance):
    """Longer than a component may be; its direction is kept all the same."""
    random = np.random.default_rng(1)
    along = random.normal(0, [2.5, 0.3], (300, 2))
    if covariance == "full":
        along = along @ np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2.0)
    others = [[12, 0], [-12, 0], [0, 12], [0, -12], [12, 12]]
    mean = [centre + random.normal(0, 0.5, (300, 2)) for centre in others]
    mean = np.concatenate([along, *mean])
    model = models.gmvae(
        [models.Modality("x", 4, likelihoods.poisson())],
        n_clusters=6,
        n_latent=2,
        hidden_sizes=(5,),
        component_covariance=covariance,
    )
    params = model.init(jax.random.key(0))
    placed = clusters.place(params["prior"], mean, np.full(mean.shape, 1e-3), 0)
    long = int(np.square(np.asarray(placed["mean"])).sum(axis=1).argmin())
    departure = np.tanh(placed["departure"][long]) * latents.MAX_DEPARTURE
    factor = np.diag(np.exp(np.asarray(placed["log_scale"])[0, 0] + departure))
    if covariance == "full":
        factor = factor + np.tril(placed["correlation"][long], -1)
    values, axes = np.linalg.eigh(factor @ factor.T)
    # at most twice the scale that all share, which is wider than the round ones
    assert values[1] > 4 * values[0]
    expected = np.array([1.0, 1.0]) / np.sqrt(2.0) if covariance == "full" else [1, 0]
    angle = np.degrees(np.arccos(min(abs(axes[:, 1] @ expected), 1.0)))
    assert angle < 3.0


def test_more_clusters_than_cells_that_differ():
    """As quiet as any other start."""
    mean = np.repeat(np.random.default_rng(0).normal(size=(3, 2)), 10, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = clusters.mixture_start(mean, np.full(mean.shape, 0.1), 6, seed=0)
    assert np.isfinite(start.mean).all() and np.isfinite(start.bound)


def test_many_cells_are_placed_by_a_part_of_them(blobs, monkeypatch):
    mean, variance, _ = blobs
    monkeypatch.setattr(clusters, "MOST_CELLS", 100)
    start = clusters.mixture_start(mean, variance, 3, seed=0)
    nearest = [np.abs(CENTRES - m).sum(1).argmin() for m in start.mean]
    assert sorted(nearest) == [0, 1, 2]


def test_logits_are_fitted_to_responsibilities():
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(500, 6)), jnp.float32)
    true = random.normal(size=(6, 3))
    target = jax.nn.softmax(hidden @ jnp.asarray(true, jnp.float32))
    layer = {"kernel": jnp.ones((6, 3)), "bias": jnp.ones(3)}
    fitted = jax.jit(clusters.fit_logits)(layer, hidden, target)
    ours = jax.nn.softmax(hidden @ fitted["kernel"] + fitted["bias"][None])
    assert float(jnp.abs(ours - target).mean()) < 0.01


def test_given_weights_go_to_components_by_size(blobs):
    mean, variance, _ = blobs
    weights = (0.2, 0.7, 0.1)
    _, params = prior_of("shared", weights)
    placed = clusters.place(params["prior"], mean, variance, 0)
    np.testing.assert_allclose(np.exp(placed["log_weights"]), weights, rtol=1e-6)
    nearest = np.abs(np.asarray(placed["mean"])[:, None] - CENTRES).sum(-1).argmin(1)
    sizes = np.array(SIZES)[nearest]
    assert (np.argsort(sizes) == np.argsort(weights)).all()


@pytest.mark.parametrize("weights", ["learned", "uniform", (0.1, 0.3, 0.6)])
@pytest.mark.parametrize("posterior", ["shared", "conditional"])
def test_reordering_changes_names_alone(posterior, weights):
    model = models.gmvae(
        [models.Modality("x", 4, likelihoods.poisson())],
        n_clusters=3,
        posterior=posterior,
        n_latent=N_LATENT,
        hidden_sizes=(5,),
        mixture_weights=weights,
        component_covariance="full",
    )
    params = model.init(jax.random.key(0))
    params = jax.tree.map(
        lambda v: v + jnp.arange(v.size, dtype=v.dtype).reshape(v.shape) / v.size,
        params,
    )
    order = np.array([2, 0, 1])
    other = clusters.reorder(params, order)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(6, N_LATENT)), jnp.float32)
    np.testing.assert_allclose(
        model.infer(other, z), model.infer(params, z)[:, order], rtol=1e-5
    )
    if posterior == "conditional":
        from scvae_jax import batches

        batch = batches.dense_batch(np.random.default_rng(1).poisson(2.0, (6, 4)))
        one, two = model.encode(params, batch), model.encode(other, batch)
        np.testing.assert_allclose(
            two.mixture_distribution.logits,
            one.mixture_distribution.logits[:, order],
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            two.components_distribution.mean(),
            one.components_distribution.mean()[:, order],
            rtol=1e-5,
        )


def test_clusters_are_matched_one_to_one():
    first = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    renamed = np.array([2, 2, 2, 2, 0, 0, 1, 1])
    assert clusters.matched(first, renamed, 3).tolist() == [2, 0, 1]
    moved = np.array([1, 1, 1, 0, 0, 0, 2, 2])
    assert clusters.matched(first, moved, 3).tolist() == [1, 0, 2]
    # clusters without cells are matched with what is left
    merged = np.full(8, 3)
    assert sorted(clusters.matched(first, merged, 4)) == [0, 1, 2, 3]
    assert clusters.matched(first, merged, 4)[0] == 3


def test_a_cluster_of_one_percent_is_in_use():
    for sizes, expected in (((196, 2, 2), 3), ((197, 2, 1), 2), ((198, 0, 2), 2)):
        assert clusters.clusters_used(np.repeat([0, 1, 2], sizes)) == expected
