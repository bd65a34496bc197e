"""Values that Python's types do not hold, and all others as `to_pylist` gives them."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from arcpipe.codec.arrow_ipc.columns import maps_of
from arcpipe.codec.arrow_ipc.odd_values import values_of
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.records.plan import Plan
from arcpipe.codec.rescued import Timestamp, unpack_value

DAY = datetime.datetime(2026, 1, 1)
LISTS = pa.array([[1, None], None, [], [2, 3, 4], [5]], pa.list_(pa.int64()))
MAPS = pa.array([[("a", 1)], None, [], [("b", None), ("c", 2)]], pa.map_(pa.string(), pa.int64()))


@pytest.mark.parametrize(
    "array",
    [
        LISTS,
        LISTS[1:4],
        LISTS.cast(pa.large_list(pa.int64()))[3:],
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2))[1:],
        MAPS,
        MAPS[1:],
        MAPS[:0],
        pa.array([{"a": [DAY], "b": None}, None, {"a": None, "b": {"c": b"\xff"}}])[1:],
        pa.array([None, {}], pa.struct([])),
        pa.array([[[("k", [[0.5], None])]], [None]], pa.list_(pa.map_(pa.string(), pa.list_(pa.list_(pa.float64()))))),
        pa.array([DAY, None], pa.timestamp("us", "UTC")),
    ],
)
def test_what_python_holds_is_what_arrow_gives(array: pa.Array) -> None:
    assert values_of(array) == array.to_pylist()


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array([[2**60]], pa.list_(pa.timestamp("s"))), ["36534630048-05-13 13:56:16"]),
        (pa.array([[0]], pa.list_(pa.timestamp("s", "No/Where"))), ["1970-01-01 00:00:00+00:00"]),
        (pa.array([[-(2**31)]], pa.list_(pa.date32())), ["-5877641-06-23"]),
        (pa.array([[2**62]], pa.list_(pa.duration("s"))), [f"{2**62} seconds"]),
    ],
)
def test_an_odd_value_is_text_beside_the_others(array: pa.Array, value: Any) -> None:
    batch = pa.record_batch({"v": pa.concat_arrays([array, pa.nulls(1, array.type)])})
    plan = Plan("m", None, ["v"], ["v"], [], {})
    (map_,) = maps_of(batch, plan, TimeRule())
    assert msgspec.msgpack.decode(map_.columns["v"]) == [value, None]


@pytest.mark.parametrize(
    ("type_", "number", "unit_ns"),
    [
        (pa.timestamp("s"), 2**63 - 1, 10**9),
        (pa.timestamp("ms", "UTC"), -(2**63), 10**6),
        (pa.timestamp("us"), 2**63 - 1, 10**3),
        (pa.timestamp("ns"), -1, 1),
        (pa.date32(), 2**31 - 1, 86_400 * 10**9),
        (pa.date64(), -86_400_000 * 10**10, 10**6),
    ],
)
@pytest.mark.parametrize("coded", [False, True])
def test_a_moment_of_any_year_keeps_its_value(type_: pa.DataType, number: int, unit_ns: int, coded: bool) -> None:
    array = pa.array([number, None, 0], type_)
    batch = pa.record_batch({"v": array.dictionary_encode() if coded else array})
    (map_,) = maps_of(batch, Plan("m", None, ["v"], ["v"], [], {}), TimeRule())
    assert unpack_value(bytes(map_.columns["v"])) == [Timestamp(number * unit_ns), None, Timestamp(0)]
