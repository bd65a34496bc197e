"""Many lines to a file or to stderr, by a thread of its own, so that nobody waits for the disk or for a reader.

Several processes append to the same file: each batch is one write with O_APPEND, which the kernel does as a whole. Into
a pipe only 4 kB are written as a whole, so what is no file gets pieces of whole lines up to that size.

What waits for the thread is bounded. Lines above the bound, and lines that cannot be written, are dropped and counted.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
from typing import Final

from arcpipe.logs.stderr import pieces

STDERR: Final = "stderr"

# Lines of some seconds at full load; a pipe that nobody reads costs a worker no more memory than this.
_MAX_WAITING_BYTES: Final = 4 << 20
_MODE: Final = 0o640


def open_to_append(path: str) -> int:
    """A file descriptor to append to a file, which is made if there is none. It never waits for a pipe's reader.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, _MODE)
    os.set_blocking(fd, True)
    return fd


class LineWriter:
    """Writes lines to `path`, or to stderr. All methods are for one thread, and none of them waits but `close`.

    A file that cannot be opened costs the lines, and is tried again with the next ones.
    """

    def __init__(self, path: str, opened: int = 0, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        """Args: opened: what `reopened` says until `reopen` is called."""
        self._path = path
        self._fd = 2 if path == STDERR else -1
        self._max_waiting_bytes = max_waiting_bytes
        # Each number has one writer: this object's user, or its thread.
        self._given = 0  # bytes
        self._done = 0  # bytes
        self._refused = 0  # lines
        self._failed = 0  # lines
        self.lines = 0  # that were written
        self.reopened = opened  # the number that the last `reopen` was told
        self._problem = ""
        self._is_cut = False  # the last write ended within a line
        self._queue: queue.SimpleQueue[tuple[bytes, int] | int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were never written."""
        return self._refused + self._failed

    def take_problem(self) -> str:
        """Why something could not be written or opened since the last call; empty if nothing was wrong."""
        problem, self._problem = self._problem, ""
        return problem

    def write(self, data: bytes, lines: int) -> None:
        """Has whole lines written."""
        if self._given - self._done + len(data) > self._max_waiting_bytes:
            self._refused += lines
            self._problem = self._problem or "whoever takes the lines is too slow"
            return
        self._given += len(data)
        self._queue.put((data, lines))

    def reopen(self, number: int) -> None:
        """Has the file opened anew, once what was given so far is written; `reopened` tells when."""
        self._queue.put(number)

    def close(self, seconds: float) -> None:
        """Waits so long for what was given to be written."""
        self._queue.put(None)
        self._thread.join(seconds)

    # On the thread

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            if isinstance(given, int):
                self._open_anew()
                self.reopened = given
                continue
            data, lines = given
            try:
                self._write(b"\n" + data if self._is_cut else data)
                self.lines += lines
            except OSError as error:
                self._failed += lines
                self._problem = error.strerror or str(error)
            self._done += len(data)

    def _open_anew(self) -> None:
        if self._path == STDERR:
            return
        try:
            fd = open_to_append(self._path)
        except OSError as error:
            self._problem = f"it cannot be opened, and the former file is used: {error.strerror or error}"
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._is_cut = fd, False

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            self._fd = open_to_append(self._path)
        is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        for piece in (data,) if is_file else pieces(data):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
                self._is_cut = bool(rest)
