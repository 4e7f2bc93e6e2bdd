"""The original's side of the benchmarks, in an environment of its own (scvae 2.1.4).

    PYTHON benchmarks/peer_original.py CELLS.npz --model gmvae --epochs 4

Started by `speed.py`; prints one JSON object with the seconds of a step of 128 cells in
each epoch but the first, of training alone. Python 3.7.
"""

import argparse
import contextlib
import io
import json
import platform
import re
import tempfile
import warnings

warnings.simplefilter("ignore")

import numpy  # noqa: E402
import scipy.sparse  # noqa: E402
import scvae  # noqa: E402
import tensorflow  # noqa: E402
from scvae.data import DataSet  # noqa: E402
from scvae.models import (  # noqa: E402
    GaussianMixtureVariationalAutoencoder,
    VariationalAutoencoder,
)

BATCH_SIZE = 128
UNITS = {"ms": 1e-3, "s": 1.0}


def epochs_of(x, model_name, n_clusters, n_epochs):
    """Seconds of each epoch, as it reports them (three digits)."""
    options = {
        "feature_size": x.shape[1],
        "latent_size": 10,
        "hidden_sizes": [128],
        "reconstruction_distribution": "negative binomial",
    }
    with tempfile.TemporaryDirectory() as folder:
        cells = DataSet(
            "cells",
            title="cells",
            specifications={"example type": "counts"},
            values=x,
            example_names=numpy.arange(x.shape[0]).astype(str),
            feature_names=numpy.arange(x.shape[1]).astype(str),
            directory=folder,
        )
        if model_name == "vae":
            model = VariationalAutoencoder(log_directory=folder, **options)
        else:
            model = GaussianMixtureVariationalAutoencoder(
                number_of_latent_clusters=n_clusters, log_directory=folder, **options
            )
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            model.train(
                cells,
                number_of_epochs=n_epochs,
                minibatch_size=BATCH_SIZE,
                learning_rate=1e-4,
                analyses_directory=folder,
            )
    found = re.findall(r"^Epoch \d+ \(([\d.]+) (ms|s)\):", said.getvalue(), re.M)
    return [float(value) * UNITS[unit] for value, unit in found]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--model", choices=["vae", "gmvae"], required=True)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    cells = scipy.sparse.load_npz(arguments.file)
    taken = epochs_of(cells, arguments.model, arguments.clusters, arguments.epochs)
    n_steps = -(-cells.shape[0] // BATCH_SIZE)
    versions = {
        "scvae": scvae.__version__,
        "tensorflow": tensorflow.__version__,
        "python": platform.python_version(),
    }
    print(
        json.dumps({"seconds": [t / n_steps for t in taken[1:]], "versions": versions})
    )
