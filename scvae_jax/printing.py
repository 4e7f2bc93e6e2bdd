"""What the command line prints of its results: tables, or JSON."""

import json
from typing import Any


def figures(found: dict[str, Any], as_json: bool) -> None:
    """Print figures, as one JSON object or as a table.

    Args:
        found: figures by name.
        as_json: for programs, and not for people.
    """
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in found.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        # as Text, so that brackets in a path are not read as markup
        table.add_row(name.replace("_", " "), Text(text))
    Console(soft_wrap=True).print(table)


def ranks(table: Any) -> None:
    """Print the main columns of a comparison, for people.

    Args:
        table: `Comparison.ranks`.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    formats = {
        "data": "{}",
        "likelihood": "{}",
        "model": "{}",
        "rank": "{:.0f}",
        "comparable_bound": "{:.2f}",
        "difference": "{:.2f}",
        "low": "{:.2f}",
        "high": "{:.2f}",
        "share_explained": "{:.3f}",
        "ari": "{:.3f}",
        "stability": "{:.3f}",
    }
    shown = [name for name in formats if table[name].notna().any()]
    printed = Table(*(name.replace("_", " ") for name in shown), box=None)
    for row in table[shown].to_dict("records"):
        # None and not a number are what is not equal to itself, or nothing
        cells = [
            "" if value is None or value != value else formats[name].format(value)
            for name, value in row.items()
        ]
        printed.add_row(*map(Text, cells))
    Console(soft_wrap=True, width=160).print(printed)
