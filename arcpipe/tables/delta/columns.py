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

from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson
import pyarrow as pa

from arcpipe.lake.column_names import folded
from arcpipe.tables.base import Column, NewFile, Refused

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
# Arcpipe's words, and Arrow's.
_WORDS: Final = {
    "timestamp": "time",
    "long": "i64",
    "double": "f64",
    "boolean": "bool",
    "string": "str",
    "binary": "bytes",
    "decimal(20,0)": "u64",
}
_ARROW: Final = {
    "timestamp": str(pa.timestamp("us", tz="UTC")),
    "long": "int64",
    "integer": "int32",
    "short": "int16",
    "byte": "int8",
    "double": "double",
    "float": "float",
    "boolean": "bool",
    "string": "string",
    "binary": "binary",
    "date": "date32[day]",
    "decimal(20,0)": str(pa.decimal128(20, 0)),
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
    return [Column(field["name"], _WORDS.get(_type_word(field), _type_word(field))) for field in fields]


def new_fields(fields: Fields, files: Iterable[NewFile]) -> Fields:
    """Return the fields that the files have and the table has not, in the files' order.

    Raises:
        Refused: a file does not fit the table; the first one that does not.
    """
    known = {field["name"]: field for field in fields}
    by_case = {folded(name): name for name in known}
    added: Fields = []
    seen: set[bytes] = set()
    for file in files:
        schema = file.metadata.schema.to_arrow_schema()
        form = schema.remove_metadata().serialize().to_pybytes()
        if form not in seen:  # most files of a commit have the same columns
            seen.add(form)
            for column in schema:
                wanted = _field(column, file.key)
                there = known.get(column.name)
                if there is None:
                    _require_new_name(wanted, column, by_case, known, file.key)
                    known[column.name] = wanted
                    by_case[folded(column.name)] = column.name
                    added.append(wanted)
                elif there["type"] != wanted["type"]:
                    raise _differs(there, column, file.key)
        _require_values(fields, file, schema.names)
    return added


def _field(column: pa.Field, key: str) -> dict[str, Any]:
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    word = _TYPES.get(type_)
    if word is None and pa.types.is_decimal128(type_):
        word = f"decimal({type_.precision},{type_.scale})"
    if word is None:
        raise Refused(
            f"{key}: column {column.name!r} is {column.type}, which Delta does not have. "
            "Write the file again with another type, or take it out of the import",
            column=column.name,
            file_type=str(column.type),
            key=key,
        )
    return {"name": column.name, "type": word, "nullable": True, "metadata": {}}


def _require_new_name(
    wanted: dict[str, Any], column: pa.Field, by_case: dict[str, str], known: dict[str, dict[str, Any]], key: str
) -> None:
    other = by_case.get(folded(column.name))
    if other is not None:
        raise Refused(
            f"{key}: column {column.name!r} differs from the table's {other!r} only in case, and most readers take "
            "them for one. Rename one of them at its sender",
            column=column.name,
            table_type=_arrow_word(known[other]),
            file_type=str(column.type),
            key=key,
        )


def _differs(there: dict[str, Any], column: pa.Field, key: str) -> Refused:
    name, in_table = column.name, _arrow_word(there)
    return Refused(
        f"{key}: column {name!r} is {column.type} in the file and {in_table} in the table. "
        "A column's type never changes: give the senders one type, or write this one under another name",
        column=name,
        table_type=in_table,
        file_type=str(column.type),
        key=key,
    )


def _require_values(fields: Fields, file: NewFile, names: Sequence[str]) -> None:
    """Refuse a file without values for a column that must have some. Tables of arcpipe have no such column."""
    for field in fields:
        if field.get("nullable", True):
            continue
        name = field["name"]
        if name not in names or _nulls(file.metadata, list(names).index(name)) != 0:
            raise Refused(
                f"{file.key}: column {name!r} may not be null in the table, and the file has rows without it. "
                f"Allow it: ALTER TABLE … ALTER COLUMN `{name}` DROP NOT NULL",
                column=name,
                table_type=_arrow_word(field),
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


def _type_word(field: dict[str, Any]) -> str:
    """Return a type as the log has it; the kind of a nested one."""
    type_ = field["type"]
    return type_ if isinstance(type_, str) else str(type_.get("type", "nested"))


def _arrow_word(field: dict[str, Any]) -> str:
    word = _type_word(field)
    return _ARROW.get(word, word)
