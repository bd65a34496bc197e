"""`arcpipe tables`: look at tables, commit now, look after them, verify them, and import a lake."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcpipe.cli.options import ConfigOption
from arcpipe.cli.output import print_json, print_table
from arcpipe.cli.serving import load_settings
from arcpipe.cli.tables_opened import open_tables, progress
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.tables.base import TableError, TableFormat, TableName, UnreadableTables

app = typer.Typer(
    help="Look at Iceberg and Delta tables, commit to them, and compare them with the store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DatabaseOption = Annotated[str | None, typer.Option("--database", help="Only this database.")]
MeasurementOption = Annotated[
    str | None, typer.Option("--measurement", help="Only this measurement; needs --database.")
]
JSONOption = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
AllNodesOption = Annotated[
    bool, typer.Option("--all-nodes", help="Also files of other nodes: none of them runs, or has files that wait.")
]

_BUSY_SECONDS = 0.2  # between two tries to get the lock


@app.command()
def ls(config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """List the tables, with what waits for them.

    Exit code: 1 if a table cannot be read.

    \b
    Example:
      arcpipe tables ls
    """
    settings = load_settings(config)
    states = _states(settings)
    unreadable: UnreadableTables = {}
    with open_tables(settings) as tables:
        rows = []
        found = tables.all_tables(unreadable)
        for table in sorted({*found, *unreadable}):
            files = None if table in unreadable else _count(tables, table, unreadable)
            state = _shown(states.get(table, {}), unreadable.get(table))
            row = {"database": table[0], "measurement": table[1], "files": files, **state}
            if as_json:
                print_json([row])
            rows.append(row)
    if not as_json and not print_table(
        ("database", "measurement", "files", "last_commit", "waiting", "problem"), rows, ("database", "measurement")
    ):
        print("There are no tables yet: the first commit makes them.")
    if unreadable:
        raise typer.Exit(1)


@app.command()
def show(
    database: Annotated[str, typer.Argument(help="The database.")],
    measurement: Annotated[str, typer.Argument(help="The measurement.")],
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show a table: its columns, the marker of each node, its files, and what waits for it.

    Exit code: 1 if there is no such table, or its files cannot be read.

    \b
    Example:
      arcpipe tables show default cpu
    """
    settings = load_settings(config)
    table = database, measurement
    unreadable: UnreadableTables = {}
    with open_tables(settings) as tables:
        columns = tables.columns(table)
        if not columns:
            raise ArcpipeError(f"there is no table {database}.{measurement}: `arcpipe tables ls` lists those that are")
        found = {
            "database": database,
            "measurement": measurement,
            "format": tables.name,
            "files": _count(tables, table, unreadable),
            **_shown(_states(settings).get(table, {}), unreadable.get(table)),
            "markers": tables.markers(table),
            "columns": {column.name: column.type for column in columns if not (column.present or column.is_dropped)},
        }
    if as_json:
        print_json([found])
    else:
        _print_table(found)
    if unreadable:
        raise typer.Exit(1)


