"""Which timestamp of several neighbours is damaged. Pure arithmetic: no file, no payload.

Timestamps strictly increase within a segment, and no checksum covers them. One that breaks the order is damaged, or one
of its neighbours is. If one is, all others are in order without it; that tells which.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

# µs. An entry that nothing follows is damaged if it is dated further than this ahead of the clock.
JUMP_US: Final = 86_400_000_000
# The last second that a date can tell.
LATEST_US: Final = 253_402_300_799_000_000


class Finding(Enum):
    """Whose timestamp is damaged."""

    NONE = 0
    THIS = 1
    BEFORE = 2


class Judged(NamedTuple):
    """The timestamp to go on with, and whose was damaged."""

    timestamp: int
    damaged: Finding


def judge(before: int, timestamp: int, following: Sequence[int], newest: int) -> Judged:
    """Judge the timestamp of one entry by its neighbours; all in µs.

    Args:
        before: of the entry before it; 0 if there is none, or none that could be believed.
        following: of the intact entries directly behind it, up to two.
        newest: no entry should be much younger.
    """
    after = following[0] if following else 0
    second = following[1] if len(following) > 1 else 0
    if timestamp > LATEST_US:
        return _damaged(before, after, newest)
    if timestamp <= before:
        if timestamp < after <= before + 1:
            return Judged(timestamp, Finding.BEFORE)  # two agree against one
        return _damaged(before, after, newest)
    if timestamp < after:
        return Judged(timestamp, Finding.NONE)
    # Nothing confirms it: either what follows is dated too low, or this one is dated too high.
    if after > before + 1:
        is_confirmed = second > timestamp + 1
    else:
        is_confirmed = timestamp < second if second > before else timestamp <= max(newest, before) + JUMP_US
    return Judged(timestamp, Finding.NONE) if is_confirmed else _damaged(before, after, newest)


def _damaged(before: int, after: int, newest: int) -> Judged:
    """A likelier timestamp: directly behind the one before, as far as that is known."""
    if before:
        return Judged(before + 1, Finding.THIS)
    return Judged(max(after - 1, 1) if 0 < after <= LATEST_US else min(newest, LATEST_US), Finding.THIS)
