"""Bodies go in, columnar maps come out: held against a slow reading of the formats that shares nothing with it.

`reference_rows` below reads a body value by value and says which rows it holds, or that it must be refused.
"""

from __future__ import annotations

import math
import random
import struct
import tracemalloc
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcpipe.codec.columns import MAX_COLUMNS, Encoded, array_header, field_column_names
from arcpipe.codec.effort import BYTES_PER_SHAPE, FREE_SHAPES
from arcpipe.codec.messagepack import body as msgpack_body
from arcpipe.codec.messagepack.body import encode
from arcpipe.codec.messagepack.columnar import NO_SHAPE
from arcpipe.codec.messagepack.walk import MAX_VALUE_BYTES
from arcpipe.errors import BadPayload, PayloadTooLarge

# Writing MessagePack byte by byte


# Once: each allocates a buffer.
_packer = msgpack.Packer(unicode_errors="surrogateescape")


class Bytes(bytes):
    """MessagePack as it is, for values that no packer writes."""


class Pairs(list[tuple[Any, Any]]):
    """A map that may have a key twice."""


def pack(value: Any, wide: bool = False) -> bytes:
    """MessagePack with the shortest headers or, `wide`, the longest. Lone surrogates become invalid UTF-8."""
    if isinstance(value, Bytes):
        return value
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        header = b"\xdf" + len(value).to_bytes(4, "big") if wide else _packer.pack_map_header(len(value))
        return header + b"".join(pack(key, wide) + pack(each, wide) for key, each in value)
    if isinstance(value, list):
        header = b"\xdd" + len(value).to_bytes(4, "big") if wide else _packer.pack_array_header(len(value))
        return header + b"".join(pack(each, wide) for each in value)
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        return b"\xdb" + len(raw).to_bytes(4, "big") + raw if wide else bytes(_packer.pack(value))
    return bytes(_packer.pack(value))


def refusal(body: bytes) -> str:
    with pytest.raises(BadPayload) as caught:
        encode(body)
    return str(caught.value)


# The slow reading


class Refused(Exception):
    pass


