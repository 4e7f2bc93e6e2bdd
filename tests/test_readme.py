"""The README's examples run as they stand."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) == 8


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
        assert (tmp_path / "likelihoods" / "differences.png").exists()
    if "gmvae" in code:
        found = names["adata"].obs
        assert {"scvae_cluster", "scvae_cluster_confidence"} <= set(found)
    if "pad_to_batches" in code:
        assert names["batch"].counts[0].x.shape == (64, 50)
        assert (
            float(names["weight"].sum()) == 200
            and np.isfinite(names["batch"].counts[0].x).all()
        )
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

    table = README.split("\n## Likelihoods\n")[1].split("\nOptions ")[0]
    for name in FACTORIES:
        assert f"`{name}`" in table


def test_the_two_commands_stand_there():
    assert "\npip install '.[analysis]' && scvae-jax demo\n" in README
    assert "\npip install '.[test]' && pytest\n" in README


def tables():
    path = Path(__file__).parents[1] / "experiments" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_figures_are_those_of_the_json():
    assert tables().rewritten(README) == README


def test_a_figure_that_is_not_in_the_json_is_noticed():
    """Of every table, in its first and in its last row."""
    module = tables()
    for head in module.TABLES:
        before, rest = README.split(f"\n{head}")
        table, after = rest.split("\n\n", 1)
        lines = table.split("\n")
        assert len(lines) > 3
        for number in (2, -1):
            changed = [*lines]
            changed[number] = re.sub(r"\d\.\d", "9.99", changed[number], count=1)
            assert changed != lines
            text = "\n".join(changed)
            readme = f"{before}\n{head}{text}\n\n{after}"
            assert module.rewritten(readme) == README


def test_a_table_that_is_missing_is_an_error():
    module = tables()
    with pytest.raises(ValueError, match="found 0 tables headed"):
        module.rewritten(README.replace("| set | SCVI's ELBO |", "| set | theirs |"))


def test_a_table_without_a_column_that_its_rows_have_is_an_error():
    head = "| explained | times faster "
    assert head in README
    with pytest.raises(ValueError, match="found rows of other columns than the table"):
        tables().rewritten(README.replace(head, "| explained "))


def test_no_step_of_a_measured_training_was_skipped():
    path = Path(__file__).parents[1] / "experiments" / "heldout.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert all(row["train"]["skipped_steps"] == 0 for row in rows)
