r"""Speed beside the peers and the floor, in one run: one JSON and one picture.

    python benchmarks/speed.py --scvi SCVI_PYTHON --original SCVAE_PYTHON \
        --data ../shared/data --out benchmarks/speed.json

Sections: `floor` (a step against its matrix products and the optimiser's pass),
`peers` (training and encoding of SCVI and JaxSCVI), `original` (a step of the
original's VAE and GMVAE), `growth` (a step by part and by size, memory), `slots` (of
batches, those of real cells among them) and `accelerator` (large batches and 28,000
genes, beside SCVI on the same GPU; left out on a CPU unless it is asked for). Those
asked for replace what the JSON has of them. Peers have environments of their own;
`peers` and `original` are left out without theirs, `slots` without --data, and
`accelerator` is then of ours alone.

Everywhere: simulated counts, a tenth of them non-zero; one hidden layer of 128, latent
10, batch 128, dispersion per gene, library means; compilation apart; medians. With the
peers each side keeps the dropout and the normalisation of its defaults, and ours its
thinning (or, "plain", has neither it nor dropout); theirs train by their own loop from
an AnnData object and encode 512 cells at a time, ours by one program from cells on the
device, in one order, and encode 128.
Elsewhere ours hides and drops nothing, as the original does not. The original decodes
a dispersion for each gene and cell: ours is measured with that as well. Its time is
that of its training loop. Nothing else should run on the machine. Half an hour on two
cores with all peers.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import accelerator
import anndata
import floor
import growth
import jax
import numpy as np
import scipy.sparse
from common import N_STEPS, answer_of, machine, seconds

from scvae_jax import placing, selection
from scvae_jax.building import from_config, named_likelihood
from scvae_jax.config import DataConfig, ModelConfig
from scvae_jax.counts import prepare

SECTIONS = ("floor", "peers", "original", "growth", "slots", "accelerator")
SIZES = {2000: 10_000, 20_000: 4_000}
# ours -> SCVI's name
LIKELIHOODS = {
    "poisson": "poisson",
    "negative_binomial": "nb",
    "zero_inflated_negative_binomial": "zinb",
}
K = 8


def peers(python: str, repeats: int) -> list[dict]:
    """Cells a second of training and of encoding, ours before and after theirs."""
    rows = []
    for n_genes, n_obs in SIZES.items():
        adata = anndata.AnnData(floor.counts_of(n_obs, n_genes))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            adata.write_h5ad(path)
            for likelihood in LIKELIHOODS:
                rows += beside_scvi(adata, path, likelihood, python, repeats)
    return rows


def beside_scvi(
    adata: anndata.AnnData,
    path: Path,
    likelihood: str,
    python: str,
    repeats: int,
) -> list[dict]:
    theirs = LIKELIHOODS[likelihood]
    mine = [ours(adata, likelihood, repeats)]
    sides = {"scvi": scvi(python, path, theirs, repeats)}
    if theirs != "zinb":
        sides["jaxscvi"] = scvi(python, path, theirs, repeats, "--jax")
    # once more, as the machine may have drifted
    mine.append(ours(adata, likelihood, repeats))
    sides["scvae_jax"] = {
        name: statistics.mean(times[name] for times in mine) for name in mine[0]
    }
    rows = []
    for task in ("train", "encode"):
        row = {"n_genes": adata.n_vars, "n_obs": adata.n_obs, "likelihood": likelihood}
        row["task"] = task
        row |= {
            f"{side}_cells_per_second": round(adata.n_obs / taken[task])
            for side, taken in sides.items()
        }
        if task == "train":
            of_step = sides["scvae_jax"]["floor"] / (N_STEPS * floor.BATCH_SIZE)
            row["floor_cells_per_second"] = round(1 / of_step)
            plain = sides["scvae_jax"]["train_plain"]
            row["plain_cells_per_second"] = round(adata.n_obs / plain)
            row["plain_times_scvi"] = round(sides["scvi"]["train"] / plain, 2)
        for side, taken in sides.items():
            if side != "scvae_jax":
                ratio = taken[task] / sides["scvae_jax"][task]
                row[f"times_{side}"] = round(ratio, 2)
                row["peer_versions"] = taken["versions"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def ours(adata: anndata.AnnData, likelihood: str, repeats: int) -> dict[str, float]:
    """Seconds of an epoch of training, of encoding all cells, and of N_STEPS floors.

    Training is with the default thinning and dropout, and "plain", with neither.
    """
    config = ModelConfig(likelihood=likelihood, hidden_sizes=(128,))
    model = from_config(config, named_likelihood(config), n_genes=adata.n_vars)
    cells = selection.cells_to_device(prepare(adata, DataConfig()), slice(None))
    params = jax.jit(model.init)(jax.random.key(0))
    train = floor.ours(config, adata.n_vars, cells)
    plain = floor.ours(floor.plain_config(likelihood=likelihood), adata.n_vars, cells)

    def encode() -> np.ndarray:
        return np.asarray(placing.encode_cells(model, params, cells)[0])

    least = floor.floor(adata.n_vars, floor.LIKELIHOODS[likelihood], 128)
    programs = {"train": train, "train_plain": plain, "encode": encode, "floor": least}
    return seconds(programs, repeats)


def scvi(python: str, path: Path, likelihood: str, repeats: int, *more: str) -> dict:
    """The same of SCVI, in a process of its own."""
    script = str(Path(__file__).with_name("peer_scvi.py"))
    options = ["--likelihood", likelihood, "--epochs", str(repeats), *more]
    result = answer_of(python, script, "speed", str(path), *options)
    return result | {n: statistics.median(result[n]) for n in ("train", "encode")}


def original(python: str, repeats: int) -> list[dict]:
    """Milliseconds of a step of the original's VAE and GMVAE, and of ours."""
    n_genes = 2000
    models = {"vae": {}}
    for posterior in ("conditional", "shared"):
        options = {"model": "gmvae", "n_clusters": K, "posterior": posterior}
        models[f"gmvae, {posterior}"] = options
    cells = floor.cells_of(n_genes)
    programs = {}
    for dispersion, (name, options) in itertools.product(
        ("gene_cell", "gene"), models.items()
    ):
        of_likelihood = {"likelihood_options": {"dispersion": dispersion}}
        config = floor.plain_config(**options, **of_likelihood)
        programs[name, dispersion] = floor.ours(config, n_genes, cells)
    times = seconds(programs, repeats)
    theirs = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.npz"
        scipy.sparse.save_npz(path, floor.counts_of(20 * 128, n_genes))
        script = str(Path(__file__).with_name("peer_original.py"))
        for model in ("vae", "gmvae"):
            options = ["--model", model, "--clusters", str(K), "--epochs", "6"]
            answer = answer_of(python, script, str(path), *options)
            theirs[model] = statistics.median(answer["seconds"])
    rows = []
    for (name, dispersion), taken in times.items():
        taken /= N_STEPS
        row = {"model": name, "n_genes": n_genes, "n_clusters": K, "likelihood": "nb"}
        row["dispersion"] = dispersion
        row["milliseconds"] = round(1e3 * taken, 2)
        other = theirs[name.split(",")[0]]
        row["original_milliseconds"] = round(1e3 * other, 1)
        row["times_original"] = round(other / taken, 1)
        row["peer_versions"] = answer["versions"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def two_and_five(x: float, _: int) -> str:
    """Labels of ticks between powers of ten, where there is room for some."""
    return f"{x:,.6g}" if f"{x:e}"[0] in "25" else ""


def draw(result: dict, path: Path) -> None:
    """Cells a second of all sides, and how a step grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    sides = {
        "scvae_jax": "ours",
        "scvi": "SCVI",
        "jaxscvi": "JaxSCVI",
        "floor": "floor",
    }
    short = {"poisson": "Poisson", "negative_binomial": "NB"}
    for axis, task in zip(axes[0], ("train", "encode"), strict=True):
        rows = [row for row in result.get("peers", []) if row["task"] == task]
        for i, (side, label) in enumerate(sides.items()):
            key = f"{side}_cells_per_second"
            at = [j + 0.2 * i for j, row in enumerate(rows) if key in row]
            if at:
                height = [row[key] for row in rows if key in row]
                axis.bar(at, height, 0.19, label=label)
        names = [
            f"{short.get(row['likelihood'], 'ZINB')}\n{row['n_genes']:,}"
            for row in rows
        ]
        axis.set_xticks([j + 0.3 for j in range(len(rows))], names, fontsize=8)
        axis.set(yscale="log", ylabel="cells a second", title=f"{task}, by genes")
        if rows:
            axis.legend(frameon=False, fontsize=8)
    rows = result.get("growth", {}).get("growth", [])
    for axis, wanted in zip(
        axes[1],
        (("n_genes", "batch_size"), ("n_samples", "n_clusters")),
        strict=True,
    ):
        for name in dict.fromkeys(row["axis"] for row in rows):
            mine = [row for row in rows if row["axis"] == name]
            if name.startswith(wanted) and "milliseconds" in mine[0]:
                x = [row["value"] for row in mine]
                y = [row["milliseconds"] for row in mine]
                axis.plot(x, y, marker="o", label=name.replace("_", " "))
        axis.set(xscale="log", yscale="log", xlabel="size", ylabel="ms a step")
        if rows:
            axis.legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.yaxis.set_major_formatter("{x:,.6g}")
        axis.yaxis.set_minor_formatter(two_and_five)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scvi", help="a Python that has scvi-tools and jax")
    parser.add_argument("--original", help="a Python that has scvae")
    parser.add_argument("--data", type=Path, help="a folder of .h5ad files, for slots")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    repeats = arguments.repeats
    measures = {
        "floor": lambda: {
            "steps": floor.measure(2000, repeats) + floor.measure(20_000, repeats),
            "copy_gigabytes_per_second": floor.bandwidth(repeats),
        },
        "peers": lambda: peers(arguments.scvi, repeats),
        "original": lambda: original(arguments.original, repeats),
        "growth": lambda: growth.measure(repeats),
        "slots": lambda: growth.all_slots(arguments.data),
        "accelerator": lambda: accelerator.measure(arguments.scvi, repeats),
    }
    needs = {"peers": "scvi", "original": "original", "slots": "data"}
    absent = {n: need for n, need in needs.items() if not getattr(arguments, need)}
    for name in arguments.sections or ():
        if name in absent:
            # without it rows that are there would be lost
            parser.error(f"found no --{absent[name]} for the section {name}, give it")
    # figures of a CPU stay where the device is another
    on_cpu = jax.default_backend() == "cpu"
    here = [n for n in SECTIONS if on_cpu != (n == "accelerator") and n not in absent]
    sections = arguments.sections or here
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in sections:
        result[name] = measures[name]()
        # a section may be of another day or machine than the others
        of_section = {name: {"repeats": repeats} | machine()}
        result["measured"] = result.get("measured", {}) | of_section
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
