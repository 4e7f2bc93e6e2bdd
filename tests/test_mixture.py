"""The Gaussian-mixture VAE: bounds against brute force, closed forms, and cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from scvae_jax import batches, latents, likelihoods, models, objectives
from scvae_jax.checks import InputError

KEY = jax.random.key(0)
N_GENES, N_LATENT, N_CLUSTERS, N_CELLS = 6, 2, 3, 5
POSTERIORS = ("shared", "conditional")
COVARIANCES = ("shared", "diagonal", "full")
GIVEN = (0.5, 0.2, 0.3)


def mixture(posterior="shared", covariance="shared", weights="learned", **options):
    options = {"n_latent": N_LATENT, "hidden_sizes": (7,)} | options
    likelihood = options.pop("likelihood", likelihoods.negative_binomial())
    return models.gmvae(
        [models.Modality("rna", N_GENES, likelihood)],
        n_clusters=N_CLUSTERS,
        posterior=posterior,
        mixture_weights=weights,
        component_covariance=covariance,
        **options,
    )


def some_params(model, seed=0):
    """Parameters that are all different from zero and from each other."""
    params = model.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(seed)
    leaves = [
        leaf + jnp.asarray(0.3 * random.normal(size=leaf.shape), jnp.float32)
        for leaf in leaves
    ]
    found = jax.tree.unflatten(tree, leaves)
    if "log_weights" in params["prior"]:
        # given, and so never other than they are
        found["prior"]["log_weights"] = params["prior"]["log_weights"]
    return found


@pytest.fixture(scope="module")
def batch():
    return batches.dense_batch(
        np.random.default_rng(1).poisson(2.0, (N_CELLS, N_GENES))
    )


def prior_by_hand(model, params, covariance):
    """Weights [K], means [K, L] and covariances [K, L, L] of the mixture, in numpy."""
    prior = jax.tree.map(lambda leaf: np.asarray(leaf, float), params["prior"])
    logits = prior.get("logits", prior.get("log_weights", np.zeros(N_CLUSTERS)))
    weights = np.exp(logits - logsumexp(logits))
    log_scale = np.broadcast_to(prior["log_scale"], (N_CLUSTERS, N_LATENT))
    if covariance != "shared":
        log_scale = log_scale + np.log(2.0) * np.tanh(prior["departure"])
    factors = np.stack([np.diag(row) for row in np.exp(log_scale)])
    if covariance == "full":
        factors = factors + np.tril(prior["correlation"], -1)
    return weights, prior["mean"], factors @ np.swapaxes(factors, 1, 2)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_bounds_against_a_sum_over_clusters_by_hand(posterior, covariance, batch):
    # each kind of weights with some covariance
    weights = dict(zip(COVARIANCES, ("uniform", "learned", GIVEN), strict=True))
    n_samples = 4
    model = mixture(posterior, covariance, weights[covariance])
    params = some_params(model)
    terms = terms_of(model, params, KEY, batch, n_samples)
    weights, means, covariances = prior_by_hand(model, params, covariance)
    q = jax.jit(model.encode)(params, batch)
    if posterior == "conditional":
        log_qy = np.log(np.asarray(q.mixture_distribution.probs, float))
        q = q.components_distribution
    q_mean, q_scale = np.asarray(q.mean(), float), np.asarray(q.stddev(), float)

    @jax.jit
    def log_px_of(z, cell):
        (decoded,) = model.decode(params, z[None], cell)
        likelihood = model.modalities[0].likelihood
        return likelihoods.total_log_prob(likelihood, cell.counts[0].x, decoded)[0]

    elbo = np.zeros((n_samples, N_CELLS))
    log_weights = np.zeros((n_samples, N_CELLS, N_CLUSTERS))
    parts = np.zeros((3, n_samples, N_CELLS))
    for s in range(n_samples):
        for b in range(N_CELLS):
            log_px, log_pz, log_qz, kl = (np.zeros(N_CLUSTERS) for _ in range(4))
            for k in range(N_CLUSTERS):
                where = (s, b, k) if posterior == "conditional" else (s, b)
                z = np.asarray(terms.z[where], float)
                m, sd = (v[where[1:]] for v in (q_mean, q_scale))
                prior = stats.multivariate_normal(means[k], covariances[k])
                cell = one_cell(batch, b)
                log_px[k] = log_px_of(jnp.asarray(z, jnp.float32), cell)
                log_pz[k] = prior.logpdf(z)
                log_qz[k] = stats.norm.logpdf(z, m, sd).sum()
                kl[k] = normal_divergence(m, sd, means[k], covariances[k])
            log_weights[s, b] = log_px + np.log(weights) + log_pz - log_qz
            if posterior == "conditional":
                r = np.exp(log_qy[b])
                kl_z = (r * kl).sum()
            else:
                # E_q[log q(z|x)] in closed form, less the sampled E_r[log p(z|y)]
                r = weights * np.exp(log_pz)
                r /= r.sum()
                entropy = (0.5 * np.log(2 * np.pi * np.e) + np.log(sd)).sum()
                kl_z = -entropy - (r * log_pz).sum()
            parts[:, s, b] = (
                (r * log_px).sum(),
                kl_z,
                (r * (np.log(r) - np.log(weights))).sum(),
            )
            elbo[s, b] = parts[0, s, b] - parts[1, s, b] - parts[2, s, b]
    np.testing.assert_allclose(
        objectives.elbo_parts(terms).elbo, elbo.mean(0), rtol=2e-5
    )
    for ours, by_hand in zip(objectives.elbo_parts(terms), parts, strict=True):
        np.testing.assert_allclose(ours, by_hand.mean(0), rtol=1e-4, atol=1e-5)
    if posterior == "shared":
        # one draw for all clusters: sum_y p(y) p(z|y) p(x|z) / q(z|x)
        np.testing.assert_array_equal(np.shape(terms.z), (n_samples, N_CELLS, N_LATENT))
    weighted = logsumexp(log_weights, axis=(0, 2)) - np.log(n_samples)
    np.testing.assert_allclose(
        objectives.importance_weighted_bound(terms), weighted, rtol=2e-5
    )


def terms_of(model, *arguments):
    """Compiled as one program: operation by operation takes many times as long."""
    return jax.jit(model.terms, static_argnums=(3, 4))(*arguments)


def one_cell(batch, b):
    return jax.tree.map(lambda leaf: leaf[b : b + 1], batch)


def normal_divergence(mean, scale, prior_mean, prior_covariance):
    """KL between normals, the first with independent dimensions."""
    precision = np.linalg.inv(prior_covariance)
    d = prior_mean - mean
    return 0.5 * (
        np.trace(precision @ np.diag(scale**2))
        + d @ precision @ d
        - len(mean)
        + np.log(np.linalg.det(prior_covariance))
        - 2 * np.log(scale).sum()
    )


@pytest.fixture(scope="module")
def linear():
    """x = W z + b + noise under a mixture of normals: log p(x) is known."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(N_LATENT, N_GENES))
    offset, log_scale = random.normal(size=N_GENES), -0.3
    x = random.normal(size=(N_CELLS, N_GENES)) * 1.5
    found = {"x": batches.dense_batch(x)}
    for posterior in POSTERIORS:
        model = mixture(
            posterior, "full", hidden_sizes=(), likelihood=likelihoods.gaussian()
        )
        params = some_params(model)
        decoder = params["decoder"]
        decoder["output_0"] = {"kernel": weights, "bias": offset}
        decoder["output_1"] = jax.tree.map(jnp.zeros_like, decoder["output_1"])
        decoder["output_1"]["bias"] += log_scale
        # an encoder that is not far off: the posterior under a standard normal
        variance = np.exp(2 * log_scale)
        spread = np.linalg.inv(np.eye(N_LATENT) + weights @ weights.T / variance)
        to_mean = weights.T @ spread / variance
        encoder = params["encoder"]
        encoder["Dense_0"] = {"kernel": to_mean, "bias": 0.2 - offset @ to_mean}
        encoder["Dense_1"] = jax.tree.map(jnp.zeros_like, encoder["Dense_1"])
        encoder["Dense_1"]["bias"] += 0.5 * np.log(np.diag(spread)) + 0.3
        if "clusters" in params:
            params["clusters"] = jax.tree.map(lambda v: 0.3 * v, params["clusters"])
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        pi, means, covariances = prior_by_hand(model, params, "full")
        # p(x) = sum_y p(y) N(x; W mu_y + b, W Sigma_y W' + s^2)
        log_px = logsumexp(
            [
                np.log(pi[k])
                + stats.multivariate_normal(
                    means[k] @ weights + offset,
                    weights.T @ covariances[k] @ weights + variance * np.eye(N_GENES),
                ).logpdf(x)
                for k in range(N_CLUSTERS)
            ],
            axis=0,
        )
        found[posterior] = (model, params, log_px)
    return found


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_weighted_bound_rises_to_the_exact_log_px(linear, posterior):
    model, params, log_px = linear[posterior]
    means, errors = [], []
    for n_samples in (1, 8, 64, 512):
        keys = jax.random.split(jax.random.key(n_samples), 20_000 // n_samples + 40)

        @jax.jit
        def bounds(keys, n_samples=n_samples):
            def one(key):
                terms = model.terms(params, key, linear["x"], n_samples)
                return jnp.stack(
                    [
                        objectives.importance_weighted_bound(terms),
                        objectives.elbo_parts(terms).elbo,
                    ]
                )

            return jax.lax.map(one, keys)

        found = np.asarray(bounds(keys), float)
        means.append(found.mean(0))
        errors.append(found.std(0) / np.sqrt(len(found)))
    means, errors = np.array(means), np.array(errors)
    weighted, elbo = means[:, 0], means[:, 1]
    assert (weighted < log_px + 4 * errors[:, 0] + 1e-3).all()
    assert (np.diff(weighted, axis=0) > -4 * (errors[1:, 0] + errors[:-1, 0])).all()
    # far from it at one sample and close at many: the test could fail
    gaps = log_px - weighted
    assert gaps[0].min() > 0.1 and gaps[-1].max() < 0.15 * gaps[0].max()
    # at one sample it is at least the ELBO
    assert (weighted[0] > elbo[0] - 4 * errors[0].sum(0)).all()


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_identical_components_have_equal_responsibilities(posterior, batch):
    model = mixture(posterior, weights="uniform")
    params = some_params(model)
    params["prior"]["mean"] = jnp.ones((N_CLUSTERS, N_LATENT))
    if posterior == "conditional":
        params["clusters"]["logits"] = jax.tree.map(
            jnp.zeros_like, params["clusters"]["logits"]
        )
        params["clusters"]["departure"] = jnp.zeros_like(
            params["clusters"]["departure"]
        )
    terms = terms_of(model, params, KEY, batch, 3)
    r = np.exp(objectives.log_responsibilities(terms))
    np.testing.assert_allclose(r, 1 / N_CLUSTERS, rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(model.infer(params, jnp.ones((4, N_LATENT)))), 1 / N_CLUSTERS, rtol=1e-6
    )


def test_given_weights_stay_probabilities(batch):
    """An optimiser of one's own may move them, by weight decay or noise."""
    given = np.array([0.2, 0.3, 0.5])[:N_CLUSTERS]
    given = given / given.sum()
    model = mixture("shared", weights=tuple(given))
    params = some_params(model)
    before = terms_of(model, params, KEY, batch, 3)
    params["prior"]["log_weights"] += 0.7
    after = terms_of(model, params, KEY, batch, 3)
    np.testing.assert_allclose(after.log_py, before.log_py, rtol=1e-5)
    np.testing.assert_allclose(np.exp(after.log_py).sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_assign_is_the_mean_of_responsibilities(covariance, batch):
    model = mixture("shared", covariance)
    params = some_params(model)
    q = jax.jit(model.encode)(params, batch)
    ours = np.asarray(model.assign(params, q))
    assert ours.shape == (N_CELLS, N_CLUSTERS)
    np.testing.assert_allclose(ours.sum(1), 1.0, rtol=1e-5)
    # of the same noise, and near what many draws of numpy's give
    draws = jax.random.normal(jax.random.key(0), (models.N_DRAWS * N_LATENT,))
    noise = np.asarray(draws, float).reshape(-1, N_LATENT)
    weights, means, covariances = prior_by_hand(model, params, covariance)
    random = np.random.default_rng(0)
    mean, scale = (np.asarray(each, float) for each in (q.mean(), q.stddev()))

    def responsibilities(z):
        log_joint = np.log(weights) + np.stack(
            [
                stats.multivariate_normal(m, c).logpdf(z)
                for m, c in zip(means, covariances, strict=True)
            ],
            axis=-1,
        )
        return np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))

    for b in range(N_CELLS):
        same = responsibilities(mean[b] + scale[b] * noise).mean(0)
        np.testing.assert_allclose(ours[b], same, rtol=1e-3, atol=1e-5)
        r = responsibilities(random.normal(mean[b], scale[b], (100_000, N_LATENT)))
        error = r.std(0) / models.N_DRAWS**0.5
        assert (np.abs(ours[b] - r.mean(0)) <= 5 * error + 1e-5).all()
    # a cell's own, whatever the cells beside it
    one = model.assign(
        params, latents.diagonal_normal(q.mean()[:1], jnp.log(q.stddev()[:1]))
    )
    np.testing.assert_allclose(one, ours[:1], rtol=1e-5)


