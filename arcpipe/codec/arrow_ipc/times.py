"""The times of an Arrow column: timestamps and dates of any unit, and numbers and texts as in MessagePack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.times import MAX_TIME_US, MIN_TIME_US, Times, decode_time
from arcpipe.codec.arrow.values import NONE, Ints, widened
from arcpipe.codec.columns import pack_float64, pack_int64, pack_uint64, pack_values
from arcpipe.codec.effort import go_on
from arcpipe.codec.messagepack.times import TimeRule, settle

_US_PER_SECOND: Final = 1_000_000
_PER_SECOND: Final = {"s": 1, "ms": 1_000, "us": _US_PER_SECOND, "ns": 1_000_000_000}
_FEW_BYTES: Final = 5  # most bytes of an array's header in MessagePack


def is_time_type(type_: pa.DataType) -> bool:
    """Tell whether a column of this type may hold times."""
    types = pa.types
    if types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(
        types.is_timestamp(type_)
        or types.is_date(type_)
        or types.is_integer(type_)
        or types.is_floating(type_)
        or types.is_null(type_)
        or is_text(type_)
    )


def is_text(type_: pa.DataType) -> bool:
    """Tell whether this is a type of texts."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def read_times(array: pa.Array, rule: TimeRule, check: Callable[[], None] = go_on) -> Times:
    """Read the times of a column of a time type.

    Raises:
        BadTime: a number or a text is no time. Of timestamps and dates, those outside of the years 1 to 9999 are `odd`.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    type_ = array.type
    if pa.types.is_null(type_):
        return Times(np.zeros(len(array), np.int64), None, np.arange(len(array)), NONE)
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        return _timestamps(array)
    return _packed_times(array, rule, check)


def numbers_of(array: pa.Array) -> tuple[Ints, Ints, int]:
    """Read timestamps or dates.

    Returns:
        Integers, with 0 in place of null; the indices of null; how many of their unit a second has.
    """
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
    missing = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)) if array.null_count else NONE
    numbers = array.cast(pa.int64())
    values = (pc.fill_null(numbers, 0) if len(missing) else numbers).to_numpy()
    return values, missing, _PER_SECOND[array.type.unit]


def _timestamps(array: pa.Array) -> Times:
    values, missing, per_second = numbers_of(array)
    if per_second > _US_PER_SECOND:
        us = values // 1_000
        return Times(us, (values - us * 1_000).astype(np.int16), missing, NONE)
    factor = _US_PER_SECOND // per_second
    low, high = -(-MIN_TIME_US // factor), MAX_TIME_US // factor
    odd: Ints = NONE
    if len(values) and (values.min() < low or values.max() > high):
        odd = np.flatnonzero((values < low) | (values > high))
        values = np.clip(values, low, high)
    return Times(values * factor if factor > 1 else values, None, missing, odd)


def _packed_times(array: pa.Array, rule: TimeRule, check: Callable[[], None]) -> Times:
    packed = pack_plain(array)
    start = len(packed) - _values_size(packed)
    settled = settle(packed, start, len(packed), len(array), rule, check, each=True) or packed[start:]
    values = find_values(np.frombuffer(settled, np.uint8), len(array), np.array([len(settled)]), np.array([len(array)]))
    return decode_time(values, rule.precision)


def _values_size(packed: bytes) -> int:
    marker = packed[0]
    return len(packed) - (1 if marker & 0xF0 == 0x90 else 3 if marker == 0xDC else 5)


def pack_plain(array: pa.Array) -> bytes:
    """Pack numbers, booleans, texts or binary values as a MessagePack array; numbers have 9 bytes each."""
    type_ = array.type
    if not array.null_count:
        if pa.types.is_uint64(type_):
            return pack_uint64(array.to_numpy())
        if pa.types.is_integer(type_):
            return pack_int64(array.to_numpy().astype(np.int64, copy=False))
        if pa.types.is_floating(type_):
            return pack_float64(widened(array.to_numpy()))
    return pack_values(array.to_pylist())
