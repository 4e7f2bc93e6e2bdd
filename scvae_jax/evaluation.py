"""Held-out bounds of a fitted model, and which cells were held out."""

import dataclasses
import warnings
from functools import partial
from typing import Any, NamedTuple

import anndata
import jax
import jax.numpy as jnp
import numpy as np

from scvae_jax import batches
from scvae_jax.annotated import column_of, expect_anndata, gene_names
from scvae_jax.batches import CellData
from scvae_jax.building import conditions_on_total
from scvae_jax.checkpoints import Fitted
from scvae_jax.checks import InputError, InputWarning, check_count, check_pass
from scvae_jax.clusters import clusters_used, effective_number
from scvae_jax.counts import SPLITS, CountData, prepare
from scvae_jax.latents import sample
from scvae_jax.models import Model
from scvae_jax.objectives import Parts, elbo_parts, importance_weighted_bound
from scvae_jax.scores import against_labels, expect_labels, expect_scikit_learn
from scvae_jax.selection import cells_to_device, total_counts

Array = jax.Array


class CellBounds(NamedTuple):
    """Figures of each cell, in nats apart from `latent`.

    Attributes:
        latent: [n, L] the mean of q(z|x).
        elbo: [n] evidence lower bound, E_q[log p(x|z)] averaged over the samples.
        importance_weighted_bound: [n] of the same samples.
        log_likelihood: [n] E_q[log p(x|z)].
        kl_z: [n] KL(q(z|x) || p(z)), with clusters E_q(y)[KL(q(z|x,y) || p(z|y))], in
            as closed a form as there is.
        kl_y: [n] KL(q(y|x) || p(y)), 0 without clusters.
        probabilities: [n, K] q(y|x), whatever the samples; K is 1 without clusters.
    """

    latent: np.ndarray
    elbo: np.ndarray
    importance_weighted_bound: np.ndarray
    log_likelihood: np.ndarray
    kl_z: np.ndarray
    kl_y: np.ndarray
    probabilities: np.ndarray


