"""Read bytes anywhere in one segment file, through one window.

- A failed read raises, and so does a file that became shorter since it was opened. Neither is taken for zeros or for
  the end of the file.
- Only a salvaging reader reads around bad blocks, and `skipped` tells it where.
- The file is never mapped: a bad sector is an error here, instead of a signal.
- Memory: one window, or one entry if that is larger.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from arcpipe.codec.envelope import ENVELOPE_REACH
from arcpipe.disk import Disk
from arcpipe.units import KB, MB
from arcpipe.wal.format import (
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    MAX_PAYLOAD_BYTES,
    crc32,
    envelopes_before,
    identity_offset,
    identity_pattern,
)

WINDOW_BYTES: Final = 8 * MB
# Bytes that a device reads at once. After an error this is the read-ahead, and the piece that salvage leaves out.
_BLOCK_BYTES: Final = 4096
# Bytes per read when reading gently: a quarter of a millisecond for a disk that reads 1 GB/s.
_PIECE_BYTES: Final = 256 * KB
# Bytes. The first read of a search; each further read doubles, because the next entry is mostly near.
_FIRST_SEARCH_BYTES: Final = 64 * KB
# A search ends after checksumming this many times the file's size. Only bytes made to look like entries need more.
_SEARCH_EFFORT: Final = 64


class Header(NamedTuple):
    """The offset of an intact entry, and the content of its header."""

    offset: int
    length: int  # of the payload
    timestamp: int  # µs since the epoch

    @property
    def payload(self) -> int:
        """Return the offset of the payload."""
        return self.offset + ENTRY_HEADER_SIZE

    @property
    def end(self) -> int:
        """Return the offset after the entry."""
        return self.offset + ENTRY_HEADER_SIZE + self.length


class Skipped(NamedTuple):
    """Bytes that could not be read and were left out."""

    offset: int
    length: int
    reason: str


class SearchEffort:
    """A bound on the bytes that a search may checksum."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = _SEARCH_EFFORT * size

    @property
    def is_spent(self) -> bool:
        return self.left < 0


