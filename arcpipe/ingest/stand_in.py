"""Measures backlog and disk for this process's own admission where the supervisor is gone for a while.

An upgrade has ended the former program, and the new one cannot start yet. It has memory of its own, so nobody looks for
the workers that serve meanwhile. They would go by old figures, and then refuse all writes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

from arcpipe.clock import monotonic_us
from arcpipe.counters import FIGURES_SECONDS, HANDED_OVER, Counters, Node
from arcpipe.disk import space
from arcpipe.wal.directory import SEALED, WALDirectory

# Figures may be half as old as they hold: an upgrade that goes well is over by then.
_OLD_US: Final = int(FIGURES_SECONDS / 2 * 1e6)


class StandIn:
    """Looks in a thread, because a disk may take its time. For one event loop."""

    def __init__(self, directory: WALDirectory, counters: Counters) -> None:
        self._directory = directory
        self._node = counters.node
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Has the figures renewed if nobody else does. To be called a few times a second."""
        node = self._node
        if node[Node.DRAINING] != HANDED_OVER or monotonic_us() - node[Node.MEASURED_US] < _OLD_US:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._measure, name="figures", daemon=True)
            with contextlib.suppress(RuntimeError):  # no room for a thread: the figures are too old in the end
                self._thread.start()

    def _measure(self) -> None:
        node = self._node
        try:
            sealed = self._directory.segments(SEALED)
            free, total = space(os.statvfs(self._directory.path))
        except OSError:
            node[Node.UNLISTED] = 1
        else:
            # Nobody recovers anything meanwhile.
            node[Node.BACKLOG_SEGMENTS] = len(sealed) + node[Node.UNRECOVERED_SEGMENTS]
            node[Node.BACKLOG_BYTES] = sum(file.size for file in sealed) + node[Node.UNRECOVERED_BYTES]
            node[Node.DISK_FREE_BYTES], node[Node.DISK_TOTAL_BYTES] = free, total
            node[Node.UNLISTED] = 0
        node[Node.MEASURED_US] = monotonic_us()
