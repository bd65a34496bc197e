"""Columns of Arrow and numpy as MessagePack arrays, a column at a time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import array_header, pack_str
from arcpipe.codec.effort import Growth
from arcpipe.codec.json_texts import bytes_of, offsets_of
from arcpipe.units import KB, MB

_NIL: Final = 0xC0
_PACKED_NIL: Final = bytes([_NIL])
_EMPTY_TEXT: Final = b"\xa0"
# Rows for each value from which on the values are packed once, and their bytes repeated.
_REPEATS: Final = 8
# Texts up to which each is packed by itself: the calls for a column of more cost as much as 32 of them.
_FEW: Final = 32
_FEW_BYTES: Final = 16 * KB
_COPIED_BYTES: Final = MB  # in one call, which takes less than a millisecond
# The longest text with a header of so many bytes, and the marker of that header.
_HEADERS: Final = ((1, 31, 0xA0), (2, 0xFF, 0xD9), (3, 0xFFFF, 0xDA), (5, 0xFFFF_FFFF, 0xDB))


def pack_texts(texts: pa.Array) -> bytes:
    """Pack strings as a MessagePack array; null becomes nil. Many have headers of one width, that of the longest."""
    count = len(texts)
    if count <= _FEW and texts.nbytes <= _FEW_BYTES:
        return array_header(count) + b"".join(
            [_PACKED_NIL if text is None else pack_str(text) for text in texts.to_pylist()]
        )
    if texts.null_count == count:
        return array_header(count) + bytes([_NIL]) * count
    missing = texts.is_null().to_numpy(zero_copy_only=False) if texts.null_count else None
    if missing is not None:
        texts = texts.fill_null("")
    sizes = np.diff(offsets_of(texts))
    longest = int(sizes.max())
    if not longest and missing is None:
        return array_header(count) + _EMPTY_TEXT * count
    width, marker = next((width, marker) for width, most, marker in _HEADERS if longest <= most)
    headers = np.empty((count, width), np.uint8)
    if width == 1:
        headers[:, 0] = sizes | marker
    else:
        headers[:, 0] = marker
        for at in range(1, width):
            headers[:, at] = sizes >> 8 * (width - 1 - at) & 0xFF
    ends = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    flat: npt.NDArray[np.uint8] = headers.ravel()
    if missing is not None:
        headers[missing, 0] = _NIL
        keep = np.ones((count, width), np.bool_)
        keep[missing, 1:] = False
        flat = headers[keep]
        ends[1:] = np.cumsum(keep.sum(axis=1))
    front = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(ends), pa.py_buffer(flat)])
    return _joined(array_header(count), bytes_of(pc.binary_join_element_wise(front, texts.cast(pa.binary()), b"")))


def _joined(header: bytes, data: npt.NDArray[np.uint8]) -> bytes:
    """Join header and data. A large copy is made of parts, because others wait for the interpreter meanwhile."""
    if len(data) <= _COPIED_BYTES:
        return header + data.tobytes()
    parts = [data[at : at + _COPIED_BYTES].tobytes() for at in range(0, len(data), _COPIED_BYTES)]
    return b"".join((header, *parts))  # of `bytes` only, this lets others run


def taken(texts: pa.Array, rows: npt.NDArray[np.int64], growth: Growth) -> pa.Array:
    """Take the values at these indices. Raises PayloadTooLarge as `Growth` does."""
    growth.add(bytes_of_taken(texts, rows))
    return texts.take(pa.array(rows))


def bytes_of_taken(texts: pa.Array, rows: npt.NDArray[np.int64]) -> int:
    """Count the bytes of the values at these indices."""
    if len(texts) == 1:
        return len(rows) * int(np.diff(offsets_of(texts))[0])
    return int(np.diff(offsets_of(texts)).astype(np.int64)[rows].sum())


def pack_taken(texts: pa.Array, rows: npt.NDArray[np.int64]) -> bytes:
    """Pack the values of `texts` at these indices as a MessagePack array; few values for many rows cost little."""
    if not len(rows) or len(texts) * _REPEATS > len(rows):
        return pack_texts(texts.take(pa.array(rows)))
    packed = [_PACKED_NIL if text is None else pack_str(text) for text in texts.to_pylist()]
    first = int(rows[0])
    if len(packed) == 1 or (rows == first).all():
        return array_header(len(rows)) + packed[first] * len(rows)
    return array_header(len(rows)) + bytes_of(pa.array(packed, pa.binary()).take(pa.array(rows))).tobytes()


def pack_wide(
    marker: int | npt.NDArray[np.uint8], values: npt.NDArray[Any], missing: npt.NDArray[np.bool_] | None = None
) -> bytes:
    """Pack numbers of eight bytes as a MessagePack array.

    Args:
        marker: of all of them, or of each.
        missing: which are nil.
    """
    packed = np.empty(len(values), [("marker", "u1"), ("value", ">u8")])
    packed["marker"] = marker
    packed["value"] = values.view(np.uint64)
    if missing is None or not missing.any():
        return array_header(len(values)) + packed.tobytes()
    packed["marker"][missing] = _NIL
    keep = np.ones((len(values), 9), np.bool_)
    keep[missing, 1:] = False
    return array_header(len(values)) + packed.view(np.uint8).reshape(-1, 9)[keep].tobytes()


FLOAT: Final = 0xCB
SIGNED: Final = 0xD3
UNSIGNED: Final = 0xCF
