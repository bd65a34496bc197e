"""A file for pyarrow that is read in parts from anywhere: from a spool, from an object's end, from a store."""

from __future__ import annotations

import io
from collections.abc import Callable

Read = Callable[[int, int], bytes | memoryview]
"""Gives a part of the file: from an offset, at least one byte and at most a length. Both lie within the file."""


class PartsFile(io.RawIOBase):
    """A file of a size that is known, whose parts a function reads."""

    def __init__(self, size: int, read: Read) -> None:
        super().__init__()
        self._size = size
        self._read = read
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        if at < 0:  # a damaged footer asks for it
            raise ValueError(f"offset {at} is before the file")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes | memoryview:
        left = max(self._size - self._at, 0)
        length = left if size < 0 else min(size, left)
        data = self._read(self._at, length) if length else b""
        self._at += len(data)
        return data
