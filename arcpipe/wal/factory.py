"""Make and seal the segments of one slot: the two jobs of a writer's pipeline."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from arcpipe.errors import is_full
from arcpipe.units import MB
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.group import Group
from arcpipe.wal.options import WALOptions
from arcpipe.wal.pool import FreePool
from arcpipe.wal.segment import Segment

# Bytes of backlog above which a sealed segment leaves the page cache, because it will not be read soon: later writes
# reuse that memory. Measured without this: the kernel, or a hypervisor below it, has to find and clear fresh pages, and
# a body of 55 kB takes a worker 180 µs of a core instead of 115. Two batches of `uploader.batch_mb` (512) stay, and the
# segments that are sealed meanwhile: one batch waits for its turn, the other is under way.
CACHED_BACKLOG_BYTES: Final = 1280 * MB
# Segments sealed without a sync that leave the cache later: only written pages do, and the kernel takes its time.
_LEAVING: Final = 4


class SegmentFactory:
    """Makes one slot's segments, numbers them, and seals them. One thread at a time makes, and one seals."""

    def __init__(
        self,
        directory: WALDirectory,
        slot: int,
        options: WALOptions,
        node: str,
        next_seq: int | None,
        written: Callable[[], int],
    ) -> None:
        """Take over a slot.

        Args:
            next_seq: the number of the first segment; None for one above the highest of the slot in the directory.
            written: returns the highest timestamp (µs) on disk; new segments are created above it.
        """
        self._directory = directory
        self._slot = slot
        self._options = options
        self._node = node
        self._next_seq = next_seq  # None until the directory was listed
        self._written = written
        self._made = 0  # µs: `created` of the segment that was made last
        self._failed: list[str] = []  # paths of segments that could not be made, and may be there all the same
        self._leaving: deque[str] = deque(maxlen=_LEAVING)  # paths, the oldest first
        self._pool: FreePool | None = None
        if options.recycle:
            self._pool = FreePool(directory, options.free_segments, options.max_size_bytes)

    def make(self, retained: Sequence[Group] = (), replaces: tuple[int, int] | None = None) -> Segment:
        """Make the next segment; see `Segment.make`.

        Raises:
            OSError: it could not be made.
        """
        self._directory.make()  # it may have been removed
        self._remove_failed(must=bool(retained))
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
            # Also above the segment made before, which may not be in use yet: segments sort in writing order.
            above_us=max(self._written(), self._made),
            sync=self._options.sync_mode != "off",
            retained=retained,
            replaces=replaces,
            left=self._failed,
        )
        self._made = segment.created
        return segment

    def _remove_failed(self, must: bool) -> None:
        """Remove, durably, what earlier tries may have left in service: recovery would take it for a segment.

        Raises:
            OSError: it cannot be removed, and it must be: two segments would hold the same acknowledged groups.
        """
        if not self._failed:
            return
        try:
            for path in self._failed:
                self._directory.disk.unlink(path)
            self._directory.sync()
        except OSError:
            if must:
                raise
        else:
            self._failed.clear()

    def seal(self, segment: Segment) -> None:
        """Seal a segment. On a full disk, remove the files of the free pool and try once more.

        Raises:
            OSError: it is not sealed; the call may be repeated.
        """
        keep_cached = not self._is_backlog_large()
        try:
            segment.seal(self._options.max_size_bytes, keep_cached=keep_cached)
        except OSError as error:
            if not is_full(error) or self._pool is None:
                raise
            self._pool.give_back()  # makes room for the end entry
            segment.seal(self._options.max_size_bytes, keep_cached=keep_cached)
        if not keep_cached and self._options.sync_mode == "off":
            self._drop_what_was_dirty(segment)

    def _drop_what_was_dirty(self, sealed: Segment) -> None:
        """Drop the segments sealed before from the page cache, once more.

        The end of a segment that was not synced is still dirty when it is sealed. So the advice to drop it only starts
        to write it, and its pages leave the cache with a later advice. Otherwise each write would need fresh memory:
        see CACHED_BACKLOG_BYTES.
        """
        disk = self._directory.disk
        for path in self._leaving:
            try:
                fd = disk.open_for_reading(path)
            except OSError:  # uploaded already
                continue
            try:
                disk.forget(fd)
            finally:
                disk.close(fd)
        self._leaving.append(os.path.join(self._directory.path, f"{sealed.name}{SEALED}"))

    def _is_backlog_large(self) -> bool:
        try:
            return sum(file.size for file in self._directory.segments(SEALED)) > CACHED_BACKLOG_BYTES
        except OSError:  # without a directory, sealing reports the error
            return False
