"""Likelihoods of counts as pure functions. Imports jax and nothing else.

A factory returns a `Likelihood`, a NamedTuple of pure functions; a combinator takes one
and returns one. Everything works under `jit`, `vmap` and `grad`, for any batch shape,
in float32 and float64. Axes: B cells, G genes.

Accuracy. The textbook x log mu - mu - lgamma(x+1) subtracts numbers of size x log x
and loses 0.07 nats at x = 1e5 in float32. Here both families are written as a
deviance, which is small where the probability is high, plus Stirling's error [1]:

    deviance     = -x lmx(mu/x - 1) for the Poisson,  lmx(t) = log(1+t) - t
    stirling(a)  = lgamma(a) - [(a - 1/2) log a - a + 1/2 log 2 pi]  ~  1/(12 a)

References:
    [1] C. Loader, Fast and accurate computation of binomial probabilities, 2000.
    [2] Gronbech et al., scVAE, Bioinformatics 36(16):4415, 2020.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Params = dict[str, Array]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# what a likelihood may be of
SUPPORTS = ("counts", "integers", "binary", "real")


class Head(NamedTuple):
    """What the decoder computes per cell and gene: an array [B, G, *shape]."""

    name: str
    shape: tuple[int, ...] = ()


class Free(NamedTuple):
    """A parameter learned beside the weights; `axes` among "gene" and "batch"."""

    name: str
    axes: tuple[str, ...] = ("gene",)
    initial: float = 0.0


class Covariates(NamedTuple):
    """What a link may read about the cells.

    Attributes:
        depth: [B] expected total of a cell, counts; used by library means.
        batch: [B] integer batch of a cell, or None where there are no batches.
    """

    depth: Array
    batch: Array | None = None


class Likelihood(NamedTuple):
    """A distribution of one entry x of the data, given what a decoder computes.

    `params` is a dict of arrays that broadcast against x, entries of a trailing axis
    (as class logits have) apart.

    Attributes:
        name: the name under which it is reported.
        heads: what the decoder computes.
        free: parameters learned beside the weights, exempt from weight decay.
        link: (heads, free, covariates) -> params. A param that has a head's name has
            its trailing shape too; those of other names have no trailing axes.
        log_prob: (x, params) -> nats, elementwise; of counts its slope in x is 0.
        log_prob_zero: params -> log p(0), the same as log_prob(0, params), without
            special functions; None where the data has no zeros to speak of, and sums
            are then taken in dense form.
        mean: params -> E[x].
        variance: params -> Var[x].
        sample: (key, params) -> x.
        support: one of SUPPORTS; "integers" are counts, never fractional.
        start: (mean [G] of the training cells, their number, which may be traced) ->
            the heads [G, *shape] of a model that knows no more than that; those left
            out, such as of zero-inflation, are 0, all of them where it is None.
    """

    name: str
    heads: tuple[Head, ...]
    free: tuple[Free, ...]
    link: Callable[[Params, Params, Covariates], Params]
    log_prob: Callable[[Array, Params], Array]
    log_prob_zero: Callable[[Params], Array] | None
    mean: Callable[[Params], Array]
    variance: Callable[[Params], Array]
    sample: Callable[[Array, Params], Array]
    support: str = "counts"
    start: Callable[[Array, int], Params] | None = None

    @property
    def is_of_counts(self) -> bool:
        """Whether x is a count, so that a cell has a total and may be thinned."""
        return self.support in ("counts", "integers")

    @property
    def trailing(self) -> dict[str, tuple[int, ...]]:
        """The trailing shape of each param that has the name of a head."""
        return {head.name: head.shape for head in self.heads}


# --- numerics -------------------------------------------------------------------------


def _floats(*arrays: Any) -> list[Array]:
    """The arrays in their common float type, at least float32."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return [jnp.asarray(a, dtype) for a in arrays]


# Chebyshev fit of [log(1+t) - t] / t^2 on [-1/2, 1/2], error 5e-8; made and checked
# against mpmath by tests/test_likelihoods.py. Lowest power first.
LMX_FIT = (
    -0.4999999824439368,
    0.3333333168479454,
    -0.2500050406071955,
    0.2000047330953935,
    -0.16643517447266265,
    0.1426397985264627,
    -0.12882209755025492,
    0.11469875161618762,
    -0.07231557715256465,
    0.06493489567669346,
    -0.16932181747706995,
    0.15751780259152603,
)
# Taylor: t^2 (-1/2 + t/3 - ...), cut where the next term is below rounding at 1/2.
LMX_SERIES = tuple((-1) ** (k + 1) / k for k in range(2, 52))


