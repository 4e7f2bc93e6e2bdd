"""The train step, and the loop that fits a model to the cells of an AnnData object."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scvae_jax import batches, checkpoints
from scvae_jax.batches import Batch, CellData
from scvae_jax.config import DataConfig, InputError, ModelConfig, TrainConfig
from scvae_jax.counts import CountData, prepare, random_split
from scvae_jax.likelihoods import Likelihood
from scvae_jax.models import Model, from_config, named_likelihood
from scvae_jax.objectives import (
    Objective,
    elbo,
    elbo_bound,
    importance_weighted,
    importance_weighted_bound,
)

Array = jax.Array

# steps in a row with non-finite gradients after which training gives up
MAX_SKIPPED_RUN = 25


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
    model: Model, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """The state before the first step.

    Args:
        model: to be trained.
        optimizer: any optax optimiser.
        key: of the run.

    Returns:
        The state.
    """
    key_init, key_run = jax.random.split(key)
    params = model.init(key_init)
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
        model: from `vae`.
        objective: from `scvae_jax.objectives`.
        optimizer: any optax optimiser.
        kl_weight: a number, or an optax schedule over steps.

    Returns:
        step(state, batch) -> (state, metrics).
    """

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
        finite = jnp.isfinite(loss)
        for leaf in jax.tree.leaves(gradients):
            finite &= jnp.isfinite(leaf).all()
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(finite, new, old)

        skipped_run = jnp.where(finite, 0, state.skipped_run + 1)
        state = TrainState(
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            step=state.step + 1,
            key=state.key,
            skipped=state.skipped + ~finite,
            skipped_run=skipped_run,
            longest_run=jnp.maximum(state.longest_run, skipped_run),
        )
        return state, Metrics(loss, beta, finite)

    return step


def default_optimizer(
    config: TrainConfig, n_steps: int
) -> optax.GradientTransformation:
    """AdamW on a cosine schedule; weight decay on weight matrices alone.

    Args:
        config: learning rate and weight decay.
        n_steps: over which the rate falls to 1 % of its peak.

    Returns:
        An optax optimiser.
    """

    def kernels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: getattr(path[-1], "key", None) == "kernel", params
        )

    schedule = optax.cosine_decay_schedule(config.learning_rate, n_steps, alpha=0.01)
    return optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels)


def fit(
    adata: anndata.AnnData,
    config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    size_factor_key: str | None = None,
    genes: str | None = None,
    split_key: str | None = None,
    fractional: str = "error",
    likelihood: Likelihood | None = None,
    optimizer: optax.GradientTransformation | None = None,
    kl_weight: optax.Schedule | None = None,
    progress: bool = True,
) -> checkpoints.Fitted:
    """Fit a model to raw counts.

    Args:
        adata: cells by genes; left as it is.
        config: what to fit; None for the defaults.
        train_config: how; None for the defaults.
        layer: layer with the counts; None for X.
        batch_key: obs column with the batch of a cell.
        size_factor_key: obs column with the depth of a cell; None: its total.
        genes: boolean var column of the genes to use; None for all.
        split_key: obs column with train, validation and test; None: drawn by seed.
        fractional: what to do with fractional counts: "error", "round" or "allow".
        likelihood: a likelihood of one's own, instead of the one that is named.
        optimizer: any optax optimiser, instead of AdamW on a cosine schedule.
        kl_weight: an optax schedule over steps, instead of the linear warm-up.
        progress: show a progress bar on standard error.

    Returns:
        The fitted model, with the parameters of its best epoch.

    Raises:
        InputError: for data or settings that cannot be used.
        FloatingPointError: if gradients stay non-finite.
    """
    config = config or ModelConfig()
    train_config = train_config or TrainConfig()
    likelihood = likelihood or named_likelihood(config)
    data_config = DataConfig(
        layer, batch_key, size_factor_key, genes, split_key, fractional
    )
    data = prepare(adata, data_config, support=likelihood.support)
    split = _split(data, data_config, train_config)
    model = from_config(
        config, likelihood, n_genes=len(data.genes), n_batches=len(data.batches)
    )
    started = time.perf_counter()
    params, history, summary = _run(
        model, data, split, train_config, optimizer, kl_weight, progress
    )
    summary["total_seconds"] = round(time.perf_counter() - started, 3)
    used = split != ""
    return checkpoints.Fitted(
        model=model,
        params=params,
        config=config,
        train_config=train_config,
        data_config=data_config,
        genes=data.genes,
        batches=data.batches,
        cells=data.cells[used],
        split=split[used],
        history=history,
        summary=summary,
        versions=checkpoints.versions(),
    )


