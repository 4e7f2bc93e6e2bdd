"""Likelihoods against references: one table drives the tests of all families."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

from scvae_jax import likelihoods
from scvae_jax.likelihoods import Covariates, Likelihood, total_log_prob

mpmath.mp.dps = 50
K_MAX = 3
N_GENES = 4
N_BATCHES = 2
# what each parameter is in an ordinary data set, one value a gene
MODERATE = {
    "log_mean": np.log([0.02, 0.8, 6.0, 30.0]),
    "log_dispersion": np.log([0.4, 2.0, 50.0, 1e4]),
    "zero_logit": np.array([-3.0, 0.5, 2.0, -20.0]),
    "class_logits": np.random.default_rng(0).normal(size=(N_GENES, K_MAX + 1)),
    "logit": np.array([-2.0, 0.0, 0.3, 4.0]),
    "mean": np.array([-1.0, 0.0, 0.5, 20.0]),
    "log_scale": np.array([0.0, -2.0, 1.5, 0.3]),
}
# the range in which values and gradients are promised to be finite
EXTREME = {
    "log_mean": np.log([1e-8, 1e-2, 1.0, 30.0, 1e4, 1e6]),
    "log_dispersion": np.log([1e-4, 0.1, 1.0, 300.0, 1e5, 1e8]),
    "zero_logit": np.array([-80.0, -3.0, 0.0, 20.0, 80.0]),
    "class_logits": 80.0 * np.array([[1, 0, -1, 0], [-1, 1, 1, 1], [0, 0, 0, -1.0]]),
    "logit": np.array([-80.0, -3.0, 0.0, 20.0, 80.0]),
    "mean": np.array([-1e6, -1.0, 0.0, 1e6]),
    "log_scale": np.log([1e-4, 1.0, 1e8]),
}


@pytest.fixture(scope="module", autouse=True)
def as_users_have_them():
    """Digits are those of programs compiled with all optimisations, as elsewhere."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# --- references at 50 digits: x and params are numbers of mpmath ----------------------


def poisson_reference(x, p):
    return x * p["log_mean"] - mpmath.exp(p["log_mean"]) - mpmath.loggamma(x + 1)


def negative_binomial_reference(x, p):
    mean, theta = mpmath.exp(p["log_mean"]), mpmath.exp(p["log_dispersion"])
    binomial = mpmath.loggamma(x + theta) - mpmath.loggamma(theta)
    return (
        binomial
        - mpmath.loggamma(x + 1)
        + theta * mpmath.log(theta / (theta + mean))
        + x * mpmath.log(mean / (theta + mean))
    )


def bernoulli_reference(x, p):
    return -mpmath.log(1 + mpmath.exp((1 - 2 * x) * p["logit"]))


def gaussian_reference(x, p):
    standard = (x - p["mean"]) / mpmath.exp(p["log_scale"])
    return -(standard**2) / 2 - p["log_scale"] - mpmath.log(2 * mpmath.pi) / 2


def zero_inflated_reference(base):
    def reference(x, p):
        zero = 1 / (1 + mpmath.exp(-p["zero_logit"]))
        return mpmath.log((x == 0) * zero + (1 - zero) * mpmath.exp(base(x, p)))

    return reference


def categorised_reference(base):
    def reference(x, p):
        log_total = mpmath.log(sum(mpmath.exp(logit) for logit in p["class_logits"]))
        if x < K_MAX:
            return p["class_logits"][int(x)] - log_total
        return p["class_logits"][K_MAX] - log_total + base(x - K_MAX, p)

    return reference


# --- the table ------------------------------------------------------------------------


def negative_binomial_scipy(x, p):
    mean, theta = np.exp(p["log_mean"]), np.exp(p["log_dispersion"])
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean))


class Family(NamedTuple):
    name: str  # under which `from_name` makes it
    reference: Callable  # log-probability in mpmath
    scipy: Callable | None  # log-probability in scipy, where it has the family
    support: str

    def make(self, **options) -> Likelihood:
        return likelihoods.from_name(self.name, **options)

    def params(self, values=MODERATE) -> dict[str, np.ndarray]:
        likelihood = self.make()
        return {p.name: values[p.name] for p in (*likelihood.heads, *likelihood.free)}

    def values(self, *, fractional: bool = False) -> np.ndarray:
        if self.support == "binary":
            return np.array([0.0, 1.0])
        if self.support == "real":
            return np.array([-30.0, -1.0, 0.0, 0.7, 1e3])
        counts = [0, 1, 2, 3, 5, 17, 200, 4000]
        between = [0.3, 2.5] if fractional and self.support == "counts" else []
        return np.array(counts + between, float)


FAMILIES = [
    Family(
        "poisson",
        poisson_reference,
        lambda x, p: stats.poisson.logpmf(x, np.exp(p["log_mean"])),
        "counts",
    ),
    Family(
        "negative_binomial",
        negative_binomial_reference,
        negative_binomial_scipy,
        "counts",
    ),
    Family(
        "zero_inflated_poisson",
        zero_inflated_reference(poisson_reference),
        None,
        "counts",
    ),
    Family(
        "zero_inflated_negative_binomial",
        zero_inflated_reference(negative_binomial_reference),
        None,
        "counts",
    ),
    Family(
        "categorised_poisson",
        categorised_reference(poisson_reference),
        None,
        "integers",
    ),
    Family(
        "categorised_negative_binomial",
        categorised_reference(negative_binomial_reference),
        None,
        "integers",
    ),
    Family(
        "bernoulli",
        bernoulli_reference,
        lambda x, p: stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-p["logit"]))),
        "binary",
    ),
    Family(
        "gaussian",
        gaussian_reference,
        lambda x, p: stats.norm.logpdf(x, p["mean"], np.exp(p["log_scale"])),
        "real",
    ),
]
NAMED = {family.name: family for family in FAMILIES}
COUNT_FAMILIES = [f for f in FAMILIES if f.support in ("counts", "integers")]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
every_count_family = pytest.mark.parametrize(
    "family", COUNT_FAMILIES, ids=lambda f: f.name
)

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def these(*names: str):
    """The families of these names: those that hold the others as their parts."""
    chosen = [NAMED[name] for name in names]
    return pytest.mark.parametrize("family", chosen, ids=lambda f: f.name)


