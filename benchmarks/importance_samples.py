"""Cost of a train step with S importance samples, against what one sample allows.

    python benchmarks/importance_samples.py --out benchmarks/importance_samples.json

With d the share of a one-sample step that follows the draw of z, S samples should cost
no more than 1.1 (1 + (S - 1) d) steps of one. The part before the draw is timed as a
program of its own: encoder, its gradient, and the optimiser's pass over all weights.
Temporary memory of an evaluation program is read off the compiler at each S.
"""

import jax
import optax
from common import (
    epoch_of,
    first_state,
    simulated_batches,
    simulated_cells,
    step_seconds,
    write,
)

from scvae_jax import evaluation, objectives, steps
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.config import ModelConfig

SAMPLES = (1, 2, 5, 10, 20)
BATCH_SIZE = 128


def measure(likelihood: str, n_genes: int, repeats: int) -> dict:
    batches = simulated_batches(n_genes, BATCH_SIZE)
    config = ModelConfig(likelihood=likelihood)
    model = from_config(config, named_likelihood(config), n_genes=n_genes)
    optimizer = steps.default_optimizer(1000)
    state = first_state(model, optimizer)

    def before_draw(state, batch):
        def loss(params):
            # the weights of the decoder take part in the optimiser's pass alone
            keys = jax.random.split(jax.random.fold_in(state.key, state.step))
            posterior = model.encode(params, batch, keys[0])
            z = posterior.sample(seed=keys[1])
            return z.sum() + posterior.mean().sum()

        gradients = jax.grad(loss)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1)

    programs = {"before the draw": epoch_of(before_draw, state, batches)}
    for n_samples in SAMPLES:
        objective = objectives.importance_weighted(n_samples)
        step = steps.make_train_step(model, objective, optimizer)
        programs[str(n_samples)] = epoch_of(
            lambda state, batch, step=step: step(state, batch)[0], state, batches
        )
    times = step_seconds(programs, repeats)
    one = times["1"]
    share = 1 - times["before the draw"] / one
    rows = [
        {
            "n_samples": n,
            "milliseconds": round(1e3 * times[str(n)], 3),
            "steps_of_one": round(times[str(n)] / one, 3),
            "allowed": round(1.1 * (1 + (n - 1) * share), 3),
        }
        for n in SAMPLES
    ]
    key = jax.random.key(0)
    cells, positions, n_slots = simulated_cells(n_genes, BATCH_SIZE)
    memory = {}
    for n_samples in (1, 10, 1000):
        analysis = evaluation._cell_bounds.lower(
            model, n_samples, n_slots, state.params, cells, positions, key
        ).compile()
        memory[n_samples] = analysis.memory_analysis().temp_size_in_bytes
    return {
        "likelihood": likelihood,
        "n_genes": n_genes,
        "batch_size": BATCH_SIZE,
        "share_after_draw": round(share, 3),
        "steps": rows,
        "evaluation_temporary_bytes": memory,
    }


def rows(repeats: int) -> list[dict]:
    return [
        measure(likelihood, n_genes, repeats)
        for likelihood in ("poisson", "negative_binomial")
        for n_genes in (500, 2000)
    ]


if __name__ == "__main__":
    write(
        __doc__.splitlines()[0],
        rows,
        "{likelihood}, {n_genes} genes: share after the draw {share_after_draw}, "
        "temporary bytes of an evaluation {evaluation_temporary_bytes}",
    )
