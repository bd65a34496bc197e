"""Group commit: what arrives while a commit runs goes to disk with the next one, in one write and one sync.

An event loop drives it; a thread of its own commits. An answer may be given when, and only when, the group's
`on_committed` came without an error. `GroupCommit` answers from the disk. `BufferedCommit`, with the WAL disabled,
answers from memory. `group_commit` makes the one that the writer's sync mode asks for.
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
from arcpipe.wal.format import Prefix
from arcpipe.wal.group import Group
from arcpipe.wal.writer import WALWriter

log = logging.getLogger(__name__)

# Seconds between two looks whether the segment is to be completed: a fraction of the shortest age that settings allow.
TICK_SECONDS: Final = 0.25
# Bytes. A group that has become so large is not added to: its answers need not wait for still more.
GROUP_BYTES: Final = 4 << 20
# Bytes. With the WAL disabled, acknowledged entries wait in memory up to this much before they are written.
WRITE_BUFFER_BYTES: Final = 4 << 20
# Bytes. With the WAL disabled, more than this is not taken while writes fail: a disk that is away for a moment costs
# nothing, and one that stays away costs this much memory. Half of what may wait where the disk is only slow.
BUFFER_LIMIT_BYTES: Final = 16 << 20
# Seconds after a failed write of the buffer until the next try.
BUFFER_RETRY_SECONDS: Final = 1.0
# Tries at the end: the first one may meet the segment that failed before.
_LAST_TRIES: Final = 2

OnCommitted = Callable[[list[Any], OSError | None], None]


class Commit(Protocol):
    """Takes entries, and tells what became of them: `on_committed(waiters, error)`, in the loop, in order."""

    writer: WALWriter

    @property
    def pending_bytes(self) -> int:
        """Bytes that are collected or being committed."""

    def append(self, prefix: Prefix, body: bytes | memoryview, records: int, waiter: Any) -> None:
        """Add one entry to the group that is being collected; `waiter` comes back with the group's outcome."""

    async def drain(self) -> None:
        """Return when nothing is collected or being committed any more."""

    def close(self) -> None:
        """End the thread and complete the segment. Call `drain` first; blocks for some syncs."""


def group_commit(
    writer: WALWriter,
    loop: asyncio.AbstractEventLoop,
    on_committed: OnCommitted,
    on_crash: Callable[[BaseException], None],
) -> Commit:
    """Make the group commit that a writer's sync mode asks for.

    Args:
        on_committed: is called in the loop with the waiters of each group, and the error if it was not written.
        on_crash: is called in the loop with the bug that has ended the thread.
    """
    kind = BufferedCommit if writer.options.sync_mode == "off" else GroupCommit
    return kind(writer, loop, on_committed, on_crash)


class _CommitThread(threading.Thread):
    """Commits groups one after the other, and calls back in the loop. Ticks the writer in between."""

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
        """Return when all groups are committed and the writer has completed its segment."""
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
    """Answers when a group is as durable as the sync mode says: one commit at a time on a thread of its own.

    What arrives while a commit runs is one group, or several of at least GROUP_BYTES that wait in turn.
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
        self._idle: asyncio.Future[None] | None = None
        self._thread = _CommitThread(writer, loop, self._done, on_crash)

    def append(self, prefix: Prefix, body: bytes | memoryview, records: int, waiter: Any) -> None:
        group = self._collecting
        size = group.size
        if not size:
            group.identity = self.writer.identity
        group.add(prefix, body, records, self.writer.next_timestamp())
        group.waiters.append(waiter)
        self.pending_bytes += group.size - size
        if group.size >= GROUP_BYTES:
            self._dispatch()
        elif not self._scheduled:
            # At the end of this turn of the loop: everything that arrived with this request joins its group.
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
        self._scheduled = True
        self._loop.call_soon(self._dispatch_if_idle)

    def _dispatch_if_idle(self) -> None:
        self._scheduled = False
        if not self._committing:
            self._dispatch()

    def _dispatch(self) -> None:
        group = self._collecting
        if group.entries:
            self._collecting = Group()
            self._committing += 1
            self._thread.commit(group)

    def _done(self, group: Group, error: OSError | None) -> None:
        self._committing -= 1
        self.pending_bytes -= group.size
        if self._collecting.entries and not self._committing and not self._scheduled:
            # At the end of the next turn: what has arrived by now, but was not read yet, joins it.
            self._schedule()
        waiters, group.waiters = group.waiters, []  # in the `async` mode the group is kept until it is synced
        self._on_committed(waiters, error)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)


class BufferedCommit:
    """With the WAL disabled: answers from memory, writes when the buffer is full or old.

    `on_committed` is called when waiters are answered, and without waiters when a group was written. A group whose
    write fails stays in memory and is written again until it succeeds, always before the groups after it. While writes
    fail and BUFFER_LIMIT_BYTES are held, new entries are refused with the error of the last try.
    """

    def __init__(
        self,
        writer: WALWriter,
        loop: asyncio.AbstractEventLoop,
        on_committed: OnCommitted,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.writer = writer
        self._loop = loop
        self._on_committed = on_committed
        self._buffered_bytes = 0
        self._collecting = Group()
        self._writing: Group | None = None  # the thread has it, or it waits for its next try
        self._committing = False  # the thread has it
        self._waiters: list[Any] = []  # to be answered at the end of the turn
        self._refused: list[Any] = []
        self._refusal: OSError | None = None  # of those
        self._scheduled = False
        self._error: OSError | None = None  # of the last try to write, if that failed
        self._timer: asyncio.TimerHandle | None = None
        self._tried: asyncio.Future[None] | None = None
        self._thread = _CommitThread(writer, loop, self._done, on_crash)

    @property
    def pending_bytes(self) -> int:
        """Bytes about to be written: none while writes fail, so that nobody waits for them; new entries are refused."""
        return self._buffered_bytes if self._error is None else 0

    def append(self, prefix: Prefix, body: bytes | memoryview, records: int, waiter: Any) -> None:
        if self._error is not None and self._buffered_bytes >= BUFFER_LIMIT_BYTES:
            self._refused.append(waiter)
            self._refusal = CommitFailed(self._error, may_have_been_written=False)
        else:
            group = self._collecting
            size = group.size
            if not size:
                group.identity = self.writer.identity
            group.add(prefix, body, records, self.writer.next_timestamp())
            self._waiters.append(waiter)
            self._buffered_bytes += group.size - size
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._answer)

    async def drain(self) -> None:
        """Return when all is written, or could not be in some tries. `close` tells what is lost then."""
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
            log.error("%d records were lost: %s (the WAL is disabled, they were answered before)", lost, self._error)

    def _answer(self) -> None:
        """At the end of a turn of the loop: acknowledge what it brought, and see to its being written."""
        self._scheduled = False
        waiters, self._waiters = self._waiters, []
        refused, self._refused = self._refused, []
        if self._error is None:
            self._write_when_due()
        if waiters:
            self._on_committed(waiters, None)
        if refused:
            self._on_committed(refused, self._refusal)

    def _write_when_due(self) -> None:
        if self._collecting.size >= WRITE_BUFFER_BYTES:
            self._write()
        elif self._collecting.entries and self._timer is None:
            self._write_later(self.writer.options.flush_max_age_seconds / 2)

    def _write(self) -> None:
        """Give the thread the oldest group that is not written; it has one at a time, so that their order stays."""
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
