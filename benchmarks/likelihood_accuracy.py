"""Errors of log-probabilities in float32: ours, the textbook form, and scvi-tools'.

    python benchmarks/likelihood_accuracy.py --out benchmarks/likelihood_accuracy.json

The reference is mpmath at 50 digits on the same float32 inputs. An error counts in
units of what `scvae_jax.likelihoods` promises: 1 is the limit.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jax.scipy.special import gammaln

from scvae_jax import likelihoods

mpmath.mp.dps = 50
COUNTS = [0, 1, 2, 3, 5, 10, 30, 100, 1000, 10_000, 100_000, 1_000_000]
MEANS = [1e-8, 1e-4, 1e-2, 0.1, 0.5, 1, 3, 10, 100, 1e3, 1e4, 1e6]
THETAS = [1e-4, 1e-2, 0.1, 0.7, 1, 2.5, 10, 300, 1e4, 1e5, 1e6, 1e8]
LOGITS = [-80, -20, -3, 0, 3, 20, 80]


# --- references at 50 digits: value and gradient for one entry ------------------------


def _mp(*values: float) -> list[mpmath.mpf]:
    return [mpmath.mpf(float(v)) for v in values]


def poisson_reference(x: float, log_mean: float) -> tuple:
    x, log_mean = _mp(x, log_mean)
    mean = mpmath.exp(log_mean)
    return x * log_mean - mean - mpmath.loggamma(x + 1), {"log_mean": x - mean}


def nb_reference(x: float, log_mean: float, log_dispersion: float) -> tuple:
    x, log_mean, log_theta = _mp(x, log_mean, log_dispersion)
    mean, theta = mpmath.exp(log_mean), mpmath.exp(log_theta)
    log_total = mpmath.log(theta + mean)
    value = (
        mpmath.loggamma(x + theta)
        - mpmath.loggamma(theta)
        - mpmath.loggamma(x + 1)
        + theta * (log_theta - log_total)
        + x * (log_mean - log_total)
    )
    digammas = mpmath.psi(0, x + theta) - mpmath.psi(0, theta)
    slope = digammas + log_theta - log_total + (mean - x) / (theta + mean)
    return value, {
        "log_mean": (x - mean) * theta / (theta + mean),
        "log_dispersion": theta * slope,
    }


def zero_inflated_reference(base: Callable) -> Callable:
    def reference(x: float, zero_logit: float, **base_params: float) -> tuple:
        value, slopes = base(x, **base_params)
        (logit,) = _mp(zero_logit)
        pi = 1 / (1 + mpmath.exp(-logit))
        keep = 1 / (1 + mpmath.exp(logit))
        if x > 0:
            return value + mpmath.log(keep), {**slopes, "zero_logit": -pi}
        total = pi + keep * mpmath.exp(value)
        share = keep * mpmath.exp(value) / total
        slopes = {name: slope * share for name, slope in slopes.items()}
        slopes["zero_logit"] = pi * keep * (1 - mpmath.exp(value)) / total
        return mpmath.log(total), slopes

    return reference


# --- the forms that others use --------------------------------------------------------


def poisson_textbook(x, p):
    return x * p["log_mean"] - jnp.exp(p["log_mean"]) - gammaln(x + 1)


def nb_textbook(x, p):
    mean, theta = jnp.exp(p["log_mean"]), jnp.exp(p["log_dispersion"])
    return (
        gammaln(x + theta)
        - gammaln(theta)
        - gammaln(x + 1)
        + theta * jnp.log(theta / (theta + mean))
        + x * jnp.log(mean / (theta + mean))
    )


def nb_scvi(x, p, eps=1e-8):
    """The formula of scvi-tools 1.4.2, `log_nb_positive`, with its eps."""
    mean, theta = jnp.exp(p["log_mean"]), jnp.exp(p["log_dispersion"])
    log_total = jnp.log(theta + mean + eps)
    return (
        theta * (jnp.log(theta + eps) - log_total)
        + x * (jnp.log(mean + eps) - log_total)
        + gammaln(x + theta)
        - gammaln(theta)
        - gammaln(x + 1)
    )


def zinb_scvi(x, p, eps=1e-8):
    """The formula of scvi-tools 1.4.2, `log_zinb_positive`, with its eps."""
    mean, theta = jnp.exp(p["log_mean"]), jnp.exp(p["log_dispersion"])
    softplus_pi = jax.nn.softplus(-p["zero_logit"])
    log_theta_eps = jnp.log(theta + eps)
    log_total = jnp.log(theta + mean + eps)
    pi_theta_log = -p["zero_logit"] + theta * (log_theta_eps - log_total)
    at_zero = jax.nn.softplus(pi_theta_log) - softplus_pi
    positive = (
        -softplus_pi
        + pi_theta_log
        + x * (jnp.log(mean + eps) - log_total)
        + gammaln(x + theta)
        - gammaln(theta)
        - gammaln(x + 1)
    )
    return jnp.where(x < eps, at_zero, positive)


nb = likelihoods.negative_binomial()
zip_ = likelihoods.zero_inflated(likelihoods.poisson())
zinb = likelihoods.zero_inflated(nb)
GRID = {
    "log_mean": np.log(MEANS),
    "log_dispersion": np.log(THETAS),
    "zero_logit": LOGITS,
}
# family: (reference, its params, the forms that are compared)
FAMILIES = {
    "poisson": (
        poisson_reference,
        ("log_mean",),
        {"scvae_jax": likelihoods.poisson().log_prob, "textbook": poisson_textbook},
    ),
    "negative_binomial": (
        nb_reference,
        ("log_mean", "log_dispersion"),
        {"scvae_jax": nb.log_prob, "textbook": nb_textbook, "scvi-tools": nb_scvi},
    ),
    "zero_inflated_poisson": (
        zero_inflated_reference(poisson_reference),
        ("log_mean", "zero_logit"),
        {"scvae_jax": zip_.log_prob},
    ),
    "zero_inflated_negative_binomial": (
        zero_inflated_reference(nb_reference),
        ("log_mean", "log_dispersion", "zero_logit"),
        {"scvae_jax": zinb.log_prob, "scvi-tools": zinb_scvi},
    ),
}


def grid(names: tuple[str, ...], n_random: int, seed: int = 0) -> tuple:
    """Corners and random points: x [N] and params, each [N] in float32."""
    random = np.random.default_rng(seed)
    axes = [np.array(COUNTS, float), *(np.asarray(GRID[n], float) for n in names)]
    mesh = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    mesh = mesh[random.permutation(len(mesh))[:n_random]]
    columns = [np.floor(10 ** random.uniform(0, 6, n_random))]
    columns += [random.uniform(min(GRID[n]), max(GRID[n]), n_random) for n in names]
    spread = np.stack(columns, axis=1)
    # half of the random points near the mode, where cancellation is worst
    near = spread[: n_random // 2]
    noise = random.normal(size=len(near)) * np.sqrt(near[:, 0]) * 2
    near[:, 1] = np.log(np.maximum(near[:, 0] + noise, 0.5))
    points = np.concatenate([mesh, spread]).astype(np.float32)
    return points[:, 0], {n: points[:, i + 1] for i, n in enumerate(names)}


def errors(family: str, n_random: int = 1500) -> dict:
    """The largest error of each form, absolute and as a share of what is promised."""
    reference, names, forms = FAMILIES[family]
    x, params = grid(names, n_random)
    rows = [{n: params[n][i] for n in names} for i in range(len(x))]
    truth = [reference(x[i], **row) for i, row in enumerate(rows)]
    value = np.array([float(v) for v, _ in truth])
    slope = {n: np.array([float(s[n]) for _, s in truth]) for n in names}
    mean = np.exp(params["log_mean"].astype(float))
    relative = np.where(x <= 1e4, 1e-5, 1e-3)
    limit = relative * np.maximum(1, np.abs(value))
    result = {}
    for form, log_prob in forms.items():
        ours = jax.jit(log_prob)(x, params)
        slopes = jax.jit(jax.grad(lambda p, f=log_prob: f(x, p).sum()))(params)
        error = np.abs(np.asarray(ours, float) - value)
        row = {"value": _worst(error, limit, x, params)}
        for n in names:
            error = np.abs(np.asarray(slopes[n], float) - slope[n])
            bound = 1e-5 * np.maximum(1, np.abs(slope[n])) + 4 * 2.0**-24 * (x + mean)
            row[f"gradient_{n}"] = _worst(error, bound, x, params)
        result[form] = row
    return result


def _worst(error: np.ndarray, limit: np.ndarray, x: np.ndarray, params: dict) -> dict:
    error = np.where(np.isfinite(error), error, np.inf)
    i = int(np.argmax(error / limit))
    at = {"x": float(x[i])} | {n: float(p[i]) for n, p in params.items()}
    return {
        "share_of_limit": float(f"{error[i] / limit[i]:.4g}"),
        "error_there": float(f"{error[i]:.4g}"),
        "largest_error": float(f"{error.max():.4g}"),
        "at": at,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--points", type=int, default=1500)
    arguments = parser.parse_args()
    result = {family: errors(family, arguments.points) for family in FAMILIES}
    result["versions"] = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "mpmath": mpmath.__version__,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    }
    print(f"{'family':32s} {'form':11s} {'quantity':24s} {'error / limit':>13s}")
    for family in FAMILIES:
        for form, row in result[family].items():
            for quantity, worst in row.items():
                share = worst["share_of_limit"]
                print(f"{family:32s} {form:11s} {quantity:24s} {share:13.3g}")
    if arguments.out:
        # infinity is not JSON: it is written as a string
        text = json.dumps(result, indent=1).replace("Infinity", '"Infinity"')
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
