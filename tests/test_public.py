"""Public sets from a small server: whole, interrupted, changed, damaged.

The real addresses are not tried.
"""

import errno
import gzip
import hashlib
import http.server
import io
import itertools
import re
import tarfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from scvae_jax import files, public, tenx
from scvae_jax.checks import InputError, InputWarning


class Handler(http.server.BaseHTTPRequestHandler):
    """Files from a dict; ranges of them; as many bytes at a time as it is told."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        name = self.path.rsplit("/", 1)[-1]
        server.asked.append((name, self.headers.get("Range")))
        content = server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        dated = "Tue, 01 Aug 2017 00:00:00 GMT"
        known = {"strong": tag, "weak": dated}.get(server.tags)
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and known and self.headers.get("If-Range") == known:
            start, status = int(asked[1]), 206
        if start >= len(content) > 0 and status == 206:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(status)
        if status == 206:
            first = start + server.lie
            self.send_header(
                "Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}"
            )
        if server.sized:
            self.send_header("Content-Length", str(len(content) - start))
        if server.tags == "strong":
            self.send_header("ETag", tag)
        elif server.tags == "weak":
            self.send_header("ETag", f"W/{tag}")
            self.send_header("Last-Modified", dated)
        self.end_headers()
        limit = server.limits.pop(0) if server.limits else len(content)
        self.wfile.write(content[start : start + limit])


@pytest.fixture
def server(monkeypatch):
    # what a machine fetches through others is not here
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.limits = {}, [], []
    server.tags, server.sized, server.lie = "strong", True, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


CONTENT = np.random.default_rng(0).bytes(100_000)
CUT = "cannot be fetched|of 100000 bytes of"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server, tmp_path, capsys):
    server.files["a.bin"] = CONTENT
    path = public.fetch(f"{server.url}/deep/a.bin", folder=tmp_path)
    assert path == tmp_path / "a.bin" and path.read_bytes() == CONTENT
    assert f"fetching {server.url}/deep/a.bin to {path}" in capsys.readouterr().err
    assert public.fetch(f"{server.url}/deep/a.bin", folder=tmp_path) == path
    assert server.asked == [("a.bin", None)]
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("tags", ["strong", "weak"])
def test_what_was_interrupted_goes_on(server, tmp_path, tags):
    """Twice interrupted; what had come is not asked for again."""
    server.files["a.bin"], server.tags = CONTENT, tags
    server.limits = [30_000, 20_000]
    for _ in range(2):
        with pytest.raises(InputError, match=CUT):
            public.fetch(f"{server.url}/a.bin", folder=tmp_path)
        assert names_in(tmp_path) == ["a.bin.part", "a.bin.tag"]
    path = public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert path.read_bytes() == CONTENT
    ranges = [asked for _, asked in server.asked]
    assert ranges == [None, "bytes=30000-", "bytes=50000-"]
    assert names_in(tmp_path) == ["a.bin"]


def test_a_whole_part_is_taken(server, tmp_path):
    """The process ended between the last byte and the new name."""
    server.files["a.bin"], server.limits = CONTENT, [30_000]
    with pytest.raises(InputError, match=CUT):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    path = public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert path.read_bytes() == CONTENT and names_in(tmp_path) == ["a.bin"]
    # longer than the file: thrown away, and whole at the next call
    path.unlink()
    server.limits = [30_000]
    with pytest.raises(InputError, match=CUT):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    with pytest.raises(InputError, match="found 100004 bytes at .* expected 100000"):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert names_in(tmp_path) == []
    assert public.fetch(f"{server.url}/a.bin", folder=tmp_path).is_file()


@pytest.mark.parametrize("tags", ["strong", "none"])
def test_a_file_that_changed_starts_anew(server, tmp_path, tags):
    """Or one that nothing tells from its other versions."""
    server.files["a.bin"], server.tags, server.limits = CONTENT, tags, [30_000]
    with pytest.raises(InputError, match=CUT):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    server.files["a.bin"] = CONTENT[::-1]
    path = public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert path.read_bytes() == CONTENT[::-1]
    assert names_in(tmp_path) == ["a.bin"]


def test_a_full_disk_is_not_blamed_on_the_connection(server, tmp_path, monkeypatch):
    server.files["a.bin"] = CONTENT

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(public.os, "truncate", full)
    with pytest.raises(InputError, match="expected room for it in .* another folder"):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)


def test_two_processes_do_not_fetch_one_file(server, tmp_path):
    """The second is told; what the first has fetched meanwhile is taken."""
    fcntl = pytest.importorskip("fcntl")
    server.files["a.bin"] = CONTENT
    with (tmp_path / "a.bin.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is fetching .*/a.bin, "):
            public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert server.asked == []
    assert public.fetch(f"{server.url}/a.bin", folder=tmp_path).is_file()
    assert names_in(tmp_path) == ["a.bin"]


def test_what_came_while_it_waited_is_taken(server, tmp_path, monkeypatch):
    alone = public._alone

    def late(part, url):
        (tmp_path / "a.bin").write_bytes(CONTENT)
        return alone(part, url)

    monkeypatch.setattr(public, "_alone", late)
    path = public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert path.read_bytes() == CONTENT and server.asked == []
    assert names_in(tmp_path) == ["a.bin"]


def test_a_file_that_changed_and_an_end_before_it_came(server, tmp_path, monkeypatch):
    """The start of one version is not joined to the rest of another."""
    server.files["a.bin"], server.limits = CONTENT, [30_000]
    with pytest.raises(InputError, match=CUT):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    server.files["a.bin"] = CONTENT[::-1]
    write_text = Path.write_text

    def last(path, text):
        write_text(path, text)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # the process ends when the new tag has been written
        patch.setattr(Path, "write_text", last)
        with pytest.raises(KeyboardInterrupt):
            public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    path = public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert path.read_bytes() == CONTENT[::-1]


def test_what_cannot_be_fetched(server, tmp_path):
    with pytest.raises(InputError, match=r"cannot be fetched \(HTTP Error 404.*into"):
        public.fetch(f"{server.url}/none.bin", folder=tmp_path)
    server.files["a.bin"], server.sized = CONTENT, False
    with pytest.raises(InputError, match="found no size of .*, expected one to know"):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    server.sized = True
    with pytest.raises(InputError, match="found another kind of file at .* 100000 by"):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path, signature=b"other")
    assert names_in(tmp_path) == []
    server.limits, server.lie = [30_000], 5
    with pytest.raises(InputError, match=CUT):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    with pytest.raises(InputError, match="asked from 30000, got 'bytes 30005-"):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 30_000
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be fetched .*check the connection"):
        public.fetch(f"{server.url}/a.bin", folder=tmp_path)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "scvae_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "scvae_jax"


GENES = [("ENSG1", "A"), ("ENSG2", "B"), ("ENSG3", "A")]


def archive(
    counts,
    barcodes,
    genes=GENES,
    *,
    newer=False,
    leave_out=(),
    columns=3,
    folders=("filtered/hg19",),
):
    """A .tar.gz of 10x Genomics; counts are cells by genes."""
    matrix = io.BytesIO()
    scipy.io.mmwrite(matrix, scipy.sparse.coo_matrix(np.asarray(counts).T))
    given = [gene if len(gene) > 2 else (*gene, "Gene Expression") for gene in genes]
    rows = ["\t".join(gene[: columns - (not newer)]) for gene in given]
    contents = {
        "matrix.mtx": matrix.getvalue(),
        "barcodes.tsv": "".join(f"{b}\n" for b in barcodes).encode(),
        "features.tsv" if newer else "genes.tsv": "\n".join(rows).encode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for folder, (name, content) in itertools.product(folders, contents.items()):
            if name in leave_out:
                continue
            content = gzip.compress(content) if newer else content
            info = tarfile.TarInfo(f"{folder}/{name}{'.gz' if newer else ''}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


COUNTS = {
    "b_cells": np.array([[0, 2, 1], [3, 0, 0]]),
    "cd34": np.array([[5, 0, 7]]),
}


def serve_purified(server):
    for name, counts in COUNTS.items():
        barcodes = [f"AAC{i}-1" for i in range(len(counts))]
        server.files[f"{name}.tar.gz"] = archive(counts, barcodes)


def test_purified_cells(server, tmp_path, monkeypatch):
    """Interrupted once; labels are the files'."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    serve_purified(server)
    server.limits = [100]
    url = server.url + "/{name}/{name}.tar.gz"
    with pytest.raises(
        InputError, match=f"cannot be fetched|100 of .* of {server.url}"
    ):
        public.purified_pbmc(("b_cells", "cd34"), url=url)
    adata = public.purified_pbmc(("b_cells", "cd34"), url=url)
    assert server.asked[1] == ("b_cells.tar.gz", "bytes=100-")
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), np.vstack(list(COUNTS.values())))
    assert adata.obs["cell_type"].tolist() == ["b_cells", "b_cells", "cd34"]
    assert adata.obs["cell_type"].dtype == "category"
    assert list(adata.obs_names) == ["b_cells_AAC0-1", "b_cells_AAC1-1", "cd34_AAC0-1"]
    assert list(adata.var_names) == ["ENSG1", "ENSG2", "ENSG3"]
    assert adata.var["symbol"].tolist() == ["A", "B", "A"]
    kept = names_in(tmp_path / "scvae_jax" / "data")
    assert kept == ["b_cells.tar.gz", "cd34.tar.gz"]
    adata.write_h5ad(tmp_path / "written.h5ad")


