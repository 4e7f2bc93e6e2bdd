"""Public count data that scVAE was measured on, fetched once by address.

Files are kept in `scvae_jax/data` in the user's cache folder (`XDG_CACHE_HOME`, else
`~/.cache`). A download that was cut short goes on where it stopped, and a file appears
under its name only when it is whole. The tests read from a small server of their own:
the real addresses, which can change, have not been tried from there.
"""

import contextlib
import errno
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from scvae_jax.checks import InputError, check_count, expect, listing, one_line
from scvae_jax.files import cache_folder, lock
from scvae_jax.tenx import read_10x_archive, read_10x_h5

TENX = "https://cf.10xgenomics.com/samples/cell-exp"
PURIFIED_URL = TENX + "/1.1.0/{name}/{name}_filtered_gene_bc_matrices.tar.gz"
BRAIN_URL = TENX + "/1.3.0/1M_neurons/1M_neurons_filtered_gene_bc_matrices_h5.h5"
# the nine types of scVAE's data set (92,043 cells), and the monocytes that it left out
PURIFIED = (
    "b_cells",
    "cd34",
    "cd4_t_helper",
    "cd56_nk",
    "cytotoxic_t",
    "memory_t",
    "naive_cytotoxic",
    "naive_t",
    "regulatory_t",
)
MONOCYTES = "cd14_monocytes"

GZIP, HDF5 = b"\x1f\x8b", b"\x89HDF\r\n\x1a\n"
SECONDS = 60
BLOCK = 2**20


def purified_pbmc(
    types: Iterable[str] = PURIFIED,
    *,
    url: str = PURIFIED_URL,
    folder: str | Path | None = None,
) -> anndata.AnnData:
    """Blood cells that antibodies had sorted into types before they were sequenced.

    Args:
        types: which; by default the nine of scVAE, some 92,000 cells. "cd14_monocytes"
            are the tenth.
        url: the address of a type's archive, with {name} where its name goes, also in
            the last part.
        folder: where archives are kept; None: the cache folder.

    Returns:
        AnnData with X [cells, 32738 genes], counts, CSR float32; obs_names, type and
        barcode; obs["cell_type"], categorical, the file that a cell came from;
        var_names, Ensembl identifiers; var["symbol"], which repeat.

    Raises:
        InputError: for an unknown type, an address without {name}, or a file that
            cannot be fetched or read.

    Source: Zheng et al. 2017, doi:10.1038/ncomms14049; 10x Genomics.
    """
    types = tuple(types)
    known = (*PURIFIED, MONOCYTES)
    if not types or len(set(types)) < len(types) or set(types) - set(known):
        raise InputError(
            f"found types {listing(types, 20)}, expected some of {listing(known, 20)}, "
            "each once, choose among these"
        )
    if "{name}" not in url.rsplit("/", 1)[-1]:
        # the archives of two types would be kept under one name
        raise InputError(
            f"found url={url!r}, expected {{name}} in its last part, write it where "
            "the name of a type goes"
        )
    parts = []
    for name in types:
        address = url.format(name=name)
        path = fetch(address, folder=folder, signature=GZIP)
        part = read_10x_archive(path)
        part.obs_names = [f"{name}_{barcode}" for barcode in part.obs_names]
        if parts and not part.var.equals(parts[0].var):
            raise InputError(
                f"found other genes in {path} than in the archive of {types[0]}, "
                "expected the same, delete both and fetch them again"
            )
        parts.append(part)
    codes = np.repeat(np.arange(len(parts)), [part.n_obs for part in parts])
    obs = pd.DataFrame(index=np.concatenate([part.obs_names for part in parts]))
    obs["cell_type"] = pd.Categorical.from_codes(codes, categories=list(types))
    x = scipy.sparse.vstack([part.X for part in parts], format="csr")
    return anndata.AnnData(X=x, obs=obs, var=parts[0].var)


def mouse_brain(
    n_obs: int | None = None,
    *,
    url: str = BRAIN_URL,
    folder: str | Path | None = None,
) -> anndata.AnnData:
    """1.3 million cells of the brain of embryonic mice; a file of some 4 GB.

    All cells take some 30 GB of memory.

    Args:
        n_obs: read no more than the first so many cells of the file, which are no
            random sample of it; None: all 1,306,127.
        url: the address of the file.
        folder: where the file is kept; None: the cache folder.

    Returns:
        AnnData with X [cells, 27998 genes], counts, CSR float32; obs_names, barcodes;
        var_names, Ensembl identifiers; var["symbol"], which repeat.

    Raises:
        InputError: for a file that cannot be fetched or read.

    Source: 10x Genomics, 1.3 Million Brain Cells from E18 Mice, 2017.
    """
    if n_obs is not None:
        check_count("n_obs", n_obs, 1, 2**31 - 1)
    path = fetch(url, folder=folder, signature=HDF5)
    return read_10x_h5(path, n_obs)


