"""Results into AnnData, for scanpy to take it from there."""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special

from scvae_jax import batches
from scvae_jax.annotated import gene_names, in_memory, make_actual
from scvae_jax.batches import CellData
from scvae_jax.checkpoints import Fitted
from scvae_jax.checks import InputError, check_field, check_pass, listing
from scvae_jax.evaluation import (
    cell_bounds,
    comparable_totals,
    prepare_as,
    split_of,
)
from scvae_jax.latents import sample
from scvae_jax.models import Model
from scvae_jax.placing import cluster_codes
from scvae_jax.selection import cells_to_device

Array = jax.Array

# samples that smooth the noise of a cell's bound
N_SAMPLES = 10
# genes that are named for each cluster
N_MARKERS = 25


def apply(
    adata: anndata.AnnData,
    fitted: Fitted,
    *,
    key_added: str = "scvae",
    missing_genes: str = "error",
    layer: str | None = None,
    batch_size: int = 128,
    seed: int = 0,
    copy: bool = False,
) -> anndata.AnnData | None:
    """Write what a fitted model says of cells into their AnnData object.

    Genes are matched by name, in any order; those that the model does not know are
    ignored. X, raw and layers are left as they are.

    Args:
        adata: the cells, seen in fitting or new.
        fitted: the model.
        key_added: prefix of the fields.
        missing_genes: for genes of the model that `adata` lacks: "error" or "zeros".
        layer: layer with the counts, "X" for X; None: where they were for fitting.
        batch_size: cells at a time.
        seed: of the samples behind the bound.
        copy: return an annotated copy and leave `adata` as it is.

    Returns:
        None, or the copy. Fields written, in the place of those of another model:

        obsm["X_scvae"]: [n, L] latent coordinates, the mean of q(z|x).
        obs["scvae_elbo"]: evidence lower bound of each cell, nats.
        obs["scvae_split"]: train, validation, test or new (categorical).
        uns["scvae"]: settings, versions and the number of samples.

        Of a mixture also:

        obs["scvae_cluster"]: the most probable cluster (categorical), "0" the largest
            among the cells of the training.
        obsm["scvae_cluster_probabilities"]: [n, K] q(y|x).
        obs["scvae_cluster_entropy"]: its entropy, nats; 0 where a cell is certain.
        obs["scvae_cluster_confidence"]: with alternatives, the share of all fits that
            put the cell where this one does, their clusters matched one to one on the
            training cells.
        uns["scvae"]["cluster_sizes"]: [K] number of these cells in each cluster.
        uns["scvae"]["cluster_prototypes"]: table [G, K] of mean expression, decoded
            from the centre of each component at the median depth of the cells, averaged
            over batches.
        uns["scvae"]["cluster_genes"]: table of the 25 genes that most set each cluster
            apart by decoded expression, best first: highest Poisson divergence
            m log(m/r) - m + r of its mean m from the mean r of the other clusters,
            among the genes with m > r; of data that is not counts, highest m - r.

    Raises:
        InputError: for data that cannot be used: genes missing, unknown batches.
    """
    check_pass(batch_size, seed)
    check_field("key_added", key_added)
    data = prepare_as(adata, fitted, missing_genes, layer)
    totals = comparable_totals(data, adata, fitted, layer)
    split = split_of(adata, fitted, totals)
    cells = cells_to_device(data, slice(None))
    figures = cell_bounds(
        fitted.model,
        fitted.params,
        cells,
        n_samples=N_SAMPLES,
        batch_size=batch_size,
        seed=seed,
    )
    # all that can fail comes before anything is written
    others = fitted.alternatives if fitted.model.n_clusters else ()
    # with one model, so that one program serves all
    codes = [cluster_codes(fitted.model, other.params, cells) for other in others]
    tables = {}
    if fitted.model.n_clusters:
        depth = float(np.median(data.depth))
        tables = _cluster_tables(fitted, figures.probabilities, depth)
    adata = in_memory(adata) if copy else make_actual(adata)
    # what another model had to say of clusters
    for name in ("cluster", "cluster_entropy", "cluster_confidence"):
        if f"{key_added}_{name}" in adata.obs:
            del adata.obs[f"{key_added}_{name}"]
    adata.obsm.pop(f"{key_added}_cluster_probabilities", None)
    adata.obsm[f"X_{key_added}"] = figures.latent
    adata.obs[f"{key_added}_elbo"] = figures.elbo
    adata.obs[f"{key_added}_split"] = pd.Categorical(split)
    # HDF5 has no None: settings that are not set are left out
    data_settings = dataclasses.asdict(fitted.data_config)
    if layer is not None:
        data_settings["layer"] = layer
    adata.uns[key_added] = {
        "model": fitted.config.model,
        "likelihood": fitted.likelihood.name,
        "n_latent": fitted.config.n_latent,
        "seed": fitted.train_config.seed,
        "data": {name: v for name, v in data_settings.items() if v is not None},
        # as text, in which there are lists, dicts and None
        "model_config": json.dumps(dataclasses.asdict(fitted.config)),
        "train_config": json.dumps(dataclasses.asdict(fitted.train_config)),
        "n_samples": N_SAMPLES,
        "versions": fitted.versions,
    }
    # of many fits the seed that drew the split; what was given instead of settings
    for name in ("split_seed", "own_optimizer", "own_kl_weight"):
        if name in fitted.summary:
            adata.uns[key_added][name] = fitted.summary[name]
    if fitted.model.n_clusters:
        _write_clusters(adata, figures.probabilities, codes, key_added)
        adata.uns[key_added] |= tables
    return adata if copy else None


