"""Check columnar maps: their keys, their names, and that each column is an array of one length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from arcpipe.codec.columns import (
    COLUMN_TYPES,
    MAX_COLUMNS,
    MAX_NAME_BYTES,
    check_column_name,
    pack_str,
    quote,
)
from arcpipe.codec.messagepack.layout import (
    ARRAY,
    INTEGER,
    KIND,
    MAP,
    SIZE,
)
from arcpipe.codec.messagepack.read import (
    SHORT,
    SHOWN_BYTES,
    bad_key,
    find_string,
    kind_of,
    long_name,
    read_key,
    read_length,
    read_measurement,
    text_of,
    truncated_at_end,
)
from arcpipe.codec.messagepack.times import BadTime, TimeRule, settle, stay
from arcpipe.codec.messagepack.walk import LONG_MARKERS, LongValue, Walker
from arcpipe.errors import BadPayload

_LONG_EXTENSION: Final = 0xC9

# Values of a column that may hold a longer value than `LongValue` allows: such a column is walked value by value.
_WALKED_VALUES: Final = 1 << 16

# Values of a column that may be proven by their stride. Longer ones are left to the walker, whose memory is bounded.
_STRIDE_VALUES: Final = 1 << 16

# A mask: `check` is called once per 256 columns, or values of a column, which take 0.2 ms.
_COLUMNS_BETWEEN_CHECKS: Final = 255

# `check_columnar` returns one of these instead of an offset when a map turns out not to be columnar.
IS_ROW: Final = -1
IS_BATCH: Final = -2


class Patch(NamedTuple):
    """Bytes of a body that are something else in the WAL."""

    start: int
    end: int
    new: bytes


Patches: TypeAlias = tuple[Patch, ...]


def patched(data: bytes, start: int, end: int, patches: Patches) -> bytes:
    """Return the bytes from `start` to `end` with all patches, which are in order."""
    view = memoryview(data)
    parts: list[bytes | memoryview] = []
    for patch in patches:
        parts += (view[start : patch.start], patch.new)
        start = patch.end
    return b"".join((*parts, view[start:end]))


# Columnar maps: one walk over the headers and names. Values are proven to be there, not read, but for those of `time`.


def check_columnar(
    data: bytes, pos: int, walker: Walker | None, rule: TimeRule, check: Callable[[], None]
) -> tuple[int, int, Patches]:
    """Check the columnar map at `pos`: (offset after it, records, patches), or (IS_ROW or IS_BATCH, 0, ())."""
    first = pos
    marker = data[pos]
    keys, pos = (marker & 15, pos + 1) if marker <= 0x8F else read_length(data, pos)
    measured = False
    names: list[bytes] | None = None
    tags: set[bytes] | None = None
    types: set[bytes] | None = None
    records = 0
    patches: Patches = ()
    for _ in range(keys):
        short = SHORT[data[pos]]
        if short:
            end = pos + short
            key = data[pos + 1 : end]
        else:
            key, end = read_key(data, pos)
        if key == b"m" and not measured:
            measured = True
            if KIND[data[end]] == INTEGER:
                name, pos = numbered("measurement", data, end)
                patches += (Patch(end, pos, pack_str(name)),)
            else:
                pos = read_measurement(data, end)
        elif key == b"columns" and names is None:
            names, records, pos, settled = _columns(data, end, walker, rule, check)
            patches += settled
        elif key == b"tags" and tags is None:
            if names is None and KIND[data[end]] != ARRAY:
                return IS_ROW, 0, ()
            tags, pos = _tags(data, end)
        elif key == b"tag_keys" and tags is None:
            patches += (Patch(pos, end, _TAGS),)
            tags, pos = _tags(data, end)
        elif key == b"types" and types is None:
            types, pos = _types(data, end)
        elif key in _KEYS_OF_ROWS and names is None:
            return IS_ROW, 0, ()
        elif key == b"batch":
            if keys > 1:
                raise BadPayload("there are other keys besides 'batch'")
            return IS_BATCH, 0, ()
        elif names is None and key not in _KEYS:
            return _shape_of(data, first, pos, check), 0, ()
        else:
            raise _bad_key(data, pos, key, end, patches)
    if pos > len(data):
        raise truncated_at_end(data)
    if not measured:
        raise BadPayload("measurement 'm' is missing")
    if names is None:
        raise BadPayload(NO_SHAPE)
    if tags or types:
        _check_named(names, tags or set(), types or set())
    return pos, records, patches


def _check_named(names: list[bytes], tags: set[bytes], types: set[bytes]) -> None:
    """Check that the names in `tags` and `types` are columns."""
    if unknown := tags.difference(names):
        raise BadPayload(f"tag {quote(min(unknown))} is not a column")
    if unknown := types.difference(names):
        raise BadPayload(f"'types' names {quote(min(unknown))}, which is not a column")


_KEYS: Final = (b"m", b"columns", b"tags", b"types", b"tag_keys")
_TAGS: Final = b"\xa4tags"  # as MessagePack
_KEYS_OF_ROWS: Final = (b"t", b"h", b"fields", b"f")
NO_SHAPE: Final = "neither 'columns' nor 'fields' is there, so it is neither a columnar map nor a row"


def _bad_key(data: bytes, pos: int, key: bytes, end: int, patches: Patches) -> BadPayload:
    """Make the error of the key at `pos`, which is unknown, or there twice; `patches` are those of earlier keys."""
    if key in (b"tags", b"tag_keys") and (key == b"tags") == any(patch.new == _TAGS for patch in patches):
        return BadPayload("both 'tags' and 'tag_keys' are there")
    return bad_key(data, pos, key, end, _KEYS, "a columnar map")


def _shape_of(data: bytes, first: int, pos: int, check: Callable[[], None]) -> int:
    """Tell the shape of the map at `first`, whose key at `pos` is none of a columnar map: IS_ROW, if it is one.

    Raises BadPayload for any other shape.
    """
    keys, at = read_length(data, first)
    walker = Walker(data, check=check)
    seen = []
    for _ in range(keys):
        key, end = read_key(data, at)
        seen.append(key)
        at = walker.end_of(end)
    if b"columns" not in seen and not any(key in seen for key in _KEYS_OF_ROWS):
        key, _ = read_key(data, pos)
        raise BadPayload(f"{NO_SHAPE}; its key at byte {pos} is {quote(key)}")
    if b"columns" not in seen:
        return IS_ROW
    key, end = read_key(data, pos)
    raise bad_key(data, pos, key, end, _KEYS, "a columnar map")


def numbered(what: str, data: bytes, pos: int) -> tuple[str, int]:
    """Name something by the integer at `pos`, as Arc does: (name, offset after the integer)."""
    end = pos + SIZE[data[pos]]
    if end > len(data):
        raise truncated_at_end(data)
    return f"{what}_{_decode_integer(data[pos:end])}", end


_decode_integer: Final = msgspec.msgpack.Decoder(int).decode


def _columns(
    data: bytes, pos: int, walker: Walker | None, rule: TimeRule, check: Callable[[], None]
) -> tuple[list[bytes], int, int, Patches]:
    """Check the map of columns at `pos`: (names, records, offset after it, patches).

    The offset lies after the end of `data` if the last value is cut off there. The same holds for any value whose
    bytes are not read (a name, a number): the next read at the offset finds that, or `check_columnar` at its end.
    """
    columns, pos = _count_columns(data, pos)
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

    As that of `_columns`, it lies after the end of `data` if the last value is cut off.
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


def _tags(data: bytes, pos: int) -> tuple[set[bytes], int]:
    """Check the `tags` array of a columnar map: (the first bytes of each name, offset after it)."""
    if KIND[data[pos]] != ARRAY:
        raise BadPayload(f"'tags' is not an array but {kind_of(data, pos)}")
    count, pos = read_length(data, pos)
    if count > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} tags")
    tags: set[bytes] = set()
    for _ in range(count):
        start, pos = find_string(data, pos, "a name in 'tags'")
        tags.add(data[start : pos if pos - start < SHOWN_BYTES else start + SHOWN_BYTES])
    if b"time" in tags:
        raise BadPayload("column 'time' is the timestamp and cannot be a tag")
    return tags, pos


def _types(data: bytes, pos: int) -> tuple[set[bytes], int]:
    """Check the `types` map of a columnar map: (names, offset after it)."""
    if KIND[data[pos]] != MAP:
        raise BadPayload(f"'types' is not a map but {kind_of(data, pos)}")
    count, pos = read_length(data, pos)
    if count > MAX_COLUMNS:
        raise BadPayload(f"more than {MAX_COLUMNS} types")
    names: set[bytes] = set()
    for _ in range(count):
        name, pos = read_key(data, pos)
        start, pos = find_string(data, pos, f"the type of column {quote(name)}")
        word = data[start : min(pos, start + SHOWN_BYTES)]
        if pos > len(data):
            raise truncated_at_end(data)
        if word not in _TYPE_WORDS:
            raise BadPayload(
                f"column {quote(name)} has the unknown type {quote(word)}, not one of "
                + ", ".join(sorted(COLUMN_TYPES))
            )
        if name in names:
            raise BadPayload(f"'types' names column {quote(name)} twice")
        names.add(name)
    return names, pos


_TYPE_WORDS: Final = frozenset(word.encode() for word in COLUMN_TYPES)
