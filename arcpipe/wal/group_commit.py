"""Group commit: entries that arrive during a commit go to disk with the next one, in one write and one sync.

An event loop drives it, and a thread of its own commits. A request may be acknowledged only when `on_committed` comes
for its group without an error. `GroupCommit` calls it when the group is on disk. `BufferedCommit`, for
`wal.enabled = false`, calls it at once. `group_commit` makes the one that the writer's sync mode asks for.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from arcpipe.errors import CommitFailed
from arcpipe.units import MB
from arcpipe.wal.format import AnyPrefix
from arcpipe.wal.group import Group
from arcpipe.wal.writer import WALWriter

log = logging.getLogger(__name__)

# Seconds between two checks if the segment is due to be sealed: well below the default age of 5 s.
TICK_SECONDS: Final = 0.25
# Seconds from the start of one commit to that of the next, unless nothing more is expected for it: a commit takes
# 0.2 ms of CPU time whatever it holds. uvloop rounds what is left of them to 0 or 1 ms.
COMMIT_SECONDS: Final = 0.001
# Bytes. A group of this size takes no more entries: its requests need not wait for a still larger write.
GROUP_BYTES: Final = 4 * MB
# Bytes. With `wal.enabled = false`, this much is buffered in memory before it is written. With 4 MB a body is no longer
# in the processor's cache by then, and costs a worker a quarter more (benchmarks/NOTES.md).
WRITE_BUFFER_BYTES: Final = 1 * MB
# Bytes. With `wal.enabled = false`, at most this much is buffered while writes fail: a short outage of the disk costs
# nothing, and a long one this much memory.
BUFFER_LIMIT_BYTES: Final = 16 * MB
# Seconds between a failed write of the buffer and the next try.
BUFFER_RETRY_SECONDS: Final = 1.0
# Tries of the last write: the first one may meet the segment that failed before.
_LAST_TRIES: Final = 2

OnCommitted = Callable[[list[Any], OSError | None], None]


class Commit(Protocol):
    """Takes entries, and reports on each group in order: `on_committed(waiters, error)`, called in the loop."""

    writer: WALWriter

    @property
    def pending_bytes(self) -> int:
        """Count the bytes that are collected or being committed."""

    def append(
        self, prefix: AnyPrefix, body: bytes | memoryview, records: int, waiter: Any, front: bytes = b""
    ) -> None:
        """Add one entry to the group that is being collected, as `Group.add`; `on_committed` gets `waiter` back."""

    async def drain(self) -> None:
        """Wait until nothing is collected or being committed."""

    def close(self) -> None:
        """End the thread and seal the segment. Call `drain` first; blocks for a few syncs."""


def group_commit(
    writer: WALWriter,
    loop: asyncio.AbstractEventLoop,
    on_committed: OnCommitted,
    on_crash: Callable[[BaseException], None],
    max_pending: int | None = None,
) -> Commit:
    """Make the group commit that a writer's sync mode asks for.

    Args:
        on_committed: called in the loop with the waiters of each group, and the error if it was not written.
        on_crash: called in the loop with the exception of a bug that has ended the thread.
        max_pending: the bytes above which clients are not read, until no more than half of them are pending.
    """
    if writer.options.sync_mode != "off":
        return GroupCommit(writer, loop, on_committed, on_crash)
    buffer_bytes = WRITE_BUFFER_BYTES
    if max_pending is not None:  # else nobody sends what would fill the buffer, and all wait until it is old
        buffer_bytes = min(buffer_bytes, max_pending // 2)
    return BufferedCommit(writer, loop, on_committed, on_crash, buffer_bytes)


class _CommitThread(threading.Thread):
    """Commits groups one after the other, calls back in the loop, and calls the writer's `tick` in between."""

    def __init__(
        self,
        writer: WALWriter,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Group, OSError | None], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="group commit", daemon=True)
        self._writer = writer
        self._loop = loop
        self._done = done
        self._on_crash = on_crash
        self._groups: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self.start()

    def commit(self, group: Group) -> None:
        self._groups.put(group)

    def close(self) -> None:
        """Wait until all groups are committed, and close the writer."""
        self._groups.put(None)
        self.join()
        self._writer.close()

    def run(self) -> None:
        loop = self._loop
        next_tick = time.monotonic() + TICK_SECONDS
        try:
            while True:
                try:
                    group = self._groups.get(timeout=max(0.0, next_tick - time.monotonic()))
                except queue.Empty:
                    pass
                else:
                    if group is None:
                        return
                    failure = None
                    try:
                        self._writer.commit(group)
                    except OSError as error:
                        failure = error
                    loop.call_soon_threadsafe(self._done, group, failure)
                if time.monotonic() >= next_tick:
                    self._writer.tick()
                    next_tick = time.monotonic() + TICK_SECONDS
        except BaseException as error:
            loop.call_soon_threadsafe(self._on_crash, error)


