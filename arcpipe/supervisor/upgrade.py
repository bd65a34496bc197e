"""Becoming the installed version, with a way back at every step.

    tried     the installed version tries the whole start in a process of its own (`supervisor.startup`); the supervisor
              goes on meanwhile. Whatever it does not like is said, and nothing has changed.
    ready     the uploader ends, the workers serve. What the trial has bound is in the supervisor's hands.
    executed  the new program has sockets, lock and workers of the former one. As long as it cannot start, these workers
              serve, and it executes itself again, with settings and code as they are by then. Only then it ends them.

This room knows processes and what is handed over; it must not know what a worker does.
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

# The installed version has so long to try the start: a name server that does not answer, a slow disk.
_TRIAL_SECONDS: Final = 20.0
# Of what it says when it refuses; more is no explanation.
_MAX_REASON_BYTES: Final = 4096
# Between two tries of a new program that cannot start while the former workers serve.
_PAUSE_SECONDS: Final = 2.0
# Workers get so long to answer what is in flight and seal before they are killed; nothing acknowledged is lost then.
WORKER_STOP_SECONDS: Final = 15.0


class Trial:
    """The installed version, asked whether it would start; at most one at a time."""

    def __init__(self, fork: Callable[[str, Callable[[], int]], int]) -> None:
        """Args: fork: runs something in a child of this process; its pid."""
        self._fork = fork
        self._pid = 0
        self._deadline = 0.0
        self._output = -1
        self._back: socket.socket | None = None
        self._problem = ""
        self._made: list[InheritedFd] = []

    @property
    def is_running(self) -> bool:
        return self._pid != 0

    def begin(self, handed_over: list[InheritedFd]) -> None:
        """Starts it with what the next program in this process would have.

        Raises:
            OSError: there is no room for another process, or for its files.
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
        """Takes note of a process that has ended; whether that was the trial and went well."""
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
        """The last of what it said. Warnings may come before; the last words have the program's name."""
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _MAX_REASON_BYTES, max(0, size - _MAX_REASON_BYTES))
        said = data.decode(errors="replace")
        _, found, reason = f"\n{said}".rpartition("\narcpipe: ")
        return (reason if found else said).strip()

    def take_made(self) -> list[InheritedFd]:
        """The sockets that it has bound; whoever takes them has to close them."""
        made, self._made = self._made, []
        return made

    def look(self, now: float) -> None:
        """Ends one that takes too long."""
        if self._pid and now > self._deadline and not self._problem:
            self._problem = f"it takes longer than {_TRIAL_SECONDS:g} s to say so"
            os.kill(self._pid, signal.SIGKILL)

    def forget(self) -> None:
        """Gives up a trial, or what one has made."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0  # whoever waits for children finds it
        discard(self.take_made())
        self.close()
        self._problem = ""

    def close(self) -> None:
        """Closes what this process has open of it. To be called in other children, too."""
        if self._back is not None:
            self._back.close()
            self._back = None
        if self._output >= 0:
            os.close(self._output)
            self._output = -1


class Former:
    """What the program that this process was has left: sockets, locks, and workers that still serve."""

    def __init__(self, inheritance: Inheritance, manager: ServiceManager) -> None:
        self._inheritance = inheritance
        self.manager = manager
        self.has_workers = bool(inheritance.children)
        # The originals are closed by whoever has no use for them; these are for another try.
        self._copies = (
            [InheritedFd(name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, fd)) for name, fd in inheritance.fds]
            if self.has_workers
            else []
        )

    def fds(self, name: str) -> list[int]:
        """Those of a name."""
        return [fd for other, fd in self._inheritance.fds if other == name]

    def others(self, name: str) -> list[InheritedFd]:
        """All but those of a name; whoever takes them has to close them."""
        return [one for one in self._inheritance.fds if one.name != name]

    def copies(self, name: str) -> list[int]:
        """Further descriptors of those of a name; whoever takes them has to close them."""
        return [os.dup(fd) for fd in self.fds(name)]

    def close(self, name: str) -> None:
        """Closes those of a name."""
        for fd in self.fds(name):
            os.close(fd)

    def end_workers(self) -> None:
        """Ends them, once: from now on there is no way back, and connections wait in their queues."""
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
        while any(worker.pid for worker in workers):  # one that cannot be killed still has its slot
            stop(workers, 0.0, {signal.SIGCHLD}, lambda: None)  # and the watchdog is not fed for it

    def execute_again(self, reason: Exception) -> None:
        """Waits a moment and becomes the installed program anew; returns if it is to stop, with the workers ended."""
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
    """Runs a start, again and again if it fails while workers of a former program serve; the exit code."""
    signals.hold()
    former = Former(take_inheritance(os.environ), ServiceManager(os.environ))
    try:
        return start(former)
    except Exception as error:
        if not former.has_workers:
            raise
        former.execute_again(error)
    return 0
