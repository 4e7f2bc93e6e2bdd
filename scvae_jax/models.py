"""A model is a NamedTuple of pure functions; `vae` makes one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scvae_jax.batches import Batch, Counts
from scvae_jax.config import InputError, ModelConfig
from scvae_jax.latents import diagonal_normal, sample, standard_normal
from scvae_jax.likelihoods import Covariates, Likelihood, from_name, total_log_prob
from scvae_jax.networks import Decoder, Encoder, drop, init_params, keep_masks
from scvae_jax.objectives import Terms

Array = jax.Array
Tree = Any


class Modality(NamedTuple):
    """One kind of measurement: its name, number of features and likelihood."""

    name: str
    n_features: int
    likelihood: Likelihood


class Model(NamedTuple):
    """Pure functions of a deep generative model. Parameters come first.

    A model never drops anything out unless a dropout key is given, so that bounds are
    those of the model itself.

    Attributes:
        modalities: what it generates.
        n_latent: L.
        init: key -> params, a dict with "encoder", "decoder" and "free".
        encode: (params, batch, dropout key or None) -> posterior q(z|x), a distrax
            distribution of batch shape [B].
        decode: (params, z [B, L], batch, dropout key or None) -> the params of each
            modality's likelihood, a tuple.
        weigh: (params, z [B, L], posterior, batch, dropout key or None) -> Terms of
            this sample, without the axis S.
        terms: (params, key, batch, n_samples, train) -> Terms: encodes once, draws S
            samples and maps `weigh` over them; one dropout mask per cell for all.
    """

    modalities: tuple[Modality, ...]
    n_latent: int
    init: Callable[[Array], Tree]
    encode: Callable[..., Any]
    decode: Callable[..., tuple[dict[str, Array], ...]]
    weigh: Callable[..., Terms]
    terms: Callable[..., Terms]


def vae(
    modalities: Sequence[Modality],
    *,
    n_latent: int = 10,
    hidden_sizes: Sequence[int] = (128, 128),
    n_categories: Sequence[int] = (),
    n_continuous: int = 0,
    layer_norm: bool = True,
    dropout_input: float = 0.0,
    dropout_hidden: float = 0.0,
    dropout_decoder: float = 0.0,
) -> Model:
    """A variational auto-encoder: z ~ N(0, I), x | z ~ likelihood(decoder(z)).

    q(z|x) = N(mean(x), diag scale(x)^2), from log1p(x) for counts and x itself for
    other data. Covariates go to the decoder.

    Args:
        modalities: what is generated, one or more.
        n_latent: L.
        hidden_sizes: widths of the encoder's hidden layers; the decoder mirrors them.
        n_categories: for each categorical covariate, how many values it has; the first
            is the batch, which likelihoods may refer to.
        n_continuous: number of continuous covariates.
        layer_norm: LayerNorm after each hidden layer.
        dropout_input: share of the encoder's non-zero inputs dropped in training.
        dropout_hidden: dropout in the encoder.
        dropout_decoder: dropout in the decoder.

    Returns:
        The model.

    References:
        Kingma & Welling 2014; for counts Gronbech et al. 2020 and Lopez et al. 2018.
    """
    modalities = tuple(modalities)
    encoder = Encoder(n_latent, tuple(hidden_sizes), layer_norm, dropout_hidden)
    decoder = Decoder(
        tuple((m.n_features, m.likelihood.heads) for m in modalities),
        tuple(reversed(hidden_sizes)),
        layer_norm,
        dropout_decoder,
    )
    n_covariates = sum(n_categories) + n_continuous
    sizes = {"batch": n_categories[0] if n_categories else 1}

    n_features = sum(m.n_features for m in modalities)

    def init(key: Array) -> Tree:
        modules = {
            "encoder": (encoder, ((1, n_features),)),
            "decoder": (decoder, ((1, n_latent), (1, n_covariates))),
        }
        free = {m.name: _initial_free(m, sizes) for m in modalities}
        return init_params(key, modules) | {"free": free}

    def encode(params: Tree, batch: Batch, key: Array | None = None):
        inputs = [
            _encoder_entries(m, c)
            for m, c in zip(modalities, batch.counts, strict=True)
        ]
        n_cells = batch.weight.shape[0]
        shapes = [entries.shape for entries in inputs]
        shapes += [(n_cells, size) for size in encoder.hidden_sizes]
        rates = [dropout_input] * len(inputs)
        rates += [dropout_hidden] * len(encoder.hidden_sizes)
        keep = keep_masks(key, shapes, rates)
        inputs = [drop(h, k, dropout_input) for h, k in zip(inputs, keep, strict=False)]
        h = jnp.concatenate(
            [_lay_out(h, c) for h, c in zip(inputs, batch.counts, strict=True)], axis=-1
        )
        variables = {"params": params["encoder"]}
        mean, log_scale = encoder.apply(variables, h, keep[len(inputs) :])
        return diagonal_normal(mean, log_scale)

    def decode(params: Tree, z: Array, batch: Batch, key: Array | None = None):
        columns = [
            jax.nn.one_hot(batch.categorical[:, i], n)
            for i, n in enumerate(n_categories)
        ]
        covariates = jnp.concatenate([*columns, batch.continuous], axis=-1)
        shapes = [(z.shape[0], size) for size in decoder.hidden_sizes]
        keep = keep_masks(key, shapes, [dropout_decoder] * len(shapes))
        variables = {"params": params["decoder"]}
        heads = decoder.apply(variables, z, covariates, keep)
        code = batch.categorical[:, 0] if n_categories else None
        return tuple(
            m.likelihood.link(h, params["free"][m.name], Covariates(c.depth, code))
            for m, h, c in zip(modalities, heads, batch.counts, strict=True)
        )

    prior = standard_normal(n_latent)

    def weigh(params: Tree, z: Array, posterior, batch: Batch, key=None) -> Terms:
        likelihood_params = decode(params, z, batch, key)
        return Terms(
            z=z,
            log_px=sum(
                _log_px(m, c, p)
                for m, c, p in zip(
                    modalities, batch.counts, likelihood_params, strict=True
                )
            ),
            log_pz=prior.log_prob(z),
            log_qz=posterior.log_prob(z),
            kl_z=posterior.kl_divergence(prior),
        )

    def terms(
        params: Tree, key: Array, batch: Batch, n_samples: int = 1, train: bool = False
    ) -> Terms:
        key_z, key_encoder, key_decoder = jax.random.split(key, 3)
        if not train:
            key_encoder = key_decoder = None
        posterior = encode(params, batch, key_encoder)
        z = sample(posterior, key_z, n_samples)
        return jax.vmap(lambda z: weigh(params, z, posterior, batch, key_decoder))(z)

    return Model(modalities, n_latent, init, encode, decode, weigh, terms)


def _initial_free(modality: Modality, sizes: dict[str, int]) -> dict[str, Array]:
    sizes = sizes | {"gene": modality.n_features}
    return {
        free.name: jnp.full(tuple(sizes[axis] for axis in free.axes), free.initial)
        for free in modality.likelihood.free
    }


def _log_px(modality: Modality, counts: Counts, params: dict[str, Array]) -> Array:
    log_px = total_log_prob(modality.likelihood, counts.x, params, counts.nonzero)
    return log_px if counts.observed is None else counts.observed * log_px


def _encoder_entries(modality: Modality, counts: Counts) -> Array:
    """What the encoder reads of one modality: log1p(x) of counts, x of other data.

    Where their addresses are known, the non-zero entries [N] alone: zeros stay zero
    under any mask, so dropout need not draw one for them.
    """
    x = counts.x
    if counts.nonzero is not None:
        x = x.at[counts.nonzero].get(mode="fill", fill_value=0.0)
    return jnp.log1p(x) if modality.likelihood.support in ("counts", "integers") else x


def _lay_out(entries: Array, counts: Counts) -> Array:
    """The entries as an array [B, G], zero where the modality was not observed."""
    if counts.nonzero is not None:
        entries = jnp.zeros_like(counts.x).at[counts.nonzero].set(entries, mode="drop")
    observed = counts.observed
    return entries if observed is None else entries * observed[:, None]


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
    config: ModelConfig, likelihood: Likelihood, *, n_genes: int, n_batches: int = 0
) -> Model:
    """The model that a configuration describes, of one modality, "rna".

    Args:
        config: the settings.
        likelihood: from `named_likelihood`, or one's own.
        n_genes: G.
        n_batches: number of batches, 0 where there is no batch covariate.

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
    return vae(
        (Modality("rna", n_genes, likelihood),),
        n_latent=config.n_latent,
        hidden_sizes=config.hidden_sizes,
        n_categories=(n_batches,) if n_batches else (),
        layer_norm=config.layer_norm,
        dropout_input=config.dropout_input,
        dropout_hidden=config.dropout_hidden,
        dropout_decoder=config.dropout_decoder,
    )
