"""Which cells are for what, and how they reach the device."""

import warnings

import numpy as np
import scipy.sparse

from scvae_jax import batches
from scvae_jax.batches import CellData
from scvae_jax.checks import InputError, InputWarning, expect, listing
from scvae_jax.config import TrainConfig
from scvae_jax.counts import CountData


def split_cells(
    data: CountData, train_config: TrainConfig, split_key: str | None
) -> np.ndarray:
    """The part of the split that each cell belongs to.

    Args:
        data: validated cells; where they have no split it is drawn.
        train_config: the fractions, and the seed of the draw.
        split_key: the obs column of the split, for messages.

    Returns:
        [n] train, validation or test.

    Raises:
        InputError: without training or without validation cells, and for a fraction
            that a given split has no use for.
    """
    split, default = data.split, TrainConfig()
    if split is not None:
        for name in ("validation_fraction", "test_fraction"):
            expect(
                getattr(train_config, name) == getattr(default, name),
                f"{name}={getattr(train_config, name)} beside obs column "
                f"{split_key!r}, which says what each cell is for",
                "one of both",
                "leave one out",
            )
    else:
        split = random_split(
            len(data.cells),
            train_config.validation_fraction,
            train_config.test_fraction,
            train_config.seed,
        )
    counts = {part: int((split == part).sum()) for part in ("train", "validation")}
    if min(counts.values()) == 0:
        where = (
            f"obs column {split_key!r}"
            if split_key
            else (f"a random split of {len(split)} cells")
        )
        raise InputError(
            f"found {counts['train']} training and {counts['validation']} validation "
            f"cells in {where}, expected at least one of each, mark some"
        )
    return split


def random_split(
    n_obs: int, validation_fraction: float, test_fraction: float, seed: int
) -> np.ndarray:
    """Draw which cells are held out.

    Args:
        n_obs: n.
        validation_fraction: share of cells for validation, at least one cell.
        test_fraction: share of cells for test.
        seed: of the draw.

    Returns:
        [n] train, validation or test.
    """
    n_validation = max(1, round(n_obs * validation_fraction))
    n_test = round(n_obs * test_fraction)
    order = np.random.default_rng(seed).permutation(n_obs)
    split = np.full(n_obs, "train", dtype="<U10")
    split[order[:n_validation]] = "validation"
    split[order[n_validation : n_validation + n_test]] = "test"
    return split


def warn_of_cells(data: CountData, split: np.ndarray) -> None:
    """Say which batches have no cell to learn from, and that names are not unique.

    Args:
        data: validated cells.
        split: [n] from `split_cells`.
    """
    trained = np.bincount(data.batch[split == "train"], minlength=len(data.batches))
    empty = np.asarray(data.batches)[trained[: len(data.batches)] == 0]
    if len(empty):
        warnings.warn(
            f"{len(empty)} of {len(data.batches)} batches have no training cell "
            f"({listing(empty)}): nothing is learned of them",
            InputWarning,
            stacklevel=3,
        )
    repeated = len(data.cells) - len(set(data.cells.tolist()))
    if repeated:
        warnings.warn(
            f"{repeated} names of cells repeat, so cells of the fit cannot be told "
            "from new ones: call adata.obs_names_make_unique() before",
            InputWarning,
            stacklevel=3,
        )


def expect_cells(n_clusters: int, n_train: int) -> None:
    """Refuse more clusters than training cells.

    Args:
        n_clusters: K, or 0.
        n_train: number of training cells.

    Raises:
        InputError: if there are more.
    """
    expect(
        n_clusters <= n_train,
        f"n_clusters={n_clusters} for {n_train} training cells",
        "fewer clusters than cells",
        "ask for fewer",
    )


def expect_varying(data: CountData, train: np.ndarray) -> None:
    """Refuse real data with genes that never vary, whose density has no highest value.

    Args:
        data: validated cells.
        train: [n] which of them are for training.

    Raises:
        InputError: if a gene has one value in all training cells.
    """
    trained = data.x[train]
    constant = trained.max(axis=0).toarray() == trained.min(axis=0).toarray()
    names = data.genes[constant.ravel()]
    expect(
        not len(names),
        f"{len(names)} genes with one value in all training cells ({listing(names)})",
        "genes that vary, as the density of others has no highest value",
        "leave them out (genes, --genes)",
    )


def mean_profile(
    x: scipy.sparse.csr_matrix, where: np.ndarray
) -> tuple[np.ndarray, int]:
    """Mean of some of the cells, and their number.

    Args:
        x: [n, G].
        where: [n] which of them.

    Returns:
        [G], and the number.
    """
    n = int(where.sum())
    return (where.astype(np.float64) @ x / n).astype(np.float32), n


def total_counts(data: CountData) -> np.ndarray:
    """Totals of the genes in use.

    Args:
        data: validated cells.

    Returns:
        [n] counts.
    """
    return np.asarray(data.x.sum(axis=1, dtype=np.float64)).ravel()


def size_factor_scale(data: CountData, where: np.ndarray) -> float:
    """By what to multiply given depths, so that cells have in the mean their totals.

    A given depth may be that of all genes where a part is in use, or near 1; a mean of
    the library kind would add up to it over the genes in use.

    Args:
        data: validated cells.
        where: [n] those that are trained on.

    Returns:
        Counts for each unit of depth; 1 where there are no counts.
    """
    total = float(data.x[where].sum(dtype=np.float64))
    return total / float(data.depth[where].sum(dtype=np.float64)) if total else 1.0


def cells_to_device(
    data: CountData, where: np.ndarray | slice, n_slots: int = 0
) -> CellData:
    """Put a part of the cells on the device.

    Args:
        data: validated cells.
        where: [n] which of them, or slice(None) for all.
        n_slots: that there are at least.

    Returns:
        Those cells.
    """
    categorical = data.batch[where, None]
    # scipy would copy all
    everything = isinstance(where, slice) and where == slice(None)
    x = data.x if everything else data.x[where]
    return batches.to_device(x, data.depth[where], categorical, n_slots)
