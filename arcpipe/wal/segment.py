"""One segment's life: made, written, synced, sealed or cut back. One thread at a time owns a segment."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from arcpipe import __version__
from arcpipe.disk import Buffer
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentName, WALDirectory
from arcpipe.wal.format import END_ENTRY_BYTES, FILE_HEADER, EndMeta, StartMeta, pack_end, pack_start
from arcpipe.wal.pool import FreePool

log = logging.getLogger(__name__)


_SECOND_US = 1_000_000


class _Extent(NamedTuple):
    """How far a segment goes."""

    offset: int
    entries: int
    records: int
    last_timestamp: int


class Segment:
    """An open segment. `offset` is where the next entry goes."""

    __slots__ = (
        "_acknowledged",
        "_directory",
        "_fd",
        "_renamed",
        "_sync_enabled",
        "created",
        "entries",
        "first_timestamp",
        "last_timestamp",
        "name",
        "offset",
        "path",
        "records",
        "started_at",
    )

    def __init__(
        self, directory: WALDirectory, fd: int, name: SegmentName, created: int, offset: int, sync: bool
    ) -> None:
        self._directory = directory
        self._fd = fd
        self._renamed = False
        self._sync_enabled = sync
        self.name = name
        self.path = os.path.join(directory.path, f"{name}{ACTIVE}")
        self.created = created
        self.last_timestamp = created
        self.offset = offset
        self.entries = 0
        self.records = 0
        self.first_timestamp = 0  # µs since the epoch, of the first group; 0 while there is none
        self.started_at = 0.0  # monotonic seconds of the first entry; 0 while there is none
        self._acknowledged = _Extent(offset, 0, 0, created)

    @classmethod
    def make(
        cls,
        directory: WALDirectory,
        pool: FreePool | None,
        slot: int,
        seq: int,
        node: str,
        *,
        above_us: int = 0,
        sync: bool = True,
    ) -> Segment:
        """A segment in service: start entry written and synced, name and directories durable.

        A file of the pool is written over if there is one, a new one made otherwise. What fails leaves nothing behind.

        Args:
            above_us: `created` is taken above this timestamp.
            sync: False leaves every sync out (the log is disabled: a weaker promise).
        """
        disk = directory.disk
        created = max(time.time_ns() // 1000, above_us + 1)
        # In a later second than the former life's end: so the second in the name is a border by itself.
        path = pool.take(slot, created // _SECOND_US * _SECOND_US) if pool is not None else None
        is_reused = path is not None
        if path is None:
            path = os.path.join(directory.free, f"new-{slot}-next")
        fd, leftovers = -1, [path]
        try:
            if not is_reused:
                disk.unlink(path)
            fd = disk.open(path) if is_reused else disk.create(path)
            name = SegmentName.at(slot, created, seq)
            head = FILE_HEADER + pack_start(StartMeta(node, slot, seq, created, __version__))
            disk.write(fd, [head], 0)
            if sync or is_reused:  # whatever else is not promised: no former life under a new name
                disk.fdatasync(fd)
            segment = cls(directory, fd, name, created, len(head), sync)
            # Nobody else makes names of this slot, so what is not there now is not there at the rename.
            if os.path.exists(segment.path):
                raise FileExistsError(errno.EEXIST, "a segment of this name exists already", segment.path)
            leftovers.append(segment.path)
            disk.rename(path, segment.path)
            if sync:
                directory.sync()
        except BaseException:
            disk.close(fd)
            with contextlib.suppress(OSError):
                for leftover in leftovers:
                    disk.unlink(leftover)
            raise
        return segment

    def write(self, buffers: Sequence[Buffer], size: int, entries: int, records: int, last_timestamp: int) -> None:
        """Appends whole entries; on an error nothing counts as written and the segment is to be cut back."""
        self._directory.disk.write(self._fd, buffers, self.offset)
        self.offset += size
        self.entries += entries
        self.records += records
        self.last_timestamp = last_timestamp
        if not self.started_at:
            self.started_at = time.monotonic()
            self.first_timestamp = last_timestamp

    def acknowledge(self) -> None:
        """What was written so far is promised from now on."""
        self._acknowledged = _Extent(self.offset, self.entries, self.records, self.last_timestamp)

    def fdatasync(self) -> None:
        """Everything written so far is on disk when this returns."""
        self._directory.disk.fdatasync(self._fd)

    def fsync(self) -> None:
        """As `fdatasync`, and the file's times too."""
        self._directory.disk.fsync(self._fd)

    def is_linked(self) -> bool:
        """False once somebody removed the file: what is written then would vanish with the descriptor."""
        return os.fstat(self._fd).st_nlink > 0

    def has_a_name(self) -> bool:
        """False once somebody removed or moved the file. For every commit: it does not look at the inode.

        A kernel with fine-grained timestamps (Linux 6.13) takes any `stat` of a file as a question for its times, and
        gives the next write new ones through the journal: a quarter of the throughput when it is asked every time.
        """
        return os.access(self.path, os.F_OK)

    def is_in_place(self) -> bool:
        """True while the segment's path leads to this very file."""
        return self._is_at(self.path)

    def _is_at(self, path: str) -> bool:
        mine = os.fstat(self._fd)
        try:
            there = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # it cannot be told: whatever is done with it next says what is wrong
            return True
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)

    def seal(self, max_size_bytes: int, *, keep_cached: bool = True) -> None:
        """Completes the segment: end entry, sync, the name that the uploader looks for. Closes it.

        May be tried again when it raises. A mostly empty file gives its blocks back; a full one keeps them for the
        pool. An end entry that finds no room is left out, because a reader needs none in a file that ends there.
        """
        disk = self._directory.disk
        if not self._renamed:
            target = os.path.join(self._directory.path, f"{self.name}{SEALED}")
            if self.is_in_place():
                self._write_end(max_size_bytes)
                if self._sync_enabled:
                    self.fdatasync()
                disk.rename(self.path, target)
            elif not self._is_at(target):  # where it is after a rename that was done and reported as failed
                # Where it was moved to, the next start on that directory finds it.
                log.error("segment %s was removed or moved by somebody else while it was in use", self.path)
                disk.close(self._fd)
                return
            # The file is the uploader's now, and through the pool perhaps another worker's soon: it is not touched
            # again, even if what follows has to be tried again.
            self._renamed = True
        if self._sync_enabled:
            disk.sync_directory(self._directory.path)
        if not keep_cached:
            disk.forget(self._fd)
        disk.close(self._fd)

    def cut_back(self) -> None:
        """After a failed write or sync: takes back, durably, what followed the last acknowledgement.

        The page cache is not believed: what followed the last good sync is cut off. May be tried again when it raises.
        """
        if not self.is_linked():
            return
        disk = self._directory.disk
        disk.truncate(self._fd, self._acknowledged.offset)
        if self._sync_enabled:
            disk.fsync(self._fd)
        self.offset, self.entries, self.records, self.last_timestamp = self._acknowledged

    def discard(self) -> None:
        """Closes a segment that holds no entry and removes its file."""
        if self.is_in_place():
            self._directory.disk.unlink(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Closes a segment and leaves its file as it is."""
        self._directory.disk.close(self._fd)

    def _write_end(self, max_size_bytes: int) -> None:
        disk = self._directory.disk
        end = pack_end(EndMeta(self.entries, self.records, self.offset), self.last_timestamp + 1)
        assert len(end) <= END_ENTRY_BYTES
        try:
            disk.write(self._fd, [end], self.offset)
            size = self.offset + len(end)
            if size < max_size_bytes // 2:
                disk.truncate(self._fd, size)
        except OSError:
            disk.truncate(self._fd, self.offset)
