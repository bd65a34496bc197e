"""Whose turn it is: bounds what one turn of a worker's loop does, and what one connection does in it.

Between two looks at its sockets the loop handles what they brought. A read that brings little is handled at once. One
that brings more work than a slice keeps its rest, and a connection that took long is not read again until it is given
another turn. Turns are given in order, for `turn_seconds` of each turn of the loop. Once the reads of a turn have taken
as long, each further read has only `small_seconds`: thousands of clients may have sent at one moment.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final, NamedTuple, Protocol

# Seconds of work in one turn after which it renews the heartbeat: thousands of connections may have sent at one moment,
# and the loop's clock advances only after all of them were read.
_HEARTBEAT_SECONDS: Final = 0.25


class TimeBudget(NamedTuple):
    """Seconds that work may take in the loop before others have their turn."""

    slice_seconds: float = 0.001
    """One read, before the other connections have their turn: about a hundred of the smallest requests."""
    small_seconds: float = 0.0002
    """A read that takes no longer is not counted: it was one request, or a few."""
    turn_seconds: float = 0.008
    """The waiting connections, in one turn of the loop; what was just read has as much again."""
    inline_seconds: float = 0.002
    """The encoding of one body in the loop; then the encoding thread begins it anew."""
    inline_turn_seconds: float = 0.02
    """The reads of one turn, after which it encodes only tiny bodies in the loop."""


class TooLong(Exception):
    """The work at hand has used up its time in the loop: a thread has to do it from its beginning."""


class Waiter(Protocol):
    """A connection that waits for its turn."""

    def take_turn(self) -> float:
        """Go on; return the seconds that this took, plus those that the next read will probably take."""


class Turns:
    """The turns of one loop. `spent` is the time that reads have taken of the present one, in seconds."""

    __slots__ = (
        *("_heartbeat_due", "_scheduled", "_show_heartbeat", "_waiting", "budget", "deadline", "longest_inline"),
        *("number", "read_seconds", "spent"),
    )

    def __init__(self, budget: TimeBudget, show_heartbeat: Callable[[], None] = lambda: None) -> None:
        """Begin with no turn.

        Args:
            show_heartbeat: called every _HEARTBEAT_SECONDS of a turn that takes long.
        """
        self.budget = budget
        self._show_heartbeat = show_heartbeat
        self._heartbeat_due = _HEARTBEAT_SECONDS
        self.spent = 0.0
        self.number = 0  # of the present turn
        self.read_seconds = budget.slice_seconds  # that one more read of this turn has
        self.longest_inline = math.inf  # bytes of a body that may be encoded in the loop: a longer one took too long
        self.deadline = 0.0  # perf_counter seconds: until when the body at hand may be encoded in the loop
        self._waiting: deque[Waiter] = deque()
        self._scheduled = False

    def check(self, seconds: float = 0.0, _taken_bytes: int = 0, /) -> None:
        """Raise TooLong if the body at hand has used up its time in the loop.

        Args:
            seconds: that its next step will take.
        """
        if perf_counter() + seconds > self.deadline:
            raise TooLong

    def charge(self, seconds: float) -> None:
        """Count the time that a read has taken of the present turn."""
        self.spent += seconds
        if self.spent >= self.budget.turn_seconds:
            self.read_seconds = self.budget.small_seconds  # thousands of reads may follow
        if self.spent >= self._heartbeat_due:
            self._heartbeat_due = self.spent + _HEARTBEAT_SECONDS
            self._show_heartbeat()
        if not self._scheduled:
            self._schedule()

    def wait(self, waiter: Waiter) -> None:
        """Give a connection a turn after those that wait already, of which it must not be one."""
        self._waiting.append(waiter)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn of the loop: give each waiting connection one turn at most."""
        self._scheduled = False
        self.read_seconds = self.budget.slice_seconds
        waiting = self._waiting
        seconds = 0.0
        try:
            for _ in range(len(waiting)):
                seconds += waiting.popleft().take_turn()
                if seconds >= self.budget.turn_seconds:
                    break
        finally:  # if one fails, the others still have their turns
            self.spent = 0.0
            self.number += 1
            self._heartbeat_due = _HEARTBEAT_SECONDS
            self.read_seconds = self.budget.slice_seconds
            self.longest_inline = math.inf
            if waiting and not self._scheduled:
                self._schedule()
