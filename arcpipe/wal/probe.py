"""Try if a start could use a WAL directory, and leave no trace: for checks before a start or an upgrade."""

from __future__ import annotations

import errno
import os
from typing import Final

from arcpipe.errors import is_full
from arcpipe.wal.directory import WALDirectory, nearest_directory

_PROBE: Final = b"arcpipe tries whether it can write here\n"
# Errors of file systems without nameless files (O_TMPFILE): some network and FUSE ones, overlays of old kernels.
_NEEDS_A_NAME: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}


def probe(directory: WALDirectory, may_free_space: bool) -> None:
    """Try everything that a start needs of a directory, which need not exist yet.

    Args:
        may_free_space: the start empties `free/` and `spool/` first, and has a spare file. So a full disk is accepted
            while one of them holds a file, or the spare is there.

    Raises:
        OSError: the start would fail.
        WALError: `node.json` cannot be used.
        UnknownVersion: a newer arcpipe wrote it.
    """
    for folder in directory.folders:
        nearest = nearest_directory(folder)
        if folder == directory.path and not os.path.isdir(folder):
            _try_to_write(nearest)
            return
        if not os.path.isdir(folder):
            continue
        os.listdir(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    directory.check_node()
    try:
        _try_to_write(directory.path)
    except OSError as error:
        frees = (directory.free, directory.spool)
        may_do = may_free_space and (any(map(_has_files, frees)) or directory.has_spare)
        if not is_full(error) or not may_do:
            raise


def _has_files(folder: str) -> bool:
    return os.path.isdir(folder) and bool(os.listdir(folder))


def _try_to_write(folder: str) -> None:
    """Write and sync a file in a directory; the file is gone afterwards, whatever happens."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o640)
    except OSError as error:
        if error.errno not in _NEEDS_A_NAME or not os.path.isdir(folder):
            raise
        path = os.path.join(folder, f".probe-{os.getpid()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        os.unlink(path)
    try:
        os.pwrite(fd, _PROBE, 0)
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, folder) from error
    finally:
        os.close(fd)
