"""Collected entries of one table -> one Arrow table, sorted by time. Total: values that fit no column are rescued.

The columns are in the order of `lake.file_schema`. A column that holds nothing but nil and NaN, and had no type
before, is left out. Values that do not fit their column go to its siblings (`upload.table_schema`). A row without a
valid time gets the time of its WAL entry.

This module must not know files or threads; the only thing it changes is the `TableSchema` that it is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arcpipe import native
from arcpipe.codec.arrow.arrays import build, take
from arcpipe.codec.arrow.by_kernel import Plain, read_column
from arcpipe.codec.arrow.find import REPEAT_ROWS, find_values
from arcpipe.codec.arrow.siblings import nan_rows, split
from arcpipe.codec.arrow.times import PRECISIONS, Times, decode_integers, decode_time
from arcpipe.codec.arrow.values import Ints, Values
from arcpipe.codec.columns import COLUMN_TYPES, TIME
from arcpipe.codec.rescued import rescued_json, unpack_value
from arcpipe.lake.file_schema import RESCUED_DATA, ROLE, SENDERS_NAME, TIME_NS, TIME_TYPE, file_order
from arcpipe.upload.budget import Budget
from arcpipe.upload.staging import Piece
from arcpipe.upload.table_schema import ColumnRules, Columns, ColumnSchema, TableSchema

# The types that senders give columns; that of times comes from Arrow alone.
_HINTS: Final = COLUMN_TYPES | {"time"}

# Most rows whose rescued values exist as Python objects at once; `Budget.rescued_at_once_bytes` bounds their bytes.
_RESCUE_ROWS: Final = 16_384

_REPEATING_BYTES: Final = 4_096  # longest encoded value that is remembered: longer ones hardly repeat

# Most bytes of JSON for each encoded byte of an odd value, and per value besides: quotes, brackets, a comma.
_JSON_FACTOR: Final = 8
_JSON_EXTRA: Final = 32


class ConvertedRows(NamedTuple):
    """A table sorted by time."""

    table: pa.Table
    times_us: Ints  # of each row
    rescued: int  # values that fit no column


class TooManyRescued(Exception):
    """The values that do not fit their columns exceed a bound: convert the rows by parts."""


class _OddColumn(NamedTuple):
    """Values of a column that do not fit its type."""

    name: str
    values: Values
    indices: Ints  # of the odd ones among `values`, ascending
    rows: Ints  # of the table, ascending


class _Rescued:
    """The odd values of all columns. They stay encoded until their JSON is made."""

    def __init__(self) -> None:
        self.count = 0
        self._columns: list[_OddColumn] = []

    def add(self, name: str, values: Values, odd: Ints, rows: Ints) -> None:
        """Take the `odd` ones of a column's values, which belong to these rows of the table."""
        self.count += len(odd)
        self._columns.append(_OddColumn(name, values, odd, rows))

    def column(self, rows: int, budget: Budget) -> pa.Array:
        """Make the JSON of each row, null where nothing was rescued.

        Raises TooManyRescued where that might exceed `budget.rescued_bytes`, unless it is of one row.
        """
        ends = np.cumsum(self._most_bytes(rows))
        if ends[-1] > budget.rescued_bytes and rows > 1:
            raise TooManyRescued
        present = np.zeros(rows, np.bool_)
        offsets = np.zeros(rows + 1, np.int32)
        parts = []
        start = stop = 0
        while stop < rows:
            start = stop
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + budget.rescued_at_once_bytes, side="right"))
            stop = min(max(stop, start + 1), start + _RESCUE_ROWS, rows)
            texts = self._texts(start, stop)
            where = np.fromiter(texts, np.int64, len(texts))
            present[where] = True
            offsets[where + 1] = np.fromiter(map(len, texts.values()), np.int32, len(texts))
            parts.append(b"".join(texts.values()))
        np.cumsum(offsets, out=offsets)
        buffers = (np.packbits(present, bitorder="little"), offsets, b"".join(parts))
        return pa.Array.from_buffers(pa.string(), rows, [pa.py_buffer(buffer) for buffer in buffers])

    def _most_bytes(self, rows: int) -> Ints:
        """Bound the bytes of the JSON of each row from above."""
        most = np.zeros(rows, np.int64)
        for name, values, indices, rows_of in self._columns:
            most[rows_of] += values.sizes(indices) * _JSON_FACTOR + (len(name.encode()) * 2 + _JSON_EXTRA)
        return most

    def _texts(self, start: int, stop: int) -> dict[int, bytes]:
        """Make the JSON of rows from `start` to `stop`, by row; rows without rescued values have none."""
        found: dict[int, dict[str, Any]] = {}
        unpacked: dict[bytes, Any] = {}  # small ones are often all alike
        element = b""
        for name, values, indices, rows in self._columns:
            first, last = np.searchsorted(rows, (start, stop)).tolist()
            for index, row in zip(indices[first:last].tolist(), rows[first:last].tolist(), strict=True):
                element = values.element(index)
                if len(element) > _REPEATING_BYTES:
                    found.setdefault(row, {})[name] = unpack_value(element)
                    continue
                if element not in unpacked:
                    unpacked[element] = unpack_value(element)
                found.setdefault(row, {})[name] = unpacked[element]
            element = b""  # it may be large
        return {row: rescued_json(found[row]) for row in sorted(found)}


