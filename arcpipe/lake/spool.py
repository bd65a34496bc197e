"""Keep the bytes of finished files until they are uploaded: in memory, or in an unlinked file once memory is short.

This module must not know Parquet or object stores.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from threading import Lock
from typing import BinaryIO

import pyarrow as pa

from arcpipe.storage import Blob, MemoryBlob
from arcpipe.units import MB


class SpoolMemory:
    """The bytes that all spools together may keep in memory, and the directory for the rest."""

    def __init__(
        self, directory: str | os.PathLike[str], total_bytes: int = 64 * MB, each_bytes: int = 16 * MB
    ) -> None:
        self.directory = directory
        self.each_bytes = each_bytes
        self._left = total_bytes
        self._lock = Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._left += size


class Spool:
    """Bytes that are written once, in order, and then read anywhere by several threads (a storage Blob).

    They move from memory to an unlinked file when they exceed the bounds of `SpoolMemory`. Raises OSError when that
    file cannot be made or written.
    """

    def __init__(self, memory: SpoolMemory) -> None:
        self._memory = memory
        self._pieces: list[bytes] = []
        self._file: BinaryIO | None = None
        self.size = 0
        self.closed = False

    def write(self, data: bytes | memoryview | pa.Buffer) -> int:
        size = memoryview(data).nbytes
        if self.closed:  # an aborted writer ends its file
            return size
        if self._file is None and (self.size + size > self._memory.each_bytes or not self._memory.take(size)):
            self._move_to_file()
        if self._file is None:
            self._pieces.append(bytes(data))  # no copy, if it is bytes
        else:
            self._file.write(data)
        self.size += size
        return size

    def _move_to_file(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self._memory.directory)  # noqa: SIM115 (closed by close)
        pieces, self._pieces = self._pieces, []
        self._memory.give_back(self.size)
        self._file.writelines(pieces)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        else:
            self._pieces = [b"".join(self._pieces)]

    def read_at(self, offset: int, length: int) -> bytes | memoryview:
        """Read `length` bytes from `offset` on, fewer at the end. Only once everything is written and flushed."""
        if self._file is None:
            return memoryview(self._pieces[0])[offset : offset + length]
        pieces = []
        while length > 0 and (piece := os.pread(self._file.fileno(), length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def blob(self) -> Blob:
        """Return the bytes for a store, which puts those in memory without a thread. Only once they are flushed."""
        return self if self._file is not None else MemoryBlob(self._pieces[0])

    def close(self) -> None:
        """Release the bytes. Closing twice is fine, and it never fails."""
        if not self.closed:
            self.closed = True
            self._pieces = []
            if self._file is None:
                self._memory.give_back(self.size)
                return
            with contextlib.suppress(OSError):  # on a full disk it tries once more to write what nobody wants
                self._file.close()
