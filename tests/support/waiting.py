"""Waiting for conditions, with bounds that only a failing test reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Seconds; generous, because a loaded machine is slow: a passing test never waits this long.
START_SECONDS = 120.0
STOP_SECONDS = 150.0
WAIT_SECONDS = 120.0


def wait_until(condition: Callable[[], T | None], what: str = "the condition", seconds: float = WAIT_SECONDS) -> T:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: the time is over; it names `what`.
    """
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}; last seen: {value!r}"
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
