"""The results of reading a segment: its entries, its damage, the report of the whole file, and the verdict on it."""

from __future__ import annotations

from typing import NamedTuple

from arcpipe.wal.format import EndMeta, StartMeta
from arcpipe.wal.verdict import ScanVerdict


class Entry(NamedTuple):
    """One verified entry. `payload` stays valid as long as it is referenced."""

    offset: int
    timestamp: int  # µs since the epoch
    payload: memoryview


class Damage(NamedTuple):
    """A range of bytes that should hold an intact entry and does not. A damaged timestamp has a length of 0."""

    offset: int
    length: int
    reason: str


class ScanReport:
    """The result of a scan. Complete once the scan was read to its end; until then the verdict is `UNREADABLE`."""

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
        self.verdict = ScanVerdict.UNREADABLE
        self.start: StartMeta | None = None
        self.identity = b""  # of the segment; empty if its entries have none
        self.end: EndMeta | None = None
        self.end_entry_offset = 0  # where the end entry begins, if there is one
        self.entries = 0  # data entries
        self.last_timestamp = 0  # µs, of the last intact entry of any kind
        self.end_offset = 0  # where the next entry would go: after the last intact one
        self.damage: list[Damage] = []
        self.torn_bytes = 0  # bytes after `end_offset` that are neither zeros nor stale
        self.torn_reason = ""


def judge(report: ScanReport, was_active: bool) -> ScanVerdict:
    """Judge a scan that read its file to the end.

    Args:
        was_active: the name does not say that the segment was sealed, so it may end anywhere.
    """
    if report.damage or end_problem(report, was_active):
        return ScanVerdict.DAMAGED
    return ScanVerdict.TORN if report.end is None else ScanVerdict.CLEAN


def end_problem(report: ScanReport, was_active: bool) -> str:
    """Explain what is wrong with a segment's end; empty if nothing is."""
    end = report.end
    if end is None:
        return "" if was_active else "the segment was sealed, but its end entry is missing"
    if (end.entries, end.offset) != (report.entries, report.end_entry_offset):
        return (
            f"the end entry tells {end.entries} entries up to offset {end.offset}; "
            f"found {report.entries} up to offset {report.end_entry_offset}"
        )
    return ""


def damage_count(report: ScanReport, problem: str) -> int:
    """Count the damaged places. A wrong end counts only if there is no other damage, which would cause it.

    Args:
        problem: the result of `end_problem` for this report.
    """
    return len(report.damage) or int(bool(problem))
