"""Read keys, names and headers of a client's MessagePack, and make the errors of bad ones."""

from __future__ import annotations

from typing import Final

from arcpipe.codec.columns import (
    MAX_NAME_BYTES,
    check_measurement,
    quote,
)
from arcpipe.codec.messagepack.layout import (
    KIND,
    KIND_NAMES,
    SIZE,
    STRING,
)
from arcpipe.errors import BadPayload

# Bytes of a key or name that are read: more than any allowed one has, and enough to show.
SHOWN_BYTES: Final = 320

# Bytes of a short string, header and all, by its first byte; 0 for anything else.
SHORT: Final = tuple(size if kind == STRING else 0 for kind, size in zip(KIND, SIZE, strict=True))


def read_measurement(data: bytes, pos: int) -> int:
    """Check the measurement at `pos`. Returns the offset after it."""
    short = SHORT[data[pos]]
    start, end = (pos + 1, pos + short) if short else find_string(data, pos, "measurement 'm'")
    if end - start > MAX_NAME_BYTES:
        raise long_name(data, "measurement", pos)
    name = data[start:end]
    if not name or not name.isascii() or not name.decode("ascii").isprintable():
        if end > len(data):
            raise truncated_at_end(data)
        check_measurement(text_of("measurement", name))
    return end


# Keys, and the errors of bad ones


def read_length(data: bytes, pos: int) -> tuple[int, int]:
    """Read the header of the array or map at `pos`: (declared length, offset after the header)."""
    marker = data[pos]
    if marker < 0xA0:
        return marker & 15, pos + 1
    if marker in (0xDC, 0xDE):
        return data[pos + 1] << 8 | data[pos + 2], pos + 3
    end = pos + 5
    data[end - 1]  # raises IndexError, where a slice would only be shorter
    return int.from_bytes(data[pos + 1 : end], "big"), end


def find_string(data: bytes, pos: int, what: str) -> tuple[int, int]:
    """Find the bytes of the string at `pos`: (start, end). The end may lie after that of `data`."""
    marker = data[pos]
    if 0xA0 <= marker <= 0xBF:
        start = pos + 1
        return start, start + (marker & 31)
    if not 0xD9 <= marker <= 0xDB:
        raise BadPayload(f"{what} is not a string but {kind_of(data, pos)}")
    start = pos + 1 + (1 << (marker - 0xD9))
    data[start - 1]
    return start, start + int.from_bytes(data[pos + 1 : start], "big")


def read_key(data: bytes, pos: int) -> tuple[bytes, int]:
    """Read the map key at `pos`: (its first bytes, offset after it). The next read finds a key that is cut off."""
    start, end = find_string(data, pos, f"the key at byte {pos}")
    return data[start : min(end, start + SHOWN_BYTES)], end


def text_of(what: str, name: bytes) -> str:
    """Decode a name. Raises BadPayload, with `what` it is, if it is not valid UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{what} {quote(name)} is not valid UTF-8") from None


def kind_of(data: bytes, pos: int) -> str:
    """Name the kind of the value at `pos`, for an error text."""
    return KIND_NAMES[KIND[data[pos]]]


def bad_key(data: bytes, pos: int, key: bytes, end: int, known: tuple[bytes, ...], where: str) -> BadPayload:
    """Make the error of the key at `pos`, which is unknown, or there twice."""
    if end > len(data):
        return truncated_at_end(data)
    if key in known:
        return BadPayload(f"key {quote(key)} is there twice, again at byte {pos}")
    return BadPayload(f"unknown key {quote(key)} in {where} at byte {pos}")


def long_name(data: bytes, what: str, pos: int) -> BadPayload:
    """Make the error of the name at `pos`, which is too long."""
    start, end = find_string(data, pos, what)
    if end > len(data):
        return truncated_at_end(data)
    return BadPayload(
        f"{what} {quote(data[start : start + SHOWN_BYTES])} has {end - start} bytes, more than {MAX_NAME_BYTES}"
    )


def bad_end(data: bytes, end: int) -> BadPayload:
    """Make the error of a value that ends at `end` instead of the end of the body."""
    if end > len(data):
        return truncated_at_end(data)
    return BadPayload(f"trailing bytes after the MessagePack value at byte {end}")


def truncated_at_end(data: bytes) -> BadPayload:
    """Make the error of a body that ends too early."""
    return BadPayload(f"truncated MessagePack at byte {len(data)}")
