"""Encoded values become one Arrow array and a rest, and nothing is lost between the two."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.codec.arrow.arrays import build
from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.natural import natural_type
from arcpipe.codec.arrow.times import MAX_TIME_US, MIN_TIME_US, decode_time
from arcpipe.codec.arrow_ipc.times import pack_plain
from arcpipe.codec.rescued import InvalidText, parse_rescued, rescued_json, unpack_value
from arcpipe.errors import BadPayload
from tests.support.values import (
    any_value,
    as_sent,
    binary,
    booleans,
    decode_values,
    extensions,
    floats,
    integers,
    invalid_text,
    nil,
    same,
    short_text,
    texts,
)

columns = st.one_of(
    *(
        st.lists(values, max_size=30)
        for values in (
            floats,
            integers,
            short_text,
            texts,
            booleans,
            st.one_of(integers, floats, nil),
            st.one_of(short_text, nil),
            st.one_of(texts, invalid_text),
            st.one_of(binary, nil),
            any_value,
        )
    )
)
types = st.sampled_from([None, "i64", "u64", "f64", "bool", "str", "bytes", "time", "decimal"])


def check_nothing_is_lost(elements: list[bytes], array: pa.Array, odd: list[int]) -> None:
    array.validate(full=True)
    assert len(array) == len(elements)
    for row, (element, decoded) in enumerate(zip(elements, array.to_pylist(), strict=True)):
        value = unpack_value(element)
        if row in odd:
            assert decoded is None
            assert value is not None
        elif type(value) is int and type(decoded) is float:
            assert int(decoded) == value
        else:
            assert same(as_sent(decoded), as_sent(value))


@pytest.mark.slow
@given(columns, types)
@settings(max_examples=200, deadline=None)
def test_every_value_is_in_the_array_or_odd(elements: list[bytes], hint: str | None) -> None:
    column = decode_values(b"".join(elements), len(elements), hint)
    check_nothing_is_lost(elements, column.array, column.odd.tolist())


@pytest.mark.slow
@given(st.lists(columns.filter(len), min_size=1, max_size=4), st.integers(1, 60), types)
@settings(max_examples=200, deadline=None)
def test_many_chunks_are_found_as_one_by_one(chunks: list[list[bytes]], times: int, hint: str | None) -> None:
    chunks = chunks * times
    elements = [element for chunk in chunks for element in chunk]
    sizes = np.array([sum(map(len, chunk)) for chunk in chunks])
    counts = np.array([len(chunk) for chunk in chunks])
    values = find_values(b"".join(elements), len(elements), sizes, counts)
    assert [values.element(row) for row in range(len(elements))] == elements
    column = build(values, hint or natural_type(values))
    check_nothing_is_lost(elements, column.array, column.odd.tolist())


@given(any_value)
@settings(max_examples=200, deadline=None)
def test_odd_values_survive_json(element: bytes) -> None:
    value = unpack_value(element)
    (parsed,) = parse_rescued(rescued_json({"column": value})).values()
    assert same(parsed, value)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([], None),
        ([None, None], None),
        ([1, None, -1], "i64"),
        ([1, 2**63 - 1], "i64"),
        ([1, 2**63], "u64"),
        ([-1, 2**63], "i64"),
        ([1, 2.5], "f64"),
        ([2**64 - 1, 2.5], "f64"),
        ([True, None], "bool"),
        ([b"x"], "bytes"),
        (["a", "b", 1], "str"),
        (["a", 1], "i64"),
        (["a", True], "str"),
        ([[1], {"a": 1}], None),
        ([math.nan, None, math.nan], None),
        ([math.nan, math.nan, "x"], "str"),
        ([math.nan, 1], "f64"),
        ([math.inf], "f64"),
        ([msgpack.Timestamp(1), None], "time"),
        ([msgpack.ExtType(5, b"abcd"), None], None),
    ],
)
def test_the_natural_type_is_that_of_most_values(values: list[Any], word: str | None) -> None:
    data = b"".join(map(msgpack.packb, values))
    assert natural_type(find_values(data, len(values))) == word


def test_integers_beyond_the_exact_range_of_floats_are_odd() -> None:
    numbers = [0.5, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**64 - 1, 2**63 + 2**11]
    column = decode_values(b"".join(map(msgpack.packb, numbers)), len(numbers))
    assert column.array.to_pylist() == [0.5, 2.0**53, None, None, None, None, None]
    assert column.odd.tolist() == [2, 3, 4, 5, 6]


def test_a_string_of_invalid_utf8_is_odd_and_its_neighbours_are_not() -> None:
    elements = [msgpack.packb("grün"), b"\xa2\xc3\x28", b"\xc0", msgpack.packb("ok")]
    column = decode_values(b"".join(elements), 4)
    assert column.array.to_pylist() == ["grün", None, None, "ok"]
    assert column.odd.tolist() == [1]
    assert unpack_value(elements[1]) == InvalidText(b"\xc3\x28")


def test_invalid_text_is_found_among_many_values() -> None:
    elements = [msgpack.packb(f"zähler {n}") for n in range(5_000)]
    for row in (0, 17, 4_998, 4_999):
        elements[row] = b"\xa2\xc3\x28"
    elements[100] = b"\xc0"
    column = decode_values(b"".join(elements), len(elements))
    assert column.odd.tolist() == [0, 17, 4_998, 4_999]
    assert column.array.null_count == 5
    assert column.array[4_997].as_py() == "zähler 4997"


def test_values_nested_deeper_than_any_recursion_are_odd() -> None:
    deep = b"\x91" * 100_000 + b"\xc0"
    elements = [b"\x01", deep, b"\x02"]
    values = find_values(b"".join(elements), 3)
    column = build(values, natural_type(values))
    assert column.array.to_pylist() == [1, None, 2]
    assert values.element(1) == deep
    assert same(*(parse_rescued(rescued_json({"x": unpack_value(deep)}))["x"], unpack_value(deep)))


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x02\x03", b"\xcb\x00", b"\xa5ab", b"\x92\x01"])
def test_bytes_that_are_not_so_many_values_are_refused(data: bytes) -> None:
    with pytest.raises(BadPayload):
        find_values(data, 2)


# Time


def times(*values: Any, precision: str | None = None) -> Any:
    data = b"".join(value if type(value) is bytes else msgpack.packb(value) for value in values)
    return decode_time(find_values(data, len(values)), precision)


def test_the_unit_of_an_integer_is_read_from_its_size() -> None:
    found = times(1_700_000_000, 1_700_000_000_123, 1_700_000_000_123_456, 1_700_000_000_123_456_789)
    assert found.us.tolist() == [
        1_700_000_000_000_000,
        1_700_000_000_123_000,
        1_700_000_000_123_456,
        1_700_000_000_123_456,
    ]
    assert found.sub_us.tolist() == [0, 0, 0, 789]
    assert not len(found.missing)
    assert not len(found.odd)


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_integer_times_agree_with_a_plain_reading(numbers: list[int]) -> None:
    found = times(*numbers)
    for row, number in enumerate(numbers):
        size = abs(number)
        unit = 10**9 if size < 10**11 else 10**6 if size < 10**14 else 10**3 if size < 10**17 else 1
        us, sub_us = divmod(number * unit, 1000)
        if MIN_TIME_US <= us <= MAX_TIME_US:
            assert found.us[row] == us
            assert (0 if found.sub_us is None else found.sub_us[row]) == sub_us
            assert row not in found.odd
        else:
            assert row in found.odd


@pytest.mark.parametrize(
    ("precision", "value", "us"),
    [
        ("ns", 1_999, 1),
        ("ns", -1, -1),
        ("us", 5, 5),
        ("ms", 5, 5_000),
        ("s", 5, 5_000_000),
        ("m", 5, 300_000_000),
        ("h", 5, 18_000_000_000),
        ("ms", 1.5, 1_500),
        (None, 1_700_000_000.123456, 1_700_000_000_123_456),
        (None, -0.5, -500_000),
    ],
)
def test_a_precision_says_the_unit(precision: str | None, value: float, us: int) -> None:
    assert times(value, precision=precision).us.tolist() == [us]


@pytest.mark.parametrize(
    "value",
    [
        True,
        "2024-01-01",
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        [1],
        b"\x01",
        -62_135_596_801,
        msgpack.ExtType(5, b"1234"),
    ],
)
def test_what_is_no_time_is_odd(value: Any) -> None:
    found = times(msgpack.packb(value), 1_700_000_000, None)
    assert found.odd.tolist() == [0]
    assert found.missing.tolist() == [2]
    assert found.us[1] == 1_700_000_000_000_000


SIGNALLING = [b"\xca\x7f\x80\x00\x01", b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x01"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("nan", SIGNALLING, ids=["float32", "float64"])
def test_a_nan_that_signals_is_taken_without_a_warning(nan: bytes) -> None:
    for precision in (None, "ns", "s"):
        assert times(nan, 1_700_000_000, precision=precision).odd.tolist() == [0]
    for hint in (None, "i64", "u64", "f64", "bool", "str", "bytes", "time", "decimal"):
        for neighbour in (b"\xca\x3f\x00\x00\x00", b"\x01", b"\xa1x", b"\xc0"):
            column = decode_values(nan + neighbour, 2, hint)
            check_nothing_is_lost([nan, neighbour], column.array, column.odd.tolist())
    array = pa.array(np.frombuffer(b"\x01\x00\x80\x7f", np.float32))
    assert math.isnan(msgpack.unpackb(pack_plain(array))[0])


@pytest.mark.parametrize("precision", ["us", "ms", "s", "m", "h"])
def test_times_beyond_the_year_9999_are_odd_in_every_unit(precision: str) -> None:
    assert times(2**63 - 1, -(2**63), 2**64 - 1, precision=precision).odd.tolist() == [0, 1, 2]


@pytest.mark.slow
@given(st.lists(st.one_of(extensions, nil), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_timestamp_extensions_keep_their_nanoseconds(elements: list[bytes]) -> None:
    found = times(*elements)
    for row, element in enumerate(elements):
        value = unpack_value(element)
        standard = hasattr(value, "ns") and element[:2] not in (b"\xc7\x04", b"\xc7\x08")
        us, sub_us = divmod(value.ns, 1000) if standard else (MAX_TIME_US + 1, 0)
        if value is None:
            assert row in found.missing
        elif MIN_TIME_US <= us <= MAX_TIME_US:
            assert found.us[row] == us
            assert (0 if found.sub_us is None else found.sub_us[row]) == sub_us
        else:
            assert row in found.odd
