"""A clock that nobody sets: what is counted in it lasts as long as it says.

    since = steady_us()
    age_seconds = (steady_us() - since) / 1e6    # whatever became of the time of day meanwhile

It reads like µs since the epoch, as the machine's clock had them when the program started, and goes on evenly from
there. All processes of an instance are forked from the one that started, and so have the same.

The time of day (`time.time`) is for what people and other machines read: WAL entries, log lines, the ends of tokens and
certificates. A duration that is taken from it is wrong as soon as somebody, or NTP, sets the clock.
"""

from __future__ import annotations

import time
from typing import Final

_OFFSET_NS: Final = time.time_ns() - time.monotonic_ns()


def steady_us() -> int:
    """The time now, in µs."""
    return (time.monotonic_ns() + _OFFSET_NS) // 1000


def steady_us_at(monotonic: float) -> int:
    """The time in µs at a reading of `time.monotonic`."""
    return (int(monotonic * 1e9) + _OFFSET_NS) // 1000


def ahead_us() -> int:
    """How far the time of day is ahead of this clock, in µs; it changes when the machine's clock is set."""
    return time.time_ns() // 1000 - steady_us()