def test_purified_cells_that_are_refused(server, tmp_path):
    serve_purified(server)
    url = server.url + "/{name}.tar.gz"
    for types in ((), ("b_cells", "b_cells"), ("t_cells",)):
        with pytest.raises(InputError, match="expected some of b_cells, cd34.*cd14_mo"):
            public.purified_pbmc(types, url=url, folder=tmp_path)
    for address in ("/{name}/matrix.tar.gz", "/b_cells.tar.gz"):
        with pytest.raises(
            InputError, match=r"expected \{name\} in its last part, wri"
        ):
            public.purified_pbmc(("b_cells",), url=server.url + address)
    server.files["cd34.tar.gz"] = archive(COUNTS["cd34"], ["A"], GENES[::-1])
    with pytest.raises(InputError, match="found other genes in .*cd34.tar.gz than in"):
        public.purified_pbmc(("b_cells", "cd34"), url=url, folder=tmp_path)
    server.files["cd56_nk.tar.gz"] = b"<html>not found</html>"
    with pytest.raises(InputError, match="found another kind of file at"):
        public.purified_pbmc(("cd56_nk",), url=url, folder=tmp_path)
    assert "cd56_nk.tar.gz" not in names_in(tmp_path)


def test_the_nine_types_of_the_paper():
    assert len(public.PURIFIED) == 9 and public.MONOCYTES not in public.PURIFIED
    address = public.PURIFIED_URL.format(name="cd34")
    assert address.endswith("/1.1.0/cd34/cd34_filtered_gene_bc_matrices.tar.gz")


