"""Calibration: exact where the model is the truth, by brute force elsewhere."""

import dataclasses
import warnings

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

import scvae_jax as sv
from scvae_jax import batches, calibration, measures, plots, prediction, preferences
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.checks import InputError, InputWarning
from scvae_jax.config import DataConfig

N_CELLS, N_GENES = 400, 30
N_OVERDISPERSED = 10


@pytest.fixture(scope="module")
def truth():
    """Counts of known distribution: the first genes overdispersed, the others Poisson.

    Given the depth, which is given, genes are independent, and z tells nothing.
    """
    random = np.random.default_rng(0)
    share = random.dirichlet(np.full(N_GENES, 3.0))
    depth = random.lognormal(np.log(150.0), 0.3, N_CELLS)
    log_theta = np.full(N_GENES, 15.0)
    log_theta[:N_OVERDISPERSED] = 0.0
    mean = depth[:, None] * share
    theta = np.exp(log_theta)
    x = random.poisson(random.gamma(theta, mean / theta))
    obs = pd.DataFrame(
        {"depth": depth, "part": ["train"] * 10 + ["validation"] * 10 + ["test"] * 380},
        index=[f"cell_{i}" for i in range(N_CELLS)],
    )
    adata = anndata.AnnData(scipy.sparse.csr_matrix(x.astype(np.float32)), obs=obs)
    adata.var_names = [f"gene_{g}" for g in range(N_GENES)]
    return adata, share, log_theta


def made(fitted, adata, config, data_config=None, profiles=None):
    """A model of `adata` as it begins, in the guise of a fitted one."""
    likelihood = named_likelihood(config)
    model = from_config(config, likelihood, n_genes=adata.n_vars)
    part = adata.obs.get("part", pd.Series("validation", adata.obs_names))
    return dataclasses.replace(
        fitted,
        model=model,
        params=model.init(jax.random.key(0), profiles),
        config=config,
        data_config=data_config or DataConfig(),
        genes=np.asarray(adata.var_names, dtype=str),
        batches=(),
        cells=np.asarray(adata.obs_names, dtype=str),
        split=part.to_numpy().astype(str),
        totals=None,
    )


def known(fitted, truth, likelihood, log_theta=None):
    """A model whose decoder gives the true shares whatever z."""
    adata, share, _ = truth
    config = sv.ModelConfig(likelihood=likelihood, n_latent=2, hidden_sizes=(8,))
    data_config = DataConfig(size_factor_key="depth", split_key="part")
    profiles = ((jnp.asarray(share), 10**9),)
    fitted = made(fitted, adata, config, data_config, profiles)
    if log_theta is not None:
        fitted.params["free"]["rna"]["log_dispersion"] = jnp.asarray(
            log_theta, jnp.float32
        )
    return fitted


@pytest.fixture(scope="module")
def models(truth, fitted):
    log_theta = truth[2]
    return {
        "poisson": known(fitted, truth, "poisson"),
        "negative_binomial": known(fitted, truth, "negative_binomial", log_theta),
        "zero_inflated_negative_binomial": known(
            fitted, truth, "zero_inflated_negative_binomial", log_theta
        ),
    }


@pytest.fixture(scope="module")
def found(truth, models):
    adata = truth[0].copy()
    two = {name: models[name] for name in ("poisson", "negative_binomial")}
    with pytest.warns(InputWarning, match="poisson, negative_binomial: one fit only"):
        return adata, sv.calibrate(adata, two, n_samples=2)


def test_the_true_family_is_uniform_and_a_poisson_is_not(found):
    _, result = found
    right, wrong = result["negative_binomial"], result["poisson"]
    n = 380 * N_GENES
    # the 1e-4 point of Kolmogorov's distribution
    assert right.summary["pit_distance"] < 2.2 / np.sqrt(n)
    assert wrong.summary["pit_distance"] > 8 / np.sqrt(n)
    # too narrow: the observed fall at both ends
    assert wrong.pit[0] > 0.07 and wrong.pit[-1] > 0.07
    statistic = scipy.stats.chisquare(right.pit * n, np.full(20, n / 20))
    assert statistic.pvalue > 1e-4
    assert right.summary["log_score"] > wrong.summary["log_score"] + 1
    by_gene = wrong.genes["pit_distance"].to_numpy()
    assert by_gene[:N_OVERDISPERSED].min() > 0.08
    assert by_gene[N_OVERDISPERSED:].max() < 2.2 / np.sqrt(380)


def test_by_chance_a_gene_is_off_by_its_effective_cells(found):
    """A gene that few of the cells may show is told by those few."""
    genes = found[1]["negative_binomial"].genes
    effective = genes["effective_cells"]
    assert effective.between(0.95 * 380, 380).all()
    ratio = genes["pit_distance"] * np.sqrt(effective)
    assert 0.6 < ratio.mean() < 0.9


