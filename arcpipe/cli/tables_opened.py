"""What the commands of `arcpipe tables` share: the tables of the settings, and progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from arcpipe.cli.output import print_json

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.tables.base import TableFormat


@contextmanager
def open_tables(settings: Settings) -> Iterator[TableFormat]:
    """Open the tables of the settings for a command."""
    from arcpipe.tables import open_format

    tables = open_format(settings.tables, settings.storage, settings.wal.dir)
    try:
        yield tables
    finally:
        tables.close()


@contextmanager
def progress(total: int, as_json: bool) -> Iterator[Any]:
    """Show progress: a bar in a terminal, a line or a JSON object for each table elsewhere."""
    if as_json or not sys.stdout.isatty():
        yield lambda row, text: print_json([row]) if as_json else print(text, flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("tables", total=total)

        def done(row: dict[str, Any], text: str) -> None:
            bar.console.print(text, markup=False)
            bar.advance(task)

        yield done
