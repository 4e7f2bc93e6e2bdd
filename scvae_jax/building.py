"""The likelihood and the model that a configuration describes."""

import jax

from scvae_jax.checks import InputError
from scvae_jax.config import OF_MIXTURES, ModelConfig, completed
from scvae_jax.likelihoods import Likelihood, from_name
from scvae_jax.models import Modality, Model, gmvae, vae

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