def _split(
    data: CountData, data_config: DataConfig, train_config: TrainConfig
) -> np.ndarray:
    split = data.split
    if split is None:
        split = random_split(
            len(data.cells),
            train_config.validation_fraction,
            train_config.test_fraction,
            train_config.seed,
        )
    counts = {part: int((split == part).sum()) for part in ("train", "validation")}
    if min(counts.values()) == 0:
        where = (
            f"obs column {data_config.split_key!r}"
            if data_config.split_key
            else (f"a random split of {len(split)} cells")
        )
        raise InputError(
            f"found {counts['train']} training and {counts['validation']} validation "
            f"cells in {where}, expected at least one of each, mark some"
        )
    return split


def n_epochs(config: TrainConfig, steps_per_epoch: int) -> int:
    """Epochs to run: those asked for, or as many as make about 6,000 steps.

    Args:
        config: of the training.
        steps_per_epoch: batches that the training cells make.

    Returns:
        Their number.
    """
    if config.epochs is not None:
        return config.epochs
    return int(np.clip(round(6000 / steps_per_epoch), 20, 400))


def cells_to_device(data: CountData, where: np.ndarray | slice) -> CellData:
    """Put a part of the cells on the device.

    Args:
        data: validated cells.
        where: [n] which of them, or slice(None) for all.

    Returns:
        Those cells.
    """
    categorical = data.batch[where, None]
    return batches.to_device(data.x[where], data.depth[where], categorical)