def convert(pieces: Sequence[Piece], schema: TableSchema, rules: ColumnRules, budget: Budget) -> ConvertedRows:
    """Convert all entries of the pieces, which are of one table and have at least one row.

    Raises:
        TooManyRescued: the values of several rows that do not fit their columns exceed a bound of `budget`.
        MemoryError, OSError: the machine is out of memory or disk. Any other exception is a bug.
    """
    spans = _spans(pieces)
    rescued = _Rescued()
    times_us, sub_us = _times(spans, rescued)
    order = None
    if (times_us[1:] < times_us[:-1]).any():
        order = pa.array(np.argsort(times_us, kind="stable").astype(np.int32))
        times_us = _sorted(pa.array(times_us), order).to_numpy()
    holders = _holders(spans)
    columns = Columns(schema, rules, holders)
    table = _Table(spans[-1].stop, order, rescued, columns, budget)
    table.fields[column_field(TIME, TIME_TYPE, b"time")] = time_array(times_us)
    if rules.keep_nanoseconds:
        table.fields[column_field(TIME_NS, pa.int16(), b"time")] = _sorted(pa.array(sub_us), order)
    for name, spans_with in holders.items():  # as they came: the first of two names that engines take for one keeps it
        if name != TIME:
            table.add(name, spans_with)
    return ConvertedRows(table.finish(), times_us, rescued.count)


class _Table:
    """The columns of a table that is being converted. `fields` become it."""

    def __init__(self, rows: int, order: pa.Array | None, rescued: _Rescued, columns: Columns, budget: Budget) -> None:
        self.fields: dict[pa.Field, pa.Array] = {}
        self._rows = rows
        self._order = order
        self._rescued = rescued
        self._columns = columns
        self._budget = budget
        self._sibling_bytes = 0

    def add(self, name: str, holders: Sequence[_Span]) -> None:
        """Convert the values of a sender's name."""
        tag = any(name in span.piece.shape.tags for span in holders)
        hints = {span.piece.shape.types[name] for span in holders if name in span.piece.shape.types}
        known = self._columns.type_of(name)
        plain = _read_plain(holders, name, known)
        if plain is not None:
            column = self._columns.settle(name, plain, hints & _HINTS, tag)
            if column is not None and column.type == plain.type:
                self._take(column.column or name, name, column.tag, plain.array, holders)
                return
        values = _values(holders, name)
        column = self._columns.settle(name, values, hints & _HINTS, tag)
        if column is None:
            odd = build(values, None).odd
            if not self._columns.is_full:  # NaN settles no type, and is null until there is one
                odd = np.setdiff1d(odd, nan_rows(values), assume_unique=True)
        else:
            array, odd = build(values, column.type)
            self._take(column.column or name, name, column.tag, array, holders)
            if len(odd):
                odd = self._add_siblings(name, column, values, odd, holders)
        if len(odd):
            self._rescued.add(name, values, odd, _table_rows(odd, holders))

    def _add_siblings(
        self, name: str, column: ColumnSchema, values: Values, odd: Ints, holders: Sequence[_Span]
    ) -> Ints:
        """Put values that do not fit into the siblings of their column. Returns those that fit none."""
        parts, left = split(values, odd, column.type)
        lefts = [left]
        for part in parts:
            sibling = self._columns.sibling(name, part.type)
            if sibling is None:
                lefts.append(part.indices)
                continue
            array = part.spread(values.count)
            self._sibling_bytes += array.nbytes
            if self._sibling_bytes > self._budget.sibling_bytes and self._rows > 1:
                raise TooManyRescued
            self._take(sibling, name, column.tag, array, holders)
        return np.sort(np.concatenate(lefts))

    def _take(self, column: str, name: str, tag: bool, array: pa.Array, holders: Sequence[_Span]) -> None:
        field = column_field(column, array.type, b"tag" if tag else b"field", name)
        self.fields[field] = _sorted(_spread(array, holders, self._rows), self._order)

    def finish(self) -> pa.Table:
        if self._rescued.count:
            json = self._rescued.column(self._rows, self._budget)
            self.fields[column_field(RESCUED_DATA, pa.string(), b"rescued")] = _sorted(json, self._order)
        fields = sorted(self.fields, key=file_order)
        return pa.table([self.fields[field] for field in fields], schema=pa.schema(fields))


class _Span(NamedTuple):
    """A piece and the rows of the table that are its own."""

    piece: Piece
    start: int
    stop: int


def _spans(pieces: Sequence[Piece]) -> list[_Span]:
    stops = list(itertools.accumulate(piece.total_rows for piece in pieces))
    return [_Span(*span) for span in zip(pieces, [0, *stops], stops, strict=False)]


