"""SCVI's side of the comparison with the peers, in an environment of its own.

    PYTHON experiments/peer_scvi.py FILE.h5ad --likelihood nb --seed 0 --out ROW.npz

Started by `against_peers.py`, `tuned_peer.py` and `clusters_against_peers.py`
(scvi-tools 1.4). Trains at its defaults, or with settings, on cells marked train, and
writes bounds of the test cells or the validation cells (of 0 samples: none), the
latents of all cells, of X and of each layer, and the seconds from the start of its
imports to the end of its training; prints the versions. Bounds are averaged over cells
by the reader: SCVI's own mean counts a short last batch as a full one.
"""

import argparse
import json
import logging
import platform
import time
import warnings

START = time.perf_counter()

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402

# which of its calls takes each setting
SETTINGS = {
    "model": ("n_layers", "n_hidden", "dropout_rate"),
    "plan": ("lr", "weight_decay", "n_epochs_kl_warmup"),
    "train": ("max_epochs", "early_stopping"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--likelihood", choices=["poisson", "nb", "zinb"])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch-key")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = arguments.seed
    adata = anndata.read_h5ad(arguments.file)
    where = {
        part: np.flatnonzero((adata.obs["split"] == part).to_numpy())
        for part in ("train", "validation", "test")
    }
    scvi.model.SCVI.setup_anndata(adata, batch_key=arguments.batch_key)
    of = {
        kind: {k: v for k, v in arguments.settings.items() if k in names}
        for kind, names in SETTINGS.items()
    }
    model = scvi.model.SCVI(
        adata, n_latent=10, gene_likelihood=arguments.likelihood, **of["model"]
    )
    model.train(
        accelerator=arguments.accelerator,
        enable_progress_bar=False,
        plan_kwargs=of["plan"],
        **of["train"],
        datasplitter_kwargs={"external_indexing": list(where.values())},
    )
    seconds = time.perf_counter() - START
    bounds = {}
    if arguments.samples:
        given = {"indices": where[arguments.part], "return_mean": False}
        marginal = model.get_marginal_ll(n_mc_samples=arguments.samples, **given)
        found = {"elbo": model.get_elbo(**given), "marginal": marginal}
        # tensors on the device, or arrays
        bounds = {
            name: torch.as_tensor(value).cpu().numpy().ravel()
            for name, value in found.items()
        }
    thinned = {}
    # anndata from 0.13 on has X among them, as None
    for name in [name for name in adata.layers if name]:
        cells = adata.copy()
        cells.X = cells.layers[name]
        thinned[name] = model.get_latent_representation(cells)
    np.savez(
        arguments.out,
        **bounds,
        latent=model.get_latent_representation(),
        **thinned,
        seconds=seconds,
        accelerator=arguments.accelerator,
        epochs=len(model.history["elbo_train"]),
    )
    versions = {"scvi-tools": scvi.__version__, "torch": torch.__version__}
    versions |= {"scvi_python": platform.python_version()}
    versions |= {"threads": torch.get_num_threads()}
    print(json.dumps(versions))


if __name__ == "__main__":
    main()