def _run(
    model: Model,
    data: CountData,
    split: np.ndarray,
    config: TrainConfig,
    optimizer: optax.GradientTransformation | None,
    kl_weight: optax.Schedule | None,
    progress: bool,
) -> tuple[Any, list[dict[str, float]], dict[str, Any]]:
    """Train to the end or until patience runs out: params, history and summary."""
    train = cells_to_device(data, split == "train")
    held_out = cells_to_device(data, split == "validation")
    n_train = int((split == "train").sum())
    batch_size = min(config.batch_size, n_train)
    steps_per_epoch = -(-n_train // batch_size)
    epochs = n_epochs(config, steps_per_epoch)
    n_steps = epochs * steps_per_epoch
    if kl_weight is None:
        warm_steps = round(config.kl_warmup * n_steps)
        kl_weight = optax.linear_schedule(0.0, 1.0, warm_steps) if warm_steps else 1.0
    optimizer = optimizer or default_optimizer(config, n_steps)
    objective = (
        elbo(free_nats=config.free_nats)
        if config.n_samples == 1
        else importance_weighted(config.n_samples)
    )
    step = make_train_step(model, objective, optimizer, kl_weight=kl_weight)
    # the batches of all epochs are known beforehand, so slots for the fullest suffice
    orders = Orders(config.seed, n_train, batch_size)
    n_slots = batches.n_slots(
        max(orders.fullest(number, train) for number in range(1, epochs + 1))
    )
    epoch = _make_epoch(model, objective, step, held_out, batch_size, n_slots)

    key = jax.random.key(config.seed)
    state = jax.jit(lambda k: init_train_state(model, optimizer, k))(key)
    carry = Carry(state, jax.tree.map(jnp.copy, state.params), jnp.float32(-jnp.inf))
    started = time.perf_counter()
    epoch = jax.jit(epoch, donate_argnums=0)
    epoch = epoch.lower(carry, orders(1), train, held_out).compile()
    compiled = time.perf_counter()

    history: list[dict[str, float]] = []
    best_epoch, best_bound = 0, -np.inf
    with _progress_bar(progress, epochs) as report:
        for number in range(1, epochs + 1):
            epoch_started = time.perf_counter()
            carry, figures = epoch(carry, orders(number), train, held_out)
            figures = {name: float(value) for name, value in figures.items()}
            seconds = time.perf_counter() - epoch_started
            _check_finite(figures, config)
            history.append({"epoch": number, **figures, "seconds": round(seconds, 4)})
            if figures["validation_bound"] > best_bound:
                best_epoch, best_bound = number, figures["validation_bound"]
            report(figures["validation_bound"], n_train / seconds)
            if number - best_epoch >= config.patience:
                break
    seconds = time.perf_counter() - compiled
    if best_epoch == 0:
        raise FloatingPointError(
            "found no finite validation bound in any epoch, expected one, lower "
            f"learning_rate (it was {config.learning_rate}) or look for extreme counts"
        )
    best = history[best_epoch - 1]
    summary = {
        "epochs": len(history),
        "best_epoch": best_epoch,
        "stopped_early": len(history) < epochs,
        "steps": len(history) * steps_per_epoch,
        "skipped_steps": int(history[-1]["skipped_steps"]),
        "n_train": n_train,
        "n_validation": int((split == "validation").sum()),
        "n_genes": len(data.genes),
        "seconds": round(seconds, 3),
        "compile_seconds": round(compiled - started, 3),
        "seconds_per_epoch": round(seconds / len(history), 5),
        "cells_per_second": round(n_train * len(history) / seconds, 1),
        "validation_elbo": best["validation_elbo"],
        "validation_bound": best["validation_bound"],
    }
    return carry.best_params, history, summary


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
        """Non-zero entries of the fullest batch of an epoch."""
        index, weight = self(epoch)
        length = np.asarray(cells.length)[index]
        return int(np.where(weight > 0, length, 0).sum(axis=1).max())


class Carry(NamedTuple):
    """What goes from epoch to epoch: the state, and the best parameters so far."""

    state: TrainState
    best_params: Any
    best_bound: Array


def _make_epoch(
    model: Model,
    objective: Objective,
    step: Callable,
    held_out: CellData,
    batch_size: int,
    n_slots: int,
) -> Callable:
    """One pass over the training cells and a look at the validation cells."""
    n_held_out = held_out.start.shape[0]
    n_genes = model.modalities[0].n_features
    in_order, held_out_slots = batches.in_order(held_out, batch_size)

    def validate(params: Any, key: Array, held_out: CellData) -> tuple[Array, Array]:
        def one(total, position):
            index, weight, number = position
            batch = batches.cut(held_out, index, weight, n_genes, held_out_slots)
            key_batch = jax.random.fold_in(key, number)
            terms = model.terms(params, key_batch, batch, objective.n_samples)
            bound = elbo_bound(terms)
            weighted = importance_weighted_bound(terms)
            bounds = jnp.stack([bound, weighted if objective.n_samples > 1 else bound])
            return total + jnp.where(weight > 0, bounds, 0.0).sum(axis=1), None

        numbers = jnp.arange(in_order[0].shape[0])
        total, _ = jax.lax.scan(one, jnp.zeros(2), (*in_order, numbers))
        return total / n_held_out

    def epoch(carry: Carry, positions: tuple, train: CellData, held_out: CellData):
        state = carry.state
        # the same noise at every look, apart from that of the steps: fold_in(key, step)
        key_validation = jax.random.fold_in(state.key, 2**32 - 1)

        def one(state: TrainState, position: tuple[Array, Array]):
            batch = batches.cut(train, *position, n_genes, n_slots)
            state, metrics = step(state, batch)
            n_cells = batch.weight.sum()
            return state, (metrics, jnp.where(metrics.finite, n_cells, 0.0))

        state, (metrics, n_cells) = jax.lax.scan(one, state, positions)
        elbo_mean, bound = validate(state.params, key_validation, held_out)
        better = bound > carry.best_bound
        best_params = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            state.params,
            carry.best_params,
        )
        loss = jnp.where(metrics.finite, metrics.loss, 0.0)
        figures = {
            "loss": (loss * n_cells).sum() / jnp.maximum(n_cells.sum(), 1.0),
            "kl_weight": metrics.kl_weight[-1],
            "validation_elbo": elbo_mean,
            "validation_bound": bound,
            "skipped_steps": state.skipped,
            "longest_skipped_run": state.longest_run,
        }
        best_bound = jnp.where(better, bound, carry.best_bound)
        return Carry(state, best_params, best_bound), figures

    return epoch


def _check_finite(figures: dict[str, float], config: TrainConfig) -> None:
    run = int(figures.pop("longest_skipped_run"))
    if run >= MAX_SKIPPED_RUN:
        raise FloatingPointError(
            f"found {run} steps in a row with non-finite gradients, expected finite "
            f"ones, lower learning_rate (it was {config.learning_rate}), use a library "
            "mean, or look for extreme counts"
        )


@contextlib.contextmanager
def _progress_bar(show: bool, epochs: int):
    """A function to report an epoch to; a bar on standard error if `show`."""
    if not show:
        yield lambda bound, rate: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    bar = Progress(
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeLeft(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("fit", total=epochs, figures="compiling")

        def report(bound: float, rate: float) -> None:
            figures = f"validation bound {bound:.2f}, {rate:,.0f} cells/s"
            bar.update(task, advance=1, figures=figures)

        yield report
