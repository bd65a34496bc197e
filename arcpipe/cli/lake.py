"""`arcpipe lake …`: what is in the store, without any other program. Nothing is changed, but by `expire`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcpipe.cli.expire import expire
from arcpipe.cli.options import config_option
from arcpipe.cli.output import hour_of, moment_of, print_json, print_table
from arcpipe.cli.serving import load_settings
from arcpipe.errors import ArcpipeError
from arcpipe.logs.lines import escaped

if TYPE_CHECKING:
    from arcpipe.lake.inspect import StoredFile
    from arcpipe.storage import LakeStore, Listed

app = typer.Typer(
    help="Look at the files in the store: list them, count and show rows, check every file, delete old ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigOption = Annotated[Path | None, config_option("Settings that name the store.")]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
AnyDatabase = Annotated[str | None, typer.Argument(metavar="[DATABASE]", help="Only this database.")]
AnyMeasurement = Annotated[str | None, typer.Argument(metavar="[MEASUREMENT]", help="Only this measurement.")]

_HOUR_US = 3_600_000_000
_MAX_PROBLEMS = 20  # of one file that are printed


@app.command("ls")
def ls(
    database: AnyDatabase = None,
    measurement: AnyMeasurement = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List measurements with their files and bytes; of one measurement, its hours.

    \b
    Examples:
      arcpipe lake ls
      arcpipe lake ls default cpu
    """
    asyncio.run(_ls(database, measurement, config, as_json))


async def _ls(database: str | None, measurement: str | None, config: Path | None, as_json: bool) -> None:
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    others = 0
    async with _store(config) as store:
        async for found, odd in _files(store, database, measurement):
            others += len(odd)
            for file in found:
                key = file.folder.names if measurement is None else (*file.folder.names, file.folder.hour_us)
                row = rows.setdefault(key, {"files": 0, "bytes": 0, "first": file.folder.hour_us, "last": 0})
                row["files"] += 1
                row["bytes"] += file.listed.size
                row["first"] = min(row["first"], file.folder.hour_us)
                row["last"] = max(row["last"], file.folder.hour_us)
        url = store.url
    shown = (
        {
            "database": key[0],
            "measurement": key[1],
            **(
                {"first_hour": hour_of(row["first"]), "last_hour": hour_of(row["last"])}
                if measurement is None
                else {"hour": hour_of(key[2])}
            ),
            "files": row["files"],
            "bytes": row["bytes"],
        }
        for key, row in sorted(rows.items())
    )
    hours = ("first_hour", "last_hour") if measurement is None else ("hour",)
    _show(("database", "measurement", *hours, "files", "bytes"), shown, as_json, url)
    _tell_others(others)