def _holders(spans: Sequence[_Span]) -> dict[str, list[_Span]]:
    """Find the spans that have each column."""
    holders: dict[str, list[_Span]] = {}
    for span in spans:
        for name in span.piece.shape.index:
            holders.setdefault(name, []).append(span)
    return holders


def column_field(name: str, type_: pa.DataType, role: bytes, senders: str | None = None) -> pa.Field:
    """Make the field of a column; `senders` is the name that the sender gave it."""
    metadata = {ROLE: role}
    if senders is not None and senders != name:
        metadata[SENDERS_NAME] = senders.encode()
    return pa.field(name, type_, nullable=role != b"time", metadata=metadata)


def _values(holders: Sequence[_Span], name: str) -> Values:
    """Find the values of a column in all pieces that have it."""
    parts = [span.piece.columns[span.piece.shape.index[name]] for span in holders]
    count = sum(span.stop - span.start for span in holders)
    if len(parts) == 1:
        return find_values(
            parts[0].data, count, parts[0].sizes.astype(np.int64), holders[0].piece.rows.astype(np.int64)
        )
    return find_values(
        np.concatenate([part.data for part in parts]),
        count,
        np.concatenate([part.sizes for part in parts]).astype(np.int64),
        np.concatenate([span.piece.rows for span in holders]).astype(np.int64),
    )


def _read_plain(holders: Sequence[_Span], name: str, wanted: str | None) -> Plain | None:
    """Read the values of a column in all pieces that have it by the kernel; None if it leaves them."""
    if native.KERNEL is None:
        return None
    columns = [(span.piece.columns[span.piece.shape.index[name]], span.piece.rows) for span in holders]
    count = sum(span.stop - span.start for span in holders)
    in_chunks = wanted in (None, "str") and count >= REPEAT_ROWS * sum(len(rows) for _, rows in columns)
    return read_column(tuple(column.encoded(rows, in_chunks) for column, rows in columns), wanted)


def _table_rows(indices: Ints, holders: Sequence[_Span]) -> Ints:
    """Translate indices of values, among those of the pieces with the column, into rows of the table."""
    if len(holders) == 1:
        return indices + holders[0].start
    firsts = np.cumsum([0, *(span.stop - span.start for span in holders[:-1])])
    holder = np.searchsorted(firsts, indices, side="right") - 1
    starts = np.array([span.start for span in holders])
    rows: Ints = indices - firsts[holder] + starts[holder]
    return rows


def _sorted(array: pa.Array, order: pa.Array | None) -> pa.Array:
    return array if order is None else take(array, order)


def _spread(array: pa.Array, holders: Sequence[_Span], rows: int) -> pa.Array:
    """Spread a column over all rows: null in rows of pieces without it.

    The cost depends only on the pieces with the column: a table of thousands of shapes has thousands of columns.
    """
    if len(array) == rows:
        return array
    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(_spread(array.indices, holders, rows), array.dictionary)
    parts = []
    taken = filled = 0
    for span in holders:
        if span.start > filled:
            parts.append(pa.nulls(span.start - filled, array.type))
        count = span.stop - span.start
        parts.append(array.slice(taken, count))
        taken += count
        filled = span.stop
    if filled < rows:
        parts.append(pa.nulls(rows - filled, array.type))
    return pa.concat_arrays(parts)


def _times(spans: Sequence[_Span], rescued: _Rescued) -> tuple[Ints, npt.NDArray[np.int16]]:
    """Compute the time of every row: (µs since the epoch, digits below)."""
    all_us = []
    all_sub = []
    for span in spans:
        piece = span.piece
        count = span.stop - span.start
        sub_us = np.zeros(count, np.int16)
        if TIME not in piece.shape.index:
            us = np.repeat(piece.timestamps_us, piece.rows)
        else:
            precision = piece.shape.precision if piece.shape.precision in PRECISIONS else None
            plain_times = _plain_times(span, precision)
            if plain_times is not None:
                all_us.append(plain_times.us)
                all_sub.append(sub_us if plain_times.sub_us is None else plain_times.sub_us)
                continue
            values = _values([span], TIME)
            times = decode_time(values, precision)
            us = times.us
            sub_us = sub_us if times.sub_us is None else times.sub_us
            without = np.concatenate((times.missing, times.odd))
            if len(without):
                us[without] = np.repeat(piece.timestamps_us, piece.rows)[without]
            if len(times.odd):
                rescued.add(TIME, values, times.odd, times.odd + span.start)
        all_us.append(us)
        all_sub.append(sub_us)
    return (all_us[0], all_sub[0]) if len(spans) == 1 else (np.concatenate(all_us), np.concatenate(all_sub))


def _plain_times(span: _Span, precision: str | None) -> Times | None:
    """Compute the times of a piece by the kernel; None if it leaves them."""
    plain = _read_plain([span], TIME, "i64")
    if plain is None or plain.bounds is None or plain.array.null_count:
        return None
    return decode_integers(plain.numbers, *plain.bounds, precision)


def time_array(times_us: Ints) -> pa.Array:
    """Make the column of the times."""
    return pa.Array.from_buffers(TIME_TYPE, len(times_us), [None, pa.py_buffer(np.ascontiguousarray(times_us))])
