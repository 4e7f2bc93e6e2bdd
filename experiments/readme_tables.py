"""The README's tables of measured figures, from the JSON files that hold them.

    python experiments/readme_tables.py

Writes the rows of each table anew, below the heads that stand in the README; a test
says where they differ.
"""

import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPES = {
    "pbmc4k": "4,271 × 2,000",
    "kang_batches": "1,556 × 1,267",
    "worm_neurons": "4,186 × 13,488",
}
CELLS = {
    "hashed_doublets": "four cell lines, told apart by antibodies",
    "simulated, depth 200": "eight simulated types, 200 counts a cell",
    "simulated, depth 400": "the same, 400 counts",
    "simulated, depth 800": "the same, 800 counts",
    "pbmc10k_citeseq, protein gates": "five kinds of blood cells, told by proteins",
    "pbmc4k": "eight types of blood cells",
    "kang_batches": "blood of two donors, half of it stimulated",
    "kang_batches, batch given": "stimulated blood, donor and stimulation as the batch",
    "pbmc68k_reduced": "ten types of blood cells, 765 genes",
    "simulated, 5 types": "five simulated types, 300 counts",
    "simulated, 12 types": "twelve simulated types, 600 counts",
    "simulated, 7 types": "seven simulated types, 350 counts",
    "simulated, 9 types": "nine simulated types, 450 counts",
    "digits": "handwritten digits, 64 pixels",
    "paul15": "nineteen clusters of myeloid progenitors",
    "worm_neurons": "ten types of a worm's neurons, all genes",
}

# of clusters_against_peers.json
TOOLS = ("own", "vae", "scvi", "components")
# of number_of_clusters.json
RULES = ("recommended", "best_of_stable", "most_stable", "within_an_error")
THINNED = ("half", "quarter")

Rows = list[list[str]]


def over_seeds(figures: dict) -> str:
    """Mean and, of two seeds or more, standard deviation."""
    sd = figures["sd"]
    return f"{figures['mean']:.3f}" + ("" if sd is None else f" ± {sd:.3f}")


def held_out(result: dict) -> Rows:
    """Bounds of test cells by likelihood."""
    return [
        [
            SHAPES[row["set"]],
            f"`{row['likelihood']}`",
            f"{row['test']['elbo']:.2f}",
            f"{row['test']['importance_weighted_bound']:.2f}",
        ]
        for row in result["rows"]
    ]


def against_peers(result: dict) -> Rows:
    """Bounds of test cells beside SCVI's."""
    rows = []
    for row in result["rows"]:
        difference = f"{row['difference']:+.2f}"
        if row["interval"]:
            difference += " ({:+.2f} to {:+.2f})".format(*row["interval"])
        bounds = [f"{row['bounds'][tool]:.2f}" for tool in ("scvae_jax", "scvi")]
        head = [row["set"], f"`{row['likelihood']}`", str(len(row["seeds"]))]
        last = [(row["share_explained"], ".2f"), (row["times_faster"], ".1f")]
        last += [(row["times_faster_programs_kept"], ".1f")]
        last = ["–" if value is None else f"{value:{form}}" for value, form in last]
        rows.append([*head, *bounds, difference, *last])
    return rows


def paper(result: dict) -> Rows:
    """The recipes of the paper beside the defaults."""
    return [
        [
            row["recipe"],
            row["model"],
            f"`{row['likelihood']}`",
            f"{row['elbo']:.2f}",
            f"{row['importance_weighted_bound']:.2f}",
            f"{row['ari']:.2f}",
            f"{row['epochs']}",
        ]
        for row in result["rows"]
    ]


