"""Columns of files that do not fit their table, and the columns that take their values. Pure functions.

The table is the truth over all nodes. A file's column whose type is another one than the table's goes to the sibling
that the uploader would have chosen (`upload.table_schema`), such as `n_str`. One whose name differs from a column of
the table in case only gets a number; so does a former name of a column that the file has under another one, too.
Integers stay where the table has floats, up to 2^53: the rest of them moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import TIME
from arcpipe.lake.column_names import folded, is_reserved, numbered
from arcpipe.lake.file_schema import RESCUED_DATA, SENDERS_NAME, TIME_NS, file_order
from arcpipe.tables.base import Column
from arcpipe.tables.schema import word_of

_EXACT: Final = 1 << 53  # the integers up to this one are all exact as float64
_FIXED: Final = frozenset({TIME, TIME_NS, RESCUED_DATA})  # no sender names them, so their types differ nowhere
_U64: Final = pa.decimal128(20, 0)


class Move(NamedTuple):
    """Values of a file's column that go to another column."""

    column: str  # in the file
    senders: str  # the name that the sender gave it
    type: str  # its type in the file: the uploader's word
    table_type: str  # the type of the table's column of that name; empty if only the name is in the way
    target: str  # the column that takes the values
    keeps: bool = False  # integers that are exact as floats stay, and become floats
    overflows: bool = True  # some values move; False only where all of them stay
    present: str = ""  # the name that a person gave the column of this name, which the file has under another, too


def moves(
    known: Sequence[Column],
    schema: pa.Schema,
    chosen: Mapping[tuple[str, str], str],
    metadata: Any = None,
) -> list[Move]:
    """Find the columns of a file that have to move.

    Args:
        known: the columns of the table.
        schema: of the file, without dictionaries.
        chosen: targets that were chosen earlier, by column and type.
        metadata: the footer, whose statistics tell whether all integers stay.
    """
    types = {column.name: column.type for column in known}
    second = _second_names(schema, {column.name: column.present for column in known if column.present})
    spellings = {folded(name): name for name in types}
    found: list[Move] = []
    own = {folded(field.name) for field in schema}
    for field in schema:
        if field.name in _FIXED:
            continue
        word, table_type = word_of(field.type), types.get(field.name)
        is_other = field.name in second or (table_type is None and folded(field.name) in spellings)
        if not is_other and table_type in (None, word):
            continue
        type_ = "u64" if field.type == _U64 else word

        def fits(name: str, word: str = word) -> bool:
            """Tell whether a column may take the values: the table has none of this name, or one of this type."""
            if folded(name) in own or is_reserved(name, hive=True):
                return False
            return types[name] == word if name in types else folded(name) not in spellings

        target = chosen.get((field.name, type_), "")
        if not target or not fits(target):
            target = field.name if is_other else f"{field.name}_{type_}"
            if is_other or not fits(target):
                target, _ = numbered(target, fits)
        own.add(folded(target))
        senders = (field.metadata or {}).get(SENDERS_NAME, field.name.encode()).decode()
        keeps = not is_other and (type_, table_type) == ("i64", "f64")
        overflows = not keeps or _may_overflow(metadata, field.name)
        told = "" if is_other else table_type or ""
        found.append(Move(field.name, senders, type_, told, target, keeps, overflows, second.get(field.name, "")))
    return found


def _second_names(schema: pa.Schema, present: Mapping[str, str]) -> dict[str, str]:
    """Find the columns of a file that are, by a former name, one that it has already; with the present names."""
    names = [name for name in schema.names if name not in present]
    first = {name: name for name in names}
    return {
        name: present[name]
        for name in schema.names
        if name in present and first.setdefault(present[name], name) != name
    }


def _may_overflow(metadata: Any, name: str) -> bool:
    """Tell whether some integers of a column may be beyond `_EXACT`, by the footer."""
    if metadata is None or name not in metadata.schema.names:
        return True
    number = metadata.schema.names.index(name)
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group).column(number).statistics
        if found is not None and found.null_count == metadata.row_group(group).num_rows:
            continue
        if found is None or not found.has_min_max or found.min < -_EXACT or found.max > _EXACT:
            return True
    return False


def moved_schema(schema: pa.Schema, found: Sequence[Move]) -> pa.Schema:
    """Return the schema of a file after the moves."""
    by_column = {move.column: move for move in found}
    fields = []
    for field in schema:
        move = by_column.get(field.name)
        if move is None:
            fields.append(field)
            continue
        if move.keeps:
            fields.append(field.with_type(pa.float64()))
        if move.overflows:
            metadata = dict(field.metadata or {})
            metadata.pop(SENDERS_NAME, None)
            if move.senders != move.target:
                metadata[SENDERS_NAME] = move.senders.encode()
            fields.append(pa.field(move.target, field.type, field.nullable, metadata))
    return pa.schema(sorted(fields, key=file_order), schema.metadata)


def moved(table: pa.Table, found: Sequence[Move], schema: pa.Schema) -> pa.Table:
    """Move the values of some rows of a file.

    Args:
        schema: of `moved_schema`. Columns may have dictionaries all the same.
    """
    columns = dict(zip(table.schema.names, table.columns, strict=True))
    for move in found:
        values = columns.pop(move.column)
        if not move.keeps:
            columns[move.target] = values
            continue
        stays = pc.and_(pc.less_equal(values, _EXACT), pc.greater_equal(values, -_EXACT))
        columns[move.column] = pc.if_else(stays, values, None).cast(pa.float64())
        if move.overflows:
            columns[move.target] = pc.if_else(stays, None, values)
    arrays = [columns[name] for name in schema.names]
    fields = [field.with_type(array.type) for field, array in zip(schema, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields))


def moved_back(table: pa.Table, found: Sequence[Move], names: Sequence[str]) -> pa.Table:
    """Undo `moved`: give the rows that it was given, with columns of these names."""
    columns = dict(zip(table.schema.names, table.columns, strict=True))
    for move in found:
        beyond = columns.pop(move.target) if move.overflows else None
        if not move.keeps:
            columns[move.column] = beyond
            continue
        values = columns[move.column].cast(pa.int64())
        columns[move.column] = values if beyond is None else pc.coalesce(values, beyond)
    return pa.table({name: columns[name] for name in names})
