"""File descriptors: the number of connections they allow, and a reserve for the WAL.

A process may be allowed fewer open files than `server.max_connections` needs. It then accepts fewer connections and
says so. Listening sockets, segments, handshakes and connections that are turned away need descriptors, too.

Connections may use up all others, but the WAL must be able to rotate. So a worker lowers its own limit a little. If
opening a WAL file finds no descriptor, the limit is raised while that file is opened. The file stays open above the
limit.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

LEAST: Final = 64
"""Open files that each process of the server needs at least, besides listening sockets."""

# Descriptors of a worker besides its connections: at least half of its limit, within these bounds. About 20 are always
# open.
_LEAST_OTHERS: Final = 48
_OTHERS: Final = 512
# Descriptors for the WAL. A rotation has three open at a time; connections that come just then may take some as well.
RESERVED: Final = 64
_MAX_HANDSHAKES: Final = 256
_MAX_TURNED_AWAY: Final = 256


class Room(NamedTuple):
    """How one worker shares out its descriptors."""

    connections: int
    reserved: int  # for the WAL
    handshakes: int  # of TLS, at one listener
    turned_away: int  # connections above the limit that still get an answer


def room(wanted: int, limit: int = resource.RLIM_INFINITY) -> Room:
    """Share out the descriptors of one worker.

    Args:
        wanted: connections that the settings allow.
        limit: open files that the process may have.
    """
    if limit == resource.RLIM_INFINITY:
        limit = wanted + _OTHERS
    others = max(_LEAST_OTHERS, min(_OTHERS, max(limit // 2, limit - wanted)))
    connections = max(1, min(wanted, limit - others))
    reserved = min(RESERVED, others // 2)
    if others == _OTHERS:
        return Room(connections, reserved, min(_MAX_HANDSHAKES, connections), _MAX_TURNED_AWAY)
    few = others // 16
    return Room(connections, reserved, min(few, connections), few)


def needed(connections: int) -> int:
    """Return the number of open files that a worker with that many connections needs."""
    return connections + _OTHERS


def room_here(wanted: int) -> Room:
    """Share out the descriptors that this process may open; call it before `keep_reserve`."""
    return room(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


_lock = threading.Lock()
_limit = 0  # open files of this process without the reserve; 0: it has no reserve
_reserved = 0


def keep_reserve(reserved: int) -> None:
    """Lower the limit of this process by the reserve, once, before it takes connections."""
    global _limit, _reserved
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft <= reserved:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - reserved, hard))
    _limit, _reserved = soft - reserved, reserved


@contextlib.contextmanager
def reserve() -> Iterator[None]:
    """Open files from the reserve, one thread at a time; without a reserve this changes nothing."""
    with _lock:
        if not _limit:
            yield
            return
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (_limit + _reserved, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_limit, hard))
