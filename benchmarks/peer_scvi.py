"""SCVI's side of the benchmarks, in an environment of its own (scvi-tools 1.4).

    PYTHON benchmarks/peer_scvi.py speed FILE.h5ad --likelihood nb --epochs 6 [--jax]
    PYTHON benchmarks/peer_scvi.py quality FILE.h5ad --likelihood nb

Started by `speed.py` and `time_to_quality.py`; prints one JSON object.
"""

import argparse
import json
import logging
import platform
import time
import warnings

START = time.perf_counter()

import anndata  # noqa: E402
import lightning.pytorch as pl  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402


class Clock(pl.Callback):
    """When each epoch began and ended, seconds from the start of the process."""

    def __init__(self):
        self.began: list[float] = []
        self.ended: list[float] = []
        self.validating = 0.0

    def on_train_epoch_start(self, trainer, module) -> None:
        """Note the time, less that of looks at the validation cells."""
        self.began.append(time.perf_counter() - START - self.validating)

    def on_train_epoch_end(self, trainer, module) -> None:
        """Note the time, less that of looks at the validation cells."""
        self.ended.append(time.perf_counter() - START - self.validating)

    def on_validation_start(self, trainer, module) -> None:
        """Note the time."""
        self.validating -= time.perf_counter()

    def on_validation_end(self, trainer, module) -> None:
        """Note the time."""
        self.validating += time.perf_counter()


def versions() -> dict:
    return {
        "scvi-tools": scvi.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def speed(
    adata: anndata.AnnData,
    likelihood: str,
    epochs: int,
    jax: bool,
    accelerator: str,
    batch_size: int,
) -> dict:
    """Seconds of each epoch but the first, and of encoding all cells but once."""
    kind = scvi.model.JaxSCVI if jax else scvi.model.SCVI
    kind.setup_anndata(adata)
    model = kind(adata, n_latent=10, gene_likelihood=likelihood)
    clock = Clock()
    model.train(
        max_epochs=epochs + 1,
        train_size=1.0,
        batch_size=batch_size,
        accelerator=accelerator,
        callbacks=[clock],
        enable_progress_bar=False,
    )
    if jax:
        # it would compile anew at each call
        inference = model.module.get_jit_inference_fn(inference_kwargs={"n_samples": 1})
        type(model.module).get_jit_inference_fn = lambda *_, **__: inference
    # the first time compiles
    model.get_latent_representation(batch_size=512)
    encode = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.get_latent_representation(batch_size=512)
        encode.append(time.perf_counter() - start)
    train = np.subtract(clock.ended, clock.began)[1:]
    return {"train": train.tolist(), "encode": encode}


def quality(adata: anndata.AnnData, likelihood: str, batch_key: str | None) -> dict:
    """SCVI at its defaults on given train and validation cells, epoch by epoch.

    Of the two, the history has the negative ELBO; both are at a KL weight of 1.
    """
    adata = adata[adata.obs["split"].isin(["train", "validation"])].copy()
    validation = np.flatnonzero((adata.obs["split"] == "validation").to_numpy())
    train = np.flatnonzero((adata.obs["split"] == "train").to_numpy())
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
    model = scvi.model.SCVI(adata, n_latent=10, gene_likelihood=likelihood)
    clock = Clock()
    model.train(
        accelerator="cpu",
        callbacks=[clock],
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        datasplitter_kwargs={"external_indexing": [train, validation, np.array([])]},
    )
    trained = time.perf_counter() - START
    elbo = model.get_elbo(indices=validation, return_mean=False)
    history = model.history["elbo_validation"]["elbo_validation"]
    return {
        # at its defaults it does not look at the validation cells
        "seconds": trained - clock.validating,
        "validation_elbo": float(np.mean(np.asarray(elbo))),
        "epoch_ended": clock.ended,
        "epoch_validation_elbo": (-history.astype(float)).tolist(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["speed", "quality"])
    parser.add_argument("file")
    parser.add_argument("--likelihood", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-key")
    parser.add_argument("--jax", action="store_true", help="JaxSCVI instead of SCVI")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = 0
    cells = anndata.read_h5ad(arguments.file)
    if arguments.task == "speed":
        result = speed(
            cells,
            arguments.likelihood,
            arguments.epochs,
            arguments.jax,
            arguments.accelerator,
            arguments.batch_size,
        )
    else:
        result = quality(cells, arguments.likelihood, arguments.batch_key)
    print(json.dumps(result | {"versions": versions()}))
