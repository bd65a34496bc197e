"""Entries that are Arrow IPC streams, collected until there are enough of them to be converted together.

This module must not know tables, files or threads.
"""

from __future__ import annotations

from typing import NamedTuple

from arcpipe.codec.envelope import ArrowBody, decode_arrow
from arcpipe.upload.budget import DECODED_BYTES

TIME_BYTES = 10
"""Cost of a row beside its values: its time, and the digits below a microsecond."""

# Bytes of a payload from which on it stays a view: copying costs more than it saves.
_LARGE_BYTES = 65_536


class ArrowEntry(NamedTuple):
    """A WAL entry whose rows are an Arrow IPC stream."""

    database: str
    precision: str | None  # of times that are numbers
    body: ArrowBody
    payload: bytes | memoryview  # of the whole entry, which the stream is a view into
    timestamp_us: int  # the time of rows without one
    origin: int  # the caller's number of the entry

    @property
    def size_bytes(self) -> int:
        """The bytes of memory that its rows take, at least: a boolean is a bit, and its row has a time."""
        return max(len(self.payload), self.body.bytes, self.body.rows * (TIME_BYTES + DECODED_BYTES))


class ArrowGroup:
    """The entries of one table that were not taken yet."""

    __slots__ = ("_old", "_owned", "entries")

    def __init__(self) -> None:
        self.entries: list[ArrowEntry] = []
        self._owned = 0  # number of first entries that hold no view into a payload, but for large ones
        self._old = 0  # number of entries at the last release

    def release(self) -> None:
        """Copy small entries that have referred to payloads since before the last release."""
        for index in range(self._owned, self._old):
            entry = self.entries[index]
            if len(entry.payload) < _LARGE_BYTES:
                payload = bytes(entry.payload)
                decoded = decode_arrow(payload)
                assert decoded is not None
                self.entries[index] = entry._replace(payload=payload, body=decoded[2])
        self._owned, self._old = self._old, len(self.entries)
