"""Values of Arrow that Python's types do not hold: nanoseconds, years above 9999, zones that nobody knows.

`to_pylist` fails for the whole array because of one of them. Here such a value alone becomes text (or bytes, if it is
text that is not UTF-8), and all others are what `to_pylist` gives. It is slow, and for those arrays only.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What pyarrow raises for values that Python's types do not hold. KeyError: a zone that nobody knows.
UNHELD: Final = (ValueError, OverflowError, KeyError, pa.ArrowException)


def values_of(array: pa.Array) -> list[Any]:
    """Return the values of an array, whatever they are."""
    types = pa.types
    type_ = array.type
    if types.is_struct(type_):
        return _structs(array)
    if types.is_map(type_):
        return _maps(array)
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return _lists(array)
    return [_value_of(scalar) for scalar in array]


def _structs(array: pa.StructArray) -> list[Any]:
    names = [field.name for field in array.type]
    fields = [values_of(array.field(number)) for number in range(len(names))]
    rows = zip(*fields, strict=True) if fields else ((),) * len(array)
    has_twins = len(set(names)) < len(names)
    found: list[Any] = []
    for there, row in zip(array.is_valid().to_pylist(), rows, strict=True):
        pairs = zip(names, row, strict=True)
        found.append(None if not there else list(pairs) if has_twins else dict(pairs))
    return found


def _maps(array: pa.MapArray) -> list[Any]:
    offsets = array.offsets.to_pylist()
    first, size = offsets[0], offsets[-1] - offsets[0]
    pairs = list(zip(values_of(array.keys.slice(first, size)), values_of(array.items.slice(first, size)), strict=True))
    return [
        pairs[start - first : end - first] if there else None
        for there, start, end in zip(array.is_valid().to_pylist(), offsets, offsets[1:], strict=False)
    ]


def _lists(array: pa.ListArray) -> list[Any]:
    items = values_of(array.flatten())  # without those of lists that are null
    found: list[Any] = []
    start = 0
    for size in pc.list_value_length(array).to_pylist():
        found.append(None if size is None else items[start : start + size])
        start += size or 0
    return found


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UNHELD:
        return _told(scalar)


def _told(scalar: pa.Scalar) -> Any:
    """Return a value as text that says all of it: an instant with a zone in UTC."""
    types = pa.types
    type_ = scalar.type
    if types.is_timestamp(type_):
        zone = "+00:00" if type_.tz else ""
        return str(np.datetime64(scalar.value, type_.unit)).replace("T", " ") + zone
    if types.is_date(type_):
        is_days = types.is_date32(type_)
        return str(np.datetime64(scalar.value, "D" if is_days else "ms").astype("M8[D]"))
    if types.is_duration(type_):
        return str(np.timedelta64(scalar.value, type_.unit))
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return scalar.as_buffer().to_pybytes()
    return scalar.cast(pa.string()).as_py()  # times of day
