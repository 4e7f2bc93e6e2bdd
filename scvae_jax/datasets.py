"""Count matrices to try models on: real ones that need no download, one simulated.

Every function returns an `anndata.AnnData` whose `X` is a CSR float32 matrix that
holds integers (cells in rows, genes or pixels in columns).
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.special import softmax

from scvae_jax.checks import expect

# 2**24: beyond it float32 no longer tells neighbouring integers apart.
_LARGEST_EXACT_COUNT = 16_777_216
# Another value gives other counts for the same seed.
_ROWS_PER_DRAW = 4096


def _missing(package):
    return (
        f"found no package {package}, expected it for this data set, "
        "do pip install 'scvae_jax[analysis]'"
    )


def _recover_counts(log_normalised, totals):
    """Turn log1p(1e4 * count / total) back into counts, or say why it cannot be."""
    scaled = sparse.csr_matrix(log_normalised, dtype=np.float64, copy=True)
    scaled.eliminate_zeros()
    scaled.data = np.expm1(scaled.data)
    per_cell = np.diff(scaled.indptr)
    do = "install a scanpy whose file is unchanged"
    empty = int((per_cell == 0).sum())
    expect(not empty, f"{empty} cells without counts", "none", do)
    smallest = np.minimum.reduceat(scaled.data, scaled.indptr[:-1])
    # smallest = 1e4 * 1 / total; were no count of the cell 1, this would be off by 2.
    ratio = 1e4 / (smallest * np.asarray(totals, dtype=np.float64))
    found = f"recovered cell totals {ratio.min():.3f} to {ratio.max():.3f} times known"
    expect(np.abs(ratio - 1).max() <= 0.01, found, "0.99 to 1.01", do)
    # count = expm1(x) / smallest
    values = scaled.data / np.repeat(smallest, per_cell)
    distance = np.abs(values - np.rint(values)).max()
    found = f"recovered counts up to {distance:.3f} from an integer"
    expect(distance <= 0.25, found, "at most 0.25", do)
    scaled.data = np.rint(values)
    return scaled.astype(np.float32)


def pbmc68k_reduced() -> AnnData:
    """Read 700 labelled blood cells by 765 genes, as counts, without a download.

    The file is part of the scanpy package and holds x = log1p(1e4 * count / total),
    rounded to 3 decimals, with total taken over all genes of the full data set. The
    smallest non-zero count of every cell is 1, so count = expm1(x) / min(expm1(x)).
    Both statements are checked on each call, the second against the recorded totals.

    Returns:
        AnnData with X [700 cells, 765 genes], counts (unique molecules); obs_names,
        the cell barcodes; var_names, the gene symbols; obs["bulk_labels"], categorical,
        10 cell types; obs["louvain"], categorical, the 11 clusters shipped with the
        file; obs["total_counts_all_genes"], float32, the count of each cell over all
        genes of the full data set (larger than the row sum of X). What else the file
        holds, mostly computed from normalised values, is left out.

    Raises:
        ImportError: scanpy is not installed.
        InputError: a recovered value is further than 0.25 from an integer, or the
            recovered cell totals differ from the recorded ones by more than 1 %.

    Source: Zheng et al. 2017, doi:10.1038/ncomms14049; the reduced file is
    `scanpy.datasets.pbmc68k_reduced`.
    """
    try:
        import scanpy
    except ImportError as error:
        raise ImportError(_missing("scanpy")) from error
    shipped = scanpy.datasets.pbmc68k_reduced()
    counts = _recover_counts(shipped.raw.X, shipped.obs["n_counts"])
    obs = shipped.obs[["bulk_labels", "louvain"]].rename_axis(index=None)
    obs["total_counts_all_genes"] = shipped.obs["n_counts"].astype(np.float32)
    var = pd.DataFrame(index=pd.Index(shipped.raw.var_names, name=None))
    return AnnData(X=counts, obs=obs, var=var)


def digits() -> AnnData:
    """Read 1797 images of handwritten digits, 8 x 8 pixels, as counts from 0 to 16.

    A pixel is the number of set points in one 4 x 4 block of a 32 x 32 bitmap.

    Returns:
        AnnData with X [1797 images, 64 pixels], counts (set points, 0 to 16);
        obs_names, "image_0" and on; var_names, "pixel_0_0" to "pixel_7_7" (row,
        column); obs["digit"], categorical of the strings "0" to "9".

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, doi:10.24432/C50P49, by
    `sklearn.datasets.load_digits`.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(_missing("scikit-learn")) from error
    bunch = load_digits()
    obs = pd.DataFrame(index=[f"image_{i}" for i in range(len(bunch.target))])
    obs["digit"] = pd.Categorical(bunch.target.astype(str))
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    counts = sparse.csr_matrix(bunch.data.astype(np.float32))
    return AnnData(X=counts, obs=obs, var=pd.DataFrame(index=names))


