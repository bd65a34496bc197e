"""What waits in the WAL directory for its upload, as the supervisor sees it: measured, shared, recovered in the end.

A segment of a dead worker that cannot be read now is neither lost nor empty. It stays as it is, counts as backlog, and
is tried again. All reading is done in other processes: a failing disk may hold who reads it for minutes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence

from arcpipe.counters import Counters, Node, pack_name
from arcpipe.disk import space
from arcpipe.supervisor.waiting import Waiting
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.pool import FreePool
from arcpipe.wal.recovery import recover_files

log = logging.getLogger(__name__)


class Leftovers:
    """Segments of dead workers that could not be recovered yet, by path. No living worker has any of them."""

    def __init__(self, directory: WALDirectory) -> None:
        self.directory = directory
        self._files: dict[str, SegmentFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def add(self, files: Iterable[SegmentFile]) -> None:
        self._files.update((file.path, file) for file in files)

    def of_slot(self, slot: int) -> list[SegmentFile]:
        """The active segments of a slot without a worker, but for those that are known already.

        Raises:
            OSError: the directory cannot be listed, so nobody knows what the dead worker left. No successor may start
                before: its files would look like these.
        """
        return [file for file in self.directory.segments(ACTIVE, slot) if file.path not in self._files]

    def retry(self) -> int:
        """Tries all of them once more; the exit code of the process that does it."""
        recover_files(self.directory, self.look())
        return 0

    def look(self) -> list[SegmentFile]:
        """Those that are still there, the oldest first, with their present size."""
        for path, file in list(self._files.items()):
            try:
                stat = os.stat(path)
            except FileNotFoundError:  # recovered, or somebody took it away
                del self._files[path]
            except OSError:
                continue
            else:
                self._files[path] = file._replace(size=stat.st_size)
        return sorted(self._files.values(), key=lambda file: (file.name.created, file.name.slot, file.name.seq))


def recover(directory: WALDirectory, slot: int, files: Sequence[SegmentFile]) -> int:
    """Recovers what a slot's dead worker left, as far as possible; the highest timestamp that was read, in µs."""
    try:
        FreePool(directory, 0).clear(slot)
    except OSError as error:  # no more than space, which the next death or start frees
        log.warning("cannot remove what ingest %d left in %s: %s", slot, directory.free, error)
    return recover_files(directory, files).last_timestamp(slot)


class Backlog:
    """Measures what decides whether writes are taken, and shares it in the node's block."""

    def __init__(self, directory: WALDirectory, leftovers: Leftovers, counters: Counters) -> None:
        self._directory = directory
        self._leftovers = leftovers
        self._path = directory.path
        self._node = counters.node
        self._waiting = Waiting(counters)
        self._problem = ""  # the last one logged
        self._identity: tuple[int, int] | None = None  # device and number of the directory of the start

    def measure(self) -> None:
        """Shares what can be measured; while the directory cannot be looked at, that no writes are to be taken."""
        problem = self._look()
        if problem and problem != self._problem:  # once, however often it is looked
            log.error("cannot look at %s: %s; writes are refused until it works", self._directory.path, problem)
        self._problem = problem
        if problem and self._make_again():
            problem = self._look()
        self._node[Node.UNLISTED] = bool(problem)
        self._node[Node.MEASURED_US] = time.monotonic_ns() // 1000

    def _look(self) -> str:
        """Measures each thing that can be; the first reason why not all can, or nothing."""
        problem = ""
        for step in (self._note_identity, self._measure_segments, self._measure_disk):
            try:
                step()
            except OSError as error:
                problem = problem or str(error)
        return problem

    def _note_identity(self) -> None:
        """Notices another directory in the place of that of the start, such as that below an unmounted disk."""
        status = os.stat(self._directory.path)
        identity = status.st_dev, status.st_ino
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity and not self._node[Node.REPLACED]:
            self._node[Node.REPLACED] = 1
            log.error("%s is not the directory of the start any more: what waits in that is not uploaded", self._path)

    def _measure_segments(self) -> None:
        node = self._node
        self._waiting.note_active()
        left = self._leftovers.look()
        node[Node.UNRECOVERED_SEGMENTS] = len(left)
        node[Node.UNRECOVERED_BYTES] = sum(file.size for file in left)
        words = pack_name(left[0].filename if left else "")
        node[Node.UNRECOVERED_NAME : Node.UNRECOVERED_NAME + len(words)] = words
        files = self._directory.segments((ACTIVE, SEALED))
        sealed = [file for file in files if file.state == SEALED]
        known = {file.name for file in (*sealed, *left)}
        left += [file for file in self._waiting.being_sealed(files) if file.name not in known]
        node[Node.BACKLOG_SEGMENTS] = len(sealed) + len(left)
        node[Node.BACKLOG_BYTES] = sum(file.size for file in (*sealed, *left))
        node[Node.OLDEST_BACKLOG_US] = self._waiting.oldest(sealed, left)

    def _measure_disk(self) -> None:
        free = total = 0  # unknown, unless the disk answers
        try:
            free, total = space(os.statvfs(self._directory.path))
        finally:
            self._node[Node.DISK_FREE_BYTES], self._node[Node.DISK_TOTAL_BYTES] = free, total

    def _make_again(self) -> bool:
        """Makes a directory that is gone: workers find out by themselves, and go on in the new one."""
        try:
            self._directory.make()
        except OSError:
            return False
        return True
