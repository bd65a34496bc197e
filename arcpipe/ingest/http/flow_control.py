"""Flow control: which connections of a worker are read from, by the bytes that it holds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Protocol

from arcpipe.ingest.http.limits import READ_BYTES, Limits

# Why reading of a connection is paused; several reasons may hold at a time.
PIPELINE_FULL: Final = 1  # too many of its requests wait for their answers
ANSWERS_UNREAD: Final = 2  # the client does not read what it is answered
LOG_BEHIND: Final = 4  # too many bytes of the worker wait for the log
NO_ROOM: Final = 8  # too many bytes of the worker are bodies that are still arriving
TURN: Final = 16  # it has had its turn of the loop, and waits for the next one

# A body of which no more than this has arrived is not paused for want of room: most are complete with the next read.
SMALL_BODY_BYTES: Final = 64 << 10
# Where bodies wait for room, those that arrive have to bring so much together in such a time, or the eldest gives way.
PATIENCE_SECONDS: Final = 1.0
PATIENCE_BYTES: Final = 256 << 10


class Reader(Protocol):
    """A connection, as one that may be read from or not."""

    @property
    def has_posted(self) -> bool:
        """Whether something that it has posted is not answered yet."""

    @property
    def brings_large_body(self) -> bool:
        """Whether a body arrives that is more than small."""

    def pause_reading(self, reason: int) -> None:
        """Stop reading, for one reason more."""

    def resume_reading(self, reason: int, by_turn: bool = False) -> None:
        """Take one reason away, and go on reading if it was the last."""

    def refuse_for_room(self) -> None:
        """Give up the body that is arriving."""


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
        connections: Collection[Reader],
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
        self._arriving: dict[Reader, int] = {}  # bytes held of each body, in the order in which they began
        self._arriving_bytes = 0
        self._waiting: dict[Reader, None] = {}  # paused for want of room, in the order in which they were
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

    def admit(self, connection: Reader) -> None:
        """A connection has just been read: it waits if too much is pending, and some of that is its own."""
        if self._behind and (connection.has_posted or (self.is_full and connection.brings_large_body)):
            connection.pause_reading(LOG_BEHIND)

    # Bodies that are arriving

    def hold(self, connection: Reader, size: int) -> None:
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

    def release(self, connection: Reader) -> None:
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

    def _wait(self, connection: Reader) -> None:
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

    def _resume(self, connection: Reader) -> None:
        del self._waiting[connection]
        connection.resume_reading(NO_ROOM, by_turn=True)
