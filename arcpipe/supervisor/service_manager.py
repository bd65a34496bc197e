"""The protocols between service manager and supervisor: systemd's notifications, and descriptors that are handed over.

They are sd_notify(3) and sd_listen_fds(3): datagrams to a Unix socket, and file descriptors from 3 on that environment
variables count and name. Both take a few lines, so no library is needed. Without a service manager nothing is sent.
This module knows nothing of arcpipe's processes.
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

from arcpipe.clock import monotonic_us

_FIRST_FD: Final = 3
_CHILDREN: Final = "INHERITED_CHILDREN"  # our own variable; the service manager sets all others
# A slow start or stop asks for its timeout to be extended by this.
_EXTENSION_SECONDS: Final = 30
# Time between two messages to the watchdog.
_SIGN_SECONDS: Final = 1.0
# A message that is sent only once waits this long for a busy manager. Repeated ones are dropped at once.
_SEND_SECONDS: Final = 1.0
# Descriptors in one message. The kernel accepts 253 (SCM_MAX_FD), and refuses messages with more.
MAX_FDS: Final = 250


class InheritedFd(NamedTuple):
    """A file descriptor that was handed to this process, with the name of its purpose."""

    name: str
    fd: int


class Inheritance(NamedTuple):
    """Descriptors and children from the service manager, or from the program that this process executed before."""

    fds: Sequence[InheritedFd] = ()
    children: Sequence[int] = ()  # process ids


class ServiceManager:
    """Sends notifications to the service manager that started this process, if it wants any (`NOTIFY_SOCKET`).

    A message that cannot be sent is dropped: trouble with the manager is no reason to stop serving.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract socket name of Linux.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        given = environ.get("WATCHDOG_USEC", "") if ours else ""
        # After this time without a message the manager ends this process; infinite without a watchdog.
        self.watchdog_seconds = (int(given) if given.isdigit() else 0) / 1e6 or math.inf
        self._next_sign = 0.0
        self._status = ""

    def notify(self, *fields: str, fds: Sequence[int] = (), patience_seconds: float = 0.0) -> None:
        """Send one message of `NAME=value` fields, with copies of at most MAX_FDS `fds`."""
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
        """Send the line that `systemctl status` shows, if it has changed."""
        if text != self._status:
            self._status = text
            self.notify(f"STATUS={text}")

    def ready(self, status: str) -> None:
        """Send that the start, or a reload, is done."""
        self._status = status
        self.notify("READY=1", f"STATUS={status}", patience_seconds=_SEND_SECONDS)

    def reloading(self, status: str) -> None:
        """Send that a reload or an upgrade has begun; `ready` ends it."""
        self._status = status
        self.notify(
            "RELOADING=1",
            f"MONOTONIC_USEC={monotonic_us()}",
            f"STATUS={status}",
            patience_seconds=_SEND_SECONDS,
        )

    def stopping(self, status: str) -> None:
        """Send that the stop has begun."""
        self._status = status
        self.notify("STOPPING=1", f"STATUS={status}", patience_seconds=_SEND_SECONDS)

    def is_well(self) -> None:
        """Feed the watchdog, at most once a second."""
        if self.watchdog_seconds < math.inf:
            self._sign("WATCHDOG=1")

    def needs_time(self) -> None:
        """Feed the watchdog in a long start or stop, and extend the timeout of that, at most once a second."""
        self._sign("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={_EXTENSION_SECONDS * 1_000_000}")

    def _sign(self, *fields: str) -> None:
        now = time.monotonic()
        if now >= self._next_sign:
            self._next_sign = now + _SIGN_SECONDS
            self.notify(*fields)

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Give the manager copies of descriptors, which the next process gets if this one crashes."""
        for start in range(0, len(fds), MAX_FDS):
            some = fds[start : start + MAX_FDS]
            self.notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=some, patience_seconds=_SEND_SECONDS)

    def drop(self, name: str) -> None:
        """Have the manager close the descriptors that it keeps under a name."""
        self.notify("FDSTOREREMOVE=1", f"FDNAME={name}", patience_seconds=_SEND_SECONDS)


def take_inheritance(environ: MutableMapping[str, str]) -> Inheritance:
    """Return all that was handed to this process, and remove it from the environment."""
    is_ours = environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = environ.pop("LISTEN_FDS", "0")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    children = environ.pop(_CHILDREN, "").split()
    if not is_ours or not count.isdigit():
        return Inheritance()
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    names += ["unknown"] * (len(fds) - len(names))
    for fd in fds:
        with contextlib.suppress(OSError):  # a descriptor that is named and not open fails where it is used
            os.set_inheritable(fd, False)
    return Inheritance(
        [InheritedFd(name, fd) for name, fd in zip(names, fds, strict=False)], [int(pid) for pid in children]
    )


def become_new_program(inheritance: Inheritance, *arguments: str) -> NoReturn:
    """Execute this process's command line again with the installed program, and with further arguments.

    Process id, children, and blocked and pending signals stay. All other open files are closed.

    Args:
        inheritance: descriptors and children for the new program.
        arguments: appended to the command line.

    Raises:
        OSError: the program cannot be executed. This process is unchanged.
    """
    above = _FIRST_FD + len(inheritance.fds)
    moved: list[int] = []
    replaced: dict[int, int] = {}  # copies of this process's own descriptors at these numbers
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
    finally:  # reached only if it failed
        for place, copy in replaced.items():
            os.close(place)
            if copy >= 0:
                os.dup2(copy, place, inheritable=False)
                os.close(copy)
        for fd in moved:
            os.close(fd)


def _copy(fd: int, above: int) -> int:
    """Copy a descriptor to a number of at least `above`, and return that; -1 if the descriptor is not open."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return -1
