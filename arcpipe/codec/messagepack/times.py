"""Check the times of a client's MessagePack, and turn those that the WAL does not know into those that it does.

In the WAL a time is an integer, a float of seconds or of the sender's precision, or a MessagePack timestamp. So each
entry means the same to every version. A client may send more: ISO 8601 text, and floats from 1e11 on, which are read
by size as integers are (JavaScript packs `Date.now()` as float64). Here these become timestamps.

Nearly every column is proven to be usable by the bytes of its values as unsigned integers, all at once (`stay`). Only
the other columns are decoded (`settle`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from arcpipe.codec.arrow.arrays import build
from arcpipe.codec.arrow.find import find_values
from arcpipe.codec.arrow.iso_8601 import parse_times
from arcpipe.codec.arrow.times import ARC_BORDERS, BORDERS, MAX_TIME_US, Times, decode_time
from arcpipe.codec.arrow.values import FLOATS, INTEGERS, STRINGS, Ints, Mask, Values
from arcpipe.codec.columns import quote
from arcpipe.codec.messagepack.layout import EXTENSION, FLOAT, INTEGER, KIND, KIND_NAMES, SIZE, STRING
from arcpipe.codec.messagepack.walk import Walker
from arcpipe.codec.rescued import unpack_value
from arcpipe.codec.time_units import UNIT_NS, fitting_unit
from arcpipe.errors import BadPayload

# Values that are decoded in one step, of half a millisecond for most and of some milliseconds for odd texts.
_STEP_VALUES: Final = 2_048

# Of a marker: any value of it is a time that stays, or none surely is.
_ANY, _NONE = -1, -2

_TIMESTAMP_32, _TIMESTAMP_64 = 0xD6, 0xD7
# Of a timestamp of 64 bits, whose first 30 bits are nanoseconds: the last one with fewer than 10^9 of them.
_LAST_TIMESTAMP: Final = (10**9 << 34) - 1

_UNSIGNED: Final = {1: "u1", 2: ">u2", 4: ">u4", 8: ">u8"}


class BadTime(BadPayload):
    """A value is no time. `row` is its index among the values."""

    def __init__(self, reason: str, row: int) -> None:
        super().__init__(reason)
        self.row = row


class TimeRule:
    """How the times of a body are read. There are few, so each is made once.

    Attributes:
        precision: the unit of all numbers, a word of `UNIT_NS`; None if their size tells it.
        as_arc: whether the size of a number tells its unit as Arc reads it. Then it may have another one in the WAL.
        limits: by marker: the greatest of its values that certainly stays, its bytes read as an unsigned integer. Or
            one of the constants above.
        free: the markers of which each value stays.
    """

    __slots__ = ("as_arc", "free", "limits", "precision")

    def __init__(self, precision: str | None = None, as_arc: bool = False) -> None:
        """Make a rule.

        Args:
            as_arc: whether numbers without a precision are read as Arc reads them.
        """
        self.precision = precision
        self.as_arc = as_arc and precision is None
        self.limits = [_NONE] * 256
        for marker in range(256):
            if KIND[marker] == INTEGER:
                self.limits[marker] = self._limit_of_integers(marker)
            elif KIND[marker] == FLOAT:
                self.limits[marker] = self._limit_of_floats(SIZE[marker] - 1)
        self.limits[_TIMESTAMP_32] = (1 << 32) - 1
        self.limits[_TIMESTAMP_64] = _LAST_TIMESTAMP
        self.free = (
            frozenset() if self.as_arc else frozenset(marker for marker in range(256) if self.limits[marker] == _ANY)
        )

    def _limit_of_integers(self, marker: int) -> int:
        bits = 8 * (SIZE[marker] - 1) - (0xD0 <= marker <= 0xD3)
        if bits <= 0 or self.precision == "ns" or (self.precision is None and bits != 63):
            return _ANY
        greatest = (1 << bits) - 1  # a negative one is larger, and may be before the year 1
        if self.precision is None:
            return greatest
        most = MAX_TIME_US * 1_000 // UNIT_NS[self.precision]
        return _ANY if most >= greatest and marker < 0xD0 else min(most, greatest)

    def _limit_of_floats(self, size: int) -> int:
        if self.precision is None:
            most = float((ARC_BORDERS if self.as_arc else BORDERS)[0]) * 0.99
        else:
            most = MAX_TIME_US / (UNIT_NS[self.precision] / 1_000) * 0.99
        return int.from_bytes(struct.pack(">d" if size == 8 else ">f", most), "big")


RULE: Final = TimeRule()
"""How times are read where nobody says anything else."""


def stay(data: bytes, pos: int, width: int, count: int, rule: TimeRule) -> bool:
    """Tell whether these values certainly are times that the WAL takes as they are.

    Args:
        pos: the offset of the first one. All have its marker and its `width`.
    """
    limit = rule.limits[data[pos]]
    if limit == _NONE:
        return False
    start, end = pos + 1, pos + width
    if rule.as_arc and KIND[data[pos]] == INTEGER and not _unit_agrees(int.from_bytes(data[start:end], "big")):
        return False  # Arc takes the unit of all from the first one
    if limit == _ANY:
        return True
    if KIND[data[pos]] == EXTENSION:
        if data[start : pos + width * count : width] != b"\xff" * count:
            return False
        start += 1
    first = int.from_bytes(data[start:end], "big")
    if count == 1 or first > limit:
        return first <= limit
    return _are_below(data, start, end, width, count, limit)


def _unit_agrees(number: int) -> bool:
    """Tell whether Arc's borders give a number the unit that it has in the WAL."""
    return not (
        ARC_BORDERS[0] <= number < BORDERS[0]
        or ARC_BORDERS[1] <= number < BORDERS[1]
        or ARC_BORDERS[2] <= number < BORDERS[2]
    )


