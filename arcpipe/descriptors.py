"""File descriptors: how many connections they are enough for, and those that are kept for the WAL.

A process may be allowed fewer open files than `server.max_connections` wants. Then it takes fewer connections, and says
so: listening sockets, segments, handshakes and connections that are turned away need descriptors, too.

Connections may use up all that is left, and the WAL has to rotate all the same. So a process that serves connections
works with a limit that is a little lower than it may have. Whoever opens a file of the WAL and finds no descriptor
raises the limit for as long as that takes. What was opened stays open above the limit.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

LEAST: Final = 64
"""Open files without which no process of the server can do its work, sockets of listeners apart."""

# Descriptors of a worker beside its connections: at least half of what it may have, within these bounds. It has some 20
# open always.
_LEAST_OTHERS: Final = 48
_OTHERS: Final = 512
# A rotation has three open at a time. Connections that come just then may take some of them for a while.
RESERVED: Final = 64
_MAX_HANDSHAKES: Final = 256
_MAX_TURNED_AWAY: Final = 256


class Room(NamedTuple):
    """What a number of descriptors is shared out to, in one worker."""

    connections: int
    reserved: int  # for the WAL
    handshakes: int  # of TLS, at one listener
    turned_away: int  # connections above the limit that are told so


def room(wanted: int, limit: int = resource.RLIM_INFINITY) -> Room:
    """Shares out descriptors.

    Args:
        wanted: connections.
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
    """Open files that are enough for as many connections."""
    return connections + _OTHERS


def room_here(wanted: int) -> Room:
    """Shares out what this process may open now. To be called before `keep_reserve`."""
    return room(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


_lock = threading.Lock()
_limit = 0  # of this process besides the reserve; 0: it has no reserve
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
    """Open files with what is reserved; for one thread at a time, and without effect where nothing is."""
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
