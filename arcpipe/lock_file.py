"""A lock on a file that says who holds it. The kernel gives it back when the process is gone."""

from __future__ import annotations

import fcntl
import os


class Held(Exception):
    """Another process holds the lock; the text is its pid, or "unknown"."""


def take(path: str) -> int:
    """Take the lock, and write this process's pid into its file, which is made if it is not there.

    Returns:
        A descriptor: closing it gives the lock back.

    Raises:
        Held: another process holds it.
        OSError: the file cannot be opened or written.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
