"""What the experiments share: agreement with labels, spread over seeds, their JSON."""

import json
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import scvae_jax as sv
from scvae_jax.checkpoints import versions
from scvae_jax.files import whole


def agreement(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Adjusted Rand index and normalised mutual information with labels."""
    return {
        "ari": float(adjusted_rand_score(labels, codes)),
        "nmi": float(normalized_mutual_info_score(labels, codes)),
    }


def spread(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, minimum and (of two or more) standard deviation over seeds."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "min": float(np.min(values)),
        }
        for name, values in columns.items()
    }


def fits_of(fitted: sv.Fitted) -> list[sv.Fitted]:
    """The fits of one program, in the order of their seeds."""
    return sorted((fitted, *fitted.alternatives), key=lambda f: f.train_config.seed)


def head() -> str | None:
    """The commit that is here, with "+" where code was changed since.

    None where it is not known: without git, or of a package that is installed
    elsewhere.
    """
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True)
    head = git(["git", "rev-parse", "--short", "HEAD"])
    if head.returncode or Path(sv.__file__).parents[1] != Path(__file__).parents[1]:
        return None
    changed = git(["git", "diff", "--quiet", "HEAD", "--", "*.py", "../*.py"])
    return head.stdout.decode().strip() + "+" * bool(changed.returncode)


# of what is imported now, whatever is committed while it runs
commit = cache(head)
commit()


def write(out: Path, result: dict) -> None:
    """Write a result: what is there is whole."""
    with whole(out) as part:
        part.write_text(json.dumps(result, indent=1) + "\n")


def written(out: Path, part: str = "rows") -> Any:
    """The rows that are there already, or another part of the JSON."""
    return json.loads(out.read_text())[part] if out.exists() else []


def add_row(out: Path, row: dict, place: Callable, **more: Any) -> None:
    """Write a row beside the others, in their places, instead of one in its place.

    It names the commit that is run, or that which it names.
    """
    # read again: another run may have written rows meanwhile
    kept = [other for other in written(out) if place(other) != place(row)]
    # those of peers that have not run now stay
    known = dict(written(out, "versions")) | versions()
    known |= {"python": platform.python_version()}
    row = row if "commit" in row else row | {"commit": commit()}
    result = {"rows": sorted([*kept, row], key=place)}
    result |= {"versions": known | more.pop("versions", {})}
    result |= {"cores": len(os.sched_getaffinity(0))} | more
    write(out, result)
