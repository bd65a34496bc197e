"""JSON texts by Arrow kernels: strings are escaped, and objects joined, a column at a time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_FIRST_PRINTABLE: Final = 0x20
_SHORT: Final = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", _QUOTE: '\\"', _BACKSLASH: "\\\\"}


def bytes_of(texts: pa.Array) -> npt.NDArray[np.uint8]:
    """Return the bytes of all strings, one after the other."""
    data = texts.buffers()[2]
    if not len(texts) or data is None:
        return np.zeros(0, np.uint8)
    ends = offsets_of(texts)
    return np.frombuffer(data, np.uint8)[int(ends[0]) : int(ends[-1])]


def offsets_of(texts: pa.Array) -> npt.NDArray[np.int32]:
    """Return where each string begins in the bytes, and where the last one ends."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def is_bare(data: npt.NDArray[np.uint8], quotes: int) -> bool:
    """Tell whether no name and no value in these bytes of JSON needs an escape.

    Args:
        data: names and values as they came, in quotes.
        quotes: the number of quotes around them; each further one needs an escape.
    """
    if not len(data):
        return True
    if data.min() < _FIRST_PRINTABLE or np.count_nonzero(data == _QUOTE) != quotes:
        return False
    return not (data == _BACKSLASH).any()


def escaped(texts: pa.Array) -> pa.Array:
    """Escape what may not stand in a JSON string; most columns have nothing of the kind."""
    data = bytes_of(texts)
    odd = (data < _FIRST_PRINTABLE) | (data == _QUOTE) | (data == _BACKSLASH)
    if not odd.any():
        return texts
    found = np.unique(data[odd]).tolist()
    if _BACKSLASH in found:  # first: what follows brings more of them
        found.remove(_BACKSLASH)
        found.insert(0, _BACKSLASH)
    for byte in found:
        texts = pc.replace_substring(texts, chr(byte), _SHORT.get(byte, f"\\u{byte:04x}"))
    return texts


def quoted(texts: pa.Array) -> pa.Array:
    """Make each string a JSON string; null stays null."""
    return pc.binary_join_element_wise('"', escaped(texts), '"', "")


def objects(
    keys: pa.Array, values: pa.Array, counts: npt.NDArray[np.int64], colon: str = ":", comma: str = ","
) -> pa.Array:
    """Join members into JSON objects.

    Args:
        keys, values: JSON texts of all members, object after object.
        counts: members of each object.
        colon, comma: what stands between key and value, and between members.
    """
    return _enclosed("{", pc.binary_join_element_wise(keys, values, colon), counts, "}", comma)


def arrays(values: pa.Array, counts: npt.NDArray[np.int64]) -> pa.Array:
    """Join JSON texts into JSON arrays."""
    return _enclosed("[", values, counts, "]")


def _enclosed(before: str, members: pa.Array, counts: npt.NDArray[np.int64], after: str, comma: str = ",") -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), members)
    return pc.binary_join_element_wise(before, pc.binary_join(lists, comma), after, "")


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Make integers JSON texts."""
    return pa.array(values).cast(pa.string())


def doubles(values: npt.NDArray[np.float64]) -> pa.Array:
    """Make doubles JSON texts with all their digits; NaN and infinities, which JSON does not have, are strings.

    A whole number gets `.0`: readers then know that it is a double, and keep the sign of zero.
    """
    texts = pa.array(values).cast(pa.string())
    with np.errstate(invalid="ignore"):  # of NaN with a payload that signals
        whole = np.isfinite(values) & (values == np.trunc(values))
    if whole.any():
        bare = pc.and_(pa.array(whole), pc.invert(pc.match_substring_regex(texts, "[.eE]")))
        texts = pc.if_else(bare, pc.binary_join_element_wise(texts, ".0", ""), texts)
    odd = ~np.isfinite(values)
    if odd.any():
        names = np.where(np.isnan(values), '"NaN"', np.where(values > 0, '"Infinity"', '"-Infinity"'))
        texts = pc.if_else(pa.array(odd), pa.array(names.astype(object), pa.string()), texts)
    return texts
