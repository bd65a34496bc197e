"""Payloads in the WAL of an Arc installation become the same columns as all others."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from arcpipe.codec.messagepack.arc_payloads import decode, is_arc_payload
from arcpipe.errors import BadPayload


def columns(payload: bytes) -> list[tuple[str, str, dict[str, Any], tuple[str, ...]]]:
    return [
        (each.database, each.measurement, {name: msgpack.unpackb(raw) for name, raw in each.columns.items()}, each.tags)
        for each in decode(payload)
    ]


def prefixed(database: bytes, body: Any) -> bytes:
    return bytes(b"\x01" + len(database).to_bytes(2, "big") + database + msgpack.packb(body))


def test_rows_are_gathered_by_database_measurement_and_names() -> None:
    payload = msgpack.packb(
        [
            {"measurement": "cpu", "_database": "prod", "time": 1, "fields": {"a": 1, "b": None}, "tags": {"h": "x"}},
            {"measurement": "cpu", "timestamp": 2, "a": 2.5},
            {"measurement": "cpu", "_database": "prod", "time": 3, "fields": {"a": 4, "b": 5}, "tags": {"h": "y"}},
            {"m": "mem", "t": 4, "fields": {"free": b"\x00"}, "h": "flat"},
        ]
    )
    assert is_arc_payload(payload)
    assert columns(payload) == [
        ("prod", "cpu", {"time": [1, 3], "h": ["x", "y"], "a": [1, 4], "b": [None, 5]}, ("h",)),
        ("default", "cpu", {"time": [2], "a": [2.5]}, ()),
        ("default", "mem", {"time": [4], "free": [b"\x00"], "h": ["flat"]}, ()),
    ]


def test_values_stay_in_the_bytes_that_they_came_in() -> None:
    row = b"\x83\xabmeasurement\xa1m\xa4time\xcf" + bytes(7) + b"\x05\xa1a\xca\x3f\x80\x00\x00"
    (found,) = decode(b"\xdc\x00\x01" + row)
    assert bytes(memoryview(found.columns["time"])) == b"\x91\xcf" + bytes(7) + b"\x05"
    assert bytes(memoryview(found.columns["a"])) == b"\x91\xca\x3f\x80\x00\x00"


def test_names_that_stand_twice_all_stay() -> None:
    payload = msgpack.packb([{"measurement": "m", "fields": {"a": 1, "time": 7}, "tags": {"a": "x"}, "a": 2, "t": 5}])
    ((_, _, found, _),) = columns(payload)
    assert sorted(map(repr, found.values())) == sorted(map(repr, [["x"], [1], [2], [7], [5]]))
    assert found["a"] == ["x"]
    assert found["time"] == [5]


def test_the_prefixed_payload_names_the_database() -> None:
    columnar = {"measurement": "cpu", "columns": {"timestamp": [1, 2], "a": [1, 2]}, "tags": ["a"]}
    wanted = ("old", "cpu", {"time": [1, 2], "a": [1, 2]}, ("a",))
    assert columns(prefixed(b"old", columnar)) == [wanted]
    assert columns(prefixed(b"old", [columnar, {"m": "x", "a": 1}])) == [wanted, ("old", "x", {"a": [1]}, ())]
    assert columns(prefixed(b"", {"m": "x", "a": 1})) == [("default", "x", {"a": [1]}, ())]


def test_an_envelope_is_not_taken_for_rows() -> None:
    assert not is_arc_payload(msgpack.packb([1, "db", {}, {"m": "x", "columns": {}}]))
    assert is_arc_payload(msgpack.packb([{"m": "x"}] * 4))
    assert decode(msgpack.packb([])) == []


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([{"fields": {"a": 1}}]),
        msgpack.packb([{"measurement": "m"}]),
        msgpack.packb([{"measurement": 5, "a": 1}]),
        msgpack.packb([{"measurement": "m", "a": 1}, 7]),
        msgpack.packb([{"measurement": "m", "fields": 5}]),
        msgpack.packb([{"measurement": "m", "columns": {"a": [1]}, "more": 1}]),
        prefixed(b"\xff", {"m": "x", "a": 1}),
        prefixed(b"db", 5),
        b"\x01\x00\x09db",
        b"\x01",
    ],
)
def test_what_is_not_understood_is_refused_whole(payload: bytes) -> None:
    with pytest.raises(BadPayload):
        decode(payload)