def test_archives(tmp_path):
    path = tmp_path / "a.tar.gz"
    counts = COUNTS["b_cells"]
    path.write_bytes(archive(counts, ["x", "y"], newer=True))
    np.testing.assert_array_equal(tenx.read_10x_archive(path).X.toarray(), counts)
    whole = archive(counts, ["x", "y"])
    both = archive(counts, ["x", "y"], folders=("hg19", "mm10"))
    for content, message in (
        (whole[:-50], "found a damaged file or another kind at .*, delete it and fet"),
        (whole[:40], "found a damaged file or another kind at"),
        (b"something else", "found a damaged file or another kind at"),
        (archive(counts, ["x", "y"], leave_out=["genes.tsv"]), "found matrix, barcode"),
        (archive(counts, ["x", "y"], columns=2), "found a damaged file or ano"),
        (archive(counts, ["x"]), "found 2 cells by 3 genes, 1 barcodes and 3 names"),
        (both, "found several files of matrix in .*a.tar.gz, such as mm10/matrix.mtx"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            tenx.read_10x_archive(path)


def brain_file(path, counts):
    """The second version: genes by cells, compressed by cells, under the genome."""
    x = scipy.sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("mm10")
        group["shape"] = np.array(x.shape[::-1], np.int32)
        group["data"] = x.data.astype(np.int32)
        group["indices"] = x.indices.astype(np.int64)
        group["indptr"] = x.indptr.astype(np.int64)
        group["barcodes"] = np.array([f"C{i}-1".encode() for i in range(x.shape[0])])
        group["genes"] = np.array([b"ENSMUSG1", b"ENSMUSG2", b"ENSMUSG3"])
        group["gene_names"] = np.array([b"A", b"B", b"C"])


def test_the_brain(server, tmp_path):
    counts = np.random.default_rng(1).poisson(0.7, (50, 3))
    brain_file(tmp_path / "made.h5", counts)
    content = (tmp_path / "made.h5").read_bytes()
    server.files["brain.h5"], server.limits = content, [1000]
    url, folder = f"{server.url}/brain.h5", tmp_path / "kept"
    with pytest.raises(InputError, match="cannot be fetched|1000 of"):
        public.mouse_brain(url=url, folder=folder)
    adata = public.mouse_brain(url=url, folder=folder)
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    assert adata.obs_names[3] == "C3-1"
    assert list(adata.var_names) == ["ENSMUSG1", "ENSMUSG2", "ENSMUSG3"]
    assert adata.var["symbol"].tolist() == ["A", "B", "C"]
    few = public.mouse_brain(7, url=url, folder=folder)
    np.testing.assert_array_equal(few.X.toarray(), counts[:7])
    assert public.mouse_brain(99, url=url, folder=folder).n_obs == 50
    with pytest.raises(InputError, match="found n_obs=0, expected a whole number"):
        public.mouse_brain(0, url=url, folder=folder)
    assert len(server.asked) == 2


def test_matrices_that_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    brain_file(path, np.eye(4, 3, dtype=int))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="found a damaged file or another kind at .*a"):
        tenx.read_10x_h5(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.create_group("hg19")
    with pytest.raises(InputError, match=r"found 2 groups in .*a.h5 \(hg19, mm10\)"):
        tenx.read_10x_h5(path)
    with h5py.File(path, "w") as file:
        file["matrix"] = np.zeros(3)
    with pytest.raises(InputError, match="found a damaged file or another kind at"):
        tenx.read_10x_h5(path)
    with h5py.File(path, "w") as file:
        file.create_group("matrix")["shape"] = np.array([3, 4])
    with pytest.raises(InputError, match="found a damaged file or another kind at"):
        tenx.read_10x_h5(path)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="found n_obs=-1, expected a whole number"):
        tenx.read_10x_h5(path, -1)
    with h5py.File(path, "a") as file:
        file["mm10/indices"][0] = 9999
    with pytest.raises(InputError, match="found a damaged file or another kind at"):
        tenx.read_10x_h5(path)
    with h5py.File(path, "a") as file:
        del file["mm10/indptr"]
        file["mm10/indptr"] = np.zeros(0, np.int64)
    with pytest.raises(InputError, match="found a damaged file or another kind at"):
        tenx.read_10x_h5(path)
    for read in (tenx.read_10x_h5, tenx.read_10x_archive):
        with pytest.raises(
            InputError, match="found no file at .*none, .*check the path"
        ):
            read(tmp_path / "none")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BlockingIOError(11, "unable to lock file"), "locked by another program"),
        (PermissionError(13, "not for you"), "which may not be read"),
    ],
)
def test_a_good_matrix_is_not_blamed(tmp_path, monkeypatch, error, message):
    def stop(*_, **__):
        raise error

    (tmp_path / "a.h5").touch()
    monkeypatch.setattr(h5py, "File", stop)
    monkeypatch.setattr(tarfile, "open", stop)
    for read in (tenx.read_10x_h5, tenx.read_10x_archive):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.h5")


