"""Clocks, in µs: a steady one for durations, the kernel's monotonic one, and the time of day.

    since = steady_us()
    age_seconds = (steady_us() - since) / 1e6    # right even if the time of day was set meanwhile

The steady clock starts at the machine's time of day, in µs since the epoch, and then advances evenly. All processes of
an instance are forked from the one that started, so they share this clock.

The monotonic clock starts with the machine. All its processes share it, those of an earlier start of arcpipe, too.

The time of day is for times that people and other machines read: WAL entries, log lines, expiry of tokens and
certificates. A duration computed from it is wrong as soon as somebody, or NTP, sets the clock.
"""

from __future__ import annotations

import time
from typing import Final

_OFFSET_NS: Final = time.time_ns() - time.monotonic_ns()


def steady_us() -> int:
    """Return the steady clock's time, in µs."""
    return (time.monotonic_ns() + _OFFSET_NS) // 1000


def steady_us_at(monotonic: float) -> int:
    """Convert a reading of `time.monotonic` to the steady clock, in µs."""
    return (int(monotonic * 1e9) + _OFFSET_NS) // 1000


def monotonic_us() -> int:
    """Return the monotonic clock's time, in µs: `time.monotonic` without rounding."""
    return time.monotonic_ns() // 1000


def now_us() -> int:
    """Return the time of day, in µs since the epoch."""
    return time.time_ns() // 1000


def ahead_us() -> int:
    """Return the time of day minus the steady clock, in µs; it changes when somebody sets the machine's clock."""
    return now_us() - steady_us()
