"""Importance-weighted bounds of 500 and of 5,000 decodes: have they converged?

    taskset -c 0 python experiments/decodes.py --data ../shared/data \
        --scvi SCVI_PYTHON --work peers --out experiments/decodes.json

The first seed of rows of `against_peers.py`, whose folder it reads and adds to: the
same fits made once more, on both sides, and their test cells scored by ten times as
many samples. A fit that `--work` has is not made again; half an hour on one core.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import against_peers
import common
import numpy as np

from scvae_jax.checkpoints import versions

ROWS = (
    ("kang_batches", "negative_binomial"),
    ("kang_batches", "zero_inflated_negative_binomial"),
    ("kang_batches", "poisson"),
    ("pbmc4k", "negative_binomial"),
)
SEED = 0
MORE = 10 * against_peers.N_SAMPLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", required=True, help="a Python that has scvi-tools")
    parser.add_argument("--work", type=Path, required=True, help="of against_peers.py")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows, known = [], versions()
    for tool, (name, likelihood) in itertools.product(against_peers.TOOLS, ROWS):
        file = against_peers.file_of(arguments.work, name, likelihood, tool, SEED)
        if not file.exists():
            parser.error(f"found no {file}, run against_peers.py first")
    for name, likelihood in ROWS:
        path, batch_key = arguments.data / f"{name}.h5ad", against_peers.SETS[name]
        given = (path, likelihood, SEED, batch_key)
        bounds = {}
        for tool in against_peers.TOOLS:
            place = (name, likelihood, tool, SEED)
            before = against_peers.file_of(arguments.work, *place)
            file = before.with_name(f"{before.stem}.{MORE}.npz")
            if not file.exists():
                made = (
                    against_peers.ours(*given, n_samples=MORE)
                    if tool == "scvae_jax"
                    else against_peers.peer(arguments.scvi, *given, n_samples=MORE)
                )
                against_peers.save(file, made)
            more = dict(np.load(file))
            known |= json.loads(str(more.get("versions", "{}")))
            fewer = np.load(before)
            if not np.allclose(fewer["latent"], more["latent"], atol=1e-3):
                parser.error(f"found another fit in {before} than in {file}")
            bounds[tool] = {
                "elbo": float(more["elbo"].mean(dtype=np.float64)),
                str(against_peers.N_SAMPLES): float(
                    fewer["marginal"].mean(dtype=np.float64)
                ),
                str(MORE): float(more["marginal"].mean(dtype=np.float64)),
            }
        row = {"set": name, "likelihood": likelihood, "seed": SEED, **bounds}
        row["difference"] = {
            n: bounds["scvae_jax"][n] - bounds["scvi"][n]
            for n in (str(against_peers.N_SAMPLES), str(MORE))
        }
        rows.append(row)
        print(row, flush=True)
    result = {"rows": rows, "commit": common.commit(), "versions": known}
    result |= {"cores": len(os.sched_getaffinity(0))}
    common.write(arguments.out, result)


if __name__ == "__main__":
    main()