def own_clusters(result: dict) -> Rows:
    """Clusters of the mixture with the shared posterior, and bounds."""
    rows = []
    for row in result["rows"]:
        found, vae = row["gmvae, shared"], row["kmeans_vae"]
        end = found["end"]
        rows.append(
            [
                CELLS[row["set"]],
                over_seeds(end["ari"]),
                f"{end['ari']['min']:.3f}",
                f"{vae['ari']['mean']:.3f}",
                f"{row['kmeans_pca']['ari']['mean']:.3f}",
                f"{found['stability_median_ari']:.2f}",
                f"{end['held_out_elbo']['mean']:.2f}",
                f"{vae['held_out_elbo']['mean']:.2f}",
            ]
        )
    return rows


def clusters_against_peers(result: dict) -> Rows:
    """Agreement with the labels beside k-means and Leiden."""
    others = TOOLS[1:]
    columns = [(tool, name) for tool in others for name in ("ari", "leiden")]
    columns += [(tool, "leiden_best") for tool in others]
    return [
        [
            CELLS[row["set"]],
            str(len(row["seeds"])),
            over_seeds(row["own"]["ari"]),
            *(over_seeds(row[tool][name]) for tool, name in columns),
        ]
        for row in result["rows"]
    ]


def depth(result: dict) -> Rows:
    """What thinned cells keep: of the mixture, a VAE, SCVI and components."""
    kept = [f"{w}_kept_{n}" for w in ("cluster", "neighbours") for n in THINNED]
    return [
        [
            CELLS[row["set"]],
            *(", ".join(f"{row[t][name]['mean']:.2f}" for t in TOOLS) for name in kept),
        ]
        for row in result["rows"]
    ]


def number_of_clusters(result: dict) -> Rows:
    """Clusters where their number is not known."""

    def said(row: dict, rule: str) -> str:
        number = row[rule]
        (used,) = (
            tried["clusters_used"]
            for tried in row["sweep"]
            if tried["n_clusters"] == number
        )
        in_use = f" ({used:.0f} in use)" if round(used) < number else ""
        # a rule made after the run may take a number that was not scored
        ari = row["ari"].get(str(number))
        return f"{number}{in_use}: " + (f"{ari['mean']:.3f}" if ari else "–")

    return [
        [
            CELLS[row["set"]],
            str(row["types"]),
            *(said(row, rule) for rule in RULES),
            f"{row['leiden_best']:.3f}",
        ]
        for row in result["rows"]
    ]


def floor(result: dict) -> Rows:
    """Steps beside the floor of their arithmetic."""
    return [
        [
            f"{row['n_genes']:,}",
            f"`{row['likelihood']}`",
            f"{row['milliseconds']:.2f}",
            f"{row['floor_milliseconds']:.2f}",
            f"{row['ratio']:.2f}",
        ]
        for row in result["floor"]["steps"]
    ]


def speed(result: dict) -> Rows:
    """Cells a second beside the peers."""
    rows = []
    for row in result["peers"]:
        keys = [
            f"{side}_cells_per_second"
            for side in ("scvae_jax", "plain", "scvi", "jaxscvi", "floor")
        ]
        sides = [f"{row[key]:,}" if key in row else "–" for key in keys]
        head = [f"{row['n_genes']:,}", f"`{row['likelihood']}`", row["task"]]
        times = f"{row['times_scvi']:.2f}"
        if "plain_times_scvi" in row:
            times += f" ({row['plain_times_scvi']:.2f})"
        rows.append([*head, *sides, times])
    return rows


def original(result: dict) -> Rows:
    """Steps beside the original's."""
    return [
        [
            row["model"],
            f"`{row['dispersion']}`",
            f"{row['milliseconds']:.2f}",
            f"{row['original_milliseconds']:.1f}",
            f"{row['times_original']:.1f}",
        ]
        for row in result["original"]
    ]


