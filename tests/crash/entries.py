"""Entries that can be told apart and checked byte for byte, in a segment and in an object of the store.

Segments are read here without arcpipe's reader, which is what the crash tests judge.
"""

from __future__ import annotations

import functools
import random
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.wal.format import ENTRY_HEADER, ENTRY_HEADER_SIZE, FILE_HEADER_SIZE, envelope_prefix
from arcpipe.wal.group import NO_IDENTITY
from arcpipe.wal.reader import Entry

MANY_COLUMNS = 500_000
"""The number from which on each dozen of entries has a column of its own: the registry changes with most batches."""

PREFIX = envelope_prefix(KIND_COLUMNAR, "db", identity=NO_IDENTITY)  # as long as that of each entry


def key_of(number: int) -> bytes:
    """Return the idempotency key of an entry, in a plan that has keys: of every second one; else empty."""
    return b"key-%d" % number if number % 2 == 0 else b""


def make_body(number: int, size: int) -> bytes:
    """A columnar body so that its whole entry takes `size` bytes; what fills it follows from the number."""
    want = size - ENTRY_HEADER_SIZE - len(PREFIX.data)
    extras: tuple[dict[str, Any], ...] = ({}, {"tags": []})
    for extra in extras:  # one byte more of a filler may need one more to tell its length
        length = want
        for _ in range(4):
            body = _body(number, max(0, length), extra)
            if len(body) == want:
                return body
            length += want - len(body)
    raise ValueError(f"no entry of {size} bytes can hold number {number}")


def _body(number: int, length: int, extra: dict[str, list[str]]) -> bytes:
    # A column whose type depends on the batch that comes first: whoever forgets the registry gives it another one.
    mood = str(number) if number // 8 % 3 else number
    columns: dict[str, list[Any]] = {"number": [number], "filler": [_filler(number, length)], "mood": [mood]}
    if number >= MANY_COLUMNS:
        columns[f"mood{number // 12}"] = [str(number) if number // 3 % 2 else number]
    return msgspec.msgpack.encode({"m": "m", "columns": columns, **extra})


@functools.lru_cache(4096)
def _filler(number: int, length: int) -> bytes:
    return random.Random(number).randbytes(length)


def number_of(entry: Entry) -> int:
    """The number of an entry that `make_body` made; AssertionError if a byte of it is another."""
    return _number_in(bytes(entry.payload))


def _number_in(payload: bytes) -> int:
    kind, database, _, body = msgspec.msgpack.decode(payload)
    assert (kind, database) == (KIND_COLUMNAR, "db")
    [number], [filler] = body["columns"]["number"], body["columns"]["filler"]
    assert filler == _filler(number, len(filler)), f"entry {number} is not as it was sent"
    return int(number)


class Placed(NamedTuple):
    """An intact entry in a file; `number` is 0 of one that marks a segment's start or end."""

    begin: int
    end: int
    timestamp: int
    number: int
    is_recovered_end: bool


@functools.lru_cache(1024)
def entries_in(content: bytes) -> tuple[Placed, ...]:
    """Return the intact entries to the first that is damaged. Many states of a disk have the same files."""
    return tuple(_entries_in(content))


def _entries_in(content: bytes) -> Iterator[Placed]:
    offset = FILE_HEADER_SIZE
    while offset + ENTRY_HEADER_SIZE < len(content):
        length, timestamp, crc = ENTRY_HEADER.unpack_from(content, offset)
        begin = offset + ENTRY_HEADER_SIZE
        payload = content[begin : begin + length]
        if not 0 < length == len(payload) or zlib.crc32(payload) != crc:
            return
        kind, _, meta, _ = msgspec.msgpack.decode(payload)
        number = _number_in(payload) if kind == KIND_COLUMNAR else 0
        yield Placed(offset, begin + length, timestamp, number, kind == 255 and bool(meta.get("recovered")))
        if kind == 255:
            return
        offset = begin + length


class Shipped(NamedTuple):
    """The contents of one object."""

    numbers: tuple[int, ...]
    moods: tuple[str, ...]  # the columns `mood…`, each with its type


def shipped_in(key: str, content: bytes) -> Shipped:
    """The numbers in an object of the store; AssertionError if what fills an entry is not as it was sent."""
    return _shipped_in(key.endswith(".msgpack"), content)


@functools.lru_cache(4096)
def _shipped_in(is_dead_letter: bool, content: bytes) -> Shipped:
    if is_dead_letter:
        return Shipped((_number_in(content),), ())
    table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    numbers = table["number"].to_pylist()
    for number, filler in zip(numbers, table["filler"].to_pylist(), strict=True):
        assert filler == _filler(number, len(filler)), f"entry {number} is not as it was sent"
    moods = [f"{field.name}: {field.type}" for field in table.schema if re.fullmatch(r"mood\d*", field.name)]
    return Shipped(tuple(numbers), tuple(moods))