def cell_bounds(
    model: Model,
    params: Any,
    cells: CellData,
    *,
    n_samples: int,
    batch_size: int = 128,
    seed: int = 0,
) -> CellBounds:
    """Bounds of every cell; no dropout, KL weight 1.

    Samples are drawn one after the other and summed up as they come, so memory does not
    grow with their number.

    Args:
        model: pure functions.
        params: its parameters.
        cells: on the device.
        n_samples: S.
        batch_size: cells at a time.
        seed: of the samples.

    Returns:
        The figures.
    """
    positions, n_slots = batches.in_order(cells, batch_size)
    key = jax.random.key(seed)
    rows = _cell_bounds(model, n_samples, n_slots, params, cells, positions, key)
    n_obs = cells.start.shape[0]
    # copies: what jax shares with numpy cannot be written to
    return batches.of_cells(jax.tree.map(np.array, rows), n_obs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _cell_bounds(
    model: Model,
    n_samples: int,
    n_slots: int,
    params: Any,
    cells: CellData,
    positions: tuple[Array, Array],
    key: Array,
) -> CellBounds:
    n_genes = model.modalities[0].n_features

    def of_batch(number: Array, position: tuple[Array, Array]):
        batch = batches.cut(cells, *position, n_genes, n_slots)
        posterior = model.encode(params, batch)
        key_batch = jax.random.fold_in(key, number)

        def one(carry, s):
            largest, total, means = carry
            z = sample(posterior, jax.random.fold_in(key_batch, s), 1)[0]
            terms = model.weigh(params, z, posterior, batch)
            terms = jax.tree.map(lambda value: value[None], terms)
            # a running mean keeps its digits where a sum over many samples would not
            means = jax.tree.map(
                lambda mean, new: mean + (new - mean) / (s + 1),
                means,
                elbo_parts(terms),
            )
            # log sum_s w_s as largest + log(total): a sum kept as its logarithm, of
            # thousands of nats, would not feel one weight among hundreds
            log_weight = importance_weighted_bound(terms)
            new = jnp.maximum(largest, log_weight)
            total = total * jnp.exp(largest - new) + jnp.exp(log_weight - new)
            return (new, total, means), None

        zeros = jnp.zeros(position[0].shape)
        start = (zeros + jnp.finfo(zeros).min, zeros, Parts(zeros, zeros, zeros))
        (largest, total, means), _ = jax.lax.scan(one, start, jnp.arange(n_samples))
        r = jnp.ones((*zeros.shape, 1))
        if model.assign is not None:
            r = model.assign(params, posterior)
        figures = CellBounds(
            latent=posterior.mean(),
            elbo=means.elbo,
            importance_weighted_bound=largest + jnp.log(total / n_samples),
            probabilities=r,
            **means._asdict(),
        )
        return number + 1, figures

    return jax.lax.scan(of_batch, 0, positions)[1]


def split_of(
    adata: anndata.AnnData, fitted: Fitted, totals: np.ndarray | None = None
) -> np.ndarray:
    """Which part of the split each cell belongs to.

    Args:
        adata: the cells.
        fitted: the model, which knows the cells that it was fitted with by name.
        totals: [n] from `comparable_totals`, to warn of other cells of the same name;
            None: they are not to be compared.

    Returns:
        [n] train, validation, test, or new for cells that it has not seen; of those
        what the split column says, where it was fitted with one and `adata` has it.

    Raises:
        InputError: if names of cells repeat, here or in the fit, and so cannot tell.
    """
    names = np.asarray(adata.obs_names, dtype=str)
    same = np.array_equal(names, fitted.cells)
    known = {name: place for place, name in enumerate(fitted.cells.tolist())}
    place = np.array([known.get(name, -1) for name in names.tolist()], dtype=int)
    place = np.arange(len(names)) if same else place
    key = fitted.data_config.split_key
    said = np.array(["new"] * len(names), dtype=str)
    has_column = key is not None and key in adata.obs
    if has_column:
        said = column_of(adata, key, "split").astype(str).to_numpy(dtype=str)
    # names that repeat matter where some are those of the fit
    repeat = len(known) < len(fitted.cells) or len(set(names.tolist())) < len(names)
    if repeat and not same and (place >= 0).any():
        if has_column:
            return said
        raise InputError(
            "found names of cells that repeat, expected unique ones to tell training "
            "cells from new ones, rename those that are not of the fit (where its own "
            "repeat, call adata.obs_names_make_unique() and fit again)"
        )
    _warn_of_namesakes(names, place, totals, fitted)
    found = said.astype(np.promote_types(said.dtype, fitted.split.dtype))
    found[place >= 0] = fitted.split[place[place >= 0]]
    return found


def comparable_totals(
    data: CountData, adata: anndata.AnnData, fitted: Fitted, layer: str | None
) -> np.ndarray | None:
    """Totals that cells of the fit should have again.

    Args:
        data: from `prepare_as`.
        adata: the cells.
        fitted: the model.
        layer: as it was given to `prepare_as`.

    Returns:
        [n] counts, or None: elsewhere, or of fewer genes, they may well be others.
    """
    same = layer in (None, fitted.data_config.layer or "X")
    every = np.isin(fitted.genes, gene_names(adata)).all()
    return total_counts(data) if same and every else None


def _warn_of_namesakes(
    names: np.ndarray, place: np.ndarray, totals: np.ndarray | None, fitted: Fitted
) -> None:
    """Say where cells may be others than those of the fit at `place`, -1 for none."""
    known = place >= 0
    n_known = int(known.sum())
    if n_known and totals is not None and fitted.totals is not None:
        expected = fitted.totals[place[known]]
        odd = int((~np.isclose(totals[known], expected, rtol=1e-5)).sum())
        if odd:
            warnings.warn(
                f"{odd} of {n_known} cells that have the name of a cell of the fit "
                "have other counts than it had: if they are other cells, set "
                "adata.obs_names",
                InputWarning,
                stacklevel=4,
            )
        # those that are all alike, as where they were normalised, tell nothing
        if odd or not np.allclose(fitted.totals, fitted.totals[0], rtol=1e-5):
            return
    # as anndata names them by default, some of them left out perhaps
    if n_known and all(name.isdecimal() for name in names.tolist()):
        warnings.warn(
            f"cells are named by numbers, and by that alone {n_known} of them are "
            "taken for cells of the fit: if they are not, set adata.obs_names",
            InputWarning,
            stacklevel=4,
        )


def prepare_as(
    adata: anndata.AnnData,
    fitted: Fitted,
    missing_genes: str = "error",
    layer: str | None = None,
) -> CountData:
    """Take from `adata` what a fitted model needs, as it was taken for fitting.

    Args:
        adata: the cells.
        fitted: the model.
        missing_genes: for genes that `adata` lacks, "error" or "zeros".
        layer: layer with the counts, "X" for X; None: where they were for fitting.

    Returns:
        The cells, genes in the model's order.

    Raises:
        InputError: for anything that cannot be used.
    """
    if not isinstance(fitted, Fitted):
        raise InputError(
            f"found a {type(fitted).__name__}, expected a fitted model after the "
            "AnnData object, pass what sv.fit or sv.load returned"
        )
    expect_anndata(adata)
    config = fitted.data_config
    if config.split_key not in adata.obs:
        config = dataclasses.replace(config, split_key=None)
    if layer is not None:
        config = dataclasses.replace(config, layer=layer)
    data = prepare(
        adata,
        config,
        support=fitted.likelihood.support,
        genes=fitted.genes,
        batches=fitted.batches if fitted.batches else None,
        missing_genes=missing_genes,
    )
    surplus = adata.n_vars - int(np.isin(gene_names(adata), fitted.genes).sum())
    # a mask was asked for, and says itself that genes are left out
    if surplus and config.genes is None:
        warnings.warn(
            f"{surplus} of {adata.n_vars} genes are not in the model and are ignored",
            InputWarning,
            stacklevel=3,
        )
    return data


def evaluate(
    adata: anndata.AnnData,
    fitted: Fitted,
    *,
    split: str | None = None,
    n_samples: int = 100,
    score_key: str | None = None,
    batch_size: int = 128,
    missing_genes: str = "error",
    layer: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Bounds on log p(x) of held-out cells, exact means over cells.

    Args:
        adata: the cells.
        fitted: the model.
        split: "train", "validation", "test", "new" or "all"; None: cells that were
            never trained on: test cells, else new ones, else validation cells.
        n_samples: importance samples S.
        score_key: obs column with labels, to score clusters of the latents; only
            scores.
        batch_size: cells at a time.
        missing_genes: for genes that `adata` lacks, "error" or "zeros".
        layer: layer with the counts, "X" for X; None: where they were for fitting.
        seed: of the samples and of k-means.

    Returns:
        n_cells, split, elbo, importance_weighted_bound, n_samples, log_likelihood, kl_z
        and kl_y, bounds and parts in nats per cell; clusters_used, those with at least
        1 % of the cells (kl_y and it are 0 without clusters); and, of a named
        likelihood, conditions_on_total. Of a mixture also n_clusters and
        effective_clusters, exp of the entropy of the mean q(y|x). With a score key: ari
        and nmi, of a mixture's own clusters, or of k-means on the latents with as many
        clusters as labels (`oracle_k` is true then), n_labels, and n_scored of the
        cells, those with a label.

    Raises:
        InputError: for data that cannot be used, or a part of the split without cells.
        ImportError: with a score key, without scikit-learn.
    """
    check_count("n_samples", n_samples, 1)
    check_pass(batch_size, seed)
    data = prepare_as(adata, fitted, missing_genes, layer)
    labels = None if score_key is None else column_of(adata, score_key, "scores")
    totals = comparable_totals(data, adata, fitted, layer)
    chosen, where = part_of(split_of(adata, fitted, totals), split)
    if labels is not None:
        labels = labels[where]
        known = labels.notna().to_numpy()
        names = labels[known].astype(str).to_numpy()
        expect_labels(names, f"in {score_key!r} among the cells")
        expect_scikit_learn()
    figures = cell_bounds(
        fitted.model,
        fitted.params,
        cells_to_device(data, where),
        n_samples=n_samples,
        batch_size=batch_size,
        seed=seed,
    )
    means = {
        name: float(getattr(figures, name).mean(dtype=np.float64))
        for name in CellBounds._fields[1:-1]
    }
    result = {
        "n_cells": int(where.sum()),
        "split": chosen,
        "elbo": means["elbo"],
        "importance_weighted_bound": means["importance_weighted_bound"],
        "n_samples": n_samples,
        "log_likelihood": means["log_likelihood"],
        "kl_z": means["kl_z"],
        "kl_y": means["kl_y"],
        "clusters_used": 0,
    }
    if not fitted.own_likelihood:
        result["conditions_on_total"] = is_given_total(fitted)
    n_clusters = fitted.model.n_clusters
    if n_clusters:
        codes = figures.probabilities.argmax(axis=1)
        result["n_clusters"] = n_clusters
        result["clusters_used"] = clusters_used(codes)
        result["effective_clusters"] = float(
            effective_number(figures.probabilities.mean(axis=0))
        )
    if labels is not None:
        own = codes[known] if n_clusters else None
        latent = figures.latent[known]
        result |= against_labels(own, latent, names, score_key, seed)[1]
    return result


def is_given_total(fitted: Fitted) -> bool:
    """Whether a model is given the total of a cell, as a library mean is.

    Args:
        fitted: the model.

    Returns:
        Whether it is; not where it is given another depth, nor, as far as is known, of
        a likelihood of one's own.
    """
    named = not fitted.own_likelihood and fitted.data_config.size_factor_key is None
    return named and conditions_on_total(fitted.config)


def part_of(split: np.ndarray, wanted: str | None) -> tuple[str, np.ndarray]:
    """The part of the split to look at, and its cells.

    Args:
        split: [n] from `split_of`.
        wanted: "train", "validation", "test", "new" or "all"; None: cells that were
            never trained on: test cells, else new ones, else validation cells.

    Returns:
        The name of the part, and a mask [n] of its cells.

    Raises:
        InputError: for an unknown part, or one without cells.
    """
    if wanted == "all":
        return wanted, np.ones(len(split), bool)
    if wanted is None:
        there = [p for p in ("test", "new", "validation") if (split == p).any()]
        if there[:2] == ["test", "new"]:
            warnings.warn(
                f"{(split == 'test').sum()} test cells are looked at and "
                f"{(split == 'new').sum()} new ones are not: split='new' (--split new) "
                "takes those",
                InputWarning,
                stacklevel=3,
            )
        wanted = there[0] if there else "held-out"
    elif wanted not in (*SPLITS, "new"):
        raise InputError(
            f"found split={wanted!r}, expected {', '.join(SPLITS)}, new or all, "
            "choose one of these"
        )
    where = split == wanted
    if not where.any():
        parts = [f"{(split == part).sum()} {part}" for part in np.unique(split)]
        raise InputError(
            f"found no {wanted} cells (there are {', '.join(parts)}), expected some, "
            "choose another part or all"
        )
    return wanted, where