def _polynomial(coefficients: tuple[float, ...], t: Array) -> Array:
    value = jnp.full_like(t, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * t + c
    return value


def _lmx(t: Array, log_1p: Array) -> Array:
    """log(1+t) - t without cancellation near zero, given log(1+t) for elsewhere."""
    near = jnp.abs(t) < 0.5
    small = jnp.where(near, t, 0.0)
    fit = LMX_FIT if t.dtype == jnp.float32 else LMX_SERIES
    return jnp.where(near, _polynomial(fit, small) * small * small, log_1p - t)


# Chebyshev fit of 12 a stirling(a) in t = 1/a on (0, 1], error 4e-8; made and checked
# against mpmath by tests/test_likelihoods.py. Lowest power first.
STIRLING_FIT = (
    1.0000000102566167,
    -2.1868746910407846e-06,
    -0.03327029491482214,
    -0.0006412151270740481,
    0.012595657093349082,
    -0.007604144675109513,
    0.0016598129025002244,
)
# Stirling's series: B_2k / (2k (2k-1)), k = 1..8 (Abramowitz & Stegun 6.1.40).
STIRLING_SERIES = (
    1 / 12,
    -1 / 360,
    1 / 1260,
    -1 / 1680,
    1 / 1188,
    -691 / 360360,
    1 / 156,
    -3617 / 122400,
)


# Chebyshev fit of lgamma(1+a) + a - 1/2 log 2 pi in a on [0, 1], error 5e-9; made and
# checked against mpmath by tests/test_likelihoods.py. Lowest power first.
STIRLING_FIT_BELOW_1 = (
    -0.9189385384693031,
    0.4227854296694128,
    0.8224291033993042,
    -0.4001684166662228,
    0.2669217291270093,
    -0.19201186374620138,
    0.12800311109285997,
    -0.06745786636508103,
    0.02328497310107155,
    -0.003786198193575631,
)


def _stirling(a: Array, log_a: Array) -> Array:
    """lgamma(a) - [(a - 1/2) log a - a + 1/2 log 2 pi] for a > 0."""
    if a.dtype == jnp.float32:
        # lgamma(a) = lgamma(1+a) - log a
        low = a < 1.0
        below = jnp.where(low, a, 1.0)
        near = _polynomial(STIRLING_FIT_BELOW_1, below) - (below + 0.5) * log_a
        t = 1.0 / jnp.where(low, 1.0, a)
        return jnp.where(low, near, _polynomial(STIRLING_FIT, t) * t / 12.0)
    low = a < 10.0
    below = jnp.where(low, a, 1.0)
    log_below = jnp.where(low, log_a, 0.0)
    direct = jax.lax.lgamma(below) - ((below - 0.5) * log_below - below + HALF_LOG_2PI)
    t = 1.0 / jnp.where(low, 10.0, a)
    return jnp.where(low, direct, _polynomial(STIRLING_SERIES, t * t) * t)


def _stirling_slope(a: Array, log_a: Array) -> Array:
    return jax.jvp(_stirling, (a, log_a), (jnp.ones_like(a), 1.0 / a))[1]


# Chebyshev fit of [log(1+e) - e/(1+e)] / e^2 on [0, 1], error 1e-7; made and checked
# against mpmath by tests/test_likelihoods.py. Lowest power first.
SOFTPLUS_FIT = (
    0.49999996056819246,
    -0.6666587404143289,
    0.7497317316331044,
    -0.796397426735943,
    0.8080366185940717,
    -0.7507227647403171,
    0.5836810417385466,
    -0.33603336935801054,
    0.12188701462689634,
    -0.020376904942087493,
)


# XLA computes an array in one loop if no other array needs an exponential of its
# formula; each of the three below therefore has an exponential that looks different.


def _softplus_fit(e: Array) -> Array:
    """log(1+e) - e/(1+e) for e in [0, 1]."""
    return _polynomial(SOFTPLUS_FIT, e) * e * e


@jax.custom_jvp
def _softplus(d: Array) -> Array:
    """log(1 + exp(d))."""
    if d.dtype != jnp.float32:
        return jax.nn.softplus(d)
    e = jnp.exp(-jnp.abs(d))
    return jnp.maximum(d, 0.0) + (e / (1.0 + e) + _softplus_fit(e))


@_softplus.defjvp
def _(primals, tangents):
    d = primals[0]
    return _softplus(d), _times(jax.nn.sigmoid(d), tangents[0])


def _softplus_excess(d: Array) -> Array:
    """softplus(d) - sigmoid(d), which are close where d is low."""
    if d.dtype != jnp.float32:
        return -_lmx(-jax.nn.sigmoid(d), -jax.nn.softplus(d))
    # not minimum(d, -d), whose slope at 0 is 0
    e = jnp.exp(jnp.where(d > 0, -d, d))
    return _softplus_fit(e) + jnp.where(d > 0, d + (e - 1.0) / (e + 1.0), 0.0)


def _times(slope: Array, tangent: Array) -> Array:
    """Slope * tangent, where a tangent [1, G] is of a parameter that cells share.

    Its transpose is then a sum over cells, which XLA does ten times faster on a CPU as
    a matrix product.
    """
    if slope.ndim == tangent.ndim == 2 and tangent.shape[0] < slope.shape[0]:
        ones = jnp.ones((slope.shape[0], 1), slope.dtype)
        tangent = jnp.matmul(ones, tangent, precision="highest")
    return slope * tangent


def _log_product(product: Array, log_sum: Array) -> Array:
    """Log of a product; near zero the sum of the logarithms of its factors."""
    return jnp.where(product > 1e-30, jnp.log(product), log_sum)


def _at_zero(x: Array, log_zero: Array) -> Array:
    """Log p(0), and no number where x is no count (not above 0: `jax_debug_nans`)."""
    return jnp.where(x >= 0, log_zero, jnp.nan)


@jax.custom_jvp
def _poisson_log_prob(x: Array, log_mean: Array) -> Array:
    # log p = x log mu - mu - lgamma(x+1)
    #       = x lmx(mu/x - 1) - 1/2 log(2 pi x) - stirling(x)   for x > 0,   -mu at 0
    positive = x > 0
    y = jnp.where(positive, x, 1.0)
    mean, log_y = jnp.exp(log_mean), jnp.log(y)
    log_ratio = _log_product(mean / y, log_mean - log_y)
    deviance = -y * _lmx((mean - y) / y, log_ratio)
    log_prob = -deviance - 0.5 * log_y - HALF_LOG_2PI - _stirling(y, log_y)
    return jnp.where(positive, log_prob, _at_zero(x, -mean))


@_poisson_log_prob.defjvp
def _(primals, tangents):
    x, log_mean = primals
    # d log p / d log mu = x - mu
    slope = x - jnp.exp(log_mean)
    return _poisson_log_prob(x, log_mean), _times(slope, tangents[1])


@jax.custom_jvp
def _nb_log_prob(x: Array, log_mean: Array, log_theta: Array) -> Array:
    # With r = (x - mu) / (theta + mu) and q = -r theta / x:
    #   1 + r = (x + theta) / (theta + mu),  1 + q = (1 + r) mu / x
    # log p = theta lmx(r) + x lmx(q) - 1/2 log(1 + x/theta) - 1/2 log(2 pi x)
    #         + stirling(x+theta) - stirling(theta) - stirling(x)   for x > 0
    positive = x > 0
    y = jnp.where(positive, x, 1.0)
    mean, theta = jnp.exp(log_mean), jnp.exp(log_theta)
    total = y + theta
    log_y, log_total = jnp.log(y), jnp.log(total)
    r, one_r = (y - mean) / (theta + mean), total / (theta + mean)
    log_r = jnp.log(one_r)
    log_q = _log_product(one_r * (mean / y), log_r + (log_mean - log_y))
    log_prob = (
        theta * _lmx(r, log_r)
        + y * _lmx(-r * (theta / y), log_q)
        - 0.5 * (log_total - log_theta + log_y)
        - HALF_LOG_2PI
        + _stirling(total, log_total)
        - _stirling(theta, log_theta)
        - _stirling(y, log_y)
    )
    at_zero = _at_zero(x, _nb_log_prob_zero(log_mean, log_theta))
    return jnp.where(positive, log_prob, at_zero)


@_nb_log_prob.defjvp
def _(primals, tangents):
    x, log_mean, log_theta = primals
    mean, theta = jnp.exp(log_mean), jnp.exp(log_theta)
    # d log p / d log mu    = (x - mu) theta / (theta + mu)
    # d log p / d log theta = theta [s'(x+theta) - s'(theta)] + x / (2(x+theta))
    #                         + theta lmx(r),   s = stirling
    slope_mean = (x - mean) * jax.nn.sigmoid(log_theta - log_mean)
    total = x + theta
    r, log_r = (x - mean) / (theta + mean), jnp.log(total / (theta + mean))
    slopes = _stirling_slope(total, jnp.log(total)) - _stirling_slope(theta, log_theta)
    slope_theta = theta * (slopes + _lmx(r, log_r)) + 0.5 * x / total
    value = _nb_log_prob(x, log_mean, log_theta)
    return value, _times(slope_mean, tangents[1]) + _times(slope_theta, tangents[2])


@jax.custom_jvp
def _nb_log_prob_zero(log_mean: Array, log_theta: Array) -> Array:
    # log p(0) = -theta log(1 + mu/theta)
    return -jnp.exp(log_theta) * _softplus(log_mean - log_theta)


@_nb_log_prob_zero.defjvp
def _(primals, tangents):
    log_mean, log_theta = primals
    theta, d = jnp.exp(log_theta), log_mean - log_theta
    # d/d log mu = -mu theta / (theta + mu) = -theta sigmoid(log mu - log theta)
    # d/d log theta = -theta [log(1 + mu/theta) - mu / (theta + mu)]
    slope_mean = _times(-theta * jax.nn.sigmoid(d), tangents[0])
    slope_theta = _times(-theta * _softplus_excess(d), tangents[1])
    return -theta * _softplus(d), slope_mean + slope_theta


@jax.custom_jvp
def _zero_inflated_log_prob_zero(logit: Array, base: Array) -> Array:
    # log[pi + (1-pi) p(0)] = log[exp(logit) + exp(base)] - log[1 + exp(logit)]
    #   = log(1 + exp(-|logit - base|)) - log(1 + exp(-|logit|))
    #     + max(logit, base) - max(logit, 0)
    larger = jnp.where(
        logit > base, jnp.minimum(logit, 0.0), base - jnp.maximum(logit, 0.0)
    )
    return _softplus(-jnp.abs(logit - base)) - _softplus(-jnp.abs(logit)) + larger


@_zero_inflated_log_prob_zero.defjvp
def _(primals, tangents):
    logit, base = primals
    # share of the zeros that are not drawn from base
    inflated = jax.nn.sigmoid(logit - base)
    slope_logit = inflated - jax.nn.sigmoid(logit)
    value = _zero_inflated_log_prob_zero(logit, base)
    slope = _times(slope_logit, tangents[0])
    return value, slope + _times(1.0 - inflated, tangents[1])


# --- links ----------------------------------------------------------------------------


def _with_axes_of(value: Array, like: Array) -> Array:
    """A [G] or [B, 1] array with as many axes as `like`, new ones in front."""
    return value.reshape((1,) * (like.ndim - value.ndim) + value.shape)


def _expect_of_cells(name: str, value: Array, of_genes: Array) -> None:
    """Refuse [B, 1] where [B] is meant, which would meet [B, G] as [B, B, G]."""
    own, cells = jnp.shape(value), of_genes.shape[:-1]
    if cells in ((), (1,)):
        # means of all cells may meet one number for each
        cells = own[:1]
    sizes = zip(reversed(own), reversed(cells), strict=False)
    if len(own) > len(cells) or any(size not in (1, n) for size, n in sizes):
        raise ValueError(
            f"found {name} of shape {own} for means of shape "
            f"{of_genes.shape}, expected one number for each cell, leave out the axis "
            "of genes"
        )


def _log_mean(mean: str) -> Callable[[Params, Covariates], Array]:
    """The link of the mean: "library" or "free"."""
    if mean not in ("library", "free"):
        raise ValueError(
            f"found mean={mean!r}, expected 'library' or 'free', "
            "choose how the mean is parameterised"
        )

    def log_mean(heads: Params, covariates: Covariates) -> Array:
        if mean == "free":
            return heads["log_mean"]
        # log mu_g = log softmax(head)_g + log depth
        (logits,) = _floats(heads["log_mean"])
        _expect_of_cells("depth", covariates.depth, logits)
        log_depth = _with_axes_of(jnp.log(covariates.depth)[..., None], logits)
        # log_softmax shifts all logits first, a pass over them more; this rounds the
        # total of a cell to 1e-7 of the logits
        return logits + (log_depth - jax.nn.logsumexp(logits, axis=-1, keepdims=True))

    return log_mean


# --- factories ------------------------------------------------------------------------


def poisson(*, mean: str = "library") -> Likelihood:
    """Poisson counts: log p = x log mu - mu - log x!.

    Args:
        mean: "library": log mu = log softmax(head) + log depth, the "constrained
            Poisson" of [2]; such a bound conditions on the total of the cell. "free":
            log mu is the head itself. The two are not comparable as they are.

    Returns:
        A likelihood with params log_mean.

    Raises:
        ValueError: for another `mean`.
    """
    log_mean = _log_mean(mean)
    return Likelihood(
        name="poisson",
        heads=(Head("log_mean"),),
        free=(),
        link=lambda heads, free, covariates: {"log_mean": log_mean(heads, covariates)},
        log_prob=lambda x, p: _poisson_log_prob(*_floats(x, p["log_mean"])),
        log_prob_zero=lambda p: -jnp.exp(_floats(p["log_mean"])[0]),
        mean=lambda p: jnp.exp(p["log_mean"]),
        variance=lambda p: jnp.exp(p["log_mean"]),
        sample=lambda key, p: _sample_poisson(key, jnp.exp(*_floats(p["log_mean"]))),
        start=_start_at_mean,
    )


def _start_at_mean(mean: Array, n_obs: int) -> Params:
    # half a count more for each gene: one that was not seen is rare, not impossible
    return {"log_mean": jnp.log(mean + 0.5 / n_obs)}


# jax draws Poisson numbers by what float32 rounds where they are large; from here on a
# normal with the skewness of a Poisson is better
NORMAL_FROM = 1e5


def _sample_poisson(key: Array, rate: Array) -> Array:
    low = jnp.minimum(rate, NORMAL_FROM)
    drawn = jax.random.poisson(key, low).astype(rate.dtype)
    noise = jax.random.normal(jax.random.fold_in(key, 1), rate.shape, rate.dtype)
    # Cornish & Fisher: skewness 1 / sqrt(rate)
    normal = jnp.round(rate + jnp.sqrt(rate) * noise + (noise**2 - 1.0) / 6.0)
    drawn = jnp.where(rate > NORMAL_FROM, normal, drawn)
    return jnp.where(rate >= 0, drawn, jnp.nan)


def negative_binomial(*, dispersion: str = "gene", mean: str = "library") -> Likelihood:
    """Negative binomial counts of mean mu and variance mu + mu^2 / theta.

    Args:
        dispersion: log theta, the inverse dispersion, is learned per gene ("gene"), per
            batch and gene ("gene_batch"; a code of no batch has log theta 0), or
            computed by the decoder for each cell and gene ("gene_cell", the form of
            [2]).
        mean: "library" or "free", as for `poisson`.

    Returns:
        A likelihood with params log_mean and log_dispersion (log theta).

    Raises:
        ValueError: for another `dispersion` or `mean`.
    """
    log_mean = _log_mean(mean)
    kinds = ("gene", "gene_batch", "gene_cell")
    if dispersion not in kinds:
        raise ValueError(
            f"found dispersion={dispersion!r}, expected one of {', '.join(kinds)}, "
            "choose what the dispersion is shared by"
        )
    axes = {"gene": ("gene",), "gene_batch": ("batch", "gene")}

    def link(heads: Params, free: Params, covariates: Covariates) -> Params:
        log_mu = log_mean(heads, covariates)
        if dispersion == "gene_cell":
            log_theta = heads["log_dispersion"]
        elif dispersion == "gene":
            log_theta = _with_axes_of(free["log_dispersion"], log_mu)
        elif covariates.batch is None:
            raise ValueError(
                "found no batch, expected one for dispersion='gene_batch', "
                "give a batch key or choose dispersion='gene'"
            )
        else:
            _expect_of_cells("batch", covariates.batch, log_mu)
            # a product: gradients of rows looked up meet in no order on a GPU
            table = free["log_dispersion"]
            one_hot = jax.nn.one_hot(covariates.batch, len(table), dtype=table.dtype)
            of_cells = jnp.matmul(one_hot, table, precision="highest")
            log_theta = _with_axes_of(of_cells, log_mu)
        return {"log_mean": log_mu, "log_dispersion": log_theta}

    def sample(key: Array, p: Params) -> Array:
        # x ~ Poisson(r), r ~ Gamma(theta, mean mu)
        key_rate, key_count = jax.random.split(key)
        log_mu, log_theta = jnp.broadcast_arrays(*_floats(*_nb_params(p)))
        log_gamma = jax.random.loggamma(
            key_rate, jnp.exp(log_theta), dtype=log_theta.dtype
        )
        return _sample_poisson(key_count, jnp.exp(log_gamma + log_mu - log_theta))

    def variance(p: Params) -> Array:
        log_mu, log_theta = _nb_params(p)
        return jnp.exp(log_mu) + jnp.exp(2.0 * log_mu - log_theta)

    cell_head = (Head("log_dispersion"),) if dispersion == "gene_cell" else ()
    gene_free = () if cell_head else (Free("log_dispersion", axes[dispersion]),)
    return Likelihood(
        name="negative_binomial",
        heads=(Head("log_mean"), *cell_head),
        free=gene_free,
        link=link,
        log_prob=lambda x, p: _nb_log_prob(*_floats(x, *_nb_params(p))),
        log_prob_zero=lambda p: _nb_log_prob_zero(*_floats(*_nb_params(p))),
        mean=lambda p: jnp.exp(p["log_mean"]),
        variance=variance,
        sample=sample,
        start=_start_at_mean,
    )


def _nb_params(p: Params) -> tuple[Array, Array]:
    return p["log_mean"], p["log_dispersion"]


def zero_inflated(base: Likelihood) -> Likelihood:
    """A count that is zero with probability pi, and drawn from `base` otherwise.

    Args:
        base: a count family.

    Returns:
        A likelihood with the params of `base` and zero_logit (log pi - log(1 - pi)).

    Raises:
        ValueError: if `base` is not a count family, or is zero-inflated already.
    """
    _expect_counts("zero_inflated", base, "zero_logit")

    def link(heads: Params, free: Params, covariates: Covariates) -> Params:
        params = base.link(heads, free, covariates)
        return params | {"zero_logit": heads["zero_logit"]}

    # a family of one's own may have no closed form
    base_zero = base.log_prob_zero or (lambda p: base.log_prob(jnp.zeros(()), p))

    def log_prob_zero(p: Params) -> Array:
        logit, zero = _floats(p["zero_logit"], base_zero(p))
        return _zero_inflated_log_prob_zero(logit, zero)

    def log_prob(x: Array, p: Params) -> Array:
        # log(1-pi) = -softplus(logit)
        (logit,) = _floats(p["zero_logit"])
        positive = base.log_prob(x, p) - _softplus(logit)
        return jnp.where(x == 0, log_prob_zero(p), positive)

    def variance(p: Params) -> Array:
        # (1-pi) (Var + pi E^2)
        pi = jax.nn.sigmoid(p["zero_logit"])
        # 1 - pi would be 0 where pi rounds to 1
        return jax.nn.sigmoid(-p["zero_logit"]) * (
            base.variance(p) + pi * base.mean(p) ** 2
        )

    def sample(key: Array, p: Params) -> Array:
        key_base, key_zero = jax.random.split(key)
        x = _sample_base(base, key_base, p, Head("zero_logit"))
        pi = jnp.broadcast_to(jax.nn.sigmoid(p["zero_logit"]), x.shape)
        return jnp.where(jax.random.bernoulli(key_zero, pi), 0.0, x)

    return base._replace(
        name=f"zero_inflated_{base.name}",
        heads=(*base.heads, Head("zero_logit")),
        link=link,
        log_prob=log_prob,
        log_prob_zero=log_prob_zero,
        mean=lambda p: jax.nn.sigmoid(-p["zero_logit"]) * base.mean(p),
        variance=variance,
        sample=sample,
    )


def categorised(base: Likelihood, k_max: int) -> Likelihood:
    """Piecewise categorical of [2]: counts below k_max have probabilities of their own.

    P(x = k) = pi_k for k < k_max, and P(x) = pi_kmax base(x - k_max) from there on.
    With a library mean, it is the mean of `base` that sums to the depth, not E[x].

    Args:
        base: a count family.
        k_max: the number of counts with a probability of their own, at least 1.

    Returns:
        A likelihood with the params of `base` and class_logits [..., k_max + 1].

    Raises:
        ValueError: if `base` is not a count family, or for k_max outside 1 to 1000.
    """
    _expect_counts("categorised", base, "class_logits")
    if not isinstance(k_max, int) or not 1 <= k_max <= 1000:
        raise ValueError(
            f"found k_max={k_max!r}, expected a whole number, at least 1 and at most "
            "1000, give the number of counts that get a probability of their own"
        )

    def link(heads: Params, free: Params, covariates: Covariates) -> Params:
        params = base.link(heads, free, covariates)
        return params | {"class_logits": heads["class_logits"]}

    def log_prob(x: Array, p: Params) -> Array:
        x, logits = _floats(x, p["class_logits"])
        log_pi = jax.nn.log_softmax(logits, axis=-1)
        # one comparison per class instead of a gather: k_max is small
        own = log_pi[..., 0]
        for k in range(1, k_max):
            own = jnp.where(x == k, log_pi[..., k], own)
        tail = log_pi[..., k_max] + base.log_prob(jnp.maximum(x - k_max, 0.0), p)
        whole = (x >= 0) & (x == jnp.floor(x))
        return jnp.where(whole, jnp.where(x < k_max, own, tail), jnp.nan)

    def moments(p: Params) -> tuple[Array, Array]:
        pi = jax.nn.softmax(p["class_logits"], axis=-1)
        k = jnp.arange(k_max, dtype=pi.dtype).reshape((1,) * (pi.ndim - 1) + (k_max,))
        tail_mean = k_max + base.mean(p)
        mean = (pi[..., :k_max] * k).sum(-1) + pi[..., k_max] * tail_mean
        # about the mean: a difference of squares would cancel where it is large
        within = (pi[..., :k_max] * (k - mean[..., None]) ** 2).sum(-1)
        tail = base.variance(p) + (tail_mean - mean) ** 2
        return mean, within + pi[..., k_max] * tail

    def sample(key: Array, p: Params) -> Array:
        key_base, key_class = jax.random.split(key)
        x = _sample_base(base, key_base, p, Head("class_logits", (k_max + 1,)))
        k = jax.random.categorical(key_class, p["class_logits"], -1, x.shape)
        return jnp.where(k < k_max, k.astype(x.dtype), x + k_max)

    return base._replace(
        name=f"categorised_{base.name}",
        heads=(*base.heads, Head("class_logits", (k_max + 1,))),
        link=link,
        log_prob=log_prob,
        log_prob_zero=lambda p: jax.nn.log_softmax(*_floats(p["class_logits"]))[..., 0],
        mean=lambda p: moments(p)[0],
        variance=lambda p: moments(p)[1],
        sample=sample,
        support="integers",
    )


def _sample_base(base: Likelihood, key: Array, p: Params, own: Head) -> Array:
    """Samples of `base` in the shape that all params broadcast to, one's own too."""
    trailing = base.trailing | {own.name: own.shape}

    def of_cells(name: str) -> tuple[int, ...]:
        shape = jnp.shape(p[name])
        return shape[: len(shape) - len(trailing.get(name, ()))]

    shape = jnp.broadcast_shapes(*map(of_cells, p))
    names = [name for name in p if name != own.name]
    full = {n: jnp.broadcast_to(p[n], shape + trailing.get(n, ())) for n in names}
    return base.sample(key, full)


def _expect_counts(combinator: str, base: Likelihood, own: str) -> None:
    if not base.is_of_counts:
        raise ValueError(
            f"found {base.name}, expected a family of counts, "
            f"give {combinator} a poisson or a negative_binomial"
        )
    if any(head.name == own for head in base.heads):
        raise ValueError(
            f"found {base.name}, expected a family without {own}, "
            f"apply {combinator} once"
        )


def bernoulli() -> Likelihood:
    """Binary data: log p(1) = log sigmoid(logit). For binarised counts and images.

    Returns:
        A likelihood with params logit.
    """

    def log_prob(x: Array, p: Params) -> Array:
        x, logit = _floats(x, p["logit"])
        log_p = -jax.nn.softplus((1.0 - 2.0 * x) * logit)
        return jnp.where((x == 0) | (x == 1), log_p, jnp.nan)

    return Likelihood(
        name="bernoulli",
        heads=(Head("logit"),),
        free=(),
        link=lambda heads, free, covariates: {"logit": heads["logit"]},
        log_prob=log_prob,
        log_prob_zero=lambda p: -jax.nn.softplus(*_floats(p["logit"])),
        mean=lambda p: jax.nn.sigmoid(p["logit"]),
        variance=lambda p: jax.nn.sigmoid(p["logit"]) * jax.nn.sigmoid(-p["logit"]),
        sample=lambda key, p: jax.random.bernoulli(
            key, jax.nn.sigmoid(p["logit"])
        ).astype(jnp.result_type(p["logit"], jnp.float32)),
        support="binary",
        start=lambda mean, n_obs: {
            "logit": jnp.log(mean + 0.5 / n_obs) - jnp.log(1.0 - mean + 0.5 / n_obs)
        },
    )


def gaussian() -> Likelihood:
    """Real data that is normalised already; a density, never comparable with counts.

    Returns:
        A likelihood with params mean and log_scale.
    """

    def log_prob(x: Array, p: Params) -> Array:
        x, mean, log_scale = _floats(x, p["mean"], p["log_scale"])
        standard = (x - mean) * jnp.exp(-log_scale)
        return -0.5 * standard**2 - log_scale - HALF_LOG_2PI

    def sample(key: Array, p: Params) -> Array:
        mean, log_scale = jnp.broadcast_arrays(*_floats(p["mean"], p["log_scale"]))
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.exp(log_scale) * noise

    return Likelihood(
        name="gaussian",
        heads=(Head("mean"), Head("log_scale")),
        free=(),
        link=lambda heads, free, covariates: dict(heads),
        log_prob=log_prob,
        log_prob_zero=None,
        mean=lambda p: p["mean"],
        variance=lambda p: jnp.exp(2.0 * p["log_scale"]),
        sample=sample,
        support="real",
        start=lambda mean, n_obs: {"mean": mean},
    )


# --- totals ---------------------------------------------------------------------------


def total_log_prob(
    likelihood: Likelihood,
    x: Array,
    params: Params,
    nonzero: tuple[Array, Array, Array] | None = None,
) -> Array:
    """Log-probability of each cell, summed over its genes.

    With the addresses of the non-zero entries, special functions are evaluated there
    alone, and the closed form of log p(0) everywhere, without a look at x:

        sum_g log p(x_g) = sum_g log p(0) + sum_{g: x_g > 0} [log p(x_g) - log p(0)]

    The difference rounds to 1e-7 |log p(0)|, which is little unless a mean is immense.

    Args:
        likelihood: the family.
        x: [B, G] data.
        params: arrays that broadcast against [B, G], trailing axes apart.
        nonzero: (cell [R], gene [R, W], value [R, W]) of every non-zero entry of x,
            each once, in rows of W that belong to one cell each. An entry of value 0
            or out of range is padding. Without it, or where the family has no closed
            form at zero, the sum is dense.

    Returns:
        [B] nats per cell.
    """
    if nonzero is None or likelihood.log_prob_zero is None:
        return likelihood.log_prob(x, params).sum(axis=-1)
    params = {
        name: _of_cells_and_genes(jnp.asarray(p), likelihood.trailing.get(name, ()))
        for name, p in params.items()
    }
    cell, gene, value = (jnp.asarray(a) for a in nonzero)
    inside = (cell >= 0) & (cell < x.shape[0])
    present = inside[:, None] & (gene >= 0) & (gene < x.shape[1]) & (value != 0)
    value = jnp.where(present, value, 1.0)

    def of_entries(gathered: Params) -> Array:
        log_prob = likelihood.log_prob(value, gathered)
        return jnp.where(present, log_prob - likelihood.log_prob_zero(gathered), 0.0)

    log_zero = likelihood.log_prob_zero(params)
    if jax.default_backend() != "cpu":
        # every entry at an address of its own: where sums meet at one, as those of
        # gradients of a gene's parameter do, a GPU takes them in no order, and slowly
        at = (jnp.where(present, cell[:, None], x.shape[0]), gene)
        gathered = {
            name: jnp.broadcast_to(p, x.shape + p.shape[2:])
            .at[at]
            .get(mode="fill", fill_value=0.0, unique_indices=True)
            for name, p in params.items()
        }
        log_zero = jnp.broadcast_to(log_zero, x.shape)
        entries = of_entries(gathered)
        return log_zero.at[at].add(entries, mode="drop", unique_indices=True).sum(-1)
    cell = jnp.where(inside, cell, 0)
    gene = jnp.where(present, gene, 0)
    gathered = {
        name: p[0 if p.shape[0] == 1 else cell[:, None], 0 if p.shape[1] == 1 else gene]
        for name, p in params.items()
    }
    of_rows = of_entries(gathered).sum(axis=-1)
    log_zero = jnp.broadcast_to(log_zero, (log_zero.shape[0], x.shape[1]))
    # XLA's fused sum of a long formula is twice as slow on a CPU as array and product
    ones = jnp.ones(log_zero.shape[-1], log_zero.dtype)
    # of -log p(0): what is negative in most families needs no pass of its own then
    of_zeros = -jnp.matmul(-log_zero, ones, precision="highest")
    return of_zeros + jax.ops.segment_sum(of_rows, cell, num_segments=x.shape[0])


def _of_cells_and_genes(p: Array, trailing: tuple[int, ...]) -> Array:
    """A parameter with an axis of cells and one of genes, be they of length 1."""
    missing = max(0, 2 + len(trailing) - p.ndim)
    return p.reshape((1,) * missing + p.shape)


# --- names ----------------------------------------------------------------------------

FACTORIES: dict[str, Callable[..., Likelihood]] = {
    "poisson": poisson,
    "negative_binomial": negative_binomial,
    "zero_inflated_poisson": lambda **options: zero_inflated(poisson(**options)),
    "zero_inflated_negative_binomial": lambda **options: zero_inflated(
        negative_binomial(**options)
    ),
    "categorised_poisson": lambda k_max=3, **options: categorised(
        poisson(**options), k_max
    ),
    "categorised_negative_binomial": lambda k_max=3, **options: categorised(
        negative_binomial(**options), k_max
    ),
    "bernoulli": bernoulli,
    "gaussian": gaussian,
}


def from_name(name: str, /, **options: Any) -> Likelihood:
    """The likelihood that a configuration names.

    Args:
        name: one of FACTORIES.
        **options: the arguments of its factory (dispersion, mean, k_max).

    Returns:
        The likelihood.

    Raises:
        ValueError: for an unknown name, listing the known ones, or a wrong option.
    """
    if name not in FACTORIES:
        raise ValueError(
            f"found likelihood {name!r}, expected one of {', '.join(FACTORIES)}, "
            "choose one of these"
        )
    try:
        return FACTORIES[name](**options)
    except TypeError as error:
        raise ValueError(
            f"found options {options} for likelihood {name!r}, "
            f"expected options that it has, remove the others ({error})"
        ) from None
