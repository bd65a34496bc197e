"""Snappy's block format: the size in front bounds the output before anything is allocated.

Reference: https://github.com/google/snappy/blob/main/format_description.txt
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from arcpipe.errors import BadPayload, PayloadTooLarge

# The largest factor that a block can grow by: 64 bytes from three, and some for its front.
_MOST_GROWTH: Final = 22
# The first bytes of the framing format, which begins as a block of 895 bytes does.
_STREAM: Final = b"\xff\x06\x00\x00sNaPpY"
_SIZE_BYTES: Final = 5  # of the varint in front, at most


def decoded_bytes(data: bytes | memoryview) -> int:
    """Return the size of a block's content as its front tells it. Raises BadPayload."""
    return _read_front(data)[0]


def decode_block(data: bytes | memoryview, max_bytes: int) -> bytes:
    """Decode a block.

    Raises:
        BadPayload: it is damaged, or no block.
        PayloadTooLarge: more than `max_bytes` would come out.
    """
    if bytes(data[: len(_STREAM)]) == _STREAM:
        raise BadPayload("the body is a snappy stream, and has to be one snappy block, without frames")
    size, front = _read_front(data)
    if size > max_bytes:
        raise PayloadTooLarge(f"the decoded body has more than {max_bytes} bytes")
    if size > _MOST_GROWTH * len(data):
        raise BadPayload(f"the body is no snappy block: {len(data)} bytes cannot become {size}")
    if not size:
        if len(data) > front:
            raise BadPayload("the body is no snappy block: there are bytes after its end")
        return b""
    try:
        decoded: bytes = pa.Codec("snappy").decompress(data, size, asbytes=True)
    except (OSError, pa.ArrowInvalid):
        raise BadPayload(
            f"the body is no snappy block, or a damaged one: {len(data)} bytes do not become the {size} that it tells"
        ) from None
    return decoded


def _read_front(data: bytes | memoryview) -> tuple[int, int]:
    """Return the size of the content, and the bytes that tell it."""
    size = 0
    for front, byte in enumerate(data[:_SIZE_BYTES], 1):
        size |= (byte & 0x7F) << 7 * (front - 1)
        if byte < 0x80:
            return size, front
    raise BadPayload("the body is no snappy block: it does not begin with a size")
