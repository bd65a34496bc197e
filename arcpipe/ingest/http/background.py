"""Work that would block a worker's loop: large bodies are decoded and encoded on threads of their own.

A blocked loop answers no client and renews no heartbeat. So long work is done on a thread, one piece at a time. Only
the senders of large bodies wait for it, and they share the thread fairly. The client whose pieces have used it least
lately comes first. All clients of one address together have the share of one client of another address. A piece that
has had its share is interrupted for others, if it calls `check` often enough.

Each piece that is interrupted keeps the memory of its work. That may be ten thousand times its bytes if they were
compressed within. So a piece that interrupts others, and is about to take much, is ended, and begun again once it
interrupts nothing.

The order is start-time fair queueing (Goyal, Vin, Cheng 1996): each piece has a start and an end in the time of an
evenly shared thread, and the piece with the earliest end is next. Each client takes part with one piece at a time, so
that its next piece starts where the previous one really ended.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final, NamedTuple, Protocol

from arcpipe.codec.effort import Check, go_on
from arcpipe.units import KB, MB

# Seconds that a piece is expected to take, and each of its bytes; the actual time replaces this at its end.
_PIECE_SECONDS: Final = 0.0001
_BYTE_SECONDS: Final = 2e-8
# Pieces that are interrupted at a time, at most: each takes about ten frames of the stack. The piece after the last of
# them is not interrupted, so it must be short: this many bytes at most.
_MOST_INTERRUPTED: Final = 40
_SHORT_BYTES: Final = 64 * KB
# Bytes beyond its own that a piece may take while it interrupts others.
_MOST_TAKEN_BYTES: Final = 2 * MB
# Bytes of the pieces that interrupt others at a time, at most, but for short and far smaller ones: of some formats the
# work takes a hundred times as much.
_MOST_INTERRUPTING_BYTES: Final = MB
# Times that a piece is smaller than another one that it need not wait for.
_FAR_SMALLER: Final = 8
# Bytes that a piece with its request takes besides its body: hundreds of thousands of tiny ones may be queued.
HELD_BYTES: Final = 2 * KB
# Clients whose share is remembered while they have no piece.
_CLIENTS_KEPT: Final = 1024


class Client(Protocol):
    """The owner of a piece of work: a connection."""

    address: str
    """Clients of one address together have the share of one client."""

    @property
    def is_gone(self) -> bool:
        """Whether the outcome of its work is no longer needed."""


class Patience(NamedTuple):
    """How long a piece may work although the turn of other long ones has come.

    Each piece that is interrupted keeps the memory of its work. Usual bodies take 1e-8 seconds for each byte and are
    done by then, so costly ones alone are interrupted for long ones. Short ones, and far smaller ones, never wait.
    """

    seconds: float = 0.05
    byte_seconds: float = 1e-7
    """More, for each byte of the piece."""
    most_seconds: float = 1.0

    def of(self, size_bytes: int) -> float:
        """Return the seconds for a piece of this size."""
        return min(self.seconds + size_bytes * self.byte_seconds, self.most_seconds)


class ClientGone(Exception):
    """A piece was not begun, or not finished, because its client is gone."""


class _TakesMuch(Exception):
    """A piece that interrupts others is about to take much memory."""


Work = Callable[[Check], None]
Done = Callable[[Exception | None], None]


class _Piece:
    __slots__ = ("address", "client", "done", "end", "number", "size_bytes", "spent", "start", "weight", "work")

    def __init__(self, client: Client, size_bytes: int, work: Work, done: Done) -> None:
        self.client = client
        self.address = client.address
        self.size_bytes = size_bytes
        self.work = work
        self.done = done
        self.number = 0
        self.weight = 1
        self.start = self.end = 0.0
        self.spent = 0.0  # seconds of the thread, but for interruptions

    def __lt__(self, other: _Piece) -> bool:
        return (self.end, self.number) < (other.end, other.number)


class Background:
    """A queue of work for one thread. `held_bytes` is what all pieces take that are queued or in work."""

    def __init__(
        self,
        name: str,
        may_start: Callable[[], bool],
        on_change: Callable[[], None],
        *,
        interrupts: bool,
        patience: Patience = Patience(),  # noqa: B008 - it is immutable
    ) -> None:
        """Begin with no pieces; the first one starts the thread.

        Args:
            may_start: whether the worker has memory for the outcome of another piece now.
            on_change: called in the loop when `held_bytes` has changed.
            interrupts: whether a piece is interrupted for others when it calls its `check`.
            patience: when it is interrupted for long ones.
        """
        self.held_bytes = 0
        self.finished = 0  # pieces
        self._may_start = may_start
        self._on_change = on_change
        self._interrupts = interrupts
        self._patience = patience
        self._lock = threading.Lock()  # of all that follows
        self._short: list[_Piece] = []  # with the next two, heaps of each client's first piece
        self._long: list[_Piece] = []
        self._greedy: list[_Piece] = []  # those that take much memory, and so interrupt nothing
        self._interrupting_bytes = 0  # of pieces that interrupt others now
        self._later: dict[Client, deque[_Piece]] = {}  # the other pieces of each client
        self._ends: dict[Client, float] = {}  # of the latest piece of each client
        self._most_ends = _CLIENTS_KEPT  # above which past ones are dropped
        self._pieces: Counter[Client] = Counter()  # queued or in work
        self._addresses: Counter[str] = Counter()  # of the clients of these pieces
        self._now = 0.0  # in the same time as those ends
        self._number = 0
        self._running = False
        self._thread = ThreadPoolExecutor(1, name)

    def add(self, client: Client, size_bytes: int, work: Work, done: Done) -> None:
        """Have `work` done on the thread.

        Args:
            done: called in the loop with the exception that `work` raised, or None. It gets ClientGone if the client
                went away first.
        """
        self.held_bytes += size_bytes + HELD_BYTES
        piece = _Piece(client, size_bytes, work, done)
        with self._lock:
            self._pieces[client] += 1
            if self._pieces[client] == 1:
                self._addresses[piece.address] += 1
                self._place(piece)
            else:
                self._later.setdefault(client, deque()).append(piece)
        self.proceed()
        self._on_change()

    def proceed(self) -> None:
        """Begin the next piece if there is one and it may start. Call it when bytes have left the worker."""
        if self._running or not (self._short or self._long or self._greedy) or not self._may_start():
            return
        self._running = True
        with self._lock:
            piece = self._take(_first(self._short, self._long, self._greedy))
        self._thread.submit(self._work_on, piece, asyncio.get_running_loop(), 0)

    def rest(self, work: Callable[[], None]) -> None:
        """Have something done on the thread that is no piece. It must be short: pieces that come wait for it."""
        self._thread.submit(work)

    # With the lock

    def _place(self, piece: _Piece) -> None:
        """Queue a piece that is the first of its client."""
        client = piece.client
        self._number += 1
        piece.number = self._number
        piece.weight = self._addresses[piece.address]
        piece.start = max(self._now, self._ends.get(client, 0.0))
        piece.end = piece.start + (_PIECE_SECONDS + piece.size_bytes * _BYTE_SECONDS) * piece.weight
        heapq.heappush(self._short if piece.size_bytes <= _SHORT_BYTES else self._long, piece)

    def _may_interrupt(self, piece: _Piece, depth: int) -> bool:
        """Tell whether the first of the long ones may interrupt this piece, which interrupts `depth` others."""
        if not self._long or depth + 1 >= _MOST_INTERRUPTED:
            return False
        size = self._long[0].size_bytes
        if size * _FAR_SMALLER <= piece.size_bytes:  # both take hardly more memory
            return True
        patience = self._patience.of(piece.size_bytes)
        return piece.spent >= patience and self._interrupting_bytes + size <= _MOST_INTERRUPTING_BYTES

    def _take(self, heap: list[_Piece]) -> _Piece:
        piece = heapq.heappop(heap)
        self._now = max(self._now, piece.start)
        return piece

    def _charge(self, piece: _Piece) -> None:
        """Charge a client for a finished piece, and queue its next one."""
        client = piece.client
        if len(self._ends) >= self._most_ends:
            self._ends = {kept: end for kept, end in self._ends.items() if end > self._now}
            self._most_ends = max(_CLIENTS_KEPT, 2 * len(self._ends))  # among thousands of clients, not with each piece
        self._ends[client] = piece.start + piece.spent * piece.weight
        self._pieces[client] -= 1
        if self._pieces[client]:
            later = self._later[client]
            self._place(later.popleft())
            if not later:
                del self._later[client]
            return
        del self._pieces[client]
        self._addresses[piece.address] -= 1
        if not self._addresses[piece.address]:
            del self._addresses[piece.address]
        if not self._pieces:
            self._ends.clear()
            self._now = 0.0

    # On the thread

    def _work_on(self, piece: _Piece, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        """Do the work of a piece, and in between that of others whose turn has come."""
        resumed = perf_counter()

        def check(_seconds: float = 0.0, taken_bytes: int = 0, /) -> None:
            nonlocal resumed
            if piece.client.is_gone:
                raise ClientGone
            if depth and taken_bytes > _MOST_TAKEN_BYTES:
                raise _TakesMuch
            now = perf_counter()
            piece.spent += now - resumed
            resumed = now
            # What others make meanwhile is memory, too.
            if not (self._short or self._long) or not self._may_start():
                return
            while True:
                with self._lock:
                    may_be_long = self._may_interrupt(piece, depth)
                    waiting = _first(self._short, self._long) if may_be_long else self._short
                    if not waiting or waiting[0].end >= piece.start + piece.spent * piece.weight:
                        break
                    other = self._take(waiting)
                    self._interrupting_bytes += other.size_bytes
                self._work_on(other, loop, depth + 1)
                self._interrupting_bytes -= other.size_bytes
            resumed = perf_counter()

        error: Exception | None = None
        try:
            if piece.client.is_gone:
                raise ClientGone
            piece.work(check if self._interrupts and depth < _MOST_INTERRUPTED else go_on)
        except _TakesMuch:
            piece.spent += perf_counter() - resumed
            with self._lock:
                heapq.heappush(self._greedy, piece)
            return
        except Exception as raised:
            error = raised
        piece.spent += perf_counter() - resumed
        with self._lock:
            self._charge(piece)
        loop.call_soon_threadsafe(self._finished, piece, error, depth)
        error = None  # its traceback has this frame, and those with the body: a cycle would keep them for long

    # In the loop again

    def _finished(self, piece: _Piece, error: Exception | None, depth: int) -> None:
        if not depth:
            self._running = False
        self.held_bytes -= piece.size_bytes + HELD_BYTES
        self.finished += 1
        try:
            piece.done(error)
        finally:
            self.proceed()
            self._on_change()


def _first(*heaps: list[_Piece]) -> list[_Piece]:
    """Return the heap whose first piece is next; an empty one if all are."""
    return min((heap for heap in heaps if heap), key=lambda heap: heap[0], default=[])