class GroupCommit:
    """Reports a group once it is as durable as the sync mode says. Commits one group at a time on a thread.

    Entries that arrive during a commit form one group, or several of at least GROUP_BYTES that wait in turn.

    A disk may be quicker than clients. So a group waits until COMMIT_SECONDS have passed since the start of the commit
    before it, or until it has what is *expected*: as many entries as that commit had and as came meanwhile. Clients
    that send again when they are answered are all in it then, and one client alone never waits. A stream of requests
    goes on, and fills the time.
    """

    def __init__(
        self,
        writer: WALWriter,
        loop: asyncio.AbstractEventLoop,
        on_committed: OnCommitted,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.writer = writer
        self.pending_bytes = 0
        self._loop = loop
        self._on_committed = on_committed
        self._collecting = Group()
        self._scheduled = False
        self._committing = 0  # groups that the thread has
        self._expected = 0  # entries of the next group
        self._may_start = 0.0  # time.monotonic() from which on it goes without some of them
        self._timer: asyncio.TimerHandle | None = None  # while it waits for them
        self._idle: asyncio.Future[None] | None = None
        self._thread = _CommitThread(writer, loop, self._done, on_crash)

    def append(
        self, prefix: AnyPrefix, body: bytes | memoryview, records: int, waiter: Any, front: bytes = b""
    ) -> None:
        group = self._collecting
        size = group.size
        if not size:
            group.identity = self.writer.identity
        group.add(prefix, body, records, self.writer.next_timestamp(), front)
        group.waiters.append(waiter)
        self.pending_bytes += group.size - size
        if group.size >= GROUP_BYTES:
            self._dispatch()
        elif self._scheduled:
            if self._timer is not None and group.entries >= self._expected:
                self._timer.cancel()
                self._timer = None
                self._loop.call_soon(self._dispatch_if_idle)
        elif not self._committing:  # else it is when that is done
            self._schedule()

    async def drain(self) -> None:
        while self._committing or self._collecting.entries:
            if not self._committing:  # collected, and waiting for the end of the turn
                self._dispatch()
            self._idle = self._loop.create_future()
            await self._idle

    def close(self) -> None:
        self._thread.close()

    def _schedule(self) -> None:
        """Have the group dispatched at the end of this turn of the loop, with all requests of the turn, or later."""
        self._scheduled = True
        if self._collecting.entries < self._expected:
            seconds = self._may_start - time.monotonic()
            if seconds > 0:
                self._timer = self._loop.call_later(seconds, self._dispatch_if_idle)
                return
        self._loop.call_soon(self._dispatch_if_idle)

    def _dispatch_if_idle(self) -> None:
        self._scheduled = False
        self._timer = None
        if not self._committing:
            self._dispatch()

    def _dispatch(self) -> None:
        group = self._collecting
        if group.entries:
            self._collecting = Group()
            self._committing += 1
            self._may_start = time.monotonic() + COMMIT_SECONDS
            self._thread.commit(group)

    def _done(self, group: Group, error: OSError | None) -> None:
        self._committing -= 1
        self.pending_bytes -= group.size
        self._expected = group.entries + self._collecting.entries
        if self._collecting.entries and not self._committing and not self._scheduled:
            # At the end of the next turn, so that requests that have arrived but were not read yet join the group.
            self._schedule()
        waiters, group.waiters = group.waiters, []  # in the `async` mode the group is kept until it is synced
        self._on_committed(waiters, error)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)