# --- helpers --------------------------------------------------------------------------


def precision(dtype: str):
    return jax.enable_x64(dtype == "float64")


def cast(params: dict, dtype: str = "float32") -> dict:
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


def trailing(name: str) -> int:
    """The number of axes that come after the batch shape."""
    return 1 if name == "class_logits" else 0


def spread(params: dict, shape: tuple[int, ...]) -> dict:
    """Params broadcast to a batch shape."""
    return {
        name: np.broadcast_to(value, shape + value.shape[value.ndim - trailing(name) :])
        for name, value in params.items()
    }


def pairs(x: np.ndarray, params: dict) -> tuple[np.ndarray, dict]:
    """Every x with every gene of the params: [N] and [N, ...]."""
    n = len(x)
    repeated = {
        name: np.tile(p, (n,) + (1,) * (p.ndim - 1)) for name, p in params.items()
    }
    return np.repeat(x, N_GENES), repeated


def mesh(x: np.ndarray, values: dict) -> tuple[np.ndarray, dict]:
    """Every combination of x and the params: [N] and [N, ...]."""
    index = np.meshgrid(
        np.arange(len(x)), *(np.arange(len(v)) for v in values.values()), indexing="ij"
    )
    params = {
        name: v[i.ravel()]
        for (name, v), i in zip(values.items(), index[1:], strict=True)
    }
    return x[index[0].ravel()], params


def exact(array) -> mpmath.mpf | list:
    """Floats of any type as numbers of mpmath."""
    array = np.asarray(array, float)
    return [mpmath.mpf(a) for a in array] if array.ndim else mpmath.mpf(float(array))


def references(family: Family, x, params: dict) -> np.ndarray:
    rows = [{name: exact(p[i]) for name, p in params.items()} for i in range(len(x))]
    return np.array(
        [float(family.reference(exact(x[i]), r)) for i, r in enumerate(rows)]
    )


def flat_reference(family: Family, x, params: dict) -> tuple[Callable, list]:
    """The reference as a function of numbers in the order of `ravel_pytree`."""
    parts = {name: np.atleast_1d(params[name]) for name in sorted(params)}

    def reference(*flat):
        rest, p = list(flat), {}
        for name, part in parts.items():
            own, rest = rest[: part.size], rest[part.size :]
            p[name] = own if trailing(name) else own[0]
        return family.reference(x, p)

    return reference, [a for part in parts.values() for a in exact(part)]


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(function: Callable, params: dict) -> tuple[jax.Array, dict]:
    """An array, and the gradient of its sum."""
    value, pull = jax.vjp(function, params)
    return value, *pull(jnp.ones_like(value))


def flat_derivative(likelihood: Likelihood, derivative: Callable) -> Callable:
    """A derivative of log_prob in all params, [N, D] or [N, D, D]."""

    def at_point(x, params):
        flat, unravel = ravel_pytree(params)
        return derivative(lambda f: likelihood.log_prob(x, unravel(f)))(flat)

    return jax.jit(jax.vmap(at_point))


# --- values ---------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [("float32", True), ("float32", False), ("float64", True)],
    ids=["float32", "float32 without jit", "float64"],
)
def test_log_prob(family, dtype, compiled):
    with precision(dtype):
        x, params = pairs(family.values(fractional=True), family.params())
        x, params = jnp.asarray(x, dtype), cast(params, dtype)
        log_prob = family.make().log_prob
        ours = (jax.jit(log_prob) if compiled else log_prob)(x, params)
        assert ours.dtype == dtype
        truth = references(family, x, params)
        relative = 1e-5 if dtype == "float32" else 1e-12
        error = np.abs(np.asarray(ours, float) - truth)
        assert np.all(error <= relative * np.maximum(1, np.abs(truth)))


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.scipy], ids=lambda f: f.name
)
def test_log_prob_against_scipy(family):
    with precision("float64"):
        x, params = pairs(family.values(), family.params())
        ours = jax.jit(family.make().log_prob)(x, cast(params, "float64"))
        np.testing.assert_allclose(ours, family.scipy(x, params), rtol=1e-10)


@these("zero_inflated_negative_binomial", "categorised_negative_binomial")
def test_counts_of_integer_type(family):
    params = cast(family.params())
    x = np.arange(N_GENES)
    log_prob = jax.jit(family.make().log_prob)
    ours = log_prob(jnp.asarray(x), params)
    assert ours.dtype == "float32"
    assert np.array_equal(ours, log_prob(jnp.asarray(x, "float32"), params))


def of_shape(family: Family, shape: tuple[int, ...]) -> tuple[np.ndarray, dict, dict]:
    """x, params that broadcast to its shape, and the same params in full.

    The first param differs between all entries, the others between genes alone.
    """
    x, thin = np.resize(family.values(), shape), {}
    for name, p in family.params().items():
        genes = shape[-1:]
        p = np.resize(p, genes + p.shape[1:])
        thin[name] = p.reshape((1,) * (len(shape) - 1) + p.shape) if shape else p
    full = spread(thin, shape)
    first = family.make().heads[0].name
    full[first] = full[first] + np.linspace(0, 1, x.size).reshape(shape)
    return x, thin | {first: full[first]}, full


@every_family
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 3, 4)], ids=str)
def test_batch_shapes(family, shape):
    likelihood = family.make()
    x, params, full = of_shape(family, shape)
    x, params, full = jnp.asarray(x), cast(params), cast(full)
    key = jax.random.key(0)
    assert jax.eval_shape(likelihood.log_prob, x, params).shape == shape
    assert jax.eval_shape(likelihood.sample, key, full).shape == shape
    for moment in (likelihood.mean, likelihood.variance):
        assert jax.eval_shape(moment, full).shape == shape
        own = jax.eval_shape(moment, params).shape
        assert np.broadcast_shapes(own, shape) == shape


@every_family
def test_params_broadcast(family):
    x, params, full = of_shape(family, (2, 3, 4))
    x, params, full = jnp.asarray(x), cast(params), cast(full)
    ours = jax.jit(family.make().log_prob)(x, params)
    flat = {name: p.reshape((-1, *p.shape[3:])) for name, p in full.items()}
    truth = references(family, x.ravel(), flat).reshape(x.shape)
    np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-5)


