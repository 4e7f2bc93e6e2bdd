"""Experiments and benchmarks: what they import is there, and their options are read.

What they find is measured by running them; those of peers need other environments.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# they take nothing, and other tests use them
OTHERS = {"readme_tables", "likelihood_accuracy"}
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if not path.stem.startswith("peer_") and path.stem not in OTHERS
    if "__main__" in path.read_text()
)


def test_the_scripts_are_found():
    found = {path.stem for path in SCRIPTS}
    assert {"speed", "time_to_quality", "against_peers", "recipe"} <= found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_takes(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    summary = script.read_text().split('"""')[1].splitlines()[0]
    assert summary.rstrip(".") in " ".join(done.stdout.split())
    # nothing is written by a look
    assert list(tmp_path.iterdir()) == []
