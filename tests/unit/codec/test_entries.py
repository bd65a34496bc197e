"""The payloads of log entries are found out to be what they are, or nothing."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.entries import array_length, decode_entry, split_batch
from arcpipe.codec.envelope import encode_entry
from arcpipe.errors import BadPayload

COLUMNAR = {"m": "cpu", "columns": {"a": [1, 2]}}


def test_a_columnar_envelope_has_one_map() -> None:
    body = {**COLUMNAR, "tags": ["a"], "types": {"a": "u64"}}
    entry = decode_entry(msgpack.packb([1, "db", {"precision": "ms", "later": [1]}, body]))
    ((database, columns),) = entry.maps
    assert (database, entry.meta.precision) == ("db", "ms")
    assert (columns.m, columns.tags, columns.types) == ("cpu", ("a",), {"a": "u64"})
    assert {name: msgpack.unpackb(raw) for name, raw in columns.columns.items()} == {"a": [1, 2]}


def test_what_is_encoded_is_decoded_again() -> None:
    payload = msgpack.packb([1, "db", {"precision": "s"}, {**COLUMNAR, "tags": ["a"]}])
    entry = decode_entry(payload)
    assert encode_entry(entry.maps[0][0], entry.meta.precision, entry.maps[0][1]) == payload


def test_a_batch_is_split_into_entries_of_its_maps() -> None:
    payload = msgpack.packb([2, "db", {"precision": "s"}, [COLUMNAR, {"no": "map"}, COLUMNAR]])
    parts = split_batch(payload)
    assert [msgpack.unpackb(part) for part in parts] == [
        [1, "db", {"precision": "s"}, COLUMNAR],
        [1, "db", {"precision": "s"}, {"no": "map"}],
        [1, "db", {"precision": "s"}, COLUMNAR],
    ]


@given(st.binary(max_size=40))
def test_splitting_takes_any_bytes(payload: bytes) -> None:
    assert split_batch(payload)


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda tail: b"\x94\x01\xa2db\x80" + tail)))
def test_any_bytes_are_an_entry_or_refused(payload: bytes) -> None:
    try:
        decode_entry(payload)
    except BadPayload:
        pass


@pytest.mark.parametrize(
    "payload",
    [
        [3, "db", {}, COLUMNAR],
        [1, "db", {}, [COLUMNAR]],
        [2, "db", {}, COLUMNAR],
        [0, "db", {}, COLUMNAR],
        [1, "db", {}, None],
        [1, "db", {}],
        [1, "db", {}, COLUMNAR, 5],
        [1, 5, {}, COLUMNAR],
        [1, "db", {}, {"m": "cpu"}],
        [1, "db", {}, {"m": 5, "columns": {}}],
    ],
)
def test_other_envelopes_are_refused(payload: Any) -> None:
    with pytest.raises(BadPayload):
        decode_entry(msgpack.packb(payload))


def test_a_database_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadPayload):
        decode_entry(b"\x94\x00\xa6\x00\x00\x00\x00\x00\x80")


@pytest.mark.parametrize("kind", [0, 255])
def test_segment_start_and_end_have_no_maps(kind: int) -> None:
    assert decode_entry(msgpack.packb([kind, "", {"created": 1}, None])).maps == []


def test_nesting_deeper_than_recursion_is_read_the_slow_way() -> None:
    deep = b"\x91" * 10_000 + b"\xc0"
    body = (
        b"\x84\xa5types\x81\xa1a\xa3str\xa1m\xa3cpu\xa7columns\x82\xa1a\x91" + deep + b"\xa1b\x91\x01\xa4tags\x91\xa1b"
    )
    columnar = b"\x94\x01\xa2db\x81\xa9precision\xa1s" + body
    for payload in (columnar, b"\x94\x02\xa2db\x81\xa9precision\xa1s\x91" + body):
        entry = decode_entry(payload)
        ((database, columns),) = entry.maps
        assert (database, entry.meta.precision, columns.m, columns.tags, columns.types) == (
            "db",
            "s",
            "cpu",
            ("b",),
            {"a": "str"},
        )
        assert {name: bytes(memoryview(raw)) for name, raw in columns.columns.items()} == {
            "a": b"\x91" + deep,
            "b": b"\x91\x01",
        }


@pytest.mark.parametrize(
    ("data", "length"),
    [(b"\x90", (0, 1)), (b"\x9f", (15, 1)), (b"\xdc\x01\x00", (256, 3)), (b"\xdd\x00\x01\x00\x00", (65_536, 5))],
)
def test_the_length_of_an_array_is_in_its_header(data: bytes, length: tuple[int, int]) -> None:
    assert array_length(data) == length


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc0", b"\x01"])
def test_what_is_no_array_has_no_length(data: bytes) -> None:
    with pytest.raises(BadPayload):
        array_length(data)
