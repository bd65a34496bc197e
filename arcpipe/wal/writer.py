"""Group commit: what arrives while a commit runs goes to disk with the next one, in one write and one sync.

`WALWriter` is the synchronous half: a slot's segments, one thread at a time. `GroupCommit` is the half that an event
loop drives: it collects entries and hands each group to a thread of its own. An answer may be given when, and only
when, the group's `on_committed` came without an error.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from arcpipe.counters import GROUP_BOUNDS, LATENCY_BOUNDS_US, Histogram
from arcpipe.disk import Buffer, Disk
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.format import (
    END_ENTRY_BYTES,
    ENTRY_HEADER,
    ENTRY_HEADER_SIZE,
    KIND_BATCH,
    Prefix,
    crc32,
    envelope_prefix,
)
from arcpipe.wal.pool import FreePool, Pipeline
from arcpipe.wal.segment import Segment

log = logging.getLogger(__name__)

SyncMode = Literal["fsync", "fdatasync", "async", "off"]

# A body up to this size is joined with its header: one small copy is cheaper than one more vector of the write.
SMALL_BODY_BYTES: Final = 2048
TICK_SECONDS: Final = 0.25
# A segment that is completed while more than this waits for the uploader leaves the page cache, for it will not be read
# soon. What is written next takes the same memory again. To grow instead is slow where the kernel, or below it a
# hypervisor, has to find and clear each page first: a body of 55 kB took a worker 180 µs of a core and not 115.
CACHED_BACKLOG_BYTES: Final = 512 << 20
# A group that has become so large is not added to: its answers need not wait for still more.
GROUP_BYTES: Final = 4 << 20
# With the log disabled, acknowledged entries wait in memory up to this much before they are written.
UNSYNCED_BUFFER_BYTES: Final = 4 << 20


class WALOptions(msgspec.Struct, frozen=True):
    """What a writer needs of the settings `wal.*` and `flush.*`."""

    sync_mode: SyncMode = "fdatasync"
    async_interval_seconds: float = 1.0
    max_size_bytes: int = 100 << 20
    max_age_seconds: float = 3600.0
    flush_max_records: int = 1_000_000
    flush_max_age_seconds: float = 5.0
    recycle: bool = True
    free_segments: int = 4


class Group:
    """Entries that go to disk together: their buffers in order, and who waits for them."""

    __slots__ = ("buffers", "entries", "first_timestamp", "last_timestamp", "records", "size", "waiters")

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.waiters: list[Any] = []
        self.size = 0
        self.entries = 0
        self.records = 0
        self.first_timestamp = 0
        self.last_timestamp = 0

    def add(self, prefix: Prefix, body: bytes | memoryview, records: int, timestamp: int) -> None:
        """One entry. The timestamp is above all those that the group holds."""
        data = prefix.data
        length = len(data) + len(body)
        head = ENTRY_HEADER.pack(length, timestamp, crc32(body, prefix.crc)) + data
        if len(body) <= SMALL_BODY_BYTES:
            self.buffers.append(head + body)
        else:
            self.buffers.append(head)
            self.buffers.append(body)
        if not self.entries:
            self.first_timestamp = timestamp
        self.last_timestamp = timestamp
        self.size += ENTRY_HEADER_SIZE + length
        self.entries += 1
        self.records += records

    def restamp(self, above: int) -> None:
        """Gives every entry a new timestamp, the first above `above`. The CRC does not cover timestamps.

        Needed only when a segment was made ready after these entries were stamped, or the clock stepped back.
        """
        data = bytearray(b"".join(self.buffers))
        offset = 0
        timestamp = above
        while offset < len(data):
            timestamp += 1
            length, _, crc = ENTRY_HEADER.unpack_from(data, offset)
            ENTRY_HEADER.pack_into(data, offset, length, timestamp, crc)
            offset += ENTRY_HEADER_SIZE + length
        self.buffers = [data]
        self.first_timestamp = above + 1
        self.last_timestamp = timestamp


class WALStats:
    """What a writer has done since it was made; each field has one writing thread."""

    __slots__ = (
        "bytes",
        "commits",
        "entries",
        "failures",
        "group_entries",
        "last_error",
        "last_failure_us",
        "records",
        "rotations",
        "sync_us",
        "syncs",
    )

    def __init__(self) -> None:
        self.entries = 0
        self.records = 0
        self.bytes = 0
        self.commits = 0
        self.syncs = 0
        self.sync_us = Histogram(LATENCY_BOUNDS_US)
        self.group_entries = Histogram(GROUP_BOUNDS)
        self.rotations = 0
        self.failures = 0
        self.last_failure_us = 0  # µs since the epoch
        self.last_error = ""


class WALWriter:
    """Writes one slot's segments. Not thread-safe: one thread at a time calls `commit`, `tick` and `close`.

    Usable without a server:

        writer = WALWriter("./data/wal", slot=1)
        writer.append([{"measurement": "cpu", "time": 1700000000, "usage": 0.5}])
        writer.close()
    """

    def __init__(
        self,
        directory: WALDirectory | str,
        slot: int,
        options: WALOptions | None = None,
        *,
        node: str = "",
        next_seq: int | None = None,
        last_timestamp: int = 0,
        disk: Disk | None = None,
    ) -> None:
        """Opens the slot's first segment.

        Args:
            next_seq: the number of that segment; by default one above what the directory holds of the slot.
            last_timestamp: µs; entries get timestamps above it (what recovery read).

        Raises:
            OSError: the segment could not be made.
        """
        if not isinstance(directory, WALDirectory):
            directory = WALDirectory(directory, disk)
            directory.make()
        self._directory = directory
        self._slot = slot
        self._node = node
        self.options = options or WALOptions()
        self.stats = WALStats()
        self._next_seq = next_seq if next_seq is not None else directory.highest_seq(slot) + 1
        self._stamped = last_timestamp  # µs: the highest timestamp given out
        self._written = last_timestamp  # µs: the highest timestamp on disk, or kept for an end entry
        self._made = 0  # µs: `created` of the segment that was made last
        self._pool = FreePool(directory, self.options.free_segments) if self.options.recycle else None
        self._failed = False  # the present segment had a failed write or sync
        self._cut_back = False  # … and is completed already; only a successor is missing
        self._background: _BackgroundSync | None = None
        self._next_place_check = 0.0
        self._pipeline = Pipeline(self._make_segment, self._seal)
        try:
            self.segment = self._pipeline.take()
        except OSError:
            self._pipeline.close()
            raise
        self._written = max(self._written, self.segment.created)
        if self.options.sync_mode == "async":
            self._background = _BackgroundSync(self.options.async_interval_seconds, self.stats)

    def append(self, records: Iterable[Mapping[str, Any]], database: str = "default") -> None:
        """Writes record dicts and returns when they are as durable as the sync mode says.

        Args:
            records: each with `measurement`, optionally `time` and `_database`; all other keys are fields.

        Raises:
            OSError: nothing of it is to be believed written.
            ValueError: a record without a measurement or without a field, or an empty list.
        """
        by_database: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            fields = dict(record)
            target = str(fields.pop("_database", database))
            measurement = fields.pop("measurement", None)
            if not isinstance(measurement, str) or not measurement or not fields.keys() - {"time"}:
                raise ValueError(f"a record needs a 'measurement' and a field: {dict(record)!r}")
            columns = {name: [value] for name, value in fields.items()}
            by_database.setdefault(target, []).append({"m": measurement, "columns": columns})
        if not by_database:
            raise ValueError("there are no records to write")
        group = Group()
        for target, maps in by_database.items():
            body = msgspec.msgpack.encode(maps)
            group.add(envelope_prefix(KIND_BATCH, target), body, len(maps), self.next_timestamp())
        self.commit(group)

    def next_timestamp(self) -> int:
        """µs: now, and above every timestamp before it. Called by the one thread that adds to groups."""
        stamp = time.time_ns() // 1000
        if stamp <= self._stamped:
            stamp = self._stamped + 1
        if stamp <= self._written:
            stamp = self._written + 1
        self._stamped = stamp
        return stamp

    def commit(self, group: Group) -> None:
        """Writes a group and makes it as durable as the sync mode says.

        Raises:
            OSError: nothing of the group may be acknowledged. The segment is cut back and left before the next
                group is written; that happens by itself once the device allows it.
        """
        try:
            self._commit(group)
        except OSError as error:
            self.stats.failures += 1
            self.stats.last_failure_us = time.time_ns() // 1000
            self._note_error(error)
            raise

    def _commit(self, group: Group) -> None:
        if self._failed:
            self._leave_failed_segment()
        segment = self.segment
        if segment.entries and segment.offset + group.size + END_ENTRY_BYTES > self.options.max_size_bytes:
            self._rotate()
            segment = self.segment
        if group.first_timestamp <= self._written:
            group.restamp(self._written)
        assert group.first_timestamp > segment.created
        try:
            segment.write(group.buffers, group.size, group.entries, group.records, group.last_timestamp)
            self._sync(segment)
            if not segment.has_a_name():
                raise FileNotFoundError(errno.ENOENT, "the segment was removed or moved while in use", segment.path)
        except OSError:
            self._failed = True
            raise
        segment.acknowledge()
        self._written = group.last_timestamp
        stats = self.stats
        stats.commits += 1
        stats.group_entries.observe(group.entries)
        stats.entries += group.entries
        stats.records += group.records
        stats.bytes += group.size

    def _sync(self, segment: Segment) -> None:
        mode = self.options.sync_mode
        if mode == "off":
            return
        if self._background is not None:
            self._background.wrote(segment)
            return
        before = time.perf_counter()
        if mode == "fsync":
            segment.fsync()
        else:
            segment.fdatasync()
        self.stats.syncs += 1
        self.stats.sync_us.observe(int((time.perf_counter() - before) * 1e6))

    def tick(self) -> None:
        """Completes the segment when its age or its records ask for it. To be called a few times a second."""
        self._pipeline.check()
        now = time.monotonic()
        if now >= self._next_place_check and not self._failed:
            self._next_place_check = now + 1.0
            if not self.segment.is_in_place():
                log.error("segment %s was removed or moved by somebody else; leaving it", self.segment.path)
                self._failed = True
        if self._background is not None and self._background.failed:
            self._failed = True
        try:
            if self._failed:
                self._leave_failed_segment()
            elif self._is_due(now):
                self._rotate()
        except OSError as error:
            self._note_error(error)

    def close(self) -> None:
        """Completes the present segment, waits until all are sealed, removes what was made ready."""
        if self._background is not None:
            self._background.close()
        try:
            if not self._failed:
                self._let_go(self.segment)
            elif not self._cut_back:
                self._give_up(self.segment)
        except OSError as error:
            log.error("cannot complete segment %s: %s; the next start does", self.segment.path, error)
        self._pipeline.close()

    def _is_due(self, now: float) -> bool:
        """Whether the segment is to be completed though there is room in it."""
        segment, options = self.segment, self.options
        if not segment.entries:
            return False
        age = now - segment.started_at
        if age >= options.max_age_seconds:
            return True
        if segment.records < options.flush_max_records and age < options.flush_max_age_seconds:
            return False
        # Small segments only while the uploader keeps up: load and outages make few large ones.
        return not self._pipeline.unsealed and not self._directory.segments(SEALED, self._slot)

    def _rotate(self) -> None:
        """Leaves the present segment for the next one; the old one is sealed in the background."""
        if self._background is not None:
            try:
                self._background.leave()
            except OSError:
                self._failed = True
                raise
        left = self.segment
        self._enter(self._take())
        self._pipeline.complete(left)

    def _leave_failed_segment(self) -> None:
        if not self._cut_back:
            if self._background is not None:
                self._background.forget()
            self._give_up(self.segment)
            self._cut_back = True
        following = self._take()
        log.warning("going on in a new segment, %s, after: %s", following.path, self.stats.last_error or "see above")
        self._enter(following)
        self._failed = False
        self._cut_back = False

    def _give_up(self, segment: Segment) -> None:
        try:
            # Until this succeeds nothing new is accepted: what failed in the segment must not be shipped.
            segment.cut_back()
        except OSError as error:
            if segment.is_in_place():
                raise
            log.error("segment %s is on a disk that is not there any more: %s", segment.path, error)
            segment.abandon()
        else:
            self._let_go(segment)

    def _let_go(self, segment: Segment) -> None:
        if segment.entries:
            self._pipeline.complete(segment)
        else:
            segment.discard()

    def _take(self) -> Segment:
        segment = self._pipeline.take()
        if not segment.is_in_place():  # it went with its directory while it waited
            segment.discard()
            segment = self._pipeline.take()
        return segment

    def _note_error(self, error: OSError) -> None:
        """Logs what goes wrong once, however often it is tried."""
        if self.stats.last_error != str(error):
            self.stats.last_error = str(error)
            log.error("the log of slot %d cannot be written: %s; trying again with each write", self._slot, error)

    def _enter(self, following: Segment) -> None:
        # One above the last entry belongs to the end entry of the segment that is left.
        self._written = max(self._written + 1, following.created)
        self.segment = following
        self.stats.rotations += 1
        self.stats.last_error = ""

    def _make_segment(self) -> Segment:
        self._directory.make()  # it may have vanished
        seq = self._next_seq
        self._next_seq += 1
        segment = Segment.make(
            self._directory,
            self._pool,
            self._slot,
            seq,
            self._node,
            # Above the one before, too, which may not have been entered yet: segments sort as they were written.
            above_us=max(self._written, self._made),
            sync=self.options.sync_mode != "off",
        )
        self._made = segment.created
        return segment

    def _seal(self, segment: Segment) -> None:
        segment.seal(self.options.max_size_bytes, keep_cached=not self._is_backlog_long())

    def _is_backlog_long(self) -> bool:
        try:
            return sum(file.size for file in self._directory.segments(SEALED)) > CACHED_BACKLOG_BYTES
        except OSError:  # no directory: what becomes of the segment is not for this to say
            return False


class _BackgroundSync:
    """Syncs behind the writes of the `async` mode, and holds answers back when the disk falls behind.

    A sync starts at most half an interval after the first write that it covers. When what is not yet on disk gets
    older than the interval all the same, the next commit waits for a sync: so a power cut never takes more than
    what was acknowledged within one interval.
    """

    def __init__(self, interval_seconds: float, stats: WALStats) -> None:
        self._interval = interval_seconds
        self._stats = stats
        self._syncing = threading.Lock()  # held while a sync runs, so that no segment is closed under it
        self._segment: Segment | None = None
        self._oldest = 0.0  # monotonic seconds of the oldest write since the last sync began; 0: none
        self._oldest_in_sync = 0.0  # the same of the writes that the running sync covers
        self._error: OSError | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="background sync", daemon=True)
        self._thread.start()

    def wrote(self, segment: Segment) -> None:
        """A write has just been done. Raises OSError if an earlier sync failed or a due one fails now."""
        if self._error is not None:
            raise self._error
        now = time.monotonic()
        self._segment = segment
        if not self._oldest:
            self._oldest = now
            self._wake.set()
        if now - (self._oldest_in_sync or self._oldest) > self._interval:
            self.leave()

    def leave(self) -> None:
        """Returns when all that was written is on disk. Raises OSError if it cannot be."""
        with self._syncing:
            self._sync()
        if self._error is not None:
            raise self._error

    @property
    def failed(self) -> bool:
        """Whether a sync failed since the segment was entered."""
        return self._error is not None

    def forget(self) -> None:
        """The segment is given up; its failed sync is dealt with."""
        with self._syncing:
            self._segment = None
            self._oldest = 0.0
            self._error = None

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()
        with self._syncing:
            self._sync()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._stop.wait(self._interval / 2):
                return
            self._wake.clear()
            with self._syncing:
                self._sync()

    def _sync(self) -> None:
        if self._segment is None or not self._oldest:
            return
        self._oldest_in_sync = self._oldest
        self._oldest = 0.0
        before = time.perf_counter()
        try:
            self._segment.fdatasync()
        except OSError as error:
            self._error = error
            log.error("background sync of %s failed: %s", self._segment.path, error)
        self._oldest_in_sync = 0.0
        self._stats.syncs += 1
        self._stats.sync_us.observe(int((time.perf_counter() - before) * 1e6))


class GroupCommit:
    """Drives a `WALWriter` from an event loop: one commit at a time on a thread of its own.

    What arrives while a commit runs is one group, or several of at least GROUP_BYTES that wait in turn.

    `on_committed(waiters, error)` is called in the loop for every group, in order. With the log disabled it is called
    twice: when the waiters are answered, and without waiters when the group was written.
    """

    def __init__(
        self,
        writer: WALWriter,
        loop: asyncio.AbstractEventLoop,
        on_committed: Callable[[list[Any], OSError | None], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.writer = writer
        self.pending_bytes = 0  # collected or being committed
        self._loop = loop
        self._on_committed = on_committed
        self._on_crash = on_crash
        self._collecting = Group()
        self._scheduled = False
        self._committing = 0  # groups that the thread has
        self._unsynced = writer.options.sync_mode == "off"
        self._flush_timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._groups: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="group commit", daemon=True)
        self._thread.start()

    def append(self, prefix: Prefix, body: bytes | memoryview, records: int, waiter: Any) -> None:
        """Adds one entry to the group that is being collected; `waiter` comes back with the group's outcome."""
        group = self._collecting
        size = group.size
        group.add(prefix, body, records, self.writer.next_timestamp())
        group.waiters.append(waiter)
        self.pending_bytes += group.size - size
        if group.size >= GROUP_BYTES and not self._unsynced:
            self._dispatch()
        elif not self._scheduled:
            # At the end of this turn of the loop: everything that arrived with this request joins its group.
            self._schedule()

    async def drain(self) -> None:
        """Returns when nothing is collected or being committed any more."""
        while self._committing or self._collecting.entries:
            if not self._committing:  # collected, but waiting for its turn or (log disabled) its age
                self._dispatch()
            self._idle = self._loop.create_future()
            await self._idle

    def close(self) -> None:
        """Ends the thread and completes the segment. Call `drain` first; blocks for some syncs."""
        self._groups.put(None)
        self._thread.join()
        self.writer.close()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._turn_over)

    def _turn_over(self) -> None:
        self._scheduled = False
        if self._unsynced:
            self._acknowledge_unwritten()
        elif not self._committing:
            self._dispatch()

    def _dispatch(self) -> None:
        group = self._collecting
        if group.entries:
            self._collecting = Group()
            self._committing += 1
            self._groups.put(group)

    def _done(self, group: Group, error: OSError | None) -> None:
        self._committing -= 1
        self.pending_bytes -= group.size
        if not self._unsynced:
            if self._collecting.entries and not self._committing and not self._scheduled:
                # At the end of the next turn: what has arrived by now, but was not read yet, joins it.
                self._schedule()
        elif self._collecting.size >= UNSYNCED_BUFFER_BYTES:
            self._acknowledge_unwritten()
        self._on_committed(group.waiters, error)
        if error is not None and self._unsynced:
            log.error("%d records were lost: %s (the log is disabled, they were answered before)", group.records, error)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _run(self) -> None:
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
                        self.writer.commit(group)
                    except OSError as error:
                        failure = error
                    loop.call_soon_threadsafe(self._done, group, failure)
                if time.monotonic() >= next_tick:
                    self.writer.tick()
                    next_tick = time.monotonic() + TICK_SECONDS
        except BaseException as error:
            loop.call_soon_threadsafe(self._on_crash, error)

    # With the log disabled (`sync_mode` off): answered from memory, written when the buffer is full or old.

    def _acknowledge_unwritten(self) -> None:
        group = self._collecting
        waiters, group.waiters = group.waiters, []
        if group.size >= UNSYNCED_BUFFER_BYTES:
            self._write_buffered()
        elif self._flush_timer is None:
            self._flush_timer = self._loop.call_later(
                self.writer.options.flush_max_age_seconds / 2, self._write_buffered
            )
        self._on_committed(waiters, None)

    def _write_buffered(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if not self._committing:
            self._dispatch()
        else:
            self._flush_timer = self._loop.call_later(TICK_SECONDS, self._write_buffered)