# --- sums, moments, samples -----------------------------------------------------------


@functools.cache
def probabilities(family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Points of the support [N, 1] and their probabilities [N, genes] in float64."""
    with precision("float64"):
        params = cast(spread(family.params(), (1, N_GENES)), "float64")
        if family.support == "real":
            # the trapezoidal rule is exact to rounding at six points a scale
            x = np.arange(-60.0, 80.0, np.exp(MODERATE["log_scale"].min()) / 6)
            weight = x[1] - x[0]
        else:
            # beyond 1000 the largest tail, of mean 30, is below 1e-100
            x, weight = np.arange(2.0 if family.support == "binary" else 1000.0), 1.0
        log_prob = jax.jit(family.make().log_prob)(x[:, None], params)
        return x[:, None], weight * np.exp(np.asarray(log_prob))


@every_family
def test_sums_to_one_and_moments(family):
    x, probability = probabilities(family)
    np.testing.assert_allclose(probability.sum(0), 1.0, rtol=1e-12)
    mean = (probability * x).sum(0)
    variance = (probability * (x - mean) ** 2).sum(0)
    with precision("float64"):
        params = cast(family.params(), "float64")
        likelihood = family.make()
        ours = jax.jit(lambda p: (likelihood.mean(p), likelihood.variance(p)))(params)
        np.testing.assert_allclose(ours[0], mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(ours[1], variance, rtol=1e-10)


@every_family
def test_samples_have_the_moments(family):
    n = 5_000
    x, probability = probabilities(family)
    mean = (probability * x).sum(0)
    second, fourth = ((probability * (x - mean) ** k).sum(0) for k in (2, 4))
    params = cast(spread(family.params(), (n, N_GENES)))
    draws = np.asarray(family.make().sample(jax.random.key(3), params), float)
    # five standard errors: of a mean sqrt(m2 / n), of a variance sqrt((m4 - m2^2) / n)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(second / n))
    limit = 5 * np.sqrt(np.maximum(fourth - second**2, 0) / n) + 1e-12
    assert np.all(np.abs(((draws - mean) ** 2).mean(0) - second) < limit)
    if family.support != "real":
        assert np.array_equal(draws, np.round(draws)) and draws.min() >= 0


@pytest.mark.parametrize("name", sorted(set(likelihoods.FACTORIES) - {"gaussian"}))
@pytest.mark.parametrize("x", [np.nan, -1.0, -2.5, 3.5])
def test_what_is_no_count_has_no_log_prob(name, x):
    if x == 3.5 and likelihoods.from_name(name).support == "counts":
        pytest.skip("these go on between whole numbers")
    params = {k: jnp.asarray(v, "float32") for k, v in MODERATE.items()}
    likelihood = likelihoods.from_name(name)
    assert np.isnan(likelihood.log_prob(jnp.full(N_GENES, x), params)).all()
    assert np.isfinite(likelihood.log_prob(jnp.zeros(N_GENES), params)).all()


@every_family
def test_a_hunt_for_nan_does_not_end_here(family):
    """With `jax_debug_nans` what is not used may be no NaN either."""
    with jax.debug_nans(True):
        x, params = pairs(family.values(), family.params())
        x, params = jnp.asarray(x, jnp.float32), cast(params)
        log_prob = family.make().log_prob

        def total(params):
            return log_prob(x, params).sum()

        jax.value_and_grad(total)(params)
        for each in x[:3]:
            log_prob(each, params)


@pytest.mark.parametrize(
    ("rate", "tolerance"), [(0.9e5, 0.03), (1.1e5, 0.03), (9e6, 0.03), (1e10, 0.12)]
)
def test_samples_of_immense_means(rate, tolerance):
    likelihood = likelihoods.poisson(mean="free")
    n = 60_000
    log_mean = jnp.full(n, np.log(rate), jnp.float32)
    x = np.asarray(likelihood.sample(jax.random.key(0), {"log_mean": log_mean}))
    # what float32 leaves of the mean, and five standard errors
    mean = np.exp(np.float64(log_mean[0]))
    assert abs(x.mean(dtype=np.float64) - mean) < 1e-6 * rate + 5 * np.sqrt(rate / n)
    spread = max(rate, (2.0**-23 * rate) ** 2)
    assert abs(x.var(dtype=np.float64) / spread - 1) < tolerance
    # of integers of 32 bits all would be the same
    assert len(np.unique(x)) > 20


@pytest.mark.parametrize("name", sorted(set(likelihoods.FACTORIES) - {"gaussian"}))
def test_samples_without_a_mean_are_no_counts(name):
    if name == "bernoulli":
        pytest.skip("it has a logit")
    params = {k: jnp.asarray(v, "float32") for k, v in MODERATE.items()}
    params["log_mean"] = jnp.full(N_GENES, jnp.nan)
    # neither inflated, nor of a class of its own
    params["zero_logit"] = jnp.full(N_GENES, -80.0)
    params["class_logits"] = jnp.full((N_GENES, 4), -80.0).at[:, -1].set(80.0)
    x = likelihoods.from_name(name).sample(jax.random.key(0), params)
    assert np.isnan(x).all()


@pytest.mark.parametrize("name", sorted(likelihoods.FACTORIES))
def test_samples_have_the_type_of_their_params(name):
    with jax.enable_x64(True):
        params = {k: jnp.asarray(v, "float32") for k, v in MODERATE.items()}
        x = likelihoods.from_name(name).sample(jax.random.key(0), params)
        assert x.dtype == jnp.float32


def test_samples_from_params_of_low_precision_are_whole_and_odd():
    log_mean = jnp.full(100, 6.9, jnp.bfloat16)
    x = likelihoods.poisson().sample(jax.random.key(0), {"log_mean": log_mean})
    assert x.dtype == jnp.float32
    assert (np.asarray(x) % 2 == 1).any()


def test_an_option_that_is_called_name():
    with pytest.raises(ValueError, match="found options {'name': 'poisson'} for"):
        likelihoods.from_name("negative_binomial", **{"name": "poisson"})


def test_cells_that_share_probabilities_have_classes_of_their_own():
    likelihood = likelihoods.categorised(likelihoods.poisson(mean="free"), 3)
    logits = jnp.array([[[1.0, 1.0, 1.0, -30.0]] * N_GENES])
    params = {"log_mean": jnp.zeros((1000, N_GENES)), "class_logits": logits}
    x = np.asarray(likelihood.sample(jax.random.key(0), params))
    shares = np.stack([(x == k).mean(0) for k in range(3)])
    # within five standard errors of a third
    assert np.abs(shares - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 1000)


def test_variance_where_nearly_all_is_inflation():
    likelihood = likelihoods.zero_inflated(likelihoods.poisson())
    params = {"log_mean": jnp.log(1e6), "zero_logit": jnp.float32(18.0)}
    pi = 1 / (1 + np.exp(-18.0))
    found = likelihood.variance(params)
    np.testing.assert_allclose(found, (1 - pi) * (1e6 + pi * 1e12), rtol=1e-5)


def test_zero_inflation_of_a_family_without_a_closed_form_at_zero():
    base = likelihoods.poisson(mean="free")
    plain = likelihoods.zero_inflated(base)
    other = likelihoods.zero_inflated(base._replace(log_prob_zero=None))
    params = {"log_mean": jnp.zeros((2, 3)), "zero_logit": jnp.ones((2, 3))}
    x = jnp.array([[0.0, 1.0, 4.0]])
    given = plain.log_prob(x, params), other.log_prob(x, params)
    np.testing.assert_allclose(*given, rtol=1e-6)


@pytest.mark.parametrize("kind", ["depth", "batch"])
def test_one_number_for_each_cell(kind):
    likelihood = likelihoods.negative_binomial(dispersion="gene_batch")
    heads = {"log_mean": jnp.zeros((5, 3))}
    free = {"log_dispersion": jnp.zeros((2, 3))}
    given = {"depth": jnp.ones(5), "batch": jnp.zeros(5, jnp.int32)}
    likelihood.link(heads, free, Covariates(**given))
    given[kind] = given[kind][:, None]
    with pytest.raises(ValueError, match=rf"found {kind} of shape \(5, 1\) for means"):
        likelihood.link(heads, free, Covariates(**given))


@pytest.mark.parametrize("name", ["poisson", "categorised_poisson", "bernoulli"])
def test_parameters_of_low_precision_are_summed_in_float32(name):
    likelihood = likelihoods.from_name(name)
    params = {
        "log_mean": jnp.full((1, 2000), 1.0, "bfloat16"),
        "class_logits": jnp.ones((1, 2000, K_MAX + 1), "bfloat16"),
        "logit": jnp.full((1, 2000), 1.0, "bfloat16"),
    }
    nothing = (jnp.array([0]), jnp.array([[0]]), jnp.array([[0.0]]))
    given = (likelihood, jnp.zeros((1, 2000)), params)
    sparse, dense = total_log_prob(*given, nothing), total_log_prob(*given)
    np.testing.assert_allclose(sparse, dense, rtol=1e-5)


@pytest.mark.parametrize("mean", [1e5, 1e6, 1e7])
def test_variance_of_categories_with_a_large_mean(mean):
    family = likelihoods.categorised(likelihoods.poisson(mean="free"), 3)
    logits = jnp.array([[[-30.0, -30.0, -30.0, 0.0]]])
    params = {"log_mean": jnp.log(jnp.array([[mean]])), "class_logits": logits}
    np.testing.assert_allclose(family.variance(params), [[mean]], rtol=1e-5)


@pytest.mark.parametrize("combine", ["zero_inflated_poisson", "categorised_poisson"])
def test_sample_broadcasts_params(combine):
    likelihood = likelihoods.from_name(combine)
    (own,) = likelihood.heads[1:]
    # logits that leave all entries to the base, whose mean the cells share
    logits = np.append(np.full(K_MAX, -20.0), 0.0) if own.shape else np.array(-20.0)
    logits = jnp.asarray(np.broadcast_to(logits, (3, 4, *own.shape)), "float32")
    params = {"log_mean": jnp.full((1, 4), 5.0), own.name: logits}
    drawn = likelihood.sample(jax.random.key(0), params)
    assert drawn.shape == (3, 4)
    # draws of their own: a mean of 148 hardly ever gives a gene's cells one value
    assert np.all(np.ptp(drawn, axis=0) > 0)


def test_a_base_whose_params_have_names_of_their_own():
    """Such as a rate with an exposure, from a head called otherwise."""
    poisson = likelihoods.poisson()
    base = poisson._replace(
        link=lambda heads, free, covariates: {
            "rate": jnp.exp(heads["log_mean"]),
            "exposure": covariates.depth[:, None],
        },
        sample=lambda key, p: jax.random.poisson(key, p["rate"] * p["exposure"]) * 1.0,
    )
    zero_logit = jnp.full((3, 4), -30.0)
    heads = {"log_mean": jnp.zeros((3, 4)), "zero_logit": zero_logit}
    mine = likelihoods.zero_inflated(base)
    params = mine.link(heads, {}, COVARIATES)
    drawn = mine.sample(jax.random.key(0), params)
    assert drawn.shape == (3, 4)
    depth = np.asarray(COVARIATES.depth)[:, None]
    assert (np.abs(drawn - depth) < 6 * np.sqrt(depth) + 1).all()


# --- derivatives ----------------------------------------------------------------------


@every_family
def test_gradient(family):
    """`vmap` of `grad` against numerical derivatives at 50 digits."""
    with precision("float64"):
        x, params = pairs(family.values(), family.params())
        gradient = flat_derivative(family.make(), jax.grad)(x, cast(params, "float64"))
    for i, row in enumerate(np.asarray(gradient)):
        point = {name: p[i] for name, p in params.items()}
        reference, flat = flat_reference(family, exact(x[i]), point)
        for j, slope in enumerate(row):
            order = tuple(int(j == k) for k in range(len(flat)))
            truth = float(mpmath.diff(reference, tuple(flat), order))
            assert abs(slope - truth) <= 1e-10 * max(1, abs(truth)), (point, order)


@every_family
def test_second_derivatives(family):
    """Finite in the whole range, and at some ordinary points those at 50 digits."""
    x, params = pairs(family.values(), family.params())
    few = slice(None, None, 5)
    x, params = x[few], {name: p[few] for name, p in params.items()}
    far, extreme = mesh(extreme_values(family), family.params(EXTREME))
    both = {name: np.concatenate([p, extreme[name]]) for name, p in params.items()}
    # in reverse twice, where a branch that is not taken can still give NaN
    hessian = flat_derivative(family.make(), lambda f: jax.jacrev(jax.grad(f)))
    second = np.asarray(hessian(np.float32(np.append(x, far)), cast(both)))
    assert np.isfinite(second).all()
    for i, row in enumerate(second[: len(x)]):
        point = {name: p[i] for name, p in cast(params).items()}
        reference, flat = flat_reference(family, exact(np.float32(x[i])), point)
        for j, k in np.ndindex(row.shape):
            order = tuple(int(m == j) + int(m == k) for m in range(len(flat)))
            truth = float(mpmath.diff(reference, tuple(flat), order))
            limit = 1e-4 * max(1, abs(truth)) + 1e-6 * abs(x[i])
            assert abs(row[j, k] - truth) <= limit, (point, order)


def extreme_values(family: Family) -> np.ndarray:
    if family in COUNT_FAMILIES:
        return np.array([0, 1, 3, 100, 1e4, 1e6])
    return family.values()


def check_extremes(family: Family, dtype: str) -> None:
    with precision(dtype):
        x, params = mesh(extreme_values(family), family.params(EXTREME))
        x, params = jnp.asarray(x, dtype), cast(params, dtype)
        log_prob = functools.partial(family.make().log_prob, x)
        value, gradient = value_and_gradient(log_prob, params)
        assert np.isfinite(value).all()
        assert all(np.isfinite(g).all() for g in gradient.values())


@every_family
def test_extremes_are_finite(family):
    check_extremes(family, "float32")


@these("zero_inflated_negative_binomial", "categorised_negative_binomial")
def test_extremes_are_finite_in_float64(family):
    check_extremes(family, "float64")


# --- accuracy -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accuracy():
    """The benchmark's errors by family, as shares of what is promised."""
    path = Path(__file__).parents[1] / "benchmarks" / "likelihood_accuracy.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    return functools.cache(functools.partial(benchmark.errors, n_random=150))


@pytest.mark.parametrize(
    "family",
    [
        "poisson",
        "negative_binomial",
        "zero_inflated_poisson",
        "zero_inflated_negative_binomial",
    ],
)
def test_float32_errors_are_within_the_promise(accuracy, family):
    worst = {
        name: row["share_of_limit"]
        for name, row in accuracy(family)["scvae_jax"].items()
    }
    assert "value" in worst and any(name.startswith("gradient") for name in worst)
    assert max(worst.values()) <= 1, accuracy(family)["scvae_jax"]


def test_textbook_form_breaks_the_promise(accuracy):
    assert accuracy("negative_binomial")["textbook"]["value"]["share_of_limit"] > 1


def stirling_reference(a) -> mpmath.mpf:
    a = exact(a)
    main = (a - mpmath.mpf(1) / 2) * mpmath.log(a) - a + mpmath.log(2 * mpmath.pi) / 2
    return mpmath.loggamma(a) - main


def stirling_curve(t: np.ndarray) -> np.ndarray:
    """12 a stirling(a) at t = 1/a."""
    return np.array([float(12 * stirling_reference(1 / ti) / ti) for ti in t])


def test_stirling_fit_is_derived():
    # the Chebyshev nodes of [0, 1]
    t = (1 + np.cos(np.pi * (np.arange(200) + 0.5) / 200)) / 2
    fit = np.polynomial.Chebyshev.fit(t, stirling_curve(t), 6, domain=[0, 1])
    fit = fit.convert(kind=np.polynomial.Polynomial)
    ours = np.polynomial.Polynomial(likelihoods.STIRLING_FIT)
    grid = np.linspace(1e-3, 1, 500)
    assert np.abs(ours(grid) - fit(grid)).max() < 1e-9
    # the error that stands beside the coefficients, to its only digit
    assert np.abs(ours(grid) - stirling_curve(grid)).max() < 4.5e-8


@both_dtypes
def test_stirling(dtype):
    # below a = 10, float64 subtracts numbers of up to 23 = 10 log 10
    units = 4 if dtype == "float32" else 32
    a = np.logspace(-4, 8, 301)
    error, truth = errors_of(
        lambda a: likelihoods._stirling(a, jnp.log(a)), stirling_reference, a, dtype
    )
    assert np.all(error <= units * np.finfo(dtype).eps * np.maximum(1, np.abs(truth)))


def fitted_polynomial(function, low, high, degree):
    """Chebyshev fit on an interval, as a polynomial."""
    nodes = np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    t = low + (high - low) * (1 + nodes) / 2
    curve = np.array([float(function(mpmath.mpf(ti))) for ti in t])
    fit = np.polynomial.Chebyshev.fit(t, curve, degree, domain=[low, high])
    return fit.convert(kind=np.polynomial.Polynomial)


@pytest.mark.parametrize(
    ("ours", "function", "low", "error"),
    [
        (likelihoods.LMX_FIT, lambda t: (mpmath.log1p(t) - t) / t**2, -0.5, 5e-8),
        (
            likelihoods.SOFTPLUS_FIT,
            lambda e: (mpmath.log1p(e) - e / (1 + e)) / e**2,
            0.0,
            1e-7,
        ),
    ],
    ids=["lmx", "softplus"],
)
def test_fits_are_derived(ours, function, low, error):
    with mpmath.workdps(50):
        high = 0.5 if low else 1.0
        fit = fitted_polynomial(function, low, high, len(ours) - 1)
        grid = np.linspace(low, high, 500)
        grid = grid[grid != 0]
        curve = np.array([float(function(mpmath.mpf(t))) for t in grid])
    ours = np.polynomial.Polynomial(ours)
    # two ways to the best polynomial of that degree, next to its own error
    assert np.abs(ours(grid) - fit(grid)).max() < error
    assert np.abs(ours(grid) / curve - 1).max() < 1.5 * error


def test_stirling_fit_below_1_is_derived():
    def curve(a: mpmath.mpf) -> mpmath.mpf:
        return mpmath.loggamma(1 + a) + a - mpmath.log(2 * mpmath.pi) / 2

    ours = np.polynomial.Polynomial(likelihoods.STIRLING_FIT_BELOW_1)
    grid = np.linspace(0, 1, 500)
    with mpmath.workdps(50):
        fit = fitted_polynomial(curve, 0.0, 1.0, 9)
        truth = np.array([float(curve(mpmath.mpf(a))) for a in grid])
    assert np.abs(ours(grid) - fit(grid)).max() < 1e-12
    # the error that stands beside the coefficients, to its only digit
    assert np.abs(ours(grid) - truth).max() < 5.5e-9


@both_dtypes
def test_lmx(dtype):
    """log(1+t) - t, in the series near zero and in the direct form."""
    size = np.logspace(-8, 4, 301)
    t = np.concatenate([-size[size < 0.999], size])
    error, truth = errors_of(
        lambda t: likelihoods._lmx(t, jnp.log1p(t)),
        lambda t: mpmath.log1p(exact(t)) - exact(t),
        t,
        dtype,
    )
    assert np.all(error <= 8 * np.finfo(dtype).eps * np.abs(truth))


SOFTPLUS_CASES = [
    ("_softplus", lambda d: mpmath.log1p(mpmath.exp(exact(d)))),
    (
        "_softplus_excess",
        lambda d: mpmath.log1p(mpmath.exp(exact(d))) - 1 / (1 + mpmath.exp(-exact(d))),
    ),
]


@both_dtypes
@pytest.mark.parametrize(
    ("name", "reference"), SOFTPLUS_CASES, ids=[name for name, _ in SOFTPLUS_CASES]
)
def test_softplus(name, reference, dtype):
    size = np.logspace(-6, np.log10(35), 301)
    d = np.append(-size, size)
    with mpmath.workdps(80):
        error, truth = errors_of(getattr(likelihoods, name), reference, d, dtype)
    assert np.all(error <= 8 * np.finfo(dtype).eps * truth)


def errors_of(function, reference, x, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors against 50 digits at the same inputs, and the truth."""
    with precision(dtype):
        x = jnp.asarray(x, dtype)
        ours = np.asarray(jax.jit(function)(x), float)
        truth = np.array([float(reference(xi)) for xi in np.asarray(x)])
    return np.abs(ours - truth), truth


# --- zeros and sparse totals ----------------------------------------------------------


@every_count_family
def test_log_prob_zero(family):
    """The closed form and log_prob at 0 agree, and so do their gradients."""
    likelihood = family.make()
    _, params = mesh(np.zeros(1), family.params(EXTREME))
    params = cast(params)
    zero = jnp.zeros(len(params["log_mean"]))
    ours, slopes = value_and_gradient(likelihood.log_prob_zero, params)
    log_prob = functools.partial(likelihood.log_prob, zero)
    value, expected = value_and_gradient(log_prob, params)
    np.testing.assert_allclose(ours, value, rtol=1e-6, atol=1e-12)
    for name in params:
        np.testing.assert_allclose(slopes[name], expected[name], rtol=1e-5, atol=1e-6)


@every_count_family
def test_second_derivatives_of_log_prob_zero(family):
    """Those at 50 digits, where the dispersion is the mean."""
    likelihood, params = family.make(), family.params()
    if "log_dispersion" in params:
        params["log_dispersion"] = params["log_mean"]
    of_zero = likelihood._replace(log_prob=lambda _, p: likelihood.log_prob_zero(p))
    hessian = flat_derivative(of_zero, lambda f: jax.jacrev(jax.grad(f)))
    second = np.asarray(hessian(np.zeros(N_GENES, np.float32), cast(params)))
    for i, row in enumerate(second):
        point = {name: p[i] for name, p in cast(params).items()}
        reference, flat = flat_reference(family, exact(0.0), point)
        for j, k in np.ndindex(row.shape):
            order = tuple(int(m == j) + int(m == k) for m in range(len(flat)))
            truth = float(mpmath.diff(reference, tuple(flat), order))
            assert abs(row[j, k] - truth) <= 1e-4 * max(1, abs(truth)), (point, order)


@every_count_family
def test_log_prob_zero_has_no_special_functions(family):
    likelihood = family.make()
    with precision("float64"):
        params = cast(family.params(), "float64")
        closed = jax.make_jaxpr(likelihood.log_prob_zero)(params)
        general = jax.make_jaxpr(likelihood.log_prob)(jnp.zeros(N_GENES), params)
    assert "lgamma" in str(general)
    assert "lgamma" not in str(closed)


def sparse_cells(family: Family, n_cells: int, varied: str) -> tuple:
    """Counts with a cell without counts, a gene never seen and means of a million.

    Args:
        family: the family.
        n_cells: B.
        varied: which params are [B, G]: "mean", "rest" or "all"; others are [1, G].

    Returns:
        x [B, G], addresses of its non-zero entries with padding, params.
    """
    random = np.random.default_rng(5)
    n_genes = 9
    params = {}
    for name, value in family.params().items():
        own = varied in ("all", "mean" if name == "log_mean" else "rest")
        shape = (n_cells if own else 1, n_genes)
        noise = random.normal(0, 0.3, shape + value.shape[1:])
        params[name] = value[random.integers(N_GENES, size=shape)] + noise
    x = random.poisson(random.uniform(0, 3, (n_cells, n_genes))).astype(float)
    if family.support == "binary":
        x = np.minimum(x, 1)
    x[:, 2] = 0
    x[1:2] = 0
    if "log_mean" in params:
        params["log_mean"][:, 4] = np.log(1e6)
        x[0, 4] = 1_000_321
    x = jnp.asarray(x, "float32")
    return x, addresses(x, [(n_cells, 0), (n_cells, n_genes)], width=3), cast(params)


def addresses(x, padding=(), width=1):
    """(cell [R], gene [R, W], value [R, W]) of the non-zero entries of x.

    Rows hold entries of one cell, filled up with the first gene at value 0; each
    address of `padding` is a row at the end.
    """
    rows = []
    for i, counts in enumerate(np.asarray(x)):
        genes = np.flatnonzero(counts)
        for start in range(0, len(genes), width):
            part = genes[start : start + width]
            spare = [0] * (width - len(part))
            rows.append((i, [*part, *spare], [*counts[part], *spare]))
    rows += [(cell, [gene] * width, [5.0] * width) for cell, gene in padding]
    cell, gene, value = zip(*rows, strict=True)
    return jnp.asarray(cell), jnp.asarray(gene), jnp.asarray(value, "float32")


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """Sums of sparse cells are taken in another way where there is no CPU."""
    monkeypatch.setattr(likelihoods.jax, "default_backend", lambda: request.param)


SPARSE_CASES = [
    *((family, 6, "mean") for family in FAMILIES),
    # these two have every kind of param between them
    (NAMED["zero_inflated_negative_binomial"], 6, "rest"),
    (NAMED["categorised_poisson"], 6, "rest"),
    (NAMED["categorised_poisson"], 1, "all"),
]


@pytest.mark.parametrize(
    ("family", "n_cells", "varied"),
    SPARSE_CASES,
    ids=[f"{f.name}-{n}-{varied}" for f, n, varied in SPARSE_CASES],
)
def test_sparse_total_is_the_dense_total(backend, family, n_cells, varied):
    likelihood = family.make()
    x, nonzero, params = sparse_cells(family, n_cells, varied)
    total, slopes = value_and_gradient(
        lambda p: total_log_prob(likelihood, x, p, nonzero), params
    )
    full = cast(spread(params, x.shape))
    # x and 0 as two halves, so that one compilation serves both
    both = jnp.stack([x, jnp.zeros_like(x)])
    dense, dense_slopes = value_and_gradient(
        lambda p: jax.vmap(likelihood.log_prob, (0, 0))(both, p),
        {name: jnp.stack([p, p]) for name, p in full.items()},
    )
    assert total.shape == (n_cells,)
    limit = 4e-6 * abs(dense).sum((0, 2))
    assert np.all(abs(total - dense[0].sum(1)) <= limit)
    for name, slope in slopes.items():
        expected, size = dense_slopes[name][0], abs(dense_slopes[name]).sum(0)
        if slope.shape[0] == 1:
            # the gradient of a param that cells share is a sum over them
            expected, size = (a.sum(0, keepdims=True) for a in (expected, size))
        assert np.all(abs(slope - expected) <= 4e-6 * size), name


@pytest.mark.parametrize("address", [(2, 0), (5, 9), (-1, 0), (0, 3), (1, -1)], ids=str)
def test_address_out_of_range_is_padding(backend, address):
    x = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]])
    params = {"log_mean": jnp.zeros((2, 3))}
    nonzero = addresses(x, [address])
    totals = jax.jit(functools.partial(total_log_prob, likelihoods.poisson()))
    np.testing.assert_allclose(totals(x, params, nonzero), totals(x, params), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("negative_binomial", {"log_dispersion": 0.5}),
        ("negative_binomial", {"log_dispersion": np.arange(3, dtype="float32")}),
        ("categorised_poisson", {"class_logits": np.eye(3, 4, dtype="float32")}),
        ("poisson", {"log_mean": 0.5}),
        ("poisson", {"log_mean": np.ones((2, 1), "float32")}),
        ("poisson", {"log_mean": np.ones((1, 3), "float32")}),
    ],
    ids=["scalar", "gene", "gene and class", "one mean", "cell", "genes of all"],
)
def test_sparse_total_broadcasts_params(backend, name, own):
    """Params of fewer axes than x, which a gather by cell and gene must not misread."""
    x = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]])
    params = {"log_mean": jnp.zeros((2, 3))} | own
    likelihood = likelihoods.from_name(name)
    with jax.numpy_rank_promotion("allow"):
        totals = jax.jit(functools.partial(total_log_prob, likelihood))
        total = totals(x, params, addresses(x))
        expected = totals(x, params)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


# --- links ----------------------------------------------------------------------------

COVARIATES = Covariates(
    depth=jnp.array([1.0, 250.0, 3e4]), batch=jnp.array([1, 0, 1], jnp.int32)
)


def outputs(likelihood: Likelihood) -> tuple[dict, dict]:
    """Heads of 3 cells and free parameters, as a decoder would give them."""
    random = np.random.default_rng(7)
    sizes = {"gene": N_GENES, "batch": N_BATCHES}
    heads = {
        h.name: random.normal(size=(3, N_GENES, *h.shape)) for h in likelihood.heads
    }
    free = {
        f.name: random.normal(size=[sizes[axis] for axis in f.axes])
        for f in likelihood.free
    }
    return cast(heads), cast(free)


def test_a_code_of_no_batch():
    likelihood = likelihoods.negative_binomial(dispersion="gene_batch")
    heads, free = outputs(likelihood)
    codes = COVARIATES._replace(batch=jnp.array([-1, N_BATCHES, 1]))
    found = likelihood.link(heads, free, codes)["log_dispersion"]
    np.testing.assert_array_equal(found[:2], 0.0)
    np.testing.assert_allclose(found[2], free["log_dispersion"][1], rtol=1e-6)


@every_count_family
@pytest.mark.parametrize("mean", ["library", "free"])
def test_link_of_the_mean(family, mean):
    likelihood = family.make(mean=mean)
    heads, free = outputs(likelihood)
    params = likelihood.link(heads, free, COVARIATES)
    log_mean = params["log_mean"]
    if mean == "library":
        depth = jnp.exp(log_mean).sum(-1)
        np.testing.assert_allclose(depth, COVARIATES.depth, rtol=1e-5)
        # up to the depth, the mean is still the head's
        shift = log_mean - heads["log_mean"]
        assert np.ptp(shift, axis=-1).max() < 1e-4
    else:
        assert np.array_equal(log_mean, heads["log_mean"])


@every_family
def test_link_passes_the_other_heads(family):
    likelihood = family.make()
    heads, free = outputs(likelihood)
    params = likelihood.link(heads, free, COVARIATES)
    assert set(params) == set(family.params())
    for name in set(heads) - {"log_mean"}:
        assert np.array_equal(params[name], heads[name])
    assert jax.eval_shape(
        likelihood.log_prob, jnp.ones((3, N_GENES)), params
    ).shape == (3, N_GENES)


@pytest.mark.parametrize(
    ("dispersion", "axes", "expected"),
    [
        ("gene", ("gene",), lambda heads, free: free[None]),
        ("gene_batch", ("batch", "gene"), lambda heads, free: free[COVARIATES.batch]),
        ("gene_cell", None, lambda heads, free: heads["log_dispersion"]),
    ],
)
@pytest.mark.parametrize(
    "name", ["negative_binomial", "zero_inflated_negative_binomial"]
)
def test_link_of_the_dispersion(name, dispersion, axes, expected):
    likelihood = likelihoods.from_name(name, dispersion=dispersion)
    declared = {f.name: f.axes for f in likelihood.free}
    assert declared == ({"log_dispersion": axes} if axes else {})
    heads, free = outputs(likelihood)
    assert ("log_dispersion" in heads) == (axes is None)
    ours = likelihood.link(heads, free, COVARIATES)["log_dispersion"]
    value = expected(heads, free.get("log_dispersion"))
    assert ours.shape == value.shape
    assert np.array_equal(ours, value)


@pytest.mark.parametrize("dispersion", ["gene", "gene_batch"])
def test_link_of_samples(dispersion):
    """Heads with an axis of samples in front, by `vmap` and by broadcasting."""
    likelihood = likelihoods.negative_binomial(dispersion=dispersion)
    heads, free = outputs(likelihood)
    heads = {"log_mean": jnp.stack([heads["log_mean"], 2 * heads["log_mean"]])}
    mapped = jax.vmap(likelihood.link, (0, None, None))(heads, free, COVARIATES)
    depth = jnp.exp(mapped["log_mean"]).sum(-1)
    np.testing.assert_allclose(depth, np.tile(COVARIATES.depth, (2, 1)), rtol=1e-5)
    with jax.numpy_rank_promotion("allow"):
        whole = likelihood.link(heads, free, COVARIATES)
    np.testing.assert_allclose(whole["log_mean"], mapped["log_mean"], rtol=1e-6)
    # as many axes, which numpy's rules would add and the setting of these tests not
    assert whole["log_dispersion"].ndim == whole["log_mean"].ndim


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (2, 3, 4)])
def test_covariates_have_no_axis_of_genes(shape):
    """[3, 1] meets means [3, 4] in silence, and [1, 3, 4] as [3, 3, 4]."""
    heads, column = {"log_mean": jnp.zeros(shape)}, jnp.ones((3, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"found depth of shape \(3, 1\) for means of"):
        likelihoods.poisson().link(heads, {}, COVARIATES._replace(depth=column * 1.0))
    by_batch = likelihoods.negative_binomial(mean="free", dispersion="gene_batch")
    table = {"log_dispersion": jnp.zeros((2, 4))}
    with pytest.raises(ValueError, match=r"found batch of shape \(3, 1\) for means of"):
        by_batch.link(heads, table, COVARIATES._replace(batch=column))


# --- names and errors -----------------------------------------------------------------


def test_table_has_every_name():
    assert [family.name for family in FAMILIES] == list(likelihoods.FACTORIES)


@every_family
def test_description(family):
    likelihood = family.make()
    assert likelihood.name == family.name
    assert likelihood.support == family.support
    assert (likelihood.log_prob_zero is None) == (family.support == "real")
    classes = [h.shape for h in likelihood.heads if h.name == "class_logits"]
    assert classes == [(K_MAX + 1,)] * family.name.startswith("categorised")


def test_k_max_is_an_option():
    likelihood = likelihoods.from_name("categorised_poisson", k_max=7)
    assert likelihood.heads[-1] == likelihoods.Head("class_logits", (8,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: likelihoods.poisson(mean="size"),
            "found mean='size', expected 'library' or 'free', choose how the mean",
        ),
        (
            lambda: likelihoods.negative_binomial(mean="size"),
            "found mean='size', expected 'library' or 'free'",
        ),
        (
            lambda: likelihoods.negative_binomial(dispersion="cell"),
            "found dispersion='cell', expected one of gene, gene_batch, gene_cell, "
            "choose what",
        ),
        (
            lambda: likelihoods.negative_binomial(dispersion="gene_batch").link(
                {"log_mean": jnp.zeros((2, 3))},
                {"log_dispersion": jnp.zeros((2, 3))},
                Covariates(jnp.ones(2)),
            ),
            "found no batch, expected one for dispersion='gene_batch', give a batch",
        ),
        (
            lambda: likelihoods.from_name("geometric"),
            "found likelihood 'geometric', expected one of "
            + ", ".join(f.name for f in FAMILIES)
            + ", choose one",
        ),
        (
            lambda: likelihoods.from_name("poisson", k_max=3),
            r"found options \{'k_max': 3\} for likelihood 'poisson', expected options "
            r"that it has, remove the others \(.*k_max.*\)",
        ),
        *(
            (
                lambda k_max=k_max: likelihoods.categorised(
                    likelihoods.poisson(), k_max
                ),
                f"found k_max={k_max}, expected a whole number, at least 1 and at most "
                "1000, give the number of counts",
            )
            for k_max in (0, 1001, 2.5)
        ),
        (
            lambda: likelihoods.zero_inflated(likelihoods.gaussian()),
            "found gaussian, expected a family of counts, give zero_inflated a poisson",
        ),
        (
            lambda: likelihoods.categorised(likelihoods.bernoulli(), 2),
            "found bernoulli, expected a family of counts, give categorised a poisson",
        ),
        (
            lambda: likelihoods.zero_inflated(
                likelihoods.zero_inflated(likelihoods.poisson())
            ),
            "found zero_inflated_poisson, expected a family without zero_logit, "
            "apply zero_inflated once",
        ),
        (
            lambda: likelihoods.categorised(
                likelihoods.categorised(likelihoods.poisson(), 2), 3
            ),
            "found categorised_poisson, expected a family without class_logits, "
            "apply categorised once",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
