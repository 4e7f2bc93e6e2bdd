"""Cost of a mixture's train step against that of a VAE of the same sizes.

    python benchmarks/mixtures.py --out benchmarks/mixtures.json

With d the share of a VAE step that follows the entry of y (draw, decoder, likelihood
and their gradients; the optimiser's pass is set apart), a step with the conditional
posterior should cost no more than 1.1 (1 + (K - 1) d) VAE steps, and one with the
shared posterior no more than 1.15 at every K. Beside the times stand the operations of
the gene-wide matrix products, counted by hand: the compiler counts a loop once. Figures
are medians over processes, as the same programs differ by 8 % from one to the next; the
first compiles them for all.
"""

import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import optax
from common import epoch_of, first_state, simulated_batches, step_seconds, write

from scvae_jax import objectives, steps
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.config import ModelConfig, completed

CLUSTERS = (1, 2, 5, 10, 20)
BATCH_SIZE = 128
N_PROCESSES = 9


def operations(config: ModelConfig, n_genes: int, n_decodes: int) -> float:
    """Of the encoder's two gene-wide products, and three of each head and decode."""
    n_heads = len(named_likelihood(config).heads)
    products = 2 * config.hidden_sizes[0]
    products += 3 * n_heads * n_decodes * config.hidden_sizes[0]
    return 2.0 * BATCH_SIZE * n_genes * products


def measure(n_genes: int, repeats: int) -> dict:
    batches = simulated_batches(n_genes, BATCH_SIZE)
    # the VAE hides as much of its encoder as a mixture does
    config = completed(ModelConfig(), "gmvae")
    likelihood = named_likelihood(config)
    optimizer = steps.default_optimizer(1000)
    vae = from_config(config, likelihood, n_genes=n_genes)
    programs = {}

    def program(name, model):
        state = first_state(model, optimizer)
        step = steps.make_train_step(model, objectives.elbo(), optimizer)
        programs[name] = epoch_of(lambda s, batch: step(s, batch)[0], state, batches)
        return state

    states = {"vae": program("vae", vae)}
    for k in CLUSTERS:
        for posterior in ("shared", "conditional"):
            options = {"model": "gmvae", "n_clusters": k, "posterior": posterior}
            model = from_config(ModelConfig(**options), likelihood, n_genes=n_genes)
            # that of the fewest clusters is kept
            states.setdefault(posterior, program(f"{posterior} {k}", model))
    state = states["vae"]

    def before_y(carry, batch):
        number, _ = carry

        def loss(encoder):
            keys = jax.random.split(jax.random.fold_in(state.key, number))
            params = state.params | {"encoder": encoder}
            posterior = vae.encode(params, batch, keys[0])
            return posterior.sample(seed=keys[1]).sum() + posterior.mean().sum()

        # the gradients are carried, so that all of each step's are computed
        return number + 1, jax.grad(loss)(state.params["encoder"])

    def update(state, batch):
        # gradients that differ from step to step, as in training
        gradients = jax.tree.map(
            lambda leaf: jnp.full_like(leaf, batch.weight.sum() + state.step),
            state.params,
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1)

    start = (state.step, state.params["encoder"])
    programs["before y"] = epoch_of(before_y, start, batches)
    for name, first in states.items():
        programs[f"optimiser {name}"] = epoch_of(update, first, batches)
    times = step_seconds(programs, repeats)
    rest = times["vae"] - times["optimiser vae"]
    share = 1 - times["before y"] / rest
    rows = []
    for k in CLUSTERS:
        row = {"n_clusters": k}
        for posterior, allowed, n_decodes in (
            ("shared", 1.15, 1),
            ("conditional", 1.1 * (1 + (k - 1) * share), k),
        ):
            counted = operations(config, n_genes, n_decodes)
            time = times[f"{posterior} {k}"]
            row[posterior] = {
                "milliseconds": round(1e3 * time, 3),
                # the optimiser set apart on both sides, each its own
                "vae_steps": round((time - times[f"optimiser {posterior}"]) / rest, 3),
                "allowed": round(allowed, 3),
                "vae_operations": round(counted / operations(config, n_genes, 1), 3),
            }
        rows.append(row)
    return {
        "likelihood": likelihood.name,
        "n_genes": n_genes,
        "batch_size": BATCH_SIZE,
        "processes": N_PROCESSES,
        "vae_milliseconds": round(1e3 * times["vae"], 3),
        "optimiser_milliseconds": {
            name: round(1e3 * times[f"optimiser {name}"], 3) for name in states
        },
        "share_after_y": round(share, 3),
        "steps": rows,
    }


def over_processes(n_genes: int, repeats: int) -> dict:
    """Medians of what processes of their own measure, one after the other."""
    apart = {"mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        with ProcessPoolExecutor(1, **apart) as pool:
            tasks = [(n_genes, repeats)] * N_PROCESSES
            found = list(pool.map(measure, *zip(*tasks, strict=True)))
    return jax.tree.map(
        lambda *of: of[0] if isinstance(of[0], str) else statistics.median(of), *found
    )


if __name__ == "__main__":
    write(
        __doc__.splitlines()[0],
        lambda repeats: [over_processes(n_genes, repeats) for n_genes in (500, 2000)],
        "{n_genes} genes, share after y {share_after_y}",
    )