def test_entries_weigh_as_much_as_they_may_show():
    """Kish: one of weight 1 and three of 1/3 are three."""
    zero = np.array([[0.0], [2 / 3], [2 / 3], [2 / 3]])
    x, nothing = np.ones((4, 1)), np.zeros((4, 1))
    predicted = prediction.Predicted(
        log_prob=np.log(np.full((4, 1), 0.5)),
        mean=x,
        variance=x,
        zero=zero,
        below=nothing,
        total=np.zeros((4, 3)),
    )
    sums = measures._sums(x, predicted, np.full((4, 1), 0.5))
    measured = measures.Measured(sums, np.zeros((1, 1)), np.zeros((4, 3)))
    table, _ = measures.table_of(measured, 4, np.array(["a"]))
    assert table["effective_cells"].item() == pytest.approx(3.0)


def test_expected_figures_of_the_true_family(found, truth):
    adata, share, log_theta = truth
    right = found[1]["negative_binomial"]
    where = (adata.obs["part"] == "test").to_numpy()
    depth = adata.obs["depth"].to_numpy()[where]
    x = adata.X.toarray()[where]
    mean, theta = depth[:, None] * share, np.exp(log_theta)
    np.testing.assert_allclose(right.genes["mean"], x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(right.genes["variance"], x.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(right.genes["zeros"], (x == 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        right.genes["expected_mean"], mean.mean(axis=0), rtol=1e-4
    )
    variance = (mean + mean**2 / theta).mean(axis=0) + mean.var(axis=0)
    np.testing.assert_allclose(right.genes["expected_variance"], variance, rtol=1e-3)
    frozen = scipy.stats.nbinom(theta, theta / (theta + mean))
    np.testing.assert_allclose(
        right.genes["expected_zeros"], frozen.pmf(0).mean(axis=0), rtol=1e-3
    )
    np.testing.assert_allclose(
        right.genes["log_score"], frozen.logpmf(x).mean(axis=0), rtol=1e-3
    )
    assert right.summary["log_score"] == pytest.approx(
        frozen.logpmf(x).sum(axis=1).mean(), rel=1e-4
    )
    assert abs(right.summary["totals_within_95"] - 0.95) < 0.04
    assert found[1]["poisson"].summary["totals_within_95"] < 0.85
    assert abs(right.summary["variance_ratio"] - 1) < 0.1
    assert list(right.cells.index) == list(adata.obs_names[where])
    # about half of a cell is in its first hidden half
    assert abs(right.cells["total"].sum() / x.sum() - 0.5) < 0.02


def test_genes_prefer_the_family_that_made_them(found):
    var = found[0].var
    assert (var["scvae_family"][:N_OVERDISPERSED] == "negative_binomial").all()
    # both families give these genes the same distribution
    either = "poisson | negative_binomial"
    assert (var["scvae_family"][N_OVERDISPERSED:] == either).all()
    assert (var["scvae_gain_negative_binomial"][:N_OVERDISPERSED] > 0.05).all()
    assert (var["scvae_gain_q_negative_binomial"][:N_OVERDISPERSED] < 0.05).all()
    gain = var["scvae_log_score_negative_binomial"] - var["scvae_log_score_poisson"]
    np.testing.assert_allclose(var["scvae_gain_negative_binomial"], gain, atol=1e-6)


def test_three_families(truth, models, tmp_path):
    """With a zero inflation of a half, which is wrong, the two others win."""
    adata = truth[0].copy()
    with pytest.warns(InputWarning, match="one fit only"):
        result = sv.calibrate(adata, models, n_samples=2, key_added="own")
    families = adata.var["own_family"]
    assert (families[:N_OVERDISPERSED] == "negative_binomial").all()
    assert (families[N_OVERDISPERSED:] == "poisson | negative_binomial").all()
    inflated = result["zero_inflated_negative_binomial"].summary
    assert inflated["expected_zeros"] > 0.5 > inflated["zeros"]
    assert (adata.var["own_gain_zero_inflated_negative_binomial"] < 0).any()
    adata.write_h5ad(tmp_path / "written.h5ad")
    again = anndata.read_h5ad(tmp_path / "written.h5ad")
    pd.testing.assert_frame_equal(again.var, adata.var)
    plots.calibration(result, tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


FAMILIES = {
    "poisson": ("poisson", {}),
    "negative_binomial": ("negative_binomial", {}),
    "zero_inflated": ("zero_inflated_negative_binomial", {}),
    "categorised": ("categorised_negative_binomial", {"k_max": 2}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_distribution_functions(family):
    """P(X < x) against scipy, in the mean over samples."""
    name, options = FAMILIES[family]
    likelihood = sv.likelihoods.from_name(name, **options)
    random = np.random.default_rng(1)
    n_samples, n = 3, 40
    log_mean = random.normal(1.5, 1.5, (n_samples, n)).astype(np.float32)
    log_theta = random.normal(0.5, 1.0, (n_samples, n)).astype(np.float32)
    logit = random.normal(0.0, 1.0, (n_samples, n)).astype(np.float32)
    classes = random.normal(0.0, 1.0, (n_samples, n, 3)).astype(np.float32)
    params = {"log_mean": log_mean, "log_dispersion": log_theta}
    params |= {"zero_logit": logit, "class_logits": classes}
    x = np.concatenate([np.arange(30), random.integers(30, 400, 10)])
    mean, theta = np.exp(log_mean.astype(float)), np.exp(log_theta.astype(float))
    binomial = scipy.stats.nbinom(theta, theta / (theta + mean))
    if family == "poisson":
        expected = scipy.stats.poisson(mean).cdf(x - 1)
    elif family == "negative_binomial":
        expected = binomial.cdf(x - 1)
    elif family == "zero_inflated":
        pi = scipy.special.expit(logit)
        expected = np.where(x > 0, pi + (1 - pi) * binomial.cdf(x - 1), 0.0)
    else:
        pi = scipy.special.softmax(classes, axis=-1)
        low = np.where(x > 0, pi[..., 0], 0.0) + np.where(x > 1, pi[..., 1], 0.0)
        expected = low + pi[..., 2] * binomial.cdf(x - 3)
    below = prediction._below(
        likelihood.log_prob,
        jax.tree.map(jnp.asarray, params),
        jnp.arange(n),
        jnp.asarray(x, jnp.float32),
    )
    np.testing.assert_allclose(below, expected.mean(axis=0), atol=1e-5)


@pytest.fixture(scope="module")
def cells(small, fitted):
    data = sv.counts.prepare(small, fitted.data_config)
    return sv.selection.cells_to_device(data, slice(None))


def predicted(fitted, cells, key, *, n_samples=4, batch_size=60):
    (index, weight), n_slots = batches.in_order(cells, batch_size)
    position = (index[0], weight[0])
    found = prediction.predict(
        fitted.model,
        fitted.params,
        cells,
        position,
        n_slots,
        n_samples=n_samples,
        key=key,
    )
    return found, batches.cut(cells, *position, len(fitted.genes), n_slots)


def hidden_in(key, half, shape):
    return np.asarray(jax.random.bernoulli(jax.random.split(key)[0], 0.5, shape)) ^ half


def test_predictions_by_brute_force(fitted, cells):
    """Each half in turn from a dense batch, with a loop over samples."""
    key, n_samples = jax.random.key(3), 4
    found, batch = predicted(fitted, cells, key, n_samples=n_samples)
    x = np.asarray(batch.counts[0].x)
    likelihood = fitted.likelihood
    log_prob, decode = jax.jit(likelihood.log_prob), jax.jit(fitted.model.decode)
    for half in (False, True):
        hidden = hidden_in(key, half, x.shape)
        # the encoder reads log1p: twice as much of what is seen
        seen = np.where(hidden, 0.0, np.expm1(2.0 * np.log1p(x)))
        given = batches.dense_batch(
            seen, depth=batch.counts[0].depth, categorical=batch.categorical
        )
        posterior = fitted.model.encode(fitted.params, given)
        key_z = jax.random.fold_in(jax.random.split(key)[1], int(half))
        z = posterior.sample(seed=key_z, sample_shape=(n_samples,))
        decoded = [decode(fitted.params, one, given)[0] for one in z]
        p = np.mean([np.exp(log_prob(x, d)) for d in decoded], axis=0)
        means = np.stack([likelihood.mean(d) for d in decoded])
        variance = np.mean([likelihood.variance(d) for d in decoded], axis=0)
        np.testing.assert_allclose(
            found.log_prob[hidden], np.log(p)[hidden], rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(
            found.mean[hidden], means.mean(axis=0)[hidden], rtol=1e-3
        )
        np.testing.assert_allclose(
            found.variance[hidden],
            (variance + means.var(axis=0))[hidden],
            rtol=1e-3,
        )
        below = np.zeros(x.shape)
        for k in range(int(x.max())):
            zeros = np.full(x.shape, k, np.float32)
            p = np.mean([np.exp(log_prob(zeros, d)) for d in decoded], axis=0)
            below += np.where(k < x, p, 0.0)
            if k == 0:
                np.testing.assert_allclose(found.zero[hidden], p[hidden], rtol=1e-3)
        np.testing.assert_allclose(found.below[hidden], below[hidden], atol=1e-4)
        if not half:
            expected = np.where(hidden, means, 0.0).sum(axis=2)
            within = np.where(hidden, variance, 0.0).sum(axis=1)
            total = np.where(hidden, x, 0.0).sum(axis=1)
            sd = np.sqrt(within + expected.var(axis=0))
            columns = np.stack([total, expected.mean(axis=0), sd], axis=1)
            np.testing.assert_allclose(found.total, columns, rtol=1e-3)


def test_the_encoder_never_sees_what_is_scored(fitted, cells, small):
    """Other counts in the first hidden half change nothing of its predictions."""
    key = jax.random.key(4)
    one, batch = predicted(fitted, cells, key)
    hidden = hidden_in(key, False, batch.counts[0].x.shape)
    rows = np.asarray(batch.cell)
    changed = small.X.toarray()
    changed[rows] = np.where(hidden, changed[rows] + 7, changed[rows])
    # the depth stays: the decoder is given it
    other_cells = batches.to_device(
        scipy.sparse.csr_matrix(changed), np.asarray(cells.depth), cells.categorical
    )
    other, _ = predicted(fitted, other_cells, key)
    np.testing.assert_allclose(one.mean[hidden], other.mean[hidden], rtol=1e-5)
    np.testing.assert_allclose(one.zero[hidden], other.zero[hidden], rtol=1e-5)
    # and the other half, predicted from it, does change
    assert np.abs(one.mean[~hidden] / other.mean[~hidden] - 1).max() > 1e-3


def test_binary_data_is_doubled_as_it_is():
    batch = batches.dense_batch(np.array([[1.0, 0.0, 1.0]]))
    hidden = jnp.array([[True, False, False]])
    for name, expected in (("bernoulli", [0, 0, 2]), ("poisson", [0, 0, 3])):
        likelihood = sv.likelihoods.from_name(name)
        given = prediction.hide(batch, hidden, likelihood)
        np.testing.assert_array_equal(given.counts[0].x, [expected])


def test_a_mixture_and_padding(small, fitted):
    """The conditional posterior too; the cells of a short last batch count once."""
    config = sv.ModelConfig(
        model="gmvae",
        n_clusters=2,
        posterior="conditional",
        n_latent=2,
        hidden_sizes=(8,),
    )
    fitted = made(fitted, small, config)
    adata = small.copy()
    (found,) = sv.calibrate(adata, fitted, split="all", batch_size=50).values()
    assert found.summary["n_cells"] == len(found.cells) == 120
    np.testing.assert_allclose(found.genes["mean"], small.X.mean(axis=0).A1, rtol=1e-6)
    assert np.isfinite(found.genes.to_numpy()).all()
    assert found.pit.sum() == pytest.approx(1)
    kept = ["dispersion", "scvae_log_score_negative_binomial"]
    assert list(adata.var) == [*kept, "scvae_pit_distance_negative_binomial"]


def test_same_seed_same_bits_and_nothing_else_written(fitted, small):
    one, two, other = (small.copy() for _ in range(3))
    found = [
        sv.calibrate(adata, fitted, seed=seed, n_samples=2)["negative_binomial"]
        for adata, seed in ((one, 0), (two, 0), (other, 1))
    ]
    assert found[0].summary == found[1].summary
    pd.testing.assert_frame_equal(one.var, two.var)
    assert found[0].summary != found[2].summary
    pd.testing.assert_frame_equal(one.obs, small.obs)
    assert abs(one.X - small.X).nnz == 0
    assert found[0].summary["split"] == "validation"


def test_a_view_with_genes_of_its_own(fitted, small):
    """Genes in another order, and one that the model does not know."""
    x = scipy.sparse.hstack([small.X, small.X[:, :1]], format="csr")
    wide = anndata.AnnData(x, obs=small.obs.copy())
    wide.var_names = [*small.var_names, "stranger"]
    view = wide[:, ::-1]
    with pytest.warns(InputWarning, match="^1 of 41 genes are not in the model"):
        sv.calibrate(view, fitted, n_samples=2)
    own = small.copy()
    sv.calibrate(own, fitted, n_samples=2)
    assert not view.is_view and list(wide.var) == []
    name = "scvae_log_score_negative_binomial"
    assert np.isnan(view.var.loc["stranger", name])
    np.testing.assert_array_equal(
        view.var.loc[own.var_names, name], own.var[name].to_numpy()
    )


def test_what_was_preferred_of_other_models_is_gone(small):
    adata = small.copy()
    for name in ("family", "gain_b", "gain_q_b", "log_score_b", "gained"):
        adata.var[f"scvae_{name}"] = 1.0
    fields = {"log_score_a": np.arange(40.0)}
    calibration._write(adata, adata.var_names.to_numpy(), fields, "scvae")
    expected = {"scvae_log_score_a", "scvae_log_score_b", "scvae_gained"}
    assert {name for name in adata.var if name.startswith("scvae_")} == expected


def test_false_positives_of_sparse_genes():
    """Two equally wrong Poissons: as few differences as the test says, at 20 seen."""
    random = np.random.default_rng(2)
    n_cells, n_genes, rate = 400, 3000, 20 / 400
    x = random.poisson(rate, (n_cells, n_genes))
    # E log p is the same for a and b: rate log a - a = rate log b - b
    a, b = rate * 0.8, None
    b = scipy.optimize.brentq(
        lambda b: rate * np.log(b / a) - b + a, rate * 1.01, rate * 2
    )
    difference = scipy.stats.poisson(b).logpmf(x) - scipy.stats.poisson(a).logpmf(x)
    p = preferences.two_sided(
        difference.mean(axis=0),
        difference.var(axis=0) / (n_cells - 1),
        (),
        n_cells,
        np.ones(n_genes, bool),
    )
    assert 0.03 < (p < 0.05).mean() < 0.08


def test_the_spread_between_fits_counts():
    mean, of_cells = np.full(4, 0.2), np.full(4, 0.01)
    tested = np.array([True, True, True, False])
    alone = preferences.two_sided(mean, of_cells, (), 11, tested)
    expected = 2 * scipy.stats.t(10).sf(2.0)
    # to 1e-5 nats, below which no difference counts
    np.testing.assert_allclose(alone, expected, rtol=1e-3)
    of_fits = [(np.array([0.0, 0.0, 0.09, 9.0]), 2), (np.full(4, 0.01), 1)]
    spread = preferences.two_sided(mean, of_cells, of_fits, 11, tested)
    # the mean share over tested genes is 3; a gene with more keeps its own. That of
    # the other model is 1
    share = np.array([3.0, 3.0, 9.0, 900.0])
    # few degrees of freedom know little of it
    df = (2 + share) ** 2 / (1 / 10 + share**2 / 2 + 1 / 1)
    error = np.sqrt(0.01 * (2 + share))
    np.testing.assert_allclose(spread, 2 * scipy.stats.t(df).sf(0.2 / error), rtol=1e-3)
    np.testing.assert_array_equal(
        preferences.two_sided(mean, np.zeros(4), (), 11, tested), 1
    )


def test_few_fits_find_no_more_than_the_rate():
    """Of genes whose fits spread far more than others', at two fits of each model."""
    random = np.random.default_rng(4)
    n_genes, of_cells = 40_000, 0.01
    # a tenth of the genes; the others hold the pooled share at about 1
    true = np.where(np.arange(n_genes) < n_genes // 10, 20.0, 0.2) * of_cells
    # two fits of one model; those of the other hardly differ
    of_fits = [(true * random.chisquare(1, n_genes), 1), (np.full(n_genes, 1e-9), 1)]
    mean = random.normal(size=n_genes) * np.sqrt(of_cells + true)
    p = preferences.two_sided(
        mean, np.full(n_genes, of_cells), of_fits, 400, np.ones(n_genes, bool)
    )
    assert (p[: n_genes // 10] < 0.001).mean() < 0.002


def test_further_fits_are_averaged(truth, models):
    """Two fits that disagree make a gene undecided; two alike do not."""
    name = "negative_binomial"
    good = models[name]
    bad = dataclasses.replace(
        good, params=models[name].params | {"free": {"rna": {"log_dispersion": None}}}
    )
    shifted = jnp.asarray(truth[2] - 4.0, jnp.float32)
    bad.params["free"] = {"rna": {"log_dispersion": shifted}}
    families = []
    for other in (good, bad):
        adata = truth[0].copy()
        given = {
            "poisson": dataclasses.replace(
                models["poisson"], alternatives=(models["poisson"],)
            ),
            name: dataclasses.replace(good, alternatives=(other,)),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = sv.calibrate(adata, given, n_samples=2)
        assert result[name].summary["n_fits"] == 2
        families.append(adata.var["scvae_family"][:N_OVERDISPERSED])
    assert (families[0] == name).all()
    assert (families[1] != name).any()


def test_fits_by_other_settings_are_no_replicates(truth, models):
    model = models["poisson"]

    def with_rate(rate, seed):
        config = dataclasses.replace(
            model.train_config, learning_rate=rate, seed=model.train_config.seed + seed
        )
        return dataclasses.replace(model, train_config=config)

    rate = model.train_config.learning_rate
    other = dataclasses.replace(
        model, config=dataclasses.replace(model.config, dropout_hidden=0.4)
    )
    fits = (with_rate(rate, 1), with_rate(2 * rate, 0), other)
    given = dataclasses.replace(model, alternatives=fits)
    found = sv.calibrate(truth[0].copy(), given, n_samples=1)
    assert found["poisson"].summary["n_fits"] == 2


def test_totals_of_cells_whose_total_is_given(truth, fitted):
    """A library mean knows the sum of both halves of a cell."""
    _, share, _ = truth
    random = np.random.default_rng(1)
    depth = random.lognormal(np.log(150.0), 0.3, N_CELLS)
    x = random.poisson(depth[:, None] * share).astype(np.float32)
    obs = truth[0].obs[["part"]]
    adata = anndata.AnnData(scipy.sparse.csr_matrix(x), obs=obs)
    adata.var_names = truth[0].var_names
    config = sv.ModelConfig(likelihood="poisson", n_latent=2, hidden_sizes=(8,))
    profiles = ((jnp.asarray(share), 10**9),)
    model = made(fitted, adata, config, DataConfig(split_key="part"), profiles)
    found = sv.calibrate(adata, model, n_samples=2)["poisson"]
    assert abs(found.summary["totals_within_95"] - 0.95) < 0.04
    # of a binomial: N s (1 - s), with s the share of the half
    where = (obs["part"] == "test").to_numpy()
    total, half = x[where].sum(axis=1), found.cells["expected_total"]
    np.testing.assert_allclose(
        found.cells["expected_sd"], np.sqrt(half * (1 - half / total)), rtol=1e-3
    )


def test_totals_given_where_means_do_not_add_up(truth, fitted):
    """Of a zero-inflated family they are less than the total, by the share of zeros."""
    _, share, _ = truth
    random = np.random.default_rng(1)
    x = random.poisson(150.0 * share, (N_CELLS, len(share)))
    obs = truth[0].obs[["part"]]
    adata = anndata.AnnData(scipy.sparse.csr_matrix(x.astype(np.float32)), obs=obs)
    adata.var_names = truth[0].var_names
    config = sv.ModelConfig(
        likelihood="zero_inflated_poisson", n_latent=2, hidden_sizes=(8,)
    )
    # its zero logits start at 0: half of each mean
    profiles = ((jnp.asarray(share), 10**9),)
    model = made(fitted, adata, config, DataConfig(split_key="part"), profiles)
    (found,) = sv.calibrate(adata, model, n_samples=2).values()
    cells = found.cells
    off = (cells["expected_total"] - cells["total"]).mean()
    assert abs(off) < 0.05 * cells["total"].mean()
    assert found.summary["totals_within_95"] > 0.9


def test_spread_of_large_totals():
    """Of which the squares, of 1e11 and more, would not tell the spread in float32."""
    random = np.random.default_rng(0)
    n_genes, n_samples, total = 60, 100, 5e5
    share = random.dirichlet(np.full(n_genes, 30.0))
    # a decoder that shares out the total, and lets it vary by a little
    log_mean = jnp.asarray(np.log(share * total), jnp.float32)
    likelihood = sv.likelihoods.poisson(mean="free")
    modality = sv.Modality("rna", n_genes, likelihood)
    model = sv.vae([modality], n_latent=1, hidden_sizes=())
    spread = 1e-3

    def decode(params, z, batch, key=None):
        return ({"log_mean": log_mean[None] + spread * z},)

    model = model._replace(decode=decode)
    params = model.init(jax.random.key(0))
    x = scipy.sparse.csr_matrix(random.poisson(share * total, (5, n_genes)) * 1.0)
    cells = batches.to_device(x, np.full(5, total), np.zeros((5, 1), int))
    (index, weight), n_slots = batches.in_order(cells, 5)
    position = (index[0], weight[0])
    key = jax.random.key(1)
    found = prediction.predict(
        model,
        params,
        cells,
        position,
        n_slots,
        n_samples=n_samples,
        key=key,
        # sums of ten thousand terms
        with_below=False,
    )
    batch = batches.cut(cells, *position, n_genes, n_slots)
    hidden = hidden_in(key, False, (5, n_genes))
    seen = prediction.hide(batch, jnp.asarray(hidden), likelihood)
    posterior = model.encode(params, seen)
    key_z = jax.random.fold_in(jax.random.split(key)[1], 0)
    z = np.asarray(posterior.sample(seed=key_z, sample_shape=(n_samples,)), float)
    mean = np.exp(np.asarray(log_mean, float) + spread * z)
    totals = np.where(hidden, mean, 0.0).sum(axis=2)
    expected = totals.mean(axis=0) + totals.var(axis=0)
    np.testing.assert_allclose(found.total[:, 2] ** 2, expected, rtol=2e-3)
    variance = mean.mean(axis=0) + mean.var(axis=0)
    np.testing.assert_allclose(found.variance[hidden], variance[hidden], rtol=2e-3)


@pytest.mark.slow
def test_where_jax_has_64_bits(small):
    with jax.enable_x64(True):
        config = sv.ModelConfig(n_latent=2, hidden_sizes=(8,))
        fitted = sv.fit(small, config, sv.TrainConfig(epochs=1), progress=False)
        found = sv.calibrate(small.copy(), fitted, n_samples=2)["negative_binomial"]
    assert np.isfinite(found.summary["log_score"])


def test_the_rate_is_passed_on(truth, models, monkeypatch):
    asked = []
    monkeypatch.setattr(
        calibration, "preferences", lambda *given: asked.append(given[-1]) or {}
    )
    two = {name: models[name] for name in ("poisson", "negative_binomial")}
    with pytest.warns(InputWarning, match="one fit only"):
        sv.calibrate(truth[0].copy(), two, n_samples=1, false_discovery_rate=0.2)
    assert asked == [0.2]


def test_counts_of_a_layer(truth, models):
    adata = truth[0].copy()
    expected = sv.calibrate(adata.copy(), models["poisson"], n_samples=1)["poisson"]
    adata.layers["counts"], adata.X = adata.X, None
    found = sv.calibrate(adata, models["poisson"], n_samples=1, layer="counts")
    pd.testing.assert_frame_equal(found["poisson"].genes, expected.genes)


@pytest.mark.parametrize(
    ("what", "odd"),
    [
        ("batches", {"batches": ("x",)}),
        ("split", {"split": np.array(["test"] * N_CELLS)}),
        ("counts", {"totals": np.full(N_CELLS, 2.0)}),
    ],
)
def test_models_of_other_data_are_refused(truth, models, what, odd):
    first = dataclasses.replace(models["poisson"], totals=np.ones(N_CELLS))
    both = {"a": first, "b": dataclasses.replace(first, **odd)}
    with pytest.raises(InputError, match=f"found 'b' and 'a' of different {what}, exp"):
        sv.calibrate(truth[0].copy(), both)


def test_adjusted_p_values_by_hand():
    """q of the k-th smallest of m p-values: the least of m p_j / j over j >= k."""
    random = np.random.default_rng(3)
    n_cells, n_genes = 30, 12
    difference = random.normal(0.3, 1.0, (n_cells, n_genes))
    tested = np.arange(n_genes) < 10
    moments = np.stack([difference.sum(axis=0), (difference**2).sum(axis=0)])
    scores = {"a": np.zeros((1, n_genes)), "b": np.zeros((1, n_genes))}
    fields = preferences.preferences(
        scores, {("a", "b"): moments}, n_cells, tested, 0.2
    )
    p = scipy.stats.ttest_1samp(difference, 0.0).pvalue[tested]
    order = np.argsort(p)
    q = np.empty(10)
    least = 1.0
    for rank in range(10, 0, -1):
        least = min(least, 10 * p[order[rank - 1]] / rank)
        q[order[rank - 1]] = least
    np.testing.assert_allclose(fields["gain_q_b"][tested], q, rtol=1e-3)
    assert np.isnan(fields["gain_q_b"][~tested]).all()
    gain = difference.mean(axis=0)[tested]
    expected = np.where(q > 0.2, "a | b", np.where(gain > 0, "b", "a"))
    assert fields["family"][tested].tolist() == expected.tolist()
    assert 0 < (expected == "b").sum() < 10
    assert fields["family"][~tested].tolist() == [None, None]


def test_the_spread_of_fits_is_that_of_their_mean(monkeypatch):
    asked = []
    monkeypatch.setattr(
        preferences, "two_sided", lambda *given: asked.append(given) or np.ones(4)
    )
    random = np.random.default_rng(0)
    scores = {"a": random.normal(size=(2, 4)), "b": random.normal(size=(3, 4))}
    moments = {("a", "b"): np.stack([np.full(4, 6.0), np.full(4, 30.0)])}
    preferences.preferences(scores, moments, 10, np.ones(4, bool), 0.05)
    ((mean, of_cells, of_fits, _, _),) = asked
    np.testing.assert_allclose(mean, 0.6)
    np.testing.assert_allclose(of_cells, (3.0 - 0.36) / 9)
    for (found, freedom), of in zip(of_fits, scores.values(), strict=True):
        assert freedom == len(of) - 1
        np.testing.assert_allclose(found, of.var(axis=0, ddof=1) / len(of))


def test_scores_of_each_fit_are_its_own(truth, models, monkeypatch):
    name, seen = "negative_binomial", []
    real = calibration.preferences
    monkeypatch.setattr(
        calibration, "preferences", lambda *given: seen.append(given) or real(*given)
    )
    good = models[name]
    free = {"rna": {"log_dispersion": jnp.asarray(truth[2] - 4.0, jnp.float32)}}
    bad = dataclasses.replace(good, params=good.params | {"free": free})
    two = dataclasses.replace(good, alternatives=(bad,))
    options = {"n_samples": 2}
    with pytest.warns(InputWarning, match="poisson: one fit only"):
        found = sv.calibrate(
            truth[0].copy(), {"poisson": models["poisson"], name: two}, **options
        )
    ((scores, moments, n_cells, _, _),) = seen
    for fit, score in zip((good, bad), scores[name], strict=True):
        (alone,) = sv.calibrate(truth[0].copy(), {name: fit}, **options).values()
        np.testing.assert_allclose(score, alone.genes["log_score"], rtol=1e-4)
    mean = scores[name].mean(axis=0)
    np.testing.assert_allclose(found[name].genes["log_score"], mean, rtol=1e-4)
    gain = mean - scores["poisson"][0]
    ((total, _),) = moments.values()
    np.testing.assert_allclose(total / n_cells, gain, rtol=1e-3, atol=1e-5)


def test_genes_that_few_cells_show_prefer_nothing(truth, models):
    adata = truth[0].copy()
    x = adata.X.toarray()
    x[20:, :2] = 0.0
    x[20:39, 0] = x[20:40, 1] = 1.0
    adata.X = scipy.sparse.csr_matrix(x)
    with pytest.warns(InputWarning, match="one fit only"):
        sv.calibrate(
            adata,
            {name: models[name] for name in ("poisson", "negative_binomial")},
            n_samples=1,
        )
    missing = adata.var["scvae_family"].isna()
    assert missing.tolist() == [True] + [False] * (N_GENES - 1)
    q = adata.var["scvae_gain_q_negative_binomial"]
    np.testing.assert_array_equal(q.isna(), missing)


def test_what_is_refused(truth, models, fitted, small):
    adata, poisson = truth[0], models["poisson"]
    # of one's own, whatever its options are called
    free = sv.Modality("rna", N_GENES, sv.likelihoods.poisson(mean="free"))
    other_option = dataclasses.replace(
        poisson, model=poisson.model._replace(modalities=(free,)), own_likelihood=True
    )
    normal = dataclasses.replace(
        poisson,
        model=poisson.model._replace(
            modalities=(sv.Modality("rna", N_GENES, sv.likelihoods.gaussian()),)
        ),
    )
    moved = dataclasses.replace(
        poisson,
        data_config=dataclasses.replace(poisson.data_config, size_factor_key=None),
        genes=poisson.genes[::-1],
    )
    cases = [
        ((adata, "run"), {}, "found a str, expected a fitted model after the AnnD"),
        (("cells.h5ad", poisson), {}, "found a str, expected an AnnData object"),
        ((adata, {}), {}, "found a dict, expected a fitted model"),
        ((adata, {"a": 1}), {}, "found a dict, expected a fitted model"),
        ((adata, normal), {}, "with a gaussian likelihood, expected families of count"),
        (
            (adata, {"a": poisson, "b": moved}),
            {},
            "found 'b' and 'a' of different data options, genes, expected models of",
        ),
        (
            (adata, {"a": models["negative_binomial"], "b": other_option}),
            {},
            "found 'b' and 'a' of different reading of a cell's depth .*, expected",
        ),
        (
            (adata, {"nb": poisson, "b": poisson, "q_b": poisson}),
            {},
            "found models b and q_b, of which fields of var would have the same",
        ),
        ((adata, poisson), {"n_samples": 0}, "found n_samples=0, expected a whole"),
        (
            (adata, poisson),
            {"false_discovery_rate": 1.0},
            "found false_discovery_rate=1.0, expected a number between 0 and 1",
        ),
        ((small, fitted), {"split": "test"}, "found no test cells"),
    ]
    for given, options, message in cases:
        before = [cells.var.copy() for cells in (adata, small)]
        with pytest.raises(InputError, match=message):
            sv.calibrate(*given, **options)
        for cells, var in zip((adata, small), before, strict=True):
            pd.testing.assert_frame_equal(cells.var, var)


def test_fractions_have_no_distribution_function(truth, models):
    adata = truth[0].copy()
    adata.X = adata.X * 0.5
    model = models["poisson"]
    config = dataclasses.replace(model.data_config, fractional="allow")
    with (
        pytest.warns(InputWarning, match="are fractional and are taken as they are"),
        pytest.raises(InputError, match="found fractional counts, expected whole"),
    ):
        sv.calibrate(adata, dataclasses.replace(model, data_config=config))


def test_counts_without_a_transform_are_said(truth, models, monkeypatch):
    monkeypatch.setattr(prediction, "LARGEST", 12)
    adata = truth[0].copy()
    test = adata[adata.obs["part"] == "test"].X
    n = int((test.toarray() > 12).sum())
    with pytest.warns(InputWarning, match=f"{n} counts above 12 are left out of the p"):
        (found,) = sv.calibrate(adata, models["poisson"], n_samples=2).values()
    assert found.pit.sum() == pytest.approx(1)
    assert found.pit[-1] < 0.07
