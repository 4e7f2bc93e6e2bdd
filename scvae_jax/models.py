"""A model is a NamedTuple of pure functions; `vae` and `gmvae` make one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp

from scvae_jax.batches import Batch
from scvae_jax.checks import check_clusters, check_count, check_range, plain
from scvae_jax.latents import (
    MAX_DEPARTURE,
    components,
    departed,
    diagonal_normal,
    divergence,
    log_density,
    sample,
    standard_normal,
)
from scvae_jax.likelihoods import Covariates, Likelihood, total_log_prob
from scvae_jax.networks import (
    ClusterEncoder,
    Decoder,
    Encoder,
    drop,
    init_params,
    is_off,
    keep_masks,
    matmul_of,
)
from scvae_jax.objectives import Terms, gated
from scvae_jax.reading import entries_of, first_product, laid_out, measured

Array = jax.Array
Tree = Any
# for each modality the mean [G] over the training cells, and their number
Profiles = Sequence[tuple[Array, int]]

# decoded entries for whose gradients everything is kept: some 250 MB
KEPT = 2**23
# draws of z over which responsibilities are averaged
N_DRAWS = 100
# decodes that are compiled one by one rather than as a loop
UNROLLED = 20


class Modality(NamedTuple):
    """One kind of measurement: its name, number of features and likelihood."""

    name: str
    n_features: int
    likelihood: Likelihood


class Model(NamedTuple):
    """Pure functions of a deep generative model. Parameters come first.

    A model never drops anything out unless a dropout key is given, so that bounds are
    those of the model itself. Its functions were made from one another: `terms` goes on
    with the `encode` and `decode` that it was made of where these alone are replaced.
    A train step needs `init` and `terms` and no others.

    Attributes:
        modalities: what it generates.
        n_latent: L.
        init: (key, profiles or None) -> params, a dict with "encoder", "decoder" and
            "free"; of a mixture also "prior", and "clusters" where a network gives
            q(y|x). With profiles, for each modality the mean [G] of the training cells
            and their number, the decoder starts as the null model: whatever z, the
            family (of a zero-inflated or categorised one its base) has the mean
            profile. From random outputs it first unlearns to listen to z, which it may
            not learn again.
        encode: (params, batch, dropout key or None) -> posterior q(z|x), a distrax
            distribution of batch shape [B]; a mixture over q(y|x) where a network
            gives it.
        decode: (params, z [B, L], batch, dropout key or None) -> the params of each
            modality's likelihood, a tuple.
        weigh: (params, z [B, L] or [B, K, L], posterior, batch, dropout key or None)
            -> Terms of this sample, without the axis S.
        terms: (params, key, batch, n_samples, train) -> Terms: encodes once, draws S
            samples and maps `weigh` over them; one dropout mask per cell for all.
        n_clusters: K, 0 without clusters.
        start: of a mixture, the VAE of the same encoder and decoder, whose params are a
            part of the mixture's, to train before components are placed; else None.
        hidden: (params, batch, dropout key or None) -> q(z|x) of the VAE, and the last
            hidden layer of the encoder, [B, n].
        expand: (params, z [..., B, L], batch, dropout key or None) -> the last hidden
            layer of the decoder, [..., B, n]; the first half of `decode`.
        emit: (params, that layer [B, n], batch) -> the second half.
        infer: of a mixture, (params, z [B, L]) -> log p(y|z), [B, K].
        assign: of a mixture, (params, posterior) -> q(y|x), [B, K]: that of the network
            that gives it, or p(y|z) in the mean over N_DRAWS z ~ q(z|x), for all cells
            from the same noise.
    """

    modalities: tuple[Modality, ...]
    n_latent: int
    init: Callable[..., Tree]
    encode: Callable[..., Any]
    decode: Callable[..., tuple[dict[str, Array], ...]]
    weigh: Callable[..., Terms]
    terms: Callable[..., Terms]
    n_clusters: int = 0
    start: "Model | None" = None
    hidden: Callable[..., tuple[Any, Array]] | None = None
    expand: Callable[..., Array] | None = None
    emit: Callable[..., tuple[dict[str, Array], ...]] | None = None
    infer: Callable[[Tree, Array], Array] | None = None
    assign: Callable[[Tree, Any], Array] | None = None


def vae(
    modalities: Sequence[Modality],
    *,
    n_latent: int = 10,
    hidden_sizes: Sequence[int] = (128, 128),
    n_categories: Sequence[int] = (),
    n_continuous: int = 0,
    layer_norm: bool = True,
    thinning: float = 0.0,
    dropout_input: float = 0.0,
    dropout_hidden: float = 0.0,
    dropout_decoder: float = 0.0,
    precision: str = "float32",
) -> Model:
    """A variational auto-encoder: z ~ N(0, I), x | z ~ likelihood(decoder(z)).

    q(z|x) = N(mean(x), diag scale(x)^2), from log1p(x) for counts and x itself for
    other data. Covariates go to the decoder.

    Args:
        modalities: what is generated, one or more.
        n_latent: L.
        hidden_sizes: widths of the encoder's hidden layers; the decoder mirrors them.
        n_categories: for each categorical covariate, how many values it has; the first
            is the batch, which likelihoods may refer to. Codes begin at 0, and a cell
            with any other is decoded as one of no category.
        n_continuous: number of continuous covariates.
        layer_norm: LayerNorm after each hidden layer.
        thinning: largest share of a cell's counts hidden from the encoder in training.
        dropout_input: share of the encoder's non-zero inputs dropped in training.
        dropout_hidden: dropout in the encoder.
        dropout_decoder: dropout in the decoder.
        precision: of the gene-wide matrix products, as in `ModelConfig`; all else is in
            float32.

    Returns:
        The model.

    Raises:
        ValueError: for another `precision`, sizes or rates out of range, or modalities
            that share a name.

    References:
        Kingma & Welling 2014; for counts Gronbech et al. 2020 and Lopez et al. 2018.
    """
    modalities = tuple(modalities)
    names = [m.name for m in modalities]
    if len(set(names)) < len(names):
        raise ValueError(
            f"found modalities named {', '.join(names)}, expected a name for each, "
            "rename one"
        )
    for size in (n_latent, *hidden_sizes):
        check_count("n_latent or hidden_sizes", size, 1)
    rates = (thinning, dropout_input, dropout_hidden, dropout_decoder)
    for rate in rates:
        # one of many fits may be traced
        if not isinstance(rate, jax.core.Tracer):
            check_range("thinning or dropout", plain(rate), 1.0)
    encoder = Encoder(n_latent, tuple(hidden_sizes), layer_norm, dropout_hidden)
    decoder = Decoder(
        tuple((m.n_features, m.likelihood.heads) for m in modalities),
        tuple(reversed(hidden_sizes)),
        layer_norm,
        dropout_decoder,
        precision,
    )
    matmul = matmul_of(precision)
    n_covariates = sum(n_categories) + n_continuous
    n_batches = n_categories[0] if n_categories else 1
    n_features = sum(m.n_features for m in modalities)

    def init(key: Array, profiles: Profiles | None = None) -> Tree:
        modules = {
            "encoder": (encoder, ((1, n_features),)),
            "decoder": (decoder, ((1, n_latent), (1, n_covariates))),
        }
        free = {m.name: initial_free(m, n_batches) for m in modalities}
        params = init_params(key, modules) | {"free": free}
        if profiles is not None:
            starts = [
                m.likelihood.start(*profile) if m.likelihood.start else {}
                for m, profile in zip(modalities, profiles, strict=True)
            ]
            params["decoder"] = decoder.constant(params["decoder"], starts)
        return params

    def encode_all(params: Tree, batch: Batch, key: Array | None = None):
        n_cells = batch.weight.shape[0]
        keys = [None] * len(modalities)
        if key is not None and not is_off(thinning):
            key, *keys = jax.random.split(key, 1 + len(modalities))
        counts = [measured(c) for c in batch.counts]
        inputs = [
            entries_of(c, m.likelihood.is_of_counts, k, thinning)
            for m, c, k in zip(modalities, counts, keys, strict=True)
        ]
        # those of the entries come last: how many slots they have must not move others
        shapes = [(n_cells, size) for size in encoder.hidden_sizes]
        rates = [dropout_hidden] * len(shapes) + [dropout_input] * len(inputs)
        shapes += [entries.shape for entries in inputs]
        keep = keep_masks(key, shapes, rates)
        keep, seen = keep[: -len(inputs)], keep[-len(inputs) :]
        inputs = [drop(h, k, dropout_input) for h, k in zip(inputs, seen, strict=True)]
        x = jnp.concatenate(
            [laid_out(h, c) for h, c in zip(inputs, counts, strict=True)], axis=-1
        )
        variables = {"params": params["encoder"]}
        mean, log_scale, h = encoder.apply(
            variables,
            x,
            keep,
            first_product(inputs, counts, matmul),
        )
        return diagonal_normal(mean, log_scale), h

    def encode(params: Tree, batch: Batch, key: Array | None = None):
        return encode_all(params, batch, key)[0]

    def expand(params: Tree, z: Array, batch: Batch, key: Array | None = None):
        if batch.categorical.shape[1] < len(n_categories):
            raise ValueError(
                f"found {batch.categorical.shape[1]} categorical covariates, expected "
                f"{len(n_categories)}, give their codes (dense_batch(categorical=...))"
            )
        if batch.continuous.shape[1] != n_continuous:
            raise ValueError(
                f"found {batch.continuous.shape[1]} continuous covariates, expected "
                f"{n_continuous}, give them (batch._replace(continuous=...), [B, "
                f"{n_continuous}])"
            )
        columns = [
            jax.nn.one_hot(batch.categorical[:, i], n)
            for i, n in enumerate(n_categories)
        ]
        covariates = jnp.concatenate([*columns, batch.continuous], axis=-1)
        shapes = [(batch.weight.shape[0], size) for size in decoder.hidden_sizes]
        keep = keep_masks(key, shapes, [dropout_decoder] * len(shapes))
        variables = {"params": params["decoder"]}
        return decoder.apply(variables, z, covariates, keep, method="expand")

    def emit(params: Tree, h: Array, batch: Batch):
        heads = decoder.apply({"params": params["decoder"]}, h, method="emit")
        code = batch.categorical[:, 0] if n_categories else None
        return tuple(
            m.likelihood.link(h, params["free"][m.name], Covariates(c.depth, code))
            for m, h, c in zip(
                modalities, heads, map(measured, batch.counts), strict=True
            )
        )

    def decode(params: Tree, z: Array, batch: Batch, key: Array | None = None):
        return emit(params, expand(params, z, batch, key), batch)

    prior = standard_normal(n_latent)

    def weigh(params: Tree, z: Array, posterior, batch: Batch, key=None) -> Terms:
        likelihood_params = decode(params, z, batch, key)
        return Terms(
            z=z,
            log_px=log_likelihood(modalities, batch, likelihood_params),
            log_pz=prior.log_prob(z),
            log_qz=posterior.log_prob(z),
            kl_z=posterior.kl_divergence(prior),
            log_qz_path=jax.lax.stop_gradient(posterior).log_prob(z),
        )

    return Model(
        modalities,
        n_latent,
        init,
        encode,
        decode,
        weigh,
        _terms_of(encode, weigh),
        hidden=encode_all,
        expand=expand,
        emit=emit,
    )


def gmvae(
    modalities: Sequence[Modality],
    *,
    n_clusters: int,
    posterior: str = "shared",
    mixture_weights: str | Sequence[float] = "learned",
    component_covariance: str = "shared",
    n_latent: int = 10,
    hidden_sizes: Sequence[int] = (128, 128),
    **networks: Any,
) -> Model:
    """A Gaussian-mixture VAE: y ~ Cat(pi), z | y ~ N(mu_y, Sigma_y), x | z as `vae`.

    Posteriors: "shared", q(z|x) with p(y|z) in closed form, one decode whatever K; or
    "conditional", q(y|x) q(z|x,y) with the exact sum over y, K decodes.

    Args:
        modalities: what is generated, one or more.
        n_clusters: K.
        posterior: "shared" or "conditional".
        mixture_weights: "uniform", "learned", or K probabilities.
        component_covariance: "shared", one scale for all dimensions of all components;
            "diagonal", a scale for each component and dimension; or "full". With
            scales of its own a wide component tends to swallow its neighbours, so they
            (of "full" the diagonal of its Cholesky factor) are held within a factor of
            two of a scale that all share.
        n_latent: L.
        hidden_sizes: widths of the encoder's hidden layers; the decoder mirrors them.
        **networks: as in `vae`.

    Returns:
        The model. Its params have "prior" beside those of `vae`.

    Raises:
        InputError: for an unknown option, or weights that are not K probabilities.

    References:
        Gronbech et al., scVAE, 2020 (conditional); Jiang et al., VaDE, 2017 (shared).
    """
    mixture_weights = plain(mixture_weights)
    check_clusters(n_clusters, posterior, mixture_weights, component_covariance)
    base = vae(modalities, n_latent=n_latent, hidden_sizes=hidden_sizes, **networks)
    n_features = sum(m.n_features for m in base.modalities)
    n_hidden = hidden_sizes[-1] if hidden_sizes else n_features
    clusters = ClusterEncoder(n_clusters, n_latent)

    def init(key: Array, profiles: Profiles | None = None) -> Tree:
        key_base, key_prior, key_clusters = jax.random.split(key, 3)
        mean = jax.random.normal(key_prior, (n_clusters * n_latent,))
        prior = {"mean": mean.reshape(n_clusters, n_latent)}
        prior["log_scale"] = jnp.zeros((1, 1))
        if component_covariance != "shared":
            prior["departure"] = jnp.zeros((n_clusters, n_latent))
        if component_covariance == "full":
            prior["correlation"] = jnp.zeros((n_clusters, n_latent, n_latent))
        if mixture_weights == "learned":
            prior["logits"] = jnp.zeros(n_clusters)
        elif mixture_weights != "uniform":
            # among the parameters, as clusters that are numbered anew take theirs along
            prior["log_weights"] = jnp.log(jnp.asarray(mixture_weights))
        params = base.init(key_base, profiles) | {"prior": prior}
        if posterior == "conditional":
            shapes = ((1, n_hidden), (1, 2 * n_latent))
            params |= init_params(key_clusters, {"clusters": (clusters, shapes)})
        return params

    def log_py(params: Tree) -> Array:
        """[1, K]."""
        if mixture_weights == "learned":
            return jax.nn.log_softmax(params["prior"]["logits"])[None]
        if mixture_weights == "uniform":
            return jnp.full((1, n_clusters), -jnp.log(n_clusters))
        # normalised, whatever an optimiser of one's own has made of them
        given = jax.lax.stop_gradient(params["prior"]["log_weights"])
        return jax.nn.log_softmax(given)[None]

    def prior_of(params: Tree):
        prior = params["prior"]
        log_scale = prior["log_scale"]
        if component_covariance != "shared":
            log_scale += MAX_DEPARTURE * jnp.tanh(prior["departure"])
        return components(prior["mean"], log_scale, prior.get("correlation"))

    def encode(params: Tree, batch: Batch, key: Array | None = None):
        q, h = base.hidden(params, batch, key)
        if posterior == "shared":
            return q
        moments = jnp.concatenate([q.mean(), q.stddev()], axis=-1)
        logits, shift = clusters.apply({"params": params["clusters"]}, h, moments)
        return distrax.MixtureSameFamily(
            distrax.Categorical(logits), departed(q, *jnp.split(shift, 2, axis=-1))
        )

    def weigh_shared(params: Tree, z: Array, q, batch: Batch, key=None) -> Terms:
        log_pz = log_density(prior_of(params), z[:, None])
        log_px = log_likelihood(
            base.modalities, batch, base.decode(params, z, batch, key)
        )
        # E_q[log q(z|x)] is known; log p(z|y) under r(z) is not, and is sampled
        kl_z = -q.entropy()[:, None] - log_pz
        return Terms(
            z=z,
            log_px=log_px[:, None],
            log_pz=log_pz,
            log_qz=q.log_prob(z)[:, None],
            kl_z=kl_z,
            log_py=jnp.broadcast_to(log_py(params), log_pz.shape),
            log_qz_path=jax.lax.stop_gradient(q).log_prob(z)[:, None],
        )

    def weigh_conditional(params: Tree, z: Array, q, batch: Batch, key=None) -> Terms:
        prior, q_z = prior_of(params), q.components_distribution

        def log_px_of(h: Array) -> Array:
            return log_likelihood(base.modalities, batch, base.emit(params, h, batch))

        # what is as wide as the genes, of one cluster at a time
        h = base.expand(params, jnp.swapaxes(z, 0, 1), batch, key)
        log_pz = log_density(prior, z)
        return Terms(
            z=z,
            log_px=_each(log_px_of, h, batch).T,
            log_pz=log_pz,
            log_qz=q_z.log_prob(z),
            kl_z=divergence(q_z, prior),
            log_py=jnp.broadcast_to(log_py(params), log_pz.shape),
            log_qy=jax.nn.log_softmax(q.mixture_distribution.logits),
            log_qz_path=jax.lax.stop_gradient(q_z).log_prob(z),
        )

    def infer(params: Tree, z: Array) -> Array:
        log_joint = log_py(params) + log_density(prior_of(params), z[:, None])
        return jax.nn.log_softmax(log_joint, axis=-1)

    def assign(params: Tree, q) -> Array:
        if posterior == "conditional":
            return jax.nn.softmax(q.mixture_distribution.logits)
        noise = jax.random.normal(jax.random.key(0), (N_DRAWS * n_latent,))

        def one(total: Array, noise: Array) -> tuple[Array, None]:
            z = q.mean() + q.stddev() * noise
            return total + jnp.exp(infer(params, z)), None

        start = jnp.zeros((q.mean().shape[0], n_clusters))
        total, _ = jax.lax.scan(one, start, noise.reshape(N_DRAWS, 1, n_latent))
        return total / N_DRAWS

    weigh = weigh_shared if posterior == "shared" else weigh_conditional
    return base._replace(
        init=init,
        encode=encode,
        weigh=weigh,
        terms=_terms_of(encode, weigh),
        n_clusters=n_clusters,
        start=base,
        infer=infer,
        assign=assign,
    )


def _terms_of(encode: Callable, weigh: Callable) -> Callable[..., Terms]:
    """`Model.terms` from its parts."""

    def terms(
        params: Tree, key: Array, batch: Batch, n_samples: int = 1, train: bool = False
    ) -> Terms:
        key_z, key_encoder, key_decoder = jax.random.split(key, 3)
        if not train:
            key_encoder = key_decoder = None
        posterior = encode(params, batch, key_encoder)
        z = sample(posterior, key_z, n_samples)
        passed, tag = gated(z) if train else (z, None)

        def of_sample(z: Array) -> Terms:
            return weigh(params, z, posterior, batch, key_decoder)

        # z itself for what a loss of one's own asks of it: the gate is the bound's
        return _each(of_sample, passed, batch)._replace(z=z, tag=tag)

    return terms


def _each(function: Callable[[Array], Any], z: Array, batch: Batch) -> Any:
    """Map a function that decodes over the first axis of z.

    On a CPU one after the other, so that arrays stay in its cache, and up to UNROLLED
    without a loop, which would copy what gradients need. Beyond KEPT entries, gradients
    keep the matrix products alone and compute the rest once more.
    """
    if len(z) == 1:
        # an axis of one would turn every gather into a batched one, at twice its cost
        return jax.tree.map(lambda leaf: leaf[None], function(z[0]))
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(z)
    if len(z) * sum(counts.x.size for counts in batch.counts) > KEPT:
        keep = jax.checkpoint_policies.dots_saveable
        function = jax.checkpoint(function, prevent_cse=False, policy=keep)
    _, each = jax.lax.scan(
        lambda _, one: (None, function(one)), None, z, unroll=len(z) <= UNROLLED
    )
    return each


def log_likelihood(
    modalities: Sequence[Modality], batch: Batch, params: Sequence[dict[str, Array]]
) -> Array:
    """Log p(x|z) of each cell, summed over modalities.

    Args:
        modalities: what was measured.
        batch: B cells.
        params: of each modality's likelihood, from `Model.decode`.

    Returns:
        [B] nats; of a modality that was not observed, 0.
    """
    total = 0
    for modality, counts, p in zip(modalities, batch.counts, params, strict=True):
        counts = measured(counts)
        x, observed = counts.x, counts.observed
        if modality.likelihood.log_prob_zero is None:
            # the zeros of padding may have no density, and then no gradient either
            seen = batch.weight > 0
            if observed is not None:
                seen &= observed > 0
            x = jnp.where(seen[:, None], x, x[seen.argmax()])
            none = ~seen.any()
            p = {n: jnp.where(none, jax.lax.stop_gradient(v), v) for n, v in p.items()}
        log_px = total_log_prob(modality.likelihood, x, p, counts.nonzero)
        total += log_px if observed is None else jnp.where(observed > 0, log_px, 0.0)
    return total


def initial_free(modality: Modality, n_batches: int) -> dict[str, Array]:
    """Where the parameters that are learned beside the heads start.

    Args:
        modality: whose likelihood has them.
        n_batches: C, at least 1.

    Returns:
        For each name an array of its axes.
    """
    sizes = {"gene": modality.n_features, "batch": n_batches}
    return {
        # of a named type: what is weak would have a step traced twice
        free.name: jnp.full([sizes[axis] for axis in free.axes], free.initial, float)
        for free in modality.likelihood.free
    }