def test_assign_of_a_network_is_its_own(batch):
    model = mixture("conditional")
    params = some_params(model)
    q = jax.jit(model.encode)(params, batch)
    np.testing.assert_allclose(
        model.assign(params, q), q.mixture_distribution.probs, rtol=1e-6
    )


def test_one_cluster_has_nothing_to_depart_from(batch):
    model = models.gmvae(
        [models.Modality("rna", N_GENES, likelihoods.negative_binomial())],
        n_clusters=1,
        posterior="conditional",
        n_latent=N_LATENT,
        hidden_sizes=(7,),
    )
    params = some_params(model)
    assert set(params["clusters"]) == {"logits"}
    q = jax.jit(model.encode)(params, batch)
    plain, _ = jax.jit(model.hidden)(params, batch)
    alone = q.components_distribution
    np.testing.assert_array_equal(alone.mean()[:, 0], plain.mean())
    np.testing.assert_array_equal(alone.stddev()[:, 0], plain.stddev())
    np.testing.assert_array_equal(model.assign(params, q), 1.0)


def test_one_dropout_mask_for_all_clusters(batch):
    model = mixture("conditional", dropout_decoder=0.5)
    params = some_params(model)
    # no departure and no spread: each cluster draws the same z, so masks could differ
    params["clusters"]["departure"] *= 0.0
    params["encoder"]["Dense_1"] = jax.tree.map(
        jnp.zeros_like, params["encoder"]["Dense_1"]
    )
    params["encoder"]["Dense_1"]["bias"] -= 30.0
    terms = terms_of(model, params, KEY, batch, 2, True)
    log_px = np.asarray(terms.log_px)
    np.testing.assert_allclose(log_px, log_px[:1, :, :1] + 0 * log_px, rtol=1e-6)
    plain = np.asarray(terms_of(model, params, KEY, batch, 2, False).log_px)
    assert not np.allclose(plain, log_px)


