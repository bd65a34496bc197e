"""The file of a Unix socket: made with its mode and owner, taken over from a process that crashed, removed at the end.

The kernel leaves the file when its listener dies, and then nobody can bind the path. A trial connection is refused if
the file is stale. If two instances start at once, both could see that, and the later one would remove the other's new
file. So the process that binds or removes PATH holds a lock on PATH.lock (flock(2)) while it listens. The lock's file
stays: if it were removed, two processes could each lock a file of that name.

This module knows files and sockets, nothing of arcpipe's processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import time
from typing import Final

from arcpipe.errors import ArcpipeError
from arcpipe.supervisor import holders

# Longest wait for the lock of an instance that was killed; its processes take milliseconds to die.
_DYING_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.02
_PRIVATE: Final = 0o177  # umask: nobody else may connect before the file has its owner
# Results of connecting to a path that somebody listens on: success, or a full queue.
_LISTENED_ON: Final = (0, errno.EAGAIN, errno.EINPROGRESS)


class SocketFile:
    """The lock of a path, and the socket's file there."""

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd
        self._identity: tuple[int, int] | None = None  # device and inode of the file that is ours

    def bind(self, mode: str, owner: str, backlog: int) -> socket.socket:
        """Replace a stale file at the path by a new one, and return the listening socket.

        Raises:
            ArcpipeError: the path is in use, or cannot be bound.
        """
        self._remove_stale()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(_PRIVATE)
        try:
            listener.bind(self.path)
            self.give(mode, owner)
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            raise _cannot(self.path, error) from error
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        self.own()
        return listener

    def give(self, mode: str, owner: str) -> None:
        """Give the file its mode and owner.

        Raises:
            OSError: this process may not.
            ArcpipeError: there is no such owner.
        """
        if owner:
            os.chown(self.path, *_ids(owner), follow_symlinks=False)
        os.chmod(self.path, int(mode, 8))

    def own(self) -> bool:
        """Note that the file at the path is this process's own. Return False if there is no socket."""
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if stat.S_ISSOCK(status.st_mode):
                self._identity = (status.st_dev, status.st_ino)
                return True
        return False

    def remove(self) -> None:
        """Remove the file, unless somebody has replaced it."""
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)

    def release(self) -> None:
        """Close this process's descriptor of the lock."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def _remove_stale(self) -> None:
        if not _is_socket(self.path):
            return
        _refuse_if_listened_on(self.path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def lock(path: str, inherited_fds: list[int]) -> SocketFile:
    """Lock a path for this process.

    Args:
        inherited_fds: locks that the former program in this process took; the one of this path is removed from them.

    Raises:
        ArcpipeError: another instance has it, or its lock cannot be opened.
    """
    name = lock_name(path)
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _cannot(path, error) from error
    for other in inherited_fds:
        if os.path.samestat(os.fstat(other), os.fstat(fd)):
            os.close(fd)
            inherited_fds.remove(other)
            return SocketFile(path, other)
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return SocketFile(path, fd)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise _held(path) from None
        except OSError as error:
            os.close(fd)
            raise _cannot(path, error) from error
        time.sleep(_POLL_SECONDS)


def check(path: str, owner: str, running_pid: int = 0) -> None:
    """Check whether a socket could be made at a path, and change nothing.

    Args:
        running_pid: the instance to take over from, which may listen there; 0 if there is none.

    Raises:
        ArcpipeError: no socket could be made.
    """
    if _is_socket(path) and not holders.holds_path(running_pid, path):
        _refuse_if_listened_on(path)
    _refuse_if_locked(path, running_pid)
    if owner:
        _ids(owner)
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise _cannot(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    if not os.access(directory, os.W_OK | os.X_OK):
        raise _cannot(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def _refuse_if_locked(path: str, running_pid: int) -> None:
    """Raise ArcpipeError if a start could not get the lock of a path."""
    try:
        fd = os.open(lock_name(path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not holders.holds_path(running_pid, path):
            raise _held(path) from None
    except OSError as error:
        raise _cannot(path, error) from error
    finally:
        os.close(fd)


def _held(path: str) -> ArcpipeError:
    return ArcpipeError(
        f"cannot listen on unix:{path}: another arcpipe holds {lock_name(path)}. "
        "Stop that one first, or give this listener another path"
    )


def _refuse_if_listened_on(path: str) -> None:
    """Raise ArcpipeError if another process listens on the socket at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in _LISTENED_ON:
        raise ArcpipeError(
            f"cannot listen on unix:{path}: another process listens there. "
            "Stop that one first, or give this listener another path"
        )
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise _cannot(path, OSError(answer, os.strerror(answer)))


def _is_socket(path: str) -> bool:
    """Tell whether there is a socket at a path.

    Raises:
        ArcpipeError: there is another kind of file.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot(path, error) from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ArcpipeError(f"cannot listen on unix:{path}: a file that is not a socket is there; remove it")
    return True


def lock_name(path: str) -> str:
    """Return the name of the file that is locked for a path."""
    return f"{path}.lock"


def _ids(owner: str) -> tuple[int, int]:
    """Return the ids of user and group in `USER:GROUP`; -1 for one that is left out.

    Raises:
        ArcpipeError: there is no such user or group.
    """
    user, _, group = owner.partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ArcpipeError(f"owner {owner!r} of a Unix socket: {error.args[0]}") from None
    return uid, gid


def _cannot(path: str, error: OSError) -> ArcpipeError:
    return ArcpipeError(
        f"cannot listen on unix:{path}: {error.strerror or error}. Its directory must exist, and the server's user "
        "must be allowed to write to it, and to give the file to its owner"
    )
