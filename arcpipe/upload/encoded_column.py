"""The encoded values of one column of many entries: copied together without their array headers, or as they came.

This module must not know types, Arrow, files or threads.
"""

from __future__ import annotations

from typing import Any, Final, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from arcpipe import native
from arcpipe.codec.arrow.by_kernel import Encoded, chunks_of
from arcpipe.codec.arrow.values import VALUE_SIZE, Bytes
from arcpipe.codec.entries import array_length
from arcpipe.errors import BadPayload

# Array headers are stripped one by one from fewer entries, from wider columns, and from arrays of 16 values or more,
# whose headers have three bytes; otherwise in vector operations, which have a fixed cost.
_FEW_ENTRIES: Final = 16
_LARGE_COLUMN: Final = 512  # bytes of the first entry's column

Sizes: TypeAlias = npt.NDArray[np.uint32]

_NO_DATA: Final[Bytes] = np.zeros(0, np.uint8)
_NO_SIZES: Final[Sizes] = np.zeros(0, np.uint32)


class EncodedColumn:
    """The encoded values of a column: copied together, or as they came, until `data` or `sizes` is needed."""

    __slots__ = ("_data", "_given", "_sizes")

    def __init__(self, data: Bytes, sizes: Sizes) -> None:
        """Take the values, without array headers, and the bytes of each entry."""
        self._data, self._sizes = data, sizes
        self._given: Encoded | None = None

    @classmethod
    def as_given(cls, buffers: tuple[Any, ...], places: tuple[bytes, ...] | None, number: int, rows: Sizes) -> Self:
        """Take whole arrays, each with a header: `buffers` are these, or payloads in which they are column `number`.

        Args:
            rows: the number of values of each entry.
        """
        column = cls(_NO_DATA, _NO_SIZES)
        column._given = (buffers, places, number, rows)
        return column

    @property
    def data(self) -> Bytes:
        """The values of all entries, without array headers."""
        self._join()
        return self._data

    @property
    def sizes(self) -> Sizes:
        """The bytes of each entry."""
        self._join()
        return self._sizes

    def _join(self) -> None:
        if self._given is not None:
            views = list(chunks_of(self._given))
            self._sizes = np.fromiter(map(len, views), np.uint32, len(views))
            self._data = np.frombuffer(b"".join(views), np.uint8)
            self._given = None

    def encoded(self, rows: Sizes, in_chunks: bool) -> Encoded:
        """Return the values for the kernel.

        Args:
            rows: the number of values of each entry.
            in_chunks: keep the values of each entry apart.
        """
        if self._given is not None:
            return self._given
        if in_chunks:
            ends = np.cumsum(self._sizes, dtype=np.int64)
            view = self._data.data
            bounds = zip((ends - self._sizes).tolist(), ends.tolist(), strict=True)
            return tuple(view[start:end] for start, end in bounds), None, -1, rows
        return (self._data,), None, -1, np.array([rows.sum()], np.uint32)


def strip_headers(raws: tuple[msgspec.Raw, ...], rows: Sizes, as_given: bool) -> tuple[EncodedColumn, list[int]]:
    """Strip the headers of arrays of `rows` values each; return the values, and the indices of other arrays.

    Args:
        as_given: do not copy the values, because the kernel will read them as they are.
    """
    if as_given and _usual_header(raws, rows):
        return EncodedColumn.as_given(raws, None, 0, rows), []
    if len(raws) == 1:
        return _strip_only_one(raws[0], int(rows[0]))
    if len(raws) < _FEW_ENTRIES or rows[0] >= 16 or len(memoryview(raws[0])) > _LARGE_COLUMN:
        return _strip_one_by_one(raws, rows)
    data = np.frombuffer(b"".join(raws), np.uint8)
    width, rest = divmod(len(data), len(raws))
    if not rest and _are_single_values(data, rows, width):
        return EncodedColumn(data.reshape(-1, width)[:, 1:].ravel(), np.full(len(raws), width - 1, np.uint32)), []
    sizes = np.fromiter(map(len, raws), np.int64, len(raws))
    starts = np.cumsum(sizes) - sizes
    markers = data[starts]
    counts = (markers & 15).astype(np.int64)
    heads = np.ones(len(raws), np.int64)
    values = np.ones(len(data), np.bool_)
    values[starts] = False
    odd = np.flatnonzero(markers & 0xF0 != 0x90).tolist()
    for index in odd:
        try:
            counts[index], heads[index] = array_length(memoryview(raws[index]))
        except BadPayload:
            counts[index] = -1
        values[starts[index] : starts[index] + heads[index]] = False
    return EncodedColumn(data[values], (sizes - heads).astype(np.uint32)), np.flatnonzero(counts != rows).tolist()


def _strip_only_one(raw: msgspec.Raw, rows: int) -> tuple[EncodedColumn, list[int]]:
    view = memoryview(raw)
    try:
        length, head = array_length(view)
    except BadPayload:
        length = head = -1
    data = np.frombuffer(bytes(view[max(head, 0) :]), np.uint8)
    return EncodedColumn(data, np.array([len(data)], np.uint32)), [] if length == rows else [0]


def _are_single_values(data: Bytes, rows: Sizes, width: int) -> bool:
    """Tell whether these are arrays of one value each, all of one width that the value's first byte tells."""
    return bool(
        width > 1
        and (rows == 1).all()
        and VALUE_SIZE[data[1]] == width - 1
        and (data[::width] == 0x91).all()
        and (data[1::width] == data[1]).all()
    )


def _strip_one_by_one(raws: tuple[msgspec.Raw, ...], rows: Sizes) -> tuple[EncodedColumn, list[int]]:
    views = [memoryview(raw) for raw in raws]
    width = _usual_header(raws, rows)
    if width:
        data = b"".join([view[width:] for view in views])
        sizes = np.fromiter(map(len, views), np.uint32, len(views)) - np.uint32(width)
        return EncodedColumn(np.frombuffer(data, np.uint8), sizes), []
    mismatched = []
    for index, (view, count) in enumerate(zip(views, rows.tolist(), strict=True)):
        try:
            length, head = array_length(view)
        except BadPayload:
            length = head = -1
        if length != count:
            mismatched.append(index)
        views[index] = view[max(head, 0) :]
    sizes = np.fromiter(map(len, views), np.uint32, len(views))
    return EncodedColumn(np.frombuffer(b"".join(views), np.uint8), sizes), mismatched


def _usual_header(raws: tuple[msgspec.Raw, ...], rows: Sizes) -> int:
    """Return the bytes of the headers of arrays if all have the shortest ones, of one width; else 0."""
    if native.KERNEL is not None:
        return int(native.KERNEL.array_headers(raws, rows))
    expected = _usual_headers(rows)
    if not len(expected):
        return 0
    width = expected.shape[1]
    return width if b"".join([memoryview(raw)[:width] for raw in raws]) == expected.tobytes() else 0


def _usual_headers(rows: Sizes) -> Bytes:
    """Make the shortest headers of arrays of these lengths, one per line; nothing if they differ in width."""
    if rows.max() < 16:
        return (rows | 0x90).astype(np.uint8).reshape(-1, 1)
    headers = np.empty((len(rows), 3), np.uint8)
    if rows.min() < 16 or rows.max() >> 16:
        return headers[:0]
    headers[:, 0], headers[:, 1], headers[:, 2] = 0xDC, rows >> 8, rows & 0xFF
    return headers
