"""Output of rows: a table in a terminal, aligned text elsewhere, or one JSON object per line."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal


def print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print each row as a JSON object on a line, as soon as there is one."""
    import orjson

    for row in rows:
        try:
            line = orjson.dumps(row).decode("utf-8")
        except TypeError:  # the name of a file that is no text
            line = json.dumps(row, separators=(",", ":"))
        print(line, flush=True)


def print_table(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]], left: Collection[str]) -> int:
    """Print rows, if there are any, and return their number.

    Args:
        columns: keys of the rows, in the order of the output; a value of None is printed as nothing.
        left: columns that are aligned left in a terminal; the others are aligned right, as numbers are.
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
            justify: Literal["left", "right"] = "left" if name in left else "right"
            table.add_column(name.replace("_", " "), justify=justify, overflow="fold")  # names are there to be copied
        for row in cells:
            table.add_row(*map(Text, row))
        Console().print(table)
    else:
        widths = [max(len(name), *(len(row[index]) for row in cells)) for index, name in enumerate(columns)]
        for row in (columns, *cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return len(cells)


def hour_of(us: int) -> str:
    """Format the hour of a time in µs since the epoch. Years have four digits, which strftime(3) does not see to."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).isoformat()[:13]


def moment_of(us: int) -> str:
    """Format a time in µs since the epoch, with its µs."""
    seconds, rest = divmod(us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest:06}Z"
