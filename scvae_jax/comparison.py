"""Likelihoods and models compared on the same held-out cells."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anndata
import pandas as pd

from scvae_jax import plots
from scvae_jax.checks import InputError, check_count, listing, plain
from scvae_jax.config import DataConfig, ModelConfig, TrainConfig
from scvae_jax.files import alone_in, whole
from scvae_jax.ledger import (
    PICTURES,
    fit_name,
    open_folder,
    read_fit,
    take_place,
    write_fit,
)
from scvae_jax.ranking import Fit, Row, entry_name, rank, remarks, tabulate
from scvae_jax.scores import expect_scikit_learn
from scvae_jax.settings import expect_kinds
from scvae_jax.subjects import entries_of, parts_of, settings_of
from scvae_jax.trials import evaluate_seeds, fit_seeds, total_and_null


class Comparison(NamedTuple):
    """What `compare` found.

    Attributes:
        table: a row for each fit.
        ranks: a row for each data set, likelihood and model, best first.
        remarks: what a reader of the two must know.
        folder: where all of it is.
    """

    table: pd.DataFrame
    ranks: pd.DataFrame
    remarks: tuple[str, ...]
    folder: Path


def compare(
    adata: anndata.AnnData | Mapping[str, anndata.AnnData],
    *,
    likelihoods: Sequence[str],
    out: str | Path,
    models: Sequence[str] = ("vae",),
    seeds: int = 5,
    splits: int = 1,
    config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    genes: str | None = None,
    split_key: str | None = None,
    fractional: str = "error",
    score_key: str | None = None,
    n_samples: int = 100,
    reference: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare likelihoods and models on the same held-out cells.

    Every data set x likelihood x model x seed (x split) is fitted, all seeds of one in
    one compiled program, and evaluated on the same cells: test cells if there are any,
    else validation cells. A fit is written as soon as it is done: the same call goes on
    where it was stopped, and with more likelihoods, models, seeds, splits or data sets
    runs what is missing. The tables hold what the call asks for.

    Entries are ranked only where their nats compare: on the same cells and genes, and
    counts apart from binary data and from densities. Library means condition on the
    total of a cell; log p(total), fitted to training cells, is added to them in
    `comparable_bound`.

    Args:
        adata: cells by genes, or several of them by name; left as they are.
        likelihoods: names, with options as in "negative_binomial:mean=free" or
            "negative_binomial:dispersion=gene_cell:mean=free".
        out: the folder to write, or to go on with.
        models: "vae", "gmvae" or both.
        seeds: number of fits of each; from `train_config.seed` on.
        splits: number of random splits, where there is no split key; from
            `train_config.seed` on.
        config: all else about the models; its model and likelihood are not used.
        train_config: how they are fitted.
        layer: layer with the counts; None for X.
        batch_key: obs column with the batch of a cell.
        genes: boolean var column of the genes to use; None for all.
        split_key: obs column with train, validation and test; None: drawn by seed.
        fractional: what to do with fractional counts: "error", "round" or "allow".
        score_key: obs column with labels, to score clusters by; only scores.
        n_samples: decodes of each cell: importance samples, a K-th of them where each
            takes K decodes (a gmvae with posterior="conditional").
        reference: "likelihood/model" to take differences to; None: the best.
        overwrite: replace a comparison that is in the folder, once the new one is
            finished; until then it is made inside it, and goes on if stopped.
        progress: show progress on standard error.

    Returns:
        Its `table` has a row for each fit, its `ranks` one for each likelihood and
        model, `remarks` are sentences, and `folder` has all of it, with two pictures.
        In nats per cell, higher is better:

        elbo, importance_weighted_bound (and _se, its standard error over cells),
            log_likelihood, kl_z, kl_y.
        comparable_bound: importance-weighted, with log_prob_total (or 0) added.
        null_log_likelihood: of depth x the mean profile of the training cells under the
            same family, all else of it fitted to them; given the total where the bound
            is.
            share_explained: (L - L_null) / (L_best - L_null).
        difference (of ranks): to the reference, on identical cells, over the seeds that
            both have, with the ends low and high of its 95 % interval by a bootstrap
            over seeds and cells; there is none with one seed, or of one cell.

        And beside them:

        ari, nmi: of a mixture's own clusters, or of k-means on the latents with as many
            clusters as labels (`oracle_k` is true then, and such scores are no match
            for those of own clusters), with n_labels and n_scored.
        stability: median adjusted Rand index between pairs of seeds, of these clusters.
        seconds: of training, with the placing of components, a fit's share of its
            program; compile_seconds: of the program.
        epochs, best_epoch, skipped_steps, versions, and `note` where a fit failed.

    Raises:
        InputError: for data or settings that cannot be used, or a folder that holds
            something else.
        ImportError: without matplotlib, or without scikit-learn where clusters are
            scored or compared.
        FloatingPointError: if every single fit fails.
        OSError: if files of the folder cannot be read or written.
    """
    expect_kinds(config, train_config, None, None, None)
    train_config = train_config or TrainConfig()
    entries = entries_of(likelihoods, models, config or ModelConfig())
    names = [entry_name(*key) for key in entries]
    check_count("seeds", seeds, 1, 2**10)
    check_count("splits", splits, 1, 2**10)
    check_count("n_samples", n_samples, 1)
    n_samples = plain(n_samples)
    for name, entry in zip(names, entries.values(), strict=True):
        few = entry.posterior == "conditional" and n_samples < entry.n_clusters
        if entry.model == "gmvae" and few:
            raise InputError(
                f"found n_samples={n_samples} and {entry.n_clusters} clusters in "
                f"{name}, each of which is decoded, expected at least as many decodes, "
                "ask for more (n_samples, --samples)"
            )
    last = train_config.seed + max(seeds, splits) - 1
    check_count("seed", last, 0, 2**32 - 1)
    if reference is not None and reference not in names:
        raise InputError(
            f"found reference {reference!r}, expected one of {listing(names, 30)}, "
            "choose one of these"
        )
    if split_key is not None and splits > 1:
        raise InputError(
            f"found {splits} splits and split key {split_key!r}, expected one of the "
            "two, leave one out"
        )
    # what is absent is said before the work and not after it
    plots.expect_matplotlib()
    if ("gmvae" in models and seeds > 1) or score_key is not None:
        expect_scikit_learn()
    data_config = DataConfig(layer, batch_key, None, genes, split_key, fractional)
    sources = adata if isinstance(adata, Mapping) else {"data": adata}
    parts = parts_of(sources, data_config, train_config, splits, score_key, entries)
    config = config or ModelConfig()
    settings = settings_of(parts, models, config, train_config, data_config)
    settings |= {"score_key": score_key, "n_samples": n_samples}
    folder = Path(out).absolute()
    with alone_in(folder):
        work, settings = open_folder(folder, settings, overwrite)

        numbers = range(train_config.seed, train_config.seed + seeds)
        jobs = [(cells, *key) for cells in parts for key in entries]
        keys = [
            (cells.name, label, model, cells.split, seed)
            for cells, label, model in jobs
            for seed in numbers
        ]
        paths = {key: work / "fits" / fit_name(key) for key in keys}
        # what is damaged is found before the work
        known = {key: read_fit(p) for key, p in paths.items() if p.exists()}
        given = {}
        for number, (cells, label, model) in enumerate(jobs, start=1):
            key = cells.name, label, model, cells.split
            missing = [seed for seed in numbers if (*key, seed) not in known]
            if not missing:
                continue
            if progress:
                print(
                    f"[{number} of {len(jobs)}] {cells.name}, {label}, {model}, split "
                    f"{cells.split}, seeds {listing(missing)}",
                    file=sys.stderr,
                )
            model_config = entries[label, model]
            fits = fit_seeds(
                sources[cells.name],
                model_config,
                dataclasses.replace(train_config, seed=cells.seed),
                data_config,
                missing,
                progress,
            )
            # what is not of the model serves both
            family = cells.name, cells.split, label
            if family not in given:
                given[family] = total_and_null(cells, model_config)
            done = evaluate_seeds(
                cells,
                label,
                model_config,
                fits,
                given[family],
                n_samples,
                missing,
                score_key,
            )
            for seed in missing:
                path = paths[*key, seed]
                write_fit(path, done[seed])
                known[*key, seed] = read_fit(path)
        found = _report(work, [known[key] for key in keys], settings, reference)
        take_place(work, folder)
    return found._replace(folder=folder)


