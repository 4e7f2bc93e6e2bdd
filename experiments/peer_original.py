"""The original's side of the comparison of clusters, in an environment of its own.

    PYTHON experiments/peer_original.py FOLDER --clusters 8 --seed 0

Started by `clusters_of_original.py` (scvae 2.1.4, Python 3.7). FOLDER has counts
`latent.npz` and others alike, of thinned cells, and `split.npy`. Trains its GMVAE as
its paper did on blood cells, but for the size of the latent space: 500 epochs, 200 of
them warm-up, and of these the best by the validation cells. Writes `row.npz`, with
latents and clusters of all cells for each file; prints the versions. It sets no seeds;
those of numpy and TensorFlow are set here.
"""

import argparse
import contextlib
import io
import json
import pathlib
import platform
import tempfile
import warnings

warnings.simplefilter("ignore")

import numpy  # noqa: E402
import scipy.sparse  # noqa: E402
import scvae  # noqa: E402
import tensorflow  # noqa: E402
from scvae.data import DataSet  # noqa: E402
from scvae.models import GaussianMixtureVariationalAutoencoder  # noqa: E402

N_EPOCHS = 500
N_WARM_UP_EPOCHS = 200
BATCH_SIZE = 100


def as_cells(x, kind, folder):
    """Counts as it takes them."""
    return DataSet(
        "cells",
        title="cells",
        specifications={"example type": "counts"},
        values=x,
        example_names=numpy.arange(x.shape[0]).astype(str),
        feature_names=numpy.arange(x.shape[1]).astype(str),
        directory=folder,
        kind=kind,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--clusters", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=N_EPOCHS)
    arguments = parser.parse_args()
    numpy.random.seed(arguments.seed)
    tensorflow.set_random_seed(arguments.seed)
    x = {
        path.stem: scipy.sparse.csr_matrix(scipy.sparse.load_npz(str(path)))
        for path in sorted(arguments.folder.glob("*.npz"))
    }
    split = numpy.load(str(arguments.folder / "split.npy"))
    row = {}
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        model = GaussianMixtureVariationalAutoencoder(
            feature_size=x["latent"].shape[1],
            latent_size=10,
            hidden_sizes=[100, 100],
            reconstruction_distribution="negative binomial",
            number_of_latent_clusters=arguments.clusters,
            number_of_warm_up_epochs=min(N_WARM_UP_EPOCHS, arguments.epochs // 2),
            log_directory=folder,
        )
        with model.graph.as_default():
            tensorflow.set_random_seed(arguments.seed)
        model.train(
            as_cells(x["latent"][split == "train"], "training", folder),
            as_cells(x["latent"][split == "validation"], "validation", folder),
            number_of_epochs=arguments.epochs,
            minibatch_size=BATCH_SIZE,
            learning_rate=1e-4,
            analyses_directory=folder,
        )
        for name, counts in x.items():
            found = model.evaluate(
                as_cells(counts, "full", folder),
                minibatch_size=BATCH_SIZE,
                use_best_model=True,
                output_versions=["latent"],
                log_results=False,
            )
            row[name] = numpy.asarray(found["z"].values)
            row[name + "_codes"] = numpy.asarray(found["y"].predicted_cluster_ids)
    numpy.savez(str(arguments.folder / "row.npz"), **row)
    versions = {"scvae": scvae.__version__, "tensorflow": tensorflow.__version__}
    versions["original_python"] = platform.python_version()
    print(json.dumps(versions))


if __name__ == "__main__":
    main()
