"""Clusters of the original's GMVAE, on the cells of `clusters_against_peers.py`.

    taskset -c 0 python experiments/clusters_of_original.py --data ../shared/data \
        --original SCVAE_PYTHON --out experiments/clusters_of_original.json

The paper's recipe for blood cells (`peer_original.py`), 10 latents, and as many
clusters as there are labels; scored as own clusters are there. A fit that `--out` has
already is not made again; one takes from ten minutes to an hour on a core.
"""

import argparse
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path

import clusters
import clusters_against_peers
import common
import numpy as np
import scipy.sparse

from scvae_jax.clusters import clusters_used


def of_original(python: str, cells, k: int, seed: int) -> tuple[dict, dict]:
    """Latents and clusters of all cells, full and thinned; versions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layer in ("latent", *clusters_against_peers.THINNED):
            x = cells.X if layer == "latent" else cells.layers[layer]
            scipy.sparse.save_npz(folder / f"{layer}.npz", scipy.sparse.csr_matrix(x))
        np.save(folder / "split.npy", cells.obs["split"].to_numpy().astype(str))
        command = [python, str(Path(__file__).with_name("peer_original.py")), name]
        command += ["--clusters", str(k), "--seed", str(seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        known = json.loads(done.stdout.splitlines()[-1])
        return dict(np.load(folder / "row.npz")), known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--original", required=True, help="a Python that has scvae")
    parser.add_argument("--out", type=Path, required=True)
    # its correction of batches is left out
    sets = [name for name in clusters_against_peers.SETS if "batch" not in name]
    parser.add_argument("--only", nargs="*", default=sets, choices=sets)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    arguments = parser.parse_args()
    for seed, name in itertools.product(arguments.seeds, arguments.only):
        done = {(row["set"], row["seed"]) for row in common.written(arguments.out)}
        if (name, seed) in done:
            continue
        read_set, k, _, _ = clusters.SETS[name]
        adata, labels = read_set(arguments.data)
        cells = clusters_against_peers.prepared(adata)
        held_out = np.flatnonzero((cells.obs["split"] != "train").to_numpy())
        started = time.perf_counter()
        fit, known = of_original(arguments.original, cells, k, seed)
        row = {"set": name, "seed": seed, "k": k, "n_obs": cells.n_obs}
        row |= clusters_against_peers.figures(fit, labels, held_out)
        row["clusters_used"] = clusters_used(fit["latent_codes"])
        row["seconds"] = round(time.perf_counter() - started, 1)
        print(row, flush=True)
        common.add_row(
            arguments.out,
            row,
            lambda row: (sets.index(row["set"]), row["seed"]),
            versions=known,
        )


if __name__ == "__main__":
    main()
