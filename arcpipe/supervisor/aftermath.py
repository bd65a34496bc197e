"""Recovery of dead workers' segments, in processes of their own, so that a slow disk never blocks the supervisor.

A slot is filled again once its dead worker's segments are recovered, or set aside for a retry. Retries run in another
process, too, and go on until they succeed. No failure here ends the instance: segments that cannot be recovered stay on
disk, count as backlog, and are tried again.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from arcpipe.supervisor.backlog import Leftovers
from arcpipe.supervisor.child import Child, cause, stop
from arcpipe.wal.directory import SegmentFile
from arcpipe.wal.recovery import RecoverySummary, recover_slot

log = logging.getLogger(__name__)

# Seconds before the first retry, and at most before later ones, so that a failing disk is not read all the time.
_PAUSES: Final = (1.0, 60.0)
# A slot stays empty at most this long if the disk does not answer; then its segments are set aside.
_SLOT_SECONDS: Final = 300.0
# At a stop, a retry gets this time to end before it is killed.
_STOP_SECONDS: Final = 2.0

Fork = Callable[[str, Callable[[], int]], int]


class Aftermath:
    """Recovers the segments of dead workers, and remembers the last timestamp of each slot."""

    def __init__(self, leftovers: Leftovers, workers: int, nice: int, fork: Fork) -> None:
        """Start with nothing to recover.

        Args:
            workers: number of slots.
            nice: niceness of retries, for which nobody waits.
            fork: runs a function in a child with a name, and returns its pid.
        """
        self._leftovers = leftovers
        self._nice = nice
        self._fork = fork
        self._workers = workers
        self._last = memoryview(mmap.mmap(-1, 8 * (workers + 1))).cast("Q")  # µs, by slot; children write it
        self._waiting: set[int] = set()  # slots whose segments have not been listed yet
        self._told: set[int] = set()  # slots whose listing failed and was logged
        self._running: dict[int, tuple[Child, list[SegmentFile]]] = {}
        self._retry = Child("recovery", self._fork_retry, lambda: True, [], _PAUSES)
        self._tried = 0  # segments of the running retry

    def note_recovered(self, summary: RecoverySummary) -> None:
        """Note the results of the recovery at the start."""
        for slot in range(1, self._workers + 1):
            self._last[slot] = max(self._last[slot], summary.last_timestamp(slot))
        self._leftovers.add(summary.unreadable)

    def last_timestamp(self, slot: int) -> int:
        """Return the highest timestamp in a slot's recovered segments, in µs; 0 if there were none."""
        return self._last[slot]

    def is_over(self, slot: int) -> bool:
        """Tell whether a slot may be filled."""
        return slot not in self._waiting and slot not in self._running

    def note_death(self, slot: int) -> None:
        """Have a dead worker's segments recovered at the next `look`."""
        self._waiting.add(slot)

    def look(self, now: float) -> None:
        """Start recoveries that are due, and end those that take too long."""
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
        if not retry.failures:  # the segments are new, or some were recovered just now
            retry.put_off(now)
        elif now >= retry.start_at:
            self._tried = len(self._leftovers)
            retry.start(now)

    def note_end(self, pid: int, status: int) -> None:
        """Note a process that ended, if it was a recovery."""
        if pid == self._retry.pid:
            self._note_end_of_retry(status)
        for slot, (child, files) in list(self._running.items()):
            if child.pid == pid:
                del self._running[slot]
                if status:
                    log.error("%s (pid %d) died: %s; trying again later", child.name, pid, cause(status))
                self._leftovers.add(files)
                self._leftovers.look()  # forgets the recovered ones, which have another name now

    def kill(self) -> None:
        """Kill all recoveries, as a crash may at any moment; `is_idle` tells when they are gone."""
        for child in self._children():
            os.kill(child.pid, signal.SIGKILL)

    @property
    def is_idle(self) -> bool:
        """Whether no recovery is running."""
        return not self._children()

    def finish(self, seconds: float, wait: Callable[[], None]) -> None:
        """Recover the rest after all workers have ended: segments of killed ones, and those that wait for a retry.

        Args:
            seconds: time limit; recoveries that take longer are killed.
            wait: called again and again meanwhile.
        """
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
        else:  # the process could not be started: the segments wait for a retry, and the slot need not wait
            self._leftovers.add(files)

    def _fork_slot(self, slot: int, files: list[SegmentFile]) -> int:
        def work() -> int:
            found = recover_slot(self._leftovers.directory, slot, files).last_timestamp(slot)
            self._last[slot] = max(self._last[slot], found)
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
