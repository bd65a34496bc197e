"""The timestamps that one slot gives to its entries: now, but each above all earlier ones."""

from __future__ import annotations

import time
from typing import Final

# µs. A burst of entries brings timestamps ahead of the clock by less than this; a clock that was set back, by more.
_AHEAD_US: Final = 1_000_000


class Stamps:
    """Give out timestamps. Only the thread that adds to groups calls `next` and `clock_meta`.

    `written` is the highest timestamp on disk, or reserved for an end entry, in µs. The thread that commits sets it.
    """

    __slots__ = ("_given", "written")

    def __init__(self, last_timestamp: int) -> None:
        self._given = last_timestamp  # µs: the highest timestamp given out
        self.written = last_timestamp

    def next(self) -> int:
        """Give out a timestamp (µs): now, but above every earlier one."""
        stamp = time.time_ns() // 1000
        if stamp <= self._given:
            stamp = self._given + 1
        if stamp <= self.written:
            stamp = self.written + 1
        self._given = stamp
        return stamp

    def clock_meta(self) -> dict[str, int]:
        """Make the key `clock` of an envelope's meta; empty unless the clock was set back below the timestamps.

        Timestamps never go back. So `clock` is the (negative) number of µs to add to them for the time of day.
        """
        ahead = max(self._given, self.written) - time.time_ns() // 1000
        return {"clock": -ahead} if ahead > _AHEAD_US else {}