@app.command("commit-now")
def commit_now(
    config: ConfigOption = None,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Give up files that are gone, or cannot be read, and go on with the rest."),
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Commit what is uploaded, now. Runs beside a server or without one.

    Exit code: 1 if something has to wait.

    \b
    Example:
      arcpipe tables commit-now
    """
    import asyncio

    settings = load_settings(config)
    row = asyncio.run(_commit_now(settings, skip_missing))
    if as_json:
        print_json([row])
    else:
        print(f"{row['commits']} commits with {row['files']} files and {row['rows']} rows.")
        for problem in row["problems"]:
            print(f"has to wait: {problem}", file=sys.stderr)
        if row["waiting"]:
            print(f"{row['waiting']} batches still wait.", file=sys.stderr)
    if row["waiting"]:
        raise typer.Exit(1)


@app.command()
def maintain(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    measurement: MeasurementOption = None,
    as_json: JSONOption = False,
) -> None:
    """Merge a table's metadata, expire its earlier states, and delete what no state needs.

    The server does so once an hour for each table that it commits to.

    \b
    Example:
      arcpipe tables maintain --database default
    """
    settings = load_settings(config)
    only = _only(database, measurement)
    failed = 0
    unreadable: UnreadableTables = {}
    with open_tables(settings) as tables:
        listed = sorted({*tables.all_tables(unreadable), *unreadable})
        found = [table for table in listed if database in (None, table[0]) and only in (None, table)]
        with progress(len(found), as_json) as show_progress:
            for table in found:
                row: dict[str, Any] = {"database": table[0], "measurement": table[1]}
                try:
                    if table in unreadable:
                        raise unreadable[table]
                    done = tables.maintain(table)
                except ArcpipeError as error:
                    failed += 1
                    show_progress(row | {"error": str(error)}, f"{table[0]}.{table[1]}: {error}")
                    continue
                counts = f"{done.merged} metadata files merged, {done.expired} states expired"
                text = f"{table[0]}.{table[1]}: {counts}, {done.deleted} objects deleted"
                show_progress(row | done._asdict(), text)
    if not found and not as_json:
        print("There is no such table.")
    if failed:
        raise typer.Exit(1)


@app.command()
def verify(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    measurement: MeasurementOption = None,
    all_nodes: AllNodesOption = False,
    as_json: JSONOption = False,
) -> None:
    """Compare tables with the store, both ways, and markers with the numbers that this node has issued.

    Nothing is changed. Exit code: 1 if a table has a file that the store has not, if the store has one that no table
    has and that waits for none, or if a marker is not of this WAL directory.

    \b
    Example:
      arcpipe tables verify
    """
    import asyncio

    from arcpipe.cli import tables_compare as compare

    settings = load_settings(config)
    bad = asyncio.run(compare.verify(settings, _only(database, measurement), database, all_nodes, as_json))
    if bad:
        raise typer.Exit(1)


@app.command("import")
def import_lake(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    measurement: MeasurementOption = None,
    all_nodes: AllNodesOption = False,
    node: Annotated[
        str, typer.Option("--node", help="Also files of this node, which is gone; others may run meanwhile.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be added, and change nothing.")] = False,
    as_json: JSONOption = False,
) -> None:
    """Add files of the lake to tables that do not have them: those from before there were tables.

    Runs beside a server or without one, and may be repeated: a file that a table has is not added again.

    \b
    Examples:
      arcpipe tables import --dry-run
      arcpipe tables import --database default
    """
    import asyncio

    from arcpipe.cli import tables_compare as compare

    settings = load_settings(config)
    failed = asyncio.run(
        compare.import_lake(settings, _only(database, measurement), database, all_nodes, node, dry_run, as_json)
    )
    if failed:
        raise typer.Exit(1)


# How


def _only(database: str | None, measurement: str | None) -> TableName | None:
    if measurement is None:
        return None
    if database is None:
        raise typer.BadParameter("--measurement needs --database")
    return database, measurement


def _states(settings: Settings) -> dict[TableName, dict[str, Any]]:
    """Return what the committer says of tables, by table; empty if it has not run."""
    import msgspec

    from arcpipe.tables import states
    from arcpipe.tables.commit_file import FOLDER

    found = states.read(os.path.join(settings.wal.dir, FOLDER))
    return {(state.database, state.measurement): msgspec.structs.asdict(state) for state in found.listed}


def _print_table(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, one in value.items():
                print(f"  {key:<24}  {one}")
        else:
            print(f"{name:<12}  {'' if value is None else value}")


def _shown(state: dict[str, Any], unreadable: TableError | None) -> dict[str, Any]:
    problem = state.get("problem") or None if unreadable is None else str(unreadable)
    last = state.get("last_commit") or 0
    moment = datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if last else None
    return {"last_commit": moment, "waiting": state.get("waiting_files", 0), "problem": problem}


def _count(tables: TableFormat, table: TableName, unreadable: UnreadableTables) -> int | None:
    """Count the files of a table; None if it was dropped since, or cannot be read, which is noted then."""
    from arcpipe.tables.base import Dropped, TableError

    try:
        return sum(1 for _ in tables.files(table))
    except Dropped:
        return None
    except TableError as error:
        unreadable[table] = error
        return None


async def _commit_now(settings: Settings, skip_missing: bool) -> dict[str, Any]:
    import asyncio

    from arcpipe.counters import Counters
    from arcpipe.storage import open_store
    from arcpipe.tables import open_format
    from arcpipe.tables.commit_file import Busy
    from arcpipe.tables.committer import Committer

    tables = open_format(settings.tables, settings.storage, settings.wal.dir)
    store = open_store(settings.storage.url, settings.storage.s3)
    committer = Committer(tables, store, settings.wal.dir, Counters(1).committer, parquet=settings.parquet)
    committer.commits.skip_missing = skip_missing
    try:
        while True:
            try:
                with committer.files.lock():
                    done = await committer.round(force=True)
                break
            except Busy:  # a round of the server, which takes its time
                await asyncio.sleep(_BUSY_SECONDS)
    finally:
        committer.close()
        await store.close()
    return {**done._asdict(), "problems": committer.states.problems()}
