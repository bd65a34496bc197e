"""The slots of an instance, one for the uploader and one for each worker: filled, watched, and filled again."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Final

from arcpipe.counters import Compaction, Counters, Node
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.child import KILL_SECONDS, Child, cause

log = logging.getLogger(__name__)

# If two checks of the children are further apart, this process or the machine was stopped. No child could send a
# heartbeat then, so none is killed for it.
_PAUSED_SECONDS: Final = 2.0


class Slots:
    """All children that serve or upload, by slot. Times are monotonic, in seconds."""

    def __init__(
        self,
        uploader: Child,
        workers: list[Child],
        counters: Counters,
        aftermath: Aftermath,
        compaction: Child | None = None,
    ) -> None:
        """Take over the empty slots.

        Args:
            aftermath: recovers the segments of dead workers; a slot stays empty until it has.
            compaction: the slot of the compaction process, if the settings want one.
        """
        self.uploader = uploader
        self.workers = workers
        self.compaction = compaction
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
        compaction = self.compaction
        if compaction is not None and not compaction.pid and now >= compaction.start_at:
            compaction.start(now)

    def kill_compaction(self) -> None:
        """End the compaction process at once. What it had begun is finished or undone by the next one."""
        if self.compaction is not None and self.compaction.pid and not self.compaction.killed_at:
            self.compaction.killed_at = time.monotonic()
            os.kill(self.compaction.pid, signal.SIGKILL)

    def look_after(self, now: float) -> bool:
        """Kill children that hang. Return False if one of them is not gone KILL_SECONDS later."""
        was_paused = now - self._looked_at > _PAUSED_SECONDS
        self._looked_at = now
        well = True
        children = [*self.all, *([self.compaction] if self.compaction is not None else [])]
        for number, child in enumerate(children):
            child.check(now)
            if child is self.compaction:
                self._counters.compaction[Compaction.FAILED_STARTS] = child.failures
            else:
                self._counters.failed_starts[number] = child.failures
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
        if self.compaction is not None and self.compaction.pid == pid:
            self._counters.compaction[Compaction.RESTARTS] += 1
            _note_death(self.compaction, pid, status)
        if self.uploader.pid == pid:
            self.note_death_of_uploader(pid, status)

    def note_death_of_uploader(self, pid: int, status: int) -> None:
        """Note that the uploader died, although nobody had asked for its end."""
        self._counters.node[Node.UPLOADER_RESTARTS] += 1
        _note_death(self.uploader, pid, status)


def _note_death(child: Child, pid: int, status: int) -> None:
    delay = child.note_end(time.monotonic(), status)
    log.error("%s (pid %d) died: %s; restarting in %.1f s", child.name, pid, cause(status), delay)
