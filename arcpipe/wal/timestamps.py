"""Decide which timestamp of several neighbours is damaged. Pure arithmetic: no file, no payload.

Timestamps strictly increase within a segment, and no checksum covers them. Where the order is broken, one of the
neighbours is damaged: the one without which all others are in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

# µs: one day. The timestamp of a last entry is damaged if it is further than this ahead of the clock.
JUMP_US: Final = 86_400_000_000
# µs since the epoch: the last second of the year 9999, which is the last that a date can tell.
LATEST_US: Final = 253_402_300_799_000_000


class Culprit(Enum):
    """The entry whose timestamp is damaged."""

    NONE = 0
    THIS = 1
    BEFORE = 2


class Judged(NamedTuple):
    """The timestamp to use for an entry, and the damaged one."""

    timestamp: int
    damaged: Culprit


def judge(before: int, timestamp: int, following: Sequence[int], newest: int) -> Judged:
    """Judge the timestamp of one entry by its neighbours; all in µs since the epoch.

    Args:
        before: timestamp of the entry before it; 0 if there is none, or none that could be believed.
        following: timestamps of the next intact entries, up to two.
        newest: the latest plausible timestamp.
    """
    after = following[0] if following else 0
    second = following[1] if len(following) > 1 else 0
    if timestamp > LATEST_US:
        return _damaged(before, after, newest)
    if timestamp <= before:
        if timestamp < after <= before + 1:
            return Judged(timestamp, Culprit.BEFORE)  # this one and the next agree against the one before
        return _damaged(before, after, newest)
    if timestamp < after:
        return Judged(timestamp, Culprit.NONE)
    # It is not below the next one: either that is too low, or this one is too high.
    if after > before + 1:
        is_confirmed = second > timestamp + 1
    else:
        is_confirmed = timestamp < second if second > before else timestamp <= max(newest, before) + JUMP_US
    return Judged(timestamp, Culprit.NONE) if is_confirmed else _damaged(before, after, newest)


def _damaged(before: int, after: int, newest: int) -> Judged:
    """Replace a damaged timestamp by a likely one: 1 µs after the one before, if that is known."""
    if before:
        return Judged(before + 1, Culprit.THIS)
    return Judged(max(after - 1, 1) if 0 < after <= LATEST_US else min(newest, LATEST_US), Culprit.THIS)
