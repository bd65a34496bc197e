"""The sockets that clients connect to: bound once, held by the supervisor, listened on by its workers."""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
from collections.abc import Sequence
from typing import Any, Final

from arcpipe.errors import ArcpipeError

log = logging.getLogger(__name__)

# Files that a worker has open beside its connections, those that are turned away among them.
_OTHER_FILES: Final = 512


def bind(
    host: str, port: int, count: int, inherited: Sequence[socket.socket], may_be_reached: bool
) -> list[socket.socket]:
    """At least one socket per worker, all on the same address; they listen once their workers do.

    Inherited ones that are at this address are all among them.

    Args:
        may_be_reached: the address may be another than loopback.

    Raises:
        ArcpipeError: the address is not to be had, or may not be listened on.
    """
    wanted = port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The settings are checked for what is written there; this is for what a name stands for.
        if not (may_be_reached or is_loopback(address[0])):
            raise ArcpipeError(
                f"server.host = {host!r} is {address[0]}, and anyone who reaches it could write: listen on 127.0.0.1, "
                "set auth.enabled = true, or say with auth.allow_anonymous = true that this is meant"
            )
        listeners = [listener for listener in inherited if _is_at(listener, family, address)]
        if listeners:
            address = listeners[0].getsockname()
            port = 0
        while len(listeners) < count:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if port:
                # Somebody else's listening socket with SO_REUSEPORT would silently share our connections.
                _refuse_taken_port(family, kind, protocol, address)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            address = listener.getsockname()
            port = 0
            listeners.append(listener)
    except OSError as error:
        raise ArcpipeError(
            f"cannot listen on {host} port {wanted}: {error.strerror}. "
            "Set server.host and server.port to a free address."
        ) from error
    return listeners


def _is_at(listener: socket.socket, family: int, address: Any) -> bool:
    host, port = listener.getsockname()[:2]
    return listener.family == family and host == address[0] and address[1] in (0, port)


def _refuse_taken_port(family: int, kind: int, protocol: int, address: Any) -> None:
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def is_loopback(address: Any) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def raise_file_limit(connections: int) -> None:
    """Makes room for that many connections in each worker, as far as the hard limit allows."""
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning(
            "server.max_connections = %d needs %d open files, and a process may have %d: connections above that wait "
            "or are cut off. Raise the limit (ulimit -Hn, or LimitNOFILE= of the service), or lower the setting",
            *(connections, wanted, hard),
        )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
