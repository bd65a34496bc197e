"""The syncs of the `async` mode: a bound on what a power cut takes, and what is kept in memory until it is on disk.

Nothing that was acknowledged is lost without a crash: a group stays in memory until a sync that began after its write
has returned. When a sync fails, the writer writes what is retained into the next segment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final

from arcpipe.wal.group import Group, WALStats
from arcpipe.wal.segment import Extent, Segment

log = logging.getLogger(__name__)

# Bytes retained above which a sync starts at once. At twice that a commit waits for it, so this is half of the memory
# that a slow disk costs a worker. 8, 16 and 32 MB differ by no more than the noise in throughput; at 16 MB the p99 of a
# commit was nearest to that of no bound at all (400 against 280 µs, groups of 64 KiB on a loaded machine).
RETAINED_BYTES: Final = 16 << 20


# A group that was acknowledged, how far its segment went with it, and since when (monotonic seconds). A plain tuple:
# a named one costs a commit of this mode 2% more.
_Retained = tuple[Group, Extent, float]


class BackgroundSync:
    """Syncs one segment after the other behind their writes, and holds answers back when the disk falls behind.

    A sync starts at most half an interval after the first write that it covers. When what is not yet on disk gets
    older than the interval all the same, or takes too much memory, the next commit waits for a sync: so a power cut
    never takes more than what was acknowledged within one interval.

    The commit thread calls everything; a thread of its own syncs. `error` stays until another segment is entered.
    """

    def __init__(
        self, segment: Segment | None, interval_seconds: float, stats: WALStats, retained_bytes: int = RETAINED_BYTES
    ) -> None:
        self.error: OSError | None = None
        self.synced = Extent(0, 0, 0, 0)  # how far the segment is on disk for certain
        self._interval = interval_seconds
        self._limit = retained_bytes
        self._stats = stats
        self._syncing = threading.Lock()  # held while a sync runs, so that no segment is closed under it
        self._segment: Segment | None = None
        self._retained: deque[_Retained] = deque()  # the commit thread appends, who syncs removes
        self._retained_bytes = 0  # ever retained: written by the commit thread only
        self._released_bytes = 0  # ever released: written under the lock only
        self._now = 0.0  # monotonic seconds of the last write: the commit thread's
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stop = threading.Event()
        if segment is not None:
            self.enter(segment)
        self._thread = threading.Thread(target=self._run, name="background sync", daemon=True)
        self._thread.start()

    @property
    def retained(self) -> list[Group]:
        """The groups that are acknowledged and may not be on disk, in order."""
        return [group for group, _, _ in self._retained]

    def enter(self, segment: Segment | None) -> None:
        """Sync this segment from now on, of which everything is on disk. The former one is dealt with."""
        with self._syncing:
            self._segment = segment
            if segment is not None:
                self.synced = segment.acknowledged
            self.error = None
            self._release(len(self._retained))

    def keep_up(self) -> None:
        """Wait for a sync if the disk has fallen behind. To be called between a group's write and its answer.

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
        """Keep a group that is acknowledged until it is on disk. `keep_up` was called just before.

        Args:
            extent: how far the segment goes with it.
        """
        self._retained.append((group, extent, self._now))
        self._retained_bytes += group.size
        if not self._wake.is_set():
            self._wake.set()
        if self._retained_bytes - self._released_bytes > self._limit and not self._hurry.is_set():
            self._hurry.set()

    def sync_now(self) -> None:
        """Return when all that was retained is on disk, or cannot be brought there: then `error` says why."""
        with self._syncing:
            self._sync()

    def take_back(self, segment: Segment) -> None:
        """Cut off what was not acknowledged. Unless a sync failed before, all the rest is then on disk.

        Raises:
            OSError: it cannot be cut; that counts as a failed sync.
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
        """End the thread and sync the rest; `error` says whether that failed."""
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
            # First, so that what is retained from here on wakes this thread again.
            self._wake.clear()
            self._hurry.clear()
            with self._syncing:
                self._sync()

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
