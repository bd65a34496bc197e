"""The hand-over of a running instance to the installed version, from SIGUSR2 to the moment at which it is executed."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from arcpipe import logs
from arcpipe.counters import HANDED_OVER, Node
from arcpipe.supervisor.aftermath import Aftermath
from arcpipe.supervisor.child import KILL_SECONDS, Child, send
from arcpipe.supervisor.listeners import discard
from arcpipe.supervisor.service_manager import Inheritance, InheritedFd, ServiceManager, become_new_program
from arcpipe.supervisor.upgrade import Trial

log = logging.getLogger(__name__)

# Before another program is executed, log lines that nobody has read yet get this time.
_LAST_LINES_SECONDS: Final = 0.5
# An upgrade waits this long for the uploader, while the workers serve. A batch that is interrupted is done again.
_UPLOADER_SECONDS: Final = 5.0


class Handover:
    """The upgrade of this process, one at a time: tried, then leaving, then executed.

    A step that fails leaves this version running as before.
    """

    def __init__(
        self,
        trial: Trial,
        aftermath: Aftermath,
        manager: ServiceManager,
        node: memoryview,
        inheritance: Callable[[], list[InheritedFd]],
    ) -> None:
        """Keep what an upgrade needs.

        Args:
            node: the supervisor's block of counters.
            inheritance: returns the descriptors for the next program in this process.
        """
        self._trial = trial
        self._aftermath = aftermath
        self._manager = manager
        self._node = node
        self._inheritance = inheritance
        self._leaving_since = 0.0  # monotonic; 0: not leaving

    @property
    def is_leaving(self) -> bool:
        """Whether the uploader is ending, or has ended, for the installed version."""
        return self._leaving_since > 0

    def begin(self) -> None:
        """Start a trial of the installed version with the present settings."""
        if self._trial.is_running or self.is_leaving:
            log.warning("SIGUSR2: an upgrade is being tried already")
            return
        try:
            self._trial.begin(self._inheritance())
        except OSError as error:
            log.error("SIGUSR2: the installed version cannot be tried, so this one stays: %s", error)

    def note_end(self, pid: int, status: int, uploader: Child) -> None:
        """Note a child that ended: after a successful trial the uploader ends, too."""
        if self._trial.note_end(pid, status):
            self._leave(uploader)

    def _leave(self, uploader: Child) -> None:
        """End the uploader and all other processes at the WAL but the workers, which go on serving."""
        self._leaving_since = time.monotonic()
        self._node[Node.DRAINING] = HANDED_OVER
        self._aftermath.kill()
        send([uploader], signal.SIGTERM)

    def check_trial(self, now: float) -> None:
        """End a trial that takes too long."""
        self._trial.look(now)

    def make_way(self, now: float, uploader: Child, workers: Sequence[Child], status: str) -> None:
        """Execute the installed version once only the workers are left; they serve until it can start.

        From then on, a signal to stop waits for the new version.

        Args:
            status: the status line for the service manager if this version stays.
        """
        if uploader.pid or not self._aftermath.is_idle:
            seconds = now - self._leaving_since
            if seconds > _UPLOADER_SECONDS and not uploader.killed_at:
                uploader.killed_at = now
                send([uploader], signal.SIGKILL)
            elif seconds > _UPLOADER_SECONDS + KILL_SECONDS:
                log.error("SIGUSR2: a process at the WAL cannot be killed, so this version stays")
                self.forget()
            return
        log.info("SIGUSR2: making way for the installed version")
        self._manager.reloading("making way for the installed version")
        self._manager.needs_time()
        logs.flush(_LAST_LINES_SECONDS)
        made = self._trial.take_made()
        try:
            become_new_program(
                Inheritance([*self._inheritance(), *made], [worker.pid for worker in workers if worker.pid])
            )
        except OSError as error:
            log.error("SIGUSR2: the installed version cannot be executed, so this one stays: %s", error)
        discard(made)
        self._manager.ready(status)
        self.forget()

    def forget(self) -> None:
        """Give up the upgrade, at whatever step it is."""
        if self.is_leaving:
            self._node[Node.DRAINING] = 0
        self._leaving_since = 0.0
        self._trial.forget()
