"""ColumnBatch: a measurement and its named columns, the one shape that all formats become.

Every ingest format ends here: rows of one shape (measurement, tag names, field names) as columns that are already
MessagePack arrays, written out as the columnar map that the WAL holds:

    {"m": measurement, "columns": {name: array, ...}, "tags": [names], "types": {name: word}}

This module holds the rules that all formats share: limits, allowed names, and the column of a field with the name of a
tag. It also packs values into MessagePack arrays. It must not know any format's grammar.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from arcpipe.errors import BadPayload
from arcpipe.units import MB

TIME = "time"
"""The name of the timestamp column; no tag may have it, and a field of this name gets another one."""

COLUMN_TYPES = frozenset({"i64", "u64", "f64", "bool", "str", "bytes"})
"""The words that `types` may give a column."""

MAX_NAME_BYTES = 256
"""Longest measurement or column name, in bytes of UTF-8."""

MAX_COLUMNS = 65_536
"""Most columns of a columnar map, and most fields or tags of a row: bounds the memory that one body may take here, and
its schema later."""

_pack = msgspec.msgpack.Encoder().encode

# All characters of category Cc: C0, DEL and C1.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Encoded(NamedTuple):
    """A request body as one MessagePack value, ready for a WAL entry."""

    batch: int  # 0: `body` is one columnar map (envelope kind 1); 1: an array of them (kind 2); 2: Arrow (kind 3)
    body: bytes | memoryview
    records: int  # rows in all columnar maps
    front: bytes = b""  # of the value, before `body`: a large body is not copied for a few bytes


class ColumnBatch(NamedTuple):
    """Rows of one measurement, by column.

    `columns` maps each name to a whole MessagePack array of `records` values (see the `pack_*` functions), in the
    order in which they are written. `tags` are the columns that the sender called tags. `types` gives the sender's
    type (one of `COLUMN_TYPES`) only where MessagePack alone would not show it.

    The caller has checked the names (`check_measurement`, `check_column_name`).
    """

    measurement: str
    columns: Mapping[str, bytes]
    records: int
    tags: Sequence[str] = ()
    types: Mapping[str, str] | None = None

    def encode(self) -> bytes:
        """Encode the columnar map as MessagePack."""
        parts = [
            map_header(2 + bool(self.tags) + bool(self.types)),
            b"\xa1m",
            pack_str(self.measurement),
            b"\xa7columns",
            map_header(len(self.columns)),
        ]
        for name, column in self.columns.items():
            parts += (pack_str(name), column)
        if self.tags:
            parts += (b"\xa4tags", array_header(len(self.tags)), *map(pack_str, self.tags))
        if self.types:
            parts += (b"\xa5types", map_header(len(self.types)))
            for name, word in self.types.items():
                parts += (pack_str(name), pack_str(word))
        return b"".join(parts)


# Maps, and bytes of them, at which they are joined. Millions of small objects would take long to free. Joining larger
# ones, or anything but `bytes`, in one step would keep other threads from running.
_MAPS_JOINED: Final = 1024
_BYTES_JOINED: Final = MB
# Bytes of a body that are copied while all of its maps are kept. Those of a larger one are freed one after the other.
_COPIED_AT_ONCE_BYTES: Final = 32 * MB


class Maps:
    """Collect the columnar maps of a body. `records` counts the rows in all of them."""

    __slots__ = ("_count", "_latest", "_parts", "_size", "records")

    def __init__(self) -> None:
        self.records = 0
        self._count = 0
        self._parts: list[bytes] = []
        self._latest: list[bytes | memoryview] = []
        self._size = 0  # of the latest

    def add(self, columnar: bytes | memoryview, records: int, count: int = 1) -> None:
        """Add a columnar map, or several one after the other."""
        self._count += count
        self.records += records
        self._latest.append(columnar)
        self._size += len(columnar)
        if (self._size >= _BYTES_JOINED or len(self._latest) >= _MAPS_JOINED) and self._count > 1:
            self._join_latest()

    def encoded(self) -> Encoded | None:
        """Return one columnar map as it is, several as an array; None if there are none."""
        if not self._count:
            return None
        if self._count == 1:
            return Encoded(False, self._latest[0], self.records)
        self._join_latest()
        parts, self._parts = [array_header(self._count), *self._parts], []
        size = sum(map(len, parts))
        if size <= _COPIED_AT_ONCE_BYTES:
            return Encoded(True, b"".join(parts), self.records)
        body = np.empty(size, np.uint8)
        while parts:  # the last first: so the allocator can give it back at once
            part = parts.pop()
            body[size - len(part) : size] = np.frombuffer(part, np.uint8)
            size -= len(part)
        return Encoded(True, body.data, self.records)

    def _join_latest(self) -> None:
        small: list[bytes | memoryview] = []
        for part in self._latest:
            if len(part) < _BYTES_JOINED:
                small.append(part)
                continue
            self._parts.append(b"".join(small))
            small = []
            if isinstance(part, bytes):
                self._parts.append(part)
            else:
                self._parts += [bytes(part[at : at + _BYTES_JOINED]) for at in range(0, len(part), _BYTES_JOINED)]
        self._parts.append(b"".join(small))
        self._latest = []
        self._size = 0


# Names


def check_measurement(name: str) -> None:
    """Raise BadPayload unless `name` is 1 to 256 bytes of UTF-8 without control characters."""
    _check_name("measurement", name)


def check_column_name(name: str, what: str = "column") -> None:
    """Raise BadPayload unless `name` is 1 to 256 bytes of UTF-8 without control characters.

    Args:
        what: "column", "tag" or "field", for the error text.
    """
    _check_name(f"{what} name", name)


def _check_name(what: str, name: str) -> None:
    if not name:
        raise BadPayload(f"{what} is empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate
        raise BadPayload(f"{what} {quote(name)} is not valid UTF-8") from None
    if size > MAX_NAME_BYTES:
        raise BadPayload(f"{what} {quote(name)} has {size} bytes, more than {MAX_NAME_BYTES}")
    if _CONTROL.search(name):
        raise BadPayload(f"{what} {quote(name)} has a control character")


_QUOTED_BYTES: Final = 320  # more than the 64 characters that are shown take in UTF-8


def quote(name: str | bytes) -> str:
    """Quote a name for an error text: at most 64 characters of it, all printable."""
    shown = name[:_QUOTED_BYTES]
    text = shown.decode("utf-8", "backslashreplace") if isinstance(shown, bytes) else shown
    if len(text) > 64:
        text = text[:64] + "…"
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return f"'{text}'"


def field_column_names(tags: Collection[str], fields: Collection[str]) -> list[str]:
    """Return the column names of `fields` in rows that also have `tags`.

    A tag keeps its name. A field of the same name, or called `time`, becomes `<name>_field`. Where a tag or field has
    that name, too, it becomes the first of `<name>_field_2`, `<name>_field_3`, … that is free. So it may be longer than
    `MAX_NAME_BYTES`. Linear in the number of names.
    """
    taken = {TIME, *tags}
    if taken.isdisjoint(fields):
        return list(fields)
    clashing = taken.intersection(fields)
    taken.update(fields)
    names = []
    for field in fields:
        name = field
        if field in clashing:
            name, number = f"{field}_field", 1
            while name in taken:
                number += 1
                name = f"{field}_field_{number}"
            taken.add(name)
        names.append(name)
    return names


# MessagePack headers (https://github.com/msgpack/msgpack/blob/master/spec.md), each the shortest that fits


def array_header(count: int) -> bytes:
    """Make the header of an array of `count` values."""
    if count < 16:
        return (0x90 | count).to_bytes(1, "big")
    return b"\xdc" + count.to_bytes(2, "big") if count < 0x1_0000 else b"\xdd" + count.to_bytes(4, "big")


def map_header(count: int) -> bytes:
    """Make the header of a map of `count` pairs."""
    if count < 16:
        return (0x80 | count).to_bytes(1, "big")
    return b"\xde" + count.to_bytes(2, "big") if count < 0x1_0000 else b"\xdf" + count.to_bytes(4, "big")


def str_header(size_bytes: int) -> bytes:
    """Make the header of a string of `size_bytes` bytes of UTF-8."""
    if size_bytes < 32:
        return (0xA0 | size_bytes).to_bytes(1, "big")
    if size_bytes < 0x100:
        return b"\xd9" + size_bytes.to_bytes(1, "big")
    if size_bytes < 0x1_0000:
        return b"\xda" + size_bytes.to_bytes(2, "big")
    return b"\xdb" + size_bytes.to_bytes(4, "big")


def pack_str(text: str) -> bytes:
    """Pack a string as MessagePack."""
    return _pack(text)


# Whole columns


def pack_float64(values: npt.NDArray[np.float64]) -> bytes:
    """Pack a 1-d array of floats as a MessagePack array, 9 bytes each."""
    return _pack_wide(0xCB, ">f8", values)


def pack_int64(values: npt.NDArray[np.int64]) -> bytes:
    """Pack a 1-d array of signed integers as a MessagePack array, 9 bytes each."""
    return _pack_wide(0xD3, ">i8", values)


def pack_uint64(values: npt.NDArray[np.uint64]) -> bytes:
    """Pack a 1-d array of unsigned integers as a MessagePack array, 9 bytes each."""
    return _pack_wide(0xCF, ">u8", values)


def pack_values(values: Sequence[Any]) -> bytes:
    """Pack any sequence of str, bytes, bool, int (int64 or uint64), float and None as a MessagePack array."""
    return _pack(values)


def _pack_wide(marker: int, dtype: str, values: npt.NDArray[Any]) -> bytes:
    packed = np.empty(len(values), dtype=[("marker", "u1"), ("value", dtype)])
    packed["marker"] = marker
    packed["value"] = values
    return array_header(len(values)) + packed.tobytes()
