"""Find the values of a column: where each begins, and its class.

They stand one after the other, as MessagePack, without the array headers around them. `find_values` finds them:

- all values of one width (floats, wide integers, equally long strings): one strided view;
- ASCII text: a byte above 0x7f is a header, and there are no others;
- anything whose first bytes tell its size: all chunks (a chunk is the column of one WAL entry) are walked in lockstep,
  one vector step per row;
- all others (few and long chunks, nested values): msgspec skips value by value.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from arcpipe.codec.arrow.values import (
    BOOL,
    CLASS_OF,
    NIL,
    OTHER,
    STR,
    STR8,
    STRINGS,
    VALUE_SIZE,
    Bytes,
    Ints,
    Mask,
    Values,
)
from arcpipe.codec.messagepack.layout import EXTENSION, LAYOUT
from arcpipe.codec.messagepack.walk import value_end
from arcpipe.errors import BadPayload

_IS_BYTE: Final[Mask] = VALUE_SIZE == 1

# Bytes of a value whose length is in its second byte, without that length: bin8, ext8, str8.
_SIZE8: Final[Ints] = np.array(
    [2 + (layout.kind == EXTENSION) if layout.length_bytes == 1 else 0 for layout in LAYOUT], np.int64
)
SIZE_OR_8: Final = VALUE_SIZE + _SIZE8
HAS_8: Final[Ints] = (_SIZE8 > 0).astype(np.int64)

# Values whose skipping one by one costs as much as one step of the lockstep walk.
_STEP_WORTH: Final = 100

# Values skipped in one call: more would not fit into the cache.
_SKIP_ROWS: Final = 16_384

# Values and bytes searched at once, so that they stay in the cache.
_ASCII_ROWS: Final = 1 << 15
_HIGH_PART: Final = 1 << 18
_HIGH_BITS: Final = np.uint64(0x8080_8080_8080_8080)

REPEAT_ROWS: Final = 16
"""Values per chunk, on average, from which on chunks are compared with one another."""
REPEAT_CHUNKS: Final = 4
"""Chunks from which on they are."""

_decode_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def find_values(
    data: bytes | memoryview | Bytes,
    count: int,
    chunk_sizes: Ints | None = None,
    chunk_counts: Ints | None = None,
) -> Values:
    """Find the `count` values in `data`.

    Args:
        chunk_sizes, chunk_counts: the bytes and values of consecutive pieces of `data`; faster with them.

    Raises:
        BadPayload: `data` does not hold exactly `count` values.
    """
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if not count:
        if len(array):
            raise BadPayload(f"column of no values has {len(array)} bytes")
        return Values(array, 0)
    width, rest = divmod(len(array), count)
    if not rest and is_uniform(array, width):
        return Values(array, count, width=width)
    if len(array) == count and _IS_BYTE.take(array).all():
        return Values(array, count, width=1)
    if chunk_sizes is not None and chunk_counts is not None and len(array) and is_text_marker(array[0]):
        values = _find_repeated(array, count, chunk_sizes, chunk_counts)
        if values is not None:
            return values
    first = CLASS_OF[array[0]] if len(array) else OTHER
    if first in (STR, STR8, NIL, BOOL):
        text = _find_ascii(array, count)
        if text is not None:
            return Values(array, count, text[0], classes=text[1], ascii_only=True)
    if chunk_sizes is None or chunk_counts is None:
        chunk_sizes, chunk_counts = np.array([len(array)]), np.array([count])
    return Values(array, count, _find_starts(array, count, chunk_sizes, chunk_counts))


def _find_starts(array: Bytes, count: int, chunk_sizes: Ints, chunk_counts: Ints) -> Ints:
    """Find the starts of values of any kind, in lockstep where that pays."""
    starts: Ints | None = None
    longest = int(chunk_counts.max())
    if longest == 1 and count == len(chunk_counts):
        starts = np.cumsum(chunk_sizes) - chunk_sizes
    elif longest * _STEP_WORTH <= count:
        starts = _walk(array, count, chunk_sizes, chunk_counts, VALUE_SIZE, None)
        if starts is None:
            starts = _walk(array, count, chunk_sizes, chunk_counts, SIZE_OR_8, HAS_8)
    return _skip(array, count, chunk_sizes, chunk_counts) if starts is None else starts


def is_text_marker(marker: int) -> bool:
    """Tell whether a value with this first byte is a text."""
    return CLASS_OF[marker] in STRINGS


def _find_repeated(data: Bytes, count: int, chunk_sizes: Ints, chunk_counts: Ints) -> Values | None:
    """Find the values of distinct chunks of strings only, if many chunks are alike: senders repeat their tags.

    None if it does not pay, or some value is no string or nil.
    """
    chunks = len(chunk_sizes)
    if chunks < REPEAT_CHUNKS or count < chunks * REPEAT_ROWS:
        return None
    view = data.data
    ends = np.cumsum(chunk_sizes)
    same = find_same([view[end - size : end] for end, size in zip(ends.tolist(), chunk_sizes.tolist(), strict=True)])
    if same is None:
        return None
    distinct = np.concatenate([data[ends[chunk] - chunk_sizes[chunk] : ends[chunk]] for chunk in same.kept])
    counts = chunk_counts[same.kept]
    values = find_values(distinct, int(counts.sum()), chunk_sizes[same.kept], counts)
    if values.repeat is not None or not {NIL, *STRINGS}.issuperset(values.present):
        return None
    values.repeat = same.rows(chunk_counts)
    return values


class SameChunks(NamedTuple):
    """Which chunks are alike."""

    kept: list[int]  # the first of each kind
    same_as: Ints  # for each chunk, the number of its kind

    def rows(self, counts: Ints) -> npt.NDArray[np.int32]:
        """Return the row of each value among those of the kept chunks, given the values of each chunk."""
        of_kept = counts[self.kept]
        shift = (np.cumsum(of_kept) - of_kept)[self.same_as] - (np.cumsum(counts) - counts)
        rows: npt.NDArray[np.int32] = np.arange(counts.sum(), dtype=np.int32)
        return rows + np.repeat(shift.astype(np.int32), counts)


def find_same(chunks: Sequence[memoryview]) -> SameChunks | None:
    """Find equal chunks by CRC, and compare them as proof. None if more than half of them are distinct."""
    first_seen: dict[tuple[int, int], tuple[int, int]] = {}
    kept: list[int] = []
    same_as = np.empty(len(chunks), np.int64)
    for chunk, data in enumerate(chunks):
        number, first = first_seen.setdefault((crc32(data), len(data)), (len(kept), chunk))
        if first == chunk or bytes(chunks[first]) != bytes(data):  # views are compared value by value
            number = len(kept)
            kept.append(chunk)
            if len(kept) * 2 > len(chunks):
                return None
        same_as[chunk] = number
    return SameChunks(kept, same_as)


def is_uniform(data: Bytes, width: int) -> bool:
    """Tell whether every value has this width and the first value's header, and so begins where another ends."""
    if not width:
        return False
    marker = data[0]
    if VALUE_SIZE[marker]:
        return bool(VALUE_SIZE[marker] == width and (len(data) == width or (data[::width] == marker).all()))
    if not _SIZE8[marker] or width < 2 or _SIZE8[marker] + data[1] != width:
        return False
    return bool((data[::width] == marker).all() and (data[1::width] == data[1]).all())


