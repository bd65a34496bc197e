"""The sockets that clients connect to: bound once, held by the supervisor, listened on by its workers.

A TCP address has a socket for each worker, among which the kernel spreads the connections (SO_REUSEPORT). A Unix socket
is one for all workers, as is one that a socket unit of systemd gives: whichever worker is free takes the connection.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arcpipe import descriptors, unix_socket
from arcpipe.errors import ArcpipeError
from arcpipe.listener_settings import Listener, listeners_of
from arcpipe.service_manager import InheritedFd

if TYPE_CHECKING:
    from arcpipe.config import Settings

log = logging.getLogger(__name__)

# Names of what one process hands to the next.
LISTENER: Final = "listener"
ACTIVATED: Final = "activated"  # of a socket unit, whose file and lifetime are the service manager's
SOCKET_LOCK: Final = "socket-lock"


class Bound(NamedTuple):
    """A listening socket, and the listener of the settings that it is one of."""

    listener: Listener
    socket: socket.socket
    is_activated: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether all workers listen on this very socket."""
        return self.is_activated or bool(self.listener.path)

    @property
    def url(self) -> str:
        """Where clients find it."""
        if self.listener.path:
            return self.listener.address
        host, port = self.socket.getsockname()[:2]
        return f"{'https' if self.listener.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class Listeners:
    """All listening sockets of an instance; none at first."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._wanted = listeners_of(settings)
        self._further = settings.server.listeners
        self._may_be_reached = settings.auth.enabled or settings.auth.allow_anonymous
        self._has_tokens = settings.auth.enabled
        self._backlog = settings.server.backlog
        self._workers = workers
        self._bound: list[Bound] = []
        self._files: list[unix_socket.SocketFile] = []

    def bind(self, inherited: Sequence[InheritedFd]) -> int:
        """Binds every address, with inherited sockets where they fit; how many fit nowhere and are closed.

        At least one socket per worker for each TCP address; they listen once their workers do.

        Raises:
            ArcpipeError: an address is not to be had, or may not be listened on.
        """
        spare = [
            Bound(_NOBODY, socket.socket(fileno=fd), name != LISTENER) for name, fd in inherited if _is_one(name, fd)
        ]
        locks = [fd for name, fd in inherited if name == SOCKET_LOCK]
        # A port of 0 takes what is left over.
        for listener in sorted(self._wanted, key=lambda one: not one.path and one.tcp.port == 0):
            self._bound += self._bind_unix(listener, spare, locks) if listener.path else self._bind_tcp(listener, spare)
        self._bound.sort(key=lambda bound: self._wanted.index(bound.listener))
        for bound in spare:
            _remove_file_of(bound, locks)
            bound.socket.close()
        for fd in locks:
            os.close(fd)
        self._warn_of_plain_text()
        return len(spare)

    def of_worker(self, slot: int) -> list[Bound]:
        """The sockets of one worker: several of an address where a former process had more workers."""
        found = [bound for bound in self._bound if bound.is_shared]
        own = [bound for bound in self._bound if not bound.is_shared]
        for listener in self._wanted:
            found += [bound for bound in own if bound.listener is listener][slot - 1 :: self._workers]
        return found

    @property
    def urls(self) -> list[str]:
        """Where each listener is found, in the order of the settings."""
        return list(dict.fromkeys(bound.url for bound in self._bound))

    @property
    def kept(self) -> list[int]:
        """Descriptors that the service manager should keep over a crash."""
        return [bound.socket.fileno() for bound in self._bound if not bound.is_activated]

    @property
    def handed_over(self) -> list[InheritedFd]:
        """All that the next program in this process needs to go on listening."""
        return [
            *(InheritedFd(ACTIVATED if one.is_activated else LISTENER, one.socket.fileno()) for one in self._bound),
            *(InheritedFd(SOCKET_LOCK, file.lock_fd) for file in self._files),
        ]

    def remove_files(self) -> None:
        """Removes the files of Unix sockets: nobody can connect any more."""
        for file in self._files:
            file.remove()

    def close(self, but: Iterable[Bound] = ()) -> None:
        """Closes all that this process has open of it, `but` some."""
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
            if file.own():  # else its file is gone, and nobody can connect to it
                spare.remove(bound)
                return [bound._replace(listener=listener)]
        return [Bound(listener, file.bind(listener.mode, listener.owner, self._backlog))]

    def check(self) -> None:
        """Looks whether every address could be listened on, and binds none: another process may do so by now.

        Raises:
            ArcpipeError: one of them could not.
        """
        for listener in self._wanted:
            if listener.path:
                unix_socket.check(listener.path, listener.owner)
                continue
            try:
                self._resolve(listener)
            except OSError as error:
                raise _cannot(listener, error) from error

    def _resolve(self, listener: Listener) -> tuple[int, int, int, Any]:
        """Family, kind, protocol and socket address of a TCP listener."""
        host, port = listener.tcp
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The settings are checked for what is written there; this is for what a name stands for.
        if not (self._may_be_reached or _is_loopback(address[0])):
            key = "server.listeners" if listener in self._further else "server.host"
            raise ArcpipeError(
                f"{key} = {host!r} is {address[0]}, and anyone who reaches it could write: listen on 127.0.0.1, "
                "set auth.enabled = true, or say with auth.allow_anonymous = true that this is meant"
            )
        return family, kind, protocol, address

    def _bind_tcp(self, listener: Listener, spare: list[Bound]) -> list[Bound]:
        try:
            family, kind, protocol, address = self._resolve(listener)
            found = _take_tcp(spare, family, address)
            if found:
                address = found[0].socket.getsockname()
                if found[0].is_activated:
                    return [bound._replace(listener=listener) for bound in found]
            sockets = [bound.socket for bound in found]
            while len(sockets) < self._workers:
                sockets.append(_new_tcp(family, kind, protocol, address, not sockets))
                address = sockets[0].getsockname()
        except OSError as error:
            raise _cannot(listener, error) from error
        return [Bound(listener, one) for one in sockets]

    def _warn_of_plain_text(self) -> None:
        plain = [one.socket for one in self._bound if not (one.listener.path or one.listener.tls)]
        if self._has_tokens and not all(_is_loopback(one.getsockname()[0]) for one in plain):
            log.warning(
                "tokens cross the network as plain text: set server.tls_cert and server.tls_key, or let only a proxy "
                "that speaks TLS reach this address"
            )


_NOBODY: Final = Listener(address="")


def _cannot(listener: Listener, error: OSError) -> ArcpipeError:
    host, port = listener.tcp
    return ArcpipeError(
        f"cannot listen on {host} port {port}: {error.strerror}. "
        "Set server.host and server.port, or the address of the listener, to a free address."
    )


def _is_one(name: str, fd: int) -> bool:
    """Whether an inherited descriptor is a listening socket: of a former process, or of a unit with any name."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as found:
            # One of a former process may never have come to listen.
            return name == LISTENER or bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _take_tcp(spare: list[Bound], family: int, address: Any) -> list[Bound]:
    """The sockets among `spare` that are at an address, taken out of it; all of one port, and of one kind."""
    found = [bound for bound in spare if bound.socket.family == family and _is_at(bound.socket, address)]
    first = next((bound for bound in found if bound.is_activated), found[0] if found else None)
    if first is not None:
        at = first.socket.getsockname()
        found = [one for one in found if one.socket.getsockname() == at and one.is_activated == first.is_activated]
    for bound in found:
        spare.remove(bound)
    return found


