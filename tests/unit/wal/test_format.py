"""The bytes that are packed, held against the format's page by another MessagePack and another CRC32."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.wal import format as wal_format
from arcpipe.wal.format import EndMeta, StartMeta
from tests.support.kernel import kernel_of_checkout

WEIRD = [
    b"",
    b"\xc0",
    b"\x94",
    b"\x94\x00",
    b"\x94\x00\xa1\xff\x80\xc0",
    b"\x94\x00\xa0" + b"\x91" * 5000 + b"\xc0\xc0",
]


def test_the_file_header_is_what_the_page_says() -> None:
    assert wal_format.FILE_HEADER == b"ARCW\x00\x01\x01"
    assert wal_format.file_header_error(wal_format.FILE_HEADER + b"anything") is None


@given(
    kind=st.sampled_from([1, 2]),
    database=st.text(max_size=70),
    meta=st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=3),
    body=st.binary(max_size=300),
    timestamp=st.integers(0, 2**64 - 1),
)
def test_an_entry_is_length_timestamp_checksum_and_one_envelope(
    kind: int, database: str, meta: dict[str, int], body: bytes, timestamp: int
) -> None:
    packed_body = msgpack.packb(body)
    packed = wal_format.pack_entry(wal_format.envelope_prefix(kind, database, meta), packed_body, timestamp)
    length, stamp, crc = struct.unpack_from(">IQI", packed)
    payload = packed[16:]
    assert (length, stamp, crc) == (len(payload), timestamp, zlib.crc32(payload))
    assert msgpack.unpackb(payload, strict_map_key=False) == [kind, database, meta, body]


def test_the_checksum_is_chained_over_prefix_and_body() -> None:
    prefix = wal_format.envelope_prefix(1, "db")
    body = memoryview(b"\x81\xa1m\xa1x")
    for front in (b"", b"front"):
        head = wal_format.entry_head(prefix, body, 7, front)
        assert head + bytes(body) == wal_format.pack_entry(prefix, body, 7, front)


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=200),
    crc=st.integers(0, 2**32 - 1),
    front=st.binary(max_size=200),
    size=st.integers(0, 130) | st.integers(0, 5000),
    seed=st.integers(0, 255),
    is_view=st.booleans(),
    timestamp=st.integers(0, 2**64 - 1),
)
def test_the_kernel_joins_the_entries_that_python_joins(
    data: bytes, crc: int, front: bytes, size: int, seed: int, is_view: bool, timestamp: int
) -> None:
    body: bytes | memoryview = bytes((seed + number * number) & 0xFF for number in range(size))
    if is_view:
        body = memoryview(b"?" + body)[1:]
    joined = kernel_of_checkout().join_entry(data, crc, front, body, timestamp)
    assert joined == wal_format.join_by_python(data, crc, front, body, timestamp)


def test_the_kernel_makes_the_checksums_of_bodies_of_each_length() -> None:
    content = bytes(number * number % 251 for number in range(2100))
    for size in [*range(400), 511, 512, 1023, 2047, 2048]:
        entry = kernel_of_checkout().join_entry(b"", size * 7919, b"", content[size % 16 :][:size], 0)
        assert int.from_bytes(entry[12:16], "big") == zlib.crc32(content[size % 16 :][:size], size * 7919)


def test_the_kernel_refuses_what_is_no_part_of_an_entry() -> None:
    join = kernel_of_checkout().join_entry
    good: list[Any] = [b"prefix", 7, b"front", b"body", 8]
    bad: list[Any] = [None, "text", 1.5, -1, 1 << 64]
    for place in range(len(good)):
        for value in bad:
            with pytest.raises((TypeError, OverflowError)):
                join(*good[:place], value, *good[place + 1 :])
    for arguments in (
        (),
        good[:4],
        [*good, 1],
        [b"", 1 << 32, b"", b"", 8],
        [b"", 7, b"", memoryview(bytes(9))[::2], 8],
    ):
        with pytest.raises((TypeError, OverflowError, BufferError)):
            join(*arguments)


def test_start_and_end_come_back_as_they_went() -> None:
    start = StartMeta("node", 3, 12345, 1_760_000_000_000_000, "1.2.3")
    packed = wal_format.pack_start(start)
    assert struct.unpack_from(">Q", packed, 4) == (start.created,)
    assert wal_format.unpack_start(packed[16:]) == start
    assert wal_format.unpack_end(packed[16:]) is None
    end = EndMeta(10, 20, 3000, recovered=True)
    packed = wal_format.pack_end(end, 99)
    assert struct.unpack_from(">Q", packed, 4) == (99,)
    assert wal_format.unpack_end(packed[16:]) == end
    assert wal_format.unpack_start(packed[16:]) is None


def test_a_reader_ignores_meta_keys_that_it_does_not_know() -> None:
    payload = msgpack.packb([0, "", {"created": 5, "mood": "good", "slot": 2}, None])
    assert wal_format.unpack_start(payload) == StartMeta(slot=2, created=5)
    payload = msgpack.packb([255, "", {"entries": 1, "mood": [1, {}]}, None])
    assert wal_format.unpack_end(payload) == EndMeta(entries=1)


def test_the_end_entry_fits_into_the_room_that_is_kept_for_it() -> None:
    largest = EndMeta(2**64 - 1, 2**64 - 1, 2**64 - 1, recovered=True)
    assert len(wal_format.pack_end(largest, 2**64 - 1)) <= wal_format.END_ENTRY_BYTES


@pytest.mark.parametrize("payload", WEIRD)
def test_what_is_no_marker_is_none_and_raises_nothing(payload: bytes) -> None:
    assert wal_format.unpack_start(payload) is None
    assert wal_format.unpack_end(b"\x94\xcc\xff" + payload[2:]) is None


@given(st.binary(max_size=60))
def test_no_bytes_raise(payload: bytes) -> None:
    for kind in (b"\x94\x00", b"\x94\xcc\xff"):
        wal_format.unpack_start(kind + payload)
        wal_format.unpack_end(kind + payload)
    wal_format.file_header_error(payload)
