"""Check columnar maps in one walk: their keys, and what they say of their columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from arcpipe.codec.columns import COLUMN_TYPES, MAX_COLUMNS, pack_str, quote
from arcpipe.codec.messagepack.column_walk import check_columns
from arcpipe.codec.messagepack.layout import ARRAY, INTEGER, KIND, MAP, SIZE
from arcpipe.codec.messagepack.patches import Patch, Patches
from arcpipe.codec.messagepack.read import (
    SHORT,
    SHOWN_BYTES,
    bad_key,
    find_string,
    kind_of,
    read_key,
    read_length,
    read_measurement,
    truncated_at_end,
)
from arcpipe.codec.messagepack.times import TimeRule
from arcpipe.codec.messagepack.walk import Walker
from arcpipe.errors import BadPayload

# `check_columnar` returns one of these instead of an offset when a map turns out not to be columnar.
IS_ROW: Final = -1
IS_BATCH: Final = -2


def check_columnar(
    data: bytes, pos: int, walker: Walker | None, rule: TimeRule, check: Callable[[], None]
) -> tuple[int, int, Patches]:
    """Check the columnar map at `pos`: (offset after it, records, patches), or (IS_ROW or IS_BATCH, 0, ())."""
    first = pos
    marker = data[pos]
    keys, pos = (marker & 15, pos + 1) if marker <= 0x8F else read_length(data, pos)
    measured = False
    names: Sequence[bytes] | None = None
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
            names, records, pos, settled = check_columns(data, end, walker, rule, check)
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


def _check_named(names: Sequence[bytes], tags: set[bytes], types: set[bytes]) -> None:
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