def _are_below(data: bytes, start: int, end: int, width: int, count: int, limit: int) -> bool:
    """Tell whether unsigned integers are at most `limit`, of which the first one is from `start` to `end`.

    Times of one column mostly begin with the same byte. If it puts them below the limit, one slice proves that: of 1000
    values in 1 µs. Numpy takes 3 µs.
    """
    stop = start + width * count
    from_one_byte = (data[start] + 1) << 8 * (end - start - 1) <= limit + 1
    if from_one_byte and data[start:stop:width] == data[start : start + 1] * count:
        return True
    numbers: npt.NDArray[Any] = np.ndarray((count,), _UNSIGNED[end - start], data, start, (width,))
    return int(np.maximum.reduce(numbers)) <= limit


def settle(
    data: bytes, start: int, end: int, count: int, rule: TimeRule, check: Callable[[], None], *, each: bool = False
) -> bytes | None:
    """Check the `count` values from `start` to `end`; return what to write in their place, or None if they stay.

    Args:
        check: as in `arcpipe.codec.effort`.
        each: whether each value has a unit of its own; else the first one of a column tells whether Arc's borders
            count for it.

    Raises:
        BadTime: a value is no time.
    """
    parts: list[bytes | memoryview] = []
    view = memoryview(data)
    changed = False
    at, row = start, 0
    walker: Walker | None = None
    while row < count:
        check()
        rows = min(_STEP_VALUES, count - row)
        marker = data[at]
        width = SIZE[marker]
        stop = at + width * rows
        if not width or stop > end or data[at:stop:width] != data[at : at + 1] * rows:
            if walker is None or walker.offset != at:
                walker = Walker(data, at)
            walker.skip(rows)
            stop = walker.offset
        elif not (each and rule.as_arc and KIND[marker] == INTEGER) and stay(data, at, width, rows, rule):
            parts.append(view[at:stop])
            at, row = stop, row + rows
            continue
        part = _settle_step(view[at:stop], rows, rule, row)
        changed |= part is not None
        parts.append(view[at:stop] if part is None else part)
        at, row = stop, row + rows
    return b"".join(parts) if changed else None


