"""What the command line prints of its results: tables, or JSON."""

import json
from collections.abc import Sequence
from typing import Any

FORMATS = {
    "data": "{}",
    "likelihood": "{}",
    "model": "{}",
    "ranked_with": "{}",
    "rank": "{:.0f}",
    "comparable_bound": "{:.2f}",
    "difference": "{:.2f}",
    "low": "{:.2f}",
    "high": "{:.2f}",
    "share_explained": "{:.3f}",
    "ari": "{:.3f}",
    "oracle_k": "{}",
    "stability": "{:.3f}",
}
# shown where rows differ in them, and so do not compare
KINDS = ("ranked_with", "oracle_k")


def figures(found: dict[str, Any], as_json: bool) -> None:
    """Print figures, as one JSON object or as a table.

    Args:
        found: figures by name.
        as_json: for programs, and not for people.
    """
    if as_json:
        print(json.dumps(found))
        return
    _aligned(
        [
            (
                name.replace("_", " "),
                f"{value:.4f}" if isinstance(value, float) else str(value),
            )
            for name, value in found.items()
        ]
    )


def ranks(table: Any) -> None:
    """Print the main columns of a comparison, for people.

    Args:
        table: `Comparison.ranks`.
    """
    shown = [
        name for name in FORMATS if table[name].nunique() > (1 if name in KINDS else 0)
    ]
    rows = [[name.replace("_", " ") for name in shown]]
    for row in table[shown].to_dict("records"):
        # None and not a number are what is not equal to itself, or nothing
        rows.append(
            [
                "" if value is None or value != value else FORMATS[name].format(value)
                for name, value in row.items()
            ]
        )
    _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> None:
    """Print rows whose columns stand below each other, however long they are."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
