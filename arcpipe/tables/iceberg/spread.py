"""Iceberg tables for several threads: each table belongs to one of a few `IcebergTables`, each of which has a lock.

A commit to a remote catalogue is a dozen requests, one after the other. With several tables at once they overlap. Each
part keeps its own tables in memory, by a part of the bounds: together they keep no more than a single one.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TypeVar

from arcpipe.tables.base import AT_ONCE, Column, Committed, Maintained, NewFile, TableName, UnreadableTables
from arcpipe.tables.iceberg.table import IcebergTables

T = TypeVar("T")


class SpreadTables:
    """A TableFormat. Connections are made by the parts that are used."""

    name = "iceberg"
    at_once = AT_ONCE

    def __init__(self, make: Callable[[], IcebergTables], parts: int = AT_ONCE) -> None:
        """Make the parts; no I/O is done.

        Args:
            make: makes a part.
        """
        self._parts = [(make(), threading.Lock()) for _ in range(parts)]

    def _on(self, table: TableName, work: Callable[[IcebergTables], T]) -> T:
        tables, lock = self._parts[zlib.crc32("\0".join(table).encode()) % len(self._parts)]
        with lock:
            return work(tables)

    def check(self) -> None:
        tables, lock = self._parts[0]
        with lock:
            tables.check()

    def close(self) -> None:
        with ExitStack() as stack:
            for tables, _ in self._parts:
                stack.callback(tables.close)

    def committed(self, table: TableName, node: str) -> int | None:
        return self._on(table, lambda tables: tables.committed(table, node))

    def left_behind(self, table: TableName, node: str) -> int | None:
        return self._on(table, lambda tables: tables.left_behind(table, node))

    def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        return self._on(table, lambda tables: tables.commit(table, files, node, seq))

    def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
        tables, lock = self._parts[0]
        with lock:
            return tables.all_tables(unreadable)

    def columns(self, table: TableName) -> list[Column]:
        return self._on(table, lambda tables: tables.columns(table))

    def files(self, table: TableName) -> Iterator[str]:
        return iter(self._on(table, lambda tables: list(tables.files(table))))

    def former(self, table: TableName) -> set[str]:
        return self._on(table, lambda tables: tables.former(table))

    def markers(self, table: TableName) -> dict[str, int]:
        return self._on(table, lambda tables: tables.markers(table))

    def replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        self._on(table, lambda tables: tables.replace(table, old, new))

    def remove(self, table: TableName, keys: Sequence[str]) -> None:
        self._on(table, lambda tables: tables.remove(table, keys))

    def maintain(self, table: TableName) -> Maintained:
        return self._on(table, lambda tables: tables.maintain(table))
