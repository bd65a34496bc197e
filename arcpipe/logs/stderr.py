"""Lines to stderr without waiting for whoever reads it: a pipe or a journal that is stuck holds up nobody.

What is not taken at once waits here, up to a bound, and goes out with the next line or at `flush`. Lines above the
bound are dropped and counted. Several processes share the descriptor, so its own mode is left alone: a pipe or a
terminal is opened a second time, and a socket is told with each message not to wait. A file on a disk is written as
files are.
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

_STDERR: Final = 2
# Lines of an eventful minute; a log that nobody reads costs a process no more memory than this.
_MAX_WAITING_BYTES: Final = 256 << 10
# What POSIX calls PIPE_BUF, as Linux has it: a pipe that is ready for writing takes so many bytes whole.
PIPE_BYTES: Final = 4096
# At the end of a process, for whoever reads them to come.
_LAST_SECONDS: Final = 1.0
_FLAGS: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, together as many as a pipe takes at once: those of several processes do not mix then."""
    start = 0
    while start < len(data):
        end = min(start + PIPE_BYTES, len(data))
        if end < len(data):
            end = data.rfind(b"\n", start, end) + 1 or data.find(b"\n", end) + 1 or len(data)
        yield data[start:end]
        start = end


class LineOutput:
    """Whole lines to a descriptor of this process that others may have, too.

    For any thread, also for one that is writing here already: the collector of garbage may run at any place, and
    finalizers log. Such a line waits for the one before it.
    """

    def __init__(self, fd: int, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        self._fd = fd
        self._max_waiting_bytes = max_waiting_bytes
        self._identity: tuple[int, int] | None = None  # device and inode of what was opened
        self._send: Callable[[memoryview], int] = self._write
        self._own_fd = -1
        self._may_refuse = True  # as a file on a disk does not, which takes a line as a whole, whatever its length
        self.forget()

    def forget(self) -> None:
        """What waits is another process's to write: to be called after a fork."""
        self._lock = threading.RLock()
        self._is_sending = False
        self._waiting = bytearray()
        self._dropped = 0

    def write(self, line: bytes) -> None:
        """Has a line written, at once or later, or counts it as dropped. Never waits, never raises."""
        with self._lock:
            self._send_waiting()
            if self._waiting and len(self._waiting) + len(line) > self._max_waiting_bytes:
                self._dropped += 1
                return
            self._waiting += line
            self._send_waiting()

    def flush(self, patience_seconds: float = 0.0) -> int:
        """Writes what waits, as far as it is taken; how many lines were dropped, once that can be said."""
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
        """Bytes that were taken. All of them where there is nobody to take any: there is no second place to say so."""
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
        """Finds out how to write to the descriptor, again if it is another one's by now."""
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
            with contextlib.suppress(OSError):  # of another user, or without /proc
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
