"""Find the next intact entry of a segment after damage, and tell the segment's entries from others.

There are two kinds of files, and a salvager for each:

- With an identity: its 16 bytes are searched for. No client could know them, so they lead to entries of this segment.
- Without one (older files, other programs): the timestamp decides, and an entry below the border is stale. Bytes that
  could be an entry header are searched for. The search has a bound, because a client's value may be full of such
  bytes. At the bound, the rest of the file counts as damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from arcpipe.units import KB, MB
from arcpipe.wal.format import ENTRY_HEADER_SIZE, identity_of
from arcpipe.wal.source import Header, SearchEffort, SegmentSource
from arcpipe.wal.timestamps import JUMP_US

# Bytes. First and largest read of a search; each read doubles, because the next entry is mostly near.
_FIRST_SEARCH_BYTES: Final = 64 * KB
_SEARCH_BYTES: Final = 8 * MB
# µs since the epoch: November 1996. No entry is older.
_EARLIEST_US: Final = 3 << 48


class Salvager(Protocol):
    """Answers the walk's questions about entries that are not as expected."""

    @property
    def gave_up(self) -> bool:
        """Tell if a search ended at its bound: it may have missed entries."""

    def refusal(self, header: Header) -> str:
        """Explain why an intact entry does not belong to this segment; empty if it does."""

    def next_entry(self, offset: int) -> int | None:
        """Find the offset of the first intact entry of this segment after `offset`."""

    def stale_from(self, offset: int) -> int:
        """Find where stale entries begin, at or after `offset`; the end of the file without any.

        No entry of this segment may follow `offset`.
        """


class IdentitySalvager:
    """For a segment whose entries carry its identity."""

    def __init__(self, source: SegmentSource, identity: bytes) -> None:
        self._source = source
        self._identity = identity
        self._effort = SearchEffort(source.size)

    @property
    def gave_up(self) -> bool:
        return self._effort.is_spent

    def refusal(self, header: Header) -> str:
        return "" if identity_of(self._source.front(header)) == self._identity else "the entry is of another segment"

    def next_entry(self, offset: int) -> int | None:
        for found in self._source.find_identified(offset + 1, self._identity, self._effort):
            return found.offset
        return None

    def stale_from(self, offset: int) -> int:
        # Bytes in a stale value may look like an entry. That does no harm: the result is only a figure for people.
        effort = SearchEffort(self._source.size)
        first = self._source.intact_at(offset, effort)
        for found in [first] if first is not None else self._source.find_identified(offset, b"", effort):
            return found.offset
        return self._source.size


class BorderSalvager:
    """For a file without identities: entries below a border (a timestamp, µs) are stale."""

    def __init__(self, source: SegmentSource, border: int) -> None:
        self._source = source
        self._border = border
        self._effort = SearchEffort(source.size)
        self._stale_from = source.size

    @property
    def gave_up(self) -> bool:
        return self._effort.is_spent

    def intact_at(self, offset: int) -> Header | None:
        return self._source.intact_at(offset, self._effort)

    def refusal(self, header: Header) -> str:
        if header.timestamp >= self._border:
            return ""
        return f"timestamp {header.timestamp} is below the segment's start"

    def next_entry(self, offset: int) -> int | None:
        """Find the next entry as the protocol says, and step over stale entries on the way.

        After a torn write, stale entries may lie between entries of this segment. The length in a damaged header is
        not believed, so no intact entry is stepped over.
        """
        self._stale_from = self._source.size
        entry = self.intact_at(offset)
        while True:
            if entry is None:
                entry = self._first_after(offset)
                if entry is None:
                    return None
            if entry.timestamp >= self._border:
                return entry.offset
            self._stale_from = min(self._stale_from, entry.offset)
            offset = entry.end
            entry = self.intact_at(offset)

    def stale_from(self, offset: int) -> int:
        return self._stale_from

    def first_intact(self, offset: int) -> Header | None:
        """Find the first intact entry after an offset, of this segment or not."""
        return next(self._intact_after(offset), None)

    def _first_after(self, offset: int) -> Header | None:
        for entry in self._intact_after(offset):
            # This segment's entries have no identity: one that has it is stale, or lies in a client's value.
            if not identity_of(self._source.front(entry)):
                return entry
        return None

    def _intact_after(self, offset: int) -> Iterator[Header]:
        for candidate in self._candidates(offset + 1):
            entry = self.intact_at(candidate)
            if entry is not None:
                yield entry
            if self.gave_up:
                return

    def _candidates(self, offset: int) -> Iterator[int]:
        """Yield the offsets from `offset` on where a header could be, by its timestamp and the first payload byte."""
        import numpy as np  # imported late: only damage needs it, so other workers stay small

        size = self._source.size
        # The upper two bytes of a timestamp change every 8.9 years.
        latest = (self._source.newest(self._border) + JUMP_US) >> 48
        reach = ENTRY_HEADER_SIZE + 1
        window = _FIRST_SEARCH_BYTES
        while offset + reach <= size:
            chunk = np.frombuffer(self._source.read(offset, min(window, size - offset)), np.uint8)
            count = len(chunk) - reach + 1
            high, low = chunk[4 : 4 + count], chunk[5 : 5 + count]
            dated = (high == latest >> 8) & (low >= _EARLIEST_US >> 48) & (low <= latest & 0xFF)
            for position in np.flatnonzero(dated).tolist():
                first = chunk[position + ENTRY_HEADER_SIZE]
                if first == 0x01 or 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
                    yield offset + position
            offset += count
            window = min(2 * window, _SEARCH_BYTES)
