"""Every system call on the WAL directory, in one place and nowhere else.

A short write is completed here, or raises; callers never see half a write that looks whole. A read that fails raises:
it never looks like an empty file, zeros or the end of a file. The crash tests replace this `Disk` by one that records
and fails, so they replay exactly the calls of the program.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeVar

from arcpipe import descriptors

T = TypeVar("T")

IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024)

Buffer = bytes | bytearray | memoryview


class Disk:
    """The real disk. Every method may raise OSError, and then leaves no half-done state in memory."""

    def create(self, path: str) -> int:
        """Create a file for reading and writing and return its descriptor; raise if the name is taken."""
        return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)

    def open(self, path: str) -> int:
        """Open an existing file for reading and writing and return its descriptor."""
        return _open(path, os.O_RDWR)

    def open_for_reading(self, path: str) -> int:
        """Open an existing file for reading only and return its descriptor. A named pipe does not wait for a writer."""
        return _open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset`; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        while len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_cached(self, fd: int, length: int, offset: int) -> bytes:
        """Return what the page cache has of `length` bytes at `offset`, and never wait for a disk.

        Raises:
            BlockingIOError: it has nothing of them. They are fetched meanwhile, so a later call may return them.
        """
        buffer = bytearray(length)
        try:
            return bytes(buffer[: os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)])
        except BlockingIOError:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
            raise
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        return self.read(fd, length, offset)  # such as of files in memory

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Fill the buffer, or a part of it, from `offset` on and return the number of bytes; 0 only at the end."""
        return os.preadv(fd, [buffer], offset)

    def status(self, fd: int) -> os.stat_result:
        """Return size and times of an open file."""
        return os.fstat(fd)

    def read_nothing_ahead(self, fd: int) -> None:
        """Advise the kernel to read only the bytes asked for from this file; errors are ignored."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, in no order."""
        return _opened(lambda: os.listdir(path))

    def scan(self, path: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        """Open a directory to go over its entries, which come in no order."""
        return _opened(lambda: os.scandir(path))

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; None if there is no such file."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None

    def close(self, fd: int) -> None:
        """Close a descriptor and ignore errors: they concern data that was synced or given up before."""
        try:
            os.close(fd)
        except OSError:
            pass

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all the buffers at `offset`, or raise."""
        start = 0
        while start < len(buffers):
            chunk = buffers[start : start + IOV_MAX]
            written = self._pwritev(fd, chunk, offset)
            wanted = sum(map(len, chunk))
            offset += written
            if written == wanted:
                start += len(chunk)
                continue
            # A short write: a full disk, a signal, or a file system that does so. Go on after it; the next
            # call either writes more or raises the reason.
            if written <= 0:
                raise OSError(errno.EIO, "the device took no bytes and gave no reason")
            buffers = [*_rest_after(chunk, written), *buffers[start + len(chunk) :]]
            start = 0

    def _pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def forget(self, fd: int, offset: int = 0, size: int = 0) -> None:
        """Advise the kernel to drop pages of a file from its cache; errors are ignored.

        Pages that are not on the disk yet stay, and the kernel begins to write them.

        Args:
            fd: of the file.
            offset: where they begin.
            size: bytes of them; 0 for all up to the end.
        """
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def make_directory(self, path: str, mode: int = 0o750) -> None:
        os.makedirs(path, mode, exist_ok=True)

    def open_directory(self, path: str) -> int:
        """Open an existing directory, to sync or lock it, and return its descriptor."""
        return _open(path, os.O_RDONLY | os.O_DIRECTORY)

    def sync_directory(self, path: str) -> None:
        """Make creations, renames and removals in a directory durable."""
        fd = self.open_directory(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _open(path: str, flags: int, mode: int = 0o777) -> int:
    return _opened(lambda: os.open(path, flags | os.O_CLOEXEC, mode))


def _opened(open_it: Callable[[], T]) -> T:
    """Open something, from the reserve of descriptors if there is no other left."""
    try:
        return open_it()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    with descriptors.reserve():
        return open_it()


def _rest_after(buffers: Sequence[Buffer], written: int) -> list[Buffer]:
    """Return the rest of `buffers` after their first `written` bytes."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


def space(disk: os.statvfs_result) -> tuple[int, int]:
    """Return the free bytes and the total bytes of a file system, for users other than root.

    As in `df`, blocks that are reserved for root count as neither free nor used, and are not part of the total.
    """
    free = disk.f_bavail * disk.f_frsize
    return free, (disk.f_blocks - disk.f_bfree) * disk.f_frsize + free
