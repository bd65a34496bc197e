"""Entries of one table, collected until there are enough of them to be converted together.

Entries of one shape (the same columns, tags, types and precision) make a group. The cost of an entry here decides the
speed with small bodies. So an entry is staged as views into its payload. Only when hundreds have come are they copied
together, column by column, without their array headers, in a few vector operations.

This module must not know types, Arrow, files or threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from arcpipe import native
from arcpipe.codec.arrow.by_kernel import PLACE
from arcpipe.codec.arrow.times import MAX_TIME_US
from arcpipe.codec.arrow.values import VALUE_SIZE, Bytes, Ints
from arcpipe.codec.columns import array_header
from arcpipe.codec.entries import array_length
from arcpipe.codec.envelope import ColumnMap, encode_entry
from arcpipe.codec.messagepack.walk import Walker
from arcpipe.errors import BadPayload
from arcpipe.upload.encoded_column import EncodedColumn, Sizes, strip_headers

_EVEN_ROWS: Final = 1 << 16  # values whose widths are compared per step: bounds the memory that this takes

_SMALL_PIECE: Final = 512  # entries below which a piece is joined with the next: each costs memory of its own

GroupKey: TypeAlias = tuple[object, ...]


def group_key(database: str, precision: str | None, columns: ColumnMap) -> GroupKey:
    """Make the key of the group that a columnar map belongs to."""
    types = columns.types
    return (database, columns.m, precision, columns.tags, types and tuple(types.items()), *columns.columns)


class EntryShape:
    """The columns, tags, types and precision that the entries of a group share."""

    __slots__ = ("database", "index", "measurement", "precision", "tags", "types")

    def __init__(self, database: str, precision: str | None, columns: ColumnMap) -> None:
        self.database = database
        self.measurement = columns.m
        self.index = {name: number for number, name in enumerate(columns.columns)}
        """Each column's place."""
        self.tags = dict.fromkeys(columns.tags or ())
        """The names that the sender called tags, in its order."""
        self.types = columns.types or {}
        """The types that the sender gave columns."""
        self.precision = precision


