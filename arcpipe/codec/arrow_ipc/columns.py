"""Arrow record batches -> columnar maps, whose values mean what those of Arrow mean.

This is the slow and total road: for readers of single entries, and for batches that do not fit a table's columns. Types
that MessagePack does not have become others: decimals, times of day and intervals become text, durations the number of
their unit, lists arrays, structs maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from arcpipe.codec.arrow.times import MAX_TIME_US, MIN_TIME_US, Times
from arcpipe.codec.arrow.values import Ints
from arcpipe.codec.arrow_ipc.check import plan_of, read_batches, read_schema, storage_of
from arcpipe.codec.arrow_ipc.odd_values import UNHELD, values_of
from arcpipe.codec.arrow_ipc.times import is_text, numbers_of, pack_plain, read_times
from arcpipe.codec.columns import TIME, array_header, pack_values
from arcpipe.codec.envelope import ArrowBody, ColumnMap
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.records.plan import Plan
from arcpipe.codec.records.roles import Roles

# Rows of a columnar map: bounds the memory that the conversion takes besides.
_ROWS: Final = 65_536

_TIMESTAMP_96: Final = np.dtype([("head", "S3"), ("ns", ">u4"), ("seconds", ">i8")])
_HEAD_96: Final = b"\xc7\x0c\xff"


def roles_of(body: ArrowBody) -> Roles:
    """Return the roles of the fields of a stream that is in an entry."""
    return Roles(body.m, body.time or TIME, None, frozenset(body.tags or ()))


def stream_columns(body: ArrowBody) -> list[str]:
    """Return the names of the columns that a stream becomes, without reading its batches. Raises BadPayload."""
    plan = plan_of(read_schema(body.arrow), roles_of(body))
    return plan.columns if plan.time is None else [TIME, *plan.columns]


def column_maps(body: ArrowBody, precision: str | None) -> Iterator[ColumnMap]:
    """Make the stream of an entry columnar maps.

    Raises:
        BadPayload: it is no stream that was checked.
    """
    roles = roles_of(body)
    rule = TimeRule(precision)
    plan: Plan | None = None
    for batch in read_batches(body.arrow):
        if plan is None:
            plan = plan_of(batch.schema, roles)
        yield from maps_of(batch, plan, rule)


def maps_of(batch: pa.RecordBatch, plan: Plan, rule: TimeRule) -> Iterator[ColumnMap]:
    """Make a record batch columnar maps of a bounded number of rows."""
    for start in range(0, len(batch), _ROWS):
        yield _column_map(batch.slice(start, _ROWS), plan, rule)


def _column_map(batch: pa.RecordBatch, plan: Plan, rule: TimeRule) -> ColumnMap:
    columns: dict[str, msgspec.Raw] = {}
    types: dict[str, str] = {}
    if plan.time is not None:
        times = read_times(_column(batch, plan.time), rule)
        if len(times.missing) < len(batch):
            columns[TIME] = msgspec.Raw(_pack_times(times))
    for field, column in zip(plan.fields, plan.columns, strict=True):
        array = _column(batch, field)
        columns[column] = msgspec.Raw(_pack(array))
        word = word_of(array.type)
        if word is not None:
            types[column] = word
    return ColumnMap(plan.measurement, columns, tuple(plan.tags) or None, types or None)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    array = batch.column(batch.schema.get_field_index(name))
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array


def word_of(type_: pa.DataType) -> str | None:
    """Return the word for the type of a column; None for types that have no column of their own."""
    types = pa.types
    type_ = storage_of(type_)
    if types.is_dictionary(type_):
        return word_of(type_.value_type)
    if types.is_uint64(type_):
        return "u64"
    if types.is_integer(type_) or types.is_duration(type_):
        return "i64"
    if types.is_floating(type_):
        return "f64"
    if types.is_boolean(type_):
        return "bool"
    if is_text(type_) or types.is_decimal(type_) or types.is_time(type_) or types.is_interval(type_):
        return "str"
    if types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_):
        return "bytes"
    if types.is_fixed_size_binary(type_):
        return "bytes"
    return "time" if types.is_timestamp(type_) or types.is_date(type_) else None


def _pack(array: pa.Array) -> bytes:
    """Pack the values of a column as a MessagePack array."""
    types = pa.types
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    type_ = array.type
    if types.is_timestamp(type_) or types.is_date(type_):
        return _pack_instants(array)
    if types.is_duration(type_):
        return pack_plain(array.cast(pa.int64()))
    if types.is_decimal(type_) or types.is_time(type_) or types.is_interval(type_):
        return pack_values([None if value is None else str(value) for value in _python(array)])
    if types.is_nested(type_):
        return pack_values([_plain(value) for value in _python(array)])
    return pack_plain(array)


def _python(array: pa.Array) -> list[Any]:
    try:
        values: list[Any] = array.to_pylist()
    except UNHELD:
        values = values_of(array)
    return values


def _plain(value: Any) -> Any:
    """Make a nested value one that MessagePack has."""
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    if isinstance(value, float):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


def _pack_times(times: Times) -> bytes:
    """Pack times as MessagePack timestamps of 96 bits; missing ones, and those of no year from 1 to 9999, as nil."""
    us = np.clip(times.us, MIN_TIME_US, MAX_TIME_US)
    seconds = us // 1_000_000
    ns = (us - seconds * 1_000_000) * 1_000 + (0 if times.sub_us is None else times.sub_us)
    return _pack_seconds(seconds, ns, np.concatenate((times.missing, times.odd)))


def _pack_instants(array: pa.Array) -> bytes:
    """Pack timestamps or dates of any year as MessagePack timestamps of 96 bits."""
    values, missing, per_second = numbers_of(array)
    seconds = values // per_second
    return _pack_seconds(seconds, (values - seconds * per_second) * (1_000_000_000 // per_second), missing)


def _pack_seconds(seconds: Ints, ns: Ints, absent: Ints) -> bytes:
    """Pack moments as MessagePack timestamps of 96 bits, those at the indices `absent` as nil."""
    packed = np.empty(len(seconds), _TIMESTAMP_96)
    packed["head"] = _HEAD_96
    packed["seconds"] = seconds
    packed["ns"] = ns
    header = array_header(len(seconds))
    if not len(absent):
        return header + packed.tobytes()
    present = np.ones(len(seconds), np.bool_)
    present[absent] = False
    values = [value if there else b"\xc0" for value, there in zip(_split(packed), present.tolist(), strict=True)]
    return header + b"".join(values)


def _split(packed: np.ndarray[Any, Any]) -> Iterator[bytes]:
    data = packed.tobytes()
    return (data[at : at + _TIMESTAMP_96.itemsize] for at in range(0, len(data), _TIMESTAMP_96.itemsize))
