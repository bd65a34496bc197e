"""Find the values of a column: where each begins, and of which class it is.

They stand one after the other, as MessagePack, without the array headers around them. `find_values` finds them:

- all values of one width (floats, wide integers, equally long strings): one strided view;
- ASCII text: a byte above 0x7f is a header, and there are no others;
- anything whose first bytes tell its size: all chunks (a chunk is what one WAL entry holds) are walked in lockstep, one
  vector step per row;
- what is left (few and long chunks, nested values): msgspec skips value by value.
"""

from __future__ import annotations

import sys
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from arcpipe.codec.messagepack.layout import EXTENSION, LAYOUT, SIZE
from arcpipe.codec.messagepack.walk import value_end
from arcpipe.errors import BadPayload

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

# Classes of values: what a first byte tells. The order of the numeric ones is that of `_DTYPE`.
NIL, BOOL, FIXINT, U8, U16, U32, U64, I8, I16, I32, I64, F32, F64 = range(13)
STR, STR8, STR16, STR32, BIN8, BIN16, BIN32, FIXEXT4, FIXEXT8, EXT8, OTHER = range(13, 24)
CLASSES: Final = 24

INTEGERS: Final = range(FIXINT, I64 + 1)
FLOATS: Final = range(F32, F64 + 1)
STRINGS: Final = range(STR, STR32 + 1)
BINARIES: Final = range(BIN8, BIN32 + 1)
EXTENSIONS: Final = range(FIXEXT4, EXT8 + 1)

_DTYPE: Final = {
    FIXINT: "i1",
    **dict(zip(range(U8, F64 + 1), ("u1", ">u2", ">u4", ">u8", "i1", ">i2", ">i4", ">i8", ">f4", ">f8"), strict=True)),
}

_CLASS: Final[Bytes] = np.full(256, OTHER, np.uint8)
_CLASS[:0x80] = _CLASS[0xE0:] = FIXINT
_CLASS[0xA0:0xC0] = STR
_CLASS[0xC0], _CLASS[0xC2:0xC4], _CLASS[0xC4:0xC7], _CLASS[0xC7] = NIL, BOOL, (BIN8, BIN16, BIN32), EXT8
_CLASS[0xCA:0xCC], _CLASS[0xCC:0xD0], _CLASS[0xD0:0xD4] = FLOATS, range(U8, I8), range(I8, F32)
_CLASS[0xD6:0xD8], _CLASS[0xD9:0xDC] = (FIXEXT4, FIXEXT8), (STR8, STR16, STR32)

VALUE_SIZE: Final[Ints] = np.array(SIZE, np.int64)
"""Bytes of a value by its first byte; 0 where that alone does not tell. An empty array or map is one byte."""
VALUE_SIZE[[0x80, 0x90]] = 1

_IS_BYTE: Final[Mask] = VALUE_SIZE == 1

# Bytes of a value whose length is in its second byte, without that length: bin8, ext8, str8.
_SIZE8: Final[Ints] = np.array(
    [2 + (layout.kind == EXTENSION) if layout.length_bytes == 1 else 0 for layout in LAYOUT], np.int64
)
_SIZE_OR_8: Final = VALUE_SIZE + _SIZE8
_HAS_8: Final[Ints] = (_SIZE8 > 0).astype(np.int64)

MAX_INT64: Final = (1 << 63) - 1

# A step of the lockstep walk costs about as much as skipping so many values one by one.
_STEP_WORTH: Final = 100

# Classes that are counted in one call.
COUNT_ROWS: Final = 1 << 18
# Values that are skipped in one call: more would spill out of the cache.
_SKIP_ROWS: Final = 16_384

# Values and bytes that are looked through at once.
_ASCII_ROWS: Final = 1 << 15
_HIGH_PART: Final = 1 << 18
_HIGH_BITS: Final = np.uint64(0x8080_8080_8080_8080)

# Chunks of fewer values are not compared with one another.
_REPEAT_ROWS: Final = 16

