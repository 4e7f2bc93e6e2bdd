"""What the fits of a run train: their phases, and the objective and step of each.

A mixture starts as a VAE; in each phase the KL weight rises and the learning rate falls
anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scvae_jax.batches import CellData
from scvae_jax.config import TrainConfig
from scvae_jax.epochs import Setup
from scvae_jax.models import Model, Profiles
from scvae_jax.objectives import elbo, importance_weighted
from scvae_jax.steps import default_optimizer, make_train_step

Array = jax.Array

# steps of a mixture as a VAE: as they go on, more latents than those that part cells in
# groups come into use, and the groups blur
START_STEPS = 1000
# nats of a cell that z may then tell for nothing, enough for some thousand clusters:
# where counts are few, a VAE would for long not use its latents at all
START_FREE_NATS = 8.0


class Plan(NamedTuple):
    """What all fits of a run share, and what sets them apart.

    Attributes:
        build: settings -> model; settings that are not given are the configuration's.
        config: of the training.
        seeds: one for each fit.
        settings: [n_fits] values of each setting that differs.
        train: training cells.
        profiles: for each modality their mean [G] and number.
        held_out: validation cells.
        length: [n] slots of all cells, those that are set aside among them.
        optimizer: any optax optimiser; None: AdamW on a cosine schedule.
        kl_weight: a schedule over steps; None: the linear warm-up of the configuration.
    """

    build: Callable[[dict[str, Array]], Model]
    config: TrainConfig
    seeds: tuple[int, ...]
    settings: dict[str, np.ndarray]
    train: CellData
    profiles: Profiles
    held_out: CellData
    length: np.ndarray
    optimizer: optax.GradientTransformation | None = None
    kl_weight: optax.Schedule | None = None


class Phase(NamedTuple):
    """A part of the epochs: its name, those before it, and its own."""

    name: str
    before: int
    epochs: int


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


def phases_of(
    model: Model, config: TrainConfig, epochs: int, steps_per_epoch: int
) -> list[Phase]:
    """The phases of a training: one, or of a mixture the VAE first.

    Args:
        model: that is trained.
        config: whose `start` is the VAE's share.
        epochs: in all.
        steps_per_epoch: batches that the training cells make.

    Returns:
        The phases.
    """
    if model.start is None:
        return [Phase("vae", 0, epochs)]
    if config.start is None:
        first = min(max(round(START_STEPS / steps_per_epoch), 1), epochs // 2)
    else:
        first = min(round(config.start * epochs), epochs - 1)
    phases = [Phase("vae", 0, first), Phase("gmvae", first, epochs - first)]
    return [phase for phase in phases if phase.epochs]


def setup_of(
    plan: Plan, phases: list[Phase], phase: Phase, steps_per_epoch: int
) -> Callable[[dict[str, Array]], Setup]:
    """What a phase trains, from settings that may be traced.

    Args:
        plan: of the run.
        phases: all of them.
        phase: one of these.
        steps_per_epoch: batches that the training cells make.

    Returns:
        Settings, by name, that the configuration does not have -> what is trained.
    """
    config = plan.config
    before, n_steps = phase.before * steps_per_epoch, phase.epochs * steps_per_epoch

    def setup(settings: dict[str, Array]) -> Setup:
        def setting(name: str) -> float | Array:
            return settings.get(name, getattr(config, name))

        model = plan.build(settings)
        starts = model.start is not None and phase.name == "vae"
        keep = "best" if model.start is None else "last" if starts else "best risen"
        if starts:
            model = model.start
        optimizer = plan.optimizer or default_optimizer(
            *(p.epochs * steps_per_epoch for p in phases),
            learning_rate=setting("learning_rate"),
            weight_decay=setting("weight_decay"),
            free_rate=setting("free_rate"),
        )

        def warm_up(step: Array) -> Array:
            warm = jnp.round(setting("kl_warmup") * n_steps)
            share = jnp.clip((step - before) / jnp.maximum(warm, 1.0), 0.0, 1.0)
            return setting("kl_weight") * jnp.where(warm > 0, share, 1.0)

        if starts:
            free_nats = jnp.maximum(setting("free_nats"), START_FREE_NATS)
            objective = elbo(free_nats=free_nats)
        elif config.n_samples == 1:
            free = {n: setting(n) for n in ("free_nats", "free_nats_y")}
            objective = elbo(**free)
        else:
            objective = importance_weighted(config.n_samples)
        weight = warm_up if plan.kl_weight is None else plan.kl_weight
        step = make_train_step(model, objective, optimizer, kl_weight=weight)
        # where the phase leads, be it below 1
        full_weight = weight(jnp.int32(before + n_steps - 1))
        return Setup(model, objective, step, full_weight, keep)

    return setup
