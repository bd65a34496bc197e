r"""Rows that are all alike, by column: a few numpy calls for each column, not one step of Python for each row.

The first row is the template. It is cut into runs of bytes that each row has: keys, headers, and values whose first
byte tells one width. Between two runs is a value that may have another width in each row, told by its own first bytes.
So all rows are walked together, from one run to the next.

Where rows begin is guessed from the first bytes of the template. The guess is proven: the first row begins after the
header of the array, each row ends where the next one begins, the last one ends with the data, and there are as many as
the header says. Then no other reading of the data is possible. Whatever is not alike is left to `rows`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from arcpipe.codec.effort import Effort
from arcpipe.codec.messagepack.layout import FLOAT, KIND, MAP, SIZE, STRING
from arcpipe.codec.messagepack.read import read_length
from arcpipe.units import KB

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]

FEWEST_ROWS: Final = 150
"""Rows from which on this pays: some 80 µs go to the template and the calls, whatever the number of rows."""
LEAST_BYTES: Final = 8 * FEWEST_ROWS
"""Fewest bytes of FEWEST_ROWS rows."""

_LONGEST_ROW: Final = 4 * KB  # a template's bytes: the rows of longer ones are few
_MORE_STARTS: Final = 16  # places that look like the start of a row, besides as many as there are rows

# Markers whose values are as wide in the other rows: integers are as short as they can be, but those of times.
_FLOATS: Final = frozenset(marker for marker in range(256) if KIND[marker] == FLOAT)
_TIMES: Final = _FLOATS | {0xCF, 0xD3}
_TEXT_8: Final = 0xD9  # of a string whose length is in one byte
_SIZES: Final[_Ints] = np.array(SIZE, np.int64)

_M, _T, _H, _FIELDS, _TAGS = b"\xa1m", b"\xa1t", b"\xa1h", b"\xa6fields", b"\xa4tags"  # keys of a row


class AlikeRows(NamedTuple):
    """The columns of rows that are alike; the values of each, in MessagePack, one after the other."""

    measurement: str
    rows: int
    times: bytes | None
    hosts: bytes | None
    tags: list[tuple[str, bytes]]
    fields: list[tuple[str, bytes]]


class _Run(NamedTuple):
    """Bytes at the same places in each row, from a place that differs by row."""

    bytes: _Bytes
    mask: _Bytes  # 255 where all rows have the byte of the template, 0 where a value is
    values: list[tuple[int, int, int]]  # number of the column, where its value begins, and where it ends
    last: int  # the number of the column whose value is after the run; -1 after the last value


class _Template(NamedTuple):
    measurement: str
    time: int  # the number of the column; -1 in rows without a time
    host: int
    tags: list[tuple[str, int]]
    fields: list[tuple[str, int]]
    runs: list[_Run]
    begin: bytes  # with which each row begins
    end: int  # of the first row


class _Unlike(Exception):
    """The rows are not alike, or not usual."""


class _TemplateReader:
    """Read the first row."""

    def __init__(self, data: bytes, pos: int) -> None:
        self._data = data
        self._pos = pos
        self._start = pos  # of the run
        self._mask = bytearray()
        self._values: list[tuple[int, int, int]] = []
        self._runs: list[_Run] = []
        self._columns = 0

    def read(self) -> _Template:
        """Read the row. Raises _Unlike, or IndexError at the end of the data."""
        data = self._data
        begun = self._pos
        measurement = ""
        found = {_T: -1, _H: -1}
        maps: dict[bytes, list[tuple[str, int]]] = {}
        seen = set()
        for _ in range(self._header()):
            key = next((key for key in (_M, _T, _H, _FIELDS, _TAGS) if data.startswith(key, self._pos)), None)
            if key is None or key in seen:
                raise _Unlike
            seen.add(key)
            self._pos += len(key)
            if key == _M:
                measurement = self._name()
            elif key in found:
                found[key] = self._value(_TIMES)
            else:
                maps[key] = [(self._name(), self._value(_FLOATS)) for _ in range(self._header())]
            if self._pos - begun > _LONGEST_ROW:
                raise _Unlike
        if self._pos > self._start:
            self._end_run(-1)
        tags, fields = maps.get(_TAGS, []), maps.get(_FIELDS, [])
        if not fields:
            raise _Unlike
        first = self._runs[0]
        same = first.mask.tobytes().find(b"\0")
        begin = first.bytes[: None if same < 0 else same].tobytes()
        return _Template(measurement, found[_T], found[_H], tags, fields, self._runs, begin, self._pos)

    def _header(self) -> int:
        """Pass the header of a map: the number of its pairs."""
        if KIND[self._data[self._pos]] != MAP:
            raise _Unlike
        pairs, self._pos = read_length(self._data, self._pos)
        if pairs > _LONGEST_ROW:
            raise _Unlike
        return pairs

    def _name(self) -> str:
        marker = self._data[self._pos]
        if KIND[marker] != STRING or not (SIZE[marker] or marker == _TEXT_8):
            raise _Unlike
        start = self._pos + (1 if SIZE[marker] else 2)
        self._pos += SIZE[marker] or 2 + self._data[self._pos + 1]
        try:
            return self._data[start : self._pos].decode("ascii")
        except UnicodeDecodeError:
            raise _Unlike from None

    def _value(self, wide: frozenset[int]) -> int:
        """Pass a value, which is part of the run if its marker is one of `wide`: the number of its column."""
        column = self._columns
        self._columns += 1
        marker = self._data[self._pos]
        if marker in wide:
            start, end = self._pos - self._start, self._pos - self._start + SIZE[marker]
            self._fill_mask(start + 1)
            self._mask += bytes(end - start - 1)
            self._values.append((column, start, end))
            self._pos += SIZE[marker]
        elif SIZE[marker] or marker == _TEXT_8:
            self._end_run(column)
            self._pos += SIZE[marker] or 2 + self._data[self._pos + 1]
            self._start = self._pos
        else:
            raise _Unlike
        return column

    def _fill_mask(self, end: int) -> None:
        self._mask += b"\xff" * (end - len(self._mask))

    def _end_run(self, last: int) -> None:
        width = self._pos - self._start
        self._fill_mask(width)
        if self._pos > len(self._data):
            raise _Unlike
        text = np.frombuffer(self._data, np.uint8, width, self._start)
        self._runs.append(_Run(text, np.frombuffer(self._mask, np.uint8), self._values, last))
        self._mask, self._values = bytearray(), []


# Rows that begin alike and are not cost a tenth more, so the next bodies of such rows are not tried. That changes no
# result. It is shared by all threads of the process.
_BODIES_NOT_TRIED: Final = 15
_MOST_UNLIKE: Final = 64  # remembered beginnings, of `_LONGEST_ROW` bytes at most each
_unlike: Final[dict[bytes, int]] = {}


def read_alike(
    data: bytes, effort: Effort, fewest: int = FEWEST_ROWS, unlike: dict[bytes, int] = _unlike
) -> AlikeRows | None:
    """Read the rows of a MessagePack array; None if they are not alike, or not usual.

    Names are ASCII, and may be there twice or not be allowed. Values are well-formed; texts may be no UTF-8.

    Args:
        fewest: the rows from which on it is tried.
        unlike: the number of bodies that are not tried, by the bytes with which their rows begin.
    """
    try:
        count, pos = read_length(data, 0)
        if count < fewest:
            return None
        template = _TemplateReader(data, pos).read()
        begin = template.begin
        if count > 1 and not data.startswith(begin, template.end):
            return None
        if left := unlike.pop(begin, 0):
            unlike.update({begin: left - 1} if left > 1 else {})
            return None
    except (_Unlike, IndexError):
        return None
    try:
        columns = _read_columns(data, pos, count, template.runs, effort)
    except _Unlike:
        if len(unlike) >= _MOST_UNLIKE:
            unlike.clear()
        unlike[begin] = _BODIES_NOT_TRIED
        return None
    return AlikeRows(
        template.measurement,
        count,
        columns.get(template.time),
        columns.get(template.host),
        [(name, columns[column]) for name, column in template.tags],
        [(name, columns[column]) for name, column in template.fields],
    )


def _read_columns(data: bytes, pos: int, count: int, runs: list[_Run], effort: Effort) -> dict[int, bytes]:
    """Read the values of each column. Raises _Unlike."""
    size = len(data)
    if count * sum(len(run.bytes) for run in runs) > size:
        raise _Unlike
    padded = data + bytes(max(len(run.bytes) for run in runs) + 2)
    text = np.frombuffer(padded, np.uint8)
    starts = _find_starts(padded, text, pos, size, count, runs[0])
    columns: dict[int, bytes] = {}
    at = starts
    for run in runs:
        effort.check()
        _check_bound(at, size - 1)
        rows = _rows_at(padded, at, len(run.bytes))
        if ((rows ^ run.bytes) & run.mask).any():
            raise _Unlike
        for column, start, end in run.values:
            columns[column] = rows[:, start:end].tobytes()
        at = at + len(run.bytes)
        if run.last >= 0:
            _check_bound(at, size - 1)
            markers = text[at]
            sizes = _SIZES[markers]
            if not sizes.all():
                sizes = np.where(markers == _TEXT_8, text[at + 1] + np.int64(2), sizes)
                if not sizes.all():
                    raise _Unlike
            _check_bound(at + sizes, size)
            columns[run.last] = _gather(padded, text, at, sizes)
            at = at + sizes
    if at[-1] != size or (at[:-1] != starts[1:]).any():
        raise _Unlike
    return columns


def _find_starts(padded: bytes, text: _Bytes, pos: int, end: int, count: int, run: _Run) -> _Ints:
    """Find where rows seem to begin, of which there are `count`."""
    first, second, third = run.bytes[:3].tolist()  # the header of the row, and a key
    seen = text[pos : end + 2]
    found = seen[2:] == third
    found &= seen[1:-1] == second
    found &= seen[:-2] == first
    starts: _Ints = np.flatnonzero(found)
    starts += pos
    if len(starts) > count:
        if len(starts) > 2 * count + _MORE_STARTS:
            raise _Unlike
        rows = _rows_at(padded, starts, len(run.bytes))
        starts = starts[~((rows ^ run.bytes) & run.mask).any(axis=1)]
    if len(starts) != count or starts[0] != pos:
        raise _Unlike
    return starts


def _rows_at(padded: bytes, at: _Ints, width: int) -> _Bytes:
    """Copy the bytes of this width at each place: a matrix by row."""
    windows: npt.NDArray[Any] = np.ndarray((len(padded) - width + 1,), f"V{width}", padded, 0, (1,))
    return windows[at].view(np.uint8).reshape(len(at), width)


def _check_bound(places: _Ints, most: int) -> None:
    if np.maximum.reduce(places) > most:
        raise _Unlike


def _gather(padded: bytes, text: _Bytes, starts: _Ints, sizes: _Ints) -> bytes:
    """Join what is at these places."""
    longest = int(np.maximum.reduce(sizes))
    if longest == np.minimum.reduce(sizes):
        return _rows_at(padded, starts, longest).tobytes()
    stops = np.cumsum(sizes)
    return text[np.repeat(starts + sizes - stops, sizes) + np.arange(int(stops[-1]))].tobytes()
