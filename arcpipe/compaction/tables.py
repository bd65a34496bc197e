"""Tables of different files made alike: the same columns, each with or without dictionaries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def compacted(table: pa.Table) -> pa.Table:
    """Drop the values of dictionaries that no row has, and dictionaries that save nothing."""
    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array(
                [_compacted(chunk) for chunk in column.chunks], type=None if column.num_chunks else column.type
            )
        columns.append(column)
    return pa.table(columns, schema=pa.schema(f.with_type(c.type) for f, c in zip(table.schema, columns, strict=True)))


def _compacted(array: Any) -> Any:
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
