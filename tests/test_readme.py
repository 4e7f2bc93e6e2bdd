"""The README's examples run as they stand."""

import json
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) == 7


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    if "fitted" in code:
        assert names["fitted"].history
    if "sv.compare" in code:
        assert names["found"].ranks["rank"].tolist() == [1, 2]
        assert names["found"].ranks["low"].notna().tolist() == [False, True]
        assert (tmp_path / "comparison" / "differences.png").exists()
    if "gmvae" in code:
        found = names["adata"].obs
        assert {"scvae_cluster", "scvae_cluster_confidence"} <= set(found)
    if "bound" in names:
        assert names["bound"].shape == (64,)
    if "calibrate" in code:
        assert "scvae_family" in names["adata"].var
        assert (tmp_path / "calibration.png").stat().st_size > 10_000
    if "slopes" in names:
        assert names["nats"].shape == names["slopes"]["zero_logit"].shape


def test_own_likelihood_takes_fewer_than_twenty_lines():
    (code,) = (block for block in BLOCKS if "geometric" in block)
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    # nothing but the likelihood differs from an ordinary fit, save and load
    assert "fitted.save" in code and "sv.load" in code


def test_every_likelihood_is_in_the_table():
    from scvae_jax.likelihoods import FACTORIES

    for name in FACTORIES:
        assert f"`{name}`" in README


def test_the_two_commands_stand_there():
    assert "\npip install '.[analysis]' && scvae-jax demo\n" in README
    assert "\npip install '.[test]' && pytest\n" in README


def test_measured_figures_are_those_of_the_json():
    """Every row of the table is in the JSON, to two digits, and the other way round."""
    path = Path(__file__).parents[1] / "experiments" / "heldout.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    shapes = {
        "pbmc4k": "4,271 × 2,000",
        "kang_batches": "1,556 × 1,267",
        "worm_neurons": "4,186 × 13,488",
    }
    table = [
        f"| {shapes[row['set']]} | `{row['likelihood']}` | {row['test']['elbo']:.2f} | "
        f"{row['test']['importance_weighted_bound']:.2f} |".replace("-", "−")
        for row in rows
    ]
    part = README.split("## Measured")[1].split("\n## ")[0]
    assert re.findall(r"^\| [0-9].*$", part, flags=re.MULTILINE) == table
    assert all(row["train"]["skipped_steps"] == 0 for row in rows)


def test_measured_clusters_are_those_of_the_json():
    path = Path(__file__).parents[1] / "experiments" / "clusters.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    part = README.split("| cells | own clusters, ARI")[1].split("\n\n")[0]
    lines = part.splitlines()[2:]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        found, end = row["gmvae, shared"], row["gmvae, shared"]["end"]
        figures = [
            f"{end['ari']['mean']:.3f} ± {end['ari']['sd']:.3f}",
            f"{end['ari']['min']:.3f}",
            f"{row['kmeans_vae']['ari']['mean']:.3f}",
            f"{row['kmeans_pca']['ari']['mean']:.3f}",
            f"{found['stability_median_ari']:.2f}",
            f"{end['held_out_elbo']['mean']:.2f}".replace("-", "−"),
            f"{row['kmeans_vae']['held_out_elbo']['mean']:.2f}".replace("-", "−"),
        ]
        assert line.split(" | ", 1)[1].removesuffix(" |").split(" | ") == figures


def table_below(heading):
    part = README.split(heading)[1].split("\n\n")[0]
    return part.splitlines()[2:]


def benchmark(name):
    path = Path(__file__).parents[1] / "benchmarks" / name
    return json.loads(path.read_text(encoding="utf-8"))


def test_measured_steps_are_those_of_the_json():
    table = [
        f"| {row['n_genes']:,} | `{row['likelihood']}` | {row['milliseconds']:.2f} | "
        f"{row['floor_milliseconds']:.2f} | {row['ratio']:.2f} |"
        for row in benchmark("speed.json")["floor"]["steps"]
    ]
    assert table_below("| genes | likelihood | ms a step") == table


def test_measured_peers_are_those_of_the_json():
    table = []
    for row in benchmark("speed.json")["peers"]:
        sides = [
            f"{row[key]:,}" if key in row else "–"
            for key in (
                f"{side}_cells_per_second"
                for side in ("scvae_jax", "scvi", "jaxscvi", "floor")
            )
        ]
        head = f"| {row['n_genes']:,} | `{row['likelihood']}` | {row['task']} | "
        table.append(head + " | ".join(sides) + f" | {row['times_scvi']:.2f} |")
    assert table_below("| genes | likelihood | task") == table


def test_measured_original_is_that_of_the_json():
    table = [
        f"| {row['model']} | {row['milliseconds']:.2f} | "
        f"{row['original_milliseconds']:.1f} | {row['times_original']:.1f} |"
        for row in benchmark("speed.json")["original"]
    ]
    assert table_below("| model | ms a step") == table


def test_measured_times_to_quality_are_those_of_the_json():
    table = []
    for row in benchmark("time_to_quality.json")["rows"]:
        first, second = row["scvae_jax"]["runs"]
        theirs = row["scvi"]
        line = (
            f"| {row['set']} | {theirs['validation_elbo']:.2f} | "
            f"{theirs['process_seconds']:.0f}, "
            f"{theirs['seconds_to_first_crossing']:.0f} | "
            f"{first['validation_elbo']:.2f} | {first['process_seconds']:.1f} | "
            f"{second['process_seconds']:.1f} | "
            f"{first['speedup_by_process_seconds']:.1f}, "
            f"{second['speedup_by_process_seconds']:.1f} |"
        )
        table.append(line.replace("-", "−"))
    assert table_below("| set | SCVI's ELBO") == table


def test_measured_bounds_beside_scvi_are_those_of_the_json():
    path = Path(__file__).parents[1] / "experiments" / "against_peers.json"
    table = []
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        ours, theirs = (row["bounds"][tool] for tool in ("scvae_jax", "scvi"))
        difference = f"{row['difference']:+.2f}"
        if row["interval"]:
            low, high = row["interval"]
            difference += f" ({low:+.2f} to {high:+.2f})"
        line = (
            f"| {row['set']} | `{row['likelihood']}` | {len(row['seeds'])} | "
            f"{ours:.2f} | {theirs:.2f} | {difference} | {row['times_faster']:.1f} |"
        )
        table.append(line.replace("-", "−"))
    assert table_below("| set | likelihood | seeds") == table
