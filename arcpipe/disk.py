"""Every system call on the WAL directory, in one place and nowhere else.

Short writes are finished or raised here; nothing above sees half a write that looks whole. A read that fails raises: it
is never empty, zero or the end of a file. The crash tests put a recording, failing `Disk` in this one's place, so that
what they replay is what the program really does.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Final

from arcpipe import descriptors

IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024)

Buffer = bytes | bytearray | memoryview


class Disk:
    """The real thing. Every method raises OSError and leaves no half-done state behind in memory."""

    def create(self, path: str) -> int:
        """A new file, for writing; fails if the name is taken. Returns its descriptor."""
        return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)

    def open(self, path: str) -> int:
        """An existing file, for reading and writing. Returns its descriptor."""
        return _open(path, os.O_RDWR)

    def open_for_reading(self, path: str) -> int:
        """An existing file, for reading only. Returns its descriptor."""
        return _open(path, os.O_RDONLY)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        while len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Fills the buffer, or a part of it, from `offset` on. Returns the bytes read; 0 only at the end."""
        return os.preadv(fd, [buffer], offset)

    def status(self, fd: int) -> os.stat_result:
        """Size and times of an open file."""
        return os.fstat(fd)

    def read_nothing_ahead(self, fd: int) -> None:
        """Reads of this file bring in what they ask for and no more. Only an advice: it changes and fails nothing."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def names(self, path: str) -> list[str]:
        """The names in a directory, in no order."""
        return os.listdir(path)

    def size(self, path: str) -> int | None:
        """A file's bytes; None if there is no such file."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None

    def close(self, fd: int) -> None:
        """Closes; an error that close reports concerns data that was synced or given up before."""
        try:
            os.close(fd)
        except OSError:
            pass

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Writes all the buffers at `offset`, whole, or raises."""
        start = 0
        while start < len(buffers):
            chunk = buffers[start : start + IOV_MAX]
            written = self._pwritev(fd, chunk, offset)
            wanted = sum(map(len, chunk))
            offset += written
            if written == wanted:
                start += len(chunk)
                continue
            # A short write: a full disk, a signal or a file system that likes to. Go on behind it; the next
            # call either writes more or says why not.
            if written <= 0:
                raise OSError(errno.EIO, "the device took no bytes and gave no reason")
            buffers = [*_behind(chunk, written), *buffers[start + len(chunk) :]]
            start = 0

    def _pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def forget(self, fd: int) -> None:
        """Takes what is on the disk already out of the page cache. Only an advice: it changes and fails nothing."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Removes a file; that it is gone already is no error."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def make_directory(self, path: str) -> None:
        os.makedirs(path, mode=0o750, exist_ok=True)

    def open_directory(self, path: str) -> int:
        """An existing directory. Returns its descriptor, to be synced or locked."""
        return _open(path, os.O_RDONLY | os.O_DIRECTORY)

    def sync_directory(self, path: str) -> None:
        """Makes creations, renames and removals in a directory durable."""
        fd = self.open_directory(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _open(path: str, flags: int, mode: int = 0o777) -> int:
    """Open a file, with a descriptor of the reserve if there is no other."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    with descriptors.reserve():
        return os.open(path, flags | os.O_CLOEXEC, mode)


def _behind(buffers: Sequence[Buffer], written: int) -> list[Buffer]:
    """What is left of `buffers` after their first `written` bytes."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


def space(disk: os.statvfs_result) -> tuple[int, int]:
    """The bytes that are free for whoever is not root, and the whole of which they are a part.

    As `df` reckons: blocks that are kept for root are neither used nor free, and so no part of the whole.
    """
    free = disk.f_bavail * disk.f_frsize
    return free, (disk.f_blocks - disk.f_bfree) * disk.f_frsize + free