def _cluster_tables(fitted: Fitted, r: np.ndarray, depth: float) -> dict[str, Any]:
    """Sizes, prototypes and genes of clusters, of cells of probabilities r [n, K]."""
    n_clusters = fitted.model.n_clusters
    sizes = np.bincount(r.argmax(axis=1), minlength=n_clusters)
    names = [str(k) for k in range(n_clusters)]
    mean = prototypes(fitted, depth=depth)
    counted = fitted.likelihood.is_of_counts
    return {
        "cluster_sizes": sizes,
        "cluster_prototypes": pd.DataFrame(mean.T, fitted.genes, names),
        "cluster_genes": distinguishing_genes(
            mean, sizes, fitted.genes, counted=counted
        ),
    }


def _write_clusters(
    adata: anndata.AnnData, r: np.ndarray, codes: Sequence[np.ndarray], key: str
) -> None:
    own = r.argmax(axis=1)
    used = [str(k) for k in np.unique(own)]
    adata.obs[f"{key}_cluster"] = pd.Categorical(own.astype(str), categories=used)
    adata.obsm[f"{key}_cluster_probabilities"] = r
    adata.obs[f"{key}_cluster_entropy"] = scipy.special.entr(r).sum(axis=1)
    if codes:
        agree = sum(own == other for other in codes)
        adata.obs[f"{key}_cluster_confidence"] = (1 + agree) / (1 + len(codes))


def prototypes(fitted: Fitted, *, depth: float) -> np.ndarray:
    """Mean expression at the centre of each component of a mixture.

    Args:
        fitted: a mixture.
        depth: of a cell, counts.

    Returns:
        [K, G] counts, averaged over the batches.
    """
    model, params = fitted.model, fitted.params
    shape = (model.n_clusters, model.modalities[0].n_features)
    depths = jnp.full(shape[0], depth, jnp.float32)
    means = []
    for code in range(max(1, len(fitted.batches))):
        categorical = jnp.full((shape[0], 1), code, jnp.int32)
        batch = batches.dense_batch(
            jnp.zeros(shape), depth=depths, categorical=categorical
        )
        (decoded,) = model.decode(params, params["prior"]["mean"], batch)
        means.append(fitted.likelihood.mean(decoded))
    return np.array(sum(means) / len(means))


def distinguishing_genes(
    prototypes: np.ndarray, sizes: np.ndarray, genes: np.ndarray, *, counted: bool
) -> pd.DataFrame:
    """Genes that set each cluster apart from the others by decoded expression.

    Args:
        prototypes: [K, G] mean expression.
        sizes: [K] cells of each cluster, with which the others are averaged.
        genes: [G] names.
        counted: whether they are counts, and not what may be negative.

    Returns:
        A column for each cluster with the names of its genes, best first, "" where
        fewer genes are expressed more in it than in the others.
    """
    columns = {}
    for k, own in enumerate(prototypes):
        weight = np.where(np.arange(len(sizes)) == k, 0.0, sizes + 1e-3)
        rest = weight @ prototypes / max(weight.sum(), 1e-3)
        score = own - rest
        if counted:
            # KL(Poisson(m) || Poisson(r)), in nats a cell
            small = 1e-12
            score = own * np.log((own + small) / (rest + small)) - own + rest
        order = np.argsort(-np.where(own > rest, score, -1.0), kind="stable")
        order = order[:N_MARKERS]
        names = np.asarray(genes, dtype=object)[order]
        columns[str(k)] = np.where(own[order] > rest[order], names, "")
    return pd.DataFrame(columns)


