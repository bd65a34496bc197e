"""The sockets that clients connect to: bound once, held by the supervisor, listened on by its workers.

A TCP address has a socket for each worker, among which the kernel spreads the connections (SO_REUSEPORT). A Unix socket
is one for all workers, as is one that a socket unit of systemd gives: whichever worker is free takes the connection.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import resource
import socket
import stat
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arcpipe import descriptors
from arcpipe.config.listeners import Listener
from arcpipe.errors import ArcpipeError
from arcpipe.supervisor import holders, unix_socket
from arcpipe.supervisor.service_manager import InheritedFd

if TYPE_CHECKING:
    from arcpipe.config.settings import Settings

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
    is_covered: bool = False  # at an address that its listener's includes

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


class _Resolved(NamedTuple):
    """A TCP listener and what `socket` takes of it."""

    listener: Listener
    family: int
    kind: int
    protocol: int
    address: Any


class Listeners:
    """All listening sockets of an instance; none at first."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._wanted = settings.server.all_listeners()
        self._further = settings.server.listeners
        self._may_be_reached = settings.auth.enabled or settings.auth.allow_anonymous
        self._has_tokens = settings.auth.enabled
        self._backlog = settings.server.backlog
        self._workers = workers
        self._bound: list[Bound] = []
        self._unfit: list[Bound] = []  # inherited, for no listener
        self._unfit_locks: list[int] = []
        self._files: list[unix_socket.SocketFile] = []
        self._taken_over: list[tuple[unix_socket.SocketFile, Listener]] = []
        self._made: list[InheritedFd] = []
        self._made_files: list[unix_socket.SocketFile] = []

    def bind(self, inherited: Sequence[InheritedFd]) -> int:
        """Binds every address, with inherited sockets where they fit; how many fit nowhere, for `settle`.

        At least one socket per worker for each TCP address; they listen once their workers do, or early. Inherited
        sockets at an address that a new one includes (127.0.0.1 in 0.0.0.0) stay: the kernel gives them what comes
        there, and to close them would reset who waits in their queues.

        Raises:
            ArcpipeError: an address is not to be had, or may not be listened on.
        """
        spare = [
            Bound(_NOBODY, socket.socket(fileno=fd), name != LISTENER) for name, fd in inherited if _is_one(name, fd)
        ]
        self._unfit = spare
        ports = {_port_of(bound) for bound in spare}
        self._unfit_locks = [fd for name, fd in inherited if name == SOCKET_LOCK]
        # A port of 0 takes what is left over.
        wanted = sorted(
            (self._resolve(listener) for listener in self._wanted if not listener.path),
            key=lambda one: one.listener.tcp.port == 0,
        )
        for one, found in [(one, _take_tcp(spare, one)) for one in wanted]:
            self._bound += self._bind_tcp(one, found, _take_covered(spare, one), one.address[1] in ports)
        for listener in self._wanted:
            if listener.path:  # last, because what is made here is seen
                self._bound += self._bind_unix(listener, spare, self._unfit_locks)
        self._bound.sort(key=lambda bound: self._wanted.index(bound.listener))
        self._warn_of_plain_text()
        return len(spare)

    def listen_early(self) -> None:
        """Listens where an inherited socket that is for no listener takes connections until now (127.0.0.1 of 0.0.0.0).

        They wait in the new queues from now on: the old one is closed before a worker listens. To be called once
        there is no way back, as long as those who accept from the old queue are there.
        """
        ports = {_port_of(bound) for bound in self._unfit} - {0}
        for bound in self._bound:
            if _port_of(bound) in ports:
                with contextlib.suppress(OSError):  # its worker does
                    bound.socket.listen(self._backlog)

    def settle(self) -> None:
        """Makes of what was inherited what the settings say, once there is no way back.

        Closes what is for no listener, removes the files of such Unix sockets, and gives the others mode and owner.
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
        """The sockets of one worker: several of an address where a former process had more workers."""
        found = [bound for bound in self._bound if bound.is_shared]
        own = [bound for bound in self._bound if not bound.is_shared]
        for listener in self._wanted:
            found += [bound for bound in own if bound.listener is listener][slot - 1 :: self._workers]
        return found

    @property
    def urls(self) -> list[str]:
        """Where each listener is found, in the order of the settings."""
        return list(dict.fromkeys(bound.url for bound in self._bound if not bound.is_covered))

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

    @property
    def made(self) -> list[InheritedFd]:
        """What `bind` has made and not inherited."""
        return self._made

    def remove_files(self) -> None:
        """Removes the files of Unix sockets: nobody can connect any more."""
        for file in self._files:
            file.remove()

    def remove_made_files(self) -> None:
        """Removes those that `bind` has made, in a process that is not to be the one that listens."""
        for file in self._made_files:
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
                self._taken_over.append((file, listener))
                return [bound._replace(listener=listener)]
        self._made_files.append(file)
        made = file.bind(listener.mode, listener.owner, self._backlog)
        self._made += [InheritedFd(LISTENER, made.fileno()), InheritedFd(SOCKET_LOCK, file.lock_fd)]
        return [Bound(listener, made)]

    def check(self, running_pid: int = 0) -> None:
        """Looks whether every address could be listened on, and leaves nothing behind.

        Args:
            running_pid: of an instance that may have them, as it is the one to take them over from.

        Raises:
            ArcpipeError: one of them could not.
        """
        bound: list[socket.socket] = []
        try:
            for listener in self._wanted:
                if listener.path:
                    unix_socket.check(listener.path, listener.owner, running_pid)
                    continue
                one = self._resolve(listener)
                try:
                    bound.append(_new_tcp(one, one.address, True))
                except OSError as error:
                    is_ours = error.errno == errno.EADDRINUSE and holders.holds_port(running_pid, *one.address[:2])
                    if not is_ours:
                        raise _cannot(listener, error) from error
        finally:
            for made in bound:
                made.close()

    def _resolve(self, listener: Listener) -> _Resolved:
        """Family, kind, protocol and socket address of a TCP listener."""
        host, port = listener.tcp
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise _cannot(listener, error) from error
        except UnicodeError as error:  # a part of a name that is empty or longer than 63 characters
            raise _cannot(listener, OSError(errno.EINVAL, f"no host name ({error})")) from error
        # The settings are checked for what is written there; this is for what a name stands for.
        if not (self._may_be_reached or _is_loopback(address[0])):
            key = "server.listeners" if listener in self._further else "server.host"
            raise ArcpipeError(
                f"{key} = {host!r} is {address[0]}, and anyone who reaches it could write: listen on 127.0.0.1, "
                "set auth.enabled = true, or say with auth.allow_anonymous = true that this is meant"
            )
        return _Resolved(listener, family, kind, protocol, address)

    def _bind_tcp(self, wanted: _Resolved, found: list[Bound], covered: list[Bound], is_ours: bool) -> list[Bound]:
        """Args: is_ours: whether the sockets that listen on this port already are inherited ones."""
        listener, address = wanted.listener, wanted.address
        if found:
            address = found[0].socket.getsockname()
            if found[0].is_activated:
                return [bound._replace(listener=listener) for bound in found]
        sockets = [bound.socket for bound in found]
        try:
            while len(sockets) < self._workers:
                sockets.append(_new_tcp(wanted, address, not (sockets or is_ours)))
                self._made.append(InheritedFd(LISTENER, sockets[-1].fileno()))
                address = sockets[0].getsockname()
        except OSError as error:
            raise _cannot(listener, error) from error
        return [
            *(Bound(listener, one) for one in sockets),
            *(bound._replace(listener=listener, is_covered=True) for bound in covered),
        ]

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


def _take_tcp(spare: list[Bound], wanted: _Resolved) -> list[Bound]:
    """The sockets among `spare` that are at an address, taken out of it; all of one port, and of one kind."""
    found = [bound for bound in spare if bound.socket.family == wanted.family and _is_at(bound, wanted.address)]
    first = next((bound for bound in found if bound.is_activated), found[0] if found else None)
    if first is not None:
        at = first.socket.getsockname()
        found = [one for one in found if one.socket.getsockname() == at and one.is_activated == first.is_activated]
    for bound in found:
        spare.remove(bound)
    return found


def _take_covered(spare: list[Bound], wanted: _Resolved) -> list[Bound]:
    """The sockets among `spare` at one address each of those that a wanted one stands for, taken out of it."""
    host, port = wanted.address[:2]
    if not (port and ipaddress.ip_address(host).is_unspecified):
        return []
    found = [
        bound
        for bound in spare
        if bound.socket.family == wanted.family
        and not bound.is_activated
        and _port_of(bound) == port
        and bound.socket.getsockname()[0] != host
    ]
    for bound in found:
        spare.remove(bound)
    return found


def _is_at(bound: Bound, address: Any) -> bool:
    host, port = bound.socket.getsockname()[:2]
    if host != address[0] or address[1] not in (0, port):
        return False
    # An older version made sockets at :: that take IPv4, too. A socket unit says itself what its are for.
    takes_more = bound.socket.family == socket.AF_INET6 and not (
        bound.is_activated or bound.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return not takes_more


def _port_of(bound: Bound) -> int:
    """The TCP port of a socket; 0 for another kind."""
    return int(bound.socket.getsockname()[1]) if bound.socket.family != socket.AF_UNIX else 0


def _new_tcp(wanted: _Resolved, address: Any, is_first: bool) -> socket.socket:
    listener = socket.socket(wanted.family, wanted.kind, wanted.protocol)
    try:
        if is_first and address[1]:
            # Somebody else's listening socket with SO_REUSEPORT would silently share our connections.
            with socket.socket(wanted.family, wanted.kind, wanted.protocol) as probe:
                _prepare(probe)
                probe.bind(address)
        _prepare(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _prepare(listener: socket.socket) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:  # "::" takes no IPv4, whatever the machine's default is
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


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


def discard(made: Iterable[InheritedFd]) -> None:
    """Closes what `bind` has made in another process, and removes the files of its Unix sockets."""
    for name, fd in made:
        if name == LISTENER:
            with contextlib.suppress(OSError), socket.socket(fileno=fd) as listener:
                if listener.family == socket.AF_UNIX:
                    os.unlink(listener.getsockname())
        else:
            os.close(fd)


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
