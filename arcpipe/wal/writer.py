"""The synchronous half of group commit: writes one slot's segments, on one thread at a time.

`WALWriter.commit` either makes a group as durable as the sync mode says, or refuses it. Before it refuses a group, it
cuts off, durably, the part of it that was written. `group_commit` decides when requests are answered.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from arcpipe.clock import steady_us
from arcpipe.codec.envelope import KIND_BATCH
from arcpipe.disk import Disk
from arcpipe.errors import CommitFailed
from arcpipe.wal.background_sync import BackgroundSync
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.factory import SegmentFactory
from arcpipe.wal.failed import FailedSegments
from arcpipe.wal.format import END_ENTRY_BYTES, envelope_prefix
from arcpipe.wal.group import NO_IDENTITY, Group, WALStats
from arcpipe.wal.options import SyncMode, WALOptions
from arcpipe.wal.pipeline import Pipeline
from arcpipe.wal.records import maps_by_database
from arcpipe.wal.seal_policy import is_due
from arcpipe.wal.segment import Segment, State
from arcpipe.wal.stamps import Stamps

__all__ = ["Group", "SyncMode", "WALOptions", "WALStats", "WALWriter"]

log = logging.getLogger(__name__)

# Seconds between two checks that the segment is still at its path: a removal is noticed before many records are in it.
_PLACE_CHECK_SECONDS: Final = 1.0
_OPEN: Final = State.OPEN  # used by every commit, and members of an enum are slow to look up


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
            next_seq: the number of that segment; by default one above the highest of the slot in the directory.
            last_timestamp: µs, the highest timestamp that recovery read; entries get higher ones.
            wait_for_disk: if the segment cannot be made, begin without one; each commit and tick tries again.

        Raises:
            OSError: the segment could not be made.
        """
        if not isinstance(directory, WALDirectory):
            directory = WALDirectory(directory, disk)
            directory.make()
        self.options = options or WALOptions()
        self.stats = WALStats()
        self.current: Segment | None = None  # None while no segment can be made
        self.collect_us: Callable[[], int] = lambda: 0
        """Returns a time of the steady clock, in µs: a segment that began until then is sealed at the next tick."""
        self._directory = directory
        self._slot = slot
        self._stamps = stamps = Stamps(last_timestamp)
        self.next_timestamp = stamps.next  # called for every entry
        self.clock_meta = stamps.clock_meta
        self._factory = SegmentFactory(directory, slot, self.options, node, next_seq, lambda: stamps.written)
        self._background: BackgroundSync | None = None
        self._next_place_check = 0.0
        self._told: tuple[int | None, object] = None, None  # what of the last error tells it from others
        self._pipeline = Pipeline(self._factory.make, self._factory.seal)
        try:
            self.current = self._pipeline.take()
        except OSError as error:
            if not wait_for_disk:
                self._pipeline.close()
                raise
            self._note_failure(error)
        else:
            self._stamps.written = max(self._stamps.written, self.current.created)
        if self.options.sync_mode == "async":
            self._background = BackgroundSync(self.current, self.options.async_interval_seconds, self.stats)
        self._failed = FailedSegments(self._pipeline, self._factory, self._background)

    @property
    def segment(self) -> Segment:
        """Return the segment that entries go to.

        Raises:
            RuntimeError: no segment could be made yet.
        """
        if self.current is None:
            raise RuntimeError(f"slot {self._slot} has no segment yet: {self.stats.last_error}")
        return self.current

    def new_group(self) -> Group:
        """Begin a group for the current segment."""
        return Group(self.identity)

    @property
    def identity(self) -> bytes:
        """Return the identity of the current segment. Any thread may read it."""
        segment = self.current
        return segment.identity if segment is not None else NO_IDENTITY

    def append(self, records: Iterable[Mapping[str, Any]], database: str = "default") -> None:
        """Write record dicts, and return when they are as durable as the sync mode says.

        Args:
            records: each with `measurement`, optionally `time` and `_database`; all other keys are fields.
            database: the database of records without `_database`.

        Raises:
            CommitFailed: the records must be taken for not written.
            ValueError: a record without a measurement or without a field, or an empty list.
        """
        group = self.new_group()
        for target, maps in maps_by_database(records, database).items():
            prefix = envelope_prefix(KIND_BATCH, target, self.clock_meta())
            group.add(prefix, msgspec.msgpack.encode(maps), len(maps), self.next_timestamp())
        self.commit(group)

    # Committing

    def commit(self, group: Group) -> None:
        """Write a group and make it as durable as the sync mode says.

        Raises:
            CommitFailed: nothing of the group may be acknowledged. The part of it that was written is cut off,
                durably, unless the error says that it may have been written. Then later commits and ticks retry the
                cut, and no other group is accepted before it succeeds. The writer goes on in another segment.
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
        self._stamps.written = group.last_timestamp
        stats = self.stats
        stats.commits += 1
        stats.group_entries.observe(group.entries)
        stats.entries += group.entries
        stats.records += group.records
        stats.bytes += group.size

    def _write(self, segment: Segment, group: Group) -> None:
        if group.identity != segment.identity or group.first_timestamp <= self._stamps.written:
            group.fit(segment.identity, self._stamps.written)
        assert group.first_timestamp > segment.created, (
            f"BUG: an entry of {group.first_timestamp} in a segment created at {segment.created}"
        )
        segment.write(group.buffers, group.size, group.entries, group.records, group.last_timestamp)
        if self._background is not None:
            self._background.keep_up()
        else:
            self._sync(segment, group.size)
        if not segment.has_something_at_its_path():
            raise FileNotFoundError(errno.ENOENT, "the segment was removed or moved while in use", segment.path)

    def _sync(self, segment: Segment, size: int) -> None:
        mode = self.options.sync_mode
        if mode == "off":
            # Else the kernel lets unwritten pages pile up, and then stops all writers for a tenth of a second.
            segment.start_writing(size)
            return
        before = time.perf_counter()
        if mode == "fsync":
            segment.fsync()
        else:
            segment.fdatasync()
        self.stats.syncs += 1
        self.stats.sync_us.observe(int((time.perf_counter() - before) * 1e6))

    def _segment_with_room(self, size: int) -> Segment:
        """Return the segment for the next group: another one if the current one has failed or is full."""
        segment = self.current
        background = self._background
        if segment is None or segment.state is not _OPEN or (background is not None and background.error is not None):
            segment = self._usable_segment()
        while segment.entries and segment.offset + size + END_ENTRY_BYTES > self.options.max_size_bytes:
            segment = self._rotate(segment, is_over=True)
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

    # Four times a second, and at the end

    def tick(self) -> None:
        """Leave the segment when it is due to be sealed by age or records. Call this a few times a second."""
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
            if is_due(segment, now, self.options, self._is_waiting, self.collect_us()):
                self._rotate(segment, is_over=now - segment.started_at >= self.options.max_age_seconds)
        except OSError as error:
            self._note_error(error)

    def close(self) -> None:
        """Seal the current segment, wait until all segments are sealed, and remove the one that was made ready."""
        segment = self.current
        if self._background is not None:
            self._background.close()
        try:
            if segment is not None and self._has_failed(segment):
                if self._failed.must_be_replaced:
                    segment = self._go_on(segment)
                else:
                    self._failed.cut_back_or_give_up(segment)
            if segment is not None:
                self._leave(segment)
        except OSError as error:
            path = segment.path if segment is not None else self._directory.path
            log.error("cannot seal segment %s: %s; the next start does", path, error)
            if self.current is not None and self.current.state is not State.CLOSED:
                self.current.close()
            self._failed.close()
        self._pipeline.close()

    def _is_waiting(self) -> bool:
        """Tell whether a segment of the slot waits to be sealed or uploaded."""
        return bool(self._pipeline.unsealed) or self._directory.has_segments(SEALED, self._slot)

    # From one segment to the next

    def _rotate(self, left: Segment, is_over: bool) -> Segment:
        """Leave the current segment for the next one; the old one is sealed in the background.

        Args:
            is_over: leave it even if no other can be made: what is not sealed is never uploaded, and frees no space.

        Raises:
            OSError: no other can be made.
        """
        if self._background is not None:
            self._background.sync_now()
            if self._has_failed(left):
                return self._go_on(left)
        try:
            following = self._take()
        except OSError:
            if is_over:
                self._leave(left)
            raise
        self._leave(left)
        return self._enter(following)

    def _take_back(self, segment: Segment) -> bool:
        """Cut off, durably, the part of a refused group that was written. Return False if that failed."""
        try:
            self._failed.cut_back(segment)
        except OSError as error:
            log.error("cannot cut %s back: %s; nothing is accepted until it can be", segment.path, error)
            return False
        return True

    def _go_on(self, failed: Segment | None) -> Segment:
        """Go on in another segment after the current one failed and was cut back.

        Raises:
            OSError: it cannot be cut back yet, or no other can be made. The next call goes on where this one stopped.
        """
        if failed is None:
            following = self._take()
        elif self._failed.must_be_replaced:
            following = self._failed.replace(failed)
            self._leave(failed)
        else:
            self._failed.cut_back_or_give_up(failed)
            self._leave(failed)  # before another is made: on a full disk, its upload makes room
            following = self._take()
        log.warning("going on in a new segment, %s, after: %s", following.path, self.stats.last_error or "see above")
        return self._enter(following)

    def _leave(self, segment: Segment) -> None:
        """Stop writing to the current segment, and have it sealed in the background."""
        self.current = None
        self._reserve_end_timestamp()
        self.stats.rotations += 1
        if self._background is not None:
            self._background.enter(None)
        if segment.state is State.CLOSED:
            return
        if segment.entries:
            self._pipeline.seal_later(segment)
        else:
            self._pipeline.discard(segment)

    def _take(self) -> Segment:
        segment = self._pipeline.take()
        if not segment.is_at_its_path():  # its directory was removed while it waited
            segment.discard()
            segment = self._pipeline.take()
        return segment

    def _enter(self, following: Segment) -> Segment:
        self._stamps.written = max(self._stamps.written, following.last_timestamp)
        self.current = following
        if self._background is not None:
            self._background.enter(following)
        self.stats.last_error = ""
        return following

    def _reserve_end_timestamp(self) -> None:
        """Reserve the timestamp after the last entry for the end entry of the segment that is left."""
        self._stamps.written += 1

    # Reporting failures

    def _note_failure(self, error: OSError) -> None:
        self.stats.failures += 1
        self.stats.last_failure_us = steady_us()
        self._note_error(error)

    def _note_error(self, error: OSError) -> None:
        """Log an error once, however often it repeats. The new name of a rename is another one each time."""
        told = error.errno, error.filename
        if not self.stats.last_error or told != self._told:
            log.error("the WAL of slot %d cannot be written: %s; trying again with each write", self._slot, error)
        self._told = told
        self.stats.last_error = str(error)
