"""Columnar maps: their names, and how their headers are packed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.codec.columns import (
    ColumnBatch,
    Encoded,
    Maps,
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    map_header,
    pack_float64,
    pack_int64,
    pack_str,
    pack_uint64,
    pack_values,
    quote,
    str_header,
)
from arcpipe.errors import BadPayload

SIZES = [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536, 100_000]


@pytest.mark.parametrize("size", SIZES)
def test_headers_are_the_ones_that_msgpack_writes(size: int) -> None:
    packer = msgpack.Packer()
    assert array_header(size) == packer.pack_array_header(size)
    assert map_header(size) == packer.pack_map_header(size)
    assert str_header(size) + b"x" * size == msgpack.packb("x" * size)


def test_headers_reach_to_four_billion() -> None:
    top = b"\xff\xff\xff\xff"
    assert array_header(2**32 - 1) == b"\xdd" + top
    assert map_header(2**32 - 1) == b"\xdf" + top
    assert str_header(2**32 - 1) == b"\xdb" + top


@given(st.text())
def test_strings_pack_as_msgpack_packs_them(text: str) -> None:
    assert pack_str(text) == msgpack.packb(text)


@pytest.mark.parametrize("name", ["m", "a" * 256, "ä" * 128, "with space", "a/b,c=d", "日本", "\u200b", "\ue000", "🙂"])
def test_names_of_printable_characters_up_to_256_bytes_are_allowed(name: str) -> None:
    check_measurement(name)
    check_column_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "measurement is empty"),
        ("a" * 257, f"measurement '{'a' * 64}…' has 257 bytes, more than 256"),
        ("ä" * 129, f"measurement '{'ä' * 64}…' has 258 bytes, more than 256"),
        ("a\x00b", "measurement 'a\\x00b' has a control character"),
        ("a\n", "measurement 'a\\n' has a control character"),
        ("\x1f", "measurement '\\x1f' has a control character"),
        ("\x7f", "measurement '\\x7f' has a control character"),
        ("\x80", "measurement '\\x80' has a control character"),
        ("ä\x9f", "measurement '\\xe4\\x9f' has a control character"),
        ("\ud800", "measurement '\\ud800' is not valid UTF-8"),
    ],
)
def test_other_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(BadPayload) as caught:
        check_measurement(name)
    assert str(caught.value) == reason
    for what in ("column", "tag", "field"):
        with pytest.raises(BadPayload) as caught:
            check_column_name(name, what)
        assert str(caught.value) == reason.replace("measurement", f"{what} name")


@given(st.one_of(st.text(st.characters()), st.binary()))
def test_a_quoted_name_is_short_printable_and_valid_utf8(name: str | bytes) -> None:
    text = quote(name)
    assert text.isprintable()
    assert len(text) <= 64 * 10 + 3
    text.encode()


@pytest.mark.parametrize(
    ("tags", "fields", "names"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["host"], ["usage"], ["usage"]),
        (["host"], ["host"], ["host_field"]),
        (["host", "a"], ["b", "host", "a"], ["b", "host_field", "a_field"]),
        (["host"], ["host_field", "host"], ["host_field", "host_field_2"]),
        (["host"], ["host", "host_field"], ["host_field_2", "host_field"]),
        (["host", "host_field"], ["host"], ["host_field_2"]),
        (["host", "host_field"], ["host", "host_field"], ["host_field_2", "host_field_field"]),
        (["a", "a_field"], ["a", "a_field_2"], ["a_field_3", "a_field_2"]),
    ],
)
def test_a_field_gives_way_to_a_tag_of_its_name(tags: list[str], fields: list[str], names: list[str]) -> None:
    assert field_column_names(tags, fields) == names


_clashing = st.text("a", min_size=1, max_size=2).flatmap(
    lambda name: st.sampled_from([name, f"{name}_field", f"{name}_field_2", f"{name}_field_3", f"{name}_field_field"])
)


@pytest.mark.slow
@given(st.lists(_clashing, unique=True), st.lists(_clashing, unique=True))
def test_no_two_columns_ever_get_one_name(tags: list[str], fields: list[str]) -> None:
    names = field_column_names(tags, fields)
    assert len(names) == len(fields)
    assert len({*tags, *names}) == len(tags) + len(fields)
    assert all(name == field for field, name in zip(fields, names, strict=True) if field not in tags)


@pytest.mark.slow
def test_naming_fields_is_linear_in_the_number_of_names() -> None:
    many = [f"a_field_{n}" for n in range(2, 200_000)]
    assert field_column_names(["a"], ["a", "a_field", *many])[0] == "a_field_200000"
    same = [f"n{n}" for n in range(200_000)]
    assert field_column_names(same, same) == [f"{name}_field" for name in same]


def test_number_columns_pack_to_the_values_they_hold() -> None:
    floats = np.array([0.0, -0.0, 1.5, 1e300, math.inf, -math.inf, 5e-324])
    assert msgpack.unpackb(pack_float64(floats)) == floats.tolist()
    assert math.isnan(msgpack.unpackb(pack_float64(np.array([math.nan])))[0])
    signed = np.array([0, -1, 1, -(2**63), 2**63 - 1])
    assert msgpack.unpackb(pack_int64(signed)) == signed.tolist()
    unsigned = np.array([0, 1, 2**64 - 1], dtype=np.uint64)
    assert msgpack.unpackb(pack_uint64(unsigned)) == unsigned.tolist()


@pytest.mark.parametrize("count", [1, 15, 16, 1000, 70_000])
def test_number_columns_have_one_width(count: int) -> None:
    header = len(array_header(count))
    values = np.arange(count)
    assert len(pack_float64(values.astype(np.float64))) == header + 9 * count
    assert len(pack_int64(values)) == header + 9 * count
    assert len(pack_uint64(values.astype(np.uint64))) == header + 9 * count
    assert msgpack.unpackb(pack_int64(values[::-1])) == values[::-1].tolist()


def test_a_column_of_any_values_packs_as_msgpack_packs_it() -> None:
    values = ["a", "", "ä" * 40, None, True, False, 1, -1, 2**64 - 1, -(2**63), 1.5, b"x"]
    assert pack_values(values) == msgpack.packb(values)


def test_a_batch_encodes_as_a_columnar_map() -> None:
    batch = ColumnBatch(
        "cpu",
        {
            "time": pack_int64(np.array([1, 2])),
            "host": pack_values(["a", "b"]),
            "n": pack_uint64(np.array([1, 2], "u8")),
        },
        2,
        ["host"],
        {"n": "u64"},
    )
    assert msgpack.unpackb(batch.encode()) == {
        "m": "cpu",
        "columns": {"time": [1, 2], "host": ["a", "b"], "n": [1, 2]},
        "tags": ["host"],
        "types": {"n": "u64"},
    }


def test_a_batch_without_tags_or_types_has_neither_key() -> None:
    batch = ColumnBatch("cpu", {"n": pack_values([1])}, 1)
    assert msgpack.unpackb(batch.encode()) == {"m": "cpu", "columns": {"n": [1]}}


def encoded_of(maps: Sequence[tuple[bytes | memoryview, int]]) -> Encoded | None:
    collected = Maps()
    for columnar, records in maps:
        collected.add(columnar, records)
    return collected.encoded()


def test_one_map_stands_alone_and_several_make_an_array() -> None:
    maps: list[Any] = [{"m": "a"}, {"m": "b"}]
    packed = [msgpack.packb(each) for each in maps]
    assert encoded_of([(packed[0], 7)]) == Encoded(False, packed[0], 7)
    several = encoded_of([(packed[0], 7), (memoryview(packed[1]), 2)])
    assert several == Encoded(True, msgpack.packb(maps), 9)
    assert encoded_of([]) is None


@pytest.mark.parametrize("sizes", [[1] * 3000, [3 << 20], [3 << 20, 1, 1 << 20, 5, 5 << 20], [400_000] * 10])
@pytest.mark.parametrize("as_view", [False, True])
def test_maps_of_any_number_and_size_are_joined_in_order(sizes: list[int], as_view: bool) -> None:
    packed = [msgpack.packb({"m": bytes([number % 256]) * size}) for number, size in enumerate(sizes)]
    given = [memoryview(each) if as_view else each for each in packed]
    first = msgpack.packb({"m": 0})
    encoded = encoded_of([(first, 1), *((each, 2) for each in given)])
    assert encoded == Encoded(True, array_header(len(sizes) + 1) + first + b"".join(packed), 1 + 2 * len(sizes))


def test_maps_that_stand_one_behind_the_other_are_added_at_once() -> None:
    maps = Maps()
    maps.add(memoryview(b"\x80\x80\x80"), 5, 3)
    maps.add(b"\x80", 1)
    assert maps.encoded() == Encoded(True, b"\x94\x80\x80\x80\x80", 6)


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_maps_of_a_large_body_are_the_same_bytes(size: int) -> None:
    """Above 32 MB each map is freed once it is copied."""
    maps = [ColumnBatch("m", {"a": pack_values([chr(97 + number) * size])}, 1).encode() for number in range(12)]
    collected = Maps()
    for one in maps:
        collected.add(one, 1)
    encoded = collected.encoded()
    assert encoded is not None
    assert (encoded.batch, encoded.records) == (1, 12)
    assert bytes(encoded.body) == array_header(12) + b"".join(maps)
