"""Whose turn it is: bounds what one turn of a worker's loop does, and what one connection does in it.

Between two looks at its sockets the loop handles what they brought. A read that brings little is handled at once. One
that brings more work than SLICE_SECONDS keeps its rest, and a connection that took long is not read again until it is
given another turn. Turns are given in order, for TURN_SECONDS of each turn of the loop. Where what was just read has
taken as long already, each further read has only SMALL_SECONDS: thousands of clients may have sent at one moment.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

# Seconds that one read may take before the other connections have their turn: some hundred of the smallest requests.
SLICE_SECONDS: Final = 0.001
# Seconds. A read that took no longer counts for nothing: it was one request, or a few.
SMALL_SECONDS: Final = 0.0002
# Seconds of one turn of the loop for those that wait for a turn, and as much again for what was just read.
TURN_SECONDS: Final = 0.008
# Seconds of work in one turn after which it shows life: thousands of connections may have sent at the same moment, and
# the clock of the loop goes on only when all of them were read.
_LIFE_SECONDS: Final = 0.25
# Seconds after which a body that is encoded in the loop is given to the encoding thread.
INLINE_SECONDS: Final = 0.002


class TooLong(Exception):
    """The work at hand has used up its time in the loop: it has to be done on a thread, from its beginning."""


class Waiter(Protocol):
    """A connection that waits for its turn."""

    def take_turn(self) -> float:
        """Go on; the seconds that this took, and that the read will probably take which may come now."""


class Turns:
    """The turns of one loop. `spent` is what reads have taken of the present one, in seconds."""

    __slots__ = (
        "_life_due",
        "_scheduled",
        "_show_life",
        "_waiting",
        "deadline",
        "is_used_up",
        "longest_inline",
        "spent",
    )

    def __init__(self, show_life: Callable[[], None] = lambda: None) -> None:
        """Args: show_life: called now and then in a turn that goes on for long."""
        self._show_life = show_life
        self._life_due = _LIFE_SECONDS
        self.spent = 0.0
        self.is_used_up = False  # each further read of it has SMALL_SECONDS: there may be thousands
        self.longest_inline = math.inf  # bytes of a body that may be encoded in the loop: a longer one took too long
        self.deadline = 0.0  # perf_counter seconds: until when the body at hand may be encoded in the loop
        self._waiting: deque[Waiter] = deque()
        self._scheduled = False

    def check(self) -> None:
        """Raise TooLong if the body at hand has used up its time in the loop."""
        if perf_counter() > self.deadline:
            raise TooLong

    def charge(self, seconds: float) -> None:
        """Count what a read has taken of the present turn."""
        self.spent += seconds
        self.is_used_up = self.spent >= TURN_SECONDS
        if self.spent >= self._life_due:
            self._life_due = self.spent + _LIFE_SECONDS
            self._show_life()
        if not self._scheduled:
            self._schedule()

    def wait(self, waiter: Waiter) -> None:
        """Give a connection a turn once those before it had theirs. It must not wait already."""
        self._waiting.append(waiter)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn of the loop: gives turns to those that wait, each one at most."""
        self._scheduled = False
        self.is_used_up = False
        waiting = self._waiting
        seconds = 0.0
        try:
            for _ in range(len(waiting)):
                seconds += waiting.popleft().take_turn()
                if seconds >= TURN_SECONDS:
                    break
        finally:  # whatever becomes of one, the others have their turns
            self.spent = 0.0
            self._life_due = _LIFE_SECONDS
            self.is_used_up = False
            self.longest_inline = math.inf
            if waiting and not self._scheduled:
                self._schedule()
