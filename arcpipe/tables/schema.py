"""Columns of files held against the columns of a table: which are new, and which do not fit. Pure functions.

The table is the truth over all nodes: a column that it has keeps its type, and one that it has not is added. Names that
some engine takes for one (`usage`, `Usage`) are one column to most readers, so the second comer is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import pyarrow as pa

from arcpipe.lake.column_names import folded
from arcpipe.lake.file_schema import TIME_TYPE, for_readers
from arcpipe.tables.base import NewFile, Refused, TableName

T = TypeVar("T")

_WORDS: Final = {
    pa.int16(): "i16",
    pa.int32(): "i32",
    pa.int64(): "i64",
    pa.uint64(): "u64",
    pa.float32(): "f32",
    pa.float64(): "f64",
    pa.bool_(): "bool",
    pa.string(): "str",
    pa.binary(): "bytes",
    TIME_TYPE: "time",
}


def word_of(type_: pa.DataType) -> str:
    """Return arcpipe's word for a type (i64, f64, str, …), or Arrow's own text for one that arcpipe does not write."""
    return _WORDS.get(type_) or str(type_)


class Wanted(NamedTuple):
    """A column of files."""

    name: str
    type: pa.DataType
    key: str  # the first file that has it


def wanted(table: TableName, files: Sequence[NewFile]) -> list[Wanted]:
    """Join the columns of files, those of the first file first.

    Raises:
        Refused: two of the files have a column with different types.
    """
    found: dict[str, Wanted] = {}
    seen: set[bytes] = set()
    for file in files:
        # Files of one table have equal schemas nearly always, and to parse one costs more than all else here.
        text = (file.metadata.metadata or {}).get(b"ARROW:schema", b"")
        if text and text in seen:
            continue
        seen.add(text)
        for field in for_readers(file.metadata.schema.to_arrow_schema()):
            column = found.setdefault(field.name, Wanted(field.name, field.type, file.key))
            if column.type != field.type:
                raise differing(table, field.name, word_of(column.type), word_of(field.type), file.key)
    return list(found.values())


def added(
    table: TableName, existing: Collection[str], columns: Iterable[Wanted], type_of: Callable[[pa.DataType], T | None]
) -> list[tuple[Wanted, T]]:
    """Return the columns that the table has not, with the types that they get there. That others fit is the caller's.

    Args:
        existing: the names of the table's columns.
        type_of: gives the table's type for Arrow's; None if the format has no such.

    Raises:
        Refused: the format has no such type, or the name differs from another one's in case only.
    """
    names = {folded(name): name for name in existing}
    new: list[tuple[Wanted, T]] = []
    for column in columns:
        if column.name in existing:
            continue
        if (other := names.setdefault(folded(column.name), column.name)) != column.name:
            raise Refused(
                f"{shown(table)}: the column {column.name!r} of {column.key} and the table's {other!r} differ in case "
                "only, and most engines take them for one: rename one of them at its sender",
                column=column.name,
                key=column.key,
            )
        type_ = type_of(column.type)
        if type_ is None:
            raise Refused(
                f"{shown(table)}: the table's format has no type for {word_of(column.type)}, "
                f"which the column {column.name!r} of {column.key} has: rewrite the file with another type",
                column=column.name,
                file_type=word_of(column.type),
                key=column.key,
            )
        new.append((column, type_))
    return new


def differing(table: TableName, column: str, table_type: str, file_type: str, key: str) -> Refused:
    """Make the error for a column whose type in the table is another one than in a file."""
    return Refused(
        f"{shown(table)}: the column {column!r} is {table_type} in the table and {file_type} in {key}: "
        "its file stays out until one of them is changed",
        column=column,
        table_type=table_type,
        file_type=file_type,
        key=key,
    )


def shown(table: TableName) -> str:
    """Name a table in a text."""
    return f"table {table[1]!r} of database {table[0]!r}"