class SegmentSource:
    """A file that is open for reading. `window` holds the bytes from offset `start` on that were read last."""

    def __init__(
        self,
        path: str,
        disk: Disk,
        *,
        window_bytes: int = 0,
        gently: bool = False,
        around_bad_blocks: bool = False,
    ) -> None:
        """Open a file.

        Args:
            window_bytes: bytes per read; 0 means WINDOW_BYTES.
            gently: read in small pieces and nothing ahead, so that no sync of a writer waits long for a read.
            around_bad_blocks: return zeros for unreadable blocks, and note them in `skipped`.

        Raises:
            OSError: the file cannot be opened.
        """
        self._fd = -1
        self._disk = disk
        self._fd = disk.open_for_reading(path)
        self._gently = gently
        self._around_bad_blocks = around_bad_blocks
        self._window_bytes = window_bytes or WINDOW_BYTES
        self._skipped: dict[int, Skipped] = {}  # by offset
        if gently:
            disk.read_nothing_ahead(self._fd)
        self.path = path
        status = disk.status(self._fd)
        self.size = status.st_size
        self._modified_us = status.st_mtime_ns // 1000
        self.start = 0
        self.window = memoryview(b"")

    def __del__(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)

    @property
    def skipped(self) -> list[Skipped]:
        """List the unreadable ranges in order; neighbours with the same reason are joined."""
        merged: list[Skipped] = []
        for skipped in sorted(self._skipped.values()):
            last = merged[-1] if merged else skipped
            if last.offset + last.length == skipped.offset and last.reason == skipped.reason:
                skipped = Skipped(last.offset, merged.pop().length + skipped.length, skipped.reason)
            merged.append(skipped)
        return merged

    def newest(self, border: int) -> int:
        """Return the latest plausible timestamp (µs): the clock, or its time when the file was written if later."""
        return max(time.time_ns() // 1000, self._modified_us, border)

    def read(self, offset: int, length: int) -> memoryview:
        """Read `length` bytes at `offset`; fewer only at the end of the file.

        Raises:
            OSError: they cannot be read.
        """
        begin = offset - self.start
        if begin < 0 or begin + length > len(self.window):
            self._load(offset, min(length, self.size - offset))
            begin = 0
        return self.window[begin : begin + length]

    def crc32(self, offset: int, length: int) -> int:
        """Compute the CRC32 of a range. A false length costs time, but no more memory than a window."""
        crc = 0
        end = offset + length
        while offset < end:
            part = self.read(offset, min(WINDOW_BYTES, end - offset))
            crc = crc32(part, crc)
            offset += len(part)
        return crc

    def intact_at(self, offset: int, effort: SearchEffort) -> Header | None:
        """Return the header of the intact entry at an offset; None without one, or if the effort is spent."""
        if not 0 <= offset <= self.size - ENTRY_HEADER_SIZE or effort.is_spent:
            return None
        length, timestamp, crc = ENTRY_HEADER.unpack_from(self.read(offset, ENTRY_HEADER_SIZE))
        begin = offset + ENTRY_HEADER_SIZE
        if not 0 < length <= MAX_PAYLOAD_BYTES or begin + length > self.size:
            return None
        effort.left -= length
        if effort.is_spent:
            return None
        return Header(offset, length, timestamp) if self.crc32(begin, length) == crc else None

    def find_identified(self, offset: int, known: bytes, effort: SearchEffort) -> Iterator[Header]:
        """Yield the intact entries from `offset` on whose identity begins with `known`, in order.

        Searches for the identity, and derives the header's place from the structure of the envelope. So a damaged
        header is not believed, and bytes that only look like an entry cost one checksum.
        """
        pattern = identity_pattern(known)
        for found in self._find(offset, pattern):
            meta = found - 1  # its map header
            begin = max(offset, meta - ENVELOPE_REACH - ENTRY_HEADER_SIZE)
            if meta <= begin:
                continue
            front = bytes(self.read(begin, meta - begin))
            for at in envelopes_before(front):
                header = self.intact_at(begin + at - ENTRY_HEADER_SIZE, effort) if at >= ENTRY_HEADER_SIZE else None
                # The identity found must be that of this very entry, and whole.
                if header is not None and identity_offset(self.front(header)) == found + 5 - header.payload:
                    yield header
            if effort.is_spent:
                return

    def front(self, header: Header) -> memoryview:
        """Read a payload's first bytes: enough for its kind, database and identity."""
        return self.read(header.payload, min(header.length, ENVELOPE_REACH + 64))

    def last_nonzero(self, offset: int, end: int) -> int:
        """Return the offset after the last nonzero byte between two offsets; `offset` if all are zero."""
        while end > offset:
            begin = max(offset, end - WINDOW_BYTES)
            chunk = bytes(self.read(begin, end - begin)).rstrip(b"\x00")
            if chunk:
                return begin + len(chunk)
            end = begin
        return offset

    def _find(self, offset: int, pattern: bytes) -> Iterator[int]:
        """Yield the offsets of some bytes, from `offset` on."""
        window = _FIRST_SEARCH_BYTES
        while offset + len(pattern) <= self.size:
            chunk = bytes(self.read(offset, min(window, self.size - offset)))
            at = chunk.find(pattern)
            while at >= 0:
                yield offset + at
                at = chunk.find(pattern, at + 1)
            offset += len(chunk) - len(pattern) + 1
            window = min(2 * window, WINDOW_BYTES)

    def _load(self, offset: int, needed: int) -> None:
        """Read at least `needed` bytes into the window, and more ahead unless the device reports an error."""
        self.window = memoryview(b"")  # first, to free its memory
        if needed <= 0:
            return
        ahead = min(max(needed, self._window_bytes), self.size - offset)
        try:
            data = self._fetch(offset, ahead)
        except OSError:
            self._window_bytes = _BLOCK_BYTES
            if self._around_bad_blocks:
                data = self._fetch_around(offset, needed)
            elif ahead > needed:  # the bad block may lie after the segment's end, where nobody needs it
                data = self._fetch(offset, needed)
            else:
                raise
        self.start = offset
        self.window = memoryview(data)

    def _fetch(self, offset: int, length: int) -> bytes | memoryview:
        """Read exactly `length` bytes."""
        if not self._gently:
            data = self._disk.read(self._fd, length, offset)
            if len(data) < length:
                raise self._cut_off(offset + len(data))
            return data
        import numpy as np  # for memory that is not cleared first; the uploader, which reads gently, has it anyway

        buffer = np.empty(length, np.uint8).data
        done = 0
        while done < length:
            count = self._disk.read_into(self._fd, buffer[done : done + _PIECE_BYTES], offset + done)
            if not count:
                raise self._cut_off(offset + done)
            done += count
        return buffer

    def _cut_off(self, offset: int) -> OSError:
        return OSError(errno.EIO, f"became shorter while it was read, at offset {offset}", self.path)

    def _fetch_around(self, offset: int, length: int) -> bytes:
        """Read these bytes block by block, with zeros for unreadable blocks."""
        parts = []
        while length > 0:
            wanted = min(_BLOCK_BYTES - offset % _BLOCK_BYTES, length)
            try:
                parts.append(bytes(self._fetch(offset, wanted)))
            except OSError as error:
                parts.append(bytes(wanted))
                block = offset - offset % _BLOCK_BYTES
                length_there = min(_BLOCK_BYTES, self.size - block)
                self._skipped[block] = Skipped(block, length_there, f"unreadable: {error.strerror or error}")
            offset += wanted
            length -= wanted
        return b"".join(parts)
