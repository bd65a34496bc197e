"""The cadence: when the sealed segments that wait become a batch.

Records are durable in the WAL, so their upload can wait, and each batch costs at least one file per table. A batch is
due when its segments hold `uploader.batch_mb`. It is also due when its oldest record is `flush.max_age_seconds` old and
no batch was planned within `uploader.interval_seconds`. So the first record of a quiet server is uploaded after 5 s. A
steady stream makes one file per table and minute.

Nothing waits while the uploader drains, or while the backlog or the disk nears its limit. Nor do segments that a full
batch or a former process left over, once a record of them is older than the interval: they are the rest of a backlog.
An interval of 0 turns the waiting off, and so does `wal.enabled = false`: records that wait would not be on disk.

A batch that is due by its age collects: workers seal what they hold, and it takes the segments of all of them. Uploader
and workers share nothing but counters for this. A worker that does not answer delays a batch by _COLLECT_SECONDS.

This module must not know manifests, stores or conversion.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from arcpipe.clock import ahead_us, now_us, steady_us
from arcpipe.counters import Counters, Node, Uploader, Worker
from arcpipe.units import MB
from arcpipe.wal.backlog import find_pending, total_bytes
from arcpipe.wal.directory import SegmentFile, WALDirectory
from arcpipe.wal.reader import first_timestamp

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

_MICRO: Final = 1_000_000

# Longest wait for workers to seal. They look four times a second, and show what they did four times a second.
_COLLECT_SECONDS: Final = 1.0
# Part of `wal.max_backlog_mb` from which on segments are uploaded at once. Half of it is what health calls behind.
_BACKLOG_NEAR: Final = 0.25


class LastBatch:
    """The time at which the last batch was planned, for the next start: the modification time of an empty file.

    Nothing depends on it but one interval, so it is neither synced nor missed.
    """

    def __init__(self, directory: WALDirectory) -> None:
        self._path = os.path.join(directory.batches, "last-batch")

    def age_us(self) -> int | None:
        """Return the µs since then; None if it is unknown, or in the future because somebody set the clock."""
        try:
            age = now_us() - os.stat(self._path).st_mtime_ns // 1000
        except OSError:
            return None
        return age if age >= 0 else None

    def note(self) -> None:
        """Note the present."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
            os.utime(self._path)

    def forget(self) -> None:
        """Forget it: the next start begins like a quiet server."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Cadence:
    """Decide when waiting segments become a batch. For one uploader."""

    def __init__(
        self,
        settings: Settings,
        directory: WALDirectory,
        counters: Counters,
        is_draining: Callable[[], bool],
        clock: Callable[[], int] = steady_us,
    ) -> None:
        """Go on where the uploader before ended: a crash must not make a batch, and so files, with each start.

        Args:
            is_draining: tells whether nothing may wait any more.
            clock: the steady clock, in µs.
        """
        self._directory = directory
        self._counters = counters
        self._block = counters.uploader
        self._is_draining = is_draining
        self._clock = clock
        self._interval_us = int(settings.batch_interval_seconds * _MICRO)
        self._max_age_us = int(settings.flush.max_age_seconds * _MICRO)
        self._max_backlog = settings.wal.max_backlog_mb * MB
        self._min_free = settings.wal.min_free_mb * MB
        self._batch_bytes = min(settings.uploader.batch_mb * MB, int(_BACKLOG_NEAR * self._max_backlog))
        self._last = LastBatch(directory)
        self._since: dict[str, int] = {}  # by file name: the time of the first record, in µs of the steady clock
        self._seen: frozenset[str] = frozenset()  # file names that waited at the last look
        # Those that waited at the first look, or for the last batch, which may have left some.
        self._left_over: frozenset[str] | None = None
        self._asked = 0  # when workers were asked to seal, in µs of the steady clock; 0 if they are not
        if self._interval_us and not self._block[Uploader.PLANNED_US]:
            age = self._last.age_us()
            if age is not None and age < self._interval_us:
                self._block[Uploader.PLANNED_US] = max(1, clock() - age)

    def is_due(self, waiting: Sequence[SegmentFile]) -> bool:
        """Tell whether these segments are a batch by now. They may have become more meanwhile.

        Args:
            waiting: sealed segments that are in no batch, at least one.

        Raises:
            OSError: the WAL directory cannot be listed.
        """
        if not self._interval_us or self._is_draining():
            return True
        self._seen = frozenset(file.filename for file in waiting)
        if self._left_over is None:
            self._left_over = self._seen
        size = total_bytes(waiting)
        if size >= self._batch_bytes or self._is_room_short(size):
            return True
        now = self._clock()
        planned = self._block[Uploader.PLANNED_US]
        if planned and planned <= now < planned + self._interval_us:
            left = [file for file in waiting if file.filename in self._left_over]
            return self._is_old(left, now, max(self._interval_us, self._max_age_us)) and self._is_collected(now)
        return self._is_old(waiting, now, self._max_age_us) and self._is_collected(now)

    def note_planned(self) -> None:
        """Note that a batch was planned."""
        self._left_over = self._seen
        self._asked = 0
        self._block[Uploader.PLANNED_US] = self._clock()
        if self._interval_us:
            self._last.note()

    def end(self) -> None:
        """Note that everything was uploaded at a stop."""
        self._last.forget()

    def _is_room_short(self, size: int) -> bool:
        """Tell whether backlog or disk near their limits: less room is left than already waits by choice."""
        node = self._counters.node
        if node[Node.BACKLOG_BYTES] > self._max_backlog // 2:
            return True
        # Without a total size, nobody has measured the disk.
        return bool(node[Node.DISK_TOTAL_BYTES]) and node[Node.DISK_FREE_BYTES] < self._min_free + size

    def _is_old(self, files: Sequence[SegmentFile], now: int, age_us: int) -> bool:
        """Tell whether one of the segments has a record of this age."""
        self._since = {name: self._since[name] for name in self._seen if name in self._since}
        for file in files:
            since = self._since.get(file.filename)
            if since is None:
                since = self._since[file.filename] = min(now, self._first_record_us(file, now))
            if now - since >= age_us:
                return True
        return False

    def _first_record_us(self, file: SegmentFile, now: int) -> int:
        """Return the time of a segment's first record in the steady clock, as far as times of day tell it."""
        try:
            first = first_timestamp(file.path, self._directory.disk)
        except OSError:  # the batch reports it
            return now
        return first - ahead_us() if first else now

    def _is_collected(self, now: int) -> bool:
        """Have workers seal what they hold, and tell whether they have."""
        if not self._asked:
            self._asked = self._block[Uploader.COLLECT_US] = now
        if now - self._asked >= _COLLECT_SECONDS * _MICRO:
            return True
        blocks = [self._counters.worker(slot) for slot in range(1, self._counters.workers + 1)]
        # The first is read before the listing: a segment that a worker leaves in between is being sealed, or is sealed.
        if any(0 < block[Worker.SEGMENT_FIRST_US] <= self._asked for block in blocks):
            return False
        return not find_pending(self._directory, self._counters).being_sealed
