"""Streams are proven convertible, measured before they are decompressed, and refused with a reason."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from arcpipe.codec.arrow_ipc.check import Checked, check_schema, check_stream
from arcpipe.codec.arrow_ipc.framing import RECORD_BATCH, messages
from arcpipe.codec.arrow_ipc.parquet import parquet_stream
from arcpipe.codec.arrow_ipc.times import read_times
from arcpipe.codec.entries import decode_entry, entry_records
from arcpipe.codec.messagepack.times import RULE
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload, PayloadTooLarge
from tests.unit.codec.arrow_ipc.streams import MAX_BYTES, entry, stream, tables

PLAIN = Roles("m")


def checked(body: bytes, roles: Roles = PLAIN, max_bytes: int = MAX_BYTES) -> Checked:
    return check_stream(body, max_bytes, roles=roles)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_stream_is_measured_as_it_becomes(compression: str | None) -> None:
    table = pa.table({"a": np.arange(10_000) % 7, "s": ["some text"] * 10_000})
    body = stream(table, compression, rows=3_000)
    batches = [message for message in messages(memoryview(body)) if message.kind == RECORD_BATCH]
    assert [batch.rows for batch in batches] == [3_000, 3_000, 3_000, 1_000]
    size = sum(batch.bytes for batch in batches)
    assert table.nbytes <= size <= table.nbytes * 1.1
    assert checked(body) == Checked(10_000, size, [])
    with pytest.raises(PayloadTooLarge, match="once it is decompressed"):
        checked(body, max_bytes=size - 1)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_long_step_is_told_before_it_is_taken(compression: str | None) -> None:
    """By it the loop of a worker leaves a stream to its thread, however few bytes it has."""
    told: list[float] = []
    taken: list[int] = []

    def check(seconds: float = 0.0, taken_bytes: int = 0, /) -> None:
        told.append(seconds)
        taken.append(taken_bytes)

    body = stream(pa.table({"a": np.zeros(1_000_000)}), compression)
    check_stream(body, MAX_BYTES, check, roles=PLAIN)
    assert max(told) == pytest.approx(0.008, rel=0.01)
    assert max(taken) == pytest.approx(8_000_000 - len(body) if compression else 0, rel=0.01)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(_TooLong):
        parquet_stream(sink.getvalue().to_pybytes(), MAX_BYTES, _refuse)


class _TooLong(Exception):
    """Raised for a step of more than half a second."""


def _refuse(seconds: float = 0.0, _taken_bytes: int = 0, /) -> None:
    if seconds > 0.5:
        raise _TooLong


def test_a_schema_that_is_known_is_checked_for_other_roles() -> None:
    body = stream(pa.table({"time": [1], "a": ["x"], "b": [1.5]}))
    for _ in range(2):
        assert checked(body) == Checked(1, checked(body).bytes, [])
        assert checked(body, Roles("m", tags=frozenset(("a",)))).tags == ["a"]
        assert checked(body, Roles("other", tags=frozenset(("a", "b")))).tags == ["a", "b"]
        with pytest.raises(BadPayload, match="no ISO 8601 time"):
            checked(body, Roles("m", "a"))
    bad = stream(pa.table({"a": [1], "b": [2]}).rename_columns(["a", "a"]))
    for _ in range(2):
        with pytest.raises(BadPayload, match="'a' is there twice"):
            checked(bad)


@given(tables())
@settings(max_examples=150, deadline=None)
def test_what_is_taken_can_be_read_one_by_one(table: pa.Table) -> None:
    body = stream(table)
    if all(pa.types.is_null(field.type) or field.name == "time" for field in table.schema):
        return  # it has no field
    payload = entry(body)
    assert entry_records(payload) == len(table)
    maps = [columns for _, columns in decode_entry(payload).maps]
    rows = [len(msgspec.msgpack.decode(column)) for columns in maps for column in columns.columns.values()]
    assert set(rows) == {len(table)}


def test_values_become_those_of_messagepack() -> None:
    table = pa.table({"n": [1, None], "u": pa.array([2**64 - 1, 0], pa.uint64()), "s": ["x", "y"], "l": [[1], None]})
    ((_, columns),) = decode_entry(entry(stream(table))).maps
    decoded = {name: msgspec.msgpack.decode(column) for name, column in columns.columns.items()}
    assert decoded == {"n": [1, None], "u": [2**64 - 1, 0], "s": ["x", "y"], "l": [[1], None]}
    assert columns.types == {"n": "i64", "u": "u64", "s": "str"}


# Hostile streams


def test_columns_without_bytes_do_not_bring_any_number_of_rows() -> None:
    nulls = pa.table({"a": pa.nulls(10_000_000), "b": pa.nulls(10_000_000)})
    with pytest.raises(BadPayload, match="more values than its bytes can hold"):
        checked(stream(nulls))
    lists = pa.FixedSizeListArray.from_arrays(pa.nulls(10_000_000), 10_000_000)
    with pytest.raises(BadPayload, match="more values than its bytes can hold"):
        checked(stream(pa.table({"a": lists})))


def test_the_bound_of_a_dictionary_is_exact_whatever_its_longest_text() -> None:
    """One long text that no row has makes the quick bound fail: then bytes are counted, over all batches."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0, None, 1] * 1_000, pa.int32()), ["ab", "c", "x" * 10_000])
    body = stream(pa.table({"s": texts}), rows=100)
    written = 3 * 1_000
    sizes = sum(message.bytes for message in messages(memoryview(body)))
    assert sizes > written  # so the size of the buffers is another limit
    assert checked(body, max_bytes=sizes).rows == 3_000
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000, pa.int16()), ["y" * 100, "x" * 10_000])
    body = stream(pa.table({"s": repeated}), rows=1_000)
    assert checked(body, max_bytes=300_000).rows == 3_000
    with pytest.raises(PayloadTooLarge, match="without its dictionaries"):
        checked(body, max_bytes=299_999)


