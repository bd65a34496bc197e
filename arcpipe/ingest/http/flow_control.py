"""Flow control: from which connections a worker reads, by the bytes that it holds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Protocol

from arcpipe.ingest.http.limits import READ_BYTES, Limits
from arcpipe.units import KB

# Reasons for not reading from a connection; several may hold at a time.
PIPELINE_FULL: Final = 1  # too many of its requests wait for their answers
ANSWERS_UNREAD: Final = 2  # the client does not read what it is answered
WAL_BEHIND: Final = 4  # too many bytes of the worker wait for the WAL
NO_ROOM: Final = 8  # too many bytes of the worker belong to bodies that are still arriving
TURN: Final = 16  # it had its turn of the loop, and waits for the next one

# Bytes of a body up to which reading does not pause for lack of memory: the next read completes most of them.
SMALL_BODY_BYTES: Final = 64 * KB
# While bodies are queued for memory, the ones being received must together make PATIENCE_BYTES of progress every
# PATIENCE_SECONDS; otherwise the oldest is refused.
PATIENCE_SECONDS: Final = 1.0
PATIENCE_BYTES: Final = 256 * KB
# Times the memory of arriving bodies that those received directly may announce together. Announced bytes take address
# space only, which some systems count (`vm.overcommit_memory = 2`). Further bodies come in pieces.
_ANNOUNCED: Final = 4


class Reader(Protocol):
    """A connection, as flow control knows it."""

    @property
    def has_posted(self) -> bool:
        """Whether a complete POST request waits for its answer."""

    @property
    def brings_large_body(self) -> bool:
        """Whether the body that is arriving is not small."""

    def pause_reading(self, reason: int) -> None:
        """Stop reading, for one reason more."""

    def resume_reading(self, reason: int, by_turn: bool = False) -> None:
        """Take one reason away, and read on after the last."""

    def refuse_for_room(self) -> None:
        """Refuse the body that is arriving."""


class BytesInFlight:
    """Counts the bytes of request bodies that a worker holds, and pauses reading accordingly.

    One half of `server.max_inflight_mb` is for complete bodies, which wait for the WAL, or to be decoded or encoded.

    - Above the half, reading pauses from clients with a complete body here, until the bytes are down to half of that.
      Complete bodies leave by themselves, so reading always goes on.
    - Other clients may still send bodies. Above twice the half, a small one is accepted at once, and a large one waits.
      Those in between, which a single read may complete, are refused.
    - Above three times the half, small ones are refused, too.

    The other half is for bodies and heads that are still arriving.

    - Above it, all bodies wait that are not small, except the oldest. So they become complete one after the other.
    - If that one makes little progress while others wait, it is refused and its memory is free. So slow senders delay
      the others for a short time only.
    - Above one and a half times the half, small bodies wait as well. Above three times, the latest is refused.

    So arriving bodies never take more than three times the half. Complete ones may take as much, and then the arriving
    ones become complete. In total that is three times `server.max_inflight_mb`, plus one read. Only thousands of
    clients that all send small bodies come near it.
    """

    def __init__(
        self,
        limits: Limits,
        connections: Collection[Reader],
        pending_bytes: Callable[[], int],
        on_full: Callable[[bool], None],
    ) -> None:
        """Begin with no bytes.

        Args:
            pending_bytes: returns the bytes of complete bodies.
            on_full: called when `is_full` has changed.
        """
        self._on_full = on_full
        self._max_pending = limits.max_pending
        self._max_arriving = limits.max_arriving
        self._connections = connections
        self._pending_bytes = pending_bytes
        self._behind = False  # the WAL, or a thread; connections that write are paused
        self.unchecked_bytes = limits.max_pending  # with the WAL, above which callers must call `check` and `admit`
        self.is_full = False  # of complete bodies: only small ones are accepted at once,
        self.is_overfull = False  # or not even these
        self.arriving: dict[Reader, int] = {}  # bytes held of each incomplete body, the oldest first
        self._arriving_bytes = 0
        self._large: dict[Reader, None] = {}  # of `arriving`, those that are not small and do not wait,
        self._middling: dict[Reader, None] = {}  # and those that are small, but not very
        self.waiting: dict[Reader, None] = {}  # paused for lack of memory, the longest first
        self._announced_bytes = 0  # of bodies that are received directly
        self._moved = 0  # bytes of progress since `_looked`, while memory was short
        self._looked: float | None = None  # when progress was last judged; None while no body waits

    # Complete bodies

    def check(self) -> None:
        """Pause connections that write if too much is pending. Call it when bodies have become complete."""
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
        """Resume connections if little is pending. Call it when complete bodies have left."""
        pending = self._pending_bytes()
        self._note(pending)
        if self._behind and pending <= self._max_pending // 2:
            self._behind = False
            self.unchecked_bytes = self._max_pending
            for connection in tuple(self._connections):
                connection.resume_reading(WAL_BEHIND, by_turn=True)

    def _note(self, pending: int) -> None:
        self.is_overfull = pending > 3 * self._max_pending
        if self.is_full != (pending > 2 * self._max_pending):
            self.is_full = not self.is_full
            self._on_full(self.is_full)

    def admit(self, connection: Reader) -> None:
        """Pause a connection that was just read, if too much is pending and part of that is its own."""
        if self._behind and (connection.has_posted or (self.is_full and connection.brings_large_body)):
            connection.pause_reading(WAL_BEHIND)

    # Bodies that are arriving

    def hold(self, connection: Reader, size: int) -> None:
        """Count the bytes that have arrived of a connection's incomplete body or head."""
        arriving = self.arriving
        grown = size - arriving.get(connection, 0)
        arriving[connection] = size
        self._arriving_bytes += grown
        if connection not in self.waiting:
            self._note_size(connection, size)
        if self._arriving_bytes <= self._max_arriving:
            return
        self._moved += grown
        # Also those that were read before: one more read of each would be too much.
        for large in tuple(self._large):
            self._wait(large)
        if self._arriving_bytes > self._max_arriving + self._max_arriving // 2:
            for middling in tuple(self._middling):
                self._wait(middling)
        while self._arriving_bytes > 3 * self._max_arriving and len(arriving) > 1:
            next(reversed(arriving)).refuse_for_room()

    def release(self, connection: Reader) -> None:
        """Stop counting a connection's body, which is complete, or never will be."""
        size = self.arriving.pop(connection, None)
        self.waiting.pop(connection, None)
        self._forget_size(connection)
        if size is not None:
            self._arriving_bytes -= size
            self._moved += size
            self._go_on()

    def announce(self, size: int) -> bool:
        """Count a body that is to be received directly, by its length; return False if there are too many."""
        if self._announced_bytes + size > _ANNOUNCED * self._max_arriving:
            return False
        self._announced_bytes += size
        return True

    def arrived(self, size: int) -> None:
        """Stop counting such a body, which is complete, or never will be."""
        self._announced_bytes -= size

    def tick(self, now: float) -> None:
        """Refuse bodies that arrive too slowly while others wait. Call it a few times a second."""
        self._go_on()
        if not self.waiting or self._behind:
            self._looked = None
        elif self._looked is None:
            self._looked, self._moved = now, 0
        elif now - self._looked >= PATIENCE_SECONDS:
            if self._moved < PATIENCE_BYTES:
                while self.waiting and self._arriving_bytes > self._max_arriving // 2:
                    first = next(iter(self.arriving))
                    first.refuse_for_room()
                    assert first not in self.arriving
            self._looked, self._moved = now, 0

    def _note_size(self, connection: Reader, size: int) -> None:
        if size > SMALL_BODY_BYTES:
            self._middling.pop(connection, None)
            self._large[connection] = None
        elif size > SMALL_BODY_BYTES // 2:
            self._middling[connection] = None

    def _forget_size(self, connection: Reader) -> None:
        self._large.pop(connection, None)
        self._middling.pop(connection, None)

    def _wait(self, connection: Reader) -> None:
        if connection is not next(iter(self.arriving)):
            self._forget_size(connection)
            self.waiting[connection] = None
            connection.pause_reading(NO_ROOM)

    def _go_on(self) -> None:
        """Resume waiting bodies: the oldest always, the others as far as memory allows."""
        waiting = self.waiting
        if not waiting:
            return
        first = next(iter(self.arriving), None)
        if first in waiting:
            self._resume(first)
        if self._arriving_bytes <= self._max_arriving // 2:
            many = len(waiting)
        else:
            many = min(len(waiting), (self._max_arriving - self._arriving_bytes) // READ_BYTES)
        for _ in range(many):
            self._resume(next(iter(waiting)))

    def _resume(self, connection: Reader) -> None:
        del self.waiting[connection]
        self._note_size(connection, self.arriving[connection])
        connection.resume_reading(NO_ROOM, by_turn=True)
