"""Small files that must survive a crash: the one way to replace, move and load them.

    durable.replace(disk, path, data)             # after a crash the file is the old one or the new one, whole
    durable.write_over(disk, spare, path, data)   # the same on a full disk
    durable.move(disk, source, target)            # after it returns, the new name is durable
    durable.make_folder(disk, path)               # and so is the name of a folder
    value = durable.load(disk, path, decode)      # None: absent. OSError: unreadable. DamagedFile: damaged.

"Cannot read" is never "absent": a caller that makes a new file because `load` raised would destroy a good one. This
module knows nothing of the files' content. All system calls go through `Disk`, so the crash tests see each of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile

T = TypeVar("T")

# Bytes; no small file of arcpipe is larger. A larger one is damaged, and must not fill the memory.
_MAX_BYTES = 1 << 30
# Bytes of one read. Python allocates them all before it reads, and a small machine has no room for the maximum.
_PIECE_BYTES = 1 << 20


def make_folder(disk: Disk, path: str, mode: int = 0o750) -> None:
    """Make a folder, and those above it, where they are missing, durably.

    The name of one that is there is synced all the same: who made it may have died, or failed, before that.

    Raises:
        OSError: it is there or not, and perhaps not durable. The next call finds out.
    """
    missing = []
    there = os.path.abspath(path)
    while not os.path.isdir(there):
        missing.append(there)
        there = os.path.dirname(there)
    sync_name(disk, there)
    for folder in reversed(missing):  # each is durable before there is something in it
        disk.make_directory(folder, mode)
        sync_name(disk, folder)


def sync_name(disk: Disk, folder: str) -> None:
    """Make the name of a folder durable, as far as its parent lets anybody. Raises OSError."""
    try:
        disk.sync_directory(os.path.dirname(folder))
    except OSError as error:
        # We did not make a directory above that we may not open, and some file systems sync no directories.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS):
            raise


def replace(
    disk: Disk,
    path: str,
    data: bytes,
    *,
    prepare: Callable[[int], None] | None = None,
    sync_directory: bool = True,
) -> None:
    """Write a small file durably and atomically: write, sync, rename, sync the directory.

    Args:
        sync_directory: False leaves the name to the caller, who writes another file there before it matters.
        prepare: called with the descriptor of the new file while it is empty, to set its owner and mode.

    Raises:
        OSError: the file is either the old one or the new one, whole; it is not known which.
    """
    temporary = f"{path}.tmp"
    disk.unlink(temporary)
    fd = disk.create(temporary)
    try:
        if prepare is not None:
            prepare(fd)
        with _named(temporary):
            disk.write(fd, [data], 0)
            disk.fsync(fd)
    finally:
        disk.close(fd)
    disk.rename(temporary, path)
    if sync_directory:
        disk.sync_directory(_folder(path))


def write_over(disk: Disk, spare: str, path: str, data: bytes) -> None:
    """Turn a spare file, which is at least as long, into `path`, durably and atomically. It allocates nothing.

    Raises:
        OSError: `path` is either the old file or the new one, whole; the spare is used up, or may be.
    """
    size = disk.size(spare) or 0
    fd = disk.open(spare)
    try:
        with _named(spare):
            disk.write(fd, [data], 0)
            if len(data) < size:
                disk.truncate(fd, len(data))
            disk.fsync(fd)
    finally:
        disk.close(fd)
    move(disk, spare, path)


def move(disk: Disk, source: str, target: str) -> None:
    """Rename a file and make both directories durable, the target's first.

    Raises:
        OSError: the file has one of the two names.
    """
    disk.rename(source, target)
    disk.sync_directory(_folder(target))
    if _folder(source) != _folder(target):
        disk.sync_directory(_folder(source))


def load(disk: Disk, path: str, decode: Callable[[bytes], T]) -> T | None:
    """Read and decode a small file.

    Args:
        decode: raises ValueError (msgspec's errors and UnicodeDecodeError are such) if the bytes are damaged, and
            UnknownVersion if they are of another program's version; the latter passes through.

    Returns:
        The value, or None if there is no such file.

    Raises:
        OSError: the file exists, or may exist, and cannot be read.
        DamagedFile: the file was read, and its content is damaged.
    """
    try:
        fd = disk.open_for_reading(path)
    except FileNotFoundError:
        return None
    try:
        with _named(path):
            data = _content(disk, fd)
    finally:
        disk.close(fd)
    try:
        return decode(data)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Have an error say which file it is of: the operating system names none where the file is open."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _content(disk: Disk, fd: int) -> bytes:
    pieces = []
    for offset in range(0, _MAX_BYTES, _PIECE_BYTES):
        pieces.append(disk.read(fd, _PIECE_BYTES, offset))
        if len(pieces[-1]) < _PIECE_BYTES:
            break
    return b"".join(pieces)


def _folder(path: str) -> str:
    return os.path.dirname(path) or "."