class SlowReader:
    """Reads MessagePack value by value. Maps become Pairs, strings str (with surrogates for invalid bytes)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def value(self) -> Any:
        marker = self.number(1)
        for end, size_mask, read in self.SHORT_FORMS:
            if marker < end:
                return read(self, marker & size_mask)
        if marker >= 0xE0:
            return marker - 256
        if marker not in LONG_FORMS:
            raise Refused("0xc1")
        return LONG_FORMS[marker](self)

    def take(self, size: int) -> bytes:
        if self.at + size > len(self._data):
            raise Refused("cut off")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def signed(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big", signed=True)

    def text(self, size: int) -> str:
        return self.take(size).decode("utf-8", "surrogateescape")

    def array(self, size: int) -> list[Any]:
        return [self.value() for _ in range(size)]

    def pairs(self, size: int) -> Pairs:
        return Pairs((self.value(), self.value()) for _ in range(size))

    def extension(self, size: int) -> tuple[str, int, bytes]:
        return ("ext", self.number(1), self.take(size))

    # The first marker after those of the form, the bits that hold the size, and how such a value is read.
    SHORT_FORMS: ClassVar[tuple[tuple[int, int, Callable[[SlowReader, int], Any]], ...]] = (
        (0x80, 0x7F, lambda _, number: number),
        (0x90, 15, pairs),
        (0xA0, 15, array),
        (0xC0, 31, text),
    )


def sized(read: Callable[[SlowReader, int], Any], width: int) -> Callable[[SlowReader], Any]:
    """Read a value whose size comes first, as a number of `width` bytes."""
    return lambda reader: read(reader, reader.number(width))


def fixed(read: Callable[[SlowReader, int], Any], size: int) -> Callable[[SlowReader], Any]:
    """Read a value of this size."""
    return lambda reader: read(reader, size)


LONG_FORMS: dict[int, Callable[[SlowReader], Any]] = {
    0xC0: lambda _: None,
    0xC2: lambda _: False,
    0xC3: lambda _: True,
    0xCA: lambda reader: struct.unpack(">f", reader.take(4))[0],
    0xCB: lambda reader: struct.unpack(">d", reader.take(8))[0],
    **{0xC4 + n: sized(SlowReader.take, 1 << n) for n in range(3)},
    **{0xC7 + n: sized(SlowReader.extension, 1 << n) for n in range(3)},
    **{0xCC + n: fixed(SlowReader.number, 1 << n) for n in range(4)},
    **{0xD0 + n: fixed(SlowReader.signed, 1 << n) for n in range(4)},
    **{0xD4 + n: fixed(SlowReader.extension, 1 << n) for n in range(5)},
    **{0xD9 + n: sized(SlowReader.text, 1 << n) for n in range(3)},
    **{0xDC + n: sized(SlowReader.array, 2 << n) for n in range(2)},
    **{0xDE + n: sized(SlowReader.pairs, 2 << n) for n in range(2)},
}


def parse(data: bytes) -> Any:
    """Read one value that is all there is."""
    reader = SlowReader(data)
    found = reader.value()
    if reader.at != len(data):
        raise Refused("trailing")
    return found


def need(condition: object) -> None:
    if not condition:
        raise Refused


def as_dict(value: Any) -> dict[str, Any]:
    need(isinstance(value, Pairs) and all(isinstance(key, str) for key, _ in value))
    need(len({key for key, _ in value}) == len(value))
    return dict(value)


def check_name(name: Any) -> None:
    need(isinstance(name, str) and not any("\ud800" <= c <= "\udfff" for c in name))
    need(1 <= len(name.encode()) <= 256 and not any(unicodedata.category(c) == "Cc" for c in name))


Row = tuple[str, str, frozenset[tuple[str, str]], frozenset[tuple[str, str]]]


def row_key(measurement: str, time: Any, tags: dict[str, Any], fields: dict[str, Any]) -> Row:
    def items(values: dict[str, Any]) -> frozenset[tuple[str, str]]:
        return frozenset((name, repr(value)) for name, value in values.items())

    return measurement, repr(time), items(tags), items(fields)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def named(what: str, value: Any) -> Any:
    return f"{what}_{value}" if is_integer(value) else value


def settled(time: Any) -> Any:
    """A time as the WAL has it, timestamps in one form. Text is the matter of `test_times`: the texts here are none."""
    if isinstance(time, tuple):
        need(time[1] == 255 and len(time[2]) in (4, 8, 12))
        content = time[2]
        if len(content) == 8:
            both = int.from_bytes(content, "big")
            ns, seconds = both >> 34, both & ((1 << 34) - 1)
        else:
            ns = int.from_bytes(content[:-8], "big")
            seconds = int.from_bytes(content[-8:], "big", signed=len(content) == 12)
        need(ns < 10**9 and -62_135_596_800 <= seconds <= 253_402_300_799)
        return ("time", seconds, ns)
    if not isinstance(time, float):
        need(time is None or is_integer(time))
        if time is not None:
            seconds = -62_135_596_800  # the start of the year 1
            units = [unit for border, unit in ((10**11, 1), (10**14, 10**3), (10**17, 10**6)) if abs(time) < border]
            need(not units or time >= seconds * units[0])  # all nanoseconds are later
        return time
    need(math.isfinite(time))
    if abs(time) < 1e11:
        return time
    us = round(time * 1_000 if abs(time) < 1e14 else time if abs(time) < 1e17 else time / 1_000)
    need(-62_135_596_800_000_000 <= us <= 253_402_300_799_999_999)
    return ("time", us // 10**6, us % 10**6 * 1_000)


def columnar_rows(value: dict[str, Any]) -> list[Row]:
    need(value.keys() <= {"m", "columns", "tags", "types", "tag_keys"} and {"m", "columns"} <= value.keys())
    need("tags" not in value or "tag_keys" not in value)
    check_name(named("measurement", value["m"]))
    columns = as_dict(value["columns"])
    need(columns)
    for name, column in columns.items():
        check_name(name)
        need(isinstance(column, list) and column)
    need(len({len(column) for column in columns.values()}) == 1)
    tags = value.get("tags", value.get("tag_keys", []))
    need(isinstance(tags, list) and all(isinstance(tag, str) for tag in tags))
    need(set(tags) <= columns.keys() - {"time"})
    types = as_dict(value.get("types", Pairs()))
    need(types.keys() <= columns.keys())
    words = ("i64", "u64", "f64", "bool", "str", "bytes")
    need(all(isinstance(word, str) and word in words for word in types.values()))
    rows = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        time = settled(row.pop("time", None))
        rows.append(row_key(named("measurement", value["m"]), time, {tag: row.pop(tag) for tag in set(tags)}, row))
    return rows


def row_rows(value: dict[str, Any]) -> list[Row]:
    need(value.keys() <= {"m", "t", "h", "fields", "f", "tags"} and "m" in value)
    need(("fields" in value) != ("f" in value))
    measurement = named("measurement", value["m"])
    check_name(measurement)
    time = settled(value.get("t"))
    if "f" in value:
        need(isinstance(value["f"], list) and not isinstance(value["f"], Pairs))
        fields = {f"field_{number}": each for number, each in enumerate(value["f"])}
    else:
        fields = as_dict(value["fields"])
    tags = {} if value.get("tags") is None else as_dict(value["tags"])
    need(fields)
    for name in (*fields, *tags):
        check_name(name)
    need("time" not in tags)
    host = named("host", value.get("h"))
    if host is not None:
        need(isinstance(host, str) and repr(tags.get("host", host)) == repr(host))
        tags["host"] = host
    names = field_column_names(list(tags), list(fields))
    return [row_key(measurement, time, tags, dict(zip(names, fields.values(), strict=True)))]


def element_rows(value: Any, batches: bool) -> list[Row]:
    value = as_dict(value)
    if batches and value.keys() == {"batch"}:
        return array_rows(value["batch"], batches=False)
    return columnar_rows(value) if "columns" in value else row_rows(value)


def array_rows(value: Any, batches: bool) -> list[Row]:
    need(isinstance(value, list) and value)
    return [row for element in value for row in element_rows(element, batches)]


def reference_rows(body: bytes) -> Counter[Row]:
    """The rows in a body, or Refused."""
    value = parse(body)
    if isinstance(value, Pairs):
        return Counter(element_rows(value, batches=True))
    return Counter(array_rows(value, batches=True))


def encoded_maps(encoded: Encoded) -> list[dict[str, Any]]:
    value = parse(bytes(encoded.body))
    return [as_dict(each) for each in value] if encoded.batch else [as_dict(value)]


def encoded_rows(encoded: Encoded) -> Counter[Row]:
    """The rows in a result: nothing but columnar maps, with as many rows as it says."""
    rows = Counter(row for each in encoded_maps(encoded) for row in columnar_rows(each))
    assert rows.total() == encoded.records
    return rows


def check_against_the_reference(body: bytes) -> bool:
    """Encode accepts what the reference accepts, with the same rows, and refuses what it refuses."""
    try:
        expected = reference_rows(body)
    except Refused:
        with pytest.raises(BadPayload):
            encode(body)
        return False
    assert encoded_rows(encode(body)) == expected
    return True


# Bodies

COLUMNAR: dict[str, Any] = {
    "m": "cpu",
    "columns": {"time": [1, 2], "host": ["a", "bc"], "usage": [0.5, 1.5]},
    "tags": ["host"],
}
ROW = {"m": "cpu", "t": 1700000000, "h": "a", "fields": {"usage": 0.5, "n": 3}, "tags": {"region": "eu"}}


def telemetry(records: int) -> bytes:
    return pack(
        {
            "m": "cpu",
            "columns": {
                "time": [1700000000000000 + n for n in range(records)],
                "host": [f"server-{n % 100}" for n in range(records)],
                "region": [f"eu-west-{n % 3}" for n in range(records)],
                "user": [n / 7 for n in range(records)],
                "system": [n / 11 for n in range(records)],
                "count": [n * n for n in range(records)],
            },
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("records", [1, 2, 15, 16, 17, 1000, 65_536, 70_000])
def test_a_columnar_map_passes_through_as_the_same_object(records: int) -> None:
    body = telemetry(records)
    assert encode(body) == Encoded(False, body, records)
    assert encode(body).body is body
    view = memoryview(body)
    assert encode(view).body is view


def test_keys_of_a_columnar_map_may_come_in_any_order_and_with_any_headers() -> None:
    full = {**COLUMNAR, "types": {"usage": "f64", "time": "i64"}}
    for order in (["types", "tags", "columns", "m"], ["columns", "types", "m", "tags"]):
        for wide in (False, True):
            body = pack({key: full[key] for key in order}, wide)
            assert encode(body).body is body
            assert check_against_the_reference(body)


@pytest.mark.parametrize(
    "values",
    [
        [None, None],
        [True, False],
        [1, "a", 1.5],
        [b"x", b"y" * 300],
        ["\udcff\udcfe", "ok"],
        [[1, [2]], {"a": {"b": 1}}],
        [msgpack.ExtType(5, b"abc"), msgpack.Timestamp(1, 2)],
        ["x" * 31, "y" * 31],
        ["x" * 40, "y" * 70_000],
        [Bytes(b"\xca\x3f\x80\x00\x00")] * 3,
        [-1, -(2**63), 2**64 - 1],
    ],
)
def test_odd_values_in_columns_are_not_refused(values: list[Any]) -> None:
    body = pack({"m": "x", "columns": {"v": values, "w": [1] * len(values)}})
    assert encode(body) == Encoded(False, body, len(values))


def test_an_array_of_columnar_maps_passes_through_untouched() -> None:
    body = pack([COLUMNAR, COLUMNAR, {"m": "mem", "columns": {"v": [1]}}])
    assert encode(body) == Encoded(True, body, 5)
    assert encode(body).body is body


def test_a_batch_of_columnar_maps_is_a_view_of_its_array() -> None:
    body = pack({"batch": [COLUMNAR, COLUMNAR]})
    encoded = encode(body)
    assert isinstance(encoded.body, memoryview)
    assert encoded == Encoded(True, pack([COLUMNAR, COLUMNAR]), 4)


@pytest.mark.parametrize("body", [[COLUMNAR], {"batch": [COLUMNAR]}, [{"batch": [COLUMNAR]}]])
def test_a_single_columnar_map_in_an_array_comes_out_alone(body: Any) -> None:
    assert encode(pack(body)) == Encoded(False, pack(COLUMNAR), 2)


def test_a_row_becomes_a_columnar_map_with_its_tags_marked() -> None:
    encoded = encode(pack(ROW))
    assert encoded.records == 1
    assert not encoded.batch
    assert msgpack.unpackb(encoded.body) == {
        "m": "cpu",
        "columns": {"time": [1700000000], "host": ["a"], "region": ["eu"], "usage": [0.5], "n": [3]},
        "tags": ["host", "region"],
    }


def test_rows_are_grouped_by_shape_in_the_order_of_first_appearance() -> None:
    rows = [
        {"m": "cpu", "t": 1, "fields": {"a": 1}, "tags": {"host": "x"}},
        {"m": "mem", "t": 2, "fields": {"a": 2}, "tags": {"host": "y"}},
        {"m": "cpu", "t": 3, "fields": {"a": 3, "b": 4}, "tags": {"host": "x"}},
        {"m": "cpu", "t": 4, "fields": {"a": "five"}, "tags": {"host": "z"}},
        {"m": "cpu", "t": 5, "fields": {"host": 6}, "tags": {"a": "w"}},
    ]
    for wide in (False, True):
        assert msgpack.unpackb(encode(pack({"batch": rows}, wide)).body) == [
            {"m": "cpu", "columns": {"time": [1, 4], "host": ["x", "z"], "a": [1, "five"]}, "tags": ["host"]},
            {"m": "mem", "columns": {"time": [2], "host": ["y"], "a": [2]}, "tags": ["host"]},
            {"m": "cpu", "columns": {"time": [3], "host": ["x"], "a": [3], "b": [4]}, "tags": ["host"]},
            {"m": "cpu", "columns": {"time": [5], "a": ["w"], "host": [6]}, "tags": ["a"]},
        ]


def test_the_order_of_names_within_a_row_makes_no_shape() -> None:
    rows = []
    for n in range(200):
        fields = [(f"f{k}", n * k) for k in range(8)]
        random.Random(n).shuffle(fields)
        rows.append({"m": "x", "t": n, "fields": dict(fields)})
    for wide in (False, True):
        encoded = encode(pack(rows, wide))
        assert not encoded.batch
        columns = msgpack.unpackb(encoded.body)["columns"]
        assert columns == {"time": list(range(200)), **{f"f{k}": [n * k for n in range(200)] for k in range(8)}}


def test_a_missing_time_is_nil_beside_rows_that_have_one() -> None:
    rows = [
        {"m": "x", "fields": {"a": 1}},
        {"m": "x", "t": 5, "fields": {"a": 2}},
        {"m": "x", "t": None, "fields": {"a": 3}},
    ]
    for wide in (False, True):
        body = msgpack.unpackb(encode(pack(rows, wide)).body)
        assert body == {"m": "x", "columns": {"time": [None, 5, None], "a": [1, 2, 3]}}


def test_rows_without_any_time_have_no_time_column() -> None:
    rows = [{"m": "x", "fields": {"a": 1}}, {"m": "x", "t": None, "fields": {"a": 3}}]
    for body in (rows, rows[:1], rows[1:]):
        for wide in (False, True):
            assert "time" not in msgpack.unpackb(encode(pack(body, wide)).body)["columns"]


TIMES = [
    *(0, -1, 127, 128, 1700000000, 1700000000000000000, 2**64 - 1, -(2**63)),
    *(1.5, -0.25, Bytes(b"\xca\x3f\x80\x00\x00")),
    *(msgpack.Timestamp(1), msgpack.Timestamp(1, 5), msgpack.Timestamp(2**36, 5)),
]


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_times_are_numbers_or_timestamps_and_keep_their_bytes(time: Any) -> None:
    for wide in (False, True):
        body = encode(pack({"m": "x", "t": time, "fields": {"a": 1}}, wide)).body
        assert body == pack({"m": "x", "columns": {"time": [time], "a": [1]}})


def test_values_of_rows_keep_their_bytes() -> None:
    values = [
        1.0,
        1,
        Bytes(b"\xca\x3f\x80\x00\x00"),
        Bytes(b"\xd3" + bytes(8)),
        "\udcff",
        b"\xff",
        None,
        True,
        [1],
        {"a": 1},
    ]
    names = [f"f{n}" for n in range(len(values))]
    tags = {"t1": 5, "t2": True, "t3": None, "t4": "\udcff"}
    for t in ("t", "tt"):  # with the canonical header and with one that takes the exact way
        row = {"m": t, "tags": tags, "fields": dict(zip(names, values, strict=True))}
        body = pack(row) if t == "t" else pack(row).replace(b"\xa1m\xa2tt", b"\xa1m\xd9\x02tt")
        columns = {name: [value] for name, value in (*tags.items(), *zip(names, values, strict=True))}
        assert encode(body).body == pack({"m": t, "columns": columns, "tags": list(tags)})


def test_a_field_with_the_name_of_a_tag_is_kept_beside_it() -> None:
    row = {"m": "x", "h": "a", "fields": {"host": 1, "region": 2}, "tags": {"region": "eu"}}
    for wide in (False, True):
        assert msgpack.unpackb(encode(pack(row, wide)).body) == {
            "m": "x",
            "columns": {"host": ["a"], "region": ["eu"], "host_field": [1], "region_field": [2]},
            "tags": ["host", "region"],
        }


def test_a_host_that_is_given_twice_alike_is_kept_once() -> None:
    for tag in ("a", Bytes(b"\xd9\x01a")):
        row = {"m": "x", "h": "a", "fields": {"v": 1}, "tags": {"host": tag}}
        body = msgpack.unpackb(encode(pack(row)).body)
        assert body == {"m": "x", "columns": {"host": ["a"], "v": [1]}, "tags": ["host"]}


def test_rows_columnar_maps_and_batches_mix_in_one_array() -> None:
    body = pack([ROW, COLUMNAR, {"batch": [ROW, COLUMNAR, ROW]}, ROW, {"batch": [COLUMNAR]}])
    assert check_against_the_reference(body)
    encoded = encode(body)
    assert encoded.batch
    assert encoded.records == 4 + 3 * 2
    assert sum(bytes(encoded.body).count(pack(each)) for each in (COLUMNAR,)) == 3


# Refusals

# Python 3.14 bounds nesting by its stack alone: it goes through 100,000 arrays.
DEEP = b"\x91" * 1_000_000 + b"\x01"
NAME_257 = "n" * 257


def columnar(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**COLUMNAR, **changes}.items() if value is not ...}


def row(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**ROW, **changes}.items() if value is not ...}


def columns(**changes: Any) -> dict[str, Any]:
    return {"m": "cpu", "columns": {**COLUMNAR["columns"], **changes}}


BAD: list[tuple[Any, str]] = [
    # What is no body at all
    (Bytes(b""), "body is empty"),
    (5, "body is neither a map nor an array but an integer"),
    (Bytes(b"cpu,host=a usage=1 1"), "body is neither a map nor an array but an integer"),
    ("cpu", "body is neither a map nor an array but a string"),
    (None, "body is neither a map nor an array but nil"),
    (True, "body is neither a map nor an array but a boolean"),
    (b"x", "body is neither a map nor an array but binary"),
    (1.5, "body is neither a map nor an array but a float"),
    (msgpack.ExtType(5, b"x"), "body is neither a map nor an array but an extension"),
    (Bytes(b"\xc1"), "body is neither a map nor an array but an invalid byte"),
    (Bytes(pack(COLUMNAR) + b"\x00"), f"trailing bytes after the MessagePack value at byte {len(pack(COLUMNAR))}"),
    (Bytes(pack(ROW) + b"\x00"), f"trailing bytes after the MessagePack value at byte {len(pack(ROW))}"),
    (Bytes(pack([ROW, ROW]) + b"\xc1"), f"trailing bytes after the MessagePack value at byte {len(pack([ROW] * 2))}"),
    (Bytes(pack([COLUMNAR]) * 2), f"trailing bytes after the MessagePack value at byte {len(pack([COLUMNAR]))}"),
    (Bytes(pack({"batch": [ROW]}) + b"a"), f"trailing bytes after the MessagePack value at byte {7 + 61}"),
    # Cut off
    (Bytes(pack(COLUMNAR)[:-1]), f"truncated MessagePack at byte {len(pack(COLUMNAR)) - 1}"),
    (Bytes(pack(columns())[:-1]), f"truncated MessagePack at byte {len(pack(columns())) - 1}, in column 'usage'"),
    (Bytes(pack(columns())[:20]), "truncated MessagePack at byte 20"),
    (Bytes(pack(ROW)[:-1]), f"truncated MessagePack at byte {len(pack(ROW)) - 1}, in tag 'region'"),
    (Bytes(pack([ROW, ROW])[:-1]), f"truncated MessagePack at byte {len(pack([ROW, ROW])) - 1}, in element 1"),
    (
        Bytes(pack({"batch": [ROW, ROW]})[:-1]),
        f"truncated MessagePack at byte {len(pack({'batch': [ROW, ROW]})) - 1}, in element 1 of 'batch'",
    ),
    (Bytes(b"\x81"), "truncated MessagePack at byte 1"),
    (Bytes(b"\xde"), "truncated MessagePack at byte 1"),
    (Bytes(b"\xdf\x00\x00\x00"), "truncated MessagePack at byte 4"),
    (Bytes(b"\xdd\x00"), "truncated MessagePack at byte 2"),
    (Bytes(b"\x81\xdb\x00\x00"), "truncated MessagePack at byte 4"),
    (Bytes(b"\x81\xa7col"), "truncated MessagePack at byte 5"),
    (Bytes(b"\x81\xa1m\xda\x00\x05\xff"), "truncated MessagePack at byte 7"),
    # Lengths that are not there
    (Bytes(b"\xdd\xff\xff\xff\xff" + pack(COLUMNAR)), f"truncated MessagePack at byte {5 + len(pack(COLUMNAR))}"),
    (Bytes(b"\xdd\xff\xff\xff\xff" + pack(ROW)), f"truncated MessagePack at byte {5 + len(pack(ROW))}, in element 1"),
    (Bytes(b"\xdf\xff\xff\xff\xff" + pack(COLUMNAR)[1:]), f"truncated MessagePack at byte {4 + len(pack(COLUMNAR))}"),
    (columns(time=Bytes(b"\xdd\xff\xff\xff\xff\x01")), "truncated MessagePack at byte 63, in column 'time'"),
    (Bytes(b"\x82\xa1mA"), "truncated MessagePack at byte 4"),
    (Bytes(b"\x82\xa1m\xce\x01"), "truncated MessagePack at byte 5"),
    (columnar(columns=Bytes(b"\xdf\xff\xff\xff\xff\xa1a\x91\x01")), "more than 65536 columns"),
    (columnar(tags=Bytes(b"\xdd\xff\xff\xff\xff\xa1a")), "more than 65536 tags"),
    (columnar(types=Bytes(b"\xdf\xff\xff\xff\xff\xa1a")), "more than 65536 types"),
    (row(fields=Bytes(b"\xdf\xff\xff\xff\xff\xa1a\x01")), "more than 65536 fields"),
    (row(tags=Bytes(b"\xdf\xff\xff\xff\xff\xa1a\x01")), "more than 65536 tags"),
    # Malformed and nested
    (columns(usage=Bytes(b"\x92\x01\xc1")), "invalid MessagePack at byte 43, in column 'usage'"),
    (columns(usage=[Bytes(DEEP), 1]), "the value at byte 41 is nested more than 1024 deep, in column 'usage'"),
    (row(fields={"a": Bytes(DEEP)}), "the value at byte 28 is nested more than 1024 deep, in field 'a'"),
    (Bytes(DEEP), "element 0 is not a map but an array"),
    (Bytes(b"\x81\xa1a" * 100_000), "the value at byte 3 is nested more than 1024 deep"),
    # Columnar maps
    ({}, "measurement 'm' is missing"),
    (columnar(m=...), "measurement 'm' is missing"),
    ({"m": "cpu"}, NO_SHAPE),
    ({"m": "cpu", "tags": ["a"]}, NO_SHAPE),
    ({"m": "cpu", "usage": 1}, NO_SHAPE + "; its key at byte 7 is 'usage'"),
    ({"name": "cpu", "columns": {"a": [1]}}, "unknown key 'name' in a columnar map at byte 1"),
    ({"name": "cpu", "fields": {"a": 1}}, "unknown key 'name' in a row at byte 1"),
    ({"name": "cpu", "t": 5}, "unknown key 'name' in a row at byte 1"),
    (columnar(tags=["host"], tag_keys=["host"]), "both 'tags' and 'tag_keys' are there"),
    (columnar(tags=..., tag_keys=["x"]), "tag 'x' is not a column"),
    (columnar(m=5.5), "measurement 'm' is not a string but a float"),
    (columnar(m=b"cpu"), "measurement 'm' is not a string but binary"),
    (columnar(m=None), "measurement 'm' is not a string but nil"),
    (columnar(m=""), "measurement is empty"),
    (columnar(m=NAME_257), f"measurement '{'n' * 64}…' has 257 bytes, more than 256"),
    (columnar(m="a\tb"), "measurement 'a\\tb' has a control character"),
    (columnar(m="a\x85"), "measurement 'a\\x85' has a control character"),
    (columnar(m="a\udcff"), "measurement 'a\\xff' is not valid UTF-8"),
    (columnar(columns={}), "'columns' is empty"),
    (columnar(columns=[1]), "'columns' is not a map but an array"),
    (columnar(columns=None), "'columns' is not a map but nil"),
    (columns(usage="x"), "column 'usage' is not an array but a string"),
    (columns(usage=None), "column 'usage' is not an array but nil"),
    (columns(usage={"a": 1}), "column 'usage' is not an array but a map"),
    (columns(time=5), "column 'time' is not an array but an integer"),
    (columns(usage=[1, 2, 3]), "column 'usage' has 3 values, 'time' has 2"),
    (columns(usage=[1] * 20), "column 'usage' has 20 values, 'time' has 2"),
    (columns(usage=[]), "no records: column 'usage' has no values"),
    (columnar(columns={"a": [], "b": []}), "no records: column 'a' has no values"),
    (columnar(columns={"": [1]}), "column name is empty"),
    (columnar(columns={NAME_257: [1]}), f"column name '{'n' * 64}…' has 257 bytes, more than 256"),
    (columnar(columns={"a\n": [1]}), "column name 'a\\n' has a control character"),
    (columnar(columns={"ä\x9f": [1]}), "column name '\\xe4\\x9f' has a control character"),
    (columnar(columns={"\udcff": [1]}), "column name '\\xff' is not valid UTF-8"),
    (columnar(columns=Pairs([("\udcc3", [1]), ("\udca4", [1])])), "column name '\\xc3' is not valid UTF-8"),
    (columnar(columns={5: [1]}), "the key at byte 16 is not a string but an integer"),
    (columnar(columns={b"a": [1]}), "the key at byte 16 is not a string but binary"),
    (columnar(columns=Pairs([("a", [1]), ("b", [1]), ("a", [1])])), "column 'a' is there twice"),
    (columnar(tags=["host", "x"]), "tag 'x' is not a column"),
    (columnar(tags=["time"]), "column 'time' is the timestamp and cannot be a tag"),
    (columnar(tags=[5]), "a name in 'tags' is not a string but an integer"),
    (columnar(tags=None), "'tags' is not an array but nil"),
    (columnar(tags={"host": "a"}), "'tags' is not an array but a map"),
    (columnar(types={"x": "i64"}), "'types' names 'x', which is not a column"),
    (
        columnar(types={"usage": "int"}),
        "column 'usage' has the unknown type 'int', not one of bool, bytes, f64, i64, str, u64",
    ),
    (columnar(types={"usage": 5}), "the type of column 'usage' is not a string but an integer"),
    (columnar(types=["f64"]), "'types' is not a map but an array"),
    (columnar(types=Pairs([("usage", "f64"), ("usage", "f64")])), "'types' names column 'usage' twice"),
    (columnar(database="x"), "unknown key 'database' in a columnar map at byte 71"),
    (columnar(fields={"a": 1}), "unknown key 'fields' in a columnar map at byte 71"),
    (Pairs([*COLUMNAR.items(), ("m", "cpu")]), "key 'm' is there twice, again at byte 71"),
    (Pairs([*COLUMNAR.items(), ("columns", {"a": [1]})]), "key 'columns' is there twice, again at byte 71"),
    (Pairs([*COLUMNAR.items(), ("tags", ["host"])]), "key 'tags' is there twice, again at byte 71"),
    (Pairs([("m", "a"), ("types", {}), ("types", {})]), "key 'types' is there twice, again at byte 12"),
    (Pairs([(5, 5)]), "the key at byte 1 is not a string but an integer"),
    # Rows
    (row(fields=...), "'fields' is missing"),
    (row(m=...), "measurement 'm' is missing"),
    (row(m=None), "measurement 'm' is not a string but nil"),
    (row(m=""), "measurement is empty"),
    (row(m="a\n"), "measurement 'a\\n' has a control character"),
    (row(m=NAME_257), f"measurement '{'n' * 64}…' has 257 bytes, more than 256"),
    (row(fields={}), "'fields' is empty"),
    (row(fields=[1]), "'fields' is not a map but an array"),
    (row(fields=None), "'fields' is not a map but nil"),
    (row(tags=[1]), "'tags' is not a map but an array"),
    (row(tags="a"), "'tags' is not a map but a string"),
    (row(t="now"), "'t': text 'now' is no ISO 8601 time"),
    (row(t=True), "'t' is neither a number, a timestamp nor a text but a boolean"),
    (row(t=[1]), "'t' is neither a number, a timestamp nor a text but an array"),
    (row(t=msgpack.ExtType(5, b"abcd")), "'t' is neither a number, a timestamp nor a text but an extension"),
    (row(f=[1]), "both 'fields' and 'f' are there"),
    ({"m": "x", "f": []}, "'f' is empty"),
    ({"m": "x", "f": {"a": 1}}, "'f' is not an array but a map"),
    (row(t=Bytes(b"\xc7\x05\xffabcde")), "'t' is neither a number, a timestamp nor a text but an extension"),
    (row(h=5.5), "'h' is neither a string nor an integer but a float"),
    (row(h=b"a"), "'h' is neither a string nor an integer but binary"),
    (row(tags={"host": "b"}), "'h' and the tag 'host' are different"),
    (row(h="\x05", tags={"host": 5}), "'h' and the tag 'host' are different"),
    (row(tags={"time": "a"}), "a tag cannot be called 'time', the name of the timestamp column"),
    (row(fields={"": 1}), "field name is empty"),
    (row(fields={"a\x00": 1}), "field name 'a\\x00' has a control character"),
    (row(fields={"\udcff": 1}), "field name '\\xff' is not valid UTF-8"),
    (row(fields={NAME_257: 1}), f"field name '{'n' * 64}…' has 257 bytes, more than 256"),
    (row(tags={"": "a"}), "tag name is empty"),
    (row(tags={"a\x7f": "a"}), "tag name 'a\\x7f' has a control character"),
    (row(tags={NAME_257: "a"}), f"tag name '{'n' * 64}…' has 257 bytes, more than 256"),
    (row(fields={5: 1}), "the key at byte 26 is not a string but an integer"),
    (row(fields=Pairs([("a", 1), ("b", 1), ("a", 2)])), "field 'a' is there twice"),
    (row(tags=Pairs([("a", "x"), ("a", "x")])), "tag 'a' is there twice"),
    (row(value=5), "unknown key 'value' in a row at byte 60"),
    (row(columns={"a": [1]}), "unknown key 'columns' in a row at byte 60"),
    (Pairs([*ROW.items(), ("t", 5)]), "key 't' is there twice, again at byte 60"),
    (Pairs([*ROW.items(), ("fields", {"a": 1})]), "key 'fields' is there twice, again at byte 60"),
    (Pairs([("m", "a"), *ROW.items()]), "key 'm' is there twice, again at byte 5"),
    # Arrays and batches
    ([], "no records: the body is an empty array"),
    ({"batch": []}, "no records: the batch is an empty array"),
    ([COLUMNAR, {"batch": []}], "element 1: no records: the batch is an empty array"),
    ({"batch": None}, "'batch' is not an array but nil"),
    ({"batch": ROW}, "'batch' is not an array but a map"),
    ({"batch": [ROW], "m": "x"}, "there are other keys besides 'batch'"),
    ([5], "element 0 is not a map but an integer"),
    ([[ROW]], "element 0 is not a map but an array"),
    ([ROW, [ROW]], "element 1 is not a map but an array"),
    ({"batch": [COLUMNAR, ROW, "x"]}, "element 2 of 'batch' is not a map but a string"),
    ({"batch": [{"batch": [ROW]}]}, "element 0 of 'batch' is a batch itself"),
    ([ROW, {"batch": [ROW, {"batch": [ROW]}]}], "element 1: element 1 of 'batch' is a batch itself"),
    ([COLUMNAR] * 3 + [columns(usage=[1])], "element 3: column 'usage' has 1 values, 'time' has 2"),
    (
        {"batch": [COLUMNAR] * 3 + [columns(usage=5)]},
        "element 3 of 'batch': column 'usage' is not an array but an integer",
    ),
    ({"batch": [ROW, {"m": "x"}]}, f"element 1 of 'batch': {NO_SHAPE}"),
    ([ROW] * 17 + [row(fields=...)], "row 17: 'fields' is missing"),
    ({"batch": [ROW] * 17 + [row(fields=...), ROW]}, "row 17: 'fields' is missing"),
    (
        {"batch": [COLUMNAR] * 17 + [row(tags={"time": 1})]},
        "row 17: a tag cannot be called 'time', the name of the timestamp column",
    ),
    ({"batch": [ROW] * 3 + [row(tags={"host": "b"})]}, "row 3: 'h' and the tag 'host' are different"),
    (
        [COLUMNAR, {"batch": [ROW, row(t=[])]}],
        "element 1: row 1: 't' is neither a number, a timestamp nor a text but an array",
    ),
    ([ROW, row(fields=Pairs([("a", 1), ("a", 1)]))], "row 1: field 'a' is there twice"),
    (
        {"batch": [ROW, row(fields={"a": Bytes(DEEP)})]},
        "the value at byte 68 is nested more than 1024 deep, in element 1 of 'batch'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BAD, ids=[f"{n} {reason[:60]}" for n, (_, reason) in enumerate(BAD)])
def test_a_bad_body_is_refused_with_what_and_where(body: Any, reason: str) -> None:
    assert refusal(pack(body)) == reason


def test_the_offsets_in_the_table_above_are_where_the_bad_bytes_are() -> None:
    assert len(pack(COLUMNAR)) == 71
    assert len(pack(ROW)) == 60
    assert len(pack(columns(time=Bytes(b"\xdd\xff\xff\xff\xff\x01")))) == 63
    assert pack(columns(usage=Bytes(b"\x92\x01\xc1"))).index(b"\xc1") == 43
    assert pack(columns(usage=[Bytes(DEEP), 1])).index(DEEP) - 1 == 41  # the column is the value
    assert pack(row(fields={"a": Bytes(DEEP)})).index(DEEP) == 28
    assert pack({"batch": [ROW, ROW]}).rindex(pack(ROW)) == 68
    assert pack(columnar(columns={5: [1]})).index(b"\x05") == 16
    assert pack(row(fields={5: 1})).index(b"\x05") == 26


# Any bytes at all

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=6).filter(
    lambda name: name != "time"
)
measurements = st.sampled_from(["cpu", "mem", "löad", 0, 7, 1 << 40]) | names
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-40, 300),
    st.floats(),
    st.floats(width=32).map(lambda value: Bytes(b"\xca" + struct.pack(">f", value))),
    st.text(max_size=40),
    st.binary(max_size=4).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.binary(max_size=4),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    st.datetimes().map(lambda when: msgpack.Timestamp(when.second, when.microsecond)),
)


def arrays_and_maps_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)


# Three deep: `st.recursive` would draw again and again what has too many leaves.
nested = arrays_and_maps_of(scalars)
nested_twice = arrays_and_maps_of(scalars | nested)
values = scalars | nested | nested_twice | arrays_and_maps_of(scalars | nested | nested_twice)
shared_names = st.sampled_from(["a", "b", "host", "region"]) | names
times = st.one_of(
    st.none(),
    st.integers(-(2**63), -(10**17)) | st.integers(-6 * 10**10, 2**64 - 1),
    # Years 1 to 9999, in the unit that the size tells: negative ones in s, in ms, in µs.
    st.floats(-6e10, 5e19),
    st.floats(-6e13, -1e11),
    st.floats(-6e16, -1e14),
    st.integers(0, 2**37).map(lambda t: msgpack.Timestamp(t, 1)),
)


@st.composite
def columnar_maps(draw: st.DrawFn) -> dict[str, Any]:
    found = draw(st.lists(shared_names | st.just("time"), min_size=1, max_size=4, unique=True))
    records = draw(st.sampled_from([1, 1, 2, 3, 17]))
    same = draw(st.booleans())
    table = {}
    for name in found:
        kind = draw(st.sampled_from([st.floats(), st.integers(2**40, 2**50), st.text("ab", min_size=2, max_size=2)]))
        column = times if name == "time" else kind if same else values
        table[name] = draw(st.lists(column, min_size=records, max_size=records))
    result: dict[str, Any] = {"m": draw(measurements), "columns": table}
    if draw(st.booleans()):
        result[draw(st.sampled_from(["tags", "tag_keys"]))] = [name for name in found if name != "time"][:2]
    if draw(st.booleans()):
        result["types"] = dict.fromkeys(found[:2], "str")
    return result


@st.composite
def row_maps(draw: st.DrawFn) -> dict[str, Any]:
    fields = draw(st.dictionaries(shared_names | st.just("time"), values, min_size=1, max_size=4))
    result: dict[str, Any] = {"m": draw(measurements), "fields": fields}
    if draw(st.integers(0, 3)) == 3:
        result["f"] = list(result.pop("fields").values())
    if draw(st.booleans()):
        result["t"] = draw(times)
    if draw(st.booleans()):
        result["tags"] = draw(st.dictionaries(shared_names, scalars, max_size=3) | st.none())
    if draw(st.booleans()) and "host" not in (result.get("tags") or {}):
        result["h"] = draw(st.text(max_size=3) | st.none() | st.integers(-5, 500))
    return dict(draw(st.permutations(list(result.items()))))


elements = columnar_maps() | row_maps()
bodies = st.one_of(
    elements,
    st.lists(row_maps(), min_size=1, max_size=8),
    st.lists(
        elements | st.builds(lambda each: {"batch": each}, st.lists(elements, min_size=1)), min_size=1, max_size=6
    ),
    st.builds(lambda each: {"batch": each}, st.lists(elements, min_size=1, max_size=8)),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(bodies, st.booleans())
def test_every_row_of_a_good_body_comes_out_as_it_went_in(body: Any, wide: bool) -> None:
    assert check_against_the_reference(pack(body, wide))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(bodies)
def test_a_memoryview_is_taken_like_bytes(body: Any) -> None:
    packed = pack(body)
    assert encode(memoryview(packed)) == encode(packed)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(row_maps(), min_size=1, max_size=8))
def test_the_quick_and_the_exact_way_give_the_same_rows(rows: list[dict[str, Any]]) -> None:
    assert encoded_rows(encode(pack(rows))) == encoded_rows(encode(pack(rows, wide=True)))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x81\xa5batch\x91\x80")
@example(b"\x80" * 50)
def test_any_bytes_are_taken_as_the_reference_takes_them(body: bytes) -> None:
    check_against_the_reference(body)


def damage(packed: bytearray, data: st.DataObject) -> None:
    """Change a byte or a bit, take one out, put one in, or cut the rest off."""
    at = data.draw(st.integers(0, len(packed) - 1))
    how = data.draw(st.sampled_from(["flip", "set", "delete", "insert", "cut"]))
    if how == "flip":
        packed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "set":
        packed[at] = data.draw(st.integers(0, 255))
    elif how == "delete" and len(packed) > 1:
        del packed[at]
    elif how == "insert":
        packed.insert(at, data.draw(st.integers(0, 255)))
    elif at:
        del packed[at:]


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(bodies, st.booleans(), st.data())
def test_a_damaged_body_is_taken_as_the_reference_takes_it(body: Any, wide: bool, data: st.DataObject) -> None:
    packed = bytearray(pack(body, wide))
    for _ in range(data.draw(st.integers(1, 3))):
        damage(packed, data)
    check_against_the_reference(bytes(packed))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(bodies, st.data())
def test_a_key_that_is_given_twice_anywhere_is_refused(body: Any, data: st.DataObject) -> None:
    """Doubles one pair of one map of the format (not of a value), in the shortest encoding and in the longest."""
    maps: list[Pairs] = []

    def pairs(value: dict[str, Any]) -> Pairs:
        found = Pairs(value.items())
        for n, (key, each) in enumerate(found):
            if key == "batch":
                found[n] = (key, [pairs(element) for element in each])
            elif key in ("columns", "fields", "tags", "types") and isinstance(each, dict):
                found[n] = (key, Pairs(each.items()))
                maps.append(found[n][1])
        maps.append(found)
        return found

    copy = [pairs(each) for each in body] if isinstance(body, list) else pairs(body)
    chosen = data.draw(st.sampled_from([each for each in maps if each]))
    key, value = data.draw(st.sampled_from(chosen))
    chosen.insert(data.draw(st.integers(0, len(chosen))), (key, data.draw(st.just(value) | values)))
    for wide in (False, True):
        assert refusal(pack(copy, wide))


@pytest.mark.parametrize("body", [COLUMNAR, ROW, [ROW] * 3, {"batch": [ROW, COLUMNAR, ROW]}])
def test_every_truncation_is_refused_with_the_offset(body: Any) -> None:
    packed = pack(body)
    for size in range(1, len(packed)):
        assert refusal(packed[:size]).split(", in ")[0].endswith(f"truncated MessagePack at byte {size}")


@pytest.mark.parametrize("body", [COLUMNAR, ROW, [ROW, COLUMNAR]])
def test_every_flipped_bit_is_taken_as_the_reference_takes_it(body: Any) -> None:
    packed = pack(body)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        check_against_the_reference(bytes(flipped))


# Size: a second or so each, and hours if anything were quadratic.


@pytest.mark.slow
def test_as_many_columns_as_are_allowed_are_taken_and_more_are_refused() -> None:
    most = {"m": "x", "columns": {f"c{n}": [n] for n in range(MAX_COLUMNS)}}
    assert encode(pack(most)).records == 1
    million = msgpack.packb({"m": "x", "columns": {f"c{n}": [n] for n in range(1_000_000)}})
    assert refusal(million) == "more than 65536 columns"
    for wide in (False, True):
        fields = Bytes(pack({f"c{n}": n for n in range(MAX_COLUMNS - 1)}, wide))
        assert encode(pack({"m": "x", "fields": fields}, wide)).records == 1
        both = {"m": "x", "fields": fields, "tags": {"a": "b"}}
        assert refusal(pack(both, wide)) == "more than 65536 columns"
        assert refusal(pack([both], wide)) == "row 0: more than 65536 columns"
        assert refusal(pack({"m": "x", "h": "y", "fields": fields}, wide)) == "more than 65536 columns"


@pytest.mark.slow
def test_as_many_columns_of_mixed_values_are_walked_once() -> None:
    body = pack({"m": "x", "columns": {f"c{n}": ["x" * 40, n] for n in range(MAX_COLUMNS)}})
    assert encode(body).body is body


@pytest.mark.slow
def test_a_million_rows_of_one_shape() -> None:
    one = pack({"m": "x", "t": 1, "fields": {"a": 1}})
    body = b"\xdd" + (1_000_000).to_bytes(4, "big") + one * 1_000_000
    encoded = encode(body)
    assert encoded.records == 1_000_000
    assert len(encoded.body) < 3_000_000


@pytest.mark.slow
def test_a_body_may_have_only_so_many_shapes_for_its_size() -> None:
    rows = [{"m": "x", "fields": {f"f{n}": n}} for n in range(50_000)]
    few = msgpack.packb(rows[:FREE_SHAPES])
    encoded = encode(few)
    assert encoded.records == FREE_SHAPES
    assert len(msgpack.unpackb(encoded.body)) == FREE_SHAPES
    assert encode(pack(rows[:FREE_SHAPES], wide=True)).records == FREE_SHAPES
    many = msgpack.packb(rows)
    with pytest.raises(PayloadTooLarge, match=f"more than {FREE_SHAPES + len(many) // BYTES_PER_SHAPE} shapes"):
        encode(many)


def test_four_thousand_small_batches() -> None:
    batch = pack({"batch": [{"m": "x", "fields": {"a": 1}}, Pairs([("m", "x"), ("columns", {"a": [1, 300]})])]})
    body = b"\xdd" + (4_000).to_bytes(4, "big") + batch * 4_000
    assert encode(body).records == 12_000


def test_whoever_encodes_is_asked_again_and_again_whether_to_go_on() -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    for body in (
        [{"m": "x", "fields": {"a": 1}}] * 3,
        {"m": "x", "columns": {str(number): [1] for number in range(1000)}},
        [{"m": "x", "columns": {"a": [1]}}] * 100,
    ):
        with pytest.raises(Enough):
            encode(msgpack.packb(body), stop)


@pytest.mark.slow
def test_three_hundred_thousand_columnar_maps() -> None:
    body = b"\xdd" + (300_000).to_bytes(4, "big") + pack({"m": "x", "columns": {"a": [1]}}) * 300_000
    assert encode(body).body is body


@pytest.mark.slow
def test_a_body_of_a_hundred_megabytes() -> None:
    long = "x" * 1000
    for table in (
        {"a": [long] * 100_000},
        {"a": [long, 1] * 50_000},
        {"a": list(range(9_000_000))},
        {"a": ["y" * 10**8]},
    ):
        body = msgpack.packb({"m": "x", "columns": table})
        assert encode(body).records == len(table["a"])
        assert refusal(body[:-1]).startswith(f"truncated MessagePack at byte {len(body) - 1}")


def peak_bytes(bodies: Iterable[bytes]) -> int:
    """The most memory that refusing or encoding any of the bodies takes, results included."""
    tracemalloc.start()
    try:
        for body in bodies:
            try:
                encode(body)
            except BadPayload:
                pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_declared_length_allocates_nothing() -> None:
    huge = b"\xff\xff\xff\xff"
    bodies = []
    for header in (b"\xdd" + huge, b"\xdf" + huge, b"\xdb" + huge, b"\xc6" + huge, b"\xc9" + huge):
        value = Bytes(header + b"\x01" * 20)
        bodies += [value, columns(usage=value), columns(usage=[value, 1]), columnar(m=value), columnar(tags=value)]
        bodies += [columnar(columns=value), columnar(types=value), row(m=value), row(t=value), row(h=value)]
        bodies += [row(fields=value), row(fields={"a": value}), row(tags=value), row(tags={"a": value})]
        bodies += [[value], {"batch": value}, {"batch": [value]}, [ROW, row(fields={"a": value})]]
    packed = [pack(body) for body in bodies]
    assert all(refusal(body) for body in packed)
    assert peak_bytes(packed) < 4_000_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    shapes = [{"m": "x", "fields": {f"{n}{chr(97 + k)}": 1 for k in range(26)}} for n in range(7)]

    def rows(count: int, wide: bool = False) -> bytes:
        packed = [Bytes(pack(shape, wide)) for shape in shapes]
        return pack([packed[n % 7] for n in range(count)], wide)

    assert peak_bytes([rows(12_000)]) < 40_000_000
    assert peak_bytes([rows(3000, wide=True)]) < 40_000_000


# Bodies of one record: proven by one msgspec call, or left to the walk


def one_record(*pairs: bytes, count: int | None = None, measurement: bytes = b"\xa3cpu") -> bytes:
    count = len(pairs) if count is None else count
    return b"\x82\xa1m" + measurement + b"\xa7columns" + bytes([0x80 | count]) + b"".join(pairs)


@pytest.mark.parametrize(
    "body",
    [
        one_record(b"\xa1a\x91\x01", b"\xa1b\x91\xa2xy", b"\xa1c\x91\x81\xa1k\x92\x01\x02", b"\xa1d\x91\xc7\x01\x05x"),
        one_record(b"\xa1a\x91\x01", b"\xa1a\x91\x01"),
        one_record(b"\xa1a\x91\x01", b"\xa1b\x91"),
        one_record(b"\xa1a\x91\xc1"),
        one_record(b"\xa1a\x91\x01", b"\xa1b\x92\x01\x02"),
        one_record(b"\xa1a\x91\x01", b"\xa1b\x90"),
        one_record(b"\xa1a\x91\x01") + b"\x00",
        one_record(b"\xa1a\x91\x01", count=2),
        one_record(b"\xa0\x91\x01"),
        one_record(b"\xa1\x7f\x91\x01"),
        one_record(b"\xa1\xff\x91\x01"),
        one_record(b"\xa2\xc3\xa9\x91\x01"),
        one_record(b"\xa1a\x91\x01", measurement=b"\xa0"),
        one_record(b"\xa1a\x91\x01", measurement=b"\xa1\n"),
        one_record(b"\xd9\xff" + b"n" * 255 + b"\x91\x01"),
        one_record(b"\xda\x01\x01" + b"n" * 257 + b"\x91\x01"),
        one_record(b"\xa1a\x91" + b"\x91" * 900 + b"\x01"),
        one_record(b"\xa1a\x91" + b"\x91" * 1100 + b"\x01"),
        one_record(),
    ],
)
def test_a_body_of_one_record_is_taken_as_the_walk_takes_it(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> object:
        try:
            return encode(body)
        except BadPayload as error:
            return str(error)

    quick = outcome()
    monkeypatch.setattr(msgpack_body, "_is_one_record", lambda *_: False)
    assert outcome() == quick


# Values and names that are long: copied, or passed in one call, they would keep everybody else waiting.


def long_value(size: int, marker: bytes = b"\xdb") -> bytes:
    return marker + size.to_bytes(4, "big") + bytes(size + (marker == b"\xc9"))


@pytest.mark.parametrize("marker", [b"\xdb", b"\xc6", b"\xc9"], ids=["string", "binary", "extension"])
def test_a_value_of_a_column_may_have_any_length(marker: bytes) -> None:
    size = MAX_VALUE_BYTES + 1
    value = long_value(size, marker)
    for count, values in ((1, value), (3, b"\x01" + value + b"\xa1x"), (2, value * 2), (2, b"\x91\xc0" + value)):
        body = b"\x82\xa1m\xa1x\xa7columns\x81\xa1a" + array_header(count) + values
        assert encode(body) == Encoded(False, body, count)
        assert refusal(body[:-1]).startswith(f"truncated MessagePack at byte {len(body) - 1}")
        assert refusal(body + b"\x01") == f"trailing bytes after the MessagePack value at byte {len(body)}"


def test_a_long_value_within_another_or_among_many_is_refused() -> None:
    size = MAX_VALUE_BYTES + 1
    front = b"\x82\xa1m\xa1x\xa7columns\x81\xa1a"
    reason = f"the value at byte %d has {size} bytes, more than {MAX_VALUE_BYTES}, in column 'a'"
    assert refusal(front + b"\x91\x92\x01" + long_value(size)) == reason % (len(front) + 3)
    most = array_header(65_536) + b"\x01" * 65_535 + long_value(size)
    assert encode(front + most).records == 65_536
    more = array_header(65_537) + b"\x01" * 65_536 + long_value(size)
    assert refusal(front + more) == reason % (len(front) + 5 + 65_536)
    fits = b"\x91\x92\x01" + long_value(MAX_VALUE_BYTES)
    assert encode(front + fits).records == 1


@pytest.mark.slow
def test_a_value_of_a_row_has_a_limit() -> None:
    def row(value: bytes, what: bytes = b"fields") -> bytes:
        other = b"" if what == b"fields" else b"\xa6fields\x81\xa1b\x01"
        return (
            bytes([0x82 + bool(other)])
            + b"\xa1m\xa1x"
            + other
            + bytes([0xA0 + len(what)])
            + what
            + b"\x81\xa1a"
            + value
        )

    fits = long_value(MAX_VALUE_BYTES - 5)
    assert msgpack.unpackb(encode(row(fits)).body)["columns"] == {"a": [msgpack.unpackb(fits)]}
    assert encode(b"\x93" + row(b"\x01") + row(fits) + row(b"\x02")).records == 3
    many = b"\xdd" + MAX_VALUE_BYTES.to_bytes(4, "big") + b"\x01" * MAX_VALUE_BYTES
    for what in (b"fields", b"tags"):
        where = f", in {what[:-1].decode()} 'a'"
        at = row(b"", what)
        for value in (long_value(MAX_VALUE_BYTES + 1), many):
            size = len(value) if value is many else MAX_VALUE_BYTES + 1
            reason = f"the value at byte {len(at)} has {size} bytes, more than {MAX_VALUE_BYTES}{where}"
            assert refusal(row(value, what)) == reason
            assert refusal(b"\x91" + row(value, what)).endswith(
                reason.replace(f"byte {len(at)}", f"byte {len(at) + 1}") if value is many else ", in element 0"
            )
    host = b"\x83\xa1m\xa1x\xa6fields\x81\xa1b\x01\xa1h"
    assert f"has {MAX_VALUE_BYTES + 1} bytes" in refusal(host + long_value(MAX_VALUE_BYTES + 1))


def test_long_names_and_keys_are_refused_and_shown_in_part() -> None:
    size = 1 << 20
    name, shown = b"\xdb" + size.to_bytes(4, "big") + b"n" * size, f"'{'n' * 64}…'"
    columns = b"\x82\xa1m\xa1x\xa7columns\x81\xa1a\x91\x01"
    for body, reason in (
        (b"\x82\xa1m" + name, f"measurement {shown} has {size} bytes, more than 256"),
        (b"\x82" + name + b"\x01\xa7columns\x01", f"unknown key {shown} in a columnar map at byte 1"),
        (b"\x82\xa1m\xa1x\xa7columns\x81" + name + b"\x91\x01", f"column name {shown} has {size} bytes, more than 256"),
        (columns.replace(b"\x82", b"\x83", 1) + b"\xa4tags\x91" + name, f"tag {shown} is not a column"),
        (columns.replace(b"\x82", b"\x83", 1) + b"\xa5types\x81" + name + b"\xa3i64", f"'types' names {shown}"),
        (columns.replace(b"\x82", b"\x83", 1) + b"\xa5types\x81\xa1a" + name, f"has the unknown type {shown}"),
        (b"\x91\x82\xa1m\xa1x\xa6fields\x81" + name + b"\x01", f"field name {shown} has {size} bytes, more than 256"),
        (b"\x91\x82\xa6fields\x81\xa1a\x01\xa1m" + name, f"measurement {shown} has {size} bytes, more than 256"),
        (b"\x91\x83\xa1m\xa1x" + name + b"\x01\xa1t\x05", f"unknown key {shown} in a row"),
        (b"\x91\x82\xa1m\xa1x" + name + b"\x01", f"its key at byte 6 is {shown}"),
    ):
        assert reason in refusal(body), reason
        assert refusal(body[:-1000]).startswith(
            ("truncated", "element 0: ", "row 0: ", "unknown key", "'types'", "tag")
        )


def test_maps_and_rows_in_any_order_are_all_there() -> None:
    maps = [{"m": f"m{number}", "columns": {"a": [number] * (1 + number % 3)}} for number in range(3000)]
    rows = [{"m": "r", "t": number, "fields": {"b": number}} for number in range(3000)]
    source = random.Random(7)
    for shares in (0.5, 0.01, 0.99):
        elements: list[Any] = []
        left = [iter(maps), iter(rows)]
        while len(elements) < 3000:
            elements.append(next(left[source.random() < shares]))
        encoded = encode(msgpack.packb(elements))
        found = msgpack.unpackb(encoded.body)
        values = [(each["m"], value) for each in found for value in each["columns"].get("a") or each["columns"]["b"]]
        expected = [
            (each["m"], value)
            for each in elements
            for value in (each["columns"]["a"] if "columns" in each else [each["fields"]["b"]])
        ]
        assert sorted(values) == sorted(expected)
        assert encoded.records == len(expected)


def test_whoever_encodes_is_asked_while_a_long_column_is_walked() -> None:
    for values in (b"\x01\xcc\xff", b"\x91\xc0\x01", b"\xa1x\xc0"):
        checks = [0]

        def check(count: list[int] = checks) -> None:
            count[0] += 1

        count = (8 << 20) // len(values) * 2
        encode(b"\x82\xa1m\xa1x\xa7columns\x81\xa1a\xdd" + count.to_bytes(4, "big") + values * (count // 2), check)
        assert checks[0] > 50
