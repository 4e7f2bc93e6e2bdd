"""Time of several fits in one program against one fit after the other.

    python benchmarks/many_fits.py --out benchmarks/many_fits.json

The same seeds, the same epochs, the same cells. `seconds` is of training alone,
`total_seconds` with compilation and all else; the fits take turns, so that drift hits
both ways alike, and medians are reported.
"""

import statistics
import time
from collections.abc import Callable

from common import write

import scvae_jax as sv

N_SEEDS = 4
EPOCHS = 40


def timed(function: Callable) -> tuple[float, float]:
    start = time.perf_counter()
    fitted = function()
    total = time.perf_counter() - start
    return fitted.summary["seconds"], total


def measure(model: str, n_obs: int, n_genes: int, repeats: int) -> dict:
    adata = sv.datasets.simulate(n_obs, n_genes, n_types=5, depth=0.5 * n_genes, seed=0)
    config = sv.ModelConfig(model=model, n_clusters=5)

    def train(seed: int) -> sv.TrainConfig:
        return sv.TrainConfig(epochs=EPOCHS, patience=EPOCHS, seed=seed)

    def together() -> sv.Fitted:
        seeds = tuple(range(N_SEEDS))
        return sv.fit_many(adata, config, train(0), seeds=seeds, progress=False)

    def alone(seed: int) -> sv.Fitted:
        return sv.fit(adata, config, train(seed), progress=False)

    one_by_one, at_once = [], []
    for _ in range(repeats):
        at_once.append(timed(together))
        fits = [timed(lambda seed=seed: alone(seed)) for seed in range(N_SEEDS)]
        one_by_one.append(tuple(map(sum, zip(*fits, strict=True))))
    rows = []
    for i, figure in enumerate(("seconds", "total_seconds")):
        separate, joint = (
            statistics.median(times[i] for times in runs)
            for runs in (one_by_one, at_once)
        )
        rows.append(
            {
                "figure": figure,
                "one_by_one": round(separate, 2),
                "in_one_program": round(joint, 2),
                "ratio": round(joint / separate, 3),
            }
        )
    return {
        "model": model,
        "n_obs": n_obs,
        "n_genes": n_genes,
        "n_seeds": N_SEEDS,
        "epochs": EPOCHS,
        "steps": rows,
    }


def rows(repeats: int) -> list[dict]:
    return [
        measure(model, n_obs, n_genes, repeats)
        for model in ("vae", "gmvae")
        for n_obs, n_genes in ((1000, 200), (2000, 2000))
    ]


if __name__ == "__main__":
    write(
        __doc__.splitlines()[0],
        rows,
        "{model}, {n_obs} cells, {n_genes} genes, {n_seeds} seeds, {epochs} epochs",
        repeats=3,
    )
