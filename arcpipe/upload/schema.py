"""The types that columns have had so far, so that they have the same ones in the next file.

Per (database, measurement) a column's first type is its type for good, but that integers may once become f64 when a
float comes. What does not fit a column's type is rescued (`codec.odd_values`), never a reason to change it.

The registry is a function of the batches that were applied to it, in order, and it changes only when a batch is
complete: a batch works on `draft`s and gives back what it changed, so that doing it again, after a crash, meets the
same registry and writes the same files. This module must not know what a batch is, nor Arrow or Parquet.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, Literal, cast

import msgspec

from arcpipe.codec.arrow_columns import Values, has_floats, natural_type

MAX_TABLES: Final = 100_000
"""Tables remembered; beyond that the one that changed longest ago is forgotten."""

MAX_REMEMBERED: Final = 500_000
"""Columns remembered of all tables together, in the same way."""

MAX_COLUMNS: Final = 4_096
"""Columns of a table; what further ones hold is rescued."""

TypeWord = Literal["i64", "u64", "f64", "bool", "str", "bytes"]

_logger = logging.getLogger(__name__)


class ColumnSchema(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A column's type, and whether a sender ever called it a tag."""

    type: TypeWord
    tag: bool = False


class TableSchema(msgspec.Struct, array_like=True):
    """The columns of a measurement but for time, in the order in which they came."""

    database: str
    measurement: str
    columns: dict[str, ColumnSchema] = {}  # msgspec copies it

    def copy(self) -> TableSchema:
        return TableSchema(self.database, self.measurement, dict(self.columns))

    def settle(self, name: str, values: Values, hints: Collection[str], tag: bool) -> TypeWord | None:
        """The type that this column's values are to have, remembered from now on; None if none has a type.

        `hints` are the types that senders said: they decide over a new column, and f64 also over an integer one.
        """
        known = self.columns.get(name)
        if known is None:
            if len(self.columns) >= MAX_COLUMNS:
                return None
            type_ = _agreed(hints) or natural_type(values)
            if type_ is None:
                return None
        else:
            type_ = known.type
        if type_ in ("i64", "u64") and ("f64" in hints or has_floats(values)):
            type_ = "f64"
        column = ColumnSchema(cast(TypeWord, type_), tag or (known is not None and known.tag))
        if column != known:
            self.columns[name] = column
        return column.type


def _agreed(hints: Collection[str]) -> str | None:
    """One type for what senders said of a column, or None: nothing, or things that do not go together."""
    if len(hints) == 1:
        return next(iter(hints))
    if hints and set(hints) <= {"i64", "u64", "f64"}:
        return "f64" if "f64" in hints else "i64"
    return None


class _File(msgspec.Struct):
    version: Literal[1]
    tables: list[TableSchema]


class SchemaRegistry:
    """The schemas of all tables, and the file that keeps them. One thread changes it at a time."""

    def __init__(self, path: Path, tables: Iterable[TableSchema] = ()) -> None:
        self.path = path
        # The order is that of the last change, and it is saved: what is forgotten first is the same after a restart.
        self._tables: dict[tuple[str, str], TableSchema] = {}
        self._columns = 0
        self.apply(tables)

    def __len__(self) -> int:
        return len(self._tables)

    def draft(self, database: str, measurement: str) -> TableSchema:
        """A copy of a table's schema to work on; empty for a table that is not known."""
        known = self._tables.get((database, measurement))
        return TableSchema(database, measurement) if known is None else known.copy()

    def changed(self, drafts: Iterable[TableSchema]) -> list[TableSchema]:
        """Those of the drafts that differ from what the registry holds, by database and measurement."""
        changed = []
        for draft in drafts:
            known = self._tables.get((draft.database, draft.measurement))
            if draft.columns != (known.columns if known else {}):
                changed.append(draft)
        return sorted(changed, key=lambda draft: (draft.database, draft.measurement))

    def apply(self, changes: Iterable[TableSchema]) -> None:
        """Take over what a complete batch changed."""
        for table in changes:
            key = (table.database, table.measurement)
            self._forget(key)
            self._tables[key] = table
            self._columns += len(table.columns)
        while len(self._tables) > MAX_TABLES or self._columns > MAX_REMEMBERED:
            self._forget(next(iter(self._tables)))

    def _forget(self, key: tuple[str, str]) -> None:
        table = self._tables.pop(key, None)
        if table is not None:
            self._columns -= len(table.columns)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SchemaRegistry:
        """The registry saved at `path`. One that is missing or unreadable is empty, with a warning: never a stop."""
        path = Path(path)
        try:
            return cls(path, msgspec.json.decode(path.read_bytes(), type=_File).tables)
        except FileNotFoundError:
            _logger.info("no schema registry at %s yet", path)
        except (OSError, msgspec.MsgspecError) as error:
            _logger.warning("schema registry %s cannot be read, column types start anew: %s", path, error)
        return cls(path)

    def save(self) -> None:
        """Write the registry to its file, durably and at once. Raises OSError."""
        path = self.path
        data = msgspec.json.encode(_File(1, list(self._tables.values())))
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