def _settle_step(part: memoryview, rows: int, rule: TimeRule, first: int) -> bytes | None:
    """Do as `settle` for some values, of which the first one has the index `first`."""
    values = find_values(part, rows)
    times = decode_time(values, rule.precision, sized_floats=True)
    seconds, ns = _split(times)
    changed = np.zeros(rows, np.bool_)
    if rule.precision is None:
        changed = _mark(values, FLOATS, lambda numbers: np.abs(numbers) >= BORDERS[0])
    if rule.as_arc:
        marked = _mark(values, range(INTEGERS.start, FLOATS.stop), _are_of_arc)
        arc_seconds, arc_ns = _split(decode_time(values, borders=ARC_BORDERS, sized_floats=True))
        seconds[marked], ns[marked] = arc_seconds[marked], arc_ns[marked]
        changed |= marked
    odd = times.odd
    if any(class_ in STRINGS for class_ in values.present):
        texts = parse_times(build(values, "str").array)
        odd = odd[~texts.valid[odd]]
        seconds[texts.valid], ns[texts.valid] = texts.seconds[texts.valid], texts.ns[texts.valid]
        changed |= texts.valid
    if len(odd):
        row = int(odd[0])
        raise BadTime(_reason(values.element(row), rule), first + row)
    return _replaced(values, changed, seconds, ns) if changed.any() else None


def _split(times: Times) -> tuple[Ints, Ints]:
    """Split times into seconds since the epoch and nanoseconds after them."""
    seconds = times.us // 1_000_000
    ns = (times.us - seconds * 1_000_000) * 1_000
    return seconds, ns if times.sub_us is None else ns + times.sub_us


def _mark(values: Values, classes: range, test: Callable[[npt.NDArray[Any]], Mask]) -> Mask:
    """Mark the numbers of these classes for which the test holds."""
    marked = np.zeros(values.count, np.bool_)
    for class_ in values.present:
        if class_ in classes:
            rows = values.rows_of(class_)
            marked[slice(None) if rows is None else rows] = test(values.numbers(class_, rows))
    return marked


def _are_of_arc(numbers: npt.NDArray[Any]) -> Mask:
    """Tell which numbers have another unit by Arc's borders. Negative ones have none: to Arc they all are seconds."""
    found = np.zeros(len(numbers), np.bool_)
    for low, high in zip(ARC_BORDERS, BORDERS, strict=True):
        found |= (numbers >= low) & (numbers < high)
    return found


def _replaced(values: Values, changed: Mask, seconds: Ints, ns: Ints) -> bytes:
    """Write the values again, those that are `changed` as timestamps.

    https://github.com/msgpack/msgpack/blob/master/spec.md#timestamp-extension-type
    """
    seconds, ns = seconds[changed], ns[changed]
    packed: npt.NDArray[Any]
    if int(seconds.min()) >= 0 and int(seconds.max()) < 1 << 34:
        packed = np.empty(len(seconds), [("marker", "u1"), ("code", "u1"), ("time", ">u8")])
        packed["marker"] = _TIMESTAMP_64
        packed["time"] = ns.astype(np.uint64) << np.uint64(34) | seconds.astype(np.uint64)
    else:
        packed = np.empty(
            len(seconds), [("marker", "u1"), ("size", "u1"), ("code", "u1"), ("ns", ">u4"), ("seconds", ">i8")]
        )
        packed["marker"], packed["size"] = 0xC7, 12
        packed["ns"], packed["seconds"] = ns, seconds
    packed["code"] = 0xFF
    new = packed.tobytes()
    if len(seconds) == values.count:
        return new
    size, at = packed.itemsize, 0
    parts = []
    for row, is_new in enumerate(changed.tolist()):
        parts.append(new[at : at + size] if is_new else values.element(row))
        at += size * is_new
    return b"".join(parts)


def _reason(element: bytes, rule: TimeRule) -> str:
    """Say why an encoded value is no time."""
    kind = KIND[element[0]]
    if kind == STRING:
        value = unpack_value(element)
        return f"text {quote(value)} is no ISO 8601 time" if isinstance(value, str) else "text that is not UTF-8"
    if kind == EXTENSION:
        return "an extension that is no timestamp of the years 1 to 9999"
    if kind not in (INTEGER, FLOAT):
        return f"{KIND_NAMES[kind]} is no time"
    number = msgspec.msgpack.decode(element, type=int | float)
    if rule.precision is None or not -math.inf < number < math.inf:
        return f"{number} is no time"
    fitting = fitting_unit(int(number))
    hint = "" if fitting == rule.precision else f" (use precision={fitting}?)"
    return f"{number} is out of the range of precision={rule.precision}{hint}"