class Piece(NamedTuple):
    """Entries of one shape, in the order in which they came. Each array has one value per entry."""

    shape: EntryShape
    rows: Sizes
    timestamps_us: Ints
    origins: Ints  # the caller's number of each WAL entry
    parts: npt.NDArray[np.uint64]  # the number of the map in its WAL entry; its first row in the upper 32 bits
    columns: list[EncodedColumn]  # in the order of shape.index

    @property
    def total_rows(self) -> int:
        return int(self.rows.sum())

    def cut(self, start: int, stop: int) -> Piece:
        """Return the entries from `start` up to `stop`; they share the bytes."""
        columns = []
        for column in self.columns:
            data, sizes = column.data, column.sizes
            begin = int(sizes[:start].sum())
            columns.append(EncodedColumn(data[begin : begin + int(sizes[start:stop].sum())], sizes[start:stop]))
        return Piece(
            self.shape,
            self.rows[start:stop],
            self.timestamps_us[start:stop],
            self.origins[start:stop],
            self.parts[start:stop],
            columns,
        )

    def halves(self) -> list[Piece]:
        """Cut the piece into two: by entries, or by rows if it has only one entry."""
        if len(self.rows) > 1:
            middle = len(self.rows) // 2
            return [self.cut(0, middle), self.cut(middle, len(self.rows))]
        rows = int(self.rows[0])
        return list(self.slices(-(-rows // 2), sum(len(column.data) for column in self.columns)))

    def slices(self, most_rows: int, most_bytes: int) -> Iterator[Piece]:
        """Cut the only entry into parts of at most `most_rows` and `most_bytes`, but of one row at least.

        The bytes are shared. Raises BadPayload if a column has fewer values than the entry has rows.
        """
        assert len(self.rows) == 1
        cursors = [_cursor(column.data, self.total_rows) for column in self.columns]
        size = sum(len(column.data) for column in self.columns)
        total = self.total_rows
        usual = max(1, min(most_rows, most_bytes * total // (size or 1)))
        start = 0
        while start < total:
            rows = min(usual, total - start)
            columns = [cursor.take(rows) for cursor in cursors]
            while sum(map(len, columns)) > most_bytes and rows > 1:  # longer values than usual
                rows = max(1, rows // 2)
                for cursor in cursors:
                    cursor.go_back()
                columns = [cursor.take(rows) for cursor in cursors]
            yield self._replace(
                rows=np.array([rows], np.uint32),
                parts=self.parts + np.uint64(start << 32),
                columns=[EncodedColumn(data, np.array([len(data)], np.uint32)) for data in columns],
            )
            start += rows

    def payload(self, entry: int) -> bytes:
        """Encode one entry as the payload of a WAL entry, equal in meaning to its original."""
        one = self.cut(entry, entry + 1)
        header = array_header(int(one.rows[0]))
        return entry_payload(self.shape, [msgspec.Raw(header + column.data.tobytes()) for column in one.columns])


class _Cursor:
    """Cuts the encoded values of a column into parts, from the front to the back."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._walker = Walker(data.data)
        self._last = 0

    def take(self, rows: int) -> Bytes:
        """Take the next values. Raises BadPayload if there are fewer than `rows`."""
        self._last = self._walker.offset
        self._walker.skip(rows)
        return self._data[self._last : self._walker.offset]

    def go_back(self) -> None:
        """Undo the last `take`."""
        self._walker = Walker(self._data.data, self._last)


class _EvenCursor:
    """A cursor over values that all have one width."""

    def __init__(self, data: Bytes, width: int) -> None:
        self._data = data
        self._width = width
        self._at = self._last = 0

    def take(self, rows: int) -> Bytes:
        self._last, self._at = self._at, self._at + rows * self._width
        return self._data[self._last : self._at]

    def go_back(self) -> None:
        self._at = self._last


def _cursor(data: Bytes, rows: int) -> _Cursor | _EvenCursor:
    width, rest = divmod(len(data), rows)
    if not rest and width and VALUE_SIZE[data[0]] == width:
        step = width * _EVEN_ROWS
        if all((VALUE_SIZE.take(data[at : at + step : width]) == width).all() for at in range(0, len(data), step)):
            return _EvenCursor(data, width)
    return _Cursor(data)


class Misfit(NamedTuple):
    """A columnar map whose columns are not arrays of one length, as the payload of an entry."""

    origin: int
    part: int
    payload: bytes
    reason: str


Staged: TypeAlias = tuple[Any, ...]
"""A columnar map as it came: (rows by its first column, timestamp, origin, part, *columns as msgspec.Raw).

Or one whose columns a layout has found: (rows, timestamp, origin, part, places in the payload, payload).
"""
_FRONT: Final = 4


def _is_found(entry: Staged) -> bool:
    return entry[_FRONT].__class__ is bytes


def with_columns(entry: Staged) -> Staged:
    """Return a staged entry in its first form."""
    if not _is_found(entry):
        return entry
    *front, places, payload = entry
    view = memoryview(payload)
    return (*front, *(msgspec.Raw(view[start:end]) for start, end in PLACE.iter_unpack(places)))


class EntryGroup:
    """The entries of one shape that were not taken yet, staged or compacted. The owner appends to `staged`."""

    __slots__ = ("_old", "_owned", "pieces", "shape", "staged")

    def __init__(self, shape: EntryShape) -> None:
        self.shape = shape
        self.staged: list[Staged] = []
        self._owned = 0  # number of first staged entries that hold no view into a payload
        self._old = 0  # number of staged entries at the last release
        self.pieces: list[Piece] = []

    def release(self) -> None:
        """Copy the entries that have referred to payloads since before the last release.

        Younger entries are left: most of them are soon taken, and then need no copy.
        """
        for index in range(self._owned, self._old):
            entry = with_columns(self.staged[index])
            self.staged[index] = (*entry[:_FRONT], *(raw.copy() for raw in entry[_FRONT:]))
        self._owned, self._old = self._old, len(self.staged)

    def hold(self, piece: Piece) -> None:
        """Take entries that are a piece already, and come after those that were compacted."""
        if self.pieces and len(self.pieces[-1].rows) < _SMALL_PIECE:
            piece = _joined([self.pieces.pop(), piece])
        self.pieces.append(piece)

    def compact(self, as_given: bool = False) -> list[Misfit]:
        """Copy the staged entries together. Returns those whose columns are not arrays of one length.

        Args:
            as_given: do not copy what the kernel will read at once.
        """
        staged, self.staged = self.staged, []
        self._owned = self._old = 0
        misfits: list[Misfit] = []
        while staged:
            wrong = self._compact(staged, as_given)
            if not wrong:
                break
            for index, reason in wrong.items():
                _, _, origin, part, *raws = with_columns(staged[index])
                misfits.append(Misfit(origin, part, entry_payload(self.shape, raws), reason))
            staged = [entry for index, entry in enumerate(staged) if index not in wrong]
        return misfits

    def _compact(self, staged: list[Staged], as_given: bool) -> dict[int, str]:
        """Make a piece of staged entries, or return why some of them cannot be one, by index."""
        wrong: dict[int, str] = {}
        columns = []
        if as_given and all(map(_is_found, staged)):
            rows_of, timestamps, origins, parts, places, payloads = zip(*staged, strict=True)
            rows = np.array(rows_of, np.uint32)
            columns = [
                EncodedColumn.as_given(payloads, places, number, rows) for number in range(len(self.shape.index))
            ]
        else:
            rows_of, timestamps, origins, parts, *raws_of = zip(*map(with_columns, staged), strict=True)
            rows = np.array(rows_of, np.uint32)
            for name, raws in zip(self.shape.index, raws_of, strict=True):
                column, mismatched = strip_headers(raws, rows, as_given)
                columns.append(column)
                for index in mismatched:
                    wrong.setdefault(index, f"column {name!r} is not an array of {rows[index]} values")
        if not wrong:
            # Timestamps in the WAL have 64 bits and no checksum.
            times = np.minimum(np.array(timestamps, np.uint64), MAX_TIME_US).astype(np.int64)
            piece = Piece(self.shape, rows, times, np.array(origins, np.int64), np.array(parts, np.uint64), columns)
            self.hold(piece)
        return wrong

    def take(self) -> tuple[Piece | None, list[Misfit]]:
        """Take everything as one piece, None if there is nothing; the group is empty afterwards."""
        misfits = self.compact(as_given=native.KERNEL is not None)
        pieces, self.pieces = self.pieces, []
        return (_joined(pieces) if pieces else None), misfits


def whole_piece(shape: EntryShape, staged: Staged) -> Piece:
    """Make one entry a piece, without a copy. Raises BadPayload if its columns are not arrays of one length."""
    rows, timestamp, origin, part, *raws = with_columns(staged)
    columns = []
    for name, raw in zip(shape.index, raws, strict=True):
        view = memoryview(raw)
        length, head = array_length(view)
        if length != rows:
            raise BadPayload(f"column {name!r} is not an array of {rows} values")
        data = np.frombuffer(view[head:], np.uint8)
        columns.append(EncodedColumn(data, np.array([len(data)], np.uint32)))
    times = np.array([min(timestamp, MAX_TIME_US)], np.int64)
    return Piece(
        shape, np.array([rows], np.uint32), times, np.array([origin], np.int64), np.array([part], np.uint64), columns
    )


def entry_payload(shape: EntryShape, raws: list[msgspec.Raw]) -> bytes:
    """Make an entry of these columns the payload of a WAL entry."""
    columns = dict(zip(shape.index, raws, strict=True))
    return encode_entry(
        shape.database,
        shape.precision,
        ColumnMap(shape.measurement, columns, tuple(shape.tags) or None, shape.types or None),
    )


def _joined(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    columns = [
        EncodedColumn(
            np.concatenate([column.data for column in parts]), np.concatenate([column.sizes for column in parts])
        )
        for parts in zip(*(piece.columns for piece in pieces), strict=True)
    ]
    return Piece(
        pieces[0].shape,
        np.concatenate([piece.rows for piece in pieces]),
        np.concatenate([piece.timestamps_us for piece in pieces]),
        np.concatenate([piece.origins for piece in pieces]),
        np.concatenate([piece.parts for piece in pieces]),
        columns,
    )