@pytest.mark.shared
def test_a_real_matrix_in_both_forms(shared, tmp_path):
    folder = shared / "tenx_v3"
    one = tenx.read_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    path = tmp_path / "matrix.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "filtered_feature_bc_matrix", "filtered_feature_bc_matrix")
    other = tenx.read_10x_archive(path)
    assert one.shape == other.shape == (1107, 507)
    assert one.X.nnz == 23866 and abs(one.X - other.X).nnz == 0
    assert one.obs_names.equals(other.obs_names)
    assert one.var.equals(other.var)


def test_proteins_are_not_taken_for_genes(tmp_path):
    kinds = ("Gene Expression", "Antibody Capture", "Gene Expression")
    features = [(*gene, kind) for gene, kind in zip(GENES, kinds, strict=True)]
    packed, path = tmp_path / "matrix.tar.gz", tmp_path / "matrix.h5"
    packed.write_bytes(archive(COUNTS["b_cells"], ["A", "B"], features, newer=True))
    x = scipy.sparse.csr_matrix(COUNTS["b_cells"])
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["shape"], group["barcodes"] = np.array([3, 2]), [b"A", b"B"]
        group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
        columns = zip(*features, strict=True)
        for name, column in zip(("id", "name", "feature_type"), columns, strict=True):
            group[f"features/{name}"] = [text.encode() for text in column]
    said = r"1 of 3 features in .* are no genes \(Antibody Capture\) and are left out"
    for read, file in ((tenx.read_10x_archive, packed), (tenx.read_10x_h5, path)):
        with pytest.warns(InputWarning, match=said):
            adata = read(file)
        np.testing.assert_array_equal(adata.X.toarray(), [[0, 1], [3, 0]])
        assert adata.var["symbol"].tolist() == ["A", "A"]
    with h5py.File(path, "a") as file:
        file["matrix/features/feature_type"][:] = [b"Peaks"] * 3
    with pytest.raises(InputError, match="no 'Gene Expression' .*Peaks"):
        tenx.read_10x_h5(path)


@pytest.mark.parametrize("url", ["cf.10xgenomics.com/x.h5", "https://a.org/folder/"])
def test_what_is_no_address(tmp_path, url):
    with pytest.raises(InputError, match="found the address .*change url"):
        public.fetch(url, folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
