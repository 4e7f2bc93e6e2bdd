"""AnnData objects and .h5ad files: read, looked at, written. No jax."""

import copy
import errno
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from scvae_jax import files
from scvae_jax.checks import InputError, is_lack_of_memory, listing, one_line


def read_h5ad(path: str | Path) -> anndata.AnnData:
    """Read an .h5ad file.

    Args:
        path: of the file.

    Returns:
        The AnnData object, in memory.

    Raises:
        InputError: if it is absent, not HDF5, cut short, or not AnnData.
    """
    path = Path(path)
    files.expect_file(path, "an .h5ad file")
    with path.open("rb") as file:
        signature = file.read(8)
    if signature != b"\x89HDF\r\n\x1a\n":
        raise InputError(
            f"found a file that is not HDF5 at {path}, expected an .h5ad file, "
            "convert it with anndata"
        )
    try:
        with warnings.catch_warnings():
            # what old files look like is no concern of the reader
            warnings.simplefilter("ignore")
            adata = anndata.read_h5ad(path)
    except MemoryError:
        raise
    except OSError as error:
        files.expect_unlocked(path, error)
        raise InputError(
            f"found a damaged or truncated HDF5 file at {path} ({one_line(error)}), "
            "expected a whole .h5ad file, copy or download it again"
        ) from None
    except Exception as error:
        raise InputError(
            f"found an HDF5 file that anndata cannot read at {path} "
            f"({one_line(error)}), expected an .h5ad file, write it with "
            "AnnData.write_h5ad"
        ) from None
    if adata.X is None and not layer_names(adata):
        raise InputError(
            f"found neither X nor layers in {path}, expected counts of cells by genes, "
            "write it with AnnData.write_h5ad"
        )
    return adata


def write_h5ad(adata: anndata.AnnData, path: Path) -> None:
    """Write an .h5ad file that appears whole or not at all.

    Args:
        adata: what to write.
        path: of the file.

    Raises:
        InputError: for what such a file cannot hold.
        OSError: if there is no room.
    """
    # names of cells may be such where the file that was read has them
    nullable = anndata.settings.override(allow_write_nullable_strings=True)
    try:
        with files.folders_above(path), files.whole(path) as part, nullable:
            adata.write_h5ad(part)
    except OSError:
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        if isinstance(error, RuntimeError) and "errno" in str(error):
            # what h5py may make of a full disk
            raise OSError(errno.EIO, str(error), str(path)) from None
        raise InputError(
            f"found what anndata does not write ({one_line(error)}), expected columns "
            "and names that an .h5ad file can hold, rename or remove them"
        ) from None


def expect_anndata(adata: anndata.AnnData) -> None:
    """Refuse anything else, such as a path.

    Args:
        adata: what was given.

    Raises:
        InputError: if it is no AnnData object.
    """
    if not isinstance(adata, anndata.AnnData):
        raise InputError(
            f"found a {type(adata).__name__}, expected an AnnData object, "
            "read the file with anndata.read_h5ad"
        )


def gene_names(adata: anndata.AnnData) -> np.ndarray:
    """Names of the genes as strings, whatever the index of `var` holds.

    Args:
        adata: cells by genes.

    Returns:
        [G] strings.
    """
    return np.asarray(adata.var_names, dtype=str)


def layer_names(adata: anndata.AnnData) -> list[str]:
    """Names of the layers; newer versions of anndata list X among them, as None."""
    return [name for name in adata.layers if name is not None]


def column_of(
    adata: anndata.AnnData, key: str, purpose: str, axis: str = "obs"
) -> pd.Series:
    """A column of obs or var, or an error that lists those that exist.

    Args:
        adata: the cells.
        key: its name.
        purpose: what it is for, for the message.
        axis: "obs" or "var".

    Returns:
        The column.

    Raises:
        InputError: if there is none of this name.
    """
    table = getattr(adata, axis)
    if not isinstance(key, str) or key not in table:
        raise InputError(
            f"found no {axis} column {key!r} for the {purpose}, expected one of: "
            f"{listing(table.columns, 30)}, give one of these or add it"
        )
    column = table[key]
    if isinstance(column, pd.DataFrame):
        raise InputError(
            f"found {column.shape[1]} {axis} columns {key!r} for the {purpose}, "
            "expected one, rename the others"
        )
    return column


def main_matrix(adata: anndata.AnnData) -> Any:
    """X, None where there is none.

    Args:
        adata: cells by genes.

    Returns:
        What it has there.
    """
    try:
        return adata.X
    except KeyError:
        # what anndata makes of it where the object is backed by a file
        return None


def in_memory(adata: anndata.AnnData) -> anndata.AnnData:
    """A copy in memory that shares nothing with the cells, be they in a file or not."""
    if not adata.isbacked:
        return adata.copy()
    if main_matrix(adata) is not None:
        return adata.to_memory(copy=True)
    # which reads X of a file that has none
    tables = {name: getattr(adata, name).copy() for name in ("obs", "var")}
    mappings = {
        name: {key: value.copy() for key, value in getattr(adata, name).items()}
        for name in ("obsm", "varm", "obsp", "varp")
    }
    layers = {name: adata.layers[name].copy() for name in layer_names(adata)}
    parts = tables | mappings | {"layers": layers, "uns": copy.deepcopy(adata.uns)}
    if adata.raw is not None:
        x = adata.raw.X
        parts["raw"] = {
            # dense or sparse, in the file or of a view
            "X": x.to_memory() if hasattr(x, "to_memory") else x[:],
            "var": adata.raw.var.copy(),
            "varm": {key: value.copy() for key, value in adata.raw.varm.items()},
        }
    return anndata.AnnData(**parts)


def make_actual(adata: anndata.AnnData) -> anndata.AnnData:
    """Make a view an object of its own before it is written to, as scanpy does."""
    if adata.is_view:
        adata._init_as_actual(in_memory(adata))
    return adata