def _find_ascii(data: Bytes, count: int) -> tuple[Ints, Bytes] | None:
    """Find the starts and classes of values that are ASCII strings, nils and booleans; else None.

    Only their headers have the highest bit set.
    """
    starts = _find_high(data, count)
    if starts is None or starts[0] != 0:
        return None
    classes = np.empty(count, np.uint8)
    for row in range(0, count, _ASCII_ROWS):
        here = starts[row : row + _ASCII_ROWS]
        markers = data.take(here)
        ends = here + VALUE_SIZE.take(markers)
        long = np.flatnonzero(markers == 0xD9)
        if len(long):
            ends[long] += 2 + data.take(here[long] + 1, mode="clip").astype(np.int64)
        # Values follow one another without a gap, so these are values: a proof, not a guess.
        following = starts[row + 1 : row + 1 + _ASCII_ROWS]
        if not (ends[: len(following)] == following).all():
            return None
        CLASS_OF.take(markers, out=classes[row : row + _ASCII_ROWS])
    return (starts, classes) if ends[-1] == len(data) else None


def _find_high(data: Bytes, count: int) -> Ints | None:
    """Find the bytes with their highest bit set. None if they are not `count`.

    Searches parts that stay in the cache, by words of eight bytes until one has two such bytes.
    """
    found = np.empty(count, np.int64)
    number = 0
    by_words = sys.byteorder == "little"
    for start in range(0, len(data), _HIGH_PART):
        part = data[start : start + _HIGH_PART]
        by_words = by_words and not len(part) % 8
        if by_words:
            high = part.view(np.uint64) & _HIGH_BITS
            at = np.flatnonzero(high != 0)
            high = high.take(at)
            below = high - np.uint64(1)
            by_words = not (high & below).any()
            at = at * 8 + (np.bitwise_count(below) >> 3)
        if not by_words:
            at = np.flatnonzero(part >= 0x80)
        if number + len(at) > count:
            return None
        np.add(at, start, out=found[number : number + len(at)])
        number += len(at)
    return found if number == count else None


