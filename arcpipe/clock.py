"""A steady clock, for durations that stay right when somebody sets the machine's clock.

    since = steady_us()
    age_seconds = (steady_us() - since) / 1e6    # right even if the time of day was set meanwhile

It starts at the machine's time of day, in µs since the epoch, and then advances evenly. All processes of an instance
are forked from the one that started, so they share this clock.

The time of day (`time.time`) is for times that people and other machines read: WAL entries, log lines, expiry of tokens
and certificates. A duration computed from it is wrong as soon as somebody, or NTP, sets the clock.
"""

from __future__ import annotations

import time
from typing import Final

_OFFSET_NS: Final = time.time_ns() - time.monotonic_ns()


def steady_us() -> int:
    """Return the present time, in µs."""
    return (time.monotonic_ns() + _OFFSET_NS) // 1000


def steady_us_at(monotonic: float) -> int:
    """Convert a reading of `time.monotonic` to this clock, in µs."""
    return (int(monotonic * 1e9) + _OFFSET_NS) // 1000


def ahead_us() -> int:
    """Return the time of day minus this clock, in µs; it changes when somebody sets the machine's clock."""
    return time.time_ns() // 1000 - steady_us()
