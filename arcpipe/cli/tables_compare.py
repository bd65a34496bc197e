"""`arcpipe tables verify` and `import`: how tables and the store agree, and the import of files that no table has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from arcpipe.cli.output import print_json
from arcpipe.cli.tables_opened import open_tables, progress
from arcpipe.errors import ArcpipeError

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings
    from arcpipe.storage import LakeStore
    from arcpipe.tables.base import TableFormat, TableName
    from arcpipe.tables.stock import Report, Stock

_MOST_SHOWN: Final = 20  # keys of one table that `verify` prints


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[tuple[TableFormat, LakeStore]]:
    from arcpipe.storage import open_store

    with open_tables(settings) as tables:
        store = open_store(settings.storage.url, settings.storage.s3)
        try:
            yield tables, store
        finally:
            await store.close()


async def _reports(stock: Stock, only: TableName | None, database: str | None) -> AsyncIterator[Report]:
    async for report in stock.compare(only):
        if database in (None, report.table[0]):
            yield report


def _stock(settings: Settings, tables: TableFormat, store: LakeStore, all_nodes: bool, gone: str = "") -> Stock:
    from arcpipe.compaction.superseded import inputs_of_merges
    from arcpipe.tables.stock import Stock
    from arcpipe.wal.directory import WALDirectory

    found = WALDirectory(settings.wal.dir).node()
    node = None if found is None else found.node
    return Stock(tables, store, settings.wal.dir, node, all_nodes, gone=gone, inputs_of_merges=inputs_of_merges)


async def verify(
    settings: Settings, only: TableName | None, database: str | None, all_nodes: bool, as_json: bool
) -> int:
    """Print how tables and the store agree. Returns the number of tables that do not."""
    bad = total = 0
    async with _open(settings) as (tables, store):
        async for report in _reports(_stock(settings, tables, store, all_nodes), only, database):
            markers: list[int] = []
            if report.is_table and not report.problem:
                markers = await asyncio.to_thread(_foreign_markers, settings, tables, report)
            total += 1
            bad += bool(markers) or not report.is_whole
            row = _row(report) | {"foreign_markers": markers}
            if as_json:
                print_json([row | {"lost": report.lost, "orphans": [key for key, _ in report.orphans]}])
            else:
                _print_report(report, markers)
    if not as_json:
        print(f"{total} tables, {bad} of them with problems." if total else "There is nothing to compare.")
    return bad


def _row(report: Report) -> dict[str, Any]:
    return {
        "database": report.table[0],
        "measurement": report.table[1],
        "is_table": report.is_table,
        "in_table": report.in_table,
        "in_store": report.in_store,
        "waiting": report.waiting,
        "others": report.others,
        "former": report.former,
        "outside": report.outside,
        "problem": report.problem,
    }


def _foreign_markers(settings: Settings, tables: TableFormat, report: Report) -> list[int]:
    """Return this node's markers in a table that this WAL directory never issued."""
    from arcpipe.disk import Disk
    from arcpipe.tables.commit_file import FOLDER
    from arcpipe.tables.ledger import Ledger
    from arcpipe.wal.directory import WALDirectory

    node = WALDirectory(settings.wal.dir).node()
    if node is None:
        return []
    marker = tables.markers(report.table).get(node.node)
    # After the marker: the ledger has a number before any table has it.
    ledger = Ledger.load(os.path.join(settings.wal.dir, FOLDER), Disk())
    return [] if marker is None or ledger.has_issued(marker) else [marker]


def _print_report(report: Report, markers: list[int]) -> None:
    name = f"{report.table[0]}.{report.table[1]}"
    verdict = "ok" if report.is_whole and not markers else "PROBLEM"
    notes = [f"{report.in_table} files in the table, {report.in_store} in the store"]
    if not report.is_table:
        notes = [f"no table; {report.in_store} files in the store"]
    for count, what in (
        (report.waiting, "wait for their commit"),
        (report.others, "are of other nodes and in no table"),
        (report.former, "are of earlier states of the table"),
        (report.outside, "are outside of the store"),
    ):
        if count:
            notes.append(f"{count} {what}")
    print(f"{name}: {verdict}: {', '.join(notes)}")
    if report.problem:
        print(f"  the table cannot be read: {report.problem}")
    for marker in markers:
        print(
            f"  marker {marker} of this node is not of this WAL directory: it is an old copy, or there is another one"
        )
    for keys, what in ((report.lost, "is in the table and gone from the store"),):
        for key in keys[:_MOST_SHOWN]:
            print(f"  {key} {what}")
    for key, _ in report.orphans[:_MOST_SHOWN]:
        print(f"  {key} is in no table; `arcpipe tables import` adds it")
    more = max(len(report.lost) - _MOST_SHOWN, 0) + max(len(report.orphans) - _MOST_SHOWN, 0)
    if more:
        print(f"  and {more} others: --json lists them all")


async def import_lake(
    settings: Settings,
    only: TableName | None,
    database: str | None,
    all_nodes: bool,
    gone: str,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Add files to tables. Returns the number of tables that did not take them."""
    failed = added = 0
    async with _open(settings) as (tables, store):
        stock = _stock(settings, tables, store, all_nodes, gone)
        found = [report async for report in _reports(stock, only, database)]
        found = [report for report in found if report.orphans]
        with progress(len(found), as_json) as show_progress:
            for report in found:
                name = f"{report.table[0]}.{report.table[1]}"
                row: dict[str, Any] = {"database": report.table[0], "measurement": report.table[1]}
                row |= {"files": len(report.orphans), "bytes": sum(size for _, size in report.orphans)}
                if dry_run:
                    show_progress(row, f"{name}: {row['files']} files, {row['bytes'] / 1e6:.1f} MB would be added")
                    continue
                try:
                    count = await stock.import_files(report)
                except ArcpipeError as error:
                    failed += 1
                    show_progress(row | {"error": str(error)}, f"{name}: {error}")
                    continue
                added += count
                show_progress(row | {"added": count}, f"{name}: {count} files added")
    if not as_json:
        nothing = "Each file is in a table, waits for its commit, or is of another node."
        print(f"{added} files added." if found and not dry_run else "" if found else nothing)
    return failed