@app.command("count")
def count(
    database: AnyDatabase = None,
    measurement: AnyMeasurement = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Count the rows of measurements. Only the footers of files are read.

    \b
    Example:
      arcpipe lake count default cpu
    """
    asyncio.run(_count(database, measurement, config, as_json))


async def _count(database: str | None, measurement: str | None, config: Path | None, as_json: bool) -> None:
    from arcpipe.lake.footers import Unreadable, in_parallel
    from arcpipe.lake.inspect import read_footer

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    unreadable: list[str] = []
    async with _store(config) as store:
        files, others = await _all_files(store, database, measurement)
        files, merged = _without_inputs_of_merges(files)

        async def look(file: StoredFile) -> Any:
            try:
                return await read_footer(store, file)
            except Unreadable as error:
                return error

        with _progress("counting", len(files)) as advance:
            async for file, footer in in_parallel(files, look):
                advance(1)
                if footer is None:  # it was compacted meanwhile
                    continue
                if isinstance(footer, Unreadable):
                    unreadable.append(str(footer))
                    continue
                row = rows.setdefault(
                    file.folder.names, {"files": 0, "rows": 0, "first": footer.first_us, "last": footer.last_us}
                )
                row["files"] += 1
                row["rows"] += footer.rows
                row["first"] = min(row["first"], footer.first_us)
                row["last"] = max(row["last"], footer.last_us)
        url = store.url
    shown = (
        {
            "database": key[0],
            "measurement": key[1],
            "files": row["files"],
            "rows": row["rows"],
            "first_time": moment_of(row["first"]),
            "last_time": moment_of(row["last"]),
        }
        for key, row in sorted(rows.items())
    )
    _show(("database", "measurement", "files", "rows", "first_time", "last_time"), shown, as_json, url)
    _tell_others(others)
    if merged:
        print(f"arcpipe: {merged} files were left out whose rows are in a merged file, too", file=sys.stderr)
    if unreadable:
        for text in unreadable:
            print(f"arcpipe: {text}", file=sys.stderr)
        raise ArcpipeError(f"{len(unreadable)} files are not counted; `arcpipe lake verify` checks all of them")


@app.command("head")
def head(
    database: Annotated[str, typer.Argument(metavar="DATABASE")],
    measurement: Annotated[str, typer.Argument(metavar="MEASUREMENT")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=100_000, help="How many rows.")] = 10,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show the rows of a measurement with the latest times, the latest first.

    \b
    Example:
      arcpipe lake head default cpu
    """
    asyncio.run(_head(database, measurement, rows, config, as_json))


async def _head(database: str, measurement: str, wanted: int, config: Path | None, as_json: bool) -> None:
    import pyarrow as pa

    from arcpipe.lake.inspect import last_rows, read_file

    async with _store(config) as store:
        files, _ = _without_inputs_of_merges((await _all_files(store, database, measurement))[0])
        url = store.url
        hours: dict[int, list[StoredFile]] = {}
        for file in files:
            hours.setdefault(file.folder.hour_us, []).append(file)
        found: list[dict[str, Any]] = []
        columns: dict[str, None] = {}
        for _, of_hour in sorted(hours.items(), reverse=True):
            for file in of_hour:
                data = await read_file(store, file)
                if data is None:
                    continue
                table: pa.Table = await asyncio.to_thread(last_rows, data, file.key, wanted)
                columns |= dict.fromkeys(table.column_names)
                found += table.to_pylist()
            found = sorted(found, key=lambda row: row["time"], reverse=True)[:wanted]
            if len(found) == wanted:
                break
    shown = [{name: _shown(row.get(name), as_json) for name in columns} for row in found]
    if as_json:
        print_json(shown)
    elif print_table(tuple(columns), shown, left=("time",)) == 0:
        print(f"No files of {measurement!r} in database {database!r} are in {url}. {_WAIT}")


@app.command("verify")
def verify(
    database: AnyDatabase = None,
    measurement: AnyMeasurement = None,
    prefix: Annotated[str, typer.Option(help="Only keys that begin with this text.")] = "",
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Read every file, and compare rows, order and times with its footer and its name.

    Exit code 1 if a file has a problem. Reading 1 GB takes about 10 s of one core.

    \b
    Examples:
      arcpipe lake verify
      arcpipe lake verify default cpu
      arcpipe lake verify --prefix default/cpu/2026/11/22/
    """
    if prefix and database is not None:
        raise typer.BadParameter("--prefix is instead of DATABASE and MEASUREMENT")
    bad = asyncio.run(_verify(database, measurement, prefix, config, as_json))
    if bad:
        raise ArcpipeError(f"{bad} files have problems. Keep them aside, and look for their records in backups")


async def _verify(
    database: str | None, measurement: str | None, prefix: str, config: Path | None, as_json: bool
) -> int:
    from rich.filesize import decimal

    from arcpipe.lake.footers import in_parallel
    from arcpipe.lake.inspect import check, read_file

    total = bad = rows = size = 0
    async with _store(config) as store:
        files, others = await _all_files(store, database, measurement, prefix)

        async def look(file: StoredFile) -> Any:
            data = await read_file(store, file)
            return None if data is None else await asyncio.to_thread(check, data, file)

        with _progress("verifying", sum(file.listed.size for file in files), is_bytes=True) as advance:
            async for file, checked in in_parallel(files, look, at_once=2):
                advance(file.listed.size)
                if checked is None:  # it was compacted meanwhile
                    continue
                total += 1
                rows += checked.rows
                size += file.listed.size
                bad += bool(checked.problems)
                if as_json:
                    print_json([{"key": file.key, "rows": checked.rows, "problems": checked.problems}])
                elif checked.problems:
                    more = len(checked.problems) - _MAX_PROBLEMS
                    print(f"{file.key}: {len(checked.problems)} problems")
                    for problem in checked.problems[:_MAX_PROBLEMS]:
                        print(f"  {problem}")
                    if more > 0:
                        print(f"  and {more} more")
        url = store.url
    if not as_json:
        print(f"{total:,} files, {rows:,} rows, {decimal(size)} in {url}: {bad or 'no'} files have problems.")
    _tell_others(others)
    return bad


app.command("expire")(expire)


_WAIT = "A record is in a file some seconds after it was written: see uploader.interval_seconds."


@asynccontextmanager
async def _store(config: Path | None) -> AsyncIterator[LakeStore]:
    from arcpipe.storage import open_store

    settings = load_settings(config)
    store = open_store(settings.storage.url, settings.storage.s3)
    try:
        yield store
    finally:
        await store.close()


def _prefixes(database: str | None, measurement: str | None) -> list[str]:
    """Return the prefixes of keys that these names may have, by version and the format of tables."""
    from arcpipe.lake.keys import WAYS, Hidden, encode_database, encode_name

    if database is None:
        return [""]
    ways: tuple[Hidden, ...] = (*WAYS, ".")
    found = [
        f"{encode_database(database, hidden)}/" + ("" if measurement is None else f"{encode_name(measurement, other)}/")
        for hidden in ways
        for other in ways
    ]
    return list(dict.fromkeys(found))


async def _files(
    store: LakeStore, database: str | None, measurement: str | None, prefix: str = ""
) -> AsyncIterator[tuple[list[StoredFile], list[Listed]]]:
    from arcpipe.lake.inspect import list_files

    for one in [prefix] if prefix else _prefixes(database, measurement):
        async for page in list_files(store, one):
            yield page


async def _all_files(
    store: LakeStore, database: str | None, measurement: str | None, prefix: str = ""
) -> tuple[list[StoredFile], int]:
    files: list[StoredFile] = []
    others = 0
    async for found, odd in _files(store, database, measurement, prefix):
        files += found
        others += len(odd)
    return files, others


def _without_inputs_of_merges(files: list[StoredFile]) -> tuple[list[StoredFile], int]:
    """Leave out files whose rows are in a merged file, too, and count them.

    With tables they stay in the store for readers of earlier states.
    """
    from arcpipe.compaction.superseded import inputs_of_merges

    folders: dict[str, list[StoredFile]] = {}
    for file in files:
        folders.setdefault(file.folder.path, []).append(file)
    gone: set[str] = set()
    for some in folders.values():
        gone |= inputs_of_merges(some[0].folder, [file.listed for file in some])
    return [file for file in files if file.key not in gone], len(gone)


def _show(columns: tuple[str, ...], rows: Iterator[dict[str, Any]], as_json: bool, url: str) -> None:
    left = [name for name in columns if name not in ("files", "bytes", "rows")]
    if as_json:
        print_json(rows)
    elif print_table(columns, rows, left=left) == 0:
        print(f"No files are in {url}. {_WAIT}")


def _tell_others(count: int) -> None:
    if count:
        print(f"arcpipe: {count} objects are not named as arcpipe's files, and were left out", file=sys.stderr)


@contextmanager
def _progress(what: str, total: int, is_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if is_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _shown(value: Any, as_json: bool) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str) and not as_json:
        return escaped(value)  # a row is a line, and nobody's text is a command to the terminal
    if as_json and not isinstance(value, (int, float, str, bool, type(None))):
        return str(value)  # a decimal
    return value
