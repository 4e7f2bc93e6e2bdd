"""Train steps against the floor that their arithmetic sets; a part of `speed.py`.

The floor of a step is one program of its gene-wide matrix products (encoder forward and
weight gradient; per head forward and two gradients) and the optimiser's pass over their
weights, and nothing else. Our step takes cells from the device and does all that
training does. Hidden layer 128, latent 10, batch 128, no dropout, a tenth of the counts
non-zero; several steps to a program on both sides, which take turns. Ours is compiled
as fits are, and once more with all that XLA does by default; floors have all of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
from common import N_STEPS, as_in_fits, first_state, seconds, step_seconds

from scvae_jax import batches, objectives, steps
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.config import ModelConfig
from scvae_jax.networks import matmul_of

BATCH_SIZE = 128
DENSITY = 0.1
# and their numbers of heads
LIKELIHOODS = {
    "poisson": 1,
    "negative_binomial": 1,
    "zero_inflated_negative_binomial": 2,
}


def plain_config(**options: Any) -> ModelConfig:
    """One hidden layer, latent 10, nothing hidden or dropped."""
    names = ("thinning", "dropout_input", "dropout_hidden", "dropout_decoder")
    rates = dict.fromkeys(names, 0.0)
    return ModelConfig(hidden_sizes=(128,), **rates, **options)


class Program:
    """A compiled program with its arguments, and the megabytes that it plans for."""

    def __init__(
        self,
        function: Callable,
        *arguments: Any,
        compiled: Callable = jax.stages.Lowered.compile,
    ):
        self.compiled = compiled(jax.jit(function).lower(*arguments))
        self.arguments = arguments
        planned = self.compiled.memory_analysis().temp_size_in_bytes
        self.megabytes = round(planned / 2**20, 1)

    def __call__(self) -> Any:
        """Run it."""
        return self.compiled(*self.arguments)


def counts_of(
    n_obs: int, n_genes: int, density: float = DENSITY
) -> scipy.sparse.csr_matrix:
    """Counts of one and more at a share of the places."""
    random = np.random.default_rng(0)
    found = []
    for start in range(0, n_obs, 1000):
        shape = (min(1000, n_obs - start), n_genes)
        part = scipy.sparse.csr_matrix(random.random(shape, np.float32) < density)
        found.append(part.astype(np.float32))
    x = scipy.sparse.vstack(found, format="csr")
    x.data = 1.0 + random.poisson(1.0, len(x.data)).astype(np.float32)
    return x


def cells_of(
    n_genes: int, n_obs: int = N_STEPS * BATCH_SIZE, density: float = DENSITY
) -> batches.CellData:
    """Cells of such counts, on the device."""
    x = counts_of(n_obs, n_genes, density)
    depth = np.asarray(x.sum(axis=1)).ravel()
    return batches.to_device(x, depth, np.zeros((len(depth), 0), np.int32))


def floor(
    n_genes: int,
    n_heads: int,
    hidden: int,
    batch_size: int = BATCH_SIZE,
    parts: tuple[str, ...] = ("products", "optimiser"),
    precision: str = "float32",
    times: int = 1,
) -> Program:
    """The gene-wide products and the optimiser's pass, or one of both.

    N_STEPS steps with inputs of their own, so many times over.
    """
    matmul = matmul_of(precision)
    optimizer = steps.default_optimizer(1000)
    key = jax.random.key(0)
    into = jax.random.normal(key, (n_genes, hidden)) / n_genes**0.5
    out = jax.random.normal(key, (hidden, n_genes)) / hidden**0.5
    params = {"in": {"kernel": into}}
    params |= {str(i): {"kernel": out} for i in range(n_heads)}
    x = jax.random.normal(key, (N_STEPS, batch_size, n_genes))

    def gradients_of(params, x):
        h = matmul(x, params["in"]["kernel"])
        gradients, to_h = {}, jnp.zeros_like(h)
        for i in range(n_heads):
            kernel = params[str(i)]["kernel"]
            # stands for the gradient of the likelihood, small so that nothing grows
            slope = 1e-6 * matmul(h, kernel)
            gradients[str(i)] = {"kernel": matmul(h.T, slope)}
            to_h += matmul(slope, kernel.T)
        gradients["in"] = {"kernel": matmul(x.T, to_h)}
        return gradients

    def step(carry, x):
        params, opt_state, gradients = carry
        if "products" in parts:
            gradients = gradients_of(params, x)
        if "optimiser" not in parts:
            return (params, opt_state, gradients), None
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        # those of the products are made anew in every step
        return (params, opt_state, None if "products" in parts else gradients), None

    together = parts == ("products", "optimiser")
    start = (params, optimizer.init(params), None if together else params)

    def run(start, x):
        return jax.lax.fori_loop(
            0, times, lambda _, carry: jax.lax.scan(step, carry, x)[0], start
        )

    return Program(run, start, x)


def ours(
    config: ModelConfig,
    n_genes: int,
    cells: batches.CellData,
    batch_size: int = BATCH_SIZE,
    n_samples: int = 1,
    times: int = 1,
    compiled: Callable = as_in_fits,
) -> Program:
    """An epoch of ours, from cells on the device, or so many in one program."""
    model = from_config(config, named_likelihood(config), n_genes=n_genes)
    optimizer = steps.default_optimizer(1000)
    one_sample = n_samples == 1
    objective = (
        objectives.elbo() if one_sample else objectives.importance_weighted(n_samples)
    )
    step = steps.make_train_step(model, objective, optimizer)
    state = first_state(model, optimizer)
    positions, n_slots = batches.in_order(cells, batch_size)
    positions = [np.tile(position, (times, 1)) for position in positions]

    def epoch(state, cells, positions):
        def one(state, position):
            batch = batches.cut(cells, *position, n_genes, n_slots)
            return step(state, batch)

        return jax.lax.scan(one, state, positions)[0]

    return Program(epoch, state, cells, positions, compiled=compiled)


def measure(n_genes: int, repeats: int) -> list[dict]:
    """Our steps against the floor, and the floor by part."""
    cells = cells_of(n_genes)
    programs = {f"floor {heads}": floor(n_genes, heads, 128) for heads in (1, 2)}
    for part in ("products", "optimiser"):
        for heads in (1, 2):
            programs[f"{part} {heads}"] = floor(n_genes, heads, 128, parts=(part,))
    by_default = jax.stages.Lowered.compile
    for name in LIKELIHOODS:
        config = plain_config(likelihood=name)
        programs[name] = ours(config, n_genes, cells)
        more = ours(config, n_genes, cells, compiled=by_default)
        programs[f"{name}, XLA's default"] = more
    times = step_seconds(programs, repeats)
    rows = []
    for name, heads in LIKELIHOODS.items():
        # operations of 2 + 3 heads products of [B, G] and [G, 128]
        operations = 2.0 * BATCH_SIZE * n_genes * 128 * (2 + 3 * heads)
        products = times[f"products {heads}"]
        rows.append(
            {
                "n_genes": n_genes,
                "likelihood": name,
                "milliseconds": round(1e3 * times[name], 2),
                "floor_milliseconds": round(1e3 * times[f"floor {heads}"], 2),
                "ratio": round(times[name] / times[f"floor {heads}"], 2),
                "milliseconds_compiled_by_default": round(
                    1e3 * times[f"{name}, XLA's default"], 2
                ),
                "products_milliseconds": round(1e3 * products, 2),
                "optimiser_milliseconds": round(1e3 * times[f"optimiser {heads}"], 2),
                "products_gigaflops": round(1e-9 * operations / products, 1),
                "cells_per_second": round(BATCH_SIZE / times[name]),
            }
        )
    return rows


def bandwidth(repeats: int) -> float:
    """Gigabytes a second, read and written, of a copy of 256 MB."""
    x = jnp.ones(2**26, jnp.float32)
    copy = Program(lambda x: x + 1.0, x)
    return round(1e-9 * 2 * x.nbytes / seconds({"copy": copy}, repeats)["copy"], 1)
