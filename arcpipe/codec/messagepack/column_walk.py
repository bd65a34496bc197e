"""Check the columns of a columnar map: their names, and that each is an array of as many values as the others.

Values are proven to be there, not read, but for those of `time`. Where the native kernel is installed, it does so for
plain columns, and leaves the others to Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from arcpipe.codec.columns import MAX_COLUMNS, MAX_NAME_BYTES, check_column_name, quote
from arcpipe.codec.messagepack.layout import KIND, MAP, SIZE
from arcpipe.codec.messagepack.patches import Patch, Patches
from arcpipe.codec.messagepack.read import SHORT, kind_of, long_name, read_key, read_length, text_of, truncated_at_end
from arcpipe.codec.messagepack.times import BadTime, TimeRule, settle, stay
from arcpipe.codec.messagepack.walk import LONG_MARKERS, LongValue, Walker
from arcpipe.errors import BadPayload
from arcpipe.native import KERNEL

_LONG_EXTENSION: Final = 0xC9

# Values of a column that may hold a longer value than `LongValue` allows: such a column is walked value by value.
_WALKED_VALUES: Final = 1 << 16

# Values of a column that may be proven by their stride. Longer ones are left to the walker, whose memory is bounded.
_STRIDE_VALUES: Final = 1 << 16

# A mask: `check` is called once per 256 columns, or values of a column, which take 0.2 ms.
_COLUMNS_BETWEEN_CHECKS: Final = 255

# Of the native kernel; None without it. It leaves all columns that are not plain, or more than 1 MB, to Python.
_WALK: Final = None if KERNEL is None else KERNEL.walk_columns


def check_columns(
    data: bytes, pos: int, walker: Walker | None, rule: TimeRule, check: Callable[[], None]
) -> tuple[Sequence[bytes], int, int, Patches]:
    """Check the map of columns at `pos`: (names, records, offset after it, patches).

    The offset lies after the end of `data` if the last value is cut off there. The same holds for any value whose
    bytes are not read (a name, a number): the next read at the offset finds that, or `check_columnar` at its end.
    """
    columns, pos = _count_columns(data, pos)
    if _WALK is not None:
        found = _WALK(data, pos, columns)
        if found is not None and len(frozenset(found[0])) == columns:
            return _found_columns(data, found, rule, check)
    return _walk_columns(data, pos, columns, walker, rule, check)


def _walk_columns(
    data: bytes, pos: int, columns: int, walker: Walker | None, rule: TimeRule, check: Callable[[], None]
) -> tuple[Sequence[bytes], int, int, Patches]:
    """Check the columns of which the first begins at `pos`; the rest is as in `check_columns`."""
    size = len(data)
    names: list[bytes] = []
    seen: set[bytes] = set()
    checked = 0
    records = -1
    settled: Patches = ()
    for number in range(columns):
        if number & _COLUMNS_BETWEEN_CHECKS == _COLUMNS_BETWEEN_CHECKS:
            seen.update(_check_names(names[checked:]))
            checked = number
            check()
        short = SHORT[data[pos]]
        if short:
            start = pos + short
            name = data[pos + 1 : start]
        else:
            name, start = _read_long_name(data, pos)
        names.append(name)
        marker = data[start]
        if marker == 0xDC:
            count = data[start + 1] << 8 | data[start + 2]
            pos = start + 3
        elif 0x90 <= marker <= 0x9F:
            count = marker & 15
            pos = start + 1
        else:
            count, pos = _count_many_values(data, start, name)
        if count != records:
            _check_count(count, records, names)
            records = count

        # Where the first byte of a value fixes its width, it leads to the first byte of the next: equal bytes at that
        # stride prove a whole column. Any other column is walked value by value, in C. The last value is looked at
        # before the rest because it alone nearly always shows that the column is not of that kind.
        marker = data[pos]
        width = SIZE[marker]
        if width:
            end = pos + width * count
            if count == 1 or (
                end <= size
                and data[end - width] == marker
                and count <= _STRIDE_VALUES
                and data[pos:end:width] == data[pos : pos + 1] * count
            ):
                if name == b"time" and not stay(data, pos, width, count, rule):
                    settled = _settle(data, pos, end, count, rule, check)
                pos = end
                continue
        if walker is None:
            walker = Walker(data, check=check)
        values, pos = pos, _walk_column(data, start, pos, name, count, walker, check)
        if name == b"time":
            settled = _settle(data, values, pos, count, rule, check)
    seen.update(_check_names(names[checked:] if checked else names))
    if len(seen) != columns:
        raise BadPayload(f"column {quote(_repeated(names))} is there twice")
    return names, records, pos, settled


def _found_columns(
    data: bytes, found: tuple[tuple[bytes, ...], int, int, int, int, int], rule: TimeRule, check: Callable[[], None]
) -> tuple[Sequence[bytes], int, int, Patches]:
    """Check the times of columns that the kernel has found: (names, records, offset after them, patches)."""
    names, records, end, times, times_end, width = found
    settled: Patches = ()
    if times and not (width and stay(data, times, width, records, rule)):
        settled = _settle(data, times, times_end, records, rule, check)
    return names, records, end, settled


def _settle(data: bytes, start: int, end: int, count: int, rule: TimeRule, check: Callable[[], None]) -> Patches:
    """Check the values of `time` from `start` to `end`. Returns their patch, if they need one."""
    if end > len(data):
        raise truncated_at_end(data)
    try:
        new = settle(data, start, end, count, rule, check)
    except BadTime as error:
        raise BadPayload(f"column 'time', row {error.row}: {error}") from None
    return () if new is None else (Patch(start, end, new),)


def _count_columns(data: bytes, pos: int) -> tuple[int, int]:
    """Read the header of the map of columns at `pos`: (columns, offset after it)."""
    marker = data[pos]
    if 0x80 < marker <= 0x8F:
        return marker & 15, pos + 1
    if KIND[marker] != MAP:
        raise BadPayload(f"'columns' is not a map but {kind_of(data, pos)}")
    columns, end = read_length(data, pos)
    if not 0 < columns <= MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} columns" if columns else "'columns' is empty")
    return columns, end


def _read_long_name(data: bytes, pos: int) -> tuple[bytes, int]:
    """Read a column name that is no short string: (name, offset after it)."""
    name, end = read_key(data, pos)
    if len(name) > MAX_NAME_BYTES:
        raise long_name(data, "column name", pos)
    return name, end


def _count_many_values(data: bytes, pos: int, name: bytes) -> tuple[int, int]:
    """Read the header of an array with more than 65,535 values: (values, offset after it)."""
    if data[pos] != 0xDD:
        raise BadPayload(f"column {quote(name)} is not an array but {kind_of(data, pos)}")
    return read_length(data, pos)


def _check_count(count: int, records: int, names: list[bytes]) -> None:
    """Check the `count` of values of the last column against the `records` of those before; -1 where there are none."""
    if not count:
        raise BadPayload(f"no records: column {quote(names[-1])} has no values")
    if records > 0:
        raise BadPayload(f"column {quote(names[-1])} has {count} values, {quote(names[0])} has {records}")


def _walk_column(
    data: bytes, start: int, pos: int, name: bytes, count: int, walker: Walker, check: Callable[[], None]
) -> int:
    """Walk over the column whose header is at `start` and whose first value is at `pos`: the offset after it."""
    try:
        try:
            return walker.end_of(start)
        except LongValue:
            if count > _WALKED_VALUES:
                raise
            return _walk_values(data, pos, count, walker, check)
    except BadPayload as error:
        raise BadPayload(f"{error}, in column {quote(name)}") from None


def _walk_values(data: bytes, pos: int, count: int, walker: Walker, check: Callable[[], None]) -> int:
    """Walk over `count` values, of which strings and binary values may have any length: the offset after them.

    As that of `check_columns`, it lies after the end of `data` if the last value is cut off.
    """
    for number in range(count):
        if number & _COLUMNS_BETWEEN_CHECKS == _COLUMNS_BETWEEN_CHECKS:
            check()
        marker = data[pos]
        if marker in LONG_MARKERS:
            start = pos + 5
            data[start - 1]  # raises IndexError, where a slice would only be shorter
            pos = start + (marker == _LONG_EXTENSION) + int.from_bytes(data[pos + 1 : start], "big")
        else:
            pos = walker.end_of(pos)
    return pos


def _check_names(names: list[bytes]) -> list[bytes]:
    """Return the names if all are allowed."""
    joined = b"".join(names)
    if not joined.isascii() or not joined.decode("ascii").isprintable() or not all(names):
        for name in names:
            check_column_name(text_of("column name", name))
    return names


def _repeated(names: list[bytes]) -> bytes:
    return Counter(names).most_common(1)[0][0]
