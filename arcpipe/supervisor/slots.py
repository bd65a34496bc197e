"""The slots of an instance, one for the uploader and one for each worker: filled, watched, and filled again."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from arcpipe.counters import Counters, Node
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.child import KILL_SECONDS, Child, cause

log = logging.getLogger(__name__)

# If two checks of the children are further apart, this process or the machine was stopped. No child could send a
# heartbeat then, so none is killed for it.
_PAUSED_SECONDS: Final = 2.0


class Upkeep(NamedTuple):
    """A child that nobody waits for, with its block of counters and the fields of its restarts there."""

    child: Child
    block: memoryview
    restarts: int
    failed_starts: int


class Slots:
    """All children that serve or upload, by slot. Times are monotonic, in seconds."""

    def __init__(
        self,
        uploader: Child,
        workers: list[Child],
        counters: Counters,
        aftermath: Aftermath,
        upkeep: Sequence[Upkeep] = (),
    ) -> None:
        """Take over the empty slots.

        Args:
            aftermath: recovers the segments of dead workers; a slot stays empty until it has.
            upkeep: the slots of the compaction process and of the committer, if the settings want them.
        """
        self.uploader = uploader
        self.workers = workers
        self.upkeep = upkeep
        self._counters = counters
        self._aftermath = aftermath
        self._looked_at = 0.0

    @property
    def all(self) -> list[Child]:
        """Every slot that the instance needs: the uploader, then the workers."""
        return [self.uploader, *self.workers]

    @property
    def are_hopeless(self) -> bool:
        """Whether no worker can be kept alive."""
        return all(worker.is_hopeless for worker in self.workers)

    def start_due(self, now: float) -> None:
        """Fill the empty slots that may be filled, the workers first."""
        for number, child in reversed(list(enumerate(self.all))):
            if not child.pid and now >= child.start_at and self._aftermath.is_over(number):
                child.start(now)
        for child, *_ in self.upkeep:
            if not child.pid and now >= child.start_at:
                child.start(now)

    def upkeep_named(self, name: str) -> list[Child]:
        """Return the slot of the process with this name, if the settings want one."""
        return [child for child, *_ in self.upkeep if child.name == name]

    def upkeep_of(self, pid: int) -> Child | None:
        """Return the slot of the compaction process or the committer that has this pid."""
        return next((child for child, *_ in self.upkeep if child.pid == pid), None)

    def kill_upkeep(self) -> None:
        """End compaction and committer at once. What they had begun is finished or undone by the next ones."""
        for child, *_ in self.upkeep:
            if child.pid and not child.killed_at:
                child.killed_at = time.monotonic()
                os.kill(child.pid, signal.SIGKILL)

    def look_after(self, now: float) -> bool:
        """Kill children that hang. Return False if one of them is not gone KILL_SECONDS later."""
        was_paused = now - self._looked_at > _PAUSED_SECONDS
        self._looked_at = now
        well = True
        for number, child in enumerate(self.all):
            child.check(now)
            self._counters.failed_starts[number] = child.failures
        for one in self.upkeep:
            one.child.check(now)
            one.block[one.failed_starts] = one.child.failures
        for child in (*self.all, *(one.child for one in self.upkeep)):
            if not child.pid:
                continue
            if was_paused:
                child.forgive(now)
            elif child.killed_at:
                well = well and now - child.killed_at <= KILL_SECONDS
            elif child.hangs(now):
                log.error("%s (pid %d) has no heartbeat; killing it", child.name, child.pid)
                child.killed_at = now
                os.kill(child.pid, signal.SIGKILL)
        return well

    def note_end(self, pid: int, status: int) -> None:
        """Note a child that died: its slot is filled again after a pause, once its segments are recovered."""
        for slot, worker in enumerate(self.workers, 1):
            if worker.pid == pid:
                self._counters.node[Node.WORKER_RESTARTS] += 1
                _note_death(worker, pid, status)
                if self._counters.meters is not None:
                    self._counters.meters.forget(slot)
                self._aftermath.note_death(slot)
        for one in self.upkeep:
            if one.child.pid == pid:
                one.block[one.restarts] += 1
                _note_death(one.child, pid, status)
        if self.uploader.pid == pid:
            self.note_death_of_uploader(pid, status)

    def note_death_of_uploader(self, pid: int, status: int) -> None:
        """Note that the uploader died, although nobody had asked for its end."""
        self._counters.node[Node.UPLOADER_RESTARTS] += 1
        _note_death(self.uploader, pid, status)


def _note_death(child: Child, pid: int, status: int) -> None:
    delay = child.note_end(time.monotonic(), status)
    log.error("%s (pid %d) died: %s; restarting in %.1f s", child.name, pid, cause(status), delay)
