"""What waits in the WAL directory for its upload, as the supervisor sees it: measured, shared, recovered in the end.

A segment of a dead worker that cannot be read now is neither lost nor empty. It stays as it is, counts as backlog, and
is tried again. The tries run in a process of their own: a failing disk may hold who reads it for minutes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import NamedTuple

from arcpipe.counters import Counters, Node, pack_name
from arcpipe.waiting import Waiting
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.pool import FreePool
from arcpipe.wal.recovery import RecoverySummary, recover_files

log = logging.getLogger(__name__)


class Leftovers:
    """Segments of dead workers that could not be recovered yet, by path. No living worker has any of them."""

    def __init__(self, directory: WALDirectory) -> None:
        self._directory = directory
        self._files: dict[str, SegmentFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def add(self, files: Iterable[SegmentFile]) -> None:
        self._files.update((file.path, file) for file in files)

    def recover_slot(self, slot: int) -> RecoverySummary:
        """Recovers what a slot's dead worker left, but for files that are known already; adds what cannot be read.

        Raises:
            OSError: the directory cannot be listed, so nobody knows what the worker left.
        """
        try:
            FreePool(self._directory, 0).clear(slot)
        except OSError as error:  # no more than space, which the next death or start frees
            log.warning("cannot remove what ingest %d left in %s: %s", slot, self._directory.free, error)
        files = [file for file in self._directory.segments(ACTIVE, slot) if file.path not in self._files]
        try:
            summary = recover_files(self._directory, files)
        except Exception as error:  # no thread to be had, a directory that cannot be synced: some may be done
            log.error("cannot recover the segments of ingest %d: %s; trying again later", slot, error)
            self.add(files)
            self.look()
            return RecoverySummary([], 0.0)
        self.add(summary.unreadable)
        return summary

    def retry(self) -> int:
        """Tries all of them once more; the exit code of the process that does it."""
        recover_files(self._directory, self.look())
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


class Left(NamedTuple):
    """Files whose records are not in the store."""

    sealed: int
    unsealed: int
    quarantined: int


class Backlog:
    """Measures what decides whether writes are taken, and shares it in the node's block."""

    def __init__(self, directory: WALDirectory, leftovers: Leftovers, counters: Counters) -> None:
        self._directory = directory
        self._leftovers = leftovers
        self._node = counters.node
        self._waiting = Waiting(counters)
        self._problem = ""  # the last one logged

    def measure(self) -> None:
        """Shares what can be measured; while the directory cannot be looked at, that no writes are to be taken."""
        problem = self._look()
        if problem and problem != self._problem:  # once, however often it is looked
            log.error("cannot look at %s: %s; writes are refused until it works", self._directory.path, problem)
        self._problem = problem
        if problem and self._make_again():
            problem = self._look()
        self._node[Node.UNLISTED] = bool(problem)

    def _look(self) -> str:
        """Measures each thing that can be; the first reason why not all can, or nothing."""
        problem = ""
        for step in (self._measure_segments, self._measure_disk):
            try:
                step()
            except OSError as error:
                problem = problem or str(error)
        return problem

    def _measure_segments(self) -> None:
        node = self._node
        self._waiting.note_active()
        left = self._leftovers.look()
        node[Node.UNRECOVERED_SEGMENTS] = len(left)
        node[Node.UNRECOVERED_BYTES] = sum(file.size for file in left)
        words = pack_name(left[0].filename if left else "")
        node[Node.UNRECOVERED_NAME : Node.UNRECOVERED_NAME + len(words)] = words
        sealed = self._directory.segments(SEALED)
        node[Node.BACKLOG_SEGMENTS] = len(sealed) + len(left)
        node[Node.BACKLOG_BYTES] = sum(file.size for file in (*sealed, *left))
        node[Node.OLDEST_BACKLOG_US] = self._waiting.oldest(sealed, left)

    def _measure_disk(self) -> None:
        free = total = 0  # unknown, unless the disk answers
        try:
            disk = os.statvfs(self._directory.path)
            free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        finally:
            self._node[Node.DISK_FREE_BYTES], self._node[Node.DISK_TOTAL_BYTES] = free, total

    def _make_again(self) -> bool:
        """Makes a directory that is gone: workers find out by themselves, and go on in the new one."""
        try:
            self._directory.make()
        except OSError:
            return False
        return True

    def log_what_is_left(self) -> None:
        """Says at the end whether everything is uploaded, for operators."""
        try:
            left = self.what_is_left()
        except OSError as error:
            log.warning("stopped; whether everything is uploaded is unknown: %s. Keep the WAL directory", error)
            return
        if left.unsealed:
            log.warning(
                "stopped; %d segments could not be recovered, %d completed segments ship at the next start. Keep the "
                "WAL directory",
                *(left.unsealed, left.sealed),
            )
        elif left.sealed:
            log.warning("stopped; %d completed segments ship at the next start", left.sealed)
        elif left.quarantined:
            log.warning(
                "stopped; everything is uploaded but %d files in %s", left.quarantined, self._directory.quarantine
            )
        else:
            log.info("stopped; everything is uploaded")

    def what_is_left(self) -> Left:
        """Looks at a directory that nobody writes to any more.

        Raises:
            OSError: it cannot be listed, so nobody knows.
        """
        directory = self._directory
        with os.scandir(directory.quarantine) as entries:
            quarantined = sum(entry.is_file(follow_symlinks=False) for entry in entries)
        return Left(len(directory.segments(SEALED)), len(directory.segments(ACTIVE)), quarantined)
