"""Cost of a mixture's train step against that of a VAE of the same sizes.

    python benchmarks/mixtures.py --out benchmarks/mixtures.json

With d the share of a VAE step that follows the entry of y (draw, decoder, likelihood
and their gradients; the optimiser's pass is set apart), a step with the conditional
posterior should cost no more than 1.1 (1 + (K - 1) d) VAE steps, and one with the
shared posterior no more than 1.15 at every K. Beside the times stand the operations
that the compiler counts in each program.
"""

import argparse
import json
import os
import platform
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from importance_samples import seconds

from scvae_jax import batches, datasets, objectives, steps, training
from scvae_jax.checkpoints import versions
from scvae_jax.config import DataConfig, ModelConfig
from scvae_jax.counts import prepare
from scvae_jax.models import from_config, named_likelihood

CLUSTERS = (1, 2, 5, 10, 20)


def operations(program) -> float:
    return float(program.cost_analysis()["flops"])


def measure(n_genes: int, batch_size: int, repeats: int) -> dict:
    adata = datasets.simulate(4 * batch_size, n_genes, depth=0.15 * n_genes, seed=0)
    config = ModelConfig()
    likelihood = named_likelihood(config)
    cells = training.cells_to_device(prepare(adata, DataConfig()), slice(None))
    (index, weight), n_slots = batches.in_order(cells, batch_size)
    batch = jax.jit(partial(batches.cut, n_genes=n_genes, n_slots=n_slots))(
        cells, index[0], weight[0]
    )
    optimizer = steps.default_optimizer(1000)
    vae = from_config(config, likelihood, n_genes=n_genes)
    programs, states = {}, {}

    def add(name, model):
        state = jax.jit(lambda key: steps.init_train_state(model, optimizer, key))(
            jax.random.key(0)
        )
        step = jax.jit(steps.make_train_step(model, objectives.elbo(), optimizer))
        programs[name] = step.lower(state, batch).compile()
        states[name] = state

    add("vae", vae)
    for k in CLUSTERS:
        for posterior in ("shared", "conditional"):
            options = {"model": "gmvae", "n_clusters": k, "posterior": posterior}
            model = from_config(ModelConfig(**options), likelihood, n_genes=n_genes)
            add(f"{posterior} {k}", model)

    def before_y(state, batch):
        def loss(params):
            keys = jax.random.split(state.key)
            posterior = vae.encode(params, batch, keys[0])
            return posterior.sample(seed=keys[1]).sum() + posterior.mean().sum()

        return jax.grad(loss)(state.params)["encoder"]

    def update(state):
        gradients = jax.tree.map(jnp.ones_like, state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return jax.tree.map(jnp.add, state.params, updates), opt_state

    calls = {name: partial(programs[name], states[name], batch) for name in programs}
    parts = {
        "before y": (before_y, (states["vae"], batch)),
        "optimiser": (update, (states["vae"],)),
    }
    for name, (function, arguments) in parts.items():
        calls[name] = partial(jax.jit(function).lower(*arguments).compile(), *arguments)
    times = seconds(calls, repeats)
    rest = times["vae"] - times["optimiser"]
    share = 1 - times["before y"] / rest
    rows = []
    for k in CLUSTERS:
        row = {"n_clusters": k}
        for posterior, allowed in (
            ("shared", 1.15),
            ("conditional", 1.1 * (1 + (k - 1) * share)),
        ):
            name = f"{posterior} {k}"
            row[posterior] = {
                "milliseconds": round(1e3 * times[name], 3),
                # the optimiser set apart on both sides
                "vae_steps": round((times[name] - times["optimiser"]) / rest, 3),
                "allowed": round(allowed, 3),
                "operations": operations(programs[name]),
                "vae_operations": round(
                    operations(programs[name]) / operations(programs["vae"]), 3
                ),
            }
        rows.append(row)
    return {
        "likelihood": likelihood.name,
        "n_genes": n_genes,
        "batch_size": batch_size,
        "vae_milliseconds": round(1e3 * times["vae"], 3),
        "optimiser_milliseconds": round(1e3 * times["optimiser"], 3),
        "share_after_y": round(share, 3),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    result = {
        "rows": [measure(n_genes, 128, arguments.repeats) for n_genes in (500, 2000)],
        "versions": versions() | {"python": platform.python_version()},
        "cores": len(os.sched_getaffinity(0)),
    }
    for row in result["rows"]:
        print(f"{row['n_genes']} genes, share after y {row['share_after_y']}")
        for line in row["rows"]:
            print("   ", line)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
