"""The backlog, as the supervisor measures and publishes it, and the segments that could not be recovered yet.

A segment of a dead worker that cannot be read now is neither lost nor empty. It stays as it is, counts as backlog, and
is tried again. Only other processes read segments: a failing disk may block a reader for minutes.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable
from typing import Final

from arcpipe.clock import monotonic_us
from arcpipe.counters import Counters, Node, pack_name
from arcpipe.disk import space
from arcpipe.supervisor.waiting import Waiting
from arcpipe.wal.backlog import find_pending, total_bytes
from arcpipe.wal.directory import ACTIVE, SegmentFile, WALDirectory
from arcpipe.wal.recovery import recover_files

log = logging.getLogger(__name__)

# A measurement looks at each segment that waits, and a long outage makes ten thousands of them. So it is followed by a
# pause of this many times as long, but by no longer one: workers refuse writes when the figures are older than
# `counters.FIGURES_SECONDS`.
_PAUSE_FACTOR: Final = 4
_LONGEST_PAUSE_SECONDS: Final = 1.0


class Leftovers:
    """Segments of dead workers that could not be recovered yet. No living worker writes to any of them."""

    def __init__(self, directory: WALDirectory) -> None:
        self.directory = directory
        self._files: dict[str, SegmentFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def add(self, files: Iterable[SegmentFile]) -> None:
        """Add segments."""
        self._files.update((file.path, file) for file in files)

    def of_slot(self, slot: int) -> list[SegmentFile]:
        """Return the active segments of a slot without a worker, except those that are here already.

        Raises:
            OSError: the directory cannot be listed, so the dead worker's segments are unknown. No successor may start
                before they are known: its segments would look the same.
        """
        return [file for file in self.directory.segments(ACTIVE, slot) if file.path not in self._files]

    def retry(self) -> int:
        """Try to recover all of them once more; return the exit code of the process."""
        recover_files(self.directory, self.look())
        return 0

    def look(self) -> list[SegmentFile]:
        """Return those that still exist, the oldest first, with their present size."""
        for path, file in list(self._files.items()):
            try:
                stat = os.stat(path)
            except FileNotFoundError:  # recovered, or removed by somebody
                del self._files[path]
            except OSError:
                continue
            else:
                self._files[path] = file._replace(size=stat.st_size)
        return sorted(self._files.values(), key=lambda file: (file.name.created, file.name.slot, file.name.seq))


class Backlog:
    """Measures backlog and disk, and publishes them in the node's block. They decide whether writes are accepted."""

    def __init__(self, directory: WALDirectory, leftovers: Leftovers, counters: Counters) -> None:
        self._directory = directory
        self._leftovers = leftovers
        self._path = directory.path
        self._counters = counters
        self._node = counters.node
        self._waiting = Waiting(counters)
        self._problem = ""  # the last one logged
        self._identity: tuple[int, int] | None = None  # device and inode of the directory at the start
        self._due_at = -math.inf  # monotonic seconds

    @property
    def is_due(self) -> bool:
        """Whether the next measurement may begin without taking too much of the processor."""
        return time.monotonic() >= self._due_at

    def measure(self) -> None:
        """Publish the figures; if the directory cannot be examined, publish that no writes may be accepted."""
        began = time.monotonic()
        problem = self._look()
        if problem and problem != self._problem:  # log each problem once
            log.error("cannot look at %s: %s; writes are refused until it works", self._directory.path, problem)
        self._problem = problem
        if problem and self._make_again():
            problem = self._look()
        self._node[Node.UNLISTED] = bool(problem)
        self._node[Node.MEASURED_US] = monotonic_us()
        ended = time.monotonic()
        self._due_at = ended + min(_PAUSE_FACTOR * (ended - began), _LONGEST_PAUSE_SECONDS)

    def _look(self) -> str:
        """Measure all figures that can be measured; return the first problem, or an empty text."""
        problem = ""
        for step in (self._note_identity, self._measure_segments, self._measure_disk):
            try:
                step()
            except OSError as error:
                problem = problem or str(error)
        return problem

    def _note_identity(self) -> None:
        """Notice if the path leads to another directory than at the start, as after an unmount."""
        status = os.stat(self._directory.path)
        identity = status.st_dev, status.st_ino
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity and not self._node[Node.REPLACED]:
            self._node[Node.REPLACED] = 1
            log.error("%s is another directory than at the start: segments left in that are not uploaded", self._path)

    def _measure_segments(self) -> None:
        node = self._node
        self._waiting.note_active()
        left = self._leftovers.look()
        node[Node.UNRECOVERED_SEGMENTS] = len(left)
        node[Node.UNRECOVERED_BYTES] = total_bytes(left)
        words = pack_name(left[0].filename if left else "")
        node[Node.UNRECOVERED_NAME : Node.UNRECOVERED_NAME + len(words)] = words
        sealed, being_sealed = find_pending(self._directory, self._counters)
        names = {file.name for file in left}
        left += [file for file in being_sealed if file.name not in names]
        node[Node.BACKLOG_SEGMENTS] = len(sealed) + len(left)
        node[Node.BACKLOG_BYTES] = total_bytes(sealed) + total_bytes(left)
        node[Node.OLDEST_BACKLOG_US] = self._waiting.oldest(sealed, left)
        node[Node.OLDEST_UNSEALED_US] = self._waiting.oldest_of(being_sealed)

    def _measure_disk(self) -> None:
        free = total = 0  # unknown, unless the disk answers
        try:
            free, total = space(os.statvfs(self._directory.path))
        finally:
            self._node[Node.DISK_FREE_BYTES], self._node[Node.DISK_TOTAL_BYTES] = free, total

    def _make_again(self) -> bool:
        """Make the directory if it is gone. Workers notice by themselves, and go on in the new one."""
        try:
            self._directory.make()
        except OSError:
            return False
        return True