class BufferedCommit:
    """For `wal.enabled = false`: reports entries at once, and writes them when the buffer is full or old.

    `on_committed` is called with waiters to answer, and without waiters when a group was written. A group whose write
    fails stays in memory and is written again until that succeeds, always before later groups. While writes fail and
    BUFFER_LIMIT_BYTES are buffered, new entries are refused with the error of the last try.
    """

    def __init__(
        self,
        writer: WALWriter,
        loop: asyncio.AbstractEventLoop,
        on_committed: OnCommitted,
        on_crash: Callable[[BaseException], None],
        buffer_bytes: int = WRITE_BUFFER_BYTES,
    ) -> None:
        self.writer = writer
        self._loop = loop
        self._on_committed = on_committed
        self._buffer_bytes = buffer_bytes  # from which on it is written
        self._buffered_bytes = 0
        self._collecting = Group()
        self._writing: Group | None = None  # being written, or waiting for its next try
        self._committing = False  # the thread is writing that group
        self._waiters: list[Any] = []  # to be answered at the end of the turn
        self._refused: list[Any] = []
        self._refusal: OSError | None = None  # the reason for those
        self._scheduled = False
        self._error: OSError | None = None  # of the last write, if that failed
        self._timer: asyncio.TimerHandle | None = None
        self._tried: asyncio.Future[None] | None = None
        self._thread = _CommitThread(writer, loop, self._done, on_crash)

    @property
    def pending_bytes(self) -> int:
        """Count the bytes about to be written; 0 while writes fail, so that nobody waits for them."""
        return self._buffered_bytes if self._error is None else 0

    def append(
        self, prefix: AnyPrefix, body: bytes | memoryview, records: int, waiter: Any, front: bytes = b""
    ) -> None:
        if self._error is not None and self._buffered_bytes >= BUFFER_LIMIT_BYTES:
            self._refused.append(waiter)
            self._refusal = CommitFailed(self._error, may_have_been_written=False)
        else:
            group = self._collecting
            size = group.size
            if not size:
                group.identity = self.writer.identity
            group.add(prefix, body, records, self.writer.next_timestamp(), front)
            self._waiters.append(waiter)
            self._buffered_bytes += group.size - size
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._answer)

    async def drain(self) -> None:
        """Wait until everything is written, or until _LAST_TRIES writes failed: then `close` reports the loss."""
        tries = 0
        while (self._writing is not None or self._collecting.entries) and tries < _LAST_TRIES:
            self._answer()
            self._write()
            self._tried = self._loop.create_future()
            await self._tried
            tries = tries + 1 if self._error is not None else 0

    def close(self) -> None:
        self._cancel_timer()
        self._thread.close()
        lost = self._collecting.records + (self._writing.records if self._writing is not None else 0)
        if lost:
            self.writer.stats.lost_records += lost
            log.error("lost %d acknowledged records: %s (wal.enabled = false)", lost, self._error)

    def _answer(self) -> None:
        """Acknowledge the entries of this turn of the loop, and have them written when they are due."""
        self._scheduled = False
        waiters, self._waiters = self._waiters, []
        refused, self._refused = self._refused, []
        if self._error is None:
            self._write_when_due()
        if refused:  # first: who keeps account of waiters takes all before an acknowledged one for settled
            self._on_committed(refused, self._refusal)
        if waiters:
            self._on_committed(waiters, None)

    def _write_when_due(self) -> None:
        if self._collecting.size >= self._buffer_bytes:
            self._write()
        elif self._collecting.entries and self._timer is None:
            self._write_later(self.writer.options.flush_max_age_seconds / 2)

    def _write(self) -> None:
        """Give the thread the oldest unwritten group: one at a time, so that groups stay in order."""
        self._cancel_timer()
        if self._committing:
            self._write_later(TICK_SECONDS)
            return
        if self._writing is None and self._collecting.entries:
            self._writing, self._collecting = self._collecting, Group()
        if self._writing is not None:
            self._committing = True
            self._thread.commit(self._writing)

    def _write_later(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._write)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _done(self, group: Group, error: OSError | None) -> None:
        self._committing = False
        self._error = error
        if error is not None:
            self._cancel_timer()
            self._write_later(BUFFER_RETRY_SECONDS)
        else:
            self._writing = None
            self._buffered_bytes -= group.size
            self._write_when_due()
        self._on_committed([], None)
        if self._tried is not None and not self._tried.done():
            self._tried.set_result(None)
