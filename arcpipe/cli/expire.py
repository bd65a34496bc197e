"""`arcpipe lake expire`: lists the hours that are too old, and deletes them with `--yes`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcpipe.cli.compact import parse_time
from arcpipe.cli.options import ConfigOption
from arcpipe.cli.output import hour_of, print_json, print_table
from arcpipe.cli.serving import load_settings
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.compaction.retention import Expired
    from arcpipe.config.settings import Settings

_COLUMNS = ("database", "measurement", "first_hour", "last_hour", "hours", "files", "bytes")


def expire(
    config: ConfigOption = None,
    database: Annotated[str | None, typer.Option("--database", help="Only this database.")] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="TIME", help="Hours that end by then, instead of retention.days; needs --database."
        ),
    ] = None,
    all_nodes: Annotated[
        bool, typer.Option("--all-nodes", help="Also files of other nodes, for nodes that are gone.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them. Without it nothing is changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List the hours that are older than retention.days, and delete their files with --yes.

    Runs where the WAL directory is, beside a server or without one. It deletes files that this node uploaded.

    \b
    Examples:
      arcpipe lake expire
      arcpipe lake expire --database logs --before 2026-10-01 --yes
    """
    import asyncio

    if before is not None and database is None:
        raise typer.BadParameter("--before needs --database")
    settings = load_settings(config)
    days = settings.retention.days if database is None else _days_of(settings, database, before)
    if before is None and not days:
        raise ArcpipeError(
            "nothing expires, as retention.days has no such database: set it, or name --database and --before"
        )
    before_us = parse_time(before)
    limits = {database: before_us} if database is not None and before_us is not None else None
    asyncio.run(_expire(settings, days, limits, all_nodes, yes, as_json))


def _days_of(settings: Settings, database: str, before: str | None) -> dict[str, int]:
    days = settings.retention.days
    return {database: days[database]} if before is None and database in days else {}


async def _expire(
    settings: Settings, days: dict[str, int], limits: dict[str, int] | None, all_nodes: bool, yes: bool, as_json: bool
) -> None:
    from arcpipe.cli.compact import this_node
    from arcpipe.compaction.compactor import Compactor
    from arcpipe.compaction.process import swap_of
    from arcpipe.compaction.retention import Retention
    from arcpipe.storage import open_store
    from arcpipe.tables.problems import Problems

    node = this_node(settings)
    store = open_store(settings.storage.url, settings.storage.s3)
    tables = swap_of(settings, settings.wal.dir, store)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    others = 0
    try:
        compactor = Compactor(settings, settings.wal.dir, node, store, tables=tables)
        retention = Retention(store, compactor, all_nodes=all_nodes)
        if limits is None:
            limits = await retention.limits(days)
        problems = Problems()
        async for found in retention.find(limits):
            others += found.others
            if found.files:
                with problems.of_one_table():
                    _add(rows, await retention.delete(found.folder) if yes else found)
        problems.raise_first()
    finally:
        if tables is not None:
            await tables.close()
        await store.close()
        _show(rows, as_json)
    if others:
        print(
            f"arcpipe: {others} other files in these hours stay: of other nodes, of other programs, or not final yet",
            file=sys.stderr,
        )
    if not as_json:
        _conclude(rows, yes, store.url)


def _add(rows: dict[tuple[str, str], dict[str, Any]], expired: Expired) -> None:
    from arcpipe.lake.folders import name_of

    hour = hour_of(expired.folder.hour_us)
    names = name_of(expired.folder.database), name_of(expired.folder.measurement)
    start = dict(zip(_COLUMNS, (*names, hour, hour, 0, 0, 0), strict=True))
    row = rows.setdefault(names, start)
    row["first_hour"], row["last_hour"] = min(row["first_hour"], hour), max(row["last_hour"], hour)
    row["hours"] += 1
    row["files"] += len(expired.files)
    row["bytes"] += expired.size


def _show(rows: dict[tuple[str, str], dict[str, Any]], as_json: bool) -> None:
    shown = (row for _, row in sorted(rows.items()))
    if as_json:
        print_json(shown)
    else:
        print_table(_COLUMNS, shown, left=_COLUMNS[:4])


def _conclude(rows: dict[tuple[str, str], dict[str, Any]], yes: bool, url: str) -> None:
    files, size = (sum(row[name] for row in rows.values()) for name in ("files", "bytes"))
    if not rows:
        print(f"No hour in {url} is too old.")
    elif yes:
        print(f"{files} files deleted, {size / 1e6:.1f} MB.")
    else:
        print(f"{files} files, {size / 1e6:.1f} MB. Nothing was deleted: --yes deletes them.")
