"""The columns of a table against those of its files: which ones are new, and what does not fit. Pure.

| in the file | in the table |
|---|---|
| timestamp[us, UTC] | timestamp |
| int64, int32, int16, int8 | long, integer, short, byte |
| double, float | double, float |
| bool, string, binary | boolean, string, binary |
| decimal(p, s) | decimal(p,s) |
| date32 | date |

Any other type has no place in Delta, such as uint64, or times in ns. Names may have every character. Spark reads,
merges and deletes them all, and only refuses to change the columns of a table where one has a space or ` ,;{}()=`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson
import pyarrow as pa

from arcpipe.tables.base import Column, NewFile, Refused, TableName
from arcpipe.tables.schema import added, differing, shown, wanted, word_of

_TYPES: Final[dict[pa.DataType, str]] = {
    pa.timestamp("us", tz="UTC"): "timestamp",
    pa.int64(): "long",
    pa.int32(): "integer",
    pa.int16(): "short",
    pa.int8(): "byte",
    pa.float64(): "double",
    pa.float32(): "float",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.string_view(): "string",
    pa.binary(): "binary",
    pa.large_binary(): "binary",
    pa.binary_view(): "binary",
    pa.date32(): "date",
}
_DECIMAL: Final = re.compile(r"decimal\((\d+),(\d+)\)")
_WORDS: Final = {
    "timestamp": "time",
    "long": "i64",
    "integer": "i32",
    "short": "i16",
    "double": "f64",
    "float": "f32",
    "boolean": "bool",
    "string": "str",
    "binary": "bytes",
}

Fields = list[dict[str, Any]]
"""The fields of a table, as its schema in the log has them: name, type, nullable, metadata."""


def fields_of(schema: str) -> Fields:
    """Read the fields from a schema of the log. Raises ValueError: it is none."""
    try:
        fields = orjson.loads(schema)["fields"]
        if not all(isinstance(field["name"], str) and field["type"] for field in fields):
            raise ValueError("a field has no name or no type")
    except (KeyError, TypeError) as error:
        raise ValueError(f"it has no fields: {error!r}") from error
    return list(fields)


def schema_of(fields: Fields) -> str:
    """Write a schema for the log."""
    return orjson.dumps({"type": "struct", "fields": fields}).decode()


def columns_of(fields: Fields) -> list[Column]:
    """Return the columns for people and programs: names, and types in arcpipe's words where there is one."""
    return [Column(field["name"], _word(field)) for field in fields]


def new_fields(table: TableName, fields: Fields, files: Sequence[NewFile]) -> Fields:
    """Return the fields that the files have and the table has not, in the files' order.

    Raises:
        Refused: a file does not fit the table.
    """
    known = {field["name"]: field for field in fields}
    columns = wanted(table, files)
    for column in columns:
        there = known.get(column.name)
        if there is not None and there["type"] != _type_of(column.type):
            raise differing(table, column.name, _word(there), word_of(column.type), column.key)
    for file in files:
        _require_values(table, fields, file)
    return [
        {"name": column.name, "type": type_, "nullable": True, "metadata": {}}
        for column, type_ in added(table, {name: _word(field) for name, field in known.items()}, columns, _type_of)
    ]


def _type_of(type_: pa.DataType) -> str | None:
    """Return Delta's type for a file's; None if it has no such."""
    if pa.types.is_decimal128(type_):
        return f"decimal({type_.precision},{type_.scale})"
    return _TYPES.get(type_)


def _require_values(table: TableName, fields: Fields, file: NewFile) -> None:
    """Refuse a file without values for a column that must have some. Tables of arcpipe have no such column."""
    for field in fields:
        if field.get("nullable", True):
            continue
        name = field["name"]
        names = file.metadata.schema.names
        if name not in names or _nulls(file.metadata, names.index(name)) != 0:
            raise Refused(
                f"{shown(table)}: the column {name!r} may not be null in the table, and {file.key} has rows without "
                f"it. Allow it: ALTER TABLE … ALTER COLUMN `{name}` DROP NOT NULL",
                column=name,
                table_type=_word(field),
                key=file.key,
            )


def _nulls(metadata: Any, number: int) -> int | None:
    """Count the nulls of a column; None if a row group does not tell."""
    count = 0
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group).column(number).statistics
        if found is None or not found.has_null_count:
            return None
        count += found.null_count
    return count


def _word(field: dict[str, Any]) -> str:
    """Return a type in arcpipe's word; the log's, if arcpipe has none; the kind of a nested one."""
    type_ = field["type"]
    if not isinstance(type_, str):
        return str(type_.get("type", "nested"))
    if match := _DECIMAL.fullmatch(type_):
        return str(pa.decimal128(int(match[1]), int(match[2])))
    return _WORDS.get(type_, type_)