def on_gpu(result: dict) -> Rows:
    """Steps on a GPU, beside their floor and SCVI there."""
    measured = result["accelerator"]
    sizes = ("n_genes", "batch_size")
    times_scvi = {
        (*(peer[size] for size in sizes), name.removeprefix("times_scvi_")): times
        for peer in measured["peers"]
        for name, times in peer.items()
        if name.startswith("times_scvi_")
    }
    rows = []
    for step in measured["steps"]:
        case = (step["n_genes"], step["batch_size"], step["precision"])
        rows.append(
            [
                f"{step['n_genes']:,}",
                f"{step['batch_size']:,}",
                f"`{step['precision']}`",
                f"{step['milliseconds']:.2f}",
                f"{step['cells_per_second']:,}",
                f"{step['ratio_to_floor']:.1f}",
                f"{step['teraflops']:.1f}",
                f"{times_scvi[case]:.0f}" if case in times_scvi else "–",
            ]
        )
    return rows


def time_to_quality(result: dict) -> Rows:
    """Seconds to a saved run that is better than SCVI's in the end."""
    rows = []
    for row in result["rows"]:
        theirs, (first, second) = row["scvi"], row["scvae_jax"]["runs"]
        faster = [
            f"{first[name]:.1f}, {second[name]:.1f}"
            for name in (
                "speedup_by_process_seconds",
                "speedup_by_seconds_to_first_crossing",
            )
        ]
        rows.append(
            [
                row["set"],
                f"{theirs['validation_elbo']:.2f}",
                f"{theirs['process_seconds']:.0f}, "
                f"{theirs['seconds_to_first_crossing']:.0f}",
                f"{first['validation_elbo']:.2f}",
                f"{first['process_seconds']:.1f}",
                f"{second['process_seconds']:.1f}",
                *faster,
            ]
        )
    return rows


# what the head of a table begins with -> its rows, and the file they come from
TABLES: dict[str, tuple[Callable[[dict], Rows], str]] = {
    "| cells × genes |": (held_out, "experiments/heldout.json"),
    "| set | likelihood | seeds |": (against_peers, "experiments/against_peers.json"),
    "| recipe | model | likelihood |": (paper, "experiments/paper.json"),
    "| cells | own clusters, ARI |": (own_clusters, "experiments/clusters.json"),
    "| cells | seeds | own clusters |": (
        clusters_against_peers,
        "experiments/clusters_against_peers.json",
    ),
    "| cells | cluster, a half |": (depth, "experiments/clusters_against_peers.json"),
    "| cells | types | recommended |": (
        number_of_clusters,
        "experiments/number_of_clusters.json",
    ),
    "| genes | likelihood | task |": (speed, "benchmarks/speed.json"),
    "| genes | likelihood | ms a step |": (floor, "benchmarks/speed.json"),
    "| model | dispersion | ms a step |": (original, "benchmarks/speed.json"),
    "| genes | cells a batch |": (on_gpu, "benchmarks/speed.json"),
    "| set | SCVI's ELBO |": (time_to_quality, "benchmarks/time_to_quality.json"),
}


def lines_of(rows: Rows) -> list[str]:
    """Rows in Markdown, with a true minus."""
    return ["| " + " | ".join(row).replace("-", "−") + " |" for row in rows]


def rewritten(readme: str) -> str:
    """The README with the rows of each table as the JSON files have them.

    Args:
        readme: its text.

    Returns:
        The text, the same where nothing has changed.

    Raises:
        ValueError: for a table whose head is not there, or there twice, or has more or
            fewer columns than its rows.
    """
    for head, (rows, path) in TABLES.items():
        n_found = readme.count(f"\n{head}")
        if n_found != 1:
            raise ValueError(f"found {n_found} tables headed {head!r}, expected one")
        before, rest = readme.split(f"\n{head}")
        table, after = rest.split("\n\n", 1)
        top = table.split("\n")[:2]
        result = json.loads((ROOT / path).read_text(encoding="utf-8"))
        lines = lines_of(rows(result))
        columns = (head + top[0]).count("|")
        if any(line.count("|") != columns for line in lines):
            raise ValueError(f"found rows of other columns than the table of {head!r}")
        body = "\n".join([*top, *lines])
        readme = f"{before}\n{head}{body}\n\n{after}"
    return readme


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
