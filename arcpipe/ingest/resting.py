"""Give memory back once no large body has come for a while.

Arrow's allocator and glibc's keep what a burst of large bodies has taken. Both let go only of what the calling thread
has freed, so the encoding thread does it. While bodies come, they stay: getting them again page by page costs much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pyarrow as pa

from arcpipe.allocator import give_freed_memory_back
from arcpipe.ingest.http.background import Background

IDLE_SECONDS: Final = 2.0
"""Seconds without a large body, after which memory is given back: it takes some milliseconds."""


def give_back() -> None:
    """Return freed memory of both allocators to the kernel."""
    pa.default_memory_pool().release_unused()
    give_freed_memory_back()


class Rest:
    """Watches an encoding thread, and has its memory given back once after each time of work."""

    def __init__(self, encoding: Background, give_back: Callable[[], None] = give_back) -> None:
        self._encoding = encoding
        self._give_back = give_back
        self._seen = encoding.finished
        self._since = 0.0  # seconds of the loop's clock
        self._due = False

    def tick(self, now: float) -> None:
        """Look at the thread. Call it a few times a second.

        Args:
            now: seconds of any clock that never steps back.
        """
        if self._encoding.held_bytes or self._encoding.finished != self._seen:
            self._seen = self._encoding.finished
            self._since = now
            self._due = True
        elif self._due and now - self._since >= IDLE_SECONDS:
            self._due = False
            self._encoding.rest(self._give_back)
