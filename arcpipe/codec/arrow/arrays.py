"""The encoded values of a column -> one Arrow array of one type, and the values that fit no such array.

A column's values stand one behind the other, as MessagePack, without the array headers around them. `find_values`
finds where each begins; from then on everything is numpy over all values of one class at once:

- all values of one width (floats, wide integers, equally long strings): one strided view;
- ASCII text: a byte above 0x7f is a header, and there are no others;
- anything whose first bytes tell its size: all chunks (a chunk is what one log entry holds) are walked in lockstep,
  one vector step per row;
- what is left (few and long chunks, nested values): msgspec skips value by value.

The conversion is total: a value that does not fit the type asked for is a null in the array and an index in `odd`,
whose bytes `Values.element` gives. Types are named by the words of `codec.columns.COLUMN_TYPES`; which of them a column
should have for good is not decided here, `natural_type` only tells what its values are.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from isal.isal_zlib import crc32

from arcpipe.codec.rescued import value_end
from arcpipe.errors import BadPayload

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "i64": pa.int64(),
    "u64": pa.uint64(),
    "f64": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "bytes": pa.binary(),
}

# Classes of values: what a first byte tells. The order of the numeric ones is that of `_DTYPE`.
_NIL, _BOOL, _FIXINT, _U8, _U16, _U32, _U64, _I8, _I16, _I32, _I64, _F32, _F64 = range(13)
_STR, _STR8, _STR16, _STR32, _BIN8, _BIN16, _BIN32, _FIXEXT4, _FIXEXT8, _EXT8, _OTHER = range(13, 24)
_CLASSES: Final = 24

_INTEGERS: Final = range(_FIXINT, _I64 + 1)
_FLOATS: Final = range(_F32, _F64 + 1)
_STRINGS: Final = range(_STR, _STR32 + 1)
_BINARIES: Final = range(_BIN8, _BIN32 + 1)
_EXTENSIONS: Final = range(_FIXEXT4, _EXT8 + 1)

_DTYPE: Final = {
    _FIXINT: "i1",
    **dict(
        zip(range(_U8, _F64 + 1), ("u1", ">u2", ">u4", ">u8", "i1", ">i2", ">i4", ">i8", ">f4", ">f8"), strict=True)
    ),
}

_CLASS: Final[Bytes] = np.full(256, _OTHER, np.uint8)
_CLASS[:0x80] = _CLASS[0xE0:] = _FIXINT
_CLASS[0xA0:0xC0] = _STR
_CLASS[0xC0], _CLASS[0xC2:0xC4], _CLASS[0xC4:0xC7], _CLASS[0xC7] = _NIL, _BOOL, (_BIN8, _BIN16, _BIN32), _EXT8
_CLASS[0xCA:0xCC], _CLASS[0xCC:0xD0], _CLASS[0xD0:0xD4] = _FLOATS, range(_U8, _I8), range(_I8, _F32)
_CLASS[0xD6:0xD8], _CLASS[0xD9:0xDC] = (_FIXEXT4, _FIXEXT8), (_STR8, _STR16, _STR32)

VALUE_SIZE: Final[Ints] = np.zeros(256, np.int64)
"""Bytes of a value by its first byte; 0 where that alone does not tell. An empty array or map is one byte."""
VALUE_SIZE[:0x80] = VALUE_SIZE[0xE0:] = VALUE_SIZE[[0x80, 0x90, 0xC0, 0xC2, 0xC3]] = 1
VALUE_SIZE[0xA0:0xC0] = range(1, 33)
VALUE_SIZE[0xCA:0xCC], VALUE_SIZE[0xCC:0xD0], VALUE_SIZE[0xD0:0xD4] = (5, 9), (2, 3, 5, 9), (2, 3, 5, 9)
VALUE_SIZE[0xD4:0xD9] = (3, 4, 6, 10, 18)

_IS_BYTE: Final[Mask] = VALUE_SIZE == 1

# Bytes of a value whose length is in its second byte, without that length: bin8, ext8, str8.
_SIZE8: Final[Ints] = np.zeros(256, np.int64)
_SIZE8[[0xC4, 0xC7, 0xD9]] = (2, 3, 2)
_SIZE_OR_8: Final = VALUE_SIZE + _SIZE8
_HAS_8: Final[Ints] = (_SIZE8 > 0).astype(np.int64)

# Bytes in front of the content of strings and binary values, by class.
_HEADER: Final[Ints] = np.zeros(_CLASSES, np.int64)
_HEADER[_STR : _BIN32 + 1] = (1, 2, 3, 5, 2, 3, 5)

_MAX_INT64: Final = (1 << 63) - 1
_MAX_ARROW_BYTES: Final = (1 << 31) - 1
_EXACT: Final = 1 << 53  # integers up to here are all exact as float64

# A step of the lockstep walk costs about as much as skipping so many values one by one.
_STEP_WORTH: Final = 100
# So few strings are cut out one by one.
_FEW_VALUES: Final = 16
# Classes that are counted in one call.
_COUNT_ROWS: Final = 1 << 18
# Values that are skipped in one call: more would spill out of the cache.
_SKIP_ROWS: Final = 16_384

# Values and bytes that are looked through at once.
_ASCII_ROWS: Final = 1 << 15
_HIGH_PART: Final = 1 << 18
_HIGH_BITS: Final = np.uint64(0x8080_8080_8080_8080)

# Chunks of fewer values are not compared with one another.
_REPEAT_ROWS: Final = 16

# Text is dictionary-encoded from so many values on, if they have at most so many different ones and bytes of these.
# (A Parquet dictionary page ends at 1 MB.)
DICTIONARY_ROWS: Final = 4_096
_DICTIONARY_SAMPLE: Final = 1_024
_DICTIONARY_VALUES: Final = 1 << 15
_DICTIONARY_BYTES: Final = 1 << 19

_decode_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class Column(NamedTuple):
    """A decoded column. `odd` are the indices of the values that are null in `array` because they do not fit."""

    array: pa.Array
    odd: Ints


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
            self._classes = np.full(self.count, self.present[0] if self.present else _NIL, np.uint8)
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
        return np.flatnonzero(self.classes != _NIL)

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
        values = self.gather(_DTYPE[class_], int(class_ != _FIXINT), rows)
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def _class_counts(classes: Bytes) -> list[int]:
    """How many values there are of each class; by parts, because counting makes eight bytes of each one."""
    counts = np.zeros(_CLASSES, np.int64)
    for start in range(0, len(classes), _COUNT_ROWS):
        counts += np.bincount(classes[start : start + _COUNT_ROWS], minlength=_CLASSES)
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
    first = _CLASS[array[0]] if len(array) else _OTHER
    if first in (_STR, _STR8, _NIL, _BOOL):
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
    return len(data) > 0 and _CLASS[data[0]] in _STRINGS


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
    if values.repeat is not None or not {_NIL, *_STRINGS}.issuperset(values.present):
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
    counts = [0] * _CLASSES
    if len(values.present) == 1:
        counts[values.present[0]] = values.count
    else:
        counts = _class_counts(values.classes)
    kinds = {
        "number": sum(counts[_FIXINT : _F64 + 1]),
        "str": sum(counts[_STR : _STR32 + 1]),
        "bool": counts[_BOOL],
        "bytes": sum(counts[_BIN8 : _BIN32 + 1]),
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
        if class_ == _U64:
            big = bool((values.numbers(class_, values.rows_of(class_)) > _MAX_INT64).any())
        elif class_ == _FIXINT or _I8 <= class_ <= _I64:
            negative = negative or bool((values.numbers(class_, values.rows_of(class_)) < 0).any())
    return "u64" if big and not negative else "i64"


def has_floats(values: Values) -> bool:
    """Whether any value is a float."""
    return any(class_ in _FLOATS for class_ in values.present)


# From values to Arrow


def decode_values(data: bytes | memoryview, count: int, hint: str | None = None) -> Column:
    """`count` values as an array of type `hint` (a word of COLUMN_TYPES), or else of their natural type.

    Raises BadPayload if `data` is not exactly `count` MessagePack values.
    """
    values = find_values(data, count)
    return build(values, hint or natural_type(values))


def build(values: Values, type_: str | None) -> Column:
    """The values as an array of this type; None gives the null type, in which every value is odd.

    Text with few different values comes as a dictionary array, if there are at least DICTIONARY_ROWS of it.

    Integers fit f64 where they are exact, floats fit no integer type; float32 is widened. NaN and infinities are
    floats. Strings that are not valid UTF-8 fit nowhere.
    """
    column = _build(values, type_)
    if values.repeat is None:
        return column
    odd = np.flatnonzero(np.isin(values.repeat, column.odd)) if len(column.odd) else _NONE
    return Column(take(column.array, pa.array(values.repeat)), odd)


def _build(values: Values, type_: str | None) -> Column:
    if type_ is None:
        return Column(pa.nulls(values.count), values.not_nil())
    if type_ == "str":
        return _build_text(values)
    if type_ == "bytes":
        wanted = _are_of(values, _BINARIES)
        return Column(_contents(values, wanted), _odd(values, wanted))
    return _build_fixed(values, type_)


def _build_fixed(values: Values, type_: str) -> Column:
    dtype = {"i64": np.int64, "u64": np.uint64, "f64": np.float64, "bool": np.uint8}[type_]
    convert = {"i64": _to_int64, "u64": _to_uint64, "f64": _to_float64, "bool": _to_bool}[type_]
    if len(values.present) == 1:
        converted, fits = convert(values, values.present[0], None)
        if converted is None:
            filled, valid = np.zeros(values.count, dtype), np.zeros(values.count, np.bool_)
        else:
            filled = np.ascontiguousarray(converted, dtype)
            if fits is None:
                return Column(_fixed_array(type_, filled, None), _NONE)
            valid = fits
    else:
        filled, valid = np.zeros(values.count, dtype), np.zeros(values.count, np.bool_)
        for class_ in values.present:
            rows = values.rows_of(class_)
            converted, fits = convert(values, class_, rows)
            if converted is not None and rows is not None:
                filled[rows] = converted
                valid[rows] = True if fits is None else fits
    return Column(_fixed_array(type_, filled, valid), _odd(values, valid))


_NONE: Final[Ints] = np.zeros(0, np.int64)
_NO_BYTES: Final[Bytes] = np.zeros(0, np.uint8)

_Converted: TypeAlias = tuple[npt.NDArray[Any] | None, Mask | None]
_NO: Final[_Converted] = (None, None)


def _to_int64(values: Values, class_: int, rows: Ints | None) -> _Converted:
    """The values of a class as int64 and which of them fit (None: all), or nothing if the class never fits."""
    if class_ not in _INTEGERS:
        return _NO
    numbers = values.numbers(class_, rows)
    return numbers.astype(np.int64, copy=False), (_all_or(numbers <= _MAX_INT64) if class_ == _U64 else None)


def _to_uint64(values: Values, class_: int, rows: Ints | None) -> _Converted:
    if class_ not in _INTEGERS:
        return _NO
    numbers = values.numbers(class_, rows)
    unsigned = _U8 <= class_ <= _U64
    return numbers.astype(np.uint64), (None if unsigned else _all_or(numbers >= 0))


def _to_float64(values: Values, class_: int, rows: Ints | None) -> _Converted:
    if class_ in _FLOATS:
        return values.numbers(class_, rows).astype(np.float64, copy=False), None
    if class_ not in _INTEGERS:
        return _NO
    numbers = values.numbers(class_, rows)
    return numbers.astype(np.float64), (_all_or(_is_exact(numbers)) if class_ in (_U64, _I64) else None)


def _to_bool(values: Values, class_: int, rows: Ints | None) -> _Converted:
    if class_ != _BOOL:
        return _NO
    return values.gather("u1", 0, rows) & 1, None


def _is_exact(integers: npt.NDArray[Any]) -> Mask:
    """Which 64-bit integers a float64 holds exactly: those of at most 53 significant bits."""
    if integers.dtype == np.int64:
        exact: Mask = (integers <= _EXACT) & (integers >= -_EXACT)
    else:
        exact = integers <= _EXACT
    for row in np.flatnonzero(~exact).tolist():
        number = int(integers[row])
        exact[row] = int(float(number)) == number
    return exact


def _all_or(mask: Mask) -> Mask | None:
    return None if mask.all() else mask


def _odd(values: Values, valid: Mask) -> Ints:
    return np.flatnonzero(~valid & (values.classes != _NIL))


def _are_of(values: Values, classes: range) -> Mask:
    return (values.classes >= classes.start) & (values.classes < classes.stop)


def _fixed_array(type_: str, filled: npt.NDArray[Any], valid: Mask | None) -> pa.Array:
    data = np.packbits(filled, bitorder="little") if type_ == "bool" else filled
    return pa.Array.from_buffers(ARROW_TYPES[type_], len(filled), [_bitmap(valid), pa.py_buffer(data)])


def _bitmap(valid: Mask | None) -> pa.Buffer | None:
    return None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _build_text(values: Values) -> Column:
    wanted = None if set(values.present) <= set(_STRINGS) else _are_of(values, _STRINGS)
    if values.count >= DICTIONARY_ROWS and len(values.data) < _MAX_ARROW_BYTES:
        array = _dictionary(values, wanted)
        if array is not None:
            return Column(array, _NONE if wanted is None else _odd(values, wanted))
    return _plain_text(values, wanted)


def _dictionary(values: Values, wanted: Mask | None) -> pa.DictionaryArray | None:
    """The wanted strings by their different values, or None: these are too many, or some are no valid text.

    Encoded strings are compared, headers and all, so that only different ones need to be decoded.
    """
    offsets = np.empty(values.count + 1, np.int32)
    offsets[:-1] = values.starts
    offsets[-1] = len(values.data)
    buffers = [_bitmap(wanted), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values.data))]
    elements = pa.Array.from_buffers(pa.binary(), values.count, buffers)
    for start in (0, values.count // 2):
        sample = elements.slice(start, _DICTIONARY_SAMPLE).dictionary_encode()
        if len(sample.dictionary) > _DICTIONARY_SAMPLE // 2:
            return None
    encoded = elements.dictionary_encode()
    different = encoded.dictionary
    if not 0 < len(different) <= _DICTIONARY_VALUES or different.nbytes > _DICTIONARY_BYTES:
        return None
    _, different_offsets, different_data = different.buffers()
    starts = np.frombuffer(different_offsets, np.int32, len(different) + 1, different.offset * 4).astype(np.int64)
    data = np.frombuffer(different_data, np.uint8)[starts[0] : starts[-1]]
    text, invalid = _plain_text(Values(data, len(different), starts[:-1] - starts[0]), None)
    if len(invalid):
        return None
    indices = encoded.indices
    unique = text.dictionary_encode()
    if len(unique.dictionary) < len(text):  # the same text with headers of different width
        indices, text = take(unique.indices, indices), unique.dictionary
    return pa.DictionaryArray.from_arrays(indices, text)


def _plain_text(values: Values, wanted: Mask | None) -> Column:
    contents = _contents(values, wanted)
    if values.ascii or (_FIXINT not in values.present and _count_high(values.data) == values.count):
        # One high byte per value, and its header has one: the content is ASCII, and so valid.
        text = contents.view(pa.string())
    else:
        try:
            text = contents.cast(pa.string())
        except pa.ArrowInvalid:
            wanted = np.array([_is_text(raw.as_py()) for raw in contents])  # one at a time
            text = _contents(values, wanted).cast(pa.string())
    return Column(text, _NONE if wanted is None else _odd(values, wanted))


def _count_high(data: Bytes) -> int:
    """How many bytes have their highest bit set; by parts, because telling so makes a byte of each."""
    return sum(int(np.count_nonzero(data[at : at + _COUNT_ROWS] >= 0x80)) for at in range(0, len(data), _COUNT_ROWS))


def _is_text(raw: bytes | None) -> bool:
    if raw is None:
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _contents(values: Values, wanted: Mask | None) -> pa.Array:
    """What is behind the headers of strings or binary values as a binary array, null where it is not `wanted`.

    Headers and contents are taken for twice as many values, of which every second is kept: Arrow gathers them.
    """
    count = values.count
    if len(values.data) > _MAX_ARROW_BYTES:
        raise BadPayload(f"column of {len(values.data)} bytes is more than one Arrow array can hold")
    starts = values.starts
    if count < _FEW_VALUES:
        return _few_contents(values, wanted)
    headers = _HEADER[values.present[0]] if len(values.present) == 1 else _HEADER.take(values.classes)
    offsets = np.empty(2 * count + 1, np.int32)
    offsets[:-1:2] = starts
    offsets[1::2] = starts + headers
    offsets[-1] = len(values.data)
    both = pa.Array.from_buffers(
        pa.binary(), 2 * count, [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values.data))]
    )
    every_second = np.arange(1, 2 * count, 2, dtype=np.int32)
    return take(both, pa.array(every_second, mask=None if wanted is None else ~wanted))


def take(array: pa.Array, indices: pa.Array) -> pa.Array:
    """These rows of an array, which it must have: that is not looked at again."""
    return pc.take(array, indices, boundscheck=False)


def _few_contents(values: Values, wanted: Mask | None) -> pa.Array:
    offsets = np.zeros(values.count + 1, np.int32)
    contents = []
    for row in range(values.count):
        start, end = values.offset(row), values.offset(row + 1)
        content = values.data[start + _HEADER[values.classes[row]] : end]
        if wanted is None or wanted[row]:
            contents.append(content)
            offsets[row + 1] = len(content)
    np.cumsum(offsets, out=offsets)
    # A single one may be enormous, and is not copied.
    data = contents[0] if len(contents) == 1 else np.concatenate([_NO_BYTES, *contents])
    buffers = [_bitmap(wanted), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.binary(), values.count, buffers)


# Time

MIN_TIME_US: Final = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
MAX_TIME_US: Final = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z

# Nanoseconds of a unit.
_UNIT_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
PRECISIONS: Final = frozenset(_UNIT_NS)


class Times(NamedTuple):
    """A decoded time column: µs since the epoch, and the digits below (0 to 999), or None if all of these are 0.

    Rows in `missing` (nil) and `odd` (no time, or one outside of the years 1 to 9999) have no value of their own yet.
    """

    us: Ints
    sub_us: npt.NDArray[np.int16] | None
    missing: Ints
    odd: Ints


def decode_time(values: Values, precision: str | None = None) -> Times:
    """The values of a time column.

    Without `precision` (a word of PRECISIONS) the unit of an integer is read from its size, value by value: below 1e11
    seconds, 1e14 milliseconds, 1e17 microseconds, else nanoseconds; and floats are seconds. With it, all numbers are in
    that unit. Floats are rounded to µs, nanoseconds cut towards the past. MessagePack timestamps tell their own unit.
    """
    times = _decode_time(values, precision)
    if values.repeat is None:
        return times
    missing, odd = (np.flatnonzero(np.isin(values.repeat, rows)) for rows in (times.missing, times.odd))
    return Times(times.us[values.repeat], None, missing, odd)


def _decode_time(values: Values, precision: str | None) -> Times:
    us = np.zeros(values.count, np.int64)
    sub_us: npt.NDArray[np.int16] | None = None
    valid = np.zeros(values.count, np.bool_)
    for class_ in values.present:
        rows = values.rows_of(class_)
        if class_ in _INTEGERS:
            class_us, class_sub, class_valid = _integer_times(values.numbers(class_, rows), precision)
        elif class_ in _FLOATS:
            class_us, class_sub, class_valid = _float_times(values.numbers(class_, rows), precision)
        elif class_ in _EXTENSIONS:
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
        return Times(us, sub_us, _NONE, _NONE)
    if sub_us is not None:
        sub_us[~valid] = 0
    return Times(us, sub_us, np.flatnonzero(values.classes == _NIL), _odd(values, valid))


_ClassTimes: TypeAlias = tuple[Ints, npt.NDArray[np.int16] | None, Mask]


def _integer_times(numbers: npt.NDArray[Any], precision: str | None) -> _ClassTimes:
    if precision is not None:
        return _scale(numbers, _UNIT_NS[precision])
    low, high = int(numbers.min()), int(numbers.max())
    unit = _unit_of(low)
    if unit == _unit_of(high) and (low > 0 or high < 0 or unit == 10**9):
        return _scale(numbers, unit)
    us = np.empty(len(numbers), np.int64)
    sub_us = np.zeros(len(numbers), np.int16)
    valid = np.empty(len(numbers), np.bool_)
    size = np.zeros(len(numbers), np.int8)
    for border in (10**11, 10**14, 10**17):
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


def _unit_of(number: int) -> int:
    size = abs(number)
    return 10**9 if size < 10**11 else 10**6 if size < 10**14 else 10**3 if size < 10**17 else 1


def _scale(numbers: npt.NDArray[Any], unit_ns: int) -> _ClassTimes:
    """Integers counted in `unit_ns` as times; those out of range are not valid and have no meaning."""
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


def _float_times(numbers: npt.NDArray[Any], precision: str | None) -> _ClassTimes:
    seconds = numbers.astype(np.float64, copy=False)
    unit_ns = _UNIT_NS[precision or "s"]
    with np.errstate(over="ignore", invalid="ignore"):
        us = np.rint(seconds / 1_000 if unit_ns == 1 else seconds * (unit_ns // 1_000))
        valid: Mask = (us >= MIN_TIME_US) & (us <= MAX_TIME_US)  # False for NaN
    return np.where(valid, us, 0).astype(np.int64), None, valid


def _timestamp_times(values: Values, class_: int, rows: Ints | None) -> _ClassTimes:
    """Extension values; those that are timestamps are valid.

    https://github.com/msgpack/msgpack/blob/master/spec.md#timestamp-extension-type
    """
    code = values.gather("u1", 2 if class_ == _EXT8 else 1, rows)
    valid: Mask = code == 0xFF
    if class_ == _FIXEXT4:
        return values.gather(">u4", 2, rows).astype(np.int64) * 1_000_000, None, valid
    if class_ == _FIXEXT8:
        both = values.gather(">u8", 2, rows).astype(np.uint64)
        ns, seconds = (both >> np.uint64(34)).astype(np.int64), (both & np.uint64((1 << 34) - 1)).astype(np.int64)
    else:
        valid &= values.gather("u1", 1, rows) == 12
        if not valid.all():  # others may be too short to read twelve bytes of
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