def fetch(
    url: str, *, folder: str | Path | None = None, signature: bytes = b""
) -> Path:
    """Fetch a file once; what is there already is not fetched again.

    What has come of it is kept in NAME.part, and in NAME.tag what tells versions of the
    file apart, so that a later call asks for the rest of the same file alone.

    Args:
        url: its address, whose last part is the name that it is kept under: files of
            one name from two places need two folders.
        folder: where it is kept; None: the cache folder.
        signature: the bytes that it must begin with.

    Returns:
        Where it is.

    Raises:
        InputError: if it is no address, cannot be reached, is cut short (what came is
            kept, and a later call goes on), or is something else (nothing is kept).
    """
    name = url.rsplit("/", 1)[-1]
    expect(
        "://" in url and bool(name),
        f"the address {url!r}",
        "a whole one, from https:// to the name of a file",
        "change url",
    )
    path = Path(folder or cache_folder() / "data") / name
    if path.is_file():
        return path
    print(f"fetching {url} to {path}", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = (path.with_name(path.name + end) for end in (".part", ".tag"))
    with _alone(part, url):
        if path.is_file():
            # another process has fetched it since
            part.unlink(missing_ok=True)
            return path
        _complete(url, part, tag, signature)
        os.replace(part, path)
        tag.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _alone(part: Path, url: str) -> Iterator[None]:
    """Hold a partial file against other processes; an empty one is gone after that."""
    with part.open("ab") as file:
        lock(file.fileno(), f"that another process is fetching {url}")
        try:
            yield
        finally:
            if part.is_file() and part.stat().st_size == 0:
                part.unlink()


def _complete(url: str, part: Path, tag: Path, signature: bytes) -> None:
    """Fetch what is missing of a partial file, which is then what it should be."""
    try:
        total = _continue(url, part, tag)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            advice = (
                f"room for it in {part.parent}, free some or choose another folder "
                "(folder=)"
            )
        else:
            advice = (
                "the file, check the connection and call again, or put the file into "
                f"{part.parent}"
            )
        raise InputError(
            f"found that {url} cannot be fetched ({one_line(error)}), expected {advice}"
        ) from None
    size = part.stat().st_size
    if size < total:
        raise InputError(
            f"found {size} of {total} bytes of {url}, expected all, call again: it "
            "goes on where it stopped"
        )
    with part.open("rb") as file:
        begins = file.read(len(signature))
    if size > total or begins != signature:
        part.unlink()
        tag.unlink(missing_ok=True)
        what = f"{size} bytes" if size > total else "another kind of file"
        raise InputError(
            f"found {what} at {url}, expected {total} bytes of the data set, check "
            "the address and call again"
        )


def _continue(url: str, part: Path, tag: Path) -> int:
    """Append what is missing to a partial file; the size that it should have."""
    have = part.stat().st_size
    headers = {"User-Agent": "scvae_jax", "Accept-Encoding": "identity"}
    if have and tag.exists():
        # the rest, or the whole file if it has changed since
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        # 416: nothing is left to ask for
        length = error.headers.get("Content-Range", "").rpartition("/")[2]
        error.close()
        if error.code == 416 and length.isdigit():
            return int(length)
        raise
    with response:
        length = response.headers.get("Content-Length", "")
        if not length.isdigit():
            raise InputError(
                f"found no size of {url}, expected one to know when it is whole, "
                f"fetch it by other means into {part.parent}"
            )
        start = 0
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            start = have
            if not span.startswith(f"bytes {have}-"):
                raise http.client.HTTPException(f"asked from {have}, got {span!r}")
        else:
            # a weak tag (W/) does not hold for single bytes; without any it starts anew
            version = response.headers.get("ETag", "")
            if not version.startswith('"'):
                version = response.headers.get("Last-Modified", "")
            # first, or what is left of another version could pass for this one
            os.truncate(part, 0)
            tag.unlink(missing_ok=True)
            if version:
                tag.write_text(version)
        with part.open("ab" if start else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
        return start + int(length)
