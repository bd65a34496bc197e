"""What dead workers leave in the WAL directory, recovered in processes of their own: no disk holds up the supervisor.

A slot is filled again once its predecessor's segments are recovered, or are set aside for another try. Those tries have
a process, too, and go on for as long as it takes. No failure here ends anything: what could not be done stays on disk,
counts as backlog, and is tried again.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from arcpipe.supervisor.backlog import Leftovers, recover
from arcpipe.supervisor.child import Child, cause, stop
from arcpipe.wal.directory import SegmentFile
from arcpipe.wal.recovery import RecoverySummary

log = logging.getLogger(__name__)

# Before the first and the later tries to read what recovery could not: a disk that fails is not read all the time.
_PAUSES: Final = (1.0, 60.0)
# A slot stays empty for no longer than this over a disk that does not answer; its segments are set aside then.
_SLOT_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 2.0

Fork = Callable[[str, Callable[[], int]], int]


class Aftermath:
    """Recovers what the workers of numbered slots left, and remembers where each slot goes on."""

    def __init__(self, leftovers: Leftovers, workers: int, nice: int, fork: Fork) -> None:
        """Args: nice: of what nobody waits for. fork: runs something in a child under a name, and tells its pid."""
        self._leftovers = leftovers
        self._nice = nice
        self._fork = fork
        self._workers = workers
        self._last = memoryview(mmap.mmap(-1, 8 * (workers + 1))).cast("Q")  # µs, by slot; children write it
        self._waiting: set[int] = set()  # slots whose segments nobody has looked for yet
        self._told: set[int] = set()  # those of them whose trouble is logged
        self._running: dict[int, tuple[Child, list[SegmentFile]]] = {}
        self._retry = Child("recovery", self._fork_retry, lambda: True, [], _PAUSES)
        self._tried = 0  # segments, by the retry that runs

    def note_recovered(self, summary: RecoverySummary) -> None:
        """Takes over what the recovery of the start found."""
        for slot in range(1, self._workers + 1):
            self._last[slot] = max(self._last[slot], summary.last_timestamp(slot))
        self._leftovers.add(summary.unreadable)

    def last_timestamp(self, slot: int) -> int:
        """µs: the highest that was read of a slot's segments; 0 if there were none."""
        return self._last[slot]

    def is_over(self, slot: int) -> bool:
        """Whether a slot may be filled."""
        return slot not in self._waiting and slot not in self._running

    def note_death(self, slot: int) -> None:
        """Has what the worker of a slot left recovered, at the next `look`."""
        self._waiting.add(slot)

    def look(self, now: float) -> None:
        """Starts what is due, and ends what takes too long."""
        for slot in sorted(self._waiting):
            self._begin(slot, now)
        for child, _ in self._running.values():
            if not child.killed_at and now - child.started_at > _SLOT_SECONDS:
                log.error("%s (pid %d) takes longer than %g s; killing it", child.name, child.pid, _SLOT_SECONDS)
                child.killed_at = now
                os.kill(child.pid, signal.SIGKILL)
        retry = self._retry
        if not self._leftovers or retry.pid:
            return
        if not retry.failures:  # they are new, or others were recovered just now
            retry.put_off(now)
        elif now >= retry.start_at:
            self._tried = len(self._leftovers)
            retry.start(now)

    def note_end(self, pid: int, status: int) -> None:
        """Takes note of a child that ended, if it was one of these."""
        if pid == self._retry.pid:
            self._note_end_of_retry(status)
        for slot, (child, files) in list(self._running.items()):
            if child.pid == pid:
                del self._running[slot]
                if status:
                    log.error("%s (pid %d) died: %s; trying again later", child.name, pid, cause(status))
                self._leftovers.add(files)
                self._leftovers.look()  # those that are recovered are not there under this name

    def kill(self) -> None:
        """Ends all of it, at any moment, as a crash may; `is_idle` tells when they are gone."""
        for child in self._children():
            os.kill(child.pid, signal.SIGKILL)

    @property
    def is_idle(self) -> bool:
        return not self._children()

    def finish(self, seconds: float, wait: Callable[[], None]) -> None:
        """Recovers what is left once all workers have ended: of those that were killed, and what waits for a try."""
        stop([self._retry], _STOP_SECONDS, {signal.SIGCHLD}, wait)
        self._waiting.update(slot for slot in range(1, self._workers + 1) if slot not in self._running)
        deadline = time.monotonic() + seconds
        for slot in sorted(self._waiting):
            self._begin(slot, time.monotonic())
        if self._leftovers and not self._retry.pid:
            self._retry.start(time.monotonic())
        children = self._children()
        while any(child.pid for child in children) and time.monotonic() < deadline:
            wait()
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
            for child in children:
                if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                    child.pid = 0
        stop(children, 0.0, {signal.SIGCHLD}, wait)
        for slot in sorted(self._waiting):
            log.error("cannot look for the segments of ingest %d; the next start does", slot)

    def _children(self) -> list[Child]:
        return [child for child in (self._retry, *(child for child, _ in self._running.values())) if child.pid]

    def _begin(self, slot: int, now: float) -> None:
        try:
            files = self._leftovers.of_slot(slot)
        except OSError as error:
            if slot not in self._told:
                self._told.add(slot)
                log.error("cannot look for the segments of ingest %d: %s; it starts once that works", slot, error)
            return
        self._told.discard(slot)
        self._waiting.discard(slot)
        if not files:
            return
        child = Child(f"recovery of ingest {slot}", lambda: self._fork_slot(slot, files), lambda: True, [])
        child.start(now)
        if child.pid:
            self._running[slot] = child, files
        else:  # no room for a process: they wait, and the slot need not
            self._leftovers.add(files)

    def _fork_slot(self, slot: int, files: list[SegmentFile]) -> int:
        def work() -> int:
            self._last[slot] = max(self._last[slot], recover(self._leftovers.directory, slot, files))
            return 0

        return self._fork(f"recovery of ingest {slot}", work)

    def _fork_retry(self) -> int:
        def work() -> int:
            os.nice(self._nice)
            return self._leftovers.retry()

        return self._fork("recovery", work)

    def _note_end_of_retry(self, status: int) -> None:
        child, pid = self._retry, self._retry.pid
        delay = child.note_end(time.monotonic(), status)
        left = len(self._leftovers.look())
        if left < self._tried:
            child.failures = 0
            log.info("recovered %d of %d segments that could not be read before", self._tried - left, self._tried)
        elif status:
            log.error("recovery (pid %d) died: %s; trying again in %.0f s", pid, cause(status), delay)
