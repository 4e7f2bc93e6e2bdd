"""One train step: gradients of an objective, an optax update, and what to skip."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scvae_jax.batches import Batch
from scvae_jax.models import Model, Profiles
from scvae_jax.objectives import Objective

Array = jax.Array


class TrainState(NamedTuple):
    """What a step takes and returns.

    Attributes:
        params: of the model.
        opt_state: of the optimiser.
        step: number of steps taken.
        key: the key of the run; that of a step is fold_in(key, step).
        skipped: steps skipped for non-finite gradients.
        skipped_run: how many of them were the last ones.
        longest_run: the largest skipped_run so far.
    """

    params: Any
    opt_state: Any
    step: Array
    key: Array
    skipped: Array
    skipped_run: Array
    longest_run: Array


class Metrics(NamedTuple):
    """What a step reports.

    Attributes:
        loss: what was minimised, nats per cell, mean over the cells of the batch.
        kl_weight: the weight of the KL term in it.
        finite: whether the gradients were finite; if not, the step was skipped.
    """

    loss: Array
    kl_weight: Array
    finite: Array


def init_train_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: Array,
    profiles: Profiles | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        model: to be trained.
        optimizer: any optax optimiser.
        key: of the run.
        profiles: for each modality the mean [G] of the training cells and their number,
            which the decoder starts from; None: from random weights.

    Returns:
        The state.
    """
    key_init, key_run = jax.random.split(key)
    params = model.init(key_init, profiles)
    # distinct buffers, so that the state can be donated
    zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]
    return TrainState(
        params, optimizer.init(params), zeros[0], key_run, zeros[1], zeros[2], zeros[3]
    )


def make_train_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    kl_weight: float | optax.Schedule = 1.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure train step, to be compiled with `jax.jit` or run inside `lax.scan`.

    The model is mapped over the importance samples that the objective asks for. A step
    whose gradients are not finite leaves parameters and optimiser as they were.

    Args:
        model: from `vae` or `gmvae`.
        objective: from `scvae_jax.objectives`.
        optimizer: any optax optimiser that looks for no line (`optax.lbfgs` does).
        kl_weight: a number, or an optax schedule over steps.

    Returns:
        step(state, batch) -> (state, metrics).
    """
    # some take the loss too, such as reduce_on_plateau
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        beta = kl_weight(state.step) if callable(kl_weight) else kl_weight
        beta = jnp.asarray(beta, jnp.float32)

        def loss_of(params: Any) -> Array:
            terms = model.terms(params, key, batch, objective.n_samples, train=True)
            loss = objective.loss(terms, beta)
            loss = jnp.where(batch.weight > 0, loss, 0.0)
            return loss.sum() / jnp.maximum(batch.weight.sum(), 1.0)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        finite = jnp.isfinite(loss + _total(gradients))

        def update(params: Any, opt_state: Any) -> tuple[Any, Any]:
            updates, opt_state = optimizer.update(
                gradients, opt_state, params, value=loss, grad=gradients
            )
            return optax.apply_updates(params, updates), opt_state

        if jax.default_backend() == "cpu":
            # a branch: to select each number from the old and the new takes three times
            # as long as the update itself
            params, opt_state = jax.lax.cond(
                finite, update, lambda *old: old, state.params, state.opt_state
            )
        else:
            # a GPU selects in the kernels of the update, and waits at a branch
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                update(state.params, state.opt_state),
                (state.params, state.opt_state),
            )
        skipped_run = jnp.where(finite, 0, state.skipped_run + 1)
        state = TrainState(
            params=params,
            opt_state=opt_state,
            step=state.step + 1,
            key=state.key,
            skipped=state.skipped + ~finite,
            skipped_run=skipped_run,
            longest_run=jnp.maximum(state.longest_run, skipped_run),
        )
        return state, Metrics(loss, beta, finite)

    return step


def _total(tree: Any) -> Array:
    """Sum of all entries; by matrix products, on a CPU faster than XLA's reduction."""
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(tree):
        rows = leaf.reshape(-1, leaf.shape[-1] if leaf.ndim else 1)
        total += (jnp.ones((1, len(rows))) @ rows).sum()
    return total


def default_optimizer(
    n_steps: int,
    *more: int,
    learning_rate: float | Array = 2e-3,
    weight_decay: float | Array = 1e-4,
    free_rate: float | Array = 1.0,
) -> optax.GradientTransformation:
    """AdamW on a cosine schedule; weight decay on kernels of layers alone.

    Args:
        n_steps: over which the rate falls to 1 % of its peak.
        *more: steps over which it then falls anew, as of a mixture after its VAE phase.
        learning_rate: the peak.
        weight_decay: of AdamW.
        free_rate: how many times the rate of weights that of parameters learned beside
            them is ("free", such as log dispersions). Adam moves a number by about the
            rate, and a log dispersion may have far to go.

    Returns:
        An optax optimiser.
    """

    def kernels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                getattr(path[-1], "key", None) == "kernel"
                and getattr(path[0], "key", None) != "free"
            ),
            params,
        )

    def at_own_rate(updates: Any, _: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                free_rate * leaf if getattr(path[0], "key", None) == "free" else leaf
            ),
            updates,
        )

    phases = (n_steps, *more)
    falls = [optax.cosine_decay_schedule(learning_rate, n, alpha=0.01) for n in phases]
    ends = list(itertools.accumulate(phases[:-1]))
    schedule = optax.join_schedules(falls, ends)
    return optax.chain(
        optax.adamw(schedule, weight_decay=weight_decay, mask=kernels),
        optax.stateless(at_own_rate),
    )