def _is_at(listener: socket.socket, address: Any) -> bool:
    host, port = listener.getsockname()[:2]
    return bool(host == address[0] and address[1] in (0, port))


def _new_tcp(family: int, kind: int, protocol: int, address: Any, is_first: bool) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_first and address[1]:
            # Somebody else's listening socket with SO_REUSEPORT would silently share our connections.
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_file_of(bound: Bound, locks: list[int]) -> None:
    """Removes the file of a Unix socket that the settings do not have any more, if its lock was inherited too."""
    if bound.socket.family != socket.AF_UNIX or bound.is_activated:
        return
    try:
        path = bound.socket.getsockname()
        held = os.stat(unix_socket.lock_name(path))
        if any(os.path.samestat(held, os.fstat(fd)) for fd in locks):
            os.unlink(path)
    except OSError:
        pass  # gone already


def _is_loopback(address: Any) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def raise_file_limit(connections: int) -> None:
    """Makes room for that many connections in each worker, as far as the hard limit allows.

    Raises:
        ArcpipeError: not even the rest would have room.
    """
    wanted = descriptors.needed(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        advice = "Raise the limit (ulimit -Hn, or LimitNOFILE= of the service)"
        if hard < descriptors.LEAST:
            raise ArcpipeError(f"a process may have {hard} open files, and it needs {descriptors.LEAST}. {advice}.")
        log.warning(
            "server.max_connections = %d needs %d open files, and a process may have %d: each worker takes %d "
            "connections and answers 503 above that. %s, or lower the setting",
            *(connections, wanted, hard, descriptors.room(connections, hard).connections, advice),
        )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