_decode_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class Values:
    """The values of a column, found but not yet decoded. Made by `find_values`."""

    __slots__ = ("_classes", "_starts", "_width", "ascii", "count", "data", "present", "repeat")

    def __init__(
        self,
        data: Bytes,
        count: int,
        starts: Ints | None = None,
        width: int = 0,
        *,
        classes: Bytes | None = None,
        ascii_only: bool = False,
    ) -> None:
        """`starts` is the offset of each value; without it, all have `width` bytes, and one class unless that is 1."""
        self.data = data
        self.count = count
        self.repeat: npt.NDArray[np.int32] | None = None
        """If only distinct chunks were kept: of each row, which of the values it has."""
        self.ascii = ascii_only
        self._width = width
        self._starts = starts
        self._classes = classes
        if classes is None and starts is not None:
            self._classes = _CLASS.take(data.take(starts))
        elif width == 1 and count > 1:
            self._classes = _CLASS.take(data)
        if self._classes is not None and count and (self._classes == self._classes[0]).all():
            self.present = [int(self._classes[0])]
        elif self._classes is not None:
            self.present = [class_ for class_, number in enumerate(_class_counts(self._classes)) if number]
        else:
            self.present = [int(_CLASS[data[0]])] if count else []

    @property
    def starts(self) -> Ints:
        if self._starts is None:
            self._starts = np.arange(self.count, dtype=np.int64) * self._width
        return self._starts

    @property
    def classes(self) -> Bytes:
        if self._classes is None:
            self._classes = np.full(self.count, self.present[0] if self.present else NIL, np.uint8)
        return self._classes

    def offset(self, row: int) -> int:
        """Where a value begins; where the last one ends for the row behind it."""
        if self._width:
            return row * self._width
        return int(self.starts[row]) if row < self.count else len(self.data)

    def element(self, row: int) -> bytes:
        """The encoded value of a row."""
        if self.repeat is not None:
            row = int(self.repeat[row])
        return self.data[self.offset(row) : self.offset(row + 1)].tobytes()

    def sizes(self, rows: Ints) -> Ints:
        """The bytes of the encoded values of these rows."""
        if self.repeat is not None:
            rows = self.repeat[rows].astype(np.int64)
        if self._width:
            return np.full(len(rows), self._width, np.int64)
        ends = np.append(self.starts[1:], len(self.data))
        sizes: Ints = ends[rows] - self.starts[rows]
        return sizes

    def not_nil(self) -> Ints:
        """The rows that hold a value."""
        return np.flatnonzero(self.classes != NIL)

    def rows_of(self, class_: int) -> Ints | None:
        """The rows whose values are of a class, or None for all of them."""
        return None if self.present == [class_] else np.flatnonzero(self.classes == class_)

    def gather(self, dtype: str, offset: int, rows: Ints | None) -> npt.NDArray[Any]:
        """What stands `offset` bytes behind the start of each value of these rows (None: of all), as numbers."""
        if rows is None and self._width:
            return np.ndarray((self.count,), dtype, self.data, offset, (self._width,))
        if rows is not None and self._width:
            at = rows * self._width
        else:
            at = self.starts if rows is None else self.starts[rows]
        # One number at each byte of the data, aligned or not.
        everywhere = np.ndarray((len(self.data) - np.dtype(dtype).itemsize + 1,), dtype, self.data, 0, (1,))
        return everywhere[at + offset if offset else at]

    def numbers(self, class_: int, rows: Ints | None) -> npt.NDArray[Any]:
        """The integers or floats of a class, in the byte order of the machine."""
        values = self.gather(_DTYPE[class_], int(class_ != FIXINT), rows)
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def _class_counts(classes: Bytes) -> list[int]:
    """How many values there are of each class; by parts, because counting makes eight bytes of each one."""
    counts = np.zeros(CLASSES, np.int64)
    for start in range(0, len(classes), COUNT_ROWS):
        counts += np.bincount(classes[start : start + COUNT_ROWS], minlength=CLASSES)
    return list(map(int, counts))


# Where the values are


def find_values(
    data: bytes | memoryview | Bytes,
    count: int,
    chunk_sizes: Ints | None = None,
    chunk_counts: Ints | None = None,
) -> Values:
    """Find the `count` values that `data` is made of.

    `chunk_sizes` and `chunk_counts`, if known, are the bytes and the values of consecutive pieces of `data`; they make
    it faster. Raises BadPayload if `data` is not exactly so many values.
    """
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if not count:
        if len(array):
            raise BadPayload(f"column of no values has {len(array)} bytes")
        return Values(array, 0)
    width, rest = divmod(len(array), count)
    if not rest and _is_uniform(array, width):
        return Values(array, count, width=width)
    if len(array) == count and _IS_BYTE.take(array).all():
        return Values(array, count, width=1)
    if chunk_sizes is not None and chunk_counts is not None and _is_text_marker(array):
        values = _find_repeated(array, count, chunk_sizes, chunk_counts)
        if values is not None:
            return values
    first = _CLASS[array[0]] if len(array) else OTHER
    if first in (STR, STR8, NIL, BOOL):
        text = _find_ascii(array, count)
        if text is not None:
            return Values(array, count, text[0], classes=text[1], ascii_only=True)
    if chunk_sizes is None or chunk_counts is None:
        chunk_sizes, chunk_counts = np.array([len(array)]), np.array([count])
    starts: Ints | None = None
    longest = int(chunk_counts.max())
    if longest == 1 and count == len(chunk_counts):
        starts = np.cumsum(chunk_sizes) - chunk_sizes
    elif longest * _STEP_WORTH <= count:
        starts = _walk(array, count, chunk_sizes, chunk_counts, VALUE_SIZE, None)
        if starts is None:
            starts = _walk(array, count, chunk_sizes, chunk_counts, _SIZE_OR_8, _HAS_8)
    if starts is None:
        starts = _skip(array, count, chunk_sizes, chunk_counts)
    return Values(array, count, starts)


