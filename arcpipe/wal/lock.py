"""One instance per WAL directory, even if its LOCK file is removed.

Two locks are held, both by flock(2). Both last until the last process that inherited them is gone.

- The lock on the directory itself: nobody can remove it by tidying up.
- The lock on the file LOCK: for older versions, which know no other. People read the owner's pid in it.

The directory is locked first, so a program that is refused leaves LOCK alone. Neither lock is waited for while the
other is held, because flock is called without blocking: so two starts at once cannot wait for each other.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Sequence
from typing import Final

from arcpipe.disk import Disk
from arcpipe.errors import InstanceLocked, is_full

log = logging.getLogger(__name__)

# Seconds to wait when the owner is dead, but one of its processes still waits for its disk and cannot be killed.
_DYING_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.02
# Errors of file systems that cannot lock directories, such as some network and FUSE ones.
_CANNOT_LOCK: Final = {
    *(errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EISDIR),
}


class InstanceLock:
    """The right to use one WAL directory; not taken at first."""

    def __init__(self, path: str, disk: Disk) -> None:
        self._path = path
        self._file = os.path.join(path, "LOCK")
        self._disk = disk
        self._directory_fd = -1  # stays -1 where directories cannot be locked
        self._file_fd = -1

    @property
    def fds(self) -> tuple[int, ...]:
        """List the descriptors for `take` of the next program in this process; that of the file LOCK comes first."""
        return tuple(fd for fd in (self._file_fd, self._directory_fd) if fd >= 0)

    def take(self, wait_seconds: float, inherited_fds: Sequence[int] = ()) -> None:
        """Take the directory for this process and the children that it forks.

        Args:
            wait_seconds: how long to wait for another instance to end, for instance one that was just killed.
            inherited_fds: locks that this process took as an earlier program. Those of this directory are kept, so
                nobody can take it in between; others are given back.

        Raises:
            InstanceLocked: another instance has it.
            OSError: the directory or its LOCK cannot be opened.
        """
        spare = list(inherited_fds)
        try:
            self._directory_fd = self._locked_directory(wait_seconds, spare)
            try:
                self._file_fd = self._locked_file(wait_seconds, spare)
            except BaseException:
                self.release()
                raise
        finally:
            for fd in spare:
                os.close(fd)

    def holder(self, inherited_fds: Sequence[int] = ()) -> str:
        """Name the process that holds the directory: the pid in LOCK or "unknown"; "" if it is free. Changes nothing.

        Args:
            inherited_fds: as for `take`; they count as free.

        Raises:
            OSError: the directory or its LOCK cannot be opened.
        """
        for path in (self._path, self._file):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC) if path == self._file else self._disk.open_directory(path)
            except FileNotFoundError:
                continue
            try:
                if not any(os.path.samestat(os.fstat(other), os.fstat(fd)) for other in inherited_fds):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._owner()
            except OSError as error:
                if path == self._file or error.errno not in _CANNOT_LOCK:
                    raise
            finally:
                os.close(fd)
        return ""

    def is_among(self, fds: Sequence[int]) -> bool:
        """Tell if one of these locks is on this directory; true if there are none."""
        there = [path for path in (self._path, self._file) if os.path.exists(path)]
        return not fds or any(os.path.samestat(os.fstat(fd), os.stat(path)) for fd in fds for path in there)

    def renew(self) -> None:
        """Lock the directory or LOCK again if it was removed or replaced. Otherwise this costs two stat calls.

        Raises:
            InstanceLocked: another instance has taken it in between.
            OSError: it cannot be looked at, or cannot be made again.
        """
        if self._file_fd < 0:
            return
        if self._directory_fd >= 0 and not _is_of(self._directory_fd, self._path):
            fd = self._locked_directory(0.0, [])
            os.close(self._directory_fd)
            self._directory_fd = fd
        if not _is_of(self._file_fd, self._file):
            fd = self._locked_file(0.0, [])
            os.close(self._file_fd)
            self._file_fd = fd
            log.warning("%s was removed or replaced; made and locked it again", self._file)

    def release(self) -> None:
        """Give the directory back; only needed by a process that goes on without it."""
        for fd in self.fds:
            os.close(fd)
        self._file_fd = self._directory_fd = -1

    def _locked_directory(self, wait_seconds: float, spare: list[int]) -> int:
        fd = _same_file(self._disk.open_directory(self._path), spare)
        try:
            self._lock(fd, wait_seconds)
        except OSError as error:
            os.close(fd)
            if error.errno not in _CANNOT_LOCK:
                raise
            log.warning(
                "%s is on a file system that cannot lock directories (%s); only its file LOCK keeps a second instance "
                "out, so never remove that file",
                *(self._path, error.strerror),
            )
            return -1
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _locked_file(self, wait_seconds: float, spare: list[int]) -> int:
        fd = _same_file(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), spare)
        try:
            self._lock(fd, wait_seconds)
            _write_pid(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int, wait_seconds: float) -> None:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                owner = self._owner()
                patience = wait_seconds if _is_running(owner) else max(wait_seconds, _DYING_SECONDS)
                if time.monotonic() - started >= patience:
                    raise InstanceLocked(
                        f"{self._path} is in use by another arcpipe (pid {owner}). "
                        "Stop that one first, or give this one another wal.dir."
                    ) from None
                time.sleep(_POLL_SECONDS)

    def _owner(self) -> str:
        """Read the pid in LOCK; "unknown" if there is none."""
        try:
            with open(self._file, "rb") as file:
                return file.read(64).decode("ascii", "replace").strip() or "unknown"
        except OSError:
            return "unknown"


def _write_pid(fd: int) -> None:
    """Write this process's pid over the former one, which takes no space. On a full disk a new file stays empty."""
    text = f"{os.getpid()}\n".encode("ascii")
    try:
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
    except OSError as error:
        if not is_full(error):
            raise


def _same_file(fd: int, spare: list[int]) -> int:
    """Return the descriptor in `spare` of the same file, take it out and close `fd`. Without one, return `fd`."""
    for other in spare:
        if os.path.samestat(os.fstat(other), os.fstat(fd)):
            os.close(fd)
            spare.remove(other)
            return other
    return fd


def _is_of(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _is_running(pid: str) -> bool:
    """Tell if a process of this number exists; true also if `pid` is not a number."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True
    return True
