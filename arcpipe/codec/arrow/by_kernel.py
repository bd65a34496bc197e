"""Read a whole column by the native kernel: from encoded values to an Arrow array in one pass, where all is plain.

Plain are floats, integers below 2^63, and texts with the shortest headers, each with nil among them. `read_column`
returns None for anything else, and for all columns where the kernel is not installed: then `find.find_values` and
`arrays.build` do it. Both make equal arrays, so it makes no difference to a file which of them did.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from arcpipe import native
from arcpipe.codec.arrow.arrays import (
    ARROW_TYPES,
    DICTIONARY_BYTES,
    DICTIONARY_ROWS,
    DICTIONARY_SAMPLE,
    DICTIONARY_VALUES,
    take,
)
from arcpipe.codec.arrow.find import REPEAT_CHUNKS, REPEAT_ROWS, find_same, is_text_marker, is_uniform
from arcpipe.codec.arrow.values import Ints, Natural
from arcpipe.codec.entries import array_length

# The kinds of columns, as the kernel numbers them.
_ANY, _FLOATS, _INTEGERS, _TEXTS, _DICTIONARY = range(5)
_WANTED: Final[dict[str | None, int]] = {None: _ANY, "f64": _FLOATS, "i64": _INTEGERS, "str": _TEXTS}
_TYPES: Final[dict[int, Natural]] = {_FLOATS: "f64", _INTEGERS: "i64", _TEXTS: "str", _DICTIONARY: "str"}
# Those of Python: both make the same choice.
_DICTIONARIES: Final = (DICTIONARY_ROWS, DICTIONARY_SAMPLE, DICTIONARY_VALUES, DICTIONARY_BYTES)
_BOUNDS: Final = (*_DICTIONARIES, REPEAT_CHUNKS, REPEAT_ROWS)
_ALL_AT_ONCE: Final = (*_DICTIONARIES, sys.maxsize, sys.maxsize)  # chunks are not compared with one another

PLACE: Final = struct.Struct("=QQ")
"""Where an array begins and ends in its payload."""

Encoded: TypeAlias = tuple[tuple[Any, ...], tuple[bytes, ...] | None, int, Any]
"""Values of a column: (buffers, places, number, counts).

The buffers are whole arrays, or with `places` payloads in which the array is column `number`; with the number -1 they
are values without the header of an array. The counts are those of their values, in 32 bits each.
"""


class Plain(NamedTuple):
    """A column as an Arrow array; all of its values fit the type."""

    array: pa.Array
    type: Natural
    natural: Natural | None  # the type that the values have by themselves
    bounds: tuple[int, int] | None  # of integers: the least and the greatest

    @property
    def numbers(self) -> Ints:
        """Integers as they are, where none is nil."""
        numbers: Ints = np.frombuffer(self.array.buffers()[1], np.int64)
        return numbers


def read_column(pieces: tuple[Encoded, ...], wanted: str | None) -> Plain | None:
    """Read a column, which has some values. None if it is not plain, or there is no kernel.

    Args:
        wanted: the type; None takes that of the values.
    """
    if native.KERNEL is None or wanted not in _WANTED:
        return None
    read = native.KERNEL.read_column(pieces, _WANTED[wanted], _BOUNDS)
    if not read:
        return None if read is None else _read_repeated(native.KERNEL, pieces)
    return _plain(pieces, read)


def chunks_of(piece: Encoded) -> Iterator[memoryview]:
    """Yield the values in each buffer of a piece, without array headers."""
    buffers, places, number, _ = piece
    for at, buffer in enumerate(buffers):
        view = memoryview(buffer)
        if places is not None:
            start, end = PLACE.unpack_from(places[at], number * PLACE.size)
            view = view[start:end]
        yield view if number < 0 else view[array_length(view)[1] :]


def _read_repeated(kernel: ModuleType, pieces: tuple[Encoded, ...]) -> Plain | None:
    """Read texts of which many chunks may be alike: each kind of them once, as `find_values` does."""
    chunks = [chunk for piece in pieces for chunk in chunks_of(piece)]
    counts = np.concatenate([counts for *_, counts in pieces]).astype(np.int64)
    same = find_same(chunks) if len(chunks[0]) and is_text_marker(chunks[0][0]) else None
    if same is not None:
        distinct = np.frombuffer(b"".join([chunks[chunk] for chunk in same.kept]), np.uint8)
        count = int(counts[same.kept].sum())
        width, rest = divmod(len(distinct), count)
        if rest or (width > 1 and not is_uniform(distinct, width)):  # else `find_values` does not look for chunks
            one: tuple[Encoded, ...] = (((distinct,), None, -1, np.array([count], np.uint32)),)
            plain = _plain(one, kernel.read_column(one, _TEXTS, _ALL_AT_ONCE))
            return plain and plain._replace(array=take(plain.array, pa.array(same.rows(counts))))
    return _plain(pieces, kernel.read_column(pieces, _TEXTS, _ALL_AT_ONCE))


def _plain(pieces: tuple[Encoded, ...], read: Any) -> Plain | None:
    """Make an array of what the kernel has read."""
    if read is None:
        return None
    kind, values, valid, nils, more = read
    type_ = _TYPES[kind]
    count = sum(int(counts.sum()) for *_, counts in pieces)
    if count == nils:
        return None
    buffers = [pa.py_buffer(valid) if nils else None, pa.py_buffer(values)]
    natural: Natural | None = type_
    bounds = None
    if kind == _DICTIONARY:
        number, offsets, data = more
        words = pa.Array.from_buffers(pa.string(), number, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        indices = pa.Array.from_buffers(pa.int32(), count, buffers, nils)
        array = pa.DictionaryArray.from_arrays(indices, words, safe=False)
    elif kind == _TEXTS:
        array = pa.Array.from_buffers(pa.string(), count, [*buffers, pa.py_buffer(more)], nils)
    else:
        array = pa.Array.from_buffers(ARROW_TYPES[type_], count, buffers, nils)
        if kind == _INTEGERS:
            bounds = more
        elif not more:
            natural = None
    return Plain(array, type_, natural, bounds)
