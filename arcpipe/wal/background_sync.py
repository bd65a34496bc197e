"""The syncs of the `async` mode: they bound the loss of a power cut, and keep groups in memory until they are on disk.

Without a crash nothing that was acknowledged is lost: a group stays in memory until a sync that began after its write
has returned. When a sync fails, the writer writes the retained groups into the next segment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final

from arcpipe.units import MB
from arcpipe.wal.group import Group, WALStats
from arcpipe.wal.segment import Extent, Segment

log = logging.getLogger(__name__)

# Bytes. Above this much retained, a sync starts at once. At twice as much, commits wait for it: so a slow disk costs a
# worker at most twice this in memory. Measured: throughput with 8, 16 and 32 MB is the same within noise. At 16 MB the
# p99 of a commit was nearest to that without a bound (400 against 280 µs, groups of 64 KiB on a loaded machine).
RETAINED_BYTES: Final = 16 * MB


# An acknowledged group, the segment's extent after it, and when it was written (monotonic seconds). A plain tuple,
# because a named one makes a commit of this mode 2% dearer.
_Retained = tuple[Group, Extent, float]


class BackgroundSync:
    """Syncs one segment after the other on a thread of its own, and delays commits when the disk is too slow.

    A sync starts at most half an interval after the first write that it covers. If retained groups still get older
    than the interval, or take too much memory, the next commit waits for a sync. So a power cut never takes more than
    what was acknowledged within one interval.

    Only the commit thread calls the methods. `error` stays until another segment is entered.
    """

    def __init__(
        self, segment: Segment | None, interval_seconds: float, stats: WALStats, retained_bytes: int = RETAINED_BYTES
    ) -> None:
        self.error: OSError | None = None
        self.synced = Extent(0, 0, 0, 0)  # the part of the segment that is on disk for certain
        self._interval = interval_seconds
        self._limit = retained_bytes
        self._stats = stats
        self._syncing = threading.Lock()  # held while a sync runs, so that no segment is closed under it
        self._segment: Segment | None = None
        self._retained: deque[_Retained] = deque()  # the commit thread appends, the syncing thread removes
        self._retained_bytes = 0  # ever retained; written by the commit thread only
        self._released_bytes = 0  # ever released; written under the lock only
        self._now = 0.0  # monotonic seconds of the last write; used by the commit thread only
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stop = threading.Event()
        if segment is not None:
            self.enter(segment)
        self._thread = threading.Thread(target=self._run, name="background sync", daemon=True)
        self._thread.start()

    @property
    def retained(self) -> list[Group]:
        """List the groups that are acknowledged and may not be on disk, in order."""
        return [group for group, _, _ in self._retained]

    def enter(self, segment: Segment | None) -> None:
        """Sync this segment from now on; all of it is on disk already. Forget everything about the last one."""
        with self._syncing:
            self._segment = segment
            if segment is not None:
                self.synced = segment.acknowledged
            self.error = None
            self._release(len(self._retained))

    def keep_up(self) -> None:
        """Wait for a sync if the disk is too slow. Call it between a group's write and its answer.

        Raises:
            OSError: a sync has failed.
        """
        self._now = time.monotonic()
        while self.error is None and self._is_behind():
            with self._syncing:
                if self._is_behind():
                    self._sync()
            self._now = time.monotonic()
        if self.error is not None:
            raise self.error

    def retain(self, group: Group, extent: Extent) -> None:
        """Keep an acknowledged group until it is on disk. Call `keep_up` just before.

        Args:
            extent: the segment's extent after this group.
        """
        self._retained.append((group, extent, self._now))
        self._retained_bytes += group.size
        if not self._wake.is_set():
            self._wake.set()
        if self._retained_bytes - self._released_bytes > self._limit and not self._hurry.is_set():
            self._hurry.set()

    def sync_now(self) -> None:
        """Sync all retained groups. If that fails, `error` says why."""
        with self._syncing:
            self._sync()

    def take_back(self, segment: Segment) -> None:
        """Cut off what was not acknowledged. Unless a sync failed before, the whole rest is then on disk.

        Raises:
            OSError: the segment cannot be cut; that counts as a failed sync.
        """
        with self._syncing:
            try:
                segment.cut_back()
            except OSError as error:
                self.error = self.error or error
                raise
            if self.error is None:
                self.synced = segment.acknowledged
                self._release(len(self._retained))

    def close(self) -> None:
        """End the thread and sync the rest. If that fails, `error` says why."""
        self._stop.set()
        self._hurry.set()
        self._wake.set()
        self._thread.join()
        self.sync_now()

    def _is_behind(self) -> bool:
        try:
            since = self._retained[0][2]
        except IndexError:
            return False
        if self._now - since > self._interval:
            return True
        return self._retained_bytes - self._released_bytes > 2 * self._limit

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(self._interval / 2)
            if self._stop.is_set():
                return
            # Cleared before the sync, so that a group retained meanwhile wakes this thread again.
            self._wake.clear()
            self._hurry.clear()
            try:
                with self._syncing:
                    self._sync()
            except Exception:  # a lack of memory, or a bug: what is retained is synced later
                log.exception("a background sync failed")
                self._wake.set()

    def _sync(self) -> None:
        count = len(self._retained)
        segment = self._segment
        if not count or segment is None or self.error is not None:
            return
        before = time.perf_counter()
        try:
            segment.fdatasync()
        except OSError as error:
            self.error = error
            log.error("background sync of %s failed: %s; its last groups are written again", segment.path, error)
        else:
            self.synced = self._release(count)
        self._stats.syncs += 1
        self._stats.sync_us.observe(int((time.perf_counter() - before) * 1e6))

    def _release(self, count: int) -> Extent:
        extent = self.synced
        for _ in range(count):
            group, extent, _ = self._retained.popleft()
            self._released_bytes += group.size
        return extent