@pytest.mark.slow
def test_weighted_objective_fits_the_network_of_y_alone_to_the_weights(batch):
    model = mixture("conditional")
    params = some_params(model)
    objective = objectives.importance_weighted(3)

    def loss(params):
        terms = model.terms(params, KEY, batch, 3)
        return objective.loss(terms, 1.0).sum()

    def bound(params):
        terms = model.terms(params, KEY, batch, 3)
        return -objectives.importance_weighted_bound(terms).sum()

    np.testing.assert_allclose(jax.jit(loss)(params), jax.jit(bound)(params), rtol=1e-6)
    slopes, plain = (jax.jit(jax.grad(f))(params) for f in (loss, bound))
    # q(y|x) does not occur in the bound
    for leaf in jax.tree.leaves(plain["clusters"]["logits"]):
        np.testing.assert_array_equal(leaf, 0.0)
    for one, two in zip(
        jax.tree.leaves(slopes["decoder"]),
        jax.tree.leaves(plain["decoder"]),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    # cross-entropy of a softmax: q(y|x) - r for each cell
    terms = terms_of(model, params, KEY, batch, 3)
    log_weight = terms.log_px + terms.log_py + terms.log_pz - terms.log_qz
    r = jax.nn.softmax(jax.nn.logsumexp(log_weight, axis=0), axis=-1)
    expected = (jnp.exp(terms.log_qy[0]) - r).sum(axis=0)
    np.testing.assert_allclose(
        slopes["clusters"]["logits"]["bias"], expected, rtol=1e-4, atol=1e-5
    )


def test_free_nats_of_y(batch):
    model = mixture("conditional")
    terms = terms_of(model, some_params(model), KEY, batch, 1)
    parts = objectives.elbo_parts(terms)
    assert 0 < float(parts.kl_y.max()) < 5
    loss = objectives.elbo(free_nats_y=5.0).loss(terms, 0.5)
    expected = 0.5 * (parts.kl_z + 5.0) - parts.log_likelihood
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def dots(jaxpr, size):
    """Matrix products of a program that have an axis of this size, loops unrolled."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
            found += any(size in shape for shape in shapes)
        repeats = equation.params.get("length", 1)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += repeats * dots(inner, size)
    return found


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_gene_wide_encoder_product_once_per_cell(posterior):
    n_genes, n_cells = 97, 11
    model = models.gmvae(
        [models.Modality("rna", n_genes, likelihoods.poisson())],
        n_clusters=5,
        posterior=posterior,
        n_latent=2,
        hidden_sizes=(7, 6),
    )
    params = model.init(KEY)
    batch = batches.dense_batch(jnp.ones((n_cells, n_genes)))
    jaxpr = jax.make_jaxpr(model.encode)(params, batch)
    assert dots(jaxpr.jaxpr, n_genes) == 1
    # and in the compiled program of a whole bound: rows of the gene-wide products
    terms = jax.jit(model.terms, static_argnums=(3, 4))
    lowered = terms.lower(params, KEY, batch, 1, False)
    products = [
        line
        for line in lowered.as_text().splitlines()
        if "dot_general" in line and f"x{n_genes}xf32" in line.replace(">", "x")
    ]
    encoder = [line for line in products if f"tensor<{n_genes}x7xf32>" in line]
    assert len(encoder) == 1 and f"tensor<{n_cells}x{n_genes}xf32>" in encoder[0]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_components_against_scipy(covariance):
    random = np.random.default_rng(3)
    mean = random.normal(size=(N_CLUSTERS, N_LATENT))
    shape = (1, 1) if covariance == "shared" else mean.shape
    log_scale = 0.3 * random.normal(size=shape)
    lower = random.normal(size=(N_CLUSTERS, N_LATENT, N_LATENT))
    correlation = lower if covariance == "full" else None
    as_float = [
        None if v is None else jnp.asarray(v, jnp.float32)
        for v in (mean, log_scale, correlation)
    ]
    prior = latents.components(*as_float)
    z = random.normal(size=(4, N_LATENT))
    ours = prior.log_prob(jnp.asarray(z, jnp.float32)[:, None])
    scale = np.exp(np.broadcast_to(log_scale, mean.shape))
    q_mean, q_scale = (
        random.normal(size=(4, N_CLUSTERS, N_LATENT)),
        np.full((4, N_CLUSTERS, N_LATENT), 0.7),
    )
    q = latents.diagonal_normal(
        jnp.asarray(q_mean, jnp.float32), jnp.log(jnp.asarray(q_scale, jnp.float32))
    )
    divergence = latents.divergence(q, prior)
    assert ours.shape == divergence.shape == (4, N_CLUSTERS)
    for k in range(N_CLUSTERS):
        factor = np.diag(scale[k])
        if covariance == "full":
            factor = factor + np.tril(lower[k], -1)
        normal = stats.multivariate_normal(mean[k], factor @ factor.T)
        np.testing.assert_allclose(ours[:, k], normal.logpdf(z), rtol=1e-4)
        for b in range(4):
            by_hand = normal_divergence(
                q_mean[b, k], q_scale[b, k], mean[k], factor @ factor.T
            )
            np.testing.assert_allclose(divergence[b, k], by_hand, rtol=1e-4)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_scales_of_components_stay_within_a_factor_of_two(covariance):
    model = mixture(covariance=covariance)
    params = some_params(model)
    params["prior"]["departure"] = jnp.full((N_CLUSTERS, N_LATENT), 1e3)
    far = jnp.full((1, N_LATENT), 1.0)
    assert np.isfinite(model.infer(params, far)).all()
    params["prior"] |= {"log_scale": jnp.zeros((1, 1))}
    if covariance == "full":
        params["prior"]["correlation"] *= 0.0
    # from z = 0 to 1, log r of component a less that of b rises by sum (a - b) / s^2
    mean = np.asarray(params["prior"]["mean"], float)
    difference = (mean[0] - mean[1]).sum()
    log_r = np.asarray(model.infer(params, jnp.stack([0.0 * far[0], far[0]])), float)
    change = (log_r[1] - log_r[0])[0] - (log_r[1] - log_r[0])[1]
    assert difference / change == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "found n_clusters=0, expected a whole number, at least 1"),
        ({"posterior": "both"}, "found posterior='both', expected shared or conditi"),
        ({"component_covariance": "own"}, "found component_covariance='own', expected"),
        ({"mixture_weights": "even"}, "found mixture_weights='even', expected uniform"),
        ({"mixture_weights": (0.5, 0.5)}, "found 2 mixture_weights for 3 clusters"),
        ({"mixture_weights": (0.5, 0.4, 0.2)}, "found mixture_weights that sum to 1.1"),
        ({"mixture_weights": (1.0, 0.5, -0.5)}, "the least -0.5, expected positive"),
    ],
)
def test_errors(options, message):
    options = {"n_clusters": 3} | options
    with pytest.raises(InputError, match=message):
        models.gmvae([models.Modality("x", 4, likelihoods.poisson())], **options)


def test_given_weights_are_used(batch):
    weights = (0.7, 0.2, 0.1)
    model = mixture(weights=weights)
    params = some_params(model)
    assert "logits" not in params["prior"]
    params["prior"]["mean"] *= 0.0
    r = np.exp(model.infer(params, jnp.ones((2, N_LATENT))))
    np.testing.assert_allclose(r, [weights] * 2, rtol=1e-5)
