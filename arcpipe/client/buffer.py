"""What waits to be sent: batches that are open, sealed or under way, within a bound. Callers put, one sender takes.

A batch is sealed when it has enough records or bytes, when it is old enough, when somebody flushes, and when its disk
refused a record. All batches are taken in the order in which they were sealed. This module must not know connections.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from arcpipe.client.batches import Batch, Store
from arcpipe.client.encoding import Part, Stream
from arcpipe.client.errors import BadRecord, Closed, SpoolError
from arcpipe.client.options import Options


class _Open(NamedTuple):
    batch: Batch
    due: float  # on the clock


class Taken(NamedTuple):
    """A batch that the sender has to bring to an end by `Buffer.finish`."""

    number: int
    batch: Batch
    records: int  # as they are counted among what waits
    size: int


class Buffer:
    """The queue of one client. Every method may be called by any thread."""

    def __init__(self, options: Options, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with what a former process left in the store. Raises SpoolError."""
        self._options = options
        self._store = store
        self._clock = clock
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._open: dict[Stream, _Open] = {}
        self._sealed: deque[Taken] = deque()
        self._number = 0  # of the batch that was sealed last
        self._unfinished: set[int] = set()
        self._bytes = 0
        self._records = 0
        self._closed = ""  # why nothing more is taken
        self._is_ending = False
        with self._changed:
            for batch in store.leftover():
                self._bytes += batch.size
                self._records += batch.records
                self._seal(batch)

    # For callers

    def try_put(self, stream: Stream, part: Part) -> bool:
        """Take a part if there is room.

        Raises:
            BadRecord: it is larger than all the room that there is.
            Closed: nothing more is taken.
            SpoolError: the disk did not take it.
        """
        with self._changed:
            self._check_open()
            size = len(part.data) + self._store.overhead
            if size > self._store.limit:
                raise BadRecord(
                    f"{len(part.data)} bytes at once are more than the {self._store.limit} bytes that may wait"
                )
            if self._bytes and self._bytes + size > self._store.limit:
                self._seal_all()  # or nothing would make room before their time
                return False
            self._add(stream, part)
            return True

    def put(self, stream: Stream, part: Part, seconds: float | None) -> bool:
        """Take a part, and wait for room; False if there was none in time. Raises as `try_put`."""
        deadline = None if seconds is None else self._clock() + seconds
        with self._changed:
            while not self.try_put(stream, part):
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def seal_all(self) -> int:
        """Seal what is open. Returns the number of the last batch, for `is_done`."""
        with self._changed:
            self._seal_all()
            return self._number

    def is_done(self, number: int) -> bool:
        """Tell whether this batch and all before it came to an end; raises Closed if the sender died."""
        with self._changed:
            if self._closed and not self._is_ending:
                raise Closed(self._closed)
            return not self._unfinished or min(self._unfinished) > number

    def wait_done(self, number: int, seconds: float | None) -> bool:
        """Wait for that; False if the time is over before."""
        deadline = None if seconds is None else self._clock() + seconds
        with self._changed:
            while not self.is_done(number):
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def waiting(self) -> tuple[int, int]:
        """Return the records and bytes that were accepted here and by no server."""
        with self._changed:
            return self._records, self._bytes

    def end(self) -> int:
        """Take no more records, and let the sender end when all is sent. Returns the number of the last batch."""
        with self._changed:
            self._is_ending = True
            self._closed = self._closed or "the client is closed"
            self._seal_all()
            self._tell()
            return self._number

    def fail(self, reason: str) -> None:
        """Take no more records, because nobody sends them."""
        with self._changed:
            self._closed = reason
            self._is_ending = False
            self._tell()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call a function whenever room may have been made or a batch has ended, in the sender's thread."""
        with self._changed:
            self._listeners.append(listener)

    # For the sender

    def take(self) -> Taken | None:
        """Wait for the next batch; None if there will be no more."""
        with self._changed:
            while True:
                now = self._clock()
                for stream, open_ in list(self._open.items()):
                    if open_.due <= now:
                        self._seal(self._open.pop(stream).batch)
                if self._sealed:
                    return self._sealed.popleft()
                if self._closed:
                    return None
                due = min((open_.due for open_ in self._open.values()), default=None)
                self._changed.wait(None if due is None else max(due - now, 0.0))

    def finish(self, taken: Taken) -> None:
        """End a batch: its room is free."""
        with self._changed:
            self._bytes -= taken.size
            self._records -= taken.records
            self._unfinished.discard(taken.number)
            self._tell()

    # Within

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(self._closed)

    def _add(self, stream: Stream, part: Part) -> None:
        open_ = self._open.get(stream)
        if open_ is not None and open_.batch.size + len(part.data) > self._options.batch_bytes:
            self._seal(self._open.pop(stream).batch)
            open_ = None
        if open_ is None:
            open_ = _Open(self._store.new(stream), self._clock() + self._options.batch_age_seconds)
            self._open[stream] = open_
            self._bytes += open_.batch.size
            self._changed.notify_all()  # the sender learns when it is due
        batch = open_.batch
        before = batch.size
        try:
            batch.add(part)
        except SpoolError:
            del self._open[stream]
            if batch.records:
                self._seal(batch)
            else:
                self._bytes -= batch.size
                batch.accepted()
            raise
        self._bytes += batch.size - before
        self._records += part.records
        if batch.records >= self._options.batch_records or batch.size >= self._options.batch_bytes:
            self._seal(self._open.pop(stream).batch)

    def _seal_all(self) -> None:
        while self._open:
            self._seal(self._open.popitem()[1].batch)

    def _seal(self, batch: Batch) -> None:
        batch.rest()
        self._number += 1
        self._unfinished.add(self._number)
        self._sealed.append(Taken(self._number, batch, batch.records, batch.size))
        self._changed.notify_all()

    def _tell(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()