def _walk(
    data: Bytes, count: int, chunk_sizes: Ints, chunk_counts: Ints, sizes: Ints, has_length: Ints | None
) -> Ints | None:
    """Find the starts of values by stepping through all chunks at once. None if some size is not in `sizes`.

    The walker of a chunk stops at a value of unknown size, and so does not arrive at the end of the chunk.
    """
    order = np.argsort(-chunk_counts, kind="stable")
    counts = chunk_counts[order]
    ends = np.cumsum(chunk_sizes)
    at = (ends - chunk_sizes)[order]
    row = (np.cumsum(chunk_counts) - chunk_counts)[order]
    steps = int(counts[0])
    walkers = len(counts) - np.searchsorted(counts[::-1], np.arange(steps), side="right")
    starts = np.zeros(count, np.int64)
    for walking in walkers.tolist():
        here = at[:walking]
        starts[row[:walking]] = here
        markers = data.take(here, mode="clip")
        if has_length is not None:
            here += has_length.take(markers) * data.take(here + 1, mode="clip")
        here += sizes.take(markers)
        row[:walking] += 1
    return starts if (at == ends[order]).all() else None


def _skip(data: Bytes, count: int, chunk_sizes: Ints, chunk_counts: Ints) -> Ints:
    """Find the starts of any values, value by value."""
    sizes = np.empty(count, np.int64)
    view = data.data
    row = at = chunk = 0
    while chunk < len(chunk_counts):
        rows = size = 0
        while chunk < len(chunk_counts) and (not rows or rows + chunk_counts[chunk] <= _SKIP_ROWS):
            rows += int(chunk_counts[chunk])
            size += int(chunk_sizes[chunk])
            chunk += 1
        sizes[row : row + rows] = _sizes(bytes(view[at : at + size]), rows)
        row += rows
        at += size
    if row != count or at != len(data):
        raise BadPayload(f"column has {row} values in {at} bytes, not {count} in {len(data)}")
    return np.cumsum(sizes) - sizes


def _sizes(data: bytes, rows: int) -> Ints:
    try:
        raws = _decode_raws(b"\xdd" + rows.to_bytes(4, "big") + data)
        return np.fromiter(map(len, raws), np.int64, rows)
    except RecursionError:  # values nested deeper than msgspec goes
        sizes = np.empty(rows, np.int64)
        at = 0
        for row in range(rows):
            end = value_end(data, at)
            sizes[row], at = end - at, end
        return sizes
    except msgspec.DecodeError as error:
        raise BadPayload(f"column is not {rows} MessagePack values: {error}") from None
