"""Fit a model, or many at once, to the cells of an AnnData object."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any

import anndata
import jax
import numpy as np
import optax

from scvae_jax import batches, checkpoints, phases
from scvae_jax.building import (
    conditions_on_total,
    expect_one_log_prob_of_zero,
    from_config,
    named_likelihood,
    reads_depth,
)
from scvae_jax.checks import (
    InputWarning,
    plain,
)
from scvae_jax.config import (
    DataConfig,
    ModelConfig,
    TrainConfig,
    completed,
)
from scvae_jax.counts import prepare
from scvae_jax.likelihoods import Likelihood
from scvae_jax.models import Model
from scvae_jax.schedule import Plan
from scvae_jax.selection import (
    cells_to_device,
    expect_varying,
    mean_profile,
    size_factor_scale,
    split_cells,
    total_counts,
    warn_of_cells,
)
from scvae_jax.settings import (
    MODEL_SETTINGS,
    configs_of,
    expect_depth_in_use,
    expect_in_use,
    expect_kinds,
    unread_by,
    values_of,
    warn_of_idle,
)

Array = jax.Array


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

    The decoder starts at the mean profile of the training cells. A mixture
    (model="gmvae") starts as a VAE; then its components are placed by a mixture that is
    fitted to the latents, responsibilities are fitted to them, and the whole bound is
    trained. Its clusters are numbered by size.

    Args:
        adata: cells by genes; left as it is.
        config: what to fit; None for the defaults.
        train_config: how; None for the defaults.
        layer: layer with the counts; None for X.
        batch_key: obs column with the batch of a cell.
        size_factor_key: obs column with the depth of a cell, such as the total of all
            genes or a size factor near 1; None: the total of the genes in use. One
            number for all cells makes them agree on the training cells.
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
    expect_kinds(config, train_config, likelihood, optimizer, kl_weight)
    train_config = train_config or TrainConfig()
    return fit_many(
        adata,
        config,
        train_config,
        seeds=(train_config.seed,),
        layer=layer,
        batch_key=batch_key,
        size_factor_key=size_factor_key,
        genes=genes,
        split_key=split_key,
        fractional=fractional,
        likelihood=likelihood,
        optimizer=optimizer,
        kl_weight=kl_weight,
        progress=progress,
    )


def fit_many(
    adata: anndata.AnnData,
    config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: dict[str, Sequence[float]] | None = None,
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
    """Fit a model many times in one compiled program, and pick the best.

    The split is that of `train_config.seed` for all fits; weights, noise and order are
    those of each seed.

    Args:
        adata: cells by genes; left as it is.
        config: what to fit; None for the defaults.
        train_config: how; None for the defaults.
        seeds: one fit for each.
        settings: values to try, in every combination and with each seed, of thinning,
            dropout rates, learning_rate, weight_decay, free_rate, kl_weight, kl_warmup
            or free nats.
        layer: as in `fit`, like all that follows.
        batch_key: obs column with the batch of a cell.
        size_factor_key: obs column with the depth of a cell.
        genes: boolean var column of the genes to use.
        split_key: obs column with train, validation and test.
        fractional: what to do with fractional counts.
        likelihood: a likelihood of one's own.
        optimizer: any optax optimiser.
        kl_weight: an optax schedule over steps.
        progress: show a progress bar on standard error.

    Returns:
        The fit with the highest validation bound; its `alternatives` are the others,
        best first, with clusters that have the numbers of those that they match.

    Raises:
        InputError: for data or settings that cannot be used.
        FloatingPointError: if gradients stay non-finite in every fit.
    """
    expect_kinds(config, train_config, likelihood, optimizer, kl_weight)
    config, train_config = config or ModelConfig(), train_config or TrainConfig()
    own_likelihood = likelihood is not None
    likelihood = likelihood or named_likelihood(config)
    unread = unread_by(config.model, likelihood, own_likelihood, optimizer, kl_weight)
    expect_in_use(settings or {}, unread)
    warn_of_idle(config, train_config, unread)
    if own_likelihood:
        # those of another would tell of its mean
        config = dataclasses.replace(config, likelihood_options={})
    given = config
    config = completed(given, given.model)
    train_config = completed(train_config, config.model)
    if likelihood.support == "real" and fractional == "round":
        warnings.warn(
            "real data is not rounded: fractional='round' changes nothing",
            InputWarning,
            stacklevel=3,
        )
    if not own_likelihood:
        expect_depth_in_use(size_factor_key, conditions_on_total(config))
    configs = configs_of(config, train_config, plain(seeds), settings or {})
    data_config = DataConfig(
        layer, batch_key, size_factor_key, genes, split_key, fractional
    )
    data = prepare(adata, data_config, support=likelihood.support)
    split = split_cells(data, train_config, data_config.split_key)
    warn_of_cells(data, split)
    if likelihood.support == "real" and not own_likelihood:
        expect_varying(data, split == "train")
    if size_factor_key is not None and likelihood.is_of_counts:
        scale = size_factor_scale(data, split == "train")
        data_config = dataclasses.replace(data_config, size_factor_scale=scale)
        data = data._replace(depth=data.depth * np.float32(scale))
    sizes = {"n_genes": len(data.genes), "n_batches": len(data.batches)}
    if own_likelihood:
        expect_one_log_prob_of_zero(likelihood, **sizes)
        depth_is_read = reads_depth(likelihood, **sizes)
        expect_depth_in_use(size_factor_key, depth_is_read)
        if likelihood.is_of_counts and not depth_is_read:
            config = completed(given, given.model, free_mean=True)
            configs = configs_of(config, train_config, plain(seeds), settings or {})

    def build(chosen: dict[str, Array]) -> Model:
        of_model = {name: chosen[name] for name in MODEL_SETTINGS if name in chosen}
        return from_config(config, likelihood, **sizes, settings=of_model)

    # of all cells, whichever of them a seed sets aside
    length = batches.slots_of_cells(data.x)

    def part(name: str) -> batches.CellData:
        mine = split == name
        n_slots = batches.slots_to_spare(length, int(mine.sum()))
        return cells_to_device(data, mine, n_slots)

    started = time.perf_counter()
    plan = Plan(
        build=build,
        config=train_config,
        seeds=tuple(fit_config.seed for _, fit_config in configs),
        settings=values_of(configs, settings or {}),
        train=part("train"),
        profiles=(mean_profile(data.x, split == "train"),),
        held_out=part("validation"),
        length=length,
        optimizer=optimizer,
        kl_weight=kl_weight,
    )
    totals = total_counts(data)
    # what the device has is not kept twice while it trains
    data = data._replace(x=None, depth=None)
    results = phases.run(plan, progress=progress)
    errors = [result for result in results if isinstance(result, Exception)]
    if len(errors) == len(results):
        raise errors[0]
    pairs = zip(results, configs, strict=True)
    pairs = [pair for pair in pairs if not isinstance(pair[0], Exception)]
    pairs.sort(key=lambda pair: -pair[0].summary["validation_bound"])
    results, configs = zip(*pairs, strict=True)
    results = phases.numbered_alike(results)
    shared = {
        "n_genes": len(data.genes),
        "n_fits": len(plan.seeds),
        "total_seconds": round(time.perf_counter() - started, 3),
    }
    if data.split is None:
        # each fit keeps a seed of its own
        shared["split_seed"] = train_config.seed
    # the settings that they stand for say nothing then
    own = {"own_optimizer": optimizer, "own_kl_weight": kl_weight}
    shared |= {name: True for name, value in own.items() if value is not None}
    fits = [
        checkpoints.Fitted(
            model=from_config(model_config, likelihood, **sizes),
            params=result.params,
            config=model_config,
            train_config=fit_config,
            data_config=data_config,
            genes=data.genes,
            batches=data.batches,
            cells=data.cells,
            split=split,
            history=result.history,
            summary=result.summary | shared,
            versions=checkpoints.versions(),
            own_likelihood=own_likelihood,
            totals=totals,
        )
        for (model_config, fit_config), result in zip(configs, results, strict=True)
    ]
    _warn(fits[0].summary, errors)
    return dataclasses.replace(fits[0], alternatives=tuple(fits[1:]))


def _warn(summary: dict[str, Any], errors: Sequence[Exception]) -> None:
    """Say which fits failed, and which clusters died."""
    if errors:
        warnings.warn(
            f"{len(errors)} of {summary['n_fits']} fits ended early and are left out: "
            f"{errors[0]}",
            InputWarning,
            stacklevel=4,
        )
    dead = summary.get("n_clusters", 0) - summary.get("clusters_used", 0)
    if dead:
        warnings.warn(
            f"{dead} of {summary['n_clusters']} clusters have fewer than 1 % of the "
            "training cells",
            InputWarning,
            stacklevel=4,
        )
