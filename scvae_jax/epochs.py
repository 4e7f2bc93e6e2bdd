"""An epoch as one compiled program, for one fit or for many at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches
from scvae_jax.batches import CellData
from scvae_jax.models import Model
from scvae_jax.objectives import (
    Objective,
    elbo_parts,
    importance_weighted_bound,
    log_responsibilities,
)
from scvae_jax.steps import TrainState

Array = jax.Array

# the least share of cells with which a cluster counts as alive
ALIVE = 0.01


class Orders(NamedTuple):
    """The order in which each epoch visits the training cells."""

    seed: int
    n_train: int
    batch_size: int

    def __call__(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Cells and weights [n_batches, B] of an epoch; the last batch is padded."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.n_train)
        return batches.pad_to_batches(order.astype(np.int32), self.batch_size)

    def fullest(self, epoch: int, cells: CellData) -> int:
        """Slots of the fullest batch of an epoch."""
        index, weight = self(epoch)
        length = np.asarray(cells.length)[index]
        return int(np.where(weight > 0, length, 0).sum(axis=1).max())


class Carry(NamedTuple):
    """What goes from epoch to epoch: the state, and the best parameters so far."""

    state: TrainState
    best_params: Any
    best_bound: Array


def first_carry(state: TrainState) -> Carry:
    """The carry before the first epoch of a phase: nothing is the best yet."""
    best = jax.tree.map(jnp.copy, state.params)
    return Carry(state, best, jnp.float32(-jnp.inf))


class Setup(NamedTuple):
    """What an epoch trains: a model, its objective and its step.

    The KL weight has risen when it has reached `full_weight`. What a phase leaves is
    the state with the "best" validation bound; or of those since then the "best risen",
    as a mixture needs latents that tell cells apart, and while they are bought too dear
    they lose to none at all; or the "last", where its bound is not what is aimed at.
    """

    model: Model
    objective: Objective
    step: Callable
    full_weight: Array
    keep: str


def make_epoch(
    setup: Callable[[dict[str, Array]], Setup],
    n_genes: int,
    n_slots: int,
    held_out_slots: int,
) -> Callable:
    """One pass over the training cells and a look at the validation cells.

    Args:
        setup: settings that may be traced, such as a learning rate -> what is trained.
        n_genes: G.
        n_slots: slots for the fullest batch of training cells.
        held_out_slots: the same for validation cells.

    Returns:
        epoch(carry, positions, settings, train, held_out, in_order) -> (carry,
        figures); `in_order` has the positions of the held-out cells.
    """

    def epoch(
        carry: Carry,
        positions: tuple[Array, Array],
        settings: dict[str, Array],
        train: CellData,
        held_out: CellData,
        in_order: tuple[Array, Array],
    ) -> tuple[Carry, dict[str, Array]]:
        model, objective, step, full_weight, keep = setup(settings)

        def one(state: TrainState, position: tuple[Array, Array]):
            batch = batches.cut(train, *position, n_genes, n_slots)
            state, metrics = step(state, batch)
            n_cells = batch.weight.sum()
            return state, (metrics, jnp.where(metrics.finite, n_cells, 0.0))

        state, (metrics, n_cells) = jax.lax.scan(one, carry.state, positions)
        # the same noise at every look, apart from that of the steps: fold_in(key, step)
        key = jax.random.fold_in(state.key, 2**32 - 1)
        seen = validate(model, objective, state.params, key, held_out, in_order)
        risen = metrics.kl_weight[-1] >= full_weight * (1.0 - 1e-6)
        if keep == "last":
            better = jnp.isfinite(seen["validation_bound"])
        else:
            better = seen["validation_bound"] > carry.best_bound
        if keep != "best":
            better &= risen
        best_params = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            state.params,
            carry.best_params,
        )
        loss = jnp.where(metrics.finite, metrics.loss, 0.0)
        figures = {
            "loss": (loss * n_cells).sum() / jnp.maximum(n_cells.sum(), 1.0),
            "kl_weight": metrics.kl_weight[-1],
            **seen,
            "skipped_steps": state.skipped,
            "longest_skipped_run": state.longest_run,
            "risen": risen,
            "better": better,
        }
        best_bound = jnp.where(better, seen["validation_bound"], carry.best_bound)
        return Carry(state, best_params, best_bound), figures

    def validate(
        model: Model,
        objective: Objective,
        params: Any,
        key: Array,
        held_out: CellData,
        in_order: tuple[Array, Array],
    ) -> dict[str, Array]:
        def one(total: Any, position: tuple[Array, Array, Array]):
            index, weight, number = position
            batch = batches.cut(held_out, index, weight, n_genes, held_out_slots)
            key_batch = jax.random.fold_in(key, number)
            terms = model.terms(params, key_batch, batch, objective.n_samples)
            parts = elbo_parts(terms)
            r = jnp.exp(log_responsibilities(terms)).mean(axis=0)
            new = {
                "elbo": parts.log_likelihood - parts.kl_z - parts.kl_y,
                "kl_y": parts.kl_y,
                "bound": importance_weighted_bound(terms),
                "r": r,
                "size": jax.nn.one_hot(r.argmax(axis=-1), r.shape[-1]),
            }

            def of_cells(value: Array) -> Array:
                real = weight > 0 if value.ndim == 1 else weight[:, None] > 0
                return jnp.where(real, value, 0.0).sum(axis=0)

            return jax.tree.map(lambda t, v: t + of_cells(v), total, new), None

        n_clusters = max(model.n_clusters, 1)
        zeros = {name: jnp.zeros(()) for name in ("elbo", "kl_y", "bound")}
        zeros |= {name: jnp.zeros(n_clusters) for name in ("r", "size")}
        numbers = jnp.arange(in_order[0].shape[0])
        total, _ = jax.lax.scan(one, zeros, (*in_order, numbers))
        mean = jax.tree.map(lambda value: value / held_out.start.shape[0], total)
        bound = mean["bound"] if objective.n_samples > 1 else mean["elbo"]
        figures = {"validation_elbo": mean["elbo"], "validation_bound": bound}
        if model.n_clusters:
            figures |= {
                "validation_kl_y": mean["kl_y"],
                "clusters_used": (mean["size"] >= ALIVE).sum(),
                "effective_clusters": effective_number(mean["r"]),
            }
        return figures

    return epoch


def effective_number(share: Array) -> Array:
    """How many clusters are in use: exp of the entropy of their shares [K]."""
    return jnp.exp(jax.scipy.special.entr(share).sum())


def over_fits(epoch: Callable, *, one_by_one: bool) -> Callable:
    """An epoch of many fits in one program; those that have stopped are left alone.

    Args:
        epoch: from `make_epoch`.
        one_by_one: one fit after the other inside the program, which on a CPU is
            faster than side by side, where arrays of all fits do not stay in cache.

    Returns:
        program(carries, positions, settings, active, train, held_out, in_order) ->
        (carries, figures), the first four and the results with an axis over fits.
    """
    # one trace serves both the figures' shapes and the program
    epoch = jax.jit(epoch)

    def program(carries, positions, settings, active, train, held_out, in_order):
        def run(carry, positions, settings):
            return epoch(carry, positions, settings, train, held_out, in_order)

        def one(fit):
            carry, positions, settings, active = fit
            shapes = jax.eval_shape(run, carry, positions, settings)[1]
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.lax.cond(
                active,
                lambda: run(carry, positions, settings),
                lambda: (carry, nothing),
            )

        fits = (carries, positions, settings, active)
        return jax.lax.map(one, fits) if one_by_one else jax.vmap(one)(fits)

    return program
