"""Measures backlog and disk for this process's own admission while the supervisor is gone.

An upgrade has ended the previous program, and the new one cannot start yet. It has shared memory of its own, so nobody
measures for the workers that still serve. With old figures they would soon refuse all writes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

from arcpipe.clock import monotonic_us
from arcpipe.counters import FIGURES_SECONDS, HANDED_OVER, Counters, Node
from arcpipe.disk import space
from arcpipe.wal.backlog import find_pending, total_bytes
from arcpipe.wal.directory import WALDirectory

# Age of figures, in µs, at which they are measured here: half of the time that they hold. A usual upgrade takes less.
_OLD_US: Final = int(FIGURES_SECONDS / 2 * 1e6)


class StandIn:
    """Measures in a thread, because a disk may be slow. For one event loop."""

    def __init__(self, directory: WALDirectory, counters: Counters) -> None:
        self._directory = directory
        self._counters = counters
        self._node = counters.node
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Measure anew if nobody else does. Call it a few times a second."""
        node = self._node
        if node[Node.DRAINING] != HANDED_OVER or monotonic_us() - node[Node.MEASURED_US] < _OLD_US:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._measure, name="figures", daemon=True)
            with contextlib.suppress(RuntimeError):  # no memory for a thread: the figures get too old in the end
                self._thread.start()

    def _measure(self) -> None:
        node = self._node
        try:
            sealed, being_sealed = find_pending(self._directory, self._counters)
            free, total = space(os.statvfs(self._directory.path))
        except OSError:
            node[Node.UNLISTED] = 1
        else:
            # Nobody recovers anything meanwhile. Segments that were not recovered look as if they were being sealed, if
            # their slot has a worker.
            left = max(len(being_sealed), node[Node.UNRECOVERED_SEGMENTS])
            left_bytes = max(total_bytes(being_sealed), node[Node.UNRECOVERED_BYTES])
            node[Node.BACKLOG_SEGMENTS] = len(sealed) + left
            node[Node.BACKLOG_BYTES] = total_bytes(sealed) + left_bytes
            node[Node.DISK_FREE_BYTES], node[Node.DISK_TOTAL_BYTES] = free, total
            node[Node.UNLISTED] = 0
        node[Node.MEASURED_US] = monotonic_us()
