"""Work that would hold up a worker's loop: large bodies, decoded or encoded on threads of their own.

A loop that stands still answers nobody and shows no sign of life. So whatever may take long is done apart, one piece at
a time. Nobody but the senders of such bodies waits for them, and they share the thread fairly: whose pieces have taken
less of it lately comes first, each client for itself, and clients of one address together no more than one of another.
A piece that has had its share is interrupted for those that have not, if it asks for that often enough.

The order is that of start-time fair queueing (Goyal, Vin, Cheng 1996): each piece has a start and an end in the time of
the thread if it were shared evenly, and the piece with the earliest end is next. Of each client one piece at a time
takes part, so that the next one starts where the last one really ended.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final, Protocol

# Seconds that a piece is expected to take besides its bytes, and for each of them: what it really took is known later.
_PIECE_SECONDS: Final = 0.0001
_BYTE_SECONDS: Final = 2e-8
# Pieces that are interrupted at a time, at most: each takes some ten frames of the stack. What comes behind the
# last one is not interrupted, and so has to be a short piece, of up to this many bytes.
_MOST_INTERRUPTED: Final = 40
_SHORT_BYTES: Final = 64 << 10
# Clients whose share is remembered although nothing of them waits.
_CLIENTS_KEPT: Final = 1024


class Client(Protocol):
    """Whose work it is: a connection."""

    address: str
    """Where it comes from; clients of one address share what one of another has."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for its work any more."""


class ClientGone(Exception):
    """A piece was not done, or not to its end, because its client is gone."""


Check = Callable[[], None]
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
    """Work that waits for its thread. `held_bytes` is the size of all that waits or is being worked on."""

    def __init__(
        self,
        name: str,
        may_start: Callable[[], bool],
        on_change: Callable[[], None],
        *,
        interrupts: bool,
    ) -> None:
        """
        Args:
            may_start: whether the worker has room for the outcome of another piece at the moment.
            on_change: called in the loop when `held_bytes` has changed.
            interrupts: whether pieces are interrupted for others when they call the `check` that they are given.
        """
        self.held_bytes = 0
        self._may_start = may_start
        self._on_change = on_change
        self._interrupts = interrupts
        self._lock = threading.Lock()  # of all that follows
        self._short: list[_Piece] = []  # two heaps: the first piece of each client
        self._long: list[_Piece] = []
        self._behind: dict[Client, deque[_Piece]] = {}  # and those behind it
        self._ends: dict[Client, float] = {}  # of the latest piece of each client
        self._most_ends = _CLIENTS_KEPT  # above which those are looked for that are over
        self._pieces: Counter[Client] = Counter()  # that wait or are being worked on
        self._addresses: Counter[str] = Counter()  # of the clients that these are of
        self._now = 0.0  # in the time of those ends
        self._number = 0
        self._running = False
        self._thread = ThreadPoolExecutor(1, name)

    def add(self, client: Client, size_bytes: int, work: Work, done: Done) -> None:
        """Have `work` done on the thread; `done` is called in the loop with what it raised, if anything.

        It is called with ClientGone if the client went away before.
        """
        self.held_bytes += size_bytes
        piece = _Piece(client, size_bytes, work, done)
        with self._lock:
            self._pieces[client] += 1
            if self._pieces[client] == 1:
                self._addresses[piece.address] += 1
                self._place(piece)
            else:
                self._behind.setdefault(client, deque()).append(piece)
        self.proceed()
        self._on_change()

    def proceed(self) -> None:
        """Start with the next piece if there is one and it may be. To be called when bytes have left the worker."""
        if self._running or not (self._short or self._long) or not self._may_start():
            return
        self._running = True
        with self._lock:
            piece = self._take(self._first(short=False))
        self._thread.submit(self._work_on, piece, asyncio.get_running_loop(), 0)

    # With the lock

    def _place(self, piece: _Piece) -> None:
        """Have a piece take part that is the first of its client."""
        client = piece.client
        self._number += 1
        piece.number = self._number
        piece.weight = self._addresses[piece.address]
        piece.start = max(self._now, self._ends.get(client, 0.0))
        piece.end = piece.start + (_PIECE_SECONDS + piece.size_bytes * _BYTE_SECONDS) * piece.weight
        heapq.heappush(self._short if piece.size_bytes <= _SHORT_BYTES else self._long, piece)

    def _first(self, *, short: bool) -> list[_Piece]:
        """The heap whose first piece is next; an empty one if there is none. If `short`, only a short piece may be."""
        if short or not self._long:
            return self._short
        return self._short if self._short and self._short[0] < self._long[0] else self._long

    def _take(self, heap: list[_Piece]) -> _Piece:
        piece = heapq.heappop(heap)
        self._now = max(self._now, piece.start)
        return piece

    def _charge(self, piece: _Piece) -> None:
        """Have its client pay for what a piece took, and the next one of the client take part."""
        client = piece.client
        if len(self._ends) >= self._most_ends:
            self._ends = {kept: end for kept, end in self._ends.items() if end > self._now}
            self._most_ends = max(_CLIENTS_KEPT, 2 * len(self._ends))  # not with each piece of thousands of clients
        self._ends[client] = piece.start + piece.spent * piece.weight
        self._pieces[client] -= 1
        if self._pieces[client]:
            behind = self._behind[client]
            self._place(behind.popleft())
            if not behind:
                del self._behind[client]
            return
        del self._pieces[client]
        self._addresses[piece.address] -= 1
        if not self._addresses[piece.address]:
            del self._addresses[piece.address]
        if not self._pieces:
            self._ends.clear()
            self._now = 0.0

    # On the thread

    def _work_on(self, piece: _Piece, loop: asyncio.AbstractEventLoop, depth: int) -> float:
        """Do the work of a piece, and meanwhile that of others whose turn has come; the seconds of all of it."""
        began = resumed = perf_counter()

        def check() -> None:
            nonlocal resumed
            if piece.client.is_gone:
                raise ClientGone
            now = perf_counter()
            piece.spent += now - resumed
            resumed = now
            if not (self._short or self._long):
                return
            while True:
                with self._lock:
                    waiting = self._first(short=depth + 1 >= _MOST_INTERRUPTED)
                    if not waiting or waiting[0].end >= piece.start + piece.spent * piece.weight:
                        break
                    other = self._take(waiting)
                self._work_on(other, loop, depth + 1)
            resumed = perf_counter()

        def go_on() -> None:
            """Nobody is given way to."""

        error: Exception | None = None
        try:
            if piece.client.is_gone:
                raise ClientGone
            piece.work(check if self._interrupts and depth < _MOST_INTERRUPTED else go_on)
        except Exception as raised:
            error = raised
        piece.spent += perf_counter() - resumed
        with self._lock:
            self._charge(piece)
        loop.call_soon_threadsafe(self._finished, piece, error, depth)
        return perf_counter() - began

    # In the loop again

    def _finished(self, piece: _Piece, error: Exception | None, depth: int) -> None:
        if not depth:
            self._running = False
        self.held_bytes -= piece.size_bytes
        try:
            piece.done(error)
        finally:
            self.proceed()
            self._on_change()
