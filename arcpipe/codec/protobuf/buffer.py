"""The bytes of a body with room around them, so that words of eight bytes can be read at each place."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arcpipe.errors import BadPayload

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
Bytes: TypeAlias = npt.NDArray[np.uint8]

# Bytes on each side of the copy: more than any read goes beyond the end of a message.
ROOM: Final = 32
_INLINE_BYTES: Final = 12  # longest value that its view holds: https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout

LOW_BYTES: Final[Words] = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""Masks that keep the first bytes of a little-endian word, by the number of these bytes."""


class Buffer:
    """A copy of a body. Places count from the start of `text`; the body begins at `start` and ends at `end`."""

    __slots__ = ("_bytes", "_doubles", "body", "end", "start", "text", "words")

    def __init__(self, body: bytes | memoryview) -> None:
        self.body = body
        # By numpy, which lets other threads run meanwhile: a copy of 100 MB takes 30 ms.
        self.text: Bytes = np.zeros(len(body) + 2 * ROOM, np.uint8)
        self.text[ROOM : ROOM + len(body)] = np.frombuffer(body, np.uint8)
        self._bytes = self.text.data
        self.start = ROOM
        self.end = ROOM + len(body)
        size = (len(self.text) - 7,)
        self.words: Words = np.ndarray(size, "<u8", self._bytes, 0, (1,))
        """The eight bytes at every place, aligned or not."""
        self._doubles: npt.NDArray[np.float64] = np.ndarray(size, "<f8", self._bytes, 0, (1,))

    def offset(self, place: int) -> int:
        """Return the offset in the body of a place, for error texts."""
        return int(place) - ROOM

    def slice(self, start: int, end: int) -> bytes:
        """Copy the bytes between two places."""
        return bytes(self._bytes[start:end])

    def restore(self, start: int, end: int) -> None:
        """Undo what a caller wrote between two places."""
        start, end = max(start, self.start), min(end, self.end)
        self.text[start:end] = np.frombuffer(self.body, np.uint8)[start - ROOM : end - ROOM]

    def raw(self) -> memoryview:
        """Return all bytes, by their places."""
        return self._bytes

    def doubles(self, starts: Ints) -> npt.NDArray[np.float64]:
        """Read a little-endian double at each place, bit by bit."""
        values: npt.NDArray[np.float64] = self._doubles[starts]
        return values

    def fixed64(self, starts: Ints) -> Words:
        """Read eight bytes at each place as a little-endian integer."""
        return self.words[starts]

    def fixed32(self, starts: Ints) -> Ints:
        """Read four bytes at each place as a little-endian integer."""
        values: Ints = (self.words[starts] & LOW_BYTES[4]).astype(np.int64)
        return values

    def gather(self, starts: Ints, ends: Ints) -> pa.Array:
        """Gather the bytes of each span into an Arrow array of binary."""
        return self.views(starts, ends, pa.binary_view()).cast(pa.binary())

    def gather_texts(self, starts: Ints, ends: Ints, what: str) -> pa.Array:
        """Gather the spans into an Arrow array of strings.

        Args:
            what: they are, for the error text.

        Raises:
            BadPayload: one is not UTF-8.
        """
        if (starts == ends).all():
            return pa.array([""], pa.string()).take(pa.array(np.zeros(len(starts), np.int64)))
        try:
            return self.views(starts, ends, pa.binary_view()).cast(pa.string())
        except pa.ArrowInvalid:
            raise BadPayload(f"{what} is not UTF-8") from None

    def views(self, starts: Ints, ends: Ints, type_: Any) -> pa.Array:
        """Make an Arrow array of views of the spans, unchecked: no byte of a long one is copied.

        Args:
            type_: `pa.binary_view()` or `pa.string_view()`.
        """
        sizes = ends - starts
        views = np.empty((len(starts), 2), np.uint64)
        if len(sizes) and sizes.min() > _INLINE_BYTES:
            views[:, 0] = sizes
            views[:, 0] |= (self.words[starts] & LOW_BYTES[4]) << 32
            views[:, 1] = starts
            views[:, 1] <<= 32
        else:
            short = np.minimum(sizes, _INLINE_BYTES)
            views[:, 0] = sizes
            views[:, 0] |= (self.words[starts] & LOW_BYTES[np.minimum(short, 4)]) << 32
            views[:, 1] = self.words[starts + 4] & LOW_BYTES[np.maximum(short - 4, 0)]
            np.copyto(views[:, 1], starts.astype(np.uint64) << 32, where=sizes > _INLINE_BYTES)
        return pa.Array.from_buffers(type_, len(starts), [None, pa.py_buffer(views), pa.py_buffer(self._bytes)])
