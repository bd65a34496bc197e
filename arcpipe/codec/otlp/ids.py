"""Trace and span ids as hexadecimal text, as all tools show them."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from arcpipe.codec.protobuf.buffer import Buffer, Ints

_DIGITS: Final = np.array([list(f"{byte:02x}".encode()) for byte in range(256)], np.uint8)


def hex_texts(buffer: Buffer, starts: Ints, ends: Ints, size: int) -> pa.Array:
    """Make ids of `size` bytes text. One of another size is invalid, and empty as one that is missing."""
    right = np.flatnonzero(ends - starts == size)
    places = starts[right, None] + np.arange(size)
    digits = _DIGITS[buffer.text[places]].tobytes()
    lengths = np.zeros(len(starts) + 1, np.int32)
    lengths[right + 1] = 2 * size
    offsets = np.cumsum(lengths, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(digits)])