def _is_text_marker(data: Bytes) -> bool:
    return len(data) > 0 and _CLASS[data[0]] in STRINGS


def _find_repeated(data: Bytes, count: int, chunk_sizes: Ints, chunk_counts: Ints) -> Values | None:
    """The values of distinct chunks of strings only, if many chunks are alike: senders repeat their tags.

    Found by CRC, proven by comparison. None if it is not worth it, or not all values are strings or nil.
    """
    chunks = len(chunk_sizes)
    if chunks < 4 or count < chunks * _REPEAT_ROWS:
        return None
    view = data.data
    first_seen: dict[tuple[int, int], tuple[int, int]] = {}
    kept: list[int] = []
    same_as = np.empty(chunks, np.int64)
    at = 0
    for chunk, size in enumerate(chunk_sizes.tolist()):
        end = at + size
        key = (crc32(view[at:end]), size)
        number, start = first_seen.setdefault(key, (len(kept), at))
        if start == at or bytes(view[start : start + size]) != bytes(view[at:end]):
            number = len(kept)
            kept.append(chunk)
        same_as[chunk] = number
        at = end
    if len(kept) * 2 > chunks:
        return None
    ends = np.cumsum(chunk_sizes)
    distinct = np.concatenate([data[ends[chunk] - chunk_sizes[chunk] : ends[chunk]] for chunk in kept])
    counts = chunk_counts[kept]
    values = find_values(distinct, int(counts.sum()), chunk_sizes[kept], counts)
    if values.repeat is not None or not {NIL, *STRINGS}.issuperset(values.present):
        return None
    shift = (np.cumsum(counts) - counts)[same_as] - (np.cumsum(chunk_counts) - chunk_counts)
    values.repeat = np.arange(count, dtype=np.int32) + np.repeat(shift.astype(np.int32), chunk_counts)
    return values


def _is_uniform(data: Bytes, width: int) -> bool:
    """Whether every value has this width and the first value's header; each then begins where the former ends."""
    if not width:
        return False
    marker = data[0]
    if VALUE_SIZE[marker]:
        return bool(VALUE_SIZE[marker] == width and (len(data) == width or (data[::width] == marker).all()))
    if not _SIZE8[marker] or width < 2 or _SIZE8[marker] + data[1] != width:
        return False
    return bool((data[::width] == marker).all() and (data[1::width] == data[1]).all())


def _find_ascii(data: Bytes, count: int) -> tuple[Ints, Bytes] | None:
    """Where the values begin if they are ASCII strings, nils and booleans, and their classes: only headers have their
    highest bit set."""
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
        _CLASS.take(markers, out=classes[row : row + _ASCII_ROWS])
    return (starts, classes) if ends[-1] == len(data) else None


def _find_high(data: Bytes, count: int) -> Ints | None:
    """Where the bytes are that have their highest bit set, or None if there are not `count` of them.

    By parts that stay in the cache, and by words of eight bytes as long as none has two.
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
    """Where the values begin, found by stepping through all chunks at once; None if some size is not in `sizes`.

    A walker that meets a value of unknown size stays where it is, and so does not arrive at its chunk's end.
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
    """Where the values begin, whatever they are, value by value."""
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


# What the values are


def natural_type(values: Values) -> str | None:
    """The word of the type that most values have, or None if none has one.

    Numbers are one kind: f64 if one of them is a float, else i64, else (some are above 2^63-1 and none is negative)
    u64. At equal numbers the order is: numbers, text, booleans, binary.
    """
    counts = [0] * CLASSES
    if len(values.present) == 1:
        counts[values.present[0]] = values.count
    else:
        counts = _class_counts(values.classes)
    kinds = {
        "number": sum(counts[FIXINT : F64 + 1]),
        "str": sum(counts[STR : STR32 + 1]),
        "bool": counts[BOOL],
        "bytes": sum(counts[BIN8 : BIN32 + 1]),
    }
    kind = max(kinds, key=lambda name: kinds[name])
    if not kinds[kind]:
        return None
    if kind != "number":
        return kind
    if has_floats(values):
        return "f64"
    big = negative = False
    for class_ in values.present:
        if class_ == U64:
            big = bool((values.numbers(class_, values.rows_of(class_)) > MAX_INT64).any())
        elif class_ == FIXINT or I8 <= class_ <= I64:
            negative = negative or bool((values.numbers(class_, values.rows_of(class_)) < 0).any())
    return "u64" if big and not negative else "i64"


def has_floats(values: Values) -> bool:
    """Whether any value is a float."""
    return any(class_ in FLOATS for class_ in values.present)


NONE: Final[Ints] = np.zeros(0, np.int64)


def odd_rows(values: Values, valid: Mask) -> Ints:
    return np.flatnonzero(~valid & (values.classes != NIL))
