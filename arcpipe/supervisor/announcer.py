"""Tells the log and the service manager that the instance serves, and at what rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from arcpipe.counters import Counters, Node, Worker
from arcpipe.supervisor.child import Child
from arcpipe.supervisor.listeners import Listeners
from arcpipe.supervisor.service_manager import ServiceManager

log = logging.getLogger(__name__)

# Time between two status lines for the service manager.
_STATUS_SECONDS: Final = 5.0


class Announcer:
    """Announces the instance once, and describes it from then on."""

    def __init__(self, listeners: Listeners, counters: Counters, manager: ServiceManager) -> None:
        self._listeners = listeners
        self._counters = counters
        self._manager = manager
        self._url = ""  # the first one, once it is announced
        self._described_at = 0.0  # monotonic
        self._described_records = 0

    @property
    def is_done(self) -> bool:
        """Whether the instance is announced."""
        return bool(self._url)

    @property
    def status(self) -> str:
        """The status line of an instance that serves."""
        return f"serving on {self._url} with {self._counters.workers} workers"

    def announce(self, children: Sequence[Child]) -> bool:
        """Announce the instance, and return True, once every process was tried and a worker serves.

        A process whose start failed is no reason to wait.

        Args:
            children: the uploader, then the workers.
        """
        if not all(child.has_been_tried for child in children) or not any(child.is_ready for child in children[1:]):
            return False
        self._url, *others = self._listeners.urls
        self._described_at = time.monotonic()
        for url in others:
            log.info("also serving on %s", url)
        log.info("%s", self.status)
        missing = [child.name for child in children if not child.is_ready]
        if missing:
            log.warning("serving without %s for now: its start has failed (see above)", ", ".join(missing))
        self._manager.ready(self.status)
        return True

    def describe(self, now: float) -> None:
        """Send a status line with rate, backlog and restarts every _STATUS_SECONDS."""
        seconds = now - self._described_at
        if seconds < _STATUS_SECONDS:
            return
        node = self._counters.node
        records = sum(self._counters.worker(slot)[Worker.RECORDS] for slot in range(1, self._counters.workers + 1))
        # A killed worker loses up to 250 ms of unpublished counts, so the total may drop.
        rate = max(0, records - self._described_records) / seconds
        self._described_at, self._described_records = now, records
        self._manager.status(
            f"{self.status}: {rate:.0f} records/s, "
            f"backlog {node[Node.BACKLOG_BYTES] / 1e6:.1f} MB in {node[Node.BACKLOG_SEGMENTS]} segments, "
            f"restarts: {node[Node.WORKER_RESTARTS]} of workers, {node[Node.UPLOADER_RESTARTS]} of the uploader"
        )
