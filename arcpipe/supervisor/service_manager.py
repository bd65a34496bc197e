"""What a service manager and the supervisor tell each other: systemd's notifications, and sockets handed from one
process to the next.

The protocols are sd_notify(3) and sd_listen_fds(3): datagrams to a Unix socket, and file descriptors from 3 on that
environment variables count and name. Both are a few lines, so no library is wanted for them. Without a service manager
nothing is sent. This room knows nothing of arcpipe's processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import socket
import sys
import time
from collections.abc import MutableMapping, Sequence
from typing import Final, NamedTuple, NoReturn

_FIRST_FD: Final = 3
_CHILDREN: Final = "INHERITED_CHILDREN"  # the one variable that no service manager sets
_EXTENSION_SECONDS: Final = 30
_SIGN_SECONDS: Final = 1.0
# What counts waits so long for a manager that is busy; all else is dropped at once, and comes again.
_SEND_SECONDS: Final = 1.0
# Descriptors in one message: the kernel takes 253 (SCM_MAX_FD), and refuses a message that has more.
MAX_FDS: Final = 250


class InheritedFd(NamedTuple):
    """A file descriptor that was handed to this process, and what it is for."""

    name: str
    fd: int


class Inheritance(NamedTuple):
    """What a process starts with: from its service manager, or from the program that it was before."""

    fds: Sequence[InheritedFd] = ()
    children: Sequence[int] = ()  # process ids


class ServiceManager:
    """Sends notifications to whoever started this process, if he wants any (`NOTIFY_SOCKET`).

    A message that cannot be sent is dropped: no manager is reason enough to stop serving.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of Linux's abstract names.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        given = environ.get("WATCHDOG_USEC", "") if ours else ""
        # After so long without a sign this process is ended; infinite without a watchdog.
        self.watchdog_seconds = (int(given) if given.isdigit() else 0) / 1e6 or math.inf
        self._next_sign = 0.0
        self._status = ""

    def notify(self, *fields: str, fds: Sequence[int] = (), patience_seconds: float = 0.0) -> None:
        """Sends one message of `NAME=value` fields, with copies of at most MAX_FDS `fds`."""
        if self._socket is None:
            return
        message = "\n".join(fields).encode("utf-8", "backslashreplace")
        try:
            self._socket.settimeout(patience_seconds)
            if fds:
                self._socket.connect(self._address)
                socket.send_fds(self._socket, [message], fds)
            else:
                self._socket.sendto(message, self._address)
        except OSError:
            pass

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows, sent if it is another one than before."""
        if text != self._status:
            self._status = text
            self.notify(f"STATUS={text}")

    def ready(self, status: str) -> None:
        """Started, or done with reloading."""
        self._status = status
        self.notify("READY=1", f"STATUS={status}", patience_seconds=_SEND_SECONDS)

    def reloading(self, status: str) -> None:
        """Settings are being read again, or the program is being replaced; `ready` ends it."""
        self._status = status
        self.notify(
            "RELOADING=1",
            f"MONOTONIC_USEC={time.monotonic_ns() // 1000}",
            f"STATUS={status}",
            patience_seconds=_SEND_SECONDS,
        )

    def stopping(self, status: str) -> None:
        self._status = status
        self.notify("STOPPING=1", f"STATUS={status}", patience_seconds=_SEND_SECONDS)

    def is_well(self) -> None:
        """Feeds the watchdog, about once a second however often it is called."""
        if self.watchdog_seconds < math.inf:
            self._sign("WATCHDOG=1")

    def needs_time(self) -> None:
        """Feeds the watchdog in a start or stop that takes long, and asks for its timeout to be put off."""
        self._sign("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={_EXTENSION_SECONDS * 1_000_000}")

    def _sign(self, *fields: str) -> None:
        now = time.monotonic()
        if now >= self._next_sign:
            self._next_sign = now + _SIGN_SECONDS
            self.notify(*fields)

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Leaves copies of file descriptors with the manager: the next process gets them if this one crashes."""
        for start in range(0, len(fds), MAX_FDS):
            some = fds[start : start + MAX_FDS]
            self.notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=some, patience_seconds=_SEND_SECONDS)

    def drop(self, name: str) -> None:
        """Has the manager close what it was given to keep under that name."""
        self.notify("FDSTOREREMOVE=1", f"FDNAME={name}", patience_seconds=_SEND_SECONDS)


def take_inheritance(environ: MutableMapping[str, str]) -> Inheritance:
    """What was handed over. Only the first who asks gets it."""
    is_ours = environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = environ.pop("LISTEN_FDS", "0")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    children = environ.pop(_CHILDREN, "").split()
    if not is_ours or not count.isdigit():
        return Inheritance()
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    names += ["unknown"] * (len(fds) - len(names))
    for fd in fds:
        with contextlib.suppress(OSError):  # one that was named and not handed over is found out where it is used
            os.set_inheritable(fd, False)
    return Inheritance(
        [InheritedFd(name, fd) for name, fd in zip(names, fds, strict=False)], [int(pid) for pid in children]
    )


def become_new_program(inheritance: Inheritance, *arguments: str) -> NoReturn:
    """Executes this process's own command line again, as it is installed now, with further arguments.

    The process id stays, and so do children and signals that are blocked or pending. Whatever else is open is closed.

    Raises:
        OSError: it cannot be executed. This process is as it was.
    """
    above = _FIRST_FD + len(inheritance.fds)
    moved: list[int] = []
    replaced: dict[int, int] = {}  # what this process has there itself
    environ = os.environ | {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(inheritance.fds)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in inheritance.fds),
        _CHILDREN: " ".join(map(str, inheritance.children)),
    }
    try:
        for _, fd in inheritance.fds:
            moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above))
        for place, fd in enumerate(moved, _FIRST_FD):
            replaced[place] = _copy(place, above)
            os.dup2(fd, place)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:], *arguments], environ)
    finally:  # it failed
        for place, copy in replaced.items():
            os.close(place)
            if copy >= 0:
                os.dup2(copy, place, inheritable=False)
                os.close(copy)
        for fd in moved:
            os.close(fd)


def _copy(fd: int, above: int) -> int:
    """A copy of a descriptor that is above a number; -1 if there is none to copy."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return -1
