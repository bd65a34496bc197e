"""The verdict of a scan, and what follows from it. Recovery and uploader act on nothing else.

clean end    the end entry is there, and its counts agree with the entries found
torn tail    an active segment has no end entry: its last write was cut short, and never acknowledged
damaged      gaps, damaged timestamps, a search that was given up, a sealed segment without its end entry
unreadable   a read failed, so a part of the content is unknown
"""

from __future__ import annotations

from enum import Enum


class ScanVerdict(Enum):
    """The result of a scan. The value is the text that people see."""

    CLEAN = "clean end"
    TORN = "torn tail"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"

    def __str__(self) -> str:
        return self.value


class Consequence(Enum):
    """The treatment of a segment's file."""

    CUT_AND_SEAL = "cut the tail off, write the end entry, seal"
    UPLOAD = "seal if it is active, upload, retire"
    UPLOAD_AND_KEEP = "change nothing in it, seal if it is active, upload what is readable, keep the original"
    LEAVE = "leave it exactly as it is and try again"


_CONSEQUENCES = {
    ScanVerdict.CLEAN: Consequence.UPLOAD,
    ScanVerdict.TORN: Consequence.CUT_AND_SEAL,
    ScanVerdict.DAMAGED: Consequence.UPLOAD_AND_KEEP,
    ScanVerdict.UNREADABLE: Consequence.LEAVE,
}


def consequence(verdict: ScanVerdict) -> Consequence:
    """Return the treatment that follows from a verdict."""
    return _CONSEQUENCES[verdict]


def keeps_original(verdict: ScanVerdict) -> bool:
    """Tell if a segment's file is kept after its readable part was uploaded."""
    return consequence(verdict) is Consequence.UPLOAD_AND_KEEP
