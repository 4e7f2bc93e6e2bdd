"""The command line: parse, call, print. Heavy imports wait for the command."""

import dataclasses
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scvae_jax import files, printing, process
from scvae_jax.checks import InputError, InputWarning, check_count
from scvae_jax.config import PRECISIONS, ModelConfig, TrainConfig, parse_options

app = typer.Typer(
    help="Deep generative models of raw single-cell counts.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[Path, typer.Argument(help="An .h5ad file with raw counts.")]
Run = Annotated[Path, typer.Argument(help="A run folder, made by `train`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
MissingGenes = Annotated[
    str,
    typer.Option(help="For genes of the model that DATA lacks: error or zeros."),
]
LayerAgain = Annotated[
    str | None, typer.Option(help="Layer with the counts, X for X; default: as fitted.")
]
MODEL, TRAIN = ModelConfig(), TrainConfig()
SIZES = ",".join(map(str, MODEL.hidden_sizes))
# options of `train` and of other commands alike
Clusters = Annotated[
    int | None,
    typer.Option(help=f"Of a gmvae; default: {MODEL.n_clusters}."),
]
Posterior = Annotated[
    str | None,
    typer.Option(
        help=f"Of a gmvae: shared or conditional; default: {MODEL.posterior}."
    ),
]
LatentSize = Annotated[int, typer.Option(help="Dimensions.")]
HiddenSizes = Annotated[str, typer.Option(help="Widths of the hidden layers.")]
Epochs = Annotated[
    int | None, typer.Option(help="At the most; default: about 6,000 steps.")
]
BatchSize = Annotated[int, typer.Option(help="Cells a step.")]
CellsAtATime = Annotated[int, typer.Option("--batch-size", help="Cells at a time.")]
LearningRate = Annotated[float, typer.Option(help="At its peak.")]
ScoreKey = Annotated[
    str | None,
    typer.Option(help="obs column with labels to score clusters by; only scores."),
]
Layer = Annotated[str | None, typer.Option(help="Layer; default: X.")]
BatchKey = Annotated[str | None, typer.Option(help="obs column.")]
Genes = Annotated[
    str | None, typer.Option(help="Boolean var column of the genes to use.")
]
SplitKey = Annotated[
    str | None, typer.Option(help="obs column: train, validation, test.")
]
TestFraction = Annotated[
    float, typer.Option(help="Share of cells set aside, without a split key.")
]
Fractional = Annotated[
    str, typer.Option(help="Fractional counts: error, round or allow.")
]


def main() -> None:
    """Run the command line; wrong use and bad input end with one line and exit 2."""
    sys.exit(process.exit_code(partial(app, standalone_mode=False)))


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    model: Annotated[str, typer.Option(help="vae or gmvae.")] = MODEL.model,
    likelihood: Annotated[
        str,
        typer.Option(
            help="Such as poisson or zero_inflated_negative_binomial; an unknown name "
            "lists all."
        ),
    ] = MODEL.likelihood,
    likelihood_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, such as dispersion=gene_batch or k_max=5."),
    ] = None,
    clusters: Clusters = None,
    posterior: Posterior = None,
    latent_size: LatentSize = MODEL.n_latent,
    hidden_sizes: HiddenSizes = SIZES,
    precision: Annotated[
        str, typer.Option(help=f"Of gene-wide products: {', '.join(PRECISIONS)}.")
    ] = MODEL.precision,
    epochs: Epochs = None,
    batch_size: BatchSize = TRAIN.batch_size,
    learning_rate: LearningRate = TRAIN.learning_rate,
    samples: Annotated[
        int, typer.Option(help="Importance samples in training.")
    ] = TRAIN.n_samples,
    layer: Layer = None,
    batch_key: BatchKey = None,
    size_factor_key: Annotated[
        str | None, typer.Option(help="obs column with the depth of a cell.")
    ] = None,
    genes: Genes = None,
    split_key: SplitKey = None,
    test_fraction: TestFraction = TRAIN.test_fraction,
    fractional: Fractional = "error",
    seed: Seed = TRAIN.seed,
    seeds: Annotated[
        int,
        typer.Option(
            help="Fits, of the seeds from --seed on; the best is looked at, the others "
            "are kept beside it."
        ),
    ] = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit a model to the counts of DATA and write a run folder."""
    check_count("seeds", seeds, 1, 2**10)
    config = ModelConfig(
        model=model,
        **_mixture(model, clusters, posterior),
        likelihood=likelihood,
        likelihood_options=parse_options(likelihood_option or []),
        n_latent=latent_size,
        hidden_sizes=_sizes(hidden_sizes),
        precision=precision,
    )
    train_config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        n_samples=samples,
        test_fraction=test_fraction,
        seed=seed,
    )
    from scvae_jax import annotated, checkpoints, training

    checkpoints.check_free(out, overwrite)
    fitted = training.fit_many(
        annotated.read_h5ad(data),
        config,
        train_config,
        seeds=range(seed, seed + seeds),
        layer=layer,
        batch_key=batch_key,
        size_factor_key=size_factor_key,
        genes=genes,
        split_key=split_key,
        fractional=fractional,
    )
    fitted.save(out, overwrite=overwrite)
    printing.figures(fitted.summary | {"run": str(out)}, as_json)


@app.command()
def evaluate(
    run: Run,
    data: Data,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation, test, new or all; default: test cells, "
            "else new ones, else validation cells."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Importance samples.")] = 100,
    score_key: ScoreKey = None,
    missing_genes: MissingGenes = "error",
    layer: LayerAgain = None,
    batch_size: CellsAtATime = TRAIN.batch_size,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Print bounds on the log-likelihood of held-out cells, in nats per cell."""
    from scvae_jax import annotated, checkpoints, evaluation

    fitted = checkpoints.load(run)
    figures = evaluation.evaluate(
        annotated.read_h5ad(data),
        fitted,
        split=split,
        n_samples=samples,
        score_key=score_key,
        missing_genes=missing_genes,
        layer=layer,
        batch_size=batch_size,
        seed=seed,
    )
    if not (as_json or fitted.model.n_clusters):
        # a reader would take its 0 for something amiss
        del figures["kl_y"], figures["clusters_used"]
    printing.figures(figures, as_json)


@app.command()
def apply(
    run: Run,
    data: Data,
    out: Annotated[Path, typer.Option(help="The .h5ad file to write.")],
    denoised: Annotated[
        bool, typer.Option("--denoised", help="Add a layer of denoised expression.")
    ] = False,
    batch: Annotated[
        str | None, typer.Option(help="Denoise as if every cell were of this batch.")
    ] = None,
    key_added: Annotated[str, typer.Option(help="Prefix of the fields.")] = "scvae",
    missing_genes: MissingGenes = "error",
    layer: LayerAgain = None,
    batch_size: CellsAtATime = TRAIN.batch_size,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write DATA with latent coordinates, clusters and bounds to a new file."""
    if batch is not None and not denoised:
        raise InputError(
            "found --batch without --denoised, expected both, add --denoised"
        )
    from scvae_jax import analysis, annotated, checkpoints

    files.expect_free(out, overwrite)
    fitted = checkpoints.load(run)
    adata = annotated.read_h5ad(data)
    given = {"missing_genes": missing_genes, "layer": layer}
    given |= {"batch_size": batch_size, "seed": seed}
    if denoised:
        with warnings.catch_warnings():
            # what there is to warn of, apply does
            warnings.simplefilter("ignore", InputWarning)
            layer_added = f"{key_added}_denoised"
            analysis.denoise(
                adata, fitted, batch=batch, layer_added=layer_added, **given
            )
    analysis.apply(adata, fitted, key_added=key_added, **given)
    # another process may have written there meanwhile
    files.expect_free(out, overwrite)
    annotated.write_h5ad(adata, out)
    elbo = float(adata.obs[f"{key_added}_elbo"].mean())
    figures = {"n_cells": adata.n_obs, "elbo": elbo, "out": str(out)}
    printing.figures(figures, as_json)


@app.command()
def compare(
    data: Annotated[list[Path], typer.Argument(help=".h5ad files with raw counts.")],
    likelihoods: Annotated[
        str,
        typer.Option(
            help="Names between commas; options as in negative_binomial:mean=free."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write, or to go on with.")],
    models: Annotated[str, typer.Option(help="vae, gmvae or vae,gmvae.")] = MODEL.model,
    clusters: Clusters = None,
    posterior: Posterior = None,
    seeds: Annotated[int, typer.Option(help="Fits of each.")] = 5,
    splits: Annotated[
        int, typer.Option(help="Random splits, without a split key.")
    ] = 1,
    latent_size: LatentSize = MODEL.n_latent,
    hidden_sizes: HiddenSizes = SIZES,
    epochs: Epochs = None,
    batch_size: BatchSize = TRAIN.batch_size,
    learning_rate: LearningRate = TRAIN.learning_rate,
    samples: Annotated[
        int,
        typer.Option(
            help="Decodes of a cell: importance samples, of a conditional gmvae K for "
            "each."
        ),
    ] = 100,
    score_key: ScoreKey = None,
    layer: Layer = None,
    batch_key: BatchKey = None,
    genes: Genes = None,
    split_key: SplitKey = None,
    test_fraction: TestFraction = TRAIN.test_fraction,
    fractional: Fractional = "error",
    reference: Annotated[
        str | None,
        typer.Option(help="LIKELIHOOD/MODEL to compare with; default: the best."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The first one.")] = TRAIN.seed,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare likelihoods and models on the same held-out cells; goes on if stopped."""
    kinds = _between_commas(models)
    config = ModelConfig(
        **_mixture("gmvae" if "gmvae" in kinds else "vae", clusters, posterior),
        n_latent=latent_size,
        hidden_sizes=_sizes(hidden_sizes),
    )
    train_config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        test_fraction=test_fraction,
        seed=seed,
    )
    names = [path.stem for path in data]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"found data sets named {', '.join(twice)} twice, expected each once and "
            "names that differ, leave one out or rename it"
        )
    from scvae_jax import annotated, comparison

    found = comparison.compare(
        {path.stem: annotated.read_h5ad(path) for path in data},
        likelihoods=_between_commas(likelihoods),
        out=out,
        models=kinds,
        seeds=seeds,
        splits=splits,
        config=config,
        train_config=train_config,
        layer=layer,
        batch_key=batch_key,
        genes=genes,
        split_key=split_key,
        fractional=fractional,
        score_key=score_key,
        n_samples=samples,
        reference=reference,
        overwrite=overwrite,
    )
    if as_json:
        figures = json.loads((found.folder / "table.json").read_text(encoding="utf-8"))
        printing.figures(figures | {"out": str(out)}, as_json)
        return
    printing.ranks(found.ranks)
    for remark in found.remarks:
        print(f"note: {remark}")
    print(f"see {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path(
        "scvae_demo"
    ),
    epochs: Annotated[int, typer.Option(help="At the most.")] = 250,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cluster 700 real blood cells that need no download, and draw them."""
    config = dataclasses.replace(MODEL, model="gmvae")
    train_config = TrainConfig(epochs=epochs, seed=seed)
    run, file, picture = out / "run", out / "annotated.h5ad", out / "latent.png"
    from scvae_jax import (
        analysis,
        annotated,
        checkpoints,
        datasets,
        evaluation,
        plots,
        scores,
        training,
    )

    checkpoints.check_free(run, overwrite)
    for path in (file, picture):
        files.expect_free(path, overwrite)
    adata = datasets.pbmc68k_reduced()
    fitted = training.fit(adata, config, train_config)
    figures = evaluation.evaluate(adata, fitted, seed=seed)
    analysis.apply(adata, fitted, seed=seed)
    # held-out cells alone are too few to score clusters by: all cells, as it says
    labels = adata.obs["bulk_labels"].astype(str).to_numpy()
    codes = adata.obs["scvae_cluster"].astype(str).to_numpy()
    agreed = scores.label_scores(codes, labels, "bulk_labels")
    colors = ("bulk_labels", "scvae_cluster")
    # all of it is made before any of it appears
    with (
        files.folders_above(picture),
        files.whole(picture) as picture_part,
        files.whole(file) as file_part,
    ):
        plots.latent_space(adata, picture_part, colors=colors, seed=seed)
        annotated.write_h5ad(adata, file_part)
        fitted.save(run, overwrite=overwrite)
    figures |= {
        "ari": agreed["ari"],
        "nmi": agreed["nmi"],
        "n_scored": agreed["n_scored"],
        "seconds": fitted.summary["total_seconds"],
        "epochs": fitted.summary["epochs"],
        "run": str(run),
        "annotated": str(file),
        "picture": str(picture),
        "layout": "UMAP",
    }
    printing.figures(figures, as_json)


def _mixture(model: str, clusters: int | None, posterior: str | None) -> dict[str, Any]:
    """Settings of a gmvae that were given; a vae has none."""
    given = {"n_clusters": clusters, "posterior": posterior}
    given = {name: value for name, value in given.items() if value is not None}
    if model == "vae" and given:
        raise InputError(
            "found --clusters or --posterior for a vae, expected them with a gmvae "
            "alone, choose a gmvae"
        )
    if model == "gmvae" and clusters is None:
        warnings.warn(
            f"{MODEL.n_clusters} clusters are used, as --clusters was not given; "
            "sv.sweep_clusters compares several numbers",
            InputWarning,
            stacklevel=2,
        )
    return given


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise InputError(
            f"found hidden sizes {text!r}, expected whole numbers between commas, "
            "write them like 128,128"
        ) from None


def _between_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    main()
