"""AnnData to validated sparse counts and covariates. No jax."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from scvae_jax.annotated import (
    column_of,
    expect_anndata,
    gene_names,
    layer_names,
    main_matrix,
)
from scvae_jax.checks import InputError, InputWarning, listing, one_line
from scvae_jax.config import DataConfig

SPLITS = ("train", "validation", "test")


class CountData(NamedTuple):
    """Validated cells.

    Attributes:
        x: [n, G] float32, compressed by rows, canonical, without stored zeros.
        genes: [G] names.
        cells: [n] names.
        depth: [n] expected total of a cell, counts.
        batch: [n] codes into `batches`; all 0 without a batch key.
        batches: the known batches, in the order of their codes.
        split: [n] values of SPLITS, or "new" for a fitted model; None without a split
            key.
    """

    x: scipy.sparse.csr_matrix
    genes: np.ndarray
    cells: np.ndarray
    depth: np.ndarray
    batch: np.ndarray
    batches: tuple[str, ...]
    split: np.ndarray | None


def prepare(
    adata: anndata.AnnData,
    config: DataConfig,
    *,
    support: str = "counts",
    genes: np.ndarray | None = None,
    batches: tuple[str, ...] | None = None,
    missing_genes: str = "error",
) -> CountData:
    """Validate the cells of an AnnData object and take out what a model needs.

    Args:
        adata: the cells; it is left as it is.
        config: where the data is.
        support: of the likelihood: "counts", "integers", "binary" or "real".
        genes: names of the genes of a fitted model, to be matched in any order; None:
            those of `adata`, or of its mask `config.genes`.
        batches: the batches that a fitted model knows; None: those of `adata`.
        missing_genes: for genes of a fitted model that `adata` lacks, "error" or
            "zeros".

    Returns:
        The cells.

    Raises:
        InputError: for anything that cannot be used.
    """
    expect_anndata(adata)
    n_obs, n_vars = adata.shape
    if n_obs == 0 or n_vars == 0:
        raise InputError(
            f"found {n_obs} cells and {n_vars} genes, expected at least one of each, "
            "check how the data was filtered"
        )
    if config.layer == "X" and "X" not in layer_names(adata):
        config = dataclasses.replace(config, layer=None)
    names = gene_names(adata)
    repeated = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(repeated):
        raise InputError(
            f"found {len(repeated)} gene names more than once ({listing(repeated)}), "
            "expected unique names, call adata.var_names_make_unique()"
        )
    own_genes = genes is None
    # for a fitted model: `apply` may have written that cells are new
    parts = SPLITS if own_genes else (*SPLITS, "new")
    columns = _gene_columns(adata, names, config, genes, missing_genes)
    # depth and validation concern the genes in use alone
    present = columns >= 0
    x = _matrix(adata, config.layer, columns[present])
    x = _validated(x, adata, config, support)
    if own_genes and x.nnz == 0 and support != "real":
        raise InputError(
            "found nothing but zeros in the genes in use, expected counts, "
            f"choose another layer{_likely_counts(adata, _where(config.layer))}"
        )
    genes = names[columns] if own_genes else np.asarray(genes, dtype=str)
    if not present.all():
        x = _spread(x, np.flatnonzero(present), len(genes))
        warnings.warn(
            f"{(~present).sum()} of the model's {len(genes)} genes are missing "
            f"({listing(genes[~present])}) and taken as 0, so that what is expected of "
            "the others is too low by the share that these have of a cell",
            InputWarning,
            stacklevel=2,
        )
    empty = int((np.diff(x.indptr) == 0).sum())
    if empty and support in ("counts", "integers"):
        depth = "" if config.size_factor_key else "; their depth is taken as 1"
        warnings.warn(
            f"{empty} of {n_obs} cells have no counts in the genes in use{depth}",
            InputWarning,
            stacklevel=2,
        )
    batch, batches = _batches(adata, config.batch_key, batches)
    return CountData(
        x=x,
        genes=genes,
        cells=np.asarray(adata.obs_names, dtype=str),
        depth=_depth(adata, config, x),
        batch=batch,
        batches=batches,
        split=_split(adata, config.split_key, parts),
    )


def _gene_columns(
    adata: anndata.AnnData,
    names: np.ndarray,
    config: DataConfig,
    genes: np.ndarray | None,
    missing_genes: str,
) -> np.ndarray:
    """Column of `adata` for each gene of the model, -1 where it has none."""
    if missing_genes not in ("error", "zeros"):
        raise InputError(
            f"found missing_genes={missing_genes!r}, expected 'error' or 'zeros', "
            "choose one of these"
        )
    if genes is not None:
        columns = pd.Index(names).get_indexer(pd.Index(genes))
        missing = np.asarray(genes)[columns < 0]
        if len(missing) == len(genes):
            raise InputError(
                f"found none of the model's {len(genes)} genes (it has "
                f"{listing(genes, 3)}; the data has {listing(names, 3)}), expected the "
                "same gene names, check whether symbols or identifiers are used"
            )
        if len(missing) and missing_genes == "error":
            raise InputError(
                f"found {len(missing)} of the model's {len(genes)} genes missing from "
                f"the data ({listing(missing)}), expected all of them, add them or "
                "have apply, denoise or evaluate fill them with zeros "
                "(missing_genes='zeros', --missing-genes zeros)"
            )
        return columns
    if config.genes is None:
        return np.arange(len(names))
    mask = column_of(adata, config.genes, "genes", "var")
    is_boolean, n_missing = pd.api.types.is_bool_dtype(mask.dtype), mask.isna().sum()
    if is_boolean and n_missing:
        raise InputError(
            f"found {n_missing} genes without a value in var column {config.genes!r}, "
            "expected true or false for every gene, fill them "
            "(adata.var[...].fillna(False))"
        )
    if not is_boolean:
        raise InputError(
            f"found var column {config.genes!r} of type {mask.dtype}, expected "
            "true or false for every gene, compare it (adata.var[...] == 1, or of text "
            "adata.var[...].astype(str) == 'True')"
        )
    columns = np.flatnonzero(mask.to_numpy(dtype=bool))
    if len(columns) == 0:
        raise InputError(
            f"found no gene marked in var column {config.genes!r}, expected at least "
            "one, select genes first"
        )
    return columns


def _matrix(
    adata: anndata.AnnData, layer: str | None, columns: np.ndarray
) -> scipy.sparse.csr_matrix:
    """Columns of X or of a layer as a new CSR matrix of floats."""
    if layer is None:
        x = main_matrix(adata)
        if x is None:
            raise InputError(
                "found no X, expected counts there, "
                f"give one of the layers: {listing(layer_names(adata), 30)}"
            )
    elif layer in layer_names(adata):
        x = adata.layers[layer]
    else:
        raise InputError(
            f"found no layer {layer!r}, expected one of: "
            f"{listing(layer_names(adata), 30)}, give one of these, or 'X' for X itself"
        )
    if hasattr(x, "to_memory"):
        x = x.to_memory()
    if np.ma.is_masked(x):
        raise InputError(
            f"found {np.ma.count_masked(x)} masked values in {_where(layer)}, expected "
            "counts alone, fill them first"
        )
    if not scipy.sparse.issparse(x):
        x = np.asarray(x)
    elif hasattr(x, "check_format"):
        try:
            x.check_format(full_check=True)
        except ValueError as error:
            raise InputError(
                f"found a damaged sparse matrix in {_where(layer)} "
                f"({one_line(error)}), expected indices within it, write it anew"
            ) from None
    if x.dtype.kind not in "biuf":
        raise InputError(
            f"found data of type {x.dtype}, expected numbers, convert it (what is "
            "lazy: adata.to_memory())"
        )
    all_of_them = np.array_equal(columns, np.arange(x.shape[1]))
    if not all_of_them:
        x = x[:, columns]
    # for the checks: a count of 32 bits or more may not fit in float32
    dtype = np.promote_types(x.dtype, np.float32)
    return scipy.sparse.csr_matrix(x, dtype=dtype, copy=all_of_them)


def _validated(
    x: scipy.sparse.csr_matrix, adata: anndata.AnnData, config: DataConfig, support: str
) -> scipy.sparse.csr_matrix:
    """The matrix in canonical float32 form, if its values suit the likelihood."""
    where = _where(config.layer)
    x.sum_duplicates()
    # not a number, infinite, or so when it is a float32
    largest = max(-x.data.min(), x.data.max()) if x.nnz else 0.0
    if not largest <= np.finfo(np.float32).max:
        bad = int((~(np.abs(x.data) <= np.finfo(np.float32).max)).sum())
        raise InputError(
            f"found {bad} values in {where} that are NaN or infinite, expected finite "
            "numbers, remove or replace them"
        )
    x.eliminate_zeros()
    if support == "real":
        return x.astype(np.float32, copy=False)
    negative = int((x.data < 0).sum())
    if negative:
        raise InputError(
            f"found {negative} negative values in {where}, expected counts, pass raw "
            "counts: scaled or corrected data will not do"
            + _likely_counts(adata, where)
        )
    if support == "binary":
        other = int((x.data != 1).sum())
        if other:
            raise InputError(
                f"found {other} values in {where} other than 0 and 1, expected binary "
                "data for a Bernoulli likelihood, binarise it or choose a likelihood "
                "of counts"
            )
    share = n_fractional(x.data) / max(x.nnz, 1)
    if share > 0:
        if config.fractional == "error":
            # where the counts are elsewhere nobody should round these
            likely = _likely_counts(adata, where)
            raise InputError(
                f"found fractional values in {where} ({share:.1%} of the non-zero "
                "entries), expected counts, pass raw counts: normalised data was "
                "probably given"
                + (
                    likely
                    or "; or fit with fractional='round' or 'allow' (train "
                    "or compare --fractional round|allow)"
                )
            )
        rounded = config.fractional == "round"
        if rounded:
            x.data = np.round(x.data)
            x.eliminate_zeros()
        elif support == "integers":
            raise InputError(
                f"found fractional values in {where} ({share:.1%} of the non-zero "
                "entries), expected integers for a categorised likelihood, fit with "
                "fractional='round' (train or compare --fractional round)"
            )
        # once normalised, what was allowed for counts passes for counts
        warnings.warn(
            f"{share:.1%} of the non-zero entries of {where} are fractional and are "
            + ("rounded" if rounded else "taken as they are"),
            InputWarning,
            stacklevel=2,
        )
    return x.astype(np.float32, copy=False)


def n_fractional(values: np.ndarray) -> int:
    """How many values are not whole; a part at a time, as there may be billions."""
    parts = np.array_split(values, len(values) // 2**24 + 1)
    return sum(int((part != np.floor(part)).sum()) for part in parts)


def _where(layer: str | None) -> str:
    return "X" if layer is None else f"layer {layer!r}"


def _likely_counts(adata: anndata.AnnData, where: str) -> str:
    """A hint at where the counts are, if some other matrix looks like counts."""
    candidates = {f"layer {n!r}": adata.layers[n] for n in layer_names(adata)}
    candidates["X"] = main_matrix(adata)
    if adata.raw is not None:
        candidates["raw.X"] = adata.raw.X
    for name, x in candidates.items():
        if name == where or x is None:
            continue
        part = x[: min(200, adata.n_obs)]
        data = part.data if scipy.sparse.issparse(part) else np.asarray(part).ravel()
        if data.dtype.kind not in "iuf" or not np.isfinite(data).all():
            continue
        if (data >= 0).all() and (data > 0).any() and (data == np.floor(data)).all():
            take = ": take adata.raw.to_adata()" if name == "raw.X" else ""
            return f" ({name} looks like counts{take})"
    return ""


def _spread(
    x: scipy.sparse.csr_matrix, columns: np.ndarray, n_genes: int
) -> scipy.sparse.csr_matrix:
    """Put the columns of x at `columns` of a wider matrix of zeros."""
    return scipy.sparse.csr_matrix(
        (x.data, columns[x.indices], x.indptr), shape=(x.shape[0], n_genes)
    )


def _depth(
    adata: anndata.AnnData, config: DataConfig, x: scipy.sparse.csr_matrix
) -> np.ndarray:
    """[n] a given size factor in counts, or max(total, 1)."""
    key = config.size_factor_key
    if key is None:
        total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
        return np.maximum(total, 1.0).astype(np.float32)
    column = column_of(adata, key, "size factor")
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype(str)
    depth = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    with np.errstate(over="ignore"):
        depth = depth.astype(np.float32)
    bad = int((~(np.isfinite(depth) & (depth > 0))).sum())
    if bad:
        raise InputError(
            f"found {bad} cells without a positive number in obs column {key!r}, "
            "expected the depth of every cell, compute it or fit without the key"
        )
    return depth * np.float32(config.size_factor_scale)


def _batches(
    adata: anndata.AnnData, key: str | None, known: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if key is None:
        return np.zeros(adata.n_obs, np.int32), ()
    column = column_of(adata, key, "batch")
    missing = int(column.isna().sum())
    if missing:
        raise InputError(
            f"found {missing} cells without a value in obs column {key!r}, expected "
            "the batch of every cell, fill it or leave these cells out"
        )
    values = np.array(column.astype(str), dtype=str)
    if known is None:
        known = tuple(sorted(set(values)))
    codes = pd.Index(known).get_indexer(pd.Index(values))
    unknown = sorted(set(values[codes < 0]))
    if unknown:
        raise InputError(
            f"found batches that the model has not seen ({listing(unknown)}), expected "
            f"some of: {listing(known, 30)}, leave these cells out or fit again"
        )
    return codes.astype(np.int32), known


def _split(
    adata: anndata.AnnData, key: str | None, parts: Sequence[str]
) -> np.ndarray | None:
    if key is None:
        return None
    column = column_of(adata, key, "split")
    missing = int(column.isna().sum())
    if missing:
        raise InputError(
            f"found {missing} cells without a value in obs column {key!r}, expected "
            f"{', '.join(parts)}, fill it or leave these cells out"
        )
    values = np.array(column.astype(str), dtype=str)
    other = sorted(set(values) - set(parts))
    if other:
        raise InputError(
            f"found {listing(other)} in obs column {key!r}, expected "
            f"{', '.join(SPLITS)}, rename them"
        )
    return values
