"""Arrow IPC streams of one table -> one Arrow table, sorted by time, with as few copies as possible.

This is the quick road: each column has one type, and that of the table's column fits it. Everything else takes the slow
road, over columnar maps (`codec.arrow_ipc.columns`), where values that fit no column are rescued. Both give the same
rows in the same columns. This module must not know files or threads; it changes nothing but the `TableSchema`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.arrow.arrays import ARROW_TYPES, take
from arcpipe.codec.arrow.values import Ints, Values
from arcpipe.codec.arrow_ipc.check import plan_of, read_batches
from arcpipe.codec.arrow_ipc.columns import roles_of, word_of
from arcpipe.codec.arrow_ipc.times import read_times
from arcpipe.codec.columns import TIME
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.records.plan import Plan
from arcpipe.lake.file_schema import TIME_NS, TIME_TYPE, file_order
from arcpipe.units import MB
from arcpipe.upload.arrow_entries import TIME_BYTES, ArrowEntry
from arcpipe.upload.budget import DECODED_BYTES
from arcpipe.upload.convert import ConvertedRows, column_field, time_array
from arcpipe.upload.table_schema import ColumnRules, Columns, TableSchema

# Bounds of a dictionary that Parquet takes as it is; a larger one is written out.
_DICTIONARY_VALUES: Final = 1 << 15
_DICTIONARY_BYTES: Final = MB // 2

# The type of a column by the word of a batch's column, where they are not the same: numbers that fit are cast.
_CASTS: Final = {("i64", "f64"), ("u64", "i64"), ("u64", "u64"), ("u64", "f64")}


class NotPlain(Exception):
    """Some values do not fit their columns: the streams have to take the slow road."""


class TooMany(Exception):
    """The rows would take too much memory together."""


class Part(NamedTuple):
    """A record batch, and the way to its columns."""

    batch: pa.RecordBatch
    plan: Plan
    fields: dict[str, str]  # by column
    rule: TimeRule
    timestamp_us: int

    @property
    def cost(self) -> int:
        """The bytes of memory that its rows take once they are converted."""
        rows: int = self.batch.num_rows
        decoded: int = max(self.batch.nbytes, DECODED_BYTES * self.batch.num_columns * rows)
        return decoded + TIME_BYTES * rows


def convert_arrow(
    entries: Sequence[ArrowEntry], schema: TableSchema, rules: ColumnRules, most_bytes: int
) -> ConvertedRows:
    """Convert streams of one table, which have at least one row.

    Args:
        most_bytes: of memory that the rows may take.

    Raises:
        TooMany: they take more.
        NotPlain: some values do not fit.
        BadPayload, pa.ArrowException: a stream cannot be read, or a cast fails.
    """
    parts = [part for entry in entries for part in parts_of(entry)]
    if sum(part.cost for part in parts) > most_bytes:
        raise TooMany
    return convert_parts(parts, schema, rules)


def convert_parts(parts: Sequence[Part], schema: TableSchema, rules: ColumnRules) -> ConvertedRows:
    """Convert record batches of one table, as `convert_arrow`."""
    times_us, sub_us = _times(parts)
    order = None
    if (times_us[1:] < times_us[:-1]).any():
        order = pa.array(np.argsort(times_us, kind="stable").astype(np.int32))
        times_us = take(pa.array(times_us), order).to_numpy()
    names = dict.fromkeys(column for part in parts for column in part.plan.columns)
    columns = Columns(schema, rules, [*names, *([TIME] if any(part.plan.time for part in parts) else [])])
    fields: dict[pa.Field, pa.Array] = {column_field(TIME, TIME_TYPE, b"time"): time_array(times_us)}
    if rules.keep_nanoseconds:
        fields[column_field(TIME_NS, pa.int16(), b"time")] = _sorted(pa.array(sub_us), order)
    for name in names:
        field, array = _column(name, parts, columns)
        fields[field] = _sorted(array, order)
    in_order = sorted(fields, key=file_order)
    return ConvertedRows(pa.table([fields[field] for field in in_order], schema=pa.schema(in_order)), times_us, 0)


def parts_of(entry: ArrowEntry) -> Iterator[Part]:
    """Read the record batches of a stream that have rows. Raises BadPayload."""
    roles, rule = roles_of(entry.body), TimeRule(entry.precision)
    plan: Plan | None = None
    fields: dict[str, str] = {}
    for batch in read_batches(entry.body.arrow):
        if plan is None:
            plan = plan_of(batch.schema, roles)
            fields = dict(zip(plan.columns, plan.fields, strict=True))
        if len(batch):
            yield Part(batch, plan, fields, rule, entry.timestamp_us)


def slices_of(entry: ArrowEntry, most_bytes: int) -> Iterator[list[Part]]:
    """Cut a stream into runs of rows that take about `most_bytes` each. Raises BadPayload.

    A compressed batch is decompressed as a whole. Its slices are views into it.
    """
    run: list[Part] = []
    held = 0
    for part in parts_of(entry):
        rows = len(part.batch)
        most_rows = max(1, most_bytes * rows // part.cost)
        for start in range(0, rows, most_rows):
            piece = part._replace(batch=part.batch.slice(start, most_rows))
            if run and held + piece.cost > most_bytes:
                yield run
                run, held = [], 0
            run.append(piece)
            held += piece.cost
    if run:
        yield run


def _of(batch: pa.RecordBatch, name: str) -> pa.Array:
    array = batch.column(batch.schema.get_field_index(name))
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array


def _times(parts: Sequence[Part]) -> tuple[Ints, npt.NDArray[np.int16]]:
    """Return the time of every row: (µs since the epoch, digits below)."""
    all_us: list[Ints] = []
    all_sub: list[npt.NDArray[np.int16]] = []
    for part in parts:
        count = len(part.batch)
        sub_us = np.zeros(count, np.int16)
        if part.plan.time is None:
            us = np.full(count, part.timestamp_us, np.int64)
        else:
            times = read_times(_of(part.batch, part.plan.time), part.rule)
            us = times.us
            if len(times.odd):
                raise NotPlain
            if len(times.missing):
                us = us.copy()
                us[times.missing] = part.timestamp_us
            if times.sub_us is not None:
                sub_us = times.sub_us
        all_us.append(us)
        all_sub.append(sub_us)
    return (all_us[0], all_sub[0]) if len(parts) == 1 else (np.concatenate(all_us), np.concatenate(all_sub))


def _column(name: str, parts: Sequence[Part], columns: Columns) -> tuple[pa.Field, pa.Array]:
    """Convert a column of all parts: (its field, its values). Raises NotPlain."""
    arrays: list[pa.Array | None] = []
    words: set[str | None] = set()
    is_tag = False
    for part in parts:
        field = part.fields.get(name)
        if field is None:
            arrays.append(None)
            continue
        array = _of(part.batch, field)
        arrays.append(array)
        words.add(word_of(array.type))
        is_tag = is_tag or name in part.plan.tags
    word = words.pop()
    if words or word is None:
        raise NotPlain
    column = columns.settle(name, cast(Values, None), {word}, is_tag)  # a hint settles the type, whatever the values
    if column is None or (column.type != word and (word, column.type) not in _CASTS):
        raise NotPlain
    target = ARROW_TYPES[column.type]
    chunks = [
        pa.nulls(len(part.batch), target) if array is None else _cast(array, target)
        for part, array in zip(parts, arrays, strict=True)
    ]
    array = _joined(chunks, target)
    return column_field(column.column or name, array.type, b"tag" if column.tag else b"field", name), array


def _cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast values to a column's type, without a copy where they have it. Raises NotPlain."""
    types = pa.types
    type_ = array.type
    if types.is_dictionary(type_):
        return _dictionary(array, target)
    if types.is_timestamp(target):
        times = read_times(array, TimeRule())
        if len(times.odd):
            raise NotPlain
        mask = None
        if len(times.missing):
            mask = np.zeros(len(array), np.bool_)
            mask[times.missing] = True
        return pa.array(times.us, pa.int64(), mask=mask).cast(target)
    if types.is_decimal(type_) or types.is_time(type_) or types.is_interval(type_):
        raise NotPlain
    if types.is_duration(type_):
        array = array.cast(pa.int64())
    if types.is_float16(type_):
        array = array.cast(pa.float32())
    try:
        return array.cast(target)
    except pa.ArrowInvalid:  # an integer that the target does not hold
        raise NotPlain from None


