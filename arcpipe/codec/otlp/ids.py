"""Trace and span ids as hexadecimal text, as all tools show them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from arcpipe.codec.protobuf.buffer import Buffer, Ints


def hex_texts(buffer: Buffer, starts: Ints, ends: Ints, size: int) -> pa.Array:
    """Make ids of `size` bytes, 8 or 16, text. One of another size is invalid, and empty as one that is missing."""
    right = np.flatnonzero(ends - starts == size)
    words = np.empty((len(right), size // 8), np.uint64)
    for word in range(size // 8):
        words[:, word] = buffer.words[starts[right] + 8 * word]
    lengths = np.zeros(len(starts) + 1, np.int32)
    lengths[right + 1] = 2 * size
    offsets = np.cumsum(lengths, dtype=np.int32)
    digits = words.astype("<u8", copy=False).tobytes().hex().encode("ascii")
    return pa.Array.from_buffers(pa.string(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(digits)])
