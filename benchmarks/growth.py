"""What a step costs: by part, and as each size grows; memory; a part of `speed.py`.

Negative binomial unless stated, one hidden layer of 128, latent 10, no dropout; at the
base 2,000 genes, batch 128, a tenth of the counts non-zero, one sample. Parts are the
differences of programs that each do one thing more. Memory is what the compiler plans
for a program of several steps, beside its arguments; slots are those that a batch of
the device's counts has, of which some are padding.
"""

from pathlib import Path

import anndata
import floor
import jax
import numpy as np
import scipy.sparse
from common import N_STEPS, as_in_fits, first_state, seconds

from scvae_jax import batches, objectives, steps
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.config import ModelConfig

BASE = {"n_genes": 2000, "batch_size": 128, "density": 0.1, "n_samples": 1}
AXES = {
    "n_genes": (500, 2000, 8000, 20_000),
    "batch_size": (32, 128, 512, 2048),
    "density": (0.01, 0.03, 0.1, 0.3),
    "n_samples": (1, 2, 5, 10),
}
MIXTURES = {"shared": (1, 8, 32), "conditional": (1, 2, 4, 8)}
N_OBS = (1000, 10_000, 100_000)


def step_of(sizes: dict, config: ModelConfig) -> floor.Program:
    """A program of N_STEPS steps at these sizes."""
    cells = floor.cells_of(
        sizes["n_genes"], N_STEPS * sizes["batch_size"], sizes["density"]
    )
    return floor.ours(
        config, sizes["n_genes"], cells, sizes["batch_size"], sizes["n_samples"]
    )


def growth(repeats: int) -> list[dict]:
    """Milliseconds of a step along each axis, the others at the base."""
    base = step_of(BASE, floor.plain_config())
    programs = {}
    for axis, values in AXES.items():
        for value in values:
            sizes = BASE | {axis: value}
            at_base = sizes == BASE
            made = base if at_base else step_of(sizes, floor.plain_config())
            programs[axis, value] = made
    for posterior, values in MIXTURES.items():
        for k in values:
            options = {"model": "gmvae", "n_clusters": k, "posterior": posterior}
            program = step_of(BASE, floor.plain_config(**options))
            programs[f"n_clusters, {posterior}", k] = program
    # all in turns, so that the curves are of one machine
    times = seconds(programs, repeats)
    return [
        {
            "axis": axis,
            "value": value,
            "milliseconds": round(1e3 * times[axis, value] / N_STEPS, 3),
            "planned_megabytes": program.megabytes,
        }
        for (axis, value), program in programs.items()
    ]


def epochs(repeats: int) -> list[dict]:
    """Microseconds a cell of an epoch over so many cells."""
    programs = {}
    for n_obs in N_OBS:
        cells = floor.cells_of(BASE["n_genes"], n_obs, 0.03)
        programs[n_obs] = floor.ours(floor.plain_config(), BASE["n_genes"], cells)
    times = seconds(programs, min(repeats, 3))
    return [
        {
            "axis": "n_obs, density 0.03",
            "value": n_obs,
            "microseconds_a_cell": round(1e6 * times[n_obs] / n_obs, 2),
            "planned_megabytes": programs[n_obs].megabytes,
        }
        for n_obs in N_OBS
    ]


