"""Results into AnnData, for scanpy to take it from there."""

import warnings

import anndata
import pandas as pd

from scvae_jax.checkpoints import Fitted, versions
from scvae_jax.config import InputWarning, check_count, to_json
from scvae_jax.evaluation import cell_bounds, prepare_as, split_of
from scvae_jax.training import cells_to_device

# samples that smooth the noise of a cell's bound
N_SAMPLES = 10


def apply(
    adata: anndata.AnnData,
    fitted: Fitted,
    *,
    key_added: str = "scvae",
    missing_genes: str = "error",
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
        batch_size: cells at a time.
        seed: of the samples behind the bound.
        copy: return an annotated copy and leave `adata` as it is.

    Returns:
        None, or the copy. Fields written:

        obsm["X_scvae"]: [n, L] latent coordinates, the mean of q(z|x).
        obs["scvae_elbo"]: evidence lower bound of each cell, nats.
        obs["scvae_split"]: train, validation, test or new (categorical).
        uns["scvae"]: settings, versions and the number of samples.

    Raises:
        InputError: for data that cannot be used: genes missing, unknown batches.
    """
    check_count("seed", seed, 0, 2**32 - 1)
    check_count("batch_size", batch_size, 1, 2**31 - 1)
    data = prepare_as(adata, fitted, missing_genes)
    split = split_of(adata, fitted)
    surplus = adata.n_vars - int(pd.Index(adata.var_names).isin(fitted.genes).sum())
    if surplus:
        warnings.warn(
            f"{surplus} of {adata.n_vars} genes are not in the model and are ignored",
            InputWarning,
            stacklevel=2,
        )
    figures = cell_bounds(
        fitted.model,
        fitted.params,
        cells_to_device(data, slice(None)),
        n_samples=N_SAMPLES,
        batch_size=batch_size,
        seed=seed,
    )
    if copy:
        adata = _own(adata)
    elif adata.is_view:
        # as scanpy does: a view becomes an object of its own before it is written to
        adata._init_as_actual(_own(adata))
    adata.obsm[f"X_{key_added}"] = figures.latent
    adata.obs[f"{key_added}_elbo"] = figures.elbo
    adata.obs[f"{key_added}_split"] = pd.Categorical(split)
    # HDF5 has no None: settings that are not set are left out
    data_settings = to_json(fitted.data_config)
    adata.uns[key_added] = {
        "model": fitted.config.model,
        "likelihood": fitted.likelihood.name,
        "n_latent": fitted.config.n_latent,
        "seed": fitted.train_config.seed,
        "data": {name: v for name, v in data_settings.items() if v is not None},
        "n_samples": N_SAMPLES,
        "versions": versions(),
    }
    return adata if copy else None


def _own(adata: anndata.AnnData) -> anndata.AnnData:
    """A copy in memory, whether or not the cells are in a file."""
    return adata.to_memory() if adata.isbacked else adata.copy()
