r"""How fast dispersions should be learned: validation bounds, paired by seed.

    python experiments/free_rate.py --data ../shared/data \
        --out experiments/free_rate.json

A VAE with the negative binomial at its defaults, its log dispersions at the rate of the
weights and at 20 times it. Validation cells alone, 100 samples. The gain is 29 nats on
worm_neurons, whose counts are sparse and bursty, and little elsewhere. A quarter of an
hour on two cores.
"""

import argparse
import json
import platform
from pathlib import Path

import anndata
import numpy as np

import scvae_jax as sv
from scvae_jax.checkpoints import versions

SETS = {
    "kang_batches": {"batch_key": "batch"},
    "pbmc4k": {},
    "paul15": {},
    "worm_neurons": {},
}
RATES = (1.0, 20.0)
SEEDS = (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for name, options in SETS.items():
        adata = anndata.read_h5ad(arguments.data / f"{name}.h5ad")
        fitted = sv.fit_many(
            adata,
            seeds=SEEDS,
            settings={"free_rate": RATES},
            split_key="split",
            **options,
        )
        for fit in (fitted, *fitted.alternatives):
            found = sv.evaluate(adata, fit, split="validation", n_samples=100)
            rows.append(
                {
                    "set": name,
                    "free_rate": fit.train_config.free_rate,
                    "seed": fit.train_config.seed,
                    "elbo": found["elbo"],
                    "importance_weighted_bound": found["importance_weighted_bound"],
                    "best_epoch": fit.summary["best_epoch"],
                    "epochs": fit.summary["epochs"],
                }
            )
        mine = [row for row in rows if row["set"] == name]
        for rate in RATES:
            bounds = [row["elbo"] for row in mine if row["free_rate"] == rate]
            print(name, rate, np.round(np.mean(bounds), 2), flush=True)
        result = {"rows": rows, "versions": versions()}
        result["versions"] |= {"python": platform.python_version()}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