def denoise(
    adata: anndata.AnnData,
    fitted: Fitted,
    *,
    batch: str | None = None,
    layer_added: str = "scvae_denoised",
    missing_genes: str = "error",
    layer: str | None = None,
    batch_size: int = 128,
    seed: int = 0,
    copy: bool = False,
) -> anndata.AnnData | None:
    """Write the expression that a fitted model expects of each cell into a layer.

    Args:
        adata: the cells.
        fitted: the model.
        batch: decode every cell as if it came from this batch; None: from its own.
        layer_added: name of the layer.
        missing_genes: for genes of the model that `adata` lacks: "error" or "zeros".
        layer: layer with the counts, "X" for X; None: where they were for fitting.
        batch_size: cells at a time.
        seed: of the samples.
        copy: return an annotated copy and leave `adata` as it is.

    Returns:
        None, or the copy. Field written:

        layers["scvae_denoised"]: [n, G] float32, E_q[mean of x | z] at the depth of
            each cell, over 10 samples; genes that the model does not know are NaN.

    Raises:
        InputError: for data that cannot be used, or a batch that is not known.
    """
    check_pass(batch_size, seed)
    check_field("layer_added", layer_added)
    data = prepare_as(adata, fitted, missing_genes, layer)
    as_batch = None
    if batch is not None:
        if str(batch) not in fitted.batches:
            raise InputError(
                f"found batch={batch!r}, expected one of {listing(fitted.batches)}, "
                "choose one that the model was fitted with"
            )
        as_batch = fitted.batches.index(str(batch))
    cells = cells_to_device(data, slice(None))
    positions, n_slots = batches.in_order(cells, batch_size)
    column = pd.Index(fitted.genes).get_indexer(gene_names(adata))
    denoised = np.full(adata.shape, np.nan, np.float32)
    key = jax.random.key(seed)
    # a batch at a time to the host: all cells and genes may not fit on the device
    for number, (index, weight) in enumerate(zip(*positions, strict=True)):
        mean = _denoise_batch(
            fitted.model,
            n_slots,
            as_batch,
            fitted.params,
            cells,
            (index, weight),
            jax.random.fold_in(key, number),
        )
        rows = np.ix_(index[weight > 0], column >= 0)
        denoised[rows] = np.asarray(mean)[weight > 0][:, column[column >= 0]]
    adata = in_memory(adata) if copy else make_actual(adata)
    adata.layers[layer_added] = denoised
    return adata if copy else None


@partial(jax.jit, static_argnums=(0, 1, 2))
def _denoise_batch(
    model: Model,
    n_slots: int,
    as_batch: int | None,
    params: Any,
    cells: CellData,
    position: tuple[Array, Array],
    key: Array,
) -> Array:
    """[B, G] expected counts."""
    modality = model.modalities[0]
    batch = batches.cut(cells, *position, modality.n_features, n_slots)
    posterior = model.encode(params, batch)
    if as_batch is not None:
        batch = batch._replace(categorical=jnp.full_like(batch.categorical, as_batch))

    def one(total: Array, key: Array) -> tuple[Array, None]:
        z = sample(posterior, key, 1)[0]
        if z.ndim == 2:
            z = z[:, None]
            log_r = jnp.zeros(z.shape[:2])
        else:
            log_r = jax.nn.log_softmax(posterior.mixture_distribution.logits)

        def of_cluster(total: Array, y: tuple[Array, Array]) -> tuple[Array, None]:
            z, log_r = y
            (decoded,) = model.decode(params, z, batch)
            return total + jnp.exp(log_r)[:, None] * modality.likelihood.mean(
                decoded
            ), None

        clusters = (jnp.swapaxes(z, 0, 1), log_r.T)
        return jax.lax.scan(of_cluster, total, clusters)[0], None

    start = jnp.zeros(batch.counts[0].x.shape)
    total, _ = jax.lax.scan(one, start, jax.random.split(key, N_SAMPLES))
    return total / N_SAMPLES
