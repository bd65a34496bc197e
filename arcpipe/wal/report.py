"""Results of reading a segment: its entries, its damage, and the report of the whole."""

from __future__ import annotations

from typing import NamedTuple

from arcpipe.wal.format import EndMeta, StartMeta
from arcpipe.wal.verdict import Verdict


class Entry(NamedTuple):
    """One verified entry. `payload` stays valid as long as it is referenced."""

    offset: int
    timestamp: int  # µs since the epoch
    payload: memoryview


class Damage(NamedTuple):
    """Bytes of a segment that hold no intact entry and should. A damaged timestamp has a length of 0."""

    offset: int
    length: int
    reason: str


class ScanReport:
    """What a scan found. Complete once the scan has been read to its end; until then the verdict is `UNREADABLE`."""

    __slots__ = (
        "damage",
        "end",
        "end_entry_offset",
        "end_offset",
        "entries",
        "identity",
        "last_timestamp",
        "size",
        "start",
        "torn_bytes",
        "torn_reason",
        "verdict",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.verdict = Verdict.UNREADABLE
        self.start: StartMeta | None = None
        self.identity = b""  # of the segment; empty if its entries name none
        self.end: EndMeta | None = None
        self.end_entry_offset = 0  # where the end entry stands, if there is one
        self.entries = 0  # data entries
        self.last_timestamp = 0  # µs, of the last intact entry of any kind
        self.end_offset = 0  # where the next entry would go: behind the last intact one
        self.damage: list[Damage] = []
        self.torn_bytes = 0  # behind `end_offset`, neither zeros nor stale
        self.torn_reason = ""
