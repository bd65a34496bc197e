"""The listening sockets of an instance: bound once, held by the supervisor, used by its workers.

A TCP address has a socket for each worker; the kernel spreads connections among them (SO_REUSEPORT). All workers share
a Unix socket, and a socket from a systemd socket unit: any free worker accepts the connection.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from arcpipe.config.listeners import Listener
from arcpipe.errors import ArcpipeError
from arcpipe.supervisor import holders, tcp_socket, unix_socket
from arcpipe.supervisor.service_manager import InheritedFd
from arcpipe.supervisor.tcp_socket import Bound, Resolved, is_loopback

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

log = logging.getLogger(__name__)

# Names of the descriptors that one process hands to the next.
LISTENER: Final = "listener"
ACTIVATED: Final = "activated"  # from a socket unit: the service manager owns its file and lifetime
SOCKET_LOCK: Final = "socket-lock"


class Listeners:
    """All listening sockets of an instance. It has none before `bind`."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._wanted = settings.server.all_listeners()
        self._further = settings.server.listeners
        self._may_be_reached = settings.auth.enabled or settings.auth.allow_anonymous
        self._has_tokens = settings.auth.enabled
        self._backlog = settings.server.backlog
        self._workers = workers
        self._bound: list[Bound] = []
        self._unfit: list[Bound] = []  # inherited ones that fit no listener
        self._unfit_locks: list[int] = []
        self._files: list[unix_socket.SocketFile] = []
        self._taken_over: list[tuple[unix_socket.SocketFile, Listener]] = []
        self._made: list[InheritedFd] = []
        self._made_files: list[unix_socket.SocketFile] = []

    def bind(self, inherited: Sequence[InheritedFd]) -> int:
        """Bind every address, with inherited sockets where they fit.

        Each TCP address gets at least one socket per worker; the workers listen on them, or `listen_early` does.
        Inherited sockets at an address that a new one includes (127.0.0.1 in 0.0.0.0) stay open. The kernel still gives
        them connections, and closing them would reset the clients in their queues.

        Returns:
            The number of inherited sockets that fit no listener; `settle` closes them.

        Raises:
            ArcpipeError: an address cannot be bound, or may not be listened on.
        """
        spare = [
            Bound(_NOBODY, socket.socket(fileno=fd), name != LISTENER) for name, fd in inherited if _is_one(name, fd)
        ]
        self._unfit = spare
        ports = {tcp_socket.port_of(bound) for bound in spare}
        self._unfit_locks = [fd for name, fd in inherited if name == SOCKET_LOCK]
        # Listeners with port 0 come last, because they take any inherited socket that is left.
        wanted = sorted(self._resolved(), key=lambda one: one.listener.tcp.port == 0)
        for one, found in [(one, tcp_socket.take(spare, one)) for one in wanted]:
            self._bound += self._bind_tcp(one, found, tcp_socket.take_covered(spare, one), one.address[1] in ports)
        for listener in self._wanted:
            if listener.path:  # last, because others can see the new files
                self._bound += self._bind_unix(listener, spare, self._unfit_locks)
        self._bound.sort(key=lambda bound: self._wanted.index(bound.listener))
        self._warn_of_plain_text()
        return len(spare)

    def listen_early(self) -> None:
        """Listen at ports where an inherited socket that fits no listener takes connections (0.0.0.0, now 127.0.0.1).

        New connections wait in the new queues, because the old one is closed before a worker listens. Call it once
        there is no way back, while the former workers still accept from the old queue.
        """
        ports = {tcp_socket.port_of(bound) for bound in self._unfit} - {0}
        for bound in self._bound:
            if tcp_socket.port_of(bound) in ports:
                with contextlib.suppress(OSError):  # its worker does
                    bound.socket.listen(self._backlog)

    def settle(self) -> None:
        """Adapt inherited sockets to the settings, once there is no way back.

        Close those that fit no listener, remove their Unix sockets' files, and set mode and owner of the others.
        """
        for file, listener in self._taken_over:
            try:
                file.give(listener.mode, listener.owner)
            except (OSError, ArcpipeError) as error:
                log.error("unix:%s keeps its former mode and owner: %s", file.path, error)
        for bound in self._unfit:
            _remove_file_of(bound, self._unfit_locks)
            bound.socket.close()
        for fd in self._unfit_locks:
            os.close(fd)
        self._unfit, self._unfit_locks = [], []

    def of_worker(self, slot: int) -> list[Bound]:
        """Return the sockets of one worker. It has several of one address if a former process had more workers."""
        found = [bound for bound in self._bound if bound.is_shared]
        own = [bound for bound in self._bound if not bound.is_shared]
        for listener in self._wanted:
            found += [bound for bound in own if bound.listener is listener][slot - 1 :: self._workers]
        return found

    @property
    def urls(self) -> list[str]:
        """The URLs of all listeners, in the order of the settings."""
        return list(dict.fromkeys(bound.url for bound in self._bound if not bound.is_covered))

    @property
    def kept(self) -> list[int]:
        """Descriptors for the service manager to keep in case of a crash."""
        return [bound.socket.fileno() for bound in self._bound if not bound.is_activated]

    @property
    def handed_over(self) -> list[InheritedFd]:
        """Descriptors that the next program in this process needs to go on listening."""
        return [
            *(InheritedFd(ACTIVATED if one.is_activated else LISTENER, one.socket.fileno()) for one in self._bound),
            *(InheritedFd(SOCKET_LOCK, file.lock_fd) for file in self._files),
        ]

    @property
    def made(self) -> list[InheritedFd]:
        """Descriptors that `bind` made, without the inherited ones."""
        return self._made

    def remove_files(self) -> None:
        """Remove the files of all Unix sockets, so that nobody can connect any more."""
        for file in self._files:
            file.remove()

    def remove_made_files(self) -> None:
        """Remove the Unix sockets' files that `bind` made, in a trial that failed."""
        for file in self._made_files:
            file.remove()

    def close(self, but: Iterable[Bound] = ()) -> None:
        """Close all sockets and locks in this process, except the sockets in `but`."""
        kept = [bound.socket for bound in but]
        for bound in self._bound:
            if bound.socket not in kept:
                bound.socket.close()
        for file in self._files:
            file.release()

    def _bind_unix(self, listener: Listener, spare: list[Bound], locks: list[int]) -> list[Bound]:
        there = [
            bound
            for bound in spare
            if bound.socket.family == socket.AF_UNIX and bound.socket.getsockname() == listener.path
        ]
        for bound in there:
            if bound.is_activated:
                spare.remove(bound)
                return [bound._replace(listener=listener)]
        file = unix_socket.lock(listener.path, locks)
        self._files.append(file)
        for bound in there:
            if file.own():  # otherwise its file is gone, and nobody can connect to it
                spare.remove(bound)
                self._taken_over.append((file, listener))
                return [bound._replace(listener=listener)]
        self._made_files.append(file)
        made = file.bind(listener.mode, listener.owner, self._backlog)
        self._made += [InheritedFd(LISTENER, made.fileno()), InheritedFd(SOCKET_LOCK, file.lock_fd)]
        return [Bound(listener, made)]

    def check(self, running_pid: int = 0) -> None:
        """Check whether every address could be bound, and leave no socket or file.

        Args:
            running_pid: the instance to take over from, which may hold them; 0 if there is none.

        Raises:
            ArcpipeError: an address could not be bound.
        """
        bound: list[socket.socket] = []
        try:
            for one in self._resolved():
                try:
                    bound.append(tcp_socket.bind(one, one.address, True))
                except OSError as error:
                    is_ours = error.errno == errno.EADDRINUSE and holders.holds_port(running_pid, *one.address[:2])
                    if not is_ours:
                        raise tcp_socket.cannot_listen(one.listener, error) from error
            for listener in self._wanted:
                if listener.path:
                    unix_socket.check(listener.path, listener.owner, running_pid)
        finally:
            for made in bound:
                made.close()

    def _resolved(self) -> list[Resolved]:
        """Find the socket addresses of all TCP listeners, and refuse two listeners that are at one.

        Raises:
            ArcpipeError: two listeners have one address or path in different words; the kernel would give a connection
                to either, or one file would replace the other. Or an address is not valid, or may not be used.
        """
        found = [self._resolve(listener) for listener in self._wanted if not listener.path]
        places: dict[object, Listener] = {}
        for one in found:
            if one.address[1]:
                _refuse_second(places, (one.family, one.address), one.listener)
        for listener in self._wanted:
            if listener.path:
                folder, name = os.path.split(listener.path)
                _refuse_second(places, os.path.join(os.path.realpath(folder), name), listener)
        return found

    def _resolve(self, listener: Listener) -> Resolved:
        """Find the socket address of a TCP listener.

        Raises:
            ArcpipeError: its host has none, or may not be listened on.
        """
        one = tcp_socket.resolve(listener)
        host, address = listener.tcp[0], one.address
        # The settings' own check covers written addresses; this one covers addresses that a name stands for.
        if not (self._may_be_reached or is_loopback(address[0])):
            key = "server.listeners" if listener in self._further else "server.host"
            raise ArcpipeError(
                f"{key} = {host!r} is {address[0]}, and anyone who reaches it could write: listen on 127.0.0.1, "
                "set auth.enabled = true, or say with auth.allow_anonymous = true that this is meant"
            )
        return one

    def _bind_tcp(self, wanted: Resolved, found: list[Bound], covered: list[Bound], is_ours: bool) -> list[Bound]:
        """Return sockets for all workers at one address.

        Args:
            wanted: the listener.
            found: inherited sockets at its address.
            covered: inherited sockets at addresses that it includes.
            is_ours: whether inherited sockets have this port, so that it is in use already.
        """
        listener, address = wanted.listener, wanted.address
        if found:
            address = found[0].socket.getsockname()
            if found[0].is_activated:
                return [bound._replace(listener=listener) for bound in found]
        sockets = [bound.socket for bound in found]
        try:
            while len(sockets) < self._workers:
                sockets.append(tcp_socket.bind(wanted, address, not (sockets or is_ours)))
                self._made.append(InheritedFd(LISTENER, sockets[-1].fileno()))
                address = sockets[0].getsockname()
        except OSError as error:
            raise tcp_socket.cannot_listen(listener, error) from error
        return [
            *(Bound(listener, one) for one in sockets),
            *(bound._replace(listener=listener, is_covered=True) for bound in covered),
        ]

    def _warn_of_plain_text(self) -> None:
        plain = [one.socket for one in self._bound if not (one.listener.path or one.listener.tls)]
        if self._has_tokens and not all(is_loopback(one.getsockname()[0]) for one in plain):
            log.warning(
                "tokens cross the network as plain text: set server.tls_cert and server.tls_key, or let only a proxy "
                "that speaks TLS reach this address"
            )


