"""One verdict of a scan, and what follows from it. Recovery and uploader both act on it, and on nothing else.

clean end    the end entry is there, and its counts agree with what was found
torn tail    a segment that was active ends without one: what was being written when the power went
damaged      gaps, damaged timestamps, a search that was given up, a sealed segment without its end entry
unreadable   a read failed: nothing is known of what could not be read
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """Exactly one for each scan. The value is how people read it."""

    CLEAN = "clean end"
    TORN = "torn tail"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"

    def __str__(self) -> str:
        return self.value


class Consequence(Enum):
    """What is done with a segment's file."""

    CUT_AND_SEAL = "cut the tail off, write the end entry, seal"
    SHIP = "seal if it is active, upload, retire"
    SHIP_AND_KEEP = "change nothing in it, seal if it is active, upload what is readable, keep the original"
    LEAVE = "leave it exactly as it is and try again"


_CONSEQUENCES = {
    Verdict.CLEAN: Consequence.SHIP,
    Verdict.TORN: Consequence.CUT_AND_SEAL,
    Verdict.DAMAGED: Consequence.SHIP_AND_KEEP,
    Verdict.UNREADABLE: Consequence.LEAVE,
}


def consequence(verdict: Verdict) -> Consequence:
    """Tell what follows from a verdict."""
    return _CONSEQUENCES[verdict]


def keeps_original(verdict: Verdict) -> bool:
    """Whether a segment's file is kept once all that is readable of it is uploaded."""
    return consequence(verdict) is Consequence.SHIP_AND_KEEP
