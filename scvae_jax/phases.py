"""Epochs until patience runs out, phase by phase, of one fit or many at once.

A mixture starts as a VAE. Then its components are placed by a mixture fitted to the
latents of the training cells, a network that gives q(y|x) is fitted to their
responsibilities, and the bound of the mixture is trained: components are placed on
latents at rest.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches, clusters
from scvae_jax.compiling import ahead, compilers
from scvae_jax.epochs import (
    Orders,
    Setup,
    first_best,
    make_look,
    make_pass,
    over_fits,
)
from scvae_jax.models import Model, Profiles
from scvae_jax.placing import cluster_codes, place_clusters
from scvae_jax.progress import Course, progress_bar
from scvae_jax.schedule import Phase, Plan, n_epochs, phases_of, setup_of
from scvae_jax.selection import expect_cells
from scvae_jax.steps import TrainState, default_optimizer, init_train_state

Array = jax.Array


class Result(NamedTuple):
    """Of one fit: best parameters, figures of each epoch, and a summary.

    Of a mixture also the cluster of each training cell.
    """

    params: Any
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    codes: np.ndarray | None = None


def run(plan: Plan, *, progress: bool) -> list[Result | FloatingPointError]:
    """Train every fit of a plan.

    Args:
        plan: of the run.
        progress: show a bar on standard error.

    Returns:
        For each fit its result, or the error that it ended with.

    Raises:
        InputError: for more clusters than training cells.
    """
    config, model = plan.config, plan.build({})
    n_train = plan.train.start.shape[0]
    expect_cells(model.n_clusters, n_train)
    batch_size = min(config.batch_size, n_train)
    steps_per_epoch = -(-n_train // batch_size)
    epochs = n_epochs(config, steps_per_epoch)
    orders = [Orders(seed, n_train, batch_size) for seed in plan.seeds]
    in_order, held_out_slots = batches.in_order(plan.held_out, batch_size)
    # the batches of all epochs are known beforehand
    fullest = max(
        order.fullest(number, plan.train)
        # fits that differ in settings alone share theirs
        for order in set(orders)
        for number in range(1, epochs + 1)
    )
    spare = batches.slots_to_spare(plan.length, batch_size)
    n_slots = max(spare, held_out_slots, batches.slots_for(fullest))
    settings = {name: jnp.asarray(v) for name, v in plan.settings.items()}
    keys = jnp.stack([jax.random.key(seed) for seed in plan.seeds])
    optimizer = plan.optimizer or default_optimizer(1)

    @jax.jit
    def first_states(keys: Array, profiles: Profiles) -> TrainState:
        return jax.lax.map(
            lambda key: init_train_state(model, optimizer, key, profiles), keys
        )

    rates = np.broadcast_to(
        plan.settings.get("learning_rate", config.learning_rate), len(plan.seeds)
    )
    fits = [
        Course(config.patience, None if plan.optimizer else float(rate))
        for rate in rates
    ]
    seconds = compile_seconds = place_seconds = 0.0
    phases = phases_of(model, config, epochs, steps_per_epoch)
    # of one fit: that each is the same alone and among others
    n_entries = float(epochs * n_train * model.modalities[0].n_features)
    n_entries *= config.n_samples
    # two at a time, so that those of the first phase are ready first
    with compilers() as pool, progress_bar(progress, epochs) as report:
        started = time.perf_counter()
        first = ahead(pool, first_states.lower(keys, plan.profiles), 0)
        shapes = jax.eval_shape(first_states, keys, plan.profiles)
        if "clusters" in shapes.params:
            # a decode for each
            n_entries *= model.n_clusters
        arguments = (shapes, _positions(orders, 1), settings, in_order, n_slots)
        programs = [
            [
                ahead(pool, lowered, n_entries)
                for lowered in _lowered(
                    plan, setup_of(plan, phases, phase, steps_per_epoch), *arguments
                )
            ]
            for phase in phases
        ]
        states = first()(keys, plan.profiles)
        compile_seconds += time.perf_counter() - started
        for phase, of_phase in zip(phases, programs, strict=True):
            started = time.perf_counter()
            if phase.name == "gmvae":
                states = _place(
                    plan, model, states, fits, phase.before * steps_per_epoch
                )
            placed = time.perf_counter()
            place_seconds += placed - started
            best = _first_best(states.params)
            train, look = (program() for program in of_phase)
            compiled = time.perf_counter()
            compile_seconds += compiled - placed
            for fit in fits:
                fit.start_phase(phase.before)
            for number in range(phase.before + 1, phase.before + phase.epochs + 1):
                epoch_started = time.perf_counter()
                active = np.array([fit.active for fit in fits])
                of_fits = (_positions(orders, number), settings)
                states, trained = train(states, of_fits, active, plan.train)
                of_fits = (states.params, states.key, trained["risen"], settings)
                best, seen = look(best, of_fits, active, (plan.held_out, in_order))
                figures = jax.device_get(trained | seen)
                taken = time.perf_counter() - epoch_started
                for i, fit in enumerate(fits):
                    if fit.active:
                        mine = {
                            name: value[i].item() for name, value in figures.items()
                        }
                        fit.see(number, phase.name, mine, taken)
                bounds = [fit.bound for fit in fits if fit.error is None]
                bound = max(bounds, default=np.nan)
                report(phase.name, number, bound, n_train * active.sum() / taken)
                if not any(fit.active for fit in fits):
                    break
            seconds += time.perf_counter() - compiled
            for fit in fits:
                fit.end_phase()
            states = states._replace(params=best.params)
            if all(fit.error for fit in fits):
                break
    trained = max(sum(len(fit.history) for fit in fits), 1)
    summary = {
        "n_train": n_train,
        "n_validation": plan.held_out.start.shape[0],
        "seconds": round(seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        # of all fits together
        "seconds_per_epoch": round(seconds / trained, 5),
        "cells_per_second": round(n_train * trained / seconds, 1),
    }
    if model.n_clusters:
        summary["place_seconds"] = round(place_seconds, 3)
    common = (phases, steps_per_epoch, summary)
    return [
        fit.error or _result(plan, model, _of_fit(states.params, i), fit, *common)
        for i, fit in enumerate(fits)
    ]


def _positions(orders: Sequence[Orders], number: int) -> tuple[np.ndarray, ...]:
    """Cells and weights [n_fits, n_batches, B] of an epoch."""
    return tuple(map(np.stack, zip(*(order(number) for order in orders), strict=True)))


def _lowered(
    plan: Plan,
    setup: Callable[[dict[str, Array]], Setup],
    states: TrainState,
    positions: tuple[np.ndarray, ...],
    settings: dict[str, Array],
    in_order: tuple[np.ndarray, np.ndarray],
    n_slots: int,
) -> Iterator[jax.stages.Lowered]:
    """The two programs of an epoch of all fits, ready to be compiled.

    `states` may be their shapes.
    """
    n_genes = plan.build({}).modalities[0].n_features
    # on a CPU fits side by side would not stay in its cache
    one_by_one = len(plan.seeds) == 1 or jax.default_backend() == "cpu"
    everyone = np.ones(len(plan.seeds), bool)

    def lowered(function: Callable, *arguments: Any) -> jax.stages.Lowered:
        program = over_fits(function, one_by_one=one_by_one)
        return jax.jit(program, donate_argnums=0).lower(*arguments)

    train = make_pass(setup, n_genes, n_slots)
    yield lowered(train, states, (positions, settings), everyone, plan.train)
    look = make_look(setup, n_genes, n_slots)
    best = jax.eval_shape(_first_best, states.params)
    of_fits = (states.params, states.key, everyone, settings)
    yield lowered(look, best, of_fits, everyone, (plan.held_out, in_order))


# as a whole: leaf by leaf, each shape would be a program of its own
_first_best = jax.jit(jax.vmap(first_best))


@jax.jit
def _of_fit(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _place(
    plan: Plan, model: Model, states: TrainState, fits: list[Course], step: int
) -> TrainState:
    """States whose components are placed on the latents."""
    placed = []
    for i, (seed, fit) in enumerate(zip(plan.seeds, fits, strict=True)):
        params = _of_fit(states.params, i)
        if fit.error is None:
            params = place_clusters(model, params, plan.train, seed)
        placed.append(params)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *placed)
    return states._replace(params=params, step=jnp.full_like(states.step, step))


def _result(
    plan: Plan,
    model: Model,
    params: Any,
    fit: Course,
    phases: list[Phase],
    steps_per_epoch: int,
    shared: dict[str, Any],
) -> Result:
    best = next(row for row in fit.history if row["epoch"] == fit.best_epoch)
    epochs = len(fit.history)
    summary = {
        "epochs": epochs,
        "best_epoch": fit.best_epoch,
        "stopped_early": epochs < phases[-1].before + phases[-1].epochs,
        "steps": epochs * steps_per_epoch,
        "skipped_steps": int(fit.history[-1]["skipped_steps"]),
        **shared,
        "validation_elbo": best["validation_elbo"],
        "validation_bound": best["validation_bound"],
    }
    if model.n_clusters:
        codes = cluster_codes(model, params, plan.train)
        sizes = np.bincount(codes, minlength=model.n_clusters)
        summary |= {
            "n_clusters": model.n_clusters,
            "clusters_used": clusters.clusters_used(codes),
            "cluster_sizes": sizes.tolist(),
        }
        result = Result(params, fit.history, summary, codes)
        return _numbered(result, np.argsort(-sizes, kind="stable"))
    return Result(params, fit.history, summary)


def _numbered(result: Result, order: np.ndarray) -> Result:
    """A mixture whose cluster order[k] is now cluster k."""
    sizes = np.array(result.summary["cluster_sizes"])[order]
    return Result(
        clusters.reorder(result.params, order),
        result.history,
        result.summary | {"cluster_sizes": sizes.tolist()},
        np.argsort(order)[result.codes],
    )


def numbered_alike(results: Sequence[Result]) -> list[Result]:
    """Mixtures whose clusters have the numbers that they have in the first.

    Args:
        results: of fits of the same training cells; those of VAEs stay as they are.

    Returns:
        Them, clusters matched one to one on the training cells.
    """
    first = results[0]
    if first.codes is None:
        return [*results]
    k = first.summary["n_clusters"]
    others = results[1:]
    orders = [clusters.matched(first.codes, other.codes, k) for other in others]
    return [first, *map(_numbered, others, orders)]
