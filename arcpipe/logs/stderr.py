"""Lines to stderr without waiting for the reader, so that a stuck pipe or journal blocks no process.

Bytes that are not accepted at once wait here, up to a bound, and are sent with the next line or at `flush`. Lines above
the bound are dropped and counted. Several processes share the descriptor, so its mode is not changed: a pipe or a
terminal is opened again as non-blocking, and a socket gets a flag with each message. A file on a disk is just written.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from arcpipe.units import KB

_STDERR: Final = 2
# Bytes: lines of a minute with many events, and the most memory that an unread log costs a process.
_MAX_WAITING_BYTES: Final = 256 * KB
# PIPE_BUF of Linux, in bytes: a write up to this size to a pipe is atomic.
PIPE_BYTES: Final = 4096
# At the end of a process, lines that nobody has read yet get this time.
_LAST_SECONDS: Final = 1.0
_FLAGS: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def pieces(data: bytes) -> Iterator[bytes]:
    """Split data into pieces of whole lines, up to PIPE_BYTES each, so that lines of several processes do not mix."""
    start = 0
    while start < len(data):
        end = min(start + PIPE_BYTES, len(data))
        if end < len(data):
            end = data.rfind(b"\n", start, end) + 1 or data.find(b"\n", end) + 1 or len(data)
        yield data[start:end]
        start = end


class LineOutput:
    """Writes whole lines to a descriptor that other processes may share.

    Any thread may use it, even one that is writing here already: garbage collection may run at any point, and
    finalizers log. Such a line waits for the one before it.
    """

    def __init__(self, fd: int, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        self._fd = fd
        self._max_waiting_bytes = max_waiting_bytes
        self._identity: tuple[int, int] | None = None  # device and inode of what was opened
        self._send: Callable[[memoryview], int] = self._write
        self._own_fd = -1
        self._may_refuse = True  # False for a file on a disk, which accepts lines of any length
        self.forget()

    def forget(self) -> None:
        """Drop waiting lines after a fork: the parent writes them."""
        self._lock = threading.RLock()
        self._is_sending = False
        self._waiting = bytearray()
        self._dropped = 0

    def write(self, line: bytes) -> None:
        """Write a line, at once or later, or count it as dropped. Never wait, never raise."""
        with self._lock:
            self._send_waiting()
            if self._waiting and len(self._waiting) + len(line) > self._max_waiting_bytes:
                self._dropped += 1
                return
            self._waiting += line
            self._send_waiting()

    def flush(self, patience_seconds: float = 0.0) -> int:
        """Write waiting lines as far as they are accepted. Once none waits, return the number of dropped lines."""
        deadline = time.monotonic() + patience_seconds
        with self._lock:
            self._send_waiting()
            while self._waiting and (seconds := deadline - time.monotonic()) > 0:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(seconds * 1000)
                self._send_waiting()
            if self._waiting:
                return 0
            dropped, self._dropped = self._dropped, 0
            return dropped

    def _send_waiting(self) -> None:
        if self._waiting and not self._is_sending:
            self._is_sending = True
            try:
                del self._waiting[: self._try(bytes(self._waiting))]
            finally:
                self._is_sending = False

    def _try(self, data: bytes) -> int:
        """Return the number of accepted bytes; all of them after an error, which cannot be logged anywhere."""
        done = 0
        try:
            self._look()
            for piece in pieces(data) if self._may_refuse else (data,):
                rest = memoryview(piece)
                while rest:
                    sent = self._send(rest)
                    done += sent
                    rest = rest[sent:]
        except BlockingIOError:
            return done
        except OSError:
            return len(data)
        return done

    def _look(self) -> None:
        """Choose the way to write to the descriptor, and again if it leads elsewhere by now."""
        status = os.fstat(self._fd)
        if self._identity == (status.st_dev, status.st_ino):
            return
        if self._own_fd >= 0:
            os.close(self._own_fd)
            self._own_fd = -1
        self._may_refuse = not stat.S_ISREG(status.st_mode)
        if stat.S_ISSOCK(status.st_mode):
            self._send = self._send_to_socket
        elif stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):
            self._send = self._write_if_ready
            with contextlib.suppress(OSError):  # it is of another user, or there is no /proc
                self._own_fd = os.open(f"/proc/self/fd/{self._fd}", _FLAGS)
                self._send = self._write
        else:
            self._send = self._write
        self._identity = status.st_dev, status.st_ino

    def _write(self, data: memoryview) -> int:
        return os.write(self._own_fd if self._own_fd >= 0 else self._fd, data)

    def _write_if_ready(self, data: memoryview) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(self._fd, data[:PIPE_BYTES])

    def _send_to_socket(self, data: memoryview) -> int:
        own = socket.socket(fileno=self._fd)
        try:
            return own.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            own.detach()


_OUTPUT: Final = LineOutput(_STDERR)
os.register_at_fork(after_in_child=_OUTPUT.forget)
atexit.register(_OUTPUT.flush, _LAST_SECONDS)

write: Final = _OUTPUT.write
flush: Final = _OUTPUT.flush
