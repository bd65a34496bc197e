"""Read keys, names and headers of a client's MessagePack, and say what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgpack

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

# Rows are decoded this many bytes at a time, because decoding may take 75 times the memory of what is decoded (a row of
# one-letter names and one-byte values), and holds up every other thread meanwhile, for 5 ms at most.
CHUNK_BYTES: Final = 128 << 10

# The skipper is fed so many bytes at first, then as many again as it had, up to a chunk at once.
_FEED_BYTES: Final = 1 << 14

# Bytes. No value of a row may have more, nor a string, binary value or extension within an array or map: such are
# copied, and while they are, no other thread runs.
MAX_VALUE_BYTES: Final = 16 << 20
# The first bytes of those that may have so many.
LONG_MARKERS: Final = b"\xc6\xc9\xdb"

# If so many bytes of a value are there, and not all, then it has one of those.
_CUT_BYTES: Final = 1 << 17

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


# Values, keys, and what to say of bad ones


class Skipper:
    """Finds where a MessagePack value ends, in C, at a cost that is linear in the bytes passed.

    Meant to go forward; going back is right, but costs `_FEED_BYTES` each time.
    """

    __slots__ = ("_at", "_check", "_fed", "_first", "_unpacker", "_view")

    def __init__(self, data: bytes, check: Callable[[], None]) -> None:
        self._check = check
        self._view = memoryview(data)
        self._unpacker: msgpack.Unpacker = None
        self._first = self._at = self._fed = 0  # offsets: where this unpacker began, stands, and has bytes up to

    def skip(self, pos: int) -> int:
        """The offset after the value at `pos`. Raises BadPayload with the offset if it is cut off or malformed."""
        if not self._at <= pos < self._fed:
            self._unpacker = msgpack.Unpacker(max_buffer_size=2**31 - 1)
            self._first = self._at = self._fed = pos
        unpacker = self._unpacker
        if pos > self._at:
            unpacker.read_bytes(pos - self._at)
        before = unpacker.tell()
        while True:
            try:
                unpacker.skip()
                end: int = pos + unpacker.tell() - before
                self._at = end
                return end
            except msgpack.OutOfData:
                if self._fed - self._first >= _CUT_BYTES:
                    self._check()
                    self._refuse_long(pos + unpacker.tell() - before)
                if self._fed >= len(self._view):
                    raise BadPayload(f"truncated MessagePack at byte {len(self._view)}") from None
            except msgpack.FormatError:
                raise BadPayload(f"invalid MessagePack at byte {pos + unpacker.tell() - before}") from None
            except msgpack.StackError:
                raise BadPayload(f"the value at byte {pos} is nested more than 1024 deep") from None
            more = self._view[self._fed :][: min(max(_FEED_BYTES, self._fed - self._first), CHUNK_BYTES)]
            try:
                unpacker.feed(more)
            except msgpack.BufferFull:
                raise BadPayload(f"the value at byte {pos} is longer than 2 GiB") from None
            self._fed += len(more)

    def _refuse_long(self, at: int) -> None:
        """Raise BadPayload if what the unpacker wants to have from `at` on in one piece is too long.

        It copies what it has of such a piece again and again.
        """
        if self._fed - at >= _CUT_BYTES and self._view[at - 5] in LONG_MARKERS:
            size = int.from_bytes(self._view[at - 4 : at], "big")
            if size > MAX_VALUE_BYTES:
                self._fed = self._at  # this unpacker stands within a value, and can begin with no other
                raise LongValue(at - 5, size)


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


class LongValue(BadPayload):
    def __init__(self, pos: int, size: int, where: str = "") -> None:
        super().__init__(f"the value at byte {pos} has {size} bytes, more than {MAX_VALUE_BYTES}{where}")


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
