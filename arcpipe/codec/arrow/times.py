"""Convert the values of a time column to µs since the epoch."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from arcpipe.codec.arrow.values import (
    EXT8,
    EXTENSIONS,
    FIXEXT4,
    FIXEXT8,
    FLOATS,
    INTEGERS,
    NIL,
    NONE,
    Ints,
    Mask,
    Values,
    odd_rows,
    widened,
)
from arcpipe.codec.time_units import UNIT_NS

MIN_TIME_US: Final = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
MAX_TIME_US: Final = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
_END_US: Final = float(MAX_TIME_US + 1)  # which is exact. As a float, MAX_TIME_US itself is the same number.

PRECISIONS: Final = frozenset(UNIT_NS)

BORDERS: Final = (10**11, 10**14, 10**17)
"""The size of a number tells its unit: seconds below the first, then milliseconds, microseconds, nanoseconds."""
ARC_BORDERS: Final = (10**10, 10**13, 10**16)
"""The same, as Arc has them. A worker makes timestamps of what is between them and `BORDERS`."""


Borders: TypeAlias = tuple[int, int, int]


class Times(NamedTuple):
    """A decoded time column. Rows in `missing` and `odd` have no value of their own yet."""

    us: Ints  # since the epoch
    sub_us: npt.NDArray[np.int16] | None  # the digits below, 0 to 999; None if all are 0
    missing: Ints  # rows with nil
    odd: Ints  # rows with no time, or one outside of the years 1 to 9999


def decode_time(
    values: Values, precision: str | None = None, *, borders: Borders = BORDERS, sized_floats: bool = False
) -> Times:
    """Decode the values of a time column.

    Floats are rounded to µs, nanoseconds are cut towards the past. MessagePack timestamps tell their own unit.

    Args:
        precision: the unit of all numbers, a word of PRECISIONS. Without it floats are seconds, and the size of each
            integer tells its unit.
        borders: between seconds, milliseconds, microseconds and nanoseconds.
        sized_floats: whether the size of a float tells its unit, too. In the WAL it does not.
    """
    times = _decode_time(values, precision, borders, sized_floats)
    if values.repeat is None:
        return times
    missing, odd = (np.flatnonzero(np.isin(values.repeat, rows)) for rows in (times.missing, times.odd))
    return Times(times.us[values.repeat], None, missing, odd)


def decode_integers(numbers: Ints, least: int, greatest: int, precision: str | None) -> Times | None:
    """Decode the integers of a time column, whose bounds are known. None if some have no time of their own."""
    unit = UNIT_NS[precision] if precision is not None else _unit_of(least, BORDERS)
    is_sure = precision is not None or (least > 0 and unit == _unit_of(greatest, BORDERS))
    if unit == 1_000 and is_sure and least >= MIN_TIME_US and greatest <= MAX_TIME_US:
        return Times(numbers, None, NONE, NONE)
    us, sub_us, valid = _integer_times(numbers, precision, BORDERS)
    return Times(us, sub_us, NONE, NONE) if valid.all() else None


def _decode_time(values: Values, precision: str | None, borders: Borders, sized_floats: bool) -> Times:
    us = np.zeros(values.count, np.int64)
    sub_us: npt.NDArray[np.int16] | None = None
    valid = np.zeros(values.count, np.bool_)
    for class_ in values.present:
        rows = values.rows_of(class_)
        if class_ in INTEGERS:
            class_us, class_sub, class_valid = _integer_times(values.numbers(class_, rows), precision, borders)
        elif class_ in FLOATS:
            numbers = values.numbers(class_, rows)
            sized = borders if sized_floats and precision is None else None
            class_us, class_sub, class_valid = _float_times(numbers, precision, sized)
        elif class_ in EXTENSIONS:
            class_us, class_sub, class_valid = _timestamp_times(values, class_, rows)
        else:
            continue
        if rows is None:
            us, sub_us, valid = class_us, class_sub, class_valid
            continue
        us[rows] = class_us
        valid[rows] = class_valid
        if class_sub is not None:
            if sub_us is None:
                sub_us = np.zeros(values.count, np.int16)
            sub_us[rows] = class_sub
    if valid.all():
        return Times(us, sub_us, NONE, NONE)
    if sub_us is not None:
        sub_us[~valid] = 0
    return Times(us, sub_us, np.flatnonzero(values.classes == NIL), odd_rows(values, valid))


def timestamps(values: Values) -> tuple[Ints, Mask]:
    """Decode MessagePack timestamps: (µs since the epoch, whether each value is one of the years 1 to 9999)."""
    us = np.zeros(values.count, np.int64)
    valid = np.zeros(values.count, np.bool_)
    for class_ in values.present:
        if class_ in EXTENSIONS:
            rows = values.rows_of(class_)
            class_us, _, class_valid = _timestamp_times(values, class_, rows)
            if rows is None:
                return class_us, class_valid
            us[rows], valid[rows] = class_us, class_valid
    return us, valid


_ClassTimes: TypeAlias = tuple[Ints, npt.NDArray[np.int16] | None, Mask]


def _integer_times(numbers: npt.NDArray[Any], precision: str | None, borders: Borders) -> _ClassTimes:
    if precision is not None:
        return _scale(numbers, UNIT_NS[precision])
    low, high = int(numbers.min()), int(numbers.max())
    unit = _unit_of(low, borders)
    if unit == _unit_of(high, borders) and (low > 0 or high < 0 or unit == 10**9):
        return _scale(numbers, unit)
    us = np.empty(len(numbers), np.int64)
    sub_us = np.zeros(len(numbers), np.int16)
    valid = np.empty(len(numbers), np.bool_)
    size = np.zeros(len(numbers), np.int8)
    for border in borders:
        size += numbers >= border
        if numbers.dtype.kind == "i":
            size += numbers <= -border
    for step, unit in enumerate((10**9, 10**6, 10**3, 1)):
        rows = np.flatnonzero(size == step)
        if len(rows):
            us[rows], unit_sub, valid[rows] = _scale(numbers[rows], unit)
            if unit_sub is not None:
                sub_us[rows] = unit_sub
    return us, sub_us, valid


def _unit_of(number: int, borders: Borders) -> int:
    return (10**9, 10**6, 10**3, 1)[bisect_right(borders, abs(number))]


def _scale(numbers: npt.NDArray[Any], unit_ns: int) -> _ClassTimes:
    """Convert integers in units of `unit_ns` to times; those out of range are not valid and have no meaning."""
    if unit_ns == 1:
        if numbers.dtype != np.uint64:
            numbers = numbers.astype(np.int64, copy=False)
        us = numbers // 1_000
        sub_us = (numbers - us * 1_000).astype(np.int16)
        return us.astype(np.int64, copy=False), sub_us, np.ones(len(numbers), np.bool_)
    factor = unit_ns // 1_000
    valid: Mask = numbers <= MAX_TIME_US // factor
    if numbers.dtype.kind == "i":
        valid &= numbers >= -(-MIN_TIME_US // factor)
    us = numbers.astype(np.int64, copy=False)
    return us * factor if factor > 1 else us, None, valid


def _float_times(numbers: npt.NDArray[Any], precision: str | None, sized: Borders | None) -> _ClassTimes:
    floats = widened(numbers)
    unit_ns = UNIT_NS[precision or "s"]
    with np.errstate(over="ignore", invalid="ignore"):
        if sized is not None:
            units = np.searchsorted(sized, np.abs(floats), side="right")  # NaN is above all
            us = np.rint(np.where(units < 3, floats * np.array((10**6, 10**3, 1, 1))[units], floats / 1_000))
        else:
            us = np.rint(floats / 1_000 if unit_ns == 1 else floats * (unit_ns // 1_000))
        valid: Mask = (us >= MIN_TIME_US) & (us < _END_US)  # False for NaN
    return np.where(valid, us, 0).astype(np.int64), None, valid


def _timestamp_times(values: Values, class_: int, rows: Ints | None) -> _ClassTimes:
    """Convert extension values; those that are timestamps are valid.

    https://github.com/msgpack/msgpack/blob/master/spec.md#timestamp-extension-type
    """
    code = values.gather("u1", 2 if class_ == EXT8 else 1, rows)
    valid: Mask = code == 0xFF
    if class_ == FIXEXT4:
        return values.gather(">u4", 2, rows).astype(np.int64) * 1_000_000, None, valid
    if class_ == FIXEXT8:
        both = values.gather(">u8", 2, rows).astype(np.uint64)
        ns, seconds = (both >> np.uint64(34)).astype(np.int64), (both & np.uint64((1 << 34) - 1)).astype(np.int64)
    else:
        valid &= values.gather("u1", 1, rows) == 12
        if not valid.all():  # some may be too short for twelve bytes to be read
            return _some_ext8_times(values, rows, valid)
        ns, seconds = values.gather(">u4", 3, rows).astype(np.int64), values.gather(">i8", 7, rows).astype(np.int64)
    return _seconds_and_ns(seconds, ns, valid)


def _some_ext8_times(values: Values, rows: Ints | None, valid: Mask) -> _ClassTimes:
    us, sub_us, ok = np.zeros(len(valid), np.int64), np.zeros(len(valid), np.int16), np.zeros(len(valid), np.bool_)
    if valid.any():
        chosen = np.flatnonzero(valid)
        chosen_rows = chosen if rows is None else rows[chosen]
        ns = values.gather(">u4", 3, chosen_rows).astype(np.int64)
        seconds = values.gather(">i8", 7, chosen_rows).astype(np.int64)
        us[chosen], chosen_sub, ok[chosen] = _seconds_and_ns(seconds, ns, np.ones(len(chosen), np.bool_))
        if chosen_sub is not None:
            sub_us[chosen] = chosen_sub
    return us, sub_us, ok


def _seconds_and_ns(seconds: Ints, ns: Ints, valid: Mask) -> _ClassTimes:
    valid = valid & (ns < 1_000_000_000)
    valid &= (seconds >= MIN_TIME_US // 1_000_000) & (seconds <= MAX_TIME_US // 1_000_000)
    whole = ns // 1_000
    return np.where(valid, seconds, 0) * 1_000_000 + whole, (ns - whole * 1_000).astype(np.int16), valid
