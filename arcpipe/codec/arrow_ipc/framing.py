"""The messages of an Arrow IPC stream: their kinds, and the bytes that their buffers have once they are decompressed.

Source: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc and
Message.fbs. Metadata is read by hand from its FlatBuffers tables, because pyarrow tells sizes only after it has
decompressed. Every number is a client's: each read is within the bytes, or the stream is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from arcpipe.errors import BadPayload
from arcpipe.units import MB

SCHEMA, DICTIONARY_BATCH, RECORD_BATCH = 1, 2, 3

_MAX_METADATA_BYTES: Final = 8 * MB
"""Metadata of one message. A schema of 16,384 columns with very long names takes that."""
MAX_FIELDS: Final = 16_384
"""Columns of a stream, with those within nested types. Each takes 4 µs, and pyarrow reads all of them in one call."""
# Tables may be shared, so a schema may have far more fields than bytes for them: pyarrow takes up to eight tables for
# each byte of metadata, and a field has two at least.
_FIELDS_PER_BYTE: Final = 4
_CHILDREN: Final = 5  # of a Field

_CONTINUATION: Final = b"\xff\xff\xff\xff"
_FILE_MAGIC: Final = b"ARROW1"
_SIZE: Final = struct.Struct("<i")
_U32: Final = struct.Struct("<I")
_U16: Final = struct.Struct("<H")
_I64: Final = struct.Struct("<q")
_STRUCT_BYTES: Final = 16  # of a FieldNode (length, nulls) and of a Buffer (offset, length)


class Message(NamedTuple):
    """A message. The counts are 0 for one that is no batch."""

    kind: int
    rows: int
    values: int  # of all arrays in it, nested ones too
    bytes: int  # of all its buffers, decompressed


def messages(stream: memoryview) -> Iterator[Message]:
    """Walk the messages of a stream up to its end.

    Raises:
        BadPayload: it is no stream of whole messages.
    """
    if bytes(stream[:6]) == _FILE_MAGIC:
        raise BadPayload("the body is an Arrow file; send the stream format")
    pos = 0
    while pos < len(stream):
        if bytes(stream[pos : pos + 4]) != _CONTINUATION:
            raise BadPayload(f"byte {pos} does not begin a message of an Arrow IPC stream")
        try:
            size = _SIZE.unpack_from(stream, pos + 4)[0]
            pos += 8
            if not size:
                break
            if not 0 < size <= _MAX_METADATA_BYTES:
                raise BadPayload(f"the Arrow message at byte {pos} has {size} bytes of metadata")
            metadata = stream[pos : pos + size]
            pos += size
            message, length = _read(metadata, stream[pos:])
        except (struct.error, IndexError, ValueError):
            raise BadPayload(f"the Arrow message before byte {pos} is damaged or cut") from None
        yield message
        pos += length
    if pos != len(stream):
        raise BadPayload(f"{len(stream) - pos} bytes follow the end of the Arrow IPC stream")


def _read(metadata: memoryview, rest: memoryview) -> tuple[Message, int]:
    """Read a message, whose body begins `rest`; return it and the size of its body."""
    table = _Table(metadata, _U32.unpack_from(metadata, 0)[0])
    kind = table.byte(1)
    length = table.long(3)
    if not 0 <= length <= len(rest):
        raise ValueError
    body = rest[:length]
    if kind == RECORD_BATCH:
        return _batch(kind, table.table(2), body), length
    if kind == DICTIONARY_BATCH:
        return _batch(kind, table.table(2).table(1), body), length
    if kind != SCHEMA:
        raise BadPayload(f"a message of kind {kind} has no place in an Arrow IPC stream of records")
    if len(metadata) * _FIELDS_PER_BYTE > MAX_FIELDS:
        _check_fields(table.table(2))
    return Message(kind, 0, 0, 0), length


def _check_fields(schema: _Table) -> None:
    """Count the fields of a schema, nested ones too, as often as pyarrow would make them. Raises BadPayload."""
    count = 0
    waiting = [schema.tables(1)]
    while waiting:
        for field in waiting.pop():
            count += 1
            if count > MAX_FIELDS:
                raise BadPayload(f"the Arrow schema has more than {MAX_FIELDS} columns, with those of nested types")
            if field.has(_CHILDREN):
                waiting.append(field.tables(_CHILDREN))


def _batch(kind: int, batch: _Table, body: memoryview) -> Message:
    rows = batch.long(0)
    lengths = batch.pairs(1)[:, 0]
    buffers = batch.pairs(2)
    if rows < 0 or (lengths < 0).any() or (buffers < 0).any() or (buffers > len(body)).any():
        raise ValueError
    if (buffers.sum(1) > len(body)).any():
        raise ValueError
    sizes = buffers[:, 1]
    total = int(sizes.sum())
    if batch.has(3):
        for offset, size in buffers[sizes > 0].tolist():
            decompressed = _I64.unpack_from(body, offset)[0]
            if decompressed < -1:
                raise ValueError
            total += max(decompressed, 0) - size if decompressed >= 0 else 0
    values = sum(lengths.tolist())  # of any size: numpy would overflow
    return Message(kind, rows, values, total)


class _Table:
    """A FlatBuffers table: https://flatbuffers.dev/internals/."""

    __slots__ = ("_at", "_data", "_fields", "_vtable")

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - _SIZE.unpack_from(data, at)[0]
        if self._vtable < 0 or at < 0:
            raise ValueError
        self._fields = _U16.unpack_from(data, self._vtable)[0] // 2 - 2

    def _place(self, field: int) -> int:
        """Return the offset of a field; 0 if it is absent."""
        if field >= self._fields:
            return 0
        offset = _U16.unpack_from(self._data, self._vtable + 4 + 2 * field)[0]
        return self._at + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._place(field) > 0

    def byte(self, field: int) -> int:
        place = self._place(field)
        return self._data[place] if place else 0

    def long(self, field: int) -> int:
        place = self._place(field)
        number: int = _I64.unpack_from(self._data, place)[0] if place else 0
        return number

    def _target(self, field: int) -> int:
        place = self._place(field)
        if not place:
            raise ValueError
        target: int = place + _U32.unpack_from(self._data, place)[0]
        return target

    def table(self, field: int) -> _Table:
        return _Table(self._data, self._target(field))

    def tables(self, field: int) -> Iterator[_Table]:
        """Yield the tables of a vector; none if it is absent."""
        if not self.has(field):
            return
        at = self._target(field)
        for place in range(at + 4, at + 4 + 4 * _U32.unpack_from(self._data, at)[0], 4):
            yield _Table(self._data, place + _U32.unpack_from(self._data, place)[0])

    def pairs(self, field: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Return a vector of structs of two numbers; none if it is absent."""
        if not self.has(field):
            return np.zeros((0, 2), np.int64)
        at = self._target(field)
        count = _U32.unpack_from(self._data, at)[0]
        return np.frombuffer(self._data, "<i8", 2 * count, at + 4).reshape(-1, 2)