def parts(n_genes: int, likelihood: str, repeats: int) -> dict:
    """Milliseconds of each part of a step."""
    config = floor.plain_config(likelihood=likelihood)
    model = from_config(config, named_likelihood(config), n_genes=n_genes)
    optimizer = steps.default_optimizer(1000)
    cells = floor.cells_of(n_genes)
    positions, n_slots = batches.in_order(cells, BASE["batch_size"])
    state = first_state(model, optimizer)
    objective = objectives.elbo()

    def cut(total, params, batch):
        return total + batch.counts[0].nonzero[2].sum()

    def encode(total, params, batch):
        return total + model.encode(params, batch).mean().sum()

    def loss(params, batch):
        terms = model.terms(params, jax.random.key(1), batch)
        return objective.loss(terms, 1.0).mean()

    def value(total, params, batch):
        return total + loss(params, batch)

    def gradients(total, params, batch):
        # added to what is carried, so that none is left out
        return jax.tree.map(lambda a, b: a + b, total, jax.grad(loss)(params, batch))

    def program(function, start):
        def run(start, params, cells, positions):
            def one(total, position):
                batch = batches.cut(cells, *position, n_genes, n_slots)
                return function(total, params, batch), None

            return jax.lax.scan(one, start, positions)[0]

        arguments = start, state.params, cells, positions
        return floor.Program(run, *arguments, compiled=as_in_fits)

    zeros = jax.tree.map(lambda leaf: 0.0 * leaf, state.params)
    programs = {
        "cut": program(cut, 0.0),
        "encode": program(encode, 0.0),
        "decode and likelihood": program(value, 0.0),
        "gradients": program(gradients, zeros),
        "optimiser and checks": floor.ours(config, n_genes, cells),
    }
    times = seconds(programs, repeats)
    row = {"n_genes": n_genes, "likelihood": likelihood}
    before = 0.0
    for name, time in times.items():
        row[name] = round(1e3 * (time - before) / N_STEPS, 3)
        before = time
    return row


def slots(name: str, x: scipy.sparse.csr_matrix, batch_size: int = 128) -> dict:
    """How many slots a batch has for its entries, and bytes of each entry."""
    depth = np.ones(x.shape[0], np.float32)
    cells = batches.to_device(x, depth, np.zeros((len(depth), 0), np.int32))
    length = np.asarray(cells.length)
    # as training has them, where the fullest batch does not take more
    n_slots = batches.slots_to_spare(length, batch_size)
    n_entries = x.nnz / -(-len(length) // batch_size)
    fullest_cell = int(np.diff(x.indptr).max())
    return {
        "cells": name,
        "n_obs": x.shape[0],
        "n_genes": x.shape[1],
        "entries_of_a_cell": round(x.nnz / x.shape[0], 1),
        "entries_of_the_fullest": fullest_cell,
        "slots_of_a_batch": n_slots,
        "entries_of_a_batch": round(n_entries),
        "slots_for_an_entry": round(n_slots / n_entries, 3),
        "if_every_cell_had_those_of_the_fullest": round(
            fullest_cell * batch_size / n_entries, 3
        ),
        "bytes_an_entry": round((cells.gene.nbytes + cells.value.nbytes) / x.nnz, 2),
    }


def heavy_tailed(n_obs: int, n_genes: int) -> scipy.sparse.csr_matrix:
    """Cells whose share of genes seen is log-normal, with a spread of 1."""
    random = np.random.default_rng(0)
    share = np.clip(0.03 * np.exp(random.normal(0.0, 1.0, n_obs)), 0.0, 0.9)
    x = random.random((n_obs, n_genes)) < share[:, None]
    return scipy.sparse.csr_matrix(x, dtype=np.float32)


def all_slots(data: Path) -> list[dict]:
    found = [
        slots("a tenth of the counts", floor.counts_of(4000, 2000)),
        slots("heavy-tailed", heavy_tailed(4000, 5000)),
    ]
    for path in sorted(data.glob("*.h5ad")):
        x = scipy.sparse.csr_matrix(anndata.read_h5ad(path).X).astype(np.float32)
        found.append(slots(path.stem, x))
    return found


def measure(repeats: int) -> dict:
    """A step by size and by part."""
    result = {"growth": growth(repeats) + epochs(repeats)}
    result["parts"] = [
        parts(n_genes, likelihood, repeats)
        for n_genes in (2000, 20_000)
        for likelihood in ("negative_binomial", "zero_inflated_negative_binomial")
    ]
    return result