_NOBODY: Final = Listener(address="")


def _refuse_second(places: dict[object, Listener], place: object, listener: Listener) -> None:
    if (first := places.setdefault(place, listener)) is not listener:
        raise ArcpipeError(
            f"{first.address} and {listener.address} are one address, and two listeners have it: "
            "leave one of them out, or change it"
        )


def _is_one(name: str, fd: int) -> bool:
    """Tell whether an inherited descriptor is a listening socket, of a former process or of a socket unit."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as found:
            # No worker of the former process may have listened on its socket yet.
            return name == LISTENER or bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _remove_file_of(bound: Bound, locks: list[int]) -> None:
    """Remove the file of a Unix socket that is no longer in the settings, if its lock was inherited, too."""
    if bound.socket.family != socket.AF_UNIX or bound.is_activated:
        return
    try:
        path = bound.socket.getsockname()
        held = os.stat(unix_socket.lock_name(path))
        if any(os.path.samestat(held, os.fstat(fd)) for fd in locks):
            os.unlink(path)
    except OSError:
        pass  # gone already


def discard(made: Iterable[InheritedFd]) -> None:
    """Close descriptors that `bind` made in another process, and remove the files of their Unix sockets."""
    for name, fd in made:
        if name == LISTENER:
            with contextlib.suppress(OSError), socket.socket(fileno=fd) as listener:
                if listener.family == socket.AF_UNIX:
                    os.unlink(listener.getsockname())
        else:
            os.close(fd)
