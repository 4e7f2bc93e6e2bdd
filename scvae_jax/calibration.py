"""Whether the count model is right: held-out counts beside what is expected of them.

The cells are held out and each half of their genes is predicted from the other half
(`prediction.py` says how), so that no count was seen by what predicts it, but for the
total of a cell where the mean is that of its library.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd

from scvae_jax import prediction
from scvae_jax.annotated import expect_anndata, gene_names, make_actual
from scvae_jax.building import reads_depth
from scvae_jax.checkpoints import Fitted
from scvae_jax.checks import (
    InputError,
    InputWarning,
    check_count,
    check_field,
    check_pass,
    listing,
)
from scvae_jax.counts import n_fractional
from scvae_jax.evaluation import comparable_totals, part_of, prepare_as, split_of
from scvae_jax.measures import measure, summary_of, table_of
from scvae_jax.preferences import preferences
from scvae_jax.selection import cells_to_device

# cells in which a gene must be seen to be tested: with fewer the rare large differences
# are missing from the variance, and a t-test is wrong
LEAST_SEEN = 20


class Calibration(NamedTuple):
    """What a model expects of held-out counts beside what there is.

    Of several fits the first, the best, is looked at, apart from the log score. What is
    expected of totals is given the total of the cell where the mean is that of its
    library, and no size factor was given.

    Attributes:
        summary: n_cells, n_genes, split, n_samples and n_fits; log_score, the mean
            over cells and fits of the sum over genes of log p(x_g | x_seen), nats;
            pit_distance, the largest difference of the cumulative `pit` from uniform;
            zeros and expected_zeros, shares of all entries; variance_ratio, the
            median of observed by expected variance over the genes that are seen;
            totals_within_95, the share of cells whose total lies within 1.96 expected
            standard deviations.
        pit: [20] shares of the randomised probability integral transform in equal bins
            from 0 to 1; 1/20 each where the model is right. An entry weighs as much as
            a non-zero was probable there, which is known before the count is: else the
            many entries that are all but surely zero would drown the others.
        genes: a row for each gene, over cells: mean, expected_mean, variance,
            expected_variance (squared counts), zeros, expected_zeros (shares),
            effective_cells (what the weights of its entries come to, as many equal
            ones), pit_distance (by chance some 0.7 / sqrt(effective_cells)), log_score
            (nats per cell, mean over fits).
        cells: a row for each cell: total, expected_total and expected_sd of the counts
            of its first hidden half.
    """

    summary: dict[str, Any]
    pit: np.ndarray
    genes: pd.DataFrame
    cells: pd.DataFrame


def calibrate(
    adata: anndata.AnnData,
    fitted: Fitted | Mapping[str, Fitted],
    *,
    split: str | None = None,
    n_samples: int = 20,
    false_discovery_rate: float = 0.05,
    key_added: str = "scvae",
    layer: str | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, Calibration]:
    """Compare held-out counts with what a model expects of them, gene by gene.

    Half the genes of each cell are predicted from the other half, and the other way
    round (see `prediction.py`). A model trained with neither thinning nor input
    dropout has not learned to read half a cell: its figures are those of its encoder
    too. One that was trained for a thousand steps has not learned its dispersions yet.

    With several models, such as one of each likelihood, it also says which of them each
    gene prefers. For each pair and each gene seen in 20 cells or more, the mean over
    cells of the difference in log p(x_g | x_seen) is tested against 0 by a t-test; all
    tests together go through [2], for dependent genes as usual. Further fits of a
    model by other seeds, among its `alternatives` from `fit_many`, are averaged and
    their spread is part of the error. Of models without any, the error is that of cells
    alone, and a warning says so.

    Args:
        adata: the cells; fields of `var` are written, all else stays as it is.
        fitted: a model, or several by name, of the same data and split.
        split: "train", "validation", "test", "new" or "all"; None: cells that were
            never trained on: test cells, else new ones, else validation cells.
        n_samples: samples S of q(z | x_seen) that a prediction averages over.
        false_discovery_rate: of the preferences.
        key_added: prefix of the fields.
        layer: layer with the counts, "X" for X; None: where they were for fitting.
        batch_size: cells at a time.
        seed: of the halves, the samples and the transform.

    Returns:
        A `Calibration` for each model, by its name; that of a single model is the name
        of its likelihood. `scvae_jax.plots.calibration` draws them. Fields written, NaN
        for genes that the models do not know:

        var["scvae_log_score_NAME"]: mean log p(x_g | x_seen) over cells and fits, nats.
        var["scvae_pit_distance_NAME"]: largest difference of the cumulative transform
            of the gene from uniform.

        Of several models also:

        var["scvae_family"]: the models that no other beats at this rate, joined by
            " | "; one name where the gene has a preference; missing if not tested
            (categorical).
        var["scvae_gain_NAME"]: of each model after the first, its log score less that
            of the first, nats per cell; both are means over fits.
        var["scvae_gain_q_NAME"]: the least false discovery rate at which that
            difference counts, in either direction; NaN if not tested.

    Raises:
        InputError: for models without counts or of different data, for counts that are
            not whole, or a part of the split without cells.

    References:
        [1] Czado, Gneiting & Held, Predictive model assessment for count data, 2009.
        [2] Benjamini & Hochberg, Controlling the false discovery rate, 1995.
    """
    check_count("n_samples", n_samples, 1)
    check_pass(batch_size, seed)
    if not 0 < false_discovery_rate < 1:
        raise InputError(
            f"found false_discovery_rate={false_discovery_rate!r}, expected a number "
            "between 0 and 1, change it"
        )
    expect_anndata(adata)
    fits = _fits_of(adata, fitted)
    for name in (key_added, *fits):
        check_field("name of a model or key_added", name)
    for name in fits:
        if f"q_{name}" in fits:
            raise InputError(
                f"found models {name} and q_{name}, of which fields of var would have "
                "the same names, expected others, rename one"
            )
    first = next(iter(fits.values()))[0]
    data = prepare_as(adata, first, layer=layer)
    if n_fractional(data.x.data):
        raise InputError(
            "found fractional counts, expected whole ones, as only they have a "
            "distribution function, round them (fractional='round') and fit again"
        )
    totals = comparable_totals(data, adata, first, layer)
    chosen, where = part_of(split_of(adata, first, totals), split)
    x = data.x[where]
    n_above = int((x.data > prediction.LARGEST).sum())
    if n_above:
        warnings.warn(
            f"{n_above} counts above {prediction.LARGEST} are left out of the "
            "probability integral transform",
            InputWarning,
            stacklevel=2,
        )
    cells = cells_to_device(data, where)
    options = {"n_samples": n_samples, "batch_size": batch_size, "seed": seed}
    measured, moments = measure(fits, cells, x, **options)
    result = {}
    for name, found in measured.items():
        genes, pit = table_of(found, x.shape[0], data.genes)
        columns = ["total", "expected_total", "expected_sd"]
        of_cells = pd.DataFrame(found.totals, data.cells[where], columns)
        summary = {
            "n_cells": x.shape[0],
            "n_genes": x.shape[1],
            "split": chosen,
            "n_samples": n_samples,
            "n_fits": len(fits[name]),
            **summary_of(genes, pit, of_cells),
        }
        result[name] = Calibration(summary, pit, genes, of_cells)
    fields = {}
    for name, found in result.items():
        fields[f"log_score_{name}"] = found.genes["log_score"].to_numpy()
        fields[f"pit_distance_{name}"] = found.genes["pit_distance"].to_numpy()
    if len(fits) > 1:
        single = [name for name, models in fits.items() if len(models) == 1]
        if single:
            warnings.warn(
                f"{listing(single)}: one fit only, so preferences of genes hold for "
                "this fit and not for others; give what sv.fit_many returned",
                InputWarning,
                stacklevel=2,
            )
        scores = {name: found.scores / x.shape[0] for name, found in measured.items()}
        tested = np.bincount(x.indices, minlength=x.shape[1]) >= LEAST_SEEN
        fields |= preferences(scores, moments, x.shape[0], tested, false_discovery_rate)
    _write(adata, first.genes, fields, key_added)
    return result


def _fits_of(
    adata: anndata.AnnData, fitted: Fitted | Mapping[str, Fitted]
) -> dict[str, tuple[Fitted, ...]]:
    """The fits of each model by its name; refuses those that cannot be compared."""
    if isinstance(fitted, Fitted):
        fitted = {fitted.likelihood.name: fitted}
    if (
        not isinstance(fitted, Mapping)
        or not fitted
        or not all(isinstance(model, Fitted) for model in fitted.values())
        or not all(isinstance(name, str) for name in fitted)
    ):
        raise InputError(
            f"found a {type(fitted).__name__}, expected a fitted model after the "
            "AnnData object or a dict of them by name (strings), pass what sv.fit "
            "or sv.load returned"
        )
    first_name, first = next(iter(fitted.items()))

    def split(model: Fitted) -> np.ndarray:
        with warnings.catch_warnings():
            # what there is to warn of is said when counts are at hand
            warnings.simplefilter("ignore", InputWarning)
            return split_of(adata, model)

    for name, model in fitted.items():
        if model.likelihood.support == "real":
            raise InputError(
                f"found {name!r} with a {model.likelihood.name} likelihood, expected "
                "families of counts, leave it out"
            )
        same = {
            "data options": model.data_config == first.data_config,
            "genes": np.array_equal(model.genes, first.genes),
            "batches": model.batches == first.batches,
            "split": np.array_equal(split(model), split(first)),
            "counts": _of_same_counts(model, first),
            # whether the total of a cell is given or explained: scores differ for it
            "reading of a cell's depth (library means do, free ones and bernoulli do "
            "not)": _reads_depth(model) == _reads_depth(first),
        }
        odd = [what for what, is_same in same.items() if not is_same]
        if odd:
            raise InputError(
                f"found {name!r} and {first_name!r} of different {', '.join(odd)}, "
                "expected models of the same data, fit them on the same cells with the "
                "same options"
            )
    return {
        name: (model, *(o for o in model.alternatives if _is_alike(o, model)))
        for name, model in fitted.items()
    }


def _is_alike(other: Fitted, model: Fitted) -> bool:
    """Whether two fits differ in their seeds alone."""
    seed = model.train_config.seed
    train_config = dataclasses.replace(other.train_config, seed=seed)
    return (other.config, train_config) == (model.config, model.train_config)


def _of_same_counts(model: Fitted, first: Fitted) -> bool:
    """Whether cells of two fits have the same totals, as far as is known."""
    if model.totals is None or first.totals is None:
        return True
    alike = np.array_equal(model.cells, first.cells)
    return not alike or np.allclose(model.totals, first.totals)


def _reads_depth(fitted: Fitted) -> bool:
    sizes = {"n_genes": len(fitted.genes), "n_batches": len(fitted.batches)}
    return reads_depth(fitted.likelihood, **sizes)


def _write(
    adata: anndata.AnnData, genes: np.ndarray, fields: dict[str, Any], key: str
) -> None:
    """Write fields of the model's genes into `var`, missing for others."""
    make_actual(adata)
    # what was preferred of other models
    for name in list(adata.var.columns):
        if name == f"{key}_family" or str(name).startswith(f"{key}_gain_"):
            del adata.var[name]
    column = pd.Index(genes).get_indexer(gene_names(adata))
    for name, values in fields.items():
        spread = pd.Series(values).reindex(column).to_numpy()
        if name == "family":
            spread = pd.Categorical(spread)
        adata.var[f"{key}_{name}"] = spread
