"""Lessons: the types of tables that other nodes, or other programs, chose before this node's registry of columns did.

The committer writes them (`tables.learned`) when it has to rewrite a file. They are taught to the registry between two
batches, so that later files fit from the beginning. A lesson that the registry has followed says nothing new to it.

Nothing depends on a lesson: a file that ignores it is rewritten. So one that cannot be read now is read later.
"""

from __future__ import annotations

import logging
import os
from typing import Final, cast, get_args

import msgspec

from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError
from arcpipe.lake.column_names import folded
from arcpipe.tables.learned import Learned, LearnedColumn, path_of
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.upload.table_schema import ColumnSchema, TableSchema, TypeWord

log = logging.getLogger(__name__)

_WORDS: Final = frozenset(get_args(TypeWord)) - {"u64"}  # that of a sibling only


class Lessons:
    """The lessons of one WAL directory. One thread at a time may call it."""

    def __init__(self, folder: str | os.PathLike[str], disk: Disk) -> None:
        """Make ready; nothing is read.

        Args:
            folder: `tables/` of the WAL directory.
        """
        self._folder = folder
        self._disk = disk
        self._seen: tuple[int, ...] | None = None
        self._learned: Learned | None = None
        self.are_new = False
        """Whether the registry's file may lack some of them."""

    def refresh(self) -> None:
        """Read them again, if there are others."""
        try:
            found = os.stat(path_of(self._folder))
        except OSError:
            return
        seen = found.st_ino, found.st_size, found.st_mtime_ns
        if seen == self._seen:
            return
        try:
            self._learned = Learned.load(self._folder, self._disk)
        except OSError as error:
            log.warning("the types of tables cannot be read, and are read later: %s", error)
            return
        except ArcpipeError as error:
            log.warning("the types of tables are not used: %s", error)
        self._seen = seen
        self.are_new = True

    def teach(self, registry: SchemaRegistry) -> None:
        """Change the registry as they say. Its file stays."""
        for table in self._learned.tables() if self._learned is not None else ():
            known = registry.find((table.database, table.measurement))
            if known is None:
                continue
            taught = _taught(known, table.columns)
            if taught.columns != known.columns:
                registry.apply([taught])


def _taught(table: TableSchema, lessons: list[LearnedColumn]) -> TableSchema:
    changed = table.copy()
    for lesson in lessons:
        column = changed.columns.get(lesson.name)
        if column is not None:
            changed.columns[lesson.name] = _follow(changed, column, lesson)
    return changed


def _follow(table: TableSchema, column: ColumnSchema, lesson: LearnedColumn) -> ColumnSchema:
    """Change a column as a lesson says, if it is as the lesson met it."""
    siblings, type_ = dict(column.siblings), cast(TypeWord, lesson.type)
    if siblings.get(type_) == lesson.column:
        return column if _is_taken(table, lesson) else _with(column, {**siblings, type_: lesson.target})
    if (column.column or lesson.name) != lesson.column:
        return column
    if column.type == lesson.type and lesson.table_type in _WORDS:
        siblings.pop(cast(TypeWord, lesson.table_type), None)  # such values have the column itself now
        column = msgspec.structs.replace(column, type=cast(TypeWord, lesson.table_type))
    elif column.type == lesson.type:  # the table's column is none that arcpipe can write
        stored = _stored(lesson.target, lesson.name)
        return column if _is_taken(table, lesson) else msgspec.structs.replace(column, column=stored)
    elif column.type != lesson.table_type or type_ in siblings:
        return column
    return _with(column, siblings if _is_taken(table, lesson) else {**siblings, type_: lesson.target})


def _with(column: ColumnSchema, siblings: dict[TypeWord, str]) -> ColumnSchema:
    return msgspec.structs.replace(column, siblings=siblings)


def _stored(column: str, name: str) -> str:
    """Return a column's name as the schema has it: empty where it is the sender's."""
    return "" if column == name else column


def _is_taken(table: TableSchema, lesson: LearnedColumn) -> bool:
    """Tell whether another sender's name has the target of a lesson: then the registry chooses one itself."""
    target = folded(lesson.target)
    return any(
        target in {folded(column.column or name), *map(folded, column.siblings.values())}
        for name, column in table.columns.items()
        if name != lesson.name
    )
