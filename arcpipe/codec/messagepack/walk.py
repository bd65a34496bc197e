"""Walk over MessagePack values: find where each ends."""

from __future__ import annotations

from collections import deque
from itertools import repeat, starmap
from typing import Final

import msgpack

from arcpipe.codec.messagepack.layout import ARRAY, EXTENSION, INVALID, LAYOUT, MAP
from arcpipe.errors import BadPayload

# A `Walker` reads so much at once, and has at most so much of one value.
_READ_BYTES: Final = 1 << 18
_MAX_BUFFER: Final = (1 << 31) - 1
_LONG_MARKERS: Final = (0xC5, 0xC6, 0xDA, 0xDB)  # binary and text with a length of two or four bytes


def value_end(data: bytes | memoryview, pos: int) -> int:
    """The offset behind the value at `pos`, however deep it is nested. Raises BadPayload if it is not whole."""
    end, open_values = pos, 1
    size = len(data)
    while open_values:
        if end >= size:
            raise BadPayload(f"value at byte {pos} is cut off")
        kind, width, count = LAYOUT[data[end]]
        if width:
            count = int.from_bytes(data[end + 1 : end + 1 + width], "big")
        end += 1 + width
        open_values -= 1
        if kind == ARRAY:
            open_values += count
        elif kind == MAP:
            open_values += 2 * count
        elif kind != INVALID:
            end += count + (kind == EXTENSION and width > 0)  # an extension's code is not counted by its length
        else:
            raise BadPayload(f"byte 0xc1 at {end - 1} is no MessagePack")
    if end > size:
        raise BadPayload(f"value at byte {pos} is cut off")
    return end


class Walker:
    """Walks over the values that stand one behind the other in `data`, in little memory however many there are."""

    def __init__(self, data: bytes | memoryview, offset: int = 0) -> None:
        self._data = memoryview(data)
        self.offset = offset
        """Where the next value begins."""
        self._begin()

    def _begin(self) -> None:
        self._start = self._read = self.offset
        self._skip = msgpack.Unpacker(self, read_size=_READ_BYTES, max_buffer_size=_MAX_BUFFER)

    def read(self, size: int) -> bytes:
        """For the Unpacker, which takes this for a file."""
        start, self._read = self._read, self._read + size
        return bytes(self._data[start : self._read])

    def skip(self, count: int) -> None:
        """Go on behind the next `count` values. Raises BadPayload if there are not so many."""
        before = self.offset
        try:
            if count == 1 and self._data[before] in _LONG_MARKERS:  # no need to read what is skipped
                self.offset = value_end(self._data, before)
                self._begin()
                return
            deque(starmap(self._skip.skip, repeat((), count)), maxlen=0)
            self.offset = self._start + self._skip.tell()
        except (msgpack.UnpackException, ValueError, IndexError):  # nested too deep for it, or not whole
            for _ in range(count):
                self.offset = value_end(self._data, self.offset)
            self._begin()
