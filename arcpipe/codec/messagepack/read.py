"""Read keys, names and headers of a client's MessagePack, and say what is wrong with them."""

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

# Bytes of a key or name that are read: more than any of those that are taken has, and enough to show.
SHOWN_BYTES: Final = 320

# Bytes of a short string, header and all, by its first byte; 0 for anything else.
SHORT: Final = tuple(size if kind == STRING else 0 for kind, size in zip(KIND, SIZE, strict=True))


def read_measurement(data: bytes, pos: int) -> int:
    """Check the measurement at `pos`: the offset after it."""
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


# Keys, and what to say of bad ones


def read_length(data: bytes, pos: int) -> tuple[int, int]:
    """What the header of the array or map at `pos` declares, and the offset after it."""
    marker = data[pos]
    if marker < 0xA0:
        return marker & 15, pos + 1
    if marker in (0xDC, 0xDE):
        return data[pos + 1] << 8 | data[pos + 2], pos + 3
    end = pos + 5
    data[end - 1]  # a slice would be shorter without a word
    return int.from_bytes(data[pos + 1 : end], "big"), end


def find_string(data: bytes, pos: int, what: str) -> tuple[int, int]:
    """Where the bytes of the string at `pos` begin and end; the end may lie beyond that of `data`."""
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
    """The first bytes of the map key at `pos`, and the offset after it; the next read finds a key that is cut off."""
    start, end = find_string(data, pos, f"the key at byte {pos}")
    return data[start : min(end, start + SHOWN_BYTES)], end


def text_of(what: str, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BadPayload(f"{what} {quote(name)} is not valid UTF-8") from None


def kind_of(data: bytes, pos: int) -> str:
    return KIND_NAMES[KIND[data[pos]]]


def bad_key(data: bytes, pos: int, key: bytes, end: int, known: tuple[bytes, ...], where: str) -> BadPayload:
    if end > len(data):
        return truncated_at_end(data)
    if key in known:
        return BadPayload(f"key {quote(key)} is there twice, again at byte {pos}")
    return BadPayload(f"unknown key {quote(key)} in {where} at byte {pos}")


def long_name(data: bytes, what: str, pos: int) -> BadPayload:
    """What to say of the string at `pos`, which is the name of something, which is too long."""
    start, end = find_string(data, pos, what)
    if end > len(data):
        return truncated_at_end(data)
    return BadPayload(
        f"{what} {quote(data[start : start + SHOWN_BYTES])} has {end - start} bytes, more than {MAX_NAME_BYTES}"
    )


def bad_end(data: bytes, end: int) -> BadPayload:
    if end > len(data):
        return truncated_at_end(data)
    return BadPayload(f"trailing bytes after the MessagePack value at byte {end}")


def truncated_at_end(data: bytes) -> BadPayload:
    return BadPayload(f"truncated MessagePack at byte {len(data)}")
