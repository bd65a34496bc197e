"""Whether a start would do, tried out in a process that ends afterwards: `serve --check`, `config check`, an upgrade.

All that can stop a start is tried as the start does it: settings, libraries, open files, tokens, certificate, access
log, WAL directory, lock, node, addresses. A running supervisor has the installed version tried so with its sockets and
its lock in hand (see `supervisor.upgrade`). New sockets that were bound for it go back to the supervisor, so that
nobody can take these addresses any more.
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
from arcpipe.supervisor.listeners import Listeners, raise_file_limit
from arcpipe.supervisor.service_manager import MAX_FDS, Inheritance, InheritedFd
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.probe import probe

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

# Names of what is handed from one process to the next: the directory's lock, and the way back for new sockets.
LOCK: Final = "lock"
WAY_BACK: Final = "way-back"


def check(settings: Settings, inheritance: Inheritance) -> str:
    """Tries everything that a start would do; says in a line what was found good.

    Raises:
        ArcpipeError: a start would be refused with this text, or an upgrade would.
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
            f"arcpipe {__version__} could take over from the one that runs (pid {holder}): SIGUSR2 makes it do so. "
            "A second one beside it would be refused."
        )
    return f"arcpipe {__version__} would start."


def counters_for(settings: Settings) -> Counters:
    """The shared memory that an instance needs.

    Raises:
        OSError: there is not so much.
    """
    # Any token may have limits after a reload.
    may_limit = settings.auth.enabled or settings.limits.per_address.any
    return Counters(settings.server.worker_count(), settings.limits.max_tracked if may_limit else 0)


def cannot_start(error: OSError, settings: Settings) -> ArcpipeError:
    """What a start says of an error that it has no other words for."""
    where = f" (wal.dir = {settings.wal.dir})" if error.filename is None else ""
    return ArcpipeError(f"cannot start: {error}{where}")


def _bind_for_another(listeners: Listeners, inheritance: Inheritance, back_fd: int) -> None:
    """Binds what the next program in another process will listen on, and sends it there."""
    inherited = [one for one in inheritance.fds if one.name not in (LOCK, WAY_BACK)]
    try:
        listeners.bind(inherited)
    except BaseException:
        listeners.remove_made_files()
        raise
    # What cannot be sent is closed with this process, and the next program binds it itself.
    with contextlib.suppress(OSError), socket.socket(fileno=back_fd) as back:
        back.setblocking(False)
        send_fds(back, listeners.made)


def send_fds(back: socket.socket, fds: list[InheritedFd]) -> None:
    """Sends file descriptors with their names, for `receive_fds`."""
    for name in dict.fromkeys(one.name for one in fds):
        named = [fd for other, fd in fds if other == name]
        for start in range(0, len(named), MAX_FDS):
            socket.send_fds(back, [name.encode()], named[start : start + MAX_FDS])


def receive_fds(back: socket.socket) -> list[InheritedFd]:
    """What was sent so far; the descriptors are closed when another program is executed."""
    found: list[InheritedFd] = []
    back.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            name, fds, _, _ = socket.recv_fds(back, 256, MAX_FDS)
            if not name:
                break
            for fd in fds:
                os.set_inheritable(fd, False)  # `recv_fds` does not hand flags on
                found.append(InheritedFd(name.decode(), fd))
    return found
