"""A writer of many lines to a file or to stderr, in a thread of its own, so that nobody waits for a disk or a reader.

Several processes append to the same file. Each batch is one write with O_APPEND, which is atomic for a file. For a pipe
only 4 KB are atomic, so all other outputs get pieces of whole lines up to that size.

The memory for waiting lines is bounded. Lines above the bound, or that cannot be written, are dropped and counted.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
from typing import Final

from arcpipe.logs.stderr import pieces

STDERR: Final = "stderr"

# Bytes: lines of some seconds at full load, and the most memory that an unread pipe costs a worker.
_MAX_WAITING_BYTES: Final = 4 << 20
_MODE: Final = 0o640


def open_to_append(path: str) -> int:
    """Open a file to append to it, or make it, and return its descriptor. Never wait for a pipe's reader.

    Raises:
        OSError: the file cannot be opened.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, _MODE)
    os.set_blocking(fd, True)
    return fd


class LineWriter:
    """Writes lines to `path`, or to stderr. One thread may use it; only `close` waits.

    If the file cannot be opened, the lines are lost, and the next ones try again.
    """

    def __init__(self, path: str, opened: int = 0, max_waiting_bytes: int = _MAX_WAITING_BYTES) -> None:
        """Start the thread.

        Args:
            path: of the file, or "stderr".
            opened: the value of `reopened` until `reopen` is called.
            max_waiting_bytes: bound of the waiting lines.
        """
        self._path = path
        self._fd = 2 if path == STDERR else -1
        self._max_waiting_bytes = max_waiting_bytes
        # Each of these numbers is changed by one thread only: the caller's or the writer's.
        self._given = 0  # bytes
        self._done = 0  # bytes
        self._refused = 0  # lines
        self._failed = 0  # lines
        self.lines = 0  # written so far
        self.reopened = opened  # argument of the last `reopen` that is done
        self._problem = ""
        self._is_cut = False  # the last write ended within a line
        self._queue: queue.SimpleQueue[tuple[bytes, int] | int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of lines that were never written."""
        return self._refused + self._failed

    def take_problem(self) -> str:
        """Return a problem of writing or opening since the last call; empty if there was none."""
        problem, self._problem = self._problem, ""
        return problem

    def write(self, data: bytes, lines: int) -> None:
        """Queue whole lines for the thread; `lines` is their number."""
        if self._given - self._done + len(data) > self._max_waiting_bytes:
            self._refused += lines
            self._problem = self._problem or "the disk, or the reader of the lines, is too slow"
            return
        self._given += len(data)
        self._queue.put((data, lines))

    def reopen(self, number: int) -> None:
        """Have the file opened again after all queued lines are written; then `reopened` is `number`."""
        self._queue.put(number)

    def close(self, seconds: float) -> None:
        """Wait at most `seconds` until all queued lines are written."""
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