def mnist(folder: str | Path, *, binarised: bool = False) -> AnnData:
    """Read images of handwritten digits, 28 x 28 pixels, as counts from 0 to 255.

    Args:
        folder: where train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz are
            (60,000 images), or the two of t10k (10,000), or all four.
        binarised: 1 where a pixel is 128 or more, else 0.

    Returns:
        AnnData with X [images, 784 pixels], counts (grey levels), or 0 and 1;
        obs_names, "train_0" or "t10k_0" and on; var_names, "pixel_0_0" to
        "pixel_27_27" (row, column); obs["digit"], categorical of the strings "0" to
        "9"; obs["part"], categorical, train or t10k.

    Raises:
        InputError: a file is absent, damaged, or not what its name says.

    Source: LeCun et al. 1998, doi:10.1109/5.726791.
    """
    folder = Path(folder)
    images, digits, parts = [], [], []
    for part in ("train", "t10k"):
        paths = [
            folder / f"{part}-{kind}-ubyte.gz"
            for kind in ("images-idx3", "labels-idx1")
        ]
        if not any(path.is_file() for path in paths):
            continue
        images.append(_read_idx(paths[0], 3).reshape(-1, 28 * 28))
        digits.append(_read_idx(paths[1], 1))
        parts += [part] * len(images[-1])
        found = f"{len(images[-1])} images and {len(digits[-1])} labels of {part}"
        do = f"take both files of {part} from one source"
        is_right = len(images[-1]) == len(digits[-1])
        expect(is_right, f"{found} in {folder}", "as many", do)
        largest = digits[-1].max(initial=0)
        expect(largest <= 9, f"a label {largest} of {part}", "0 to 9", do)
    expected = "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, or t10k's"
    expect(bool(images), f"neither in {folder}", expected, "check the folder")
    pixels = np.concatenate(images)
    if binarised:
        pixels = pixels >= 128
    number = [i for one in images for i in range(len(one))]
    obs = pd.DataFrame(index=[f"{p}_{i}" for p, i in zip(parts, number, strict=True)])
    obs["digit"] = pd.Categorical(np.concatenate(digits).astype(str))
    obs["part"] = pd.Categorical(parts)
    names = [f"pixel_{row}_{column}" for row in range(28) for column in range(28)]
    counts = sparse.csr_matrix(pixels.astype(np.float32))
    return AnnData(X=counts, obs=obs, var=pd.DataFrame(index=names))


