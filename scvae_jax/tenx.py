"""Files of 10x Genomics to AnnData. No jax."""

import gzip
import tarfile
import warnings
import zlib
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse

from scvae_jax import files
from scvae_jax.checks import (
    InputError,
    InputWarning,
    check_count,
    expect,
    listing,
    one_line,
)

PARTS = {
    "matrix.mtx": "matrix",
    "barcodes.tsv": "barcodes",
    "genes.tsv": "genes",
    "features.tsv": "genes",
}
# what 10x calls features that are genes
GENES = "Gene Expression"


def read_10x_archive(path: str | Path) -> anndata.AnnData:
    """Read matrix.mtx, barcodes.tsv and genes.tsv from a .tar.gz of 10x Genomics.

    Args:
        path: of the archive; the three may be in any folder of it, and newer ones have
            features.tsv and compress each file too.

    Returns:
        AnnData with X [cells, genes], counts, CSR float32; obs_names, barcodes;
        var_names, identifiers; var["symbol"]. Proteins and all else that newer ones
        count beside genes are left out, which is said.

    Raises:
        InputError: if it is absent or damaged, or is no such archive.
    """
    files.expect_file(Path(path), "a file of 10x Genomics")
    parts = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                kind = PARTS.get(name.removesuffix(".gz"))
                if kind and member.isfile():
                    expect(
                        kind not in parts,
                        f"several files of {kind} in {path}, such as {member.name}",
                        "one matrix",
                        "choose an archive of one matrix and a single genome",
                    )
                    file = archive.extractfile(member)
                    if name.endswith(".gz"):
                        file = gzip.GzipFile(fileobj=file)
                    parts[kind] = _read_part(kind, file)
    except InputError:
        raise
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        IndexError,
    ) as error:
        raise _damaged(path, "archive", error) from None
    if len(parts) < 3:
        raise InputError(
            f"found {listing(parts)} in {path}, expected matrix.mtx, barcodes.tsv and "
            "genes.tsv, check that it is an archive of a filtered matrix"
        )
    return _annotated(path, parts["matrix"], parts["barcodes"], *parts["genes"])


def _read_part(kind: str, file):
    if kind == "matrix":
        # genes in rows
        return scipy.sparse.csr_matrix(
            scipy.io.mmread(file, spmatrix=False).T, dtype=np.float32
        )
    rows = [line.split("\t") for line in file.read().decode().splitlines()]
    if kind == "barcodes":
        return [row[0] for row in rows]
    types = [row[2] for row in rows] if rows and len(rows[0]) > 2 else None
    return [row[0] for row in rows], [row[1] for row in rows], types


def read_10x_h5(path: str | Path, n_obs: int | None = None) -> anndata.AnnData:
    """Read an HDF5 matrix of 10x Genomics, of the second or third version.

    Args:
        path: of the file; of the second version, with a single genome.
        n_obs: read no more than the first so many cells; None: all.

    Returns:
        AnnData with X [cells, genes], counts, CSR float32; obs_names, barcodes;
        var_names, identifiers; var["symbol"]. Proteins and all else that the third
        counts beside genes are left out, which is said.

    Raises:
        InputError: if it is absent or damaged, or is no such file.
    """
    if n_obs is not None:
        check_count("n_obs", n_obs, 1, 2**31 - 1)
    files.expect_file(Path(path), "a file of 10x Genomics")
    try:
        with h5py.File(path) as file:
            if len(file) != 1:
                raise InputError(
                    f"found {len(file)} groups in {path} ({listing(file)}), expected "
                    "one, a genome or a matrix, choose a file of a single genome"
                )
            (group,) = file.values()
            newer = "features" in group
            ids = group["features/id" if newer else "genes"]
            symbols = group["features/name" if newer else "gene_names"]
            n_genes, n_cells = group["shape"][:].tolist()
            n_cells = min(n_cells, n_obs or n_cells)
            # cells are columns there, so what is compressed by columns is by rows here
            indptr = group["indptr"][: n_cells + 1]
            end = int(indptr[-1])
            small = max(end, n_genes) < 2**31
            index = np.int32 if small else np.int64
            x = scipy.sparse.csr_matrix(
                (
                    group["data"].astype(np.float32)[:end],
                    group["indices"].astype(index)[:end],
                    indptr.astype(index),
                ),
                shape=(n_cells, n_genes),
            )
            x.check_format(full_check=True)
            x.sort_indices()
            barcodes = group["barcodes"].asstr()[:n_cells]
            typed = "features/feature_type" in group
            types = group["features/feature_type"].asstr()[:] if typed else None
            names = ids.asstr()[:], symbols.asstr()[:], types
            return _annotated(path, x, barcodes, *names)
    except InputError:
        raise
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise _damaged(path, "HDF5 matrix", error) from None


def _annotated(path, x, barcodes, ids, symbols, types) -> anndata.AnnData:
    if x.shape != (len(barcodes), len(ids)):
        raise InputError(
            f"found {x.shape[0]} cells by {x.shape[1]} genes, {len(barcodes)} barcodes "
            f"and {len(ids)} names of genes in {path}, expected as many, delete it and "
            "fetch it again"
        )
    obs = pd.DataFrame(index=pd.Index(np.asarray(barcodes, dtype=object)))
    var = pd.DataFrame(index=pd.Index(np.asarray(ids, dtype=object)))
    var["symbol"] = np.asarray(symbols, dtype=object)
    genes = np.asarray(types) == GENES
    if types is None or genes.all():
        return anndata.AnnData(X=x, obs=obs, var=var)
    others = listing(np.unique(np.asarray(types)[~genes]))
    expect(
        genes.any(),
        f"no {GENES!r} among the features in {path} ({others})",
        "counts of genes",
        "choose another file",
    )
    warnings.warn(
        f"{(~genes).sum()} of {len(genes)} features in {path} are no genes ({others}) "
        "and are left out",
        InputWarning,
        stacklevel=3,
    )
    return anndata.AnnData(X=x[:, genes], obs=obs, var=var[genes])


def _damaged(path: str | Path, kind: str, error: Exception) -> InputError:
    files.expect_unlocked(Path(path), error)
    reason = one_line(error)
    return InputError(
        f"found a damaged file or another kind at {path} ({reason}), expected an "
        f"{kind} of 10x Genomics, delete it and fetch it again"
    )