def test_a_dictionary_is_bounded_as_it_is_written_out() -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 5_000, pa.int8()), ["x" * 10_000, ""])
    body = stream(pa.table({"s": text}))
    with pytest.raises(PayloadTooLarge, match="without its dictionaries"):
        checked(body, max_bytes=40_000_000)
    assert checked(body, max_bytes=60_000_000).rows == 10_000


def invalid_text() -> bytes:
    return stream(pa.table({"s": ["abcd"]})).replace(b"abcd", b"ab\xff\xff")


def invalid_indices() -> bytes:
    table = pa.table({"s": pa.array(["a", "b"] * 8).dictionary_encode()})
    body = stream(table)
    indices = np.array([0, 1] * 8, np.int32).tobytes()
    assert indices in body
    return body.replace(indices, np.array([0, 99] * 8, np.int32).tobytes())


@pytest.mark.parametrize("body", [invalid_text(), invalid_indices()])
def test_values_are_validated_in_full(body: bytes) -> None:
    with pytest.raises(BadPayload, match=r"record batch 0 is not valid Arrow|no Arrow IPC stream"):
        checked(body)


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.list_(pa.dictionary(pa.int8(), pa.string())), [["a"]]),
        (pa.dense_union([pa.field("a", pa.int8())]), None),
        (pa.run_end_encoded(pa.int32(), pa.int64()), None),
        (pa.list_view(pa.int8()), [[1]]),
    ],
)
def test_types_that_are_not_taken_are_named(type_: pa.DataType, values: Any) -> None:
    array = pa.array(values, type_) if values is not None else pa.nulls(1, type_)
    with pytest.raises(BadPayload, match=r"column 'x' has the Arrow type .*, which is not taken"):
        checked(stream(pa.table({"x": array, "n": [1]})))


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_damage_anywhere_is_refused_or_harmless(compression: str | None) -> None:
    """No byte makes it raise anything else, or crash: what is taken can be read."""
    source = random.Random(1)
    table = pa.table(
        {
            "time": pa.array(range(50), pa.timestamp("us")),
            "s": ["abc", None] * 25,
            "d": pa.array(["x", "y"] * 25).dictionary_encode(),
            "l": [[1], []] * 25,
        }
    )
    body = stream(table, compression)
    for _ in range(3_000):
        damaged = bytearray(body)
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        if source.random() < 0.1:
            del damaged[source.randrange(len(damaged)) :]
        try:
            payload = entry(bytes(damaged))
        except (BadPayload, PayloadTooLarge):
            continue
        decode_entry(payload)


@pytest.mark.parametrize(("unit", "name"), [(0, "month_interval"), (1, "day_time_interval")])
def test_intervals_that_pyarrow_has_no_arrays_for_are_refused(unit: int, name: str) -> None:
    schema = pa.schema([("time", pa.timestamp("us")), ("v", pa.month_day_nano_interval())])
    whole = bytearray(schema.serialize().to_pybytes())
    for at in [at for at, byte in enumerate(whole) if byte == 2]:  # one of them is the unit
        changed = bytes(whole[:at]) + bytes([unit]) + bytes(whole[at + 1 :])
        with contextlib.suppress(pa.ArrowException):
            read = pa.ipc.read_schema(pa.py_buffer(changed))
            if name in map(str, read.types):
                with pytest.raises(BadPayload, match=name):
                    check_schema(read, Roles("m"))
                return
    pytest.fail("no byte is the unit")


SECOND = 1_767_225_600


@pytest.mark.parametrize(
    ("type_", "number"),
    [
        (pa.timestamp("s", "No/Where"), SECOND),
        (pa.timestamp("ms"), SECOND * 1_000),
        (pa.timestamp("us", "Asia/Tokyo"), SECOND * 1_000_000),
        (pa.timestamp("ns"), SECOND * 1_000_000_000 + 1),
        (pa.date32(), SECOND // 86_400),
        (pa.date64(), SECOND * 1_000),
        (pa.int64(), SECOND),
    ],
)
def test_the_time_may_be_in_a_dictionary(type_: pa.DataType, number: int) -> None:
    """Python has no value for nanoseconds, unknown zones and far years: such a stream was answered 500."""
    times = pa.array([number, None, number], type_)
    body = stream(pa.table({"time": times.dictionary_encode(), "n": [1, 2, 3]}))
    assert checked(body).rows == 3
    found = read_times(times.dictionary_encode(), RULE)
    assert found.us[[0, 2]].tolist() == [SECOND * 1_000_000] * 2
    assert found.missing.tolist() == [1]


@pytest.mark.parametrize("type_", [pa.timestamp("s"), pa.date32()])
def test_a_time_of_a_dictionary_that_is_of_no_year_is_refused(type_: pa.DataType) -> None:
    last = 2**31 - 1 if type_ == pa.date32() else 2**62
    body = stream(pa.table({"time": pa.array([last], type_).dictionary_encode(), "n": [1]}))
    with pytest.raises(BadPayload, match="row 0 in record batch 0 is not of the years 1 to 9999"):
        checked(body)
