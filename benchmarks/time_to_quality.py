"""Time from the start of a process to a saved run as good as SCVI's.

    python benchmarks/time_to_quality.py --data ../shared/data --scvi SCVI_PYTHON \
        --out benchmarks/time_to_quality.json

SCVI trains at its defaults on the same training and validation cells, negative
binomial, 10 latent dimensions; its goal is its own validation ELBO at the end. Ours is
the command `scvae-jax train` with a higher rate and one hidden layer, the same for all
sets, and few epochs that reach the goal (how many, validation cells chose), by the
clock of the shell: importing, reading, compiling and saving included, once with an
empty cache of compiled programs and once more. SCVI's time runs from the start of its
imports to the end of its training; what it takes to look at the validation cells, which
tells when it crosses its goal, is taken off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import answer_of, machine

# 27 to 162 steps
SETS = {
    "pbmc4k": {"epochs": 6, "batch_key": None},
    "kang_batches": {"epochs": 7, "batch_key": "batch"},
    "worm_neurons": {"epochs": 1, "batch_key": None},
}
OPTIONS = ["--split-key", "split", "--likelihood", "negative_binomial"]
OPTIONS += ["--latent-size", "10", "--learning-rate", "0.01"]
# one layer, as SCVI has
OPTIONS += ["--hidden-sizes", "128"]


def ours(path: Path, epochs: int, batch_key: str | None) -> dict:
    options = [*OPTIONS, "--epochs", str(epochs)]
    options += ["--batch-key", batch_key] if batch_key else []
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for name in ("first", "second"):
            command = [sys.executable, "-m", "scvae_jax.cli", "train", str(path)]
            command += ["--out", f"{folder}/{name}", *options, "--json"]
            start = time.perf_counter()
            done = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, env=environment
            )
            seconds = time.perf_counter() - start
            figures = json.loads(done.stdout)
            kept = ("validation_elbo", "steps", "seconds", "compile_seconds")
            runs.append(
                {"run": name, "process_seconds": round(seconds, 2)}
                | {key: figures[key] for key in kept}
            )
    return {"options": " ".join(options), "runs": runs}


def peer(python: str, path: Path, batch_key: str | None) -> dict:
    command = [python, str(Path(__file__).with_name("peer_scvi.py")), "quality"]
    command += [str(path), "--likelihood", "nb"]
    command += ["--batch-key", batch_key] if batch_key else []
    figures = answer_of(*command)
    goal = figures["validation_elbo"]
    epochs = zip(figures["epoch_ended"], figures["epoch_validation_elbo"], strict=False)
    crossed = next((ended for ended, elbo in epochs if elbo >= goal), None)
    return {
        "process_seconds": round(figures["seconds"], 2),
        "validation_elbo": round(goal, 2),
        "seconds_to_first_crossing": crossed and round(crossed, 2),
        "epochs": len(figures["epoch_ended"]),
        "versions": figures["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scvi", required=True, help="a Python that has scvi-tools")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in SETS:
        path = arguments.data / f"{name}.h5ad"
        row = {"set": name, "scvae_jax": ours(path, **SETS[name])}
        row["scvi"] = peer(arguments.scvi, path, SETS[name]["batch_key"])
        for run in row["scvae_jax"]["runs"]:
            theirs = row["scvi"]
            run["gain"] = round(run["validation_elbo"] - theirs["validation_elbo"], 2)
            for key in ("process_seconds", "seconds_to_first_crossing"):
                if theirs[key]:
                    ratio = theirs[key] / run["process_seconds"]
                    run[f"speedup_by_{key}"] = round(ratio, 1)
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
    result = {"rows": rows} | machine()
    if arguments.out:
        # all or none: what is there is of one run
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
