"""Types that tables have and this node's uploader did not know: `tables/learned.json`, from committer to uploader.

The committer writes it before it commits the first file that it had to rewrite. The uploader reads it between two
batches, and writes later files as the table wants them. So a column is rewritten for some minutes, not for ever.

The file is a help: without it the committer rewrites each file. One that is damaged begins anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile
from arcpipe.tables.base import TableName
from arcpipe.tables.fitting import Move
from arcpipe.wal import checked_json

log = logging.getLogger(__name__)

VERSION: Final = 1
FILENAME: Final = "learned.json"
MOST_TABLES: Final = 10_000
"""Tables in the file; the one that was learned longest ago is forgotten."""
MOST_COLUMNS: Final = 4_096
"""Columns of a table in the file: as many as a table has."""


class LearnedColumn(msgspec.Struct, frozen=True, array_like=True):
    """A column of files whose values belong elsewhere in the table."""

    name: str  # the sender's
    column: str  # in the files
    type: str  # of the files: the uploader's word
    table_type: str  # of the table's column of this name, in arcpipe's words; empty without such a column
    target: str  # the column that takes values of `type`


class LearnedTable(msgspec.Struct, frozen=True, array_like=True):
    """What was learned of a table, the oldest first."""

    database: str
    measurement: str
    columns: list[LearnedColumn]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    tables: list[LearnedTable]


class Learned:
    """The content of the file. One process writes it: the one that may commit."""

    def __init__(self, path: str, disk: Disk, tables: Iterable[LearnedTable] = ()) -> None:
        self._path = path
        self._disk = disk
        self._tables = {(table.database, table.measurement): table for table in tables}

    @classmethod
    def load(cls, folder: str | os.PathLike[str], disk: Disk) -> Learned:
        """Load the file in `tables/`; nothing is learned if it is missing or damaged.

        Raises:
            OSError: it cannot be read.
            UnknownVersion: another version of arcpipe wrote it.
        """
        path = path_of(folder)
        try:
            content = durable.load(disk, path, lambda data: _decode(data, path))
        except DamagedFile as error:
            log.warning("%s; it is written anew when a column differs again", error)
            content = None
        return cls(path, disk, content.tables if content is not None else ())

    def tables(self) -> list[LearnedTable]:
        """Return what was learned, the oldest first."""
        return list(self._tables.values())

    def targets(self, table: TableName) -> Mapping[tuple[str, str], str]:
        """Return the columns that were chosen, by column and type of the files."""
        found = self._tables.get(table)
        return {(one.column, one.type): one.target for one in found.columns} if found is not None else {}

    def add(self, table: TableName, moves: Iterable[Move]) -> list[Move]:
        """Learn, and return the moves that are new, once they are durable.

        Raises:
            OSError: they are in the file or not.
        """
        known = self._tables.get(table)
        columns = list(known.columns) if known is not None else []
        new = []
        for move in moves:
            column = LearnedColumn(move.senders, move.column, move.type, move.table_type, move.target)
            if column in columns:
                continue
            new.append(move)
            # A table that was made anew may have the types of today: then what was learned before is wrong.
            columns = [
                one for one in columns if one.column != move.column or one.type not in (move.type, move.table_type)
            ]
            columns.append(column)
        if new:
            tables = {key: value for key, value in self._tables.items() if key != table}
            tables[table] = LearnedTable(*table, columns[-MOST_COLUMNS:])
            while len(tables) > MOST_TABLES:
                del tables[next(iter(tables))]
            durable.replace(self._disk, self._path, checked_json.encode(_Content(VERSION, list(tables.values()))))
            self._tables = tables
        return new


def path_of(folder: str | os.PathLike[str]) -> str:
    """Return the path of the file in `tables/`."""
    return os.path.join(folder, FILENAME)


def _decode(data: bytes, path: str) -> _Content:
    return checked_json.decode(data, _Content, VERSION, path, "Its types are not used until that version runs again")