def _report(
    folder: Path, fits: Sequence[Fit], settings: Row, reference: str | None
) -> Comparison:
    """Write the tables and pictures."""
    rows = tabulate(fits)
    ranks = rank(fits, rows, reference)
    said = remarks(fits, ranks)
    table, ranked = pd.DataFrame(rows), pd.DataFrame(ranks)
    drawn = {
        "differences.png": lambda path: plots.differences(ranked, path),
        "clusters.png": lambda path: plots.bounds_and_clusters(table, path),
    }
    if table[["ari", "stability"]].isna().all(axis=None):
        said.append(
            "there are no clusters to draw: they need a score key, or a gmvae and two "
            "seeds or more"
        )
        del drawn["clusters.png"]
    if ranked["difference"].isna().all():
        del drawn["differences.png"]
    if table["comparable_bound"].isna().all():
        drawn = {}
    for name, frame in (("table.csv", table), ("ranks.csv", ranked)):
        with whole(folder / name) as part:
            frame.to_csv(part, index=False)
    for name in PICTURES:
        if name in drawn:
            drawn[name](folder / name)
        else:
            # one of an earlier call, that shows other rows
            (folder / name).unlink(missing_ok=True)
    found = {"settings": settings, "rows": rows, "ranks": ranks, "remarks": said}
    # last: by it `open_folder` knows a comparison that is finished
    with whole(folder / "table.json") as part:
        text = json.dumps(found, indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
    if table["comparable_bound"].isna().all():
        raise FloatingPointError(
            f"found that all {len(fits)} fits ended early, expected finite gradients "
            "and bounds, lower the learning rate or look for extreme counts"
        )
    return Comparison(table, ranked, tuple(said), folder)
