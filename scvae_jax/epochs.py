"""An epoch as two compiled programs, for one fit or for many at once.

A pass over the training cells, and a look at the validation cells. They are two since
they compile side by side in less time than one that does both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches
from scvae_jax.batches import CellData
from scvae_jax.clusters import ALIVE, effective_number
from scvae_jax.models import Model
from scvae_jax.objectives import (
    Objective,
    elbo_parts,
    importance_weighted_bound,
    log_responsibilities,
)
from scvae_jax.steps import TrainState

Array = jax.Array


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


class Best(NamedTuple):
    """The best parameters of a phase so far, and their validation bound."""

    params: Any
    bound: Array


def first_best(params: Any) -> Best:
    """Before the first epoch of a phase nothing is the best yet."""
    return Best(jax.tree.map(jnp.copy, params), jnp.full((), -jnp.inf))


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


def make_pass(
    setup: Callable[[dict[str, Array]], Setup], n_genes: int, n_slots: int
) -> Callable:
    """One pass over the training cells.

    Args:
        setup: settings that may be traced, such as a learning rate -> what is trained.
        n_genes: G.
        n_slots: slots for the fullest batch.

    Returns:
        (state, (positions, settings), cells) -> (state, figures).
    """

    def train(
        state: TrainState,
        of_fit: tuple[tuple[Array, Array], dict[str, Array]],
        cells: CellData,
    ) -> tuple[TrainState, dict[str, Array]]:
        positions, settings = of_fit
        setting = setup(settings)

        def one(state: TrainState, position: tuple[Array, Array]):
            batch = batches.cut(cells, *position, n_genes, n_slots)
            state, metrics = setting.step(state, batch)
            n_cells = batch.weight.sum()
            return state, (metrics, jnp.where(metrics.finite, n_cells, 0.0))

        state, (metrics, n_cells) = jax.lax.scan(one, state, positions)
        loss = jnp.where(metrics.finite, metrics.loss, 0.0)
        kl_weight = metrics.kl_weight[-1]
        return state, {
            # not a number where every step was skipped
            "loss": (loss * n_cells).sum() / n_cells.sum(),
            "kl_weight": kl_weight,
            "skipped_steps": state.skipped,
            "longest_skipped_run": state.longest_run,
            "risen": kl_weight >= setting.full_weight * (1.0 - 1e-6),
        }

    return train


def make_look(
    setup: Callable[[dict[str, Array]], Setup], n_genes: int, n_slots: int
) -> Callable:
    """A look at the validation cells, which may find the parameters the best so far.

    Args:
        setup: settings -> what is trained.
        n_genes: G.
        n_slots: slots for the fullest batch.

    Returns:
        (best, (params, key, risen, settings), (cells, in_order)) -> (best, figures);
        `in_order` has the positions of the cells.
    """

    def look(
        best: Best,
        of_fit: tuple[Any, Array, Array, dict[str, Array]],
        held_out: tuple[CellData, tuple[Array, Array]],
    ) -> tuple[Best, dict[str, Array]]:
        params, key, risen, settings = of_fit
        model, objective, _, _, keep = setup(settings)
        # the same noise at every look, apart from that of the steps: fold_in(key, step)
        key = jax.random.fold_in(key, 2**32 - 1)
        figures = validate(model, objective, params, key, *held_out)
        bound = figures["validation_bound"]
        better = jnp.isfinite(bound) if keep == "last" else bound > best.bound
        if keep != "best":
            better &= risen
        best_params = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), params, best.params
        )
        best = Best(best_params, jnp.where(better, bound, best.bound))
        return best, figures | {"better": better}

    def validate(
        model: Model,
        objective: Objective,
        params: Any,
        key: Array,
        cells: CellData,
        in_order: tuple[Array, Array],
    ) -> dict[str, Array]:
        def one(_: None, position: tuple[Array, Array, Array]):
            index, weight, number = position
            batch = batches.cut(cells, index, weight, n_genes, n_slots)
            key_batch = jax.random.fold_in(key, number)
            terms = model.terms(params, key_batch, batch, objective.n_samples)
            parts = elbo_parts(terms)
            r = jnp.exp(log_responsibilities(terms)).mean(axis=0)
            new = {
                "elbo": parts.elbo,
                "kl_y": parts.kl_y,
                "bound": importance_weighted_bound(terms),
                "r": r,
                "size": jax.nn.one_hot(r.argmax(axis=-1), r.shape[-1]),
            }

            def of_cells(value: Array) -> Array:
                real = weight > 0 if value.ndim == 1 else weight[:, None] > 0
                return jnp.where(real, value, 0.0).sum(axis=0)

            return None, jax.tree.map(of_cells, new)

        numbers = jnp.arange(in_order[0].shape[0])
        # of batches, and then of all: a running sum of many cells would lose digits
        _, sums = jax.lax.scan(one, None, (*in_order, numbers))
        mean = jax.tree.map(lambda s: s.sum(axis=0) / cells.start.shape[0], sums)
        bound = mean["bound"] if objective.n_samples > 1 else mean["elbo"]
        figures = {"validation_elbo": mean["elbo"], "validation_bound": bound}
        if model.n_clusters:
            figures |= {
                "validation_kl_y": mean["kl_y"],
                "clusters_used": (mean["size"] >= ALIVE).sum(),
                "effective_clusters": effective_number(mean["r"]),
            }
        return figures

    return look


def over_fits(function: Callable, *, one_by_one: bool) -> Callable:
    """Half an epoch of many fits in one program; those that have stopped stay as is.

    Args:
        function: from `make_pass` or `make_look`: (carry, of_fit, shared) -> (carry,
            figures).
        one_by_one: one fit after the other inside the program, which on a CPU is
            faster than side by side, where arrays of all fits do not stay in cache.

    Returns:
        program(carries, of_fits, active, shared) -> (carries, figures), all but the
        last argument with an axis over fits.
    """
    # one trace serves both the figures' shapes and the program
    function = jax.jit(function)

    def program(carries, of_fits, active, shared):
        def one(fit):
            carry, of_fit, active = fit
            shapes = jax.eval_shape(function, carry, of_fit, shared)[1]
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.lax.cond(
                active,
                lambda: function(carry, of_fit, shared),
                lambda: (carry, nothing),
            )

        fits = (carries, of_fits, active)
        return jax.lax.map(one, fits) if one_by_one else jax.vmap(one)(fits)

    return program
