"""How commands print rows: a table in a terminal, aligned text elsewhere, one JSON object per line where asked."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """One object per line, each as soon as it is there."""
    import orjson

    for row in rows:
        print(orjson.dumps(row).decode("utf-8"), flush=True)


def print_table(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]], left: Collection[str]) -> int:
    """Print rows if there are any; how many there were.

    Args:
        columns: keys of the rows, in the order in which they are shown; None is shown as nothing.
        left: the columns that are not aligned right in a terminal, as numbers are.
    """
    cells = [tuple("" if row[name] is None else str(row[name]) for name in columns) for row in rows]
    if not cells:
        return 0
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in columns:
            table.add_column(name.replace("_", " "), justify="left" if name in left else "right")
        for row in cells:
            table.add_row(*map(Text, row))
        Console().print(table)
    else:
        widths = [max(len(name), *(len(row[index]) for row in cells)) for index, name in enumerate(columns)]
        for row in (columns, *cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return len(cells)
