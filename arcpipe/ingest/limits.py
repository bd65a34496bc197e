"""What bounds a worker: sizes, connections, bytes in flight, the disk, the backlog."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from arcpipe import descriptors
from arcpipe.counters import FIGURES_SECONDS, HANDED_OVER, Node
from arcpipe.ingest import responses

if TYPE_CHECKING:
    from arcpipe.config import Settings
    from arcpipe.descriptors import Room
    from arcpipe.ingest.protocol import Connection

# Why reading of a connection is paused; several reasons may hold at a time.
PIPELINE_FULL: Final = 1  # too many of its requests wait for their answers
ANSWERS_UNREAD: Final = 2  # the client does not read what it is answered
LOG_BEHIND: Final = 4  # too many bytes of the worker wait for the log
NO_ROOM: Final = 8  # too many bytes of the worker are bodies that are still arriving
TURN: Final = 16  # it has had its turn of the loop, and waits for the next one

# With the log disabled clients do not wait for the disk: without this bound they would fill `server.max_inflight_mb`.
MAX_UNWRITTEN: Final = 32 << 20

# A body of which no more than this has arrived is not paused for want of room: most are complete with the next read.
SMALL_BODY_BYTES: Final = 64 << 10
# A new version has so long to load before it ends the workers of the former one.
_HANDED_OVER_SECONDS: Final = 60.0
# The most that one read from a socket brings.
READ_BYTES: Final = 256 << 10
# Where bodies wait for room, those that arrive have to bring so much together in such a time, or the eldest gives way.
PATIENCE_SECONDS: Final = 1.0
PATIENCE_BYTES: Final = 256 << 10


class Limits(Struct, frozen=True):
    """The settings that bound one worker; sizes in bytes, times in seconds."""

    max_body: int
    max_header: int
    max_headers: int
    max_url: int
    max_connections: int
    max_handshakes: int  # of TLS, at one listener
    max_turned_away: int  # connections above the limit that are told so, and given time to read it
    max_pipelined: int
    max_pending: int
    max_arriving: int
    max_kept: int
    header_timeout: float
    body_timeout: float
    max_body_seconds: float
    keep_alive: float

    @classmethod
    def of(cls, settings: Settings, room: Room | None = None) -> Limits:
        """The bounds of these settings.

        Args:
            room: for connections, where the process may have fewer than the settings want.
        """
        server = settings.server
        if room is None:
            room = descriptors.room(server.max_connections)
        half = server.max_inflight_mb << 19
        return cls(
            max_body=server.max_body_mb << 20,
            max_header=server.max_header_kb << 10,
            max_headers=server.max_headers,
            max_url=server.max_url_kb << 10,
            max_connections=room.connections,
            max_handshakes=room.handshakes,
            max_turned_away=room.turned_away,
            max_pipelined=server.max_pipelined,
            max_pending=half if settings.wal.enabled else min(half, MAX_UNWRITTEN),
            max_arriving=half,
            max_kept=max(half // 8, READ_BYTES),
            header_timeout=server.header_timeout_seconds,
            body_timeout=server.body_timeout_seconds,
            max_body_seconds=server.max_body_seconds,
            keep_alive=server.keep_alive_seconds,
        )


class Admission:
    """Whether writes are taken at all: not when the disk is nearly full, nor when uploads are too far behind.

    The supervisor measures both and shares the figures; looking costs three reads of memory. Where it cannot measure,
    or has not for some seconds, nothing is taken either: `tick` looks for that, a few times a second.
    """

    def __init__(self, settings: Settings, node: memoryview) -> None:
        self._node = node
        self._max_backlog = settings.wal.max_backlog_mb << 20
        self._min_free = settings.wal.min_free_mb << 20
        self._unlisted = responses.error(
            503,
            "log_failure",
            "the WAL directory cannot be looked at, so nobody knows its backlog and space; nothing was written",
            b"Retry-After: 5\r\n",
        )
        self._stale = responses.error(
            503,
            "log_failure",
            f"backlog and disk were not measured for {FIGURES_SECONDS:g} s (the supervisor hangs); nothing was written",
            b"Retry-After: 5\r\n",
        )
        self._untrusted: bytes | None = None  # the answer while the figures are not to be trusted
        self._was_stale = False  # at the last tick
        self._no_space = responses.error(
            507,
            "no_space",
            f"less than wal.min_free_mb = {settings.wal.min_free_mb} MB is free on the log's disk; nothing was written",
            b"Retry-After: 10\r\n",
        )
        self._backlog = responses.error(
            503,
            "backlog",
            f"more than wal.max_backlog_mb = {settings.wal.max_backlog_mb} MB wait to be uploaded; nothing was written",
            b"Retry-After: 10\r\n",
        )

    def tick(self) -> None:
        """Judges whether the figures are to be trusted."""
        node = self._node
        measured = node[Node.MEASURED_US]
        # While an upgrade replaces the supervisor, its successor measures for its own workers, and ends these.
        patience = _HANDED_OVER_SECONDS if node[Node.DRAINING] == HANDED_OVER else FIGURES_SECONDS
        is_stale = measured > 0 and time.monotonic_ns() // 1000 - measured > patience * 1e6
        self._untrusted = None
        if node[Node.UNLISTED]:
            self._untrusted = self._unlisted
        elif is_stale and self._was_stale:  # once is no more than that the whole machine stood still
            self._untrusted = self._stale
        self._was_stale = is_stale

    def refusal(self) -> bytes | None:
        """The answer to give instead of writing, or None."""
        if self._untrusted is not None:
            return self._untrusted
        if self._node[Node.DISK_FREE_BYTES] < self._min_free:
            return self._no_space
        if self._node[Node.BACKLOG_BYTES] > self._max_backlog:
            return self._backlog
        return None


class BytesInFlight:
    """The bytes of request bodies that a worker holds, and so who may be read from.

    Half of `server.max_inflight_mb` is for complete bodies, which wait for the WAL or to be decoded or encoded. Above
    it nobody is read who has posted something that waits, until half of that has left; it leaves by itself, so reading
    always goes on. Whoever has nothing there may bring a body: above twice the half only a small one at once, while
    large ones wait, and those in between, which one read may bring whole, are refused. Above three times the half small
    ones are refused, too.

    The other half is for bodies and heads that are still arriving. Above it those that are more than small wait, all
    but the one that began first, so that they become complete one after the other. A first one that brings little
    while others wait is refused, which gives its bytes back: so somebody always moves, and slow senders hold up nobody
    for long. Should the small ones fill one and a half times the half, they wait as well. Above three times the half,
    the latest is refused.

    So what arrives is never more than three times the half. What is complete may be three times the half, too, and
    then what was arriving at that moment becomes complete. Together that is six times the half, or three times
    `server.max_inflight_mb`, and one read. Only thousands of clients that all send small bodies come near it.
    """

    def __init__(
        self,
        limits: Limits,
        connections: set[Connection],
        pending_bytes: Callable[[], int],
        on_full: Callable[[bool], None],
    ) -> None:
        """
        Args:
            pending_bytes: of complete bodies.
            on_full: called when `is_full` has changed.
        """
        self._on_full = on_full
        self._max_pending = limits.max_pending
        self._max_arriving = limits.max_arriving
        self._connections = connections
        self._pending_bytes = pending_bytes
        self._behind = False  # the WAL, or a thread; those that write are paused
        self.unchecked_bytes = limits.max_pending  # with the WAL, above which `check` and `admit` are to be called
        self.is_full = False  # of complete bodies: no other is taken at once but small ones,
        self.is_overfull = False  # and not even these
        self._arriving: dict[Connection, int] = {}  # bytes held of each body, in the order in which they began
        self._arriving_bytes = 0
        self._waiting: dict[Connection, None] = {}  # paused for want of room, in the order in which they were
        self._moved = 0  # bytes, since `_looked`, while there was no room
        self._looked: float | None = None  # when was looked whether enough moves; None while nobody waits

    # Complete bodies

    def check(self) -> None:
        """To be called when bodies have become complete."""
        pending = self._pending_bytes()
        was_behind, was_full = self._behind, self.is_full
        self._note(pending)
        if not was_behind and pending > self._max_pending:
            self._behind = True
            self.unchecked_bytes = -1
        if was_behind != self._behind or was_full < self.is_full:
            for connection in self._connections:
                self.admit(connection)

    def left(self) -> None:
        """To be called when complete bodies have left."""
        pending = self._pending_bytes()
        self._note(pending)
        if self._behind and pending <= self._max_pending // 2:
            self._behind = False
            self.unchecked_bytes = self._max_pending
            for connection in tuple(self._connections):
                connection.resume_reading(LOG_BEHIND, by_turn=True)

    def _note(self, pending: int) -> None:
        self.is_overfull = pending > 3 * self._max_pending
        if self.is_full != (pending > 2 * self._max_pending):
            self.is_full = not self.is_full
            self._on_full(self.is_full)

    def admit(self, connection: Connection) -> None:
        """A connection has just been read: it waits if too much is pending, and some of that is its own."""
        if self._behind and (connection.has_posted or (self.is_full and connection.brings_large_body)):
            connection.pause_reading(LOG_BEHIND)

    # Bodies that are arriving

    def hold(self, connection: Connection, size: int) -> None:
        """This many bytes of a connection's body, or head, have arrived, and it is not complete."""
        arriving = self._arriving
        grown = size - arriving.get(connection, 0)
        arriving[connection] = size
        self._arriving_bytes += grown
        if self._arriving_bytes <= self._max_arriving:
            return
        self._moved += grown
        limit = SMALL_BODY_BYTES
        if self._arriving_bytes > self._max_arriving + self._max_arriving // 2:
            limit = SMALL_BODY_BYTES // 2
        if size > limit and connection is not next(iter(arriving)):
            self._wait(connection)
        while self._arriving_bytes > 3 * self._max_arriving and len(arriving) > 1:
            next(reversed(arriving)).refuse_for_room()

    def release(self, connection: Connection) -> None:
        """A connection's body is complete, or will never be."""
        size = self._arriving.pop(connection, None)
        self._waiting.pop(connection, None)
        if size is not None:
            self._arriving_bytes -= size
            self._moved += size
            self._go_on()

    def is_empty(self) -> bool:
        """Whether nothing arrives and nobody waits."""
        return not (self._arriving or self._arriving_bytes or self._waiting)

    def tick(self, now: float) -> None:
        """To be called a few times a second: refuses bodies that arrive too slowly while others wait."""
        self._go_on()
        if not self._waiting or self._behind:
            self._looked = None
        elif self._looked is None:
            self._looked, self._moved = now, 0
        elif now - self._looked >= PATIENCE_SECONDS:
            if self._moved < PATIENCE_BYTES:
                while self._arriving_bytes > self._max_arriving // 2:
                    first = next(iter(self._arriving))
                    first.refuse_for_room()
                    assert first not in self._arriving
            self._looked, self._moved = now, 0

    def _wait(self, connection: Connection) -> None:
        self._waiting[connection] = None
        connection.pause_reading(NO_ROOM)

    def _go_on(self) -> None:
        """Lets those that wait go on: the body that began first always, the others as far as there is room."""
        waiting = self._waiting
        if not waiting:
            return
        first = next(iter(self._arriving), None)
        if first in waiting:
            self._resume(first)
        if self._arriving_bytes <= self._max_arriving // 2:
            many = len(waiting)
        else:
            many = min(len(waiting), (self._max_arriving - self._arriving_bytes) // READ_BYTES)
        for _ in range(many):
            self._resume(next(iter(waiting)))

    def _resume(self, connection: Connection) -> None:
        del self._waiting[connection]
        connection.resume_reading(NO_ROOM, by_turn=True)
