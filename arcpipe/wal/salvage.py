"""Finds the next intact entry of a segment after damage, and tells entries of the segment from others'.

There are two ways, because there are two kinds of files. In a segment with an identity, its 16 bytes are looked for.
Nobody could know them before, so what they find is an entry of this segment. In older files, and in those of other
programs, the timestamp decides: an entry below the border is stale. There the search looks for what could be a header.
It has a bound, because a client's value may be full of such bytes. At the bound, the rest of the file is damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from arcpipe.wal.format import ENTRY_HEADER_SIZE, identity_of
from arcpipe.wal.source import Effort, Header, Source
from arcpipe.wal.timestamps import JUMP_US

# The search reads this much first, then more and more: the next entry is mostly near.
_FIRST_SEARCH_BYTES: Final = 64 << 10
_SEARCH_BYTES: Final = 8 << 20
# µs: no entry is older than 1996.
_EARLIEST_US: Final = 3 << 48


class Salvager(Protocol):
    """How the walker asks about entries that are not as they should be."""

    @property
    def gave_up(self) -> bool:
        """Whether a search ended because it took too long: what it did not find may be there all the same."""

    def refusal(self, header: Header) -> str:
        """Why an intact entry is none of this segment's; an empty text if it is one."""

    def next_entry(self, offset: int) -> int | None:
        """The offset of the first intact entry of this segment behind `offset`."""

    def stale_from(self, offset: int) -> int:
        """Where stale entries begin, at or behind an offset behind which none of this segment is; else the end."""


class IdentitySalvager:
    """For a segment whose entries name it."""

    def __init__(self, source: Source, identity: bytes) -> None:
        self._source = source
        self._identity = identity
        self._effort = Effort(source.size)

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
        # Bytes in a stale value may look like entries at will; how far the tail is torn is only told to people.
        effort = Effort(self._source.size)
        first = self._source.intact_at(offset, effort)
        for found in [first] if first is not None else self._source.find_identified(offset, b"", effort):
            return found.offset
        return self._source.size


class BorderSalvager:
    """For a file whose entries name no segment: those below a border (a timestamp, µs) are stale."""

    def __init__(self, source: Source, border: int) -> None:
        self._source = source
        self._border = border
        self._effort = Effort(source.size)
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
        """As in the protocol. A damaged header's length is not believed, so nothing that is intact is stepped over.

        Stale entries are: after a torn write they may stand among those of this segment.
        """
        self._stale_from = self._source.size
        entry = self.intact_at(offset)
        while True:
            if entry is None:
                entry = self._first_behind(offset)
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
        """The first intact entry behind an offset, whosever it is."""
        return next(self._intact_behind(offset), None)

    def _first_behind(self, offset: int) -> Header | None:
        for entry in self._intact_behind(offset):
            # One that names a segment is in a client's value, or stale: those of this segment name none.
            if not identity_of(self._source.front(entry)):
                return entry
        return None

    def _intact_behind(self, offset: int) -> Iterator[Header]:
        for candidate in self._candidates(offset + 1):
            entry = self.intact_at(candidate)
            if entry is not None:
                yield entry
            if self.gave_up:
                return

    def _candidates(self, offset: int) -> Iterator[int]:
        """Offsets at or behind `offset` where an entry header could be, by its timestamp and first payload byte."""
        import numpy as np  # only damage needs it, and workers that never see any stay small

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
