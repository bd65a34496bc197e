"""Many messages, divided into pieces whose columns stay in the cache, and whose steps take milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.scan import Spans
from arcpipe.errors import BadPayload
from arcpipe.units import MB

# Of a piece, about.
_PIECE_BYTES: Final = MB
_PIECE_MESSAGES: Final = 16_384
MAX_MESSAGE_BYTES: Final = 8 * MB
"""Bytes of one message, which cannot be divided."""


def pieces(buffer: Buffer, spans: Spans) -> Iterator[Spans]:
    """Divide messages into pieces, each with one message at least.

    Raises:
        BadPayload: a message is too large.
    """
    sizes = spans.end - spans.start
    if len(sizes) and int(sizes.max()) > MAX_MESSAGE_BYTES:
        place = buffer.offset(int(spans.start[int(sizes.argmax())]))
        raise BadPayload(f"the message at byte {place} has more than {MAX_MESSAGE_BYTES} bytes: send it in parts")
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + _PIECE_BYTES, side="right"))
        end = max(min(end, start + _PIECE_MESSAGES), start + 1)
        yield Spans(spans.owner[start:end], spans.start[start:end], spans.end[start:end])
        start = end
