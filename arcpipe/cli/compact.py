"""`arcpipe compact`: merges the files of closed hours now, with or without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from arcpipe.cli.options import ConfigOption
from arcpipe.cli.serving import load_settings
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.compaction.compactor import Compactor, Work
    from arcpipe.compaction.merge import Outcome
    from arcpipe.config.settings import Settings


class _Options:
    """The options of one call."""

    def __init__(self, database: str | None, measurement: str | None, before_us: int | None, as_json: bool) -> None:
        self.database = database
        self.measurement = measurement
        self.before_us = before_us
        self.as_json = as_json


def compact(
    config: ConfigOption = None,
    database: Annotated[str | None, typer.Option("--database", help="Only this database.")] = None,
    measurement: Annotated[
        str | None, typer.Option("--measurement", help="Only this measurement; needs --database.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="Only hours that end by then, as 2026-11-28T14:00.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be merged, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Merge the small files of closed hours into few large ones, sorted by tags and time.

    Runs where the WAL directory is, beside a server or without one. It merges the files of this node only. If it is
    killed, the next call or the server finishes what it had begun.

    \b
    Examples:
      arcpipe compact --dry-run
      arcpipe compact --database default --measurement cpu --before 2026-11-28
    """
    import asyncio

    if measurement is not None and database is None:
        raise typer.BadParameter("--measurement needs --database")
    options = _Options(database, measurement, parse_time(before), as_json)
    settings = load_settings(config)
    failed = asyncio.run(_compact(settings, options, dry_run))
    if failed:
        raise typer.Exit(1)


def parse_time(before: str | None) -> int | None:
    """Return the µs since the epoch of a time; without a zone it is UTC."""
    if before is None:
        return None
    try:
        moment = datetime.fromisoformat(before)
    except ValueError:
        raise typer.BadParameter(f"--before {before}: write a time such as 2026-11-28T14:00") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000


def this_node(settings: Settings) -> str:
    """Return the id of the node that uses the WAL directory.

    Raises:
        ArcpipeError: no server has used it.
    """
    from arcpipe.wal.directory import WALDirectory

    node = WALDirectory(settings.wal.dir).node()
    if node is None:
        raise ArcpipeError(
            f"{settings.wal.dir} has no node.json: no server has used this WAL directory. A node merges its own files "
            "only: run this with the settings, and on the machine, of the server that uploaded them"
        )
    return node.node


async def _compact(settings: Settings, options: _Options, dry_run: bool) -> int:
    """Merge, or tell what would be merged. Returns the number of folders that failed."""
    from arcpipe.compaction.compactor import Compactor
    from arcpipe.compaction.process import swap_of
    from arcpipe.compaction.resources import bound_resources
    from arcpipe.storage import open_store
    from arcpipe.tables.base import TableError

    bound_resources()

    node = this_node(settings)
    store = open_store(settings.storage.url, settings.storage.s3)
    tables = swap_of(settings, settings.wal.dir, store)
    try:
        compactor = Compactor(settings, settings.wal.dir, node, store, tables=tables)
        if not dry_run:
            await compactor.finish()
        found: list[Work] = []
        problem: TableError | None = None
        try:
            async for work in compactor.find(options.database, options.measurement, options.before_us):
                found.append(work)  # noqa: PERF401 (an error comes after what was found)
        except TableError as error:  # of some tables: the others are merged
            problem = error
        failed = 0
        if not dry_run and found:
            failed = await _merge(compactor, found, options)
        elif problem is None or found:
            _tell(found, options)
        if problem is not None:
            raise problem
        return failed
    finally:
        if tables is not None:
            await tables.close()
        await store.close()


def _row(work: Work) -> dict[str, Any]:
    from arcpipe.cli.output import hour_of
    from arcpipe.lake.folders import name_of

    folder = work.folder
    return {
        "database": name_of(folder.database),
        "measurement": name_of(folder.measurement),
        "hour": hour_of(folder.hour_us),
        "files": work.files,
        "mb": round(work.size / 1e6, 1),
        "dedup": "series_time" if work.dedup else "none",
    }


def _tell(found: list[Work], options: _Options) -> None:
    from arcpipe.cli.output import print_json, print_table

    rows = map(_row, found)
    if options.as_json:
        print_json(rows)
    elif not print_table(
        ("database", "measurement", "hour", "files", "mb", "dedup"), rows, ("database", "measurement")
    ):
        print("Nothing is worth merging. Files are merged once their hour is closed, and they are 5 minutes old.")


async def _merge(compactor: Compactor, found: list[Work], options: _Options) -> int:
    failed = merged = files_in = files_out = 0
    with _progress(len(found), options.as_json) as show:
        for work in found:
            row = _row(work)
            where = f"{row['database']} {row['measurement']} {row['hour']}"
            try:
                outcome = await compactor.compact(work.folder)
            except (ArcpipeError, OSError) as error:
                failed += 1
                show.done(row | {"error": str(error)}, f"{where}: {error}")
                continue
            if outcome is None:
                show.done(row | {"files_out": None}, f"{where}: nothing left to merge")
                continue
            merged += 1
            files_in += len(outcome.plan.inputs)
            files_out += len(outcome.plan.outputs)
            show.done(
                row | _figures(outcome), f"{where}: {len(outcome.plan.inputs)} files became {len(outcome.plan.outputs)}"
            )
    if not options.as_json:
        for key, reason in compactor.odd.items():
            print(f"left as it is: {key}: {reason}")
        print(f"{merged} hours: {files_in} files became {files_out}." + (f" {failed} hours failed." if failed else ""))
    return failed


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "files": len(outcome.plan.inputs),
        "files_out": len(outcome.plan.outputs),
        "bytes_in": outcome.plan.input_bytes,
        "bytes_out": outcome.plan.output_bytes,
        "rows": outcome.rows,
        "superseded": outcome.superseded,
        "seconds": round(outcome.seconds, 3),
        "visible_twice_ms": round(outcome.visible_twice_seconds * 1e3, 1),
    }


class _Progress(Protocol):
    def done(self, row: dict[str, Any], text: str) -> None: ...


class _Lines:
    def done(self, row: dict[str, Any], text: str) -> None:
        print(text, flush=True)


class _JSON:
    def done(self, row: dict[str, Any], text: str) -> None:
        from arcpipe.cli.output import print_json

        print_json([row])


@contextmanager
def _progress(total: int, as_json: bool) -> Iterator[_Progress]:
    """Show progress: a bar in a terminal, a line or a JSON object for each hour elsewhere."""
    if as_json or not sys.stdout.isatty():
        yield _JSON() if as_json else _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("hours", total=total)

        class Bar:
            def done(self, row: dict[str, Any], text: str) -> None:
                if "error" in row:
                    bar.console.print(text, markup=False)
                bar.advance(task)

        yield Bar()