def _read_idx(path, n_axes):
    """Bytes in idx form: 0 0 8 n, n sizes as big-endian 32-bit integers, the data."""
    do = "download it again"
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        found = f"no file {path}"
        expect(False, found, "images and labels together", do)
    except (OSError, EOFError, zlib.error) as error:
        found = f"a damaged file {path} ({error})"
        expect(False, found, "a whole gzip file", do)
    start = 4 + 4 * n_axes
    is_right = content[:4] == bytes([0, 0, 8, n_axes]) and len(content) >= start
    expected = f"bytes in {n_axes} axes in idx form"
    expect(is_right, f"something else in {path}", expected, do)
    shape = np.frombuffer(content[4:start], ">i4").tolist()
    size = len(content) - start
    found = f"{size} bytes for shape {tuple(shape)} in {path}"
    is_right = min(shape) > 0 and math.prod(shape) == size
    expect(is_right, found, "as many as the shape takes", do)
    if n_axes == 3:
        found = f"images of {shape[1]} by {shape[2]} pixels in {path}"
        expect(shape[1:] == [28, 28], found, "28 by 28", do)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def simulate(
    n_obs: int = 1000,
    n_vars: int = 500,
    *,
    n_types: int = 5,
    n_batches: int = 1,
    type_proportions=None,
    depth: float = 2000.0,
    depth_scale: float = 0.3,
    dispersion=2.0,
    dispersion_scale: float = 0.0,
    dropout: float = 0.0,
    baseline_scale: float = 1.0,
    type_scale: float = 1.0,
    fraction_marker: float = 0.1,
    batch_scale: float = 0.3,
    seed: int = 0,
) -> AnnData:
    """Draw counts from a negative binomial model and return them with the truth.

    Cell n of type k in batch b, gene g, all logarithms natural::

        mean[n, g]  = depth[n] * softmax_g(baseline[g] + fold[g, k] + effect[g, b])
        rate[n, g]  ~ Gamma(shape=theta[g], scale=mean[n, g] / theta[g])
        count[n, g] ~ Poisson(rate[n, g]), set to 0 with probability dropout

    so without dropout a count has the variance mean + mean**2 / theta, and with it the
    mean (1 - dropout) * mean. The draws before dropout do not depend on `dropout`.

    Args:
        n_obs: number of cells.
        n_vars: number of genes.
        n_types: number of cell types; the type of a cell is independent of its batch.
        n_batches: number of batches, equally likely.
        type_proportions: [n_types] probabilities of the types, summing to 1; None draws
            uneven ones from Dirichlet(2, ..., 2).
        depth: mean over cells of the expected total count of a cell before dropout.
        depth_scale: standard deviation of the log depth (log-normal over cells).
        dispersion: scalar or [n_vars], theta, the inverse dispersion (no unit).
        dispersion_scale: standard deviation of log theta around log `dispersion`.
        dropout: probability in [0, 1) that an entry is set to 0.
        baseline_scale: standard deviation over genes of baseline (log).
        type_scale: standard deviation of the log-fold change of a marker gene.
        fraction_marker: share of genes, in [0, 1], that are markers of each type; a
            gene can be a marker of several types.
        batch_scale: standard deviation of the log-fold effect of a batch on a gene; the
            first batch is the reference and has none.
        seed: non-negative integer; the same seed gives the same data bit for bit.

    Returns:
        AnnData with X [n_obs, n_vars], counts; obs_names "cell_0" and on; var_names
        "gene_0" and on; obs["cell_type"], categorical "type_0" and on; obs["batch"],
        categorical "batch_0" and on; obs["depth"], float64, expected total before
        dropout; var["dispersion"], float64, theta; varm["type_profiles"] [n_vars,
        n_types], float64, softmax_g(baseline + fold), columns summing to 1;
        varm["type_log_fold"] [n_vars, n_types], float64, fold, 0 unless a marker;
        varm["batch_effects"] [n_vars, n_batches], float64, effect (columns of all
        three in the order of the categories); layers["true_mean"] [n_obs, n_vars],
        dense float32, mean before dropout; uns["simulation"], the arguments by name as
        int, float or list of float, with the type proportions that were used.

    Raises:
        InputError: an argument is outside its range, or a count exceeds 2**24.

    Source: the gamma-Poisson mixture with depth and batch is that of Lopez et al. 2018,
    doi:10.1038/s41592-018-0229-2; log-normal depths and marker folds are as in Zappia
    et al. 2017, doi:10.1186/s13059-017-1305-0.
    """
    # The first statement, so that nothing but the arguments is in it.
    settings = dict(locals())
    for name in ("n_obs", "n_vars", "n_types", "n_batches", "seed"):
        value, least = settings[name], 0 if name == "seed" else 1
        is_right = isinstance(value, (int, np.integer)) and value >= least
        expected = f"an integer of at least {least}"
        expect(is_right, f"{name} = {value}", expected, f"change {name}")
        settings[name] = int(value)
    ranges = {
        "depth": (0 < depth < math.inf, "a finite number above 0"),
        "dropout": (0 <= dropout < 1, "a probability in [0, 1)"),
        "fraction_marker": (0 <= fraction_marker <= 1, "a share in [0, 1]"),
    }
    for kind in ("depth", "dispersion", "baseline", "type", "batch"):
        is_right = 0 <= settings[f"{kind}_scale"] < math.inf
        ranges[f"{kind}_scale"] = (is_right, "a finite number from 0")
    for name, (is_right, expected) in ranges.items():
        expect(is_right, f"{name} = {settings[name]}", expected, f"change {name}")
        settings[name] = float(settings[name])
    theta = np.asarray(dispersion, dtype=np.float64)
    expected, do = f"a scalar or shape ({n_vars},)", "change dispersion"
    is_right = theta.shape in ((), (n_vars,))
    expect(is_right, f"dispersion of shape {theta.shape}", expected, do)
    is_right = theta.min() > 0 and theta.max() < math.inf
    found = f"dispersion from {theta.min()} to {theta.max()}"
    expect(is_right, found, "finite numbers above 0", do)

    # Separate streams: what one of them draws leaves the others as they are.
    truth, noise, technical = np.random.default_rng(seed).spawn(3)
    # Drawn even where given, so that the later draws stay the same.
    proportions = truth.dirichlet(np.full(n_types, 2.0))
    if type_proportions is not None:
        proportions = np.asarray(type_proportions, dtype=np.float64)
        is_right = proportions.shape == (n_types,) and proportions.min() >= 0
        expect(
            is_right and abs(proportions.sum() - 1) < 1e-6,
            f"type_proportions = {proportions.tolist()}",
            f"{n_types} numbers from 0 that sum to 1",
            "change type_proportions",
        )
        proportions = proportions / proportions.sum()
    settings["type_proportions"] = proportions.tolist()
    settings["dispersion"] = theta.tolist()
    cell_type = truth.choice(n_types, size=n_obs, p=proportions)
    batch = truth.integers(n_batches, size=n_obs)
    # E[exp(s z - s^2 / 2)] = 1, so that the mean over cells is `depth`.
    log_depth = depth_scale * truth.standard_normal(n_obs) - depth_scale**2 / 2
    cell_depth = depth * np.exp(log_depth)
    theta = theta * np.exp(dispersion_scale * truth.standard_normal(n_vars))
    baseline = baseline_scale * truth.standard_normal(n_vars)
    n_markers = round(fraction_marker * n_vars)
    is_marker = np.repeat(np.arange(n_vars)[:, None] < n_markers, n_types, axis=1)
    fold = type_scale * truth.standard_normal((n_vars, n_types))
    fold = np.where(truth.permuted(is_marker, axis=0), fold, 0.0)
    effect = batch_scale * truth.standard_normal((n_vars, n_batches))
    effect[:, 0] = 0.0
    type_logits = baseline[:, None] + fold
    # share[k, b, g] = softmax_g(baseline[g] + fold[g, k] + effect[g, b])
    share = softmax(type_logits.T[:, None, :] + effect.T[None, :, :], axis=-1)

    blocks = []
    true_mean = np.empty((n_obs, n_vars), dtype=np.float32)
    # Blocks of rows bound the memory that the double-precision draws take.
    for start in range(0, n_obs, _ROWS_PER_DRAW):
        rows = slice(start, min(start + _ROWS_PER_DRAW, n_obs))
        mean = cell_depth[rows, None] * share[cell_type[rows], batch[rows]]
        true_mean[rows] = mean
        counts = noise.poisson(noise.gamma(theta, mean / theta))
        expect(
            counts.max() <= _LARGEST_EXACT_COUNT,
            f"a count of {counts.max()}",
            f"at most {_LARGEST_EXACT_COUNT}, up to which float32 is exact",
            "lower depth or raise dispersion",
        )
        counts[technical.random(counts.shape) < dropout] = 0
        blocks.append(sparse.csr_matrix(counts, dtype=np.float32))

    obs = pd.DataFrame(index=[f"cell_{n}" for n in range(n_obs)])
    names = [f"type_{k}" for k in range(n_types)]
    obs["cell_type"] = pd.Categorical.from_codes(cell_type, categories=names)
    names = [f"batch_{b}" for b in range(n_batches)]
    obs["batch"] = pd.Categorical.from_codes(batch, categories=names)
    obs["depth"] = cell_depth
    names = [f"gene_{g}" for g in range(n_vars)]
    var = pd.DataFrame({"dispersion": theta}, index=names)
    varm = {
        "type_profiles": softmax(type_logits, axis=0),
        "type_log_fold": fold,
        "batch_effects": effect,
    }
    return AnnData(
        X=sparse.vstack(blocks, format="csr"),
        obs=obs,
        var=var,
        varm=varm,
        layers={"true_mean": true_mean},
        uns={"simulation": settings},
    )
