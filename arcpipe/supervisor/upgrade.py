"""An upgrade to the installed version, with a way back at every step.

    tried     The installed version tries the whole start in a process of its own (`supervisor.startup`), while the
              supervisor goes on. If the trial fails, its reason is logged, and nothing has changed.
    ready     The uploader ends, and the workers serve. The supervisor holds the sockets that the trial has bound.
    executed  The new program has sockets, lock and workers of the former one. While it cannot start, these workers
              serve, and it executes itself again with the then present settings and code. Once it can, it ends them.

This module knows processes and descriptors; it must not know the work of a worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from arcpipe import logs
from arcpipe.errors import ArcpipeError
from arcpipe.supervisor import signals
from arcpipe.supervisor.child import Child, cause, stop
from arcpipe.supervisor.listeners import discard
from arcpipe.supervisor.service_manager import (
    Inheritance,
    InheritedFd,
    ServiceManager,
    become_new_program,
    take_inheritance,
)
from arcpipe.supervisor.startup import WAY_BACK, receive_fds

log = logging.getLogger(__name__)

# Time limit of a trial, which may meet a name server that does not answer, or a slow disk.
_TRIAL_SECONDS: Final = 20.0
# Bytes of a failed trial's output that are logged at most.
_MAX_REASON_BYTES: Final = 4096
# Pause between two starts of a new program that cannot start, while the former workers serve.
_PAUSE_SECONDS: Final = 2.0
# Workers get this time to answer requests in flight and to seal; then they are killed, and recovery seals.
WORKER_STOP_SECONDS: Final = 15.0


class Trial:
    """A trial of the installed version, in a process of its own; one at a time."""

    def __init__(self, fork: Callable[[str, Callable[[], int]], int]) -> None:
        """Start without a trial.

        Args:
            fork: runs a function in a child with a name, and returns its pid.
        """
        self._fork = fork
        self._pid = 0
        self._deadline = 0.0
        self._output = -1
        self._back: socket.socket | None = None
        self._problem = ""
        self._made: list[InheritedFd] = []

    @property
    def is_running(self) -> bool:
        """Whether a trial is running."""
        return self._pid != 0

    def begin(self, handed_over: list[InheritedFd]) -> None:
        """Start a trial.

        Args:
            handed_over: descriptors for the next program in this process.

        Raises:
            OSError: the machine allows no further process or file.
        """
        assert not self._pid, "BUG: a trial is running"
        self.forget()
        with contextlib.ExitStack() as ours:
            output = os.memfd_create("trial")
            ours.callback(os.close, output)
            back, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.enter_context(back)

            def work() -> int:
                for fd in (1, 2):
                    os.dup2(output, fd)
                become_new_program(Inheritance([*handed_over, InheritedFd(WAY_BACK, theirs.fileno())]), "--check")

            with theirs:
                self._pid = self._fork("trial", work)
            ours.pop_all()
        self._output, self._back = output, back
        self._deadline = time.monotonic() + _TRIAL_SECONDS

    def note_end(self, pid: int, status: int) -> bool:
        """Note a process that ended. Return True if it was the trial, and it succeeded."""
        if pid != self._pid:
            return False
        self._pid = 0
        assert self._back is not None
        if status == 0:
            self._made = receive_fds(self._back)
        else:
            log.error(
                "SIGUSR2: the installed version would not start, so this one stays: %s",
                self._problem or self._reason() or cause(status),
            )
        self.close()
        return status == 0

    def _reason(self) -> str:
        """Return the last message of the trial. Warnings may precede it; the message begins with the program's name."""
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _MAX_REASON_BYTES, max(0, size - _MAX_REASON_BYTES))
        said = data.decode(errors="replace")
        _, found, reason = f"\n{said}".rpartition("\narcpipe: ")
        return (reason if found else said).strip()

    def take_made(self) -> list[InheritedFd]:
        """Return the sockets that the trial has bound. The caller must close them."""
        made, self._made = self._made, []
        return made

    def look(self, now: float) -> None:
        """End a trial that takes too long."""
        if self._pid and now > self._deadline and not self._problem:
            self._problem = f"its trial takes longer than {_TRIAL_SECONDS:g} s"
            os.kill(self._pid, signal.SIGKILL)

    def forget(self) -> None:
        """End a running trial, and discard the sockets that one has bound."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0  # the supervisor's own waitpid collects it
        discard(self.take_made())
        self.close()
        self._problem = ""

    def close(self) -> None:
        """Close this process's descriptors of the trial. Other children call it, too."""
        if self._back is not None:
            self._back.close()
            self._back = None
        if self._output >= 0:
            os.close(self._output)
            self._output = -1


