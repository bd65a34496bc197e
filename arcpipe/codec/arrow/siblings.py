"""Values that do not fit their column's type -> one array for each type that they have. All of it is vectorised.

This module must not know names or tables.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.arrow.arrays import build, take
from arcpipe.codec.arrow.values import (
    BINARIES,
    BOOL,
    EXTENSIONS,
    FLOATS,
    INTEGERS,
    STRINGS,
    Ints,
    Natural,
    Values,
)
from arcpipe.errors import BadPayload

# The types of siblings, in the order in which values are tried: classes, and the type of `arrays.build`.
_TYPES: Final[tuple[tuple[Natural, range, str], ...]] = (
    ("i64", INTEGERS, "i64"),
    ("u64", INTEGERS, "decimal"),  # what is above i64
    ("f64", FLOATS, "f64"),
    ("bool", range(BOOL, BOOL + 1), "bool"),
    ("str", STRINGS, "str"),
    ("bytes", BINARIES, "bytes"),
    ("time", EXTENSIONS, "time"),
)

_MAX_ARROW_BYTES: Final = (1 << 31) - 1


class Part(NamedTuple):
    """The values of one type among those of a column."""

    type: Natural
    array: pa.Array
    indices: Ints  # of the values, ascending

    def spread(self, count: int) -> pa.Array:
        """Return the values in their places among `count`, and nulls in all others."""
        if len(self.indices) == count:
            return self.array
        places = np.zeros(count, np.int32)
        places[self.indices] = np.arange(len(self.indices), dtype=np.int32)
        absent = np.ones(count, np.bool_)
        absent[self.indices] = False
        return take(self.array, pa.array(places, mask=absent))


def split(values: Values, odd: Ints, type_: Natural) -> tuple[list[Part], Ints]:
    """Sort the `odd` values of a column of this type by theirs.

    Returns:
        The types that there are, and the indices of values that have none: nested ones, text that is not valid UTF-8,
        extensions that are no timestamps.
    """
    parts: list[Part] = []
    classes = values.classes if values.repeat is None else values.classes[values.repeat]
    classes = classes[odd]
    left = np.ones(len(odd), np.bool_)
    for word, of_word, built_as in _TYPES:
        if (word == type_ and word != "u64") or not any(class_ in of_word for class_ in values.present):
            continue
        tried = np.flatnonzero(left & (classes >= of_word.start) & (classes < of_word.stop))
        if not len(tried):
            continue
        array, unfit = build(_select(values, odd[tried]), built_as)
        if len(unfit):
            fits = np.ones(len(tried), np.bool_)
            fits[unfit] = False
            if not fits.any():
                continue
            tried = tried[fits]
            array = take(array, pa.array(np.flatnonzero(fits).astype(np.int32)))
        left[tried] = False
        parts.append(Part(word, array, odd[tried]))
    return parts, odd[left]


def nan_rows(values: Values) -> Ints:
    """Return the indices of the values that are NaN."""
    found = [np.zeros(0, np.int64)]
    for class_ in values.present:
        if class_ in FLOATS:
            rows = values.rows_of(class_)
            nan = np.flatnonzero(np.isnan(values.numbers(class_, rows)))
            found.append(nan if rows is None else rows[nan])
    return np.concatenate(found)


def _select(values: Values, rows: Ints) -> Values:
    """Copy the values of these rows together, unless they are all."""
    if values.repeat is None and len(rows) == values.count:
        return values
    if values.repeat is not None:
        rows = values.repeat[rows].astype(np.int64)
    if len(values.data) > _MAX_ARROW_BYTES:
        raise BadPayload(f"column of {len(values.data)} bytes is more than one Arrow array can hold")
    offsets = np.empty(values.count + 1, np.int32)
    offsets[:-1] = values.starts
    offsets[-1] = len(values.data)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values.data))]
    chosen = take(pa.Array.from_buffers(pa.binary(), values.count, buffers), pa.array(rows))
    _, chosen_offsets, data = chosen.buffers()
    starts = np.frombuffer(chosen_offsets, np.int32, len(rows) + 1).astype(np.int64)
    return Values(
        np.frombuffer(data, np.uint8)[: starts[-1]],
        len(rows),
        starts[:-1],
        classes=values.classes[rows],
        ascii_only=values.ascii,
    )
