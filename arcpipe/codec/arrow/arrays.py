"""Convert the found values of a column to one Arrow array of one type, and list the values that do not fit it.

`find.find_values` finds where each value begins. From there on, everything is numpy over all values of one class.
The conversion is total: a value that does not fit the requested type is a null in the array and an index in `odd`,
whose bytes `Values.element` returns. Types are named by the words of `codec.columns.COLUMN_TYPES`. This module does not
decide which of them a column has for good; `natural_type` only tells the type of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.arrow.times import timestamps
from arcpipe.codec.arrow.values import (
    BIN32,
    BINARIES,
    BOOL,
    CLASSES,
    COUNT_ROWS,
    EXTENSIONS,
    FIXINT,
    FLOATS,
    I64,
    INTEGERS,
    MAX_INT64,
    NONE,
    STR,
    STRINGS,
    U8,
    U64,
    Bytes,
    Ints,
    Mask,
    Values,
    odd_rows,
    widened,
)
from arcpipe.errors import BadPayload
from arcpipe.units import MB

ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "i64": pa.int64(),
    "u64": pa.uint64(),
    "f64": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "bytes": pa.binary(),
    "time": pa.timestamp("us", tz="UTC"),
    "decimal": pa.decimal128(20, 0),  # integers up to 2^64-1
}

# The classes of which some values fit a type.
_FITTING: Final[dict[str, Collection[int]]] = {
    "i64": INTEGERS,
    "u64": INTEGERS,
    "f64": range(FIXINT, FLOATS.stop),
    "bool": (BOOL,),
    "str": STRINGS,
    "bytes": BINARIES,
    "time": EXTENSIONS,
    "decimal": INTEGERS,
}

# Bytes before the content of strings and binary values, by class.
_HEADER: Final[Ints] = np.zeros(CLASSES, np.int64)
_HEADER[STR : BIN32 + 1] = (1, 2, 3, 5, 2, 3, 5)

_MAX_ARROW_BYTES: Final = (1 << 31) - 1
_EXACT: Final = 1 << 53  # the integers up to this one are all exact as float64; further ones are not taken for floats

_FEW_VALUES: Final = 16  # strings; fewer are cut out one by one, which costs less than vector operations

DICTIONARY_ROWS: Final = 4_096
"""Values of a text column from which on it is dictionary-encoded, if it has few different ones."""
DICTIONARY_SAMPLE: Final = 1_024
"""Values tried first, and in the middle: if half of them differ, there is no dictionary."""
DICTIONARY_VALUES: Final = 1 << 15
"""Most different values of a dictionary."""
DICTIONARY_BYTES: Final = MB // 2
"""Most bytes of these, encoded, and four for each: a Parquet dictionary page ends at 1 MB."""


class Column(NamedTuple):
    """A decoded column. `odd` are the indices of the values that are null in `array` because they do not fit."""

    array: pa.Array
    odd: Ints


# From values to Arrow


def build(values: Values, type_: str | None) -> Column:
    """Convert the values to an array of this type; None gives the null type, in which every value is odd.

    At least DICTIONARY_ROWS texts with few different values come as a dictionary array.

    Integers fit f64 up to 2^53, floats fit no integer type; float32 is widened. NaN and infinities are floats. Only
    unsigned integers fit decimal. Only MessagePack timestamps of the years 1 to 9999 fit time, whose digits below µs
    are cut. Strings that are not valid UTF-8 fit nowhere.
    """
    column = _build(values, type_)
    if values.repeat is None:
        return column
    odd = np.flatnonzero(np.isin(values.repeat, column.odd)) if len(column.odd) else NONE
    return Column(take(column.array, pa.array(values.repeat)), odd)


def _build(values: Values, type_: str | None) -> Column:
    if type_ is None:
        return Column(pa.nulls(values.count), values.not_nil())
    if not any(class_ in _FITTING[type_] for class_ in values.present):
        return Column(pa.nulls(values.count, ARROW_TYPES[type_]), values.not_nil())
    if type_ == "str":
        return _build_text(values)
    if type_ == "bytes":
        wanted = _are_of(values, BINARIES)
        return Column(_contents(values, wanted), odd_rows(values, wanted))
    if type_ == "time":
        us, valid = timestamps(values)
        return Column(_fixed_array(type_, us, valid), odd_rows(values, valid))
    return _build_fixed(values, type_)


def _build_fixed(values: Values, type_: str) -> Column:
    dtype, convert = _FIXED[type_]
    if len(values.present) == 1:
        converted, fits = convert(values, values.present[0], None)
        if converted is None:
            filled, valid = np.zeros(values.count, dtype), np.zeros(values.count, np.bool_)
        else:
            filled = np.ascontiguousarray(converted, dtype)
            if fits is None:
                return Column(_fixed_array(type_, filled, None), NONE)
            valid = fits
    else:
        filled, valid = np.zeros(values.count, dtype), np.zeros(values.count, np.bool_)
        for class_ in values.present:
            rows = values.rows_of(class_)
            converted, fits = convert(values, class_, rows)
            if converted is not None and rows is not None:
                filled[rows] = converted
                valid[rows] = True if fits is None else fits
    return Column(_fixed_array(type_, filled, valid), odd_rows(values, valid))


_NO_BYTES: Final[Bytes] = np.zeros(0, np.uint8)

_Converted: TypeAlias = tuple[npt.NDArray[Any] | None, Mask | None]
_NO: Final[_Converted] = (None, None)


def _to_int64(values: Values, class_: int, rows: Ints | None) -> _Converted:
    """Convert the values of a class to int64, with a mask of those that fit (None: all); or nothing if none can fit."""
    if class_ not in INTEGERS:
        return _NO
    numbers = values.numbers(class_, rows)
    return numbers.astype(np.int64, copy=False), (_all_or(numbers <= MAX_INT64) if class_ == U64 else None)


def _to_uint64(values: Values, class_: int, rows: Ints | None) -> _Converted:
    if class_ not in INTEGERS:
        return _NO
    numbers = values.numbers(class_, rows)
    unsigned = U8 <= class_ <= U64
    return numbers.astype(np.uint64), (None if unsigned else _all_or(numbers >= 0))


def _to_float64(values: Values, class_: int, rows: Ints | None) -> _Converted:
    if class_ in FLOATS:
        return widened(values.numbers(class_, rows)), None
    if class_ not in INTEGERS:
        return _NO
    numbers = values.numbers(class_, rows)
    return numbers.astype(np.float64), (_all_or(_is_exact(numbers)) if class_ in (U64, I64) else None)


def _to_bool(values: Values, class_: int, rows: Ints | None) -> _Converted:
    if class_ != BOOL:
        return _NO
    return values.gather("u1", 0, rows) & 1, None


_FIXED: Final[dict[str, tuple[Any, Callable[[Values, int, Ints | None], _Converted]]]] = {
    "i64": (np.int64, _to_int64),
    "u64": (np.uint64, _to_uint64),
    "f64": (np.float64, _to_float64),
    "bool": (np.uint8, _to_bool),
    "decimal": (np.uint64, _to_uint64),
}


def _is_exact(integers: npt.NDArray[Any]) -> Mask:
    """Tell which 64-bit integers are within the range in which float64 holds all of them."""
    exact: Mask = integers <= _EXACT
    if integers.dtype == np.int64:
        exact &= integers >= -_EXACT
    return exact


def _all_or(mask: Mask) -> Mask | None:
    return None if mask.all() else mask


def _are_of(values: Values, classes: range) -> Mask:
    return (values.classes >= classes.start) & (values.classes < classes.stop)


def _fixed_array(type_: str, filled: npt.NDArray[Any], valid: Mask | None) -> pa.Array:
    data = filled
    if type_ == "bool":
        data = np.packbits(filled, bitorder="little")
    elif type_ == "decimal":  # 16 bytes each, the least significant ones first
        data = np.zeros((len(filled), 2), "<u8")
        data[:, 0] = filled
    return pa.Array.from_buffers(ARROW_TYPES[type_], len(filled), [_bitmap(valid), pa.py_buffer(data)])


def _bitmap(valid: Mask | None) -> pa.Buffer | None:
    return None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _build_text(values: Values) -> Column:
    wanted = None if set(values.present) <= set(STRINGS) else _are_of(values, STRINGS)
    if values.count >= DICTIONARY_ROWS and len(values.data) < _MAX_ARROW_BYTES:
        array = _dictionary(values, wanted)
        if array is not None:
            return Column(array, NONE if wanted is None else odd_rows(values, wanted))
    return _plain_text(values, wanted)


def _dictionary(values: Values, wanted: Mask | None) -> pa.DictionaryArray | None:
    """Encode the wanted strings as a dictionary. None if it would be too large, or some are no valid text.

    Compares encoded strings, headers and all, so that only different ones need to be decoded.
    """
    offsets = np.empty(values.count + 1, np.int32)
    offsets[:-1] = values.starts
    offsets[-1] = len(values.data)
    buffers = [_bitmap(wanted), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values.data))]
    elements = pa.Array.from_buffers(pa.binary(), values.count, buffers)
    for start in (0, values.count // 2):
        sample = elements.slice(start, DICTIONARY_SAMPLE).dictionary_encode()
        if len(sample.dictionary) > DICTIONARY_SAMPLE // 2:
            return None
    encoded = elements.dictionary_encode()
    different = encoded.dictionary
    if not 0 < len(different) <= DICTIONARY_VALUES or different.nbytes > DICTIONARY_BYTES:
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
    if values.ascii or (FIXINT not in values.present and _count_high(values.data) == values.count):
        # One high byte per value, and its header has one: the content is ASCII, and so valid.
        text = contents.view(pa.string())
    else:
        try:
            text = contents.cast(pa.string())
        except pa.ArrowInvalid:
            wanted = _are_texts(contents)
            text = _contents(values, wanted).cast(pa.string())
    return Column(text, NONE if wanted is None else odd_rows(values, wanted))


def _count_high(data: Bytes) -> int:
    """Count the bytes with their highest bit set; by parts, because the comparison makes a byte of each."""
    return sum(int(np.count_nonzero(data[at : at + COUNT_ROWS] >= 0x80)) for at in range(0, len(data), COUNT_ROWS))


def _are_texts(contents: pa.Array) -> Mask:
    """Tell which binary values are valid UTF-8: by parts that are cut into smaller ones where they are not."""
    valid = np.zeros(len(contents), np.bool_)
    parts = [(0, len(contents))]
    while parts:
        start, rows = parts.pop()
        part = contents.slice(start, rows)
        if rows <= _FEW_VALUES:
            valid[start : start + rows] = [_is_text(raw.as_py()) for raw in part]
            continue
        try:
            part.cast(pa.string())
        except pa.ArrowInvalid:
            size = -(-rows // _FEW_VALUES)
            parts += [(at, min(size, start + rows - at)) for at in range(start, start + rows, size)]
        else:
            valid[start : start + rows] = part.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _is_text(raw: bytes | None) -> bool:
    if raw is None:
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _contents(values: Values, wanted: Mask | None) -> pa.Array:
    """Cut the headers off strings or binary values: a binary array, null where a value is not `wanted`.

    Takes headers and contents for twice the number of values, and has Arrow gather every second one.
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
    """Return these rows of an array. They must exist: there is no check."""
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
