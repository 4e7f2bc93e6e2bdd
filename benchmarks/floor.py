"""Train steps against the floor that their arithmetic sets.

    python benchmarks/floor.py --out benchmarks/floor.json

The floor of a step is one program of its gene-wide matrix products (encoder forward and
weight gradient; per head forward and two gradients) and the optimiser's pass over their
weights, and nothing else. Our step takes cells from the device and does all that
training does. Hidden layer 128, latent 10, batch 128, no dropout, a tenth of the counts
non-zero; several steps to a program on both sides, which take turns.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from common import N_STEPS, add, first_state, step_seconds, write

from scvae_jax import batches, objectives, steps
from scvae_jax.config import ModelConfig
from scvae_jax.models import from_config, named_likelihood

BATCH_SIZE = 128
DENSITY = 0.1


def counts_of(n_obs: int, n_genes: int) -> scipy.sparse.csr_matrix:
    """Counts of one and more at a tenth of the places."""
    random = np.random.default_rng(0)
    x = scipy.sparse.random_array(
        (n_obs, n_genes), density=DENSITY, rng=random, format="csr"
    )
    x.data = 1.0 + random.poisson(1.0, len(x.data))
    return scipy.sparse.csr_matrix(x.astype(np.float32))


def cells_of(n_genes: int) -> batches.CellData:
    """Cells of such counts, for N_STEPS batches."""
    x = counts_of(N_STEPS * BATCH_SIZE, n_genes)
    depth = np.asarray(x.sum(axis=1)).ravel()
    return batches.to_device(x, depth, np.zeros((len(depth), 0), np.int32))


def floor(n_genes: int, n_heads: int, hidden: int) -> Any:
    """The compiled floor and its arguments."""
    optimizer = steps.default_optimizer(1000)
    key = jax.random.key(0)
    into = jax.random.normal(key, (n_genes, hidden)) / n_genes**0.5
    out = jax.random.normal(key, (hidden, n_genes)) / hidden**0.5
    params = {"in": {"kernel": into}}
    params |= {str(i): {"kernel": out} for i in range(n_heads)}
    x = jax.random.normal(key, (N_STEPS, BATCH_SIZE, n_genes))

    def step(carry, x):
        params, opt_state = carry
        h = x @ params["in"]["kernel"]
        gradients, to_h = {}, jnp.zeros_like(h)
        for i in range(n_heads):
            kernel = params[str(i)]["kernel"]
            # stands for the gradient of the likelihood, small so that nothing grows
            slope = 1e-6 * (h @ kernel)
            gradients[str(i)] = {"kernel": h.T @ slope}
            to_h += slope @ kernel.T
        gradients["in"] = {"kernel": x.T @ to_h}
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (add(params, updates), opt_state), None

    start = (params, optimizer.init(params))
    program = jax.jit(lambda start, x: jax.lax.scan(step, start, x)[0])
    program = program.lower(start, x).compile()
    return lambda: program(start, x)


def ours(config: ModelConfig, n_genes: int, cells: batches.CellData) -> Any:
    """A compiled epoch of ours, from cells on the device."""
    model = from_config(config, named_likelihood(config), n_genes=n_genes)
    optimizer = steps.default_optimizer(1000)
    step = steps.make_train_step(model, objectives.elbo(), optimizer)
    state = first_state(model, optimizer)
    positions, n_slots = batches.in_order(cells, BATCH_SIZE)

    def epoch(state, cells, positions):
        def one(state, position):
            batch = batches.cut(cells, *position, n_genes, n_slots)
            return step(state, batch)

        return jax.lax.scan(one, state, positions)[0]

    program = jax.jit(epoch).lower(state, cells, positions).compile()
    return lambda: program(state, cells, positions)


def measure(n_genes: int, repeats: int) -> dict:
    cells = cells_of(n_genes)
    likelihoods = {
        "poisson": 1,
        "negative_binomial": 1,
        "zero_inflated_negative_binomial": 2,
    }
    programs = {f"floor {heads}": floor(n_genes, heads, 128) for heads in (1, 2)}
    for name in likelihoods:
        config = ModelConfig(
            likelihood=name,
            hidden_sizes=(128,),
            dropout_input=0.0,
            dropout_hidden=0.0,
            dropout_decoder=0.0,
        )
        programs[name] = ours(config, n_genes, cells)
    times = step_seconds(programs, repeats)
    rows = [
        {
            "likelihood": name,
            "milliseconds": round(1e3 * times[name], 2),
            "floor_milliseconds": round(1e3 * times[f"floor {heads}"], 2),
            "ratio": round(times[name] / times[f"floor {heads}"], 2),
            "cells_per_second": round(BATCH_SIZE / times[name]),
        }
        for name, heads in likelihoods.items()
    ]
    return {
        "n_genes": n_genes,
        "batch_size": BATCH_SIZE,
        "density": DENSITY,
        "steps": rows,
    }


if __name__ == "__main__":
    write(
        __doc__.splitlines()[0],
        lambda repeats: [measure(n_genes, repeats) for n_genes in (2000, 20_000)],
        "{n_genes} genes, batch {batch_size}",
        repeats=9,
    )
