"""TCP sockets that listen: made, and found again among those that a former process left.

This module knows sockets and addresses, nothing of arcpipe's processes.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any, NamedTuple

from arcpipe.config.listeners import Listener
from arcpipe.errors import ArcpipeError


class Bound(NamedTuple):
    """A listening socket, and the listener of the settings that it belongs to."""

    listener: Listener
    socket: socket.socket
    is_activated: bool = False  # made by a socket unit of systemd
    is_covered: bool = False  # at an address that its listener's address includes

    @property
    def is_shared(self) -> bool:
        """Whether all workers listen on this very socket."""
        return self.is_activated or bool(self.listener.path)

    @property
    def url(self) -> str:
        """The URL for clients."""
        if self.listener.path:
            return self.listener.address
        host, port = self.socket.getsockname()[:2]
        return f"{'https' if self.listener.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class Resolved(NamedTuple):
    """A TCP listener with the arguments of `socket.socket` and `bind` for it."""

    listener: Listener
    family: int
    kind: int
    protocol: int
    address: Any


def resolve(listener: Listener) -> Resolved:
    """Find the socket address of a TCP listener.

    Raises:
        ArcpipeError: its host has none.
    """
    host, port = listener.tcp
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise cannot_listen(listener, error) from error
    except UnicodeError as error:  # a part of a name that is empty or longer than 63 characters
        raise cannot_listen(listener, OSError(errno.EINVAL, f"not a host name ({error})")) from error
    return Resolved(listener, family, kind, protocol, address)


def bind(wanted: Resolved, address: Any, is_first: bool) -> socket.socket:
    """Make a socket at an address, for a worker to listen on.

    Args:
        is_first: no socket of this instance is at this address, so any other one there is foreign.

    Raises:
        OSError: the address is in use, or cannot be bound.
    """
    listener = socket.socket(wanted.family, wanted.kind, wanted.protocol)
    try:
        if is_first and address[1]:
            # A foreign listening socket with SO_REUSEPORT would silently get a share of our connections.
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


def take(spare: list[Bound], wanted: Resolved) -> list[Bound]:
    """Remove the sockets at an address from `spare` and return them; all have one port and are of one kind."""
    found = [bound for bound in spare if bound.socket.family == wanted.family and _is_at(bound, wanted.address)]
    first = next((bound for bound in found if bound.is_activated), found[0] if found else None)
    if first is not None:
        at = first.socket.getsockname()
        found = [one for one in found if one.socket.getsockname() == at and one.is_activated == first.is_activated]
    for bound in found:
        spare.remove(bound)
    return found


def take_covered(spare: list[Bound], wanted: Resolved) -> list[Bound]:
    """Remove the sockets from `spare` whose address a wanted wildcard address includes, and return them."""
    host, port = wanted.address[:2]
    if not (port and ipaddress.ip_address(host).is_unspecified):
        return []
    found = [
        bound
        for bound in spare
        if bound.socket.family == wanted.family
        and not bound.is_activated
        and port_of(bound) == port
        and bound.socket.getsockname()[0] != host
    ]
    for bound in found:
        spare.remove(bound)
    return found


def port_of(bound: Bound) -> int:
    """Return the TCP port of a socket; 0 for another kind."""
    return int(bound.socket.getsockname()[1]) if bound.socket.family != socket.AF_UNIX else 0


def is_loopback(address: Any) -> bool:
    """Tell whether only this machine reaches an address. One such as ::ffff:127.0.0.1 counts as on Python 3.11."""
    found = ipaddress.ip_address(address)
    return found.is_loopback and getattr(found, "ipv4_mapped", None) is None


def cannot_listen(listener: Listener, error: OSError) -> ArcpipeError:
    """Return the error of a listener whose address cannot be bound."""
    host, port = listener.tcp
    return ArcpipeError(
        f"cannot listen on {host} port {port}: {error.strerror}. "
        "Set server.host and server.port, or the address of the listener, to a free address."
    )


def _is_at(bound: Bound, address: Any) -> bool:
    host, port = bound.socket.getsockname()[:2]
    if host != address[0] or address[1] not in (0, port):
        return False
    # Older versions made sockets at :: that accept IPv4, too. For a socket unit its own configuration decides.
    takes_more = bound.socket.family == socket.AF_INET6 and not (
        bound.is_activated or bound.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return not takes_more


def _prepare(listener: socket.socket) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:  # "::" accepts no IPv4, whatever the machine's default is
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
