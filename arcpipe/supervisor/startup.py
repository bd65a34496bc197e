"""A trial of a start, in a process that ends afterwards: `serve --check`, `config check`, an upgrade.

Every step that can stop a start is tried in the same way: settings, libraries, open files, tokens, certificate, access
log, WAL directory, lock, node, addresses. For an upgrade, the supervisor runs the installed version so, and gives it
its sockets and its lock (see `supervisor.upgrade`). The trial sends new sockets back to the supervisor, so that no
other program can take their addresses.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

from arcpipe import __version__
from arcpipe.access import reload
from arcpipe.counters import Counters
from arcpipe.errors import ArcpipeError, InstanceLocked
from arcpipe.supervisor.file_limit import raise_file_limit
from arcpipe.supervisor.listeners import Listeners
from arcpipe.supervisor.service_manager import MAX_FDS, Inheritance, InheritedFd
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.probe import probe

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

# Names of descriptors that one process hands to the next: the directory's lock, and the socket to send new ones back.
LOCK: Final = "lock"
WAY_BACK: Final = "way-back"


def check(settings: Settings, inheritance: Inheritance) -> str:
    """Try everything that a start would do.

    Args:
        inheritance: descriptors of the supervisor that would be replaced; empty if there is none.

    Returns:
        One line that says what would work.

    Raises:
        ArcpipeError: a start, or an upgrade, would be refused with this text.
    """
    raise_file_limit(settings.server.max_connections)
    reload.check(settings)
    locks = [fd for name, fd in inheritance.fds if name == LOCK]
    back = [fd for name, fd in inheritance.fds if name == WAY_BACK]
    directory = WALDirectory(settings.wal.dir)
    try:
        counters_for(settings)
        directory.refuse_another(locks)
        probe(directory, may_free_space=not back)
        holder = directory.lock_holder(locks)
    except OSError as error:
        raise cannot_start(error, settings) from error
    listeners = Listeners(settings, settings.server.worker_count())
    if back:
        if holder:
            raise InstanceLocked(f"{directory.path} is in use by another arcpipe (pid {holder}).")
        _bind_for_another(listeners, inheritance, back[0])
    else:
        listeners.check(int(holder) if holder.isdigit() else 0)
    if holder:
        return (
            f"arcpipe {__version__} could take over from the running one (pid {holder}): send it SIGUSR2. "
            "A second one would be refused while that one runs."
        )
    return f"arcpipe {__version__} would start."


def counters_for(settings: Settings) -> Counters:
    """Make the shared memory of an instance.

    Raises:
        OSError: the machine does not have that much memory.
    """
    # Any token may have limits after a reload.
    may_limit = settings.auth.enabled or settings.limits.per_address.any
    return Counters(settings.server.worker_count(), settings.limits.max_tracked if may_limit else 0)


def cannot_start(error: OSError, settings: Settings) -> ArcpipeError:
    """Return the error of a start that failed for a reason without a text of its own."""
    where = f" (wal.dir = {settings.wal.dir})" if error.filename is None else ""
    return ArcpipeError(f"cannot start: {error}{where}")


def _bind_for_another(listeners: Listeners, inheritance: Inheritance, back_fd: int) -> None:
    """Bind the sockets that the next program in another process will listen on, and send the new ones there."""
    inherited = [one for one in inheritance.fds if one.name not in (LOCK, WAY_BACK)]
    try:
        listeners.bind(inherited)
    except BaseException:
        listeners.remove_made_files()
        raise
    # A socket that cannot be sent is closed when this process ends; the next program binds it itself.
    with contextlib.suppress(OSError), socket.socket(fileno=back_fd) as back:
        back.setblocking(False)
        send_fds(back, listeners.made)


def send_fds(back: socket.socket, fds: list[InheritedFd]) -> None:
    """Send file descriptors with their names, for `receive_fds`."""
    for name in dict.fromkeys(one.name for one in fds):
        named = [fd for other, fd in fds if other == name]
        for start in range(0, len(named), MAX_FDS):
            socket.send_fds(back, [name.encode()], named[start : start + MAX_FDS])


def receive_fds(back: socket.socket) -> list[InheritedFd]:
    """Return the descriptors that `send_fds` has sent so far. They are closed when another program is executed."""
    found: list[InheritedFd] = []
    back.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            name, fds, _, _ = socket.recv_fds(back, 256, MAX_FDS)
            if not name:
                break
            for fd in fds:
                os.set_inheritable(fd, False)  # `recv_fds` ignores flags
                found.append(InheritedFd(name.decode(), fd))
    return found
