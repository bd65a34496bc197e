"""The ordered end of an instance: its workers stop, the uploader gets its time, and the last line tells the result."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from arcpipe.counters import BEGUN, Counters, Node, Worker
from arcpipe.supervisor import last_words
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.backlog import Backlog
from arcpipe.supervisor.child import Child, send, stop
from arcpipe.supervisor.listeners import LISTENER, Listeners
from arcpipe.supervisor.service_manager import ServiceManager
from arcpipe.supervisor.signals import SIGNALS
from arcpipe.supervisor.slots import Slots
from arcpipe.supervisor.upgrade import WORKER_STOP_SECONDS
from arcpipe.tables.commit_file import CommitFiles
from arcpipe.wal.directory import SEALED, WALDirectory

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

# At a stop, recovery of segments of workers that had to be killed gets this time; the next start does the rest.
_LAST_RECOVERY_SECONDS: Final = 15.0
# A merge that is committed gets this time to delete its inputs. The next start does the rest.
_COMPACTION_SECONDS: Final = 3.0


class Drain:
    """Stops the workers, then waits for the uploader. A second signal ends the waiting."""

    def __init__(
        self, settings: Settings, directory: WALDirectory, counters: Counters, manager: ServiceManager, backlog: Backlog
    ) -> None:
        """Keep what is needed; nothing stops yet."""
        self._settings = settings
        self._directory = directory
        self._counters = counters
        self._manager = manager
        self._backlog = backlog

    def run(self, slots: Slots, listeners: Listeners, aftermath: Aftermath, hurry: bool) -> int:
        """Stop everything, and log what is left.

        Args:
            hurry: kill the processes instead of waiting for them.

        Returns:
            An exit code other than 0 if it is not known whether everything is uploaded.
        """
        self._counters.node[Node.DRAINING] = BEGUN
        self._manager.stopping("answering what is in flight")
        self._manager.drop(LISTENER)
        listeners.remove_files()
        listeners.close()
        compaction = slots.upkeep_named("compaction")
        send(compaction, signal.SIGTERM)
        hurry = self._stop(slots.workers, 0.0 if hurry else WORKER_STOP_SECONDS) or hurry
        hurry = self._stop(compaction, 0.0 if hurry else _COMPACTION_SECONDS) or hurry
        aftermath.finish(_LAST_RECOVERY_SECONDS, self._while_waiting)
        self._manager.status("uploading the rest of the WAL")
        deadline = time.monotonic() + (0.0 if hurry else self._settings.shutdown.drain_seconds)
        self._upload_the_rest(slots, deadline)
        self._commit_the_rest(slots, deadline)
        self._backlog.measure()
        lost = sum(self._counters.worker(slot)[Worker.LOST_RECORDS] for slot, _ in enumerate(slots.workers, 1))
        return last_words.speak(self._directory, self._doubt(slots.workers), lost)

    def _doubt(self, workers: list[Child]) -> str:
        """Return the reason why an empty directory does not prove that everything is uploaded; empty if it does."""
        if self._counters.node[Node.REPLACED]:
            return f"{self._directory.path} is another directory than at the start"
        has_died = self._counters.node[Node.WORKER_RESTARTS] > 0 or any(worker.status for worker in workers)
        if not self._settings.wal.enabled and has_died:
            return "the WAL is disabled, and a worker ended with what it held in memory"
        return ""

    def _upload_the_rest(self, slots: Slots, deadline: float) -> None:
        """Wait until the uploader is done, and replace it if it is dead or dies.

        It is also replaced if it stopped too early: some service managers send the signal to every process.
        """
        uploader = slots.uploader
        while (now := time.monotonic()) < deadline:
            if not uploader.pid and now >= uploader.start_at:
                uploader.start(now)
            pid = uploader.pid
            if pid:
                if self._stop([uploader], deadline - now) or time.monotonic() >= deadline:
                    return
                if uploader.status != 0:
                    slots.note_death_of_uploader(pid, uploader.status)
                elif self._is_uploaded():
                    return
                else:
                    uploader.put_off(time.monotonic())
            pause = min(uploader.start_at, deadline) - time.monotonic()
            if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, max(0.0, pause)) is not None:
                return
        self._stop([uploader], 0.0)

    def _commit_the_rest(self, slots: Slots, deadline: float) -> None:
        """Have the committer make what is uploaded a part of tables, in the time that is left.

        It is started again if it ended too early, with the uploader at work: some service managers send the signal to
        every process.
        """
        for committer in slots.upkeep_named("committer"):
            self._manager.status("committing the rest to tables")
            if not committer.pid and self._has_commit_files() and time.monotonic() < deadline:
                committer.start(time.monotonic())
            send([committer], signal.SIGTERM)
            self._stop([committer], deadline - time.monotonic())

    def _has_commit_files(self) -> bool:
        try:
            return bool(CommitFiles(self._directory.path).names())
        except OSError:
            return False  # unknown; the next start will see

    def _is_uploaded(self) -> bool:
        try:
            return not self._directory.segments(SEALED)
        except OSError:
            return False  # unknown

    def _stop(self, children: list[Child], seconds: float) -> bool:
        return stop(children, seconds, SIGNALS, self._while_waiting)

    def _while_waiting(self) -> None:
        if self._backlog.is_due:
            self._backlog.measure()  # workers that still serve need fresh figures
        self._manager.needs_time()
