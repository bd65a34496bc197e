"""The columns of all tables (`upload.table_schema`), remembered so that they stay the same in the next file.

The registry is a function of the batches that were applied to it, in order. It changes only when a batch is complete: a
batch works on `draft`s and returns its changes. So doing it again after a crash meets the same registry, and writes the
same files. This module must not know what a batch is, nor Arrow or Parquet.

`schema.json` has a checksum, and `schema.json.copy` is the same once more. A damaged file is kept in quarantine, and
the other one is used. One that cannot be read is never replaced: a column would change its type.

Version 1 had neither siblings nor other names than the sender's. Its columns keep their types and names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.upload.table_schema import ColumnRules, TableName, TableSchema
from arcpipe.wal.checksum import checksum_holds, with_checksum

MAX_TABLES: Final = 100_000
"""Most tables in the registry; beyond that the one used longest ago is forgotten."""

MAX_REMEMBERED: Final = 500_000
"""Most columns of all tables together; beyond that the table used longest ago is forgotten."""

_logger = logging.getLogger(__name__)


_CROWDED: Final = 0.9  # part of the bounds from which on it matters which tables a batch used


class _RegistryFile(msgspec.Struct, forbid_unknown_fields=True):
    version: Literal[1, 2]
    tables: list[TableSchema]
    crc32: str = ""  # missing in files of early versions


class SchemaRegistry:
    """The schemas of all tables, and the file that keeps them. One thread changes it at a time."""

    def __init__(
        self, path: str | os.PathLike[str], tables: Iterable[TableSchema] = (), disk: Disk | None = None
    ) -> None:
        self.rules = ColumnRules()
        """The settings for new columns."""
        self.path = os.fspath(path)
        self._disk = disk or Disk()
        # In the order of the last use. It is saved, so that the order of forgetting survives a restart.
        self._tables: dict[TableName, TableSchema] = {}
        self._columns = 0
        self._drafted: dict[TableName, None] = {}
        self.apply(tables)

    def __len__(self) -> int:
        return len(self._tables)

    def tables(self) -> list[TableSchema]:
        """Copy the schemas of all tables, the one used longest ago first."""
        return [table.copy() for table in self._tables.values()]

    def copy(self) -> SchemaRegistry:
        """Copy the registry for a trial. Never save the copy."""
        other = SchemaRegistry(self.path, (), self._disk)
        other._tables = dict(self._tables)
        other._columns = self._columns
        other.rules = self.rules
        return other

    def begin(self) -> None:
        """Begin a try of a batch: from here on, `used` counts."""
        self._drafted = {}

    @property
    def drafted(self) -> list[TableName]:
        """The tables of the batch, in the order of their drafts."""
        return list(self._drafted)

    @property
    def used(self) -> list[TableName]:
        """The same while the registry is nearly full: then a redo has to know them. Else empty."""
        crowded = len(self._tables) > MAX_TABLES * _CROWDED or self._columns > MAX_REMEMBERED * _CROWDED
        return self.drafted if crowded else []

    def draft(self, database: str, measurement: str) -> TableSchema:
        """Copy a table's schema to work on; it is empty for an unknown table."""
        known = self._tables.get((database, measurement))
        self._drafted[database, measurement] = None
        return TableSchema(database, measurement) if known is None else known.copy()

    def find(self, key: TableName) -> TableSchema | None:
        """Copy a table's schema; None for an unknown table."""
        known = self._tables.get(key)
        return None if known is None else known.copy()

    def changed(self, drafts: Iterable[TableSchema]) -> list[TableSchema]:
        """Return the drafts that differ from the registry, sorted by database and measurement."""
        changed = []
        for draft in drafts:
            known = self._tables.get(draft.name)
            if draft.columns != (known.columns if known else {}):
                changed.append(draft)
        return sorted(changed, key=lambda draft: draft.name)

    def apply(self, changes: Iterable[TableSchema], used: Iterable[TableName] = ()) -> None:
        """Take over the tables that a complete batch used and changed."""
        for key in used:
            known = self._tables.pop(key, None)
            if known is not None:
                self._tables[key] = known
        for table in changes:
            key = table.name
            self.forget(key)
            self._tables[key] = table
            self._columns += table.width
        while len(self._tables) > MAX_TABLES or self._columns > MAX_REMEMBERED:
            self.forget(next(iter(self._tables)))

    def forget(self, key: TableName) -> None:
        """Forget the columns of a table."""
        table = self._tables.pop(key, None)
        if table is not None:
            self._columns -= table.width

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], disk: Disk | None = None, quarantine: str | os.PathLike[str] | None = None
    ) -> SchemaRegistry:
        """Load the registry saved at `path`, or its copy if that is damaged; empty if there is none.

        Args:
            quarantine: the directory that keeps a damaged file; without one it stays where it is.

        Raises:
            OSError: it exists, or may, and cannot be read. Retry: a fresh registry would give columns other types.
            UnknownVersion: it is of a newer version.
        """
        path, disk = os.fspath(path), disk or Disk()
        copy = f"{path}.copy"
        tables, damaged = _load_tables(path, disk, quarantine)
        if tables is None:
            tables, copy_damaged = _load_tables(copy, disk, quarantine)
            if tables is not None:
                _logger.warning("schema registry %s is used: %s is damaged or missing", copy, path)
            elif damaged or copy_damaged:
                _logger.error("no intact schema registry is left at %s, column types start anew", path)
            else:
                _logger.info("no schema registry at %s yet", path)
        return cls(path, tables or (), disk)

    def save(self) -> None:
        """Write the registry to its file and to the copy of that, durably.

        Raises:
            OSError: each of the two files is either the old one or the new one.
        """
        data = with_checksum(msgspec.json.encode({"version": 2, "tables": list(self._tables.values())}))
        for path in (f"{self.path}.copy", self.path):
            durable.replace(self._disk, path, data)


def _load_tables(
    path: str, disk: Disk, quarantine: str | os.PathLike[str] | None
) -> tuple[Sequence[TableSchema] | None, bool]:
    """Read the tables of a file: (tables, or None without an intact file; whether it is damaged)."""
    try:
        return durable.load(disk, path, lambda data: _decode(data, path)), False
    except DamagedFile as error:
        if quarantine is None:
            _logger.error("schema registry %s; it is not used", error)
        else:
            _logger.error("schema registry %s; it is moved to %s", error, quarantine)
            durable.move(disk, path, os.path.join(quarantine, os.path.basename(path)))
        return None, True


def _decode(data: bytes, path: str) -> Sequence[TableSchema]:
    holds = checksum_holds(data)
    if holds is False:
        raise ValueError("its checksum does not match")
    try:
        return msgspec.json.decode(data, type=_RegistryFile).tables
    except msgspec.ValidationError as error:
        content = msgspec.json.decode(data)
        version = content.get("version") if isinstance(content, dict) else None
        if holds or (isinstance(version, int) and version > 2):
            raise UnknownVersion(
                f"{path} is of another version of arcpipe ({error}; version {version!r}, this one knows 1 and 2). "
                "Nothing is uploaded until that version runs again, or the file is moved away"
            ) from error
        raise
