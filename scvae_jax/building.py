"""The likelihood and the model that a configuration describes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax.checks import InputError
from scvae_jax.config import OF_MIXTURES, ModelConfig, completed
from scvae_jax.likelihoods import Covariates, Likelihood, from_name
from scvae_jax.models import Modality, Model, gmvae, initial_free, vae

Array = jax.Array


def named_likelihood(config: ModelConfig) -> Likelihood:
    """The likelihood that a configuration names.

    Args:
        config: the settings.

    Returns:
        The likelihood.

    Raises:
        InputError: for an unknown name or option.
    """
    try:
        return from_name(config.likelihood, **config.likelihood_options)
    except ValueError as error:
        raise InputError(str(error)) from None


def from_config(
    config: ModelConfig,
    likelihood: Likelihood,
    *,
    n_genes: int,
    n_batches: int = 0,
    settings: dict[str, Array] | None = None,
) -> Model:
    """The model that a configuration describes, of one modality, "rna".

    Args:
        config: the settings.
        likelihood: from `named_likelihood`, or one's own.
        n_genes: G.
        n_batches: number of batches, 0 where there is no batch covariate.
        settings: dropout rates instead of the configuration's; they may be traced.

    Returns:
        The model.

    Raises:
        InputError: for a likelihood with parameters per batch where there are none.
    """
    if n_batches == 0 and any("batch" in free.axes for free in likelihood.free):
        raise InputError(
            f"found {likelihood.name} with parameters per batch and no batches, "
            "expected a batch covariate, give a batch key or choose parameters per gene"
        )
    config = completed(config, config.model)
    modalities = (Modality("rna", n_genes, likelihood),)
    options = {
        "n_latent": config.n_latent,
        "hidden_sizes": config.hidden_sizes,
        "n_categories": (n_batches,) if n_batches else (),
        "layer_norm": config.layer_norm,
        "thinning": config.thinning,
        "dropout_input": config.dropout_input,
        "dropout_hidden": config.dropout_hidden,
        "dropout_decoder": config.dropout_decoder,
        "precision": config.precision,
    } | dict(settings or {})
    if config.model == "vae":
        return vae(modalities, **options)
    of_mixture = {name: getattr(config, name) for name in OF_MIXTURES}
    return gmvae(modalities, **of_mixture, **options)


def conditions_on_total(config: ModelConfig) -> bool:
    """Whether a bound is one given the total of a cell, as that of a library mean is.

    Args:
        config: whose likelihood is a named one.

    Returns:
        Whether it is; binary and real data have no total.
    """
    counted = named_likelihood(config).is_of_counts
    return counted and config.likelihood_options.get("mean", "library") == "library"


def reads_depth(likelihood: Likelihood, n_genes: int, n_batches: int) -> bool:
    """Whether the params of a likelihood depend on the depth of a cell.

    Args:
        likelihood: any.
        n_genes: G.
        n_batches: number of batches, 0 where there is no batch covariate.

    Returns:
        Whether they do, as those of a library mean.
    """
    few, many = (
        _linked(likelihood, n_genes, n_batches, depth) for depth in (100.0, 200.0)
    )
    return not all(jax.tree.leaves(jax.tree.map(np.array_equal, few, many)))


def _linked(likelihood: Likelihood, n_genes: int, n_batches: int, depth: float) -> Any:
    """The params of a cell of some depth, for heads of many values."""
    heads = {}
    for head in likelihood.heads:
        shape = (1, n_genes, *head.shape)
        heads[head.name] = jnp.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)
    free = initial_free(Modality("rna", n_genes, likelihood), max(n_batches, 1))
    batch = jnp.zeros(1, jnp.int32) if n_batches else None
    return likelihood.link(heads, free, Covariates(jnp.full(1, depth), batch))


def expect_one_log_prob_of_zero(
    likelihood: Likelihood, n_genes: int, n_batches: int
) -> None:
    """Refuse a likelihood whose log_prob_zero is not its log_prob of 0.

    One of the two may have been replaced without the other; sums over sparse counts
    take both.

    Args:
        likelihood: one's own.
        n_genes: G.
        n_batches: number of batches, 0 where there is no batch covariate.

    Raises:
        InputError: if they differ for some params.
    """
    if likelihood.log_prob_zero is None:
        return
    params = _linked(likelihood, n_genes, n_batches, 100.0)
    general = likelihood.log_prob(jnp.zeros((1, n_genes)), params)
    closed = likelihood.log_prob_zero(params)
    if not np.allclose(general, closed, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise InputError(
            f"found log_prob_zero of {likelihood.name} to differ from its log_prob of "
            "0, expected the same, replace both or set log_prob_zero=None"
        )