class Former:
    """The remains of the program that this process executed before: sockets, locks, and workers that still serve."""

    def __init__(self, inheritance: Inheritance, manager: ServiceManager) -> None:
        self._inheritance = inheritance
        self.manager = manager
        self.has_workers = bool(inheritance.children)
        # The start closes originals that it does not need; the copies are for the next try.
        self._copies = (
            [InheritedFd(name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, fd)) for name, fd in inheritance.fds]
            if self.has_workers
            else []
        )

    def fds(self, name: str) -> list[int]:
        """Return the descriptors with a name."""
        return [fd for other, fd in self._inheritance.fds if other == name]

    def others(self, name: str) -> list[InheritedFd]:
        """Return all descriptors but those with a name. The caller must close them."""
        return [one for one in self._inheritance.fds if one.name != name]

    def copies(self, name: str) -> list[int]:
        """Return copies of the descriptors with a name. The caller must close them."""
        return [os.dup(fd) for fd in self.fds(name)]

    def close(self, name: str) -> None:
        """Close the descriptors with a name."""
        for fd in self.fds(name):
            os.close(fd)

    def end_workers(self) -> None:
        """End the former workers, if there are any. Afterwards there is no way back, and connections wait in queues."""
        if not self.has_workers:
            return
        self.has_workers = False
        for _, fd in self._copies:
            os.close(fd)
        self._copies = []
        workers = []
        for pid in self._inheritance.children:
            workers.append(Child("worker of the former version", lambda: 0, lambda: True, []))
            workers[-1].pid = pid
        stop(workers, WORKER_STOP_SECONDS, {signal.SIGCHLD}, self.manager.needs_time)
        while any(worker.pid for worker in workers):  # a worker that cannot be killed still owns its slot
            stop(workers, 0.0, {signal.SIGCHLD}, lambda: None)  # does not feed the watchdog

    def execute_again(self, reason: Exception) -> None:
        """Wait _PAUSE_SECONDS and execute the installed program again.

        It returns only after a signal to stop, when the workers have ended.

        Args:
            reason: the error of the start that failed.
        """
        is_expected = isinstance(reason, (ArcpipeError, OSError))
        log.error(
            "the new version cannot start yet, the former workers serve: %s; trying again in %g s",
            *(reason, _PAUSE_SECONDS),
            exc_info=None if is_expected else reason,
        )
        self.manager.status(f"the former workers serve, as the new version cannot start yet: {reason}".splitlines()[0])
        while True:
            self.manager.needs_time()
            received = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, _PAUSE_SECONDS)
            if received is not None:
                log.info("%s: stopping before it has started", signal.Signals(received.si_signo).name)
                self.end_workers()
                return
            logs.flush()
            try:
                become_new_program(Inheritance(self._copies, self._inheritance.children))
            except OSError as error:
                log.error("cannot execute the installed version: %s; trying again in %g s", error, _PAUSE_SECONDS)


def started(start: Callable[[Former], int]) -> int:
    """Run a start, and return its exit code. If it fails while workers of a former program serve, run it again."""
    signals.hold()
    former = Former(take_inheritance(os.environ), ServiceManager(os.environ))
    try:
        return start(former)
    except Exception as error:
        if not former.has_workers:
            raise
        former.execute_again(error)
    return 0
