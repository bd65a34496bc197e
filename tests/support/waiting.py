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
_MOST_PAUSE_SECONDS = 0.02
# A condition that is dear to ask for, such as a query of the lake, is asked for a fifth of the time.
_DEAR_PAUSE = 4.0  # times as long as the answer took
_MOST_DEAR_PAUSE_SECONDS = 0.2


def wait_until(condition: Callable[[], T | None], what: str = "the condition", seconds: float = WAIT_SECONDS) -> T:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: the time is over; it names `what`.
    """
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        assert now < deadline, f"waited {seconds:g} s in vain for {what}; last seen: {value!r}"
        time.sleep(max(pause, min((now - began) * _DEAR_PAUSE, _MOST_DEAR_PAUSE_SECONDS)))
        pause = min(pause * 2, _MOST_PAUSE_SECONDS)
