"""System calls of the local store on one file or directory, and their errors in words. They block.

This module must not know keys, blobs nor threads.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress

from arcpipe.errors import MissingObject, StorageError

_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
_START_AND_WAIT = 2 | 4  # SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
# Errors of a file system or kernel without sync_file_range. Then nothing was written, and nothing failed.
_NO_WRITE_BACK = (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP)

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without hard links, such as FAT."""

_NEXT_STEP = {
    errno.ENOSPC: "Free space on this file system, or move storage.url to a larger one",
    errno.EDQUOT: "Raise the disk quota of this user, or free space",
    errno.EACCES: "Give the user that arcpipe runs as permission to write there",
    errno.EPERM: "Give the user that arcpipe runs as permission to write there",
    errno.EROFS: "Mount the file system read-write, or point storage.url elsewhere",
    errno.ENOTDIR: "Something that is no directory is in the way: move it",
    errno.EISDIR: "A directory has the name of the object: move it",
    errno.ENOTEMPTY: "A directory has the name of the object: move it",
    errno.ENAMETOOLONG: "A file system takes 255 bytes per name and 4096 per path: shorten the key",
    errno.EXDEV: "The store must be one file system: no mounts and no links to other disks inside it",
    errno.EIO: "The disk reports an error: see the kernel log",
    errno.ENOENT: "Something keeps removing the directory: find out what",
}


def storage_error(action: str, error: OSError) -> StorageError:
    """Say what failed, why, and what to do next. `action` is a verb for a sentence that begins with "cannot"."""
    number = error.errno or 0
    kind = "no_space" if number in (errno.ENOSPC, errno.EDQUOT) else "other"
    reason = error.strerror or str(error)
    return StorageError(f"cannot {action}: {reason}. {_NEXT_STEP.get(number, 'See the reason given')}", kind)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all bytes. One write(2) may take fewer: on a nearly full disk, or above 2 GiB."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_back(fd: int, offset: int, length: int) -> None:
    """Flush these bytes to the disk if the system can. This is no durability yet; an fsync follows.

    Raises:
        OSError: the disk did not take them. The kernel reports an error once per descriptor, so the fsync that follows
            would report success.
    """
    if _SYNC_FILE_RANGE is None:
        return
    if _SYNC_FILE_RANGE(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _START_AND_WAIT):
        number = ctypes.get_errno()
        if number not in _NO_WRITE_BACK:
            raise OSError(number, os.strerror(number))


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have nothing to sync in a directory, and answer EINVAL.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def make_missing(directory: str) -> list[str]:
    """Make `directory` and the missing directories above it. Return them topmost first, `directory` in any case."""
    missing = [directory]
    while True:
        try:
            os.mkdir(missing[-1])
            break
        except FileExistsError:
            break
        except FileNotFoundError:
            missing.append(os.path.dirname(missing[-1]))
    missing.reverse()
    for path in missing[1:]:
        with suppress(FileExistsError):
            os.mkdir(path)
    return missing


def delete(target: str) -> None:
    """Remove a file durably.

    If it is gone already, the directory is synced all the same: an earlier removal may lack its sync.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        with suppress(FileNotFoundError):
            os.unlink(target)
        sync_directory(os.path.dirname(target))


def delete_all(targets: Sequence[str]) -> None:
    """Remove files durably. Each directory is synced once, also for files that were gone already."""
    parents: dict[str, None] = {}
    for target in targets:
        unlink(target)
        parents[os.path.dirname(target)] = None
    for parent in parents:
        with suppress(FileNotFoundError, NotADirectoryError):
            sync_directory(parent)


def unlink(target: str) -> None:
    """Remove a file, not durably. One that is gone already is no error."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(target)


def remove_empty(root: str, path: str, modified_before: float) -> list[str]:
    """Remove an empty directory below `root`, and the empty ones above it, unless one was changed since.

    Returns:
        The directories that are gone.
    """
    old: list[str] = []
    removed: list[str] = []
    with suppress(FileNotFoundError):  # somebody else removes them
        while path != root and os.stat(path).st_mtime < modified_before:
            old.append(path)
            path = os.path.dirname(path)
        try:
            for path in old:  # now, because each removal changes the time of the directory above
                os.rmdir(path)
                removed.append(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    return removed


def read(target: str, offset: int, length: int) -> bytes:
    """Read `length` bytes of a file at `offset`; fewer only at its end. Raises MissingObject, OSError."""
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingObject(f"cannot read {target}: there is no such file") from error
    try:
        # Python allocates as many bytes as it is asked for, and a small machine has no room for the most of a caller.
        length = min(length, os.fstat(fd).st_size - offset)
        pieces = []
        while length > 0 and (piece := os.pread(fd, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
    finally:
        os.close(fd)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def is_there_in_capitals(path: str) -> bool:
    """Tell whether a new file has another name, too: exFAT and shares of Windows take `CPU` and `cpu` for one."""
    folder, name = os.path.split(path)
    return os.path.lexists(os.path.join(folder, name.upper()))


def remove_if_abandoned(path: str) -> None:
    """Remove a temporary file whose writer is gone.

    A writer that had made its file, but not locked it yet, finds it missing and starts over.
    """
    with suppress(OSError):  # renamed meanwhile, still locked, or on a file system without locks
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(fd)
