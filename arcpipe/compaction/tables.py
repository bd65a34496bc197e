"""Tables of different files made alike: the same columns, each with or without dictionaries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints: TypeAlias = npt.NDArray[np.int64]

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


class Form:
    """The columns of all tables of a merge."""

    def __init__(self, schema: pa.Schema, dictionaries: Collection[str]) -> None:
        """Choose the form.

        Args:
            schema: the columns as readers see them.
            dictionaries: text columns that have dictionaries here.
        """
        self.schema = schema
        self.stored = pa.schema(
            field.with_type(_DICTIONARY) if field.name in dictionaries else field for field in schema
        ).remove_metadata()

    def of(self, table: pa.Table) -> pa.Table:
        """Give a table, whose columns are among these, all of them."""
        given = dict(zip(table.schema.names, table.columns, strict=True))
        columns = [
            _cast(given[field.name], field.type) if field.name in given else pa.nulls(len(table), field.type)
            for field in self.stored
        ]
        return pa.table(columns, schema=self.stored)


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if column.type == type_:
        return column
    if not pa.types.is_dictionary(type_):
        return column.cast(type_)
    if pa.types.is_dictionary(column.type):
        return column.cast(type_)
    return column.dictionary_encode()


def joined(tables: list[pa.Table]) -> pa.Table:
    """Join tables of one form into one with one chunk for each column; `tables` is emptied."""
    whole = pa.concat_tables(tables).unify_dictionaries()
    tables.clear()
    return whole.combine_chunks()


def together(tables: list[pa.Table], least_rows: int) -> pa.Table:
    """Put tables of one form together without a copy; those of text get one dictionary. `tables` is emptied.

    Args:
        least_rows: smaller pieces, on average, are joined.
    """
    whole = pa.concat_tables(tables).unify_dictionaries()
    if len(whole) < least_rows * len(tables):
        whole = whole.combine_chunks()
    tables.clear()
    return whole


def with_one_dictionary(table: pa.Table) -> pa.Table:
    """Give each text column with dictionaries one chunk, and so one dictionary. The others stay as they are."""
    table = table.unify_dictionaries()
    columns = [pa.chunked_array([column.combine_chunks()]) if _is_cut(column) else column for column in table.columns]
    return pa.table(columns, schema=table.schema)


def _is_cut(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_dictionary(column.type)) and column.num_chunks > 1


def taken(table: pa.Table, rows: Ints) -> pa.Table:
    """Take rows, whose numbers are right."""
    numbers = pa.array(rows)
    return pa.table([_taken(column, rows, numbers) for column in table.columns], schema=table.schema)


def _taken(column: pa.ChunkedArray, rows: Ints, numbers: pa.Array) -> Any:
    if column.num_chunks == 1 and len(column) and not column.null_count:
        array = column.chunk(0)
        if pa.types.is_dictionary(array.type):
            indices = _taken_values(array.indices, rows)
            return pa.DictionaryArray.from_arrays(indices, array.dictionary, safe=False)
        if pa.types.is_primitive(array.type) and array.type.bit_width % 8 == 0:
            return _taken_values(array, rows)
    return pc.take(column, numbers, boundscheck=False)


def _taken_values(array: Any, rows: Ints) -> Any:
    """Take values of whole bytes, none of them null. numpy does it in half the time."""
    width = array.type.bit_width // 8
    values = np.frombuffer(array.buffers()[1], f"u{width}", len(array), width * array.offset)
    found = np.take(values, rows, mode="clip")  # the mode "raise" copies it
    return pa.Array.from_buffers(array.type, len(rows), [None, pa.py_buffer(found)])


def compacted(table: pa.Table, small: float = 0.0) -> pa.Table:
    """Drop the values of dictionaries that no row has.

    Args:
        small: dictionaries stay as they are below this part of the bytes of the rows' indices.
    """
    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array(
                [_compacted(chunk, small) for chunk in column.chunks], type=None if column.num_chunks else column.type
            )
        columns.append(column)
    return pa.table(columns, schema=pa.schema(f.with_type(c.type) for f, c in zip(table.schema, columns, strict=True)))


def _compacted(array: Any, small: float) -> Any:
    if array.dictionary.nbytes < small * array.indices.nbytes:
        return array
    indices = pc.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)
    valid = array.is_valid()
    size = len(array.dictionary)
    if not size:
        return array
    used = np.bincount(indices[valid.to_numpy(zero_copy_only=False)] if array.null_count else indices, minlength=size)
    kept = np.flatnonzero(used)
    if len(kept) == size:
        return array
    places = np.zeros(size, np.int32)
    places[kept] = np.arange(len(kept))
    mask = None if not array.null_count else ~valid.to_numpy(zero_copy_only=False)
    return pa.DictionaryArray.from_arrays(
        pa.array(places[indices], mask=mask), array.dictionary.take(pa.array(kept, pa.int64()))
    )