def _dictionary(array: pa.DictionaryArray, target: pa.DataType) -> pa.Array:
    """Cast the values of a dictionary; write them out where Parquet would not take the dictionary as it is."""
    values = _cast(array.dictionary, target)
    if not pa.types.is_string(target):
        return take(values, array.indices)
    if (
        values.null_count
        or not 0 < len(values) <= _DICTIONARY_VALUES
        or values.nbytes > _DICTIONARY_BYTES
        or len(pc.unique(values)) < len(values)
    ):
        return take(values, array.indices)
    return pa.DictionaryArray.from_arrays(array.indices.cast(pa.int32()), values)


def _joined(chunks: list[pa.Array], target: pa.DataType) -> pa.Array:
    if len(chunks) == 1:
        return chunks[0]
    kinds = {chunk.type for chunk in chunks}
    if len(kinds) > 1:  # dictionaries and texts
        chunks = [chunk if chunk.type == target else chunk.cast(target) for chunk in chunks]
    elif pa.types.is_dictionary(chunks[0].type):
        unified = pa.chunked_array(chunks).unify_dictionaries().combine_chunks()
        joined = unified if isinstance(unified, pa.Array) else unified.chunk(0)
        if len(joined.dictionary) <= _DICTIONARY_VALUES and joined.dictionary.nbytes <= _DICTIONARY_BYTES:
            return joined
        return joined.cast(target)
    return pa.concat_arrays(chunks)


def _sorted(array: pa.Array, order: pa.Array | None) -> pa.Array:
    return array if order is None else take(array, order)
