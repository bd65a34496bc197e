"""The synchronous half of group commit: one slot's segments, written by one thread at a time.

`WALWriter.commit` either makes a group as durable as the sync mode says, or refuses it. Before a refusal leaves, what
was written of the group is cut off again, durably. What may be answered, and when, is `group_commit`'s to say.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from arcpipe.clock import steady_us
from arcpipe.codec.envelope import KIND_BATCH
from arcpipe.disk import Disk
from arcpipe.errors import CommitFailed
from arcpipe.wal.background_sync import BackgroundSync
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.format import END_ENTRY_BYTES, envelope_prefix
from arcpipe.wal.group import NO_IDENTITY, Group, WALStats
from arcpipe.wal.pipeline import Pipeline
from arcpipe.wal.pool import FreePool
from arcpipe.wal.segment import Segment, State

__all__ = ["CACHED_BACKLOG_BYTES", "Group", "SyncMode", "WALOptions", "WALStats", "WALWriter"]

log = logging.getLogger(__name__)

SyncMode = Literal["fsync", "fdatasync", "async", "off"]

# A segment that is completed while more than this waits for the uploader leaves the page cache, for it will not be read
# soon. What is written next takes the same memory again. To grow instead is slow where the kernel, or below it a
# hypervisor, has to find and clear each page first: a body of 55 kB took a worker 180 µs of a core and not 115.
CACHED_BACKLOG_BYTES: Final = 512 << 20
# Between two looks whether the segment is still where it was made: a removal is noticed before many records are in it.
_PLACE_CHECK_SECONDS: Final = 1.0
# µs. Many entries at once bring timestamps ahead of the clock by less than this; more than that does a clock set back.
_AHEAD_US: Final = 1_000_000
_OPEN: Final = State.OPEN  # for every commit: members of an enum are slow to look up
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
# While sealed segments of the slot wait for their upload, the next one is sealed by age this much later. With the
# default of 5 s, an outage of an hour makes 120 small segments, and not 720.
_WAITING_FACTOR: Final = 6
_WAITING_SECONDS: Final = 10.0


class WALOptions(msgspec.Struct, frozen=True):
    """Settings `wal.*` and `flush.*` that a writer needs."""

    sync_mode: SyncMode = "fdatasync"
    async_interval_seconds: float = 1.0
    max_size_bytes: int = 100 << 20
    max_age_seconds: float = 3600.0
    flush_max_records: int = 1_000_000
    flush_max_age_seconds: float = 5.0
    recycle: bool = True
    free_segments: int = 4


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
        wait_for_disk: bool = False,
    ) -> None:
        """Open the slot's first segment.

        Args:
            next_seq: the number of that segment; by default one above what the directory holds of the slot.
            last_timestamp: µs; entries get timestamps above it (what recovery read).
            wait_for_disk: where the segment cannot be made, begin without one; each commit and tick tries again.

        Raises:
            OSError: the segment could not be made.
        """
        if not isinstance(directory, WALDirectory):
            directory = WALDirectory(directory, disk)
            directory.make()
        self.options = options or WALOptions()
        self.stats = WALStats()
        self.current: Segment | None = None  # None while none can be made
        self._directory = directory
        self._slot = slot
        self._node = node
        self._next_seq = next_seq  # None until the directory was asked
        self._stamped = last_timestamp  # µs: the highest timestamp given out
        self._written = last_timestamp  # µs: the highest timestamp on disk, or kept for an end entry
        self._made = 0  # µs: `created` of the segment that was made last
        self._pool: FreePool | None = None
        if self.options.recycle:
            self._pool = FreePool(directory, self.options.free_segments, self.options.max_size_bytes)
        self._successor: Segment | None = None  # in service already, while the one that it replaces is to be cut back
        self._background: BackgroundSync | None = None
        self._next_place_check = 0.0
        self._pipeline = Pipeline(self._make_segment, self._seal)
        try:
            self.current = self._pipeline.take()
        except OSError as error:
            if not wait_for_disk:
                self._pipeline.close()
                raise
            self._note_failure(error)
        else:
            self._written = max(self._written, self.current.created)
        if self.options.sync_mode == "async":
            self._background = BackgroundSync(self.current, self.options.async_interval_seconds, self.stats)

    @property
    def segment(self) -> Segment:
        """The segment that entries go to.

        Raises:
            RuntimeError: none could be made yet.
        """
        if self.current is None:
            raise RuntimeError(f"slot {self._slot} has no segment yet: {self.stats.last_error}")
        return self.current

    def new_group(self) -> Group:
        """Begin a group for the present segment."""
        return Group(self.identity)

    @property
    def identity(self) -> bytes:
        """The identity of the present segment. May be read by any thread."""
        segment = self.current
        return segment.identity if segment is not None else NO_IDENTITY

    def append(self, records: Iterable[Mapping[str, Any]], database: str = "default") -> None:
        """Write record dicts and return when they are as durable as the sync mode says.

        Args:
            records: each with `measurement`, optionally `time` and `_database`; all other keys are fields.

        Raises:
            CommitFailed: nothing of it is to be believed written.
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
        group = self.new_group()
        for target, maps in by_database.items():
            body = msgspec.msgpack.encode(maps)
            prefix = envelope_prefix(KIND_BATCH, target, self.clock_meta())
            group.add(prefix, body, len(maps), self.next_timestamp())
        self.commit(group)

    def next_timestamp(self) -> int:
        """Give out a timestamp (µs): now, and above every one before it. Called by the thread that adds to groups."""
        stamp = time.time_ns() // 1000
        if stamp <= self._stamped:
            stamp = self._stamped + 1
        if stamp <= self._written:
            stamp = self._written + 1
        self._stamped = stamp
        return stamp

    def clock_meta(self) -> dict[str, int]:
        """What an envelope's meta says of the clock now: nothing, unless it was set back below the timestamps.

        These never go back. So `clock` tells what is to be added to them, in µs, for the time of day: it is negative.
        """
        ahead = max(self._stamped, self._written) - time.time_ns() // 1000
        return {"clock": -ahead} if ahead > _AHEAD_US else {}

    # Committing

    def commit(self, group: Group) -> None:
        """Write a group and make it as durable as the sync mode says.

        Raises:
            CommitFailed: nothing of the group may be acknowledged. What was written of it is cut off again, durably,
                unless the error says that it may have been written. Nothing else is accepted before that is done,
                and the segment is left then; both happen by themselves once the device allows it.
        """
        try:
            segment = self._segment_with_room(group.size)
        except OSError as error:
            self._note_failure(error)
            raise CommitFailed(error, may_have_been_written=False) from error
        try:
            self._write(segment, group)
        except OSError as error:
            segment.fail()
            self._note_failure(error)
            raise CommitFailed(error, may_have_been_written=not self._take_back(segment)) from error
        extent = segment.acknowledge()
        if self._background is not None:
            self._background.retain(group, extent)
        self._written = group.last_timestamp
        stats = self.stats
        stats.commits += 1
        stats.group_entries.observe(group.entries)
        stats.entries += group.entries
        stats.records += group.records
        stats.bytes += group.size

    def _write(self, segment: Segment, group: Group) -> None:
        if group.identity != segment.identity or group.first_timestamp <= self._written:
            group.fit(segment.identity, self._written)
        assert group.first_timestamp > segment.created, (
            f"BUG: an entry of {group.first_timestamp} in a segment created at {segment.created}"
        )
        segment.write(group.buffers, group.size, group.entries, group.records, group.last_timestamp)
        if self._background is not None:
            self._background.keep_up()
        else:
            self._sync(segment)
        if not segment.has_something_at_its_path():
            raise FileNotFoundError(errno.ENOENT, "the segment was removed or moved while in use", segment.path)

    def _sync(self, segment: Segment) -> None:
        mode = self.options.sync_mode
        if mode == "off":
            return
        before = time.perf_counter()
        if mode == "fsync":
            segment.fsync()
        else:
            segment.fdatasync()
        self.stats.syncs += 1
        self.stats.sync_us.observe(int((time.perf_counter() - before) * 1e6))

    def _segment_with_room(self, size: int) -> Segment:
        """Give the segment that takes the next group: a following one if the present one has failed or is full."""
        segment = self.current
        background = self._background
        if segment is None or segment.state is not _OPEN or (background is not None and background.error is not None):
            segment = self._usable_segment()
        while segment.entries and segment.offset + size + END_ENTRY_BYTES > self.options.max_size_bytes:
            segment = self._rotate(segment)
        return segment

    def _usable_segment(self) -> Segment:
        segment = self.current
        if segment is not None and not self._has_failed(segment):
            return segment
        return self._go_on(segment)

    def _has_failed(self, segment: Segment) -> bool:
        if self._background is not None and self._background.error is not None and segment.state is State.OPEN:
            segment.fail()
            self._note_failure(self._background.error)
        return segment.state is not State.OPEN

    # Once in a while, and at the end

    def tick(self) -> None:
        """Complete the segment when its age or its records ask for it. To be called a few times a second."""
        self._pipeline.check()
        now = time.monotonic()
        segment = self.current
        if segment is not None and now >= self._next_place_check and segment.state is State.OPEN:
            self._next_place_check = now + _PLACE_CHECK_SECONDS
            if not segment.is_at_its_path():
                log.error("segment %s was removed or moved by somebody else; leaving it", segment.path)
                segment.fail()
        try:
            segment = self._usable_segment()
            if self._is_due(segment, now):
                self._rotate(segment)
        except OSError as error:
            self._note_error(error)

    def close(self) -> None:
        """Complete the present segment, wait until all are sealed, remove what was made ready."""
        segment = self.current
        if self._background is not None:
            self._background.close()
        try:
            if segment is not None and self._has_failed(segment):
                if self._must_be_replaced():
                    segment = self._go_on(segment)
                else:
                    self._cut_back_or_give_up(segment)
            if segment is not None:
                self._leave(segment)
        except OSError as error:
            path = segment.path if segment is not None else self._directory.path
            log.error("cannot complete segment %s: %s; the next start does", path, error)
            for left in (self.current, self._successor):
                if left is not None and left.state is not State.CLOSED:
                    left.close()
        self._pipeline.close()

    def _is_due(self, segment: Segment, now: float) -> bool:
        """Tell whether the segment is to be completed though there is room in it."""
        options = self.options
        if not segment.entries:
            return False
        age = now - segment.started_at
        if age >= options.max_age_seconds:
            return True
        if segment.records < options.flush_max_records and age < options.flush_max_age_seconds:
            return False
        # Small segments only while the uploader keeps up: load and outages make few large ones. But one that cannot be
        # uploaded, or waits for an operator, must not hold the others back.
        if age >= max(_WAITING_FACTOR * options.flush_max_age_seconds, _WAITING_SECONDS):
            return True
        return not self._pipeline.unsealed and not self._directory.segments(SEALED, self._slot)

    # From one segment to the next

    def _rotate(self, left: Segment) -> Segment:
        """Leave the present segment for the next one; the old one is sealed in the background."""
        if self._background is not None:
            self._background.sync_now()
            if self._has_failed(left):
                return self._go_on(left)
        following = self._take()
        self._leave(left)
        return self._enter(following)

    def _take_back(self, segment: Segment) -> bool:
        """Cut off, durably, what a refused group has written. Tells whether that was possible."""
        try:
            self._cut_back(segment)
        except OSError as error:
            log.error("cannot cut %s back: %s; nothing is accepted until it can be", segment.path, error)
            return False
        return True

    def _cut_back(self, segment: Segment) -> None:
        """Cut off what was not acknowledged, once."""
        if segment.state is not State.FAILED:
            return
        if self._background is not None:
            self._background.take_back(segment)
        else:
            segment.cut_back()

    def _go_on(self, failed: Segment | None) -> Segment:
        """Go on in another segment after one that failed. Nothing new is accepted before that one is cut back.

        Raises:
            OSError: it cannot be cut back yet, or no other can be made. The next call goes on where this one stopped.
        """
        if failed is None:
            following = self._take()
        elif self._must_be_replaced():
            following = self._replace(failed)
            self._leave(failed)
        else:
            self._cut_back_or_give_up(failed)
            self._leave(failed)  # sealed and uploaded even if there is no room for another: that makes room
            following = self._take()
        log.warning("going on in a new segment, %s, after: %s", following.path, self.stats.last_error or "see above")
        return self._enter(following)

    def _must_be_replaced(self) -> bool:
        return self._background is not None and self._background.error is not None

    def _replace(self, failed: Segment) -> Segment:
        """After a failed background sync: bring what was retained into a segment of its own.

        Its name is the moment that counts. From then on it stands for what follows the last good sync in the failed
        segment, which is cut off there: by this process, or after a crash by recovery.
        """
        background = self._background
        assert background is not None
        if self._successor is not None and not self._successor.is_at_its_path():  # it went with its directory
            self._successor.close()
            self._successor = None
        if self._successor is None:
            retained, replaces = background.retained, (failed.name.seq, background.synced.offset)
            self._successor = self._pipeline.make_instead(lambda: self._make_segment(retained, replaces))
        self._cut_back_or_give_up(failed, background)
        following, self._successor = self._successor, None
        return following

    def _cut_back_or_give_up(self, segment: Segment, background: BackgroundSync | None = None) -> None:
        """Cut back what failed, or leave it if its disk is gone.

        Args:
            background: cut back to its last good sync, and not to the last acknowledgement.
        """
        try:
            if background is not None:
                segment.cut_back(background.synced)
            else:
                self._cut_back(segment)
        except OSError as error:
            if segment.is_at_its_path():
                raise
            log.error("segment %s is on a disk that is not there any more: %s", segment.path, error)
            segment.close()

    def _leave(self, segment: Segment) -> None:
        """Have the present segment sealed in the background."""
        self.current = None
        self._reserve_end_timestamp()
        self.stats.rotations += 1
        if self._background is not None:
            self._background.enter(None)
        if segment.state is State.CLOSED:
            return
        if segment.entries:
            self._pipeline.complete(segment)
        else:
            self._pipeline.discard(segment)

    def _take(self) -> Segment:
        segment = self._pipeline.take()
        if not segment.is_at_its_path():  # it went with its directory while it waited
            segment.discard()
            segment = self._pipeline.take()
        return segment

    def _enter(self, following: Segment) -> Segment:
        self._written = max(self._written, following.last_timestamp)
        self.current = following
        if self._background is not None:
            self._background.enter(following)
        self.stats.last_error = ""
        return following

    def _reserve_end_timestamp(self) -> None:
        """Keep one above the last entry for the end entry of the segment that is left."""
        self._written += 1

    def _make_segment(self, retained: Sequence[Group] = (), replaces: tuple[int, int] | None = None) -> Segment:
        self._directory.make()  # it may have vanished
        if self._next_seq is None:
            self._next_seq = self._directory.highest_seq(self._slot) + 1
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
            retained=retained,
            replaces=replaces,
        )
        self._made = segment.created
        return segment

    def _seal(self, segment: Segment) -> None:
        keep_cached = not self._is_backlog_long()
        try:
            segment.seal(self.options.max_size_bytes, keep_cached=keep_cached)
        except OSError as error:
            if error.errno not in _NO_SPACE or self._pool is None:
                raise
            self._pool.give_back()  # the end entry needs the space more
            segment.seal(self.options.max_size_bytes, keep_cached=keep_cached)

    def _is_backlog_long(self) -> bool:
        try:
            return sum(file.size for file in self._directory.segments(SEALED)) > CACHED_BACKLOG_BYTES
        except OSError:  # no directory: what becomes of the segment is not for this to say
            return False

    # Telling

    def _note_failure(self, error: OSError) -> None:
        self.stats.failures += 1
        self.stats.last_failure_us = steady_us()
        self._note_error(error)

    def _note_error(self, error: OSError) -> None:
        """Log what goes wrong once, however often it is tried."""
        if self.stats.last_error != str(error):
            self.stats.last_error = str(error)
            log.error("the WAL of slot %d cannot be written: %s; trying again with each write", self._slot, error)
