"""The bytes that are packed, held against the format's page by another MessagePack and another CRC32."""

from __future__ import annotations

import struct
import zlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.wal import format as wal_format
from arcpipe.wal.format import EndMeta, StartMeta

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
    head = wal_format.entry_head(prefix, body, 7)
    assert head + bytes(body) == wal_format.pack_entry(prefix, body, 7)


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
