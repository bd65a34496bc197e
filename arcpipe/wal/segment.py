"""One segment's life: made, written, synced, sealed or cut back. One thread at a time owns a segment."""

from __future__ import annotations

import contextlib
import enum
import errno
import logging
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from arcpipe import __version__
from arcpipe.disk import Buffer
from arcpipe.errors import UnknownVersion
from arcpipe.wal import findings
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentName, WALDirectory
from arcpipe.wal.findings import LOST_SEGMENTS, Finding
from arcpipe.wal.format import (
    END_ENTRY_BYTES,
    FILE_HEADER,
    EndMeta,
    StartMeta,
    make_identity,
    pack_end,
    pack_start,
)
from arcpipe.wal.group import Group
from arcpipe.wal.pool import FreePool

log = logging.getLogger(__name__)


_SECOND_US = 1_000_000


class State(enum.Enum):
    """Where in its life a segment is."""

    OPEN = "open"  # takes entries
    FAILED = "failed"  # a write or a sync failed: it is to be cut back before anything else is accepted
    CUT = "cut"  # cut back, durably: it is to be left, and sealed
    NAMED = "named"  # has its final name; only the directory's sync is missing
    CLOSED = "closed"


class Extent(NamedTuple):
    """How far a segment goes, up to the end of one of its entries."""

    offset: int
    entries: int
    records: int
    last_timestamp: int


class Segment:
    """An open segment. `offset` is where the next entry goes, `acknowledged` how far answers were given."""

    __slots__ = (
        "_directory",
        "_fd",
        "_sync_enabled",
        "acknowledged",
        "created",
        "entries",
        "first_timestamp",
        "identity",
        "last_timestamp",
        "name",
        "offset",
        "path",
        "records",
        "started_at",
        "state",
    )

    def __init__(
        self,
        directory: WALDirectory,
        fd: int,
        name: SegmentName,
        created: int,
        offset: int,
        identity: bytes,
        sync: bool,
    ) -> None:
        self._directory = directory
        self._fd = fd
        self._sync_enabled = sync
        self.state = State.OPEN
        self.name = name
        self.identity = identity
        self.path = os.path.join(directory.path, f"{name}{ACTIVE}")
        self.created = created
        self.last_timestamp = created
        self.offset = offset
        self.entries = 0
        self.records = 0
        self.first_timestamp = 0  # µs since the epoch, of the first group; 0 while there is none
        self.started_at = 0.0  # monotonic seconds of the first entry; 0 while there is none
        self.acknowledged = Extent(offset, 0, 0, created)

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
        retained: Sequence[Group] = (),
        replaces: tuple[int, int] | None = None,
    ) -> Segment:
        """Make a segment and put it into service: start entry written and synced, name and directories durable.

        A file of the pool is written over if there is one, a new one made otherwise. What fails leaves nothing behind.

        Args:
            above_us: `created` is taken above this timestamp.
            sync: False leaves every sync out (the WAL is disabled: a weaker promise).
            retained: groups that the segment holds, durably, as soon as it has its name.
            replaces: the number of the segment that these groups come from, and the offset where they begin there.
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
            identity = make_identity(slot, seq)
            head = FILE_HEADER + pack_start(StartMeta(node, slot, seq, created, __version__, identity, replaces))
            segment = cls(directory, fd, name, created, len(head), identity, sync)
            buffers: list[Buffer] = [head]
            for group in retained:
                group.fit(identity, segment.last_timestamp)
                buffers += group.buffers
                segment._count(group.size, group.entries, group.records, group.last_timestamp)
            segment.acknowledge()
            disk.write(fd, buffers, 0)
            if sync or is_reused:  # whatever else is not promised: no former life under a new name
                disk.fdatasync(fd)
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
        """Append whole entries; on an error nothing counts as written and the segment is to be cut back."""
        self._directory.disk.write(self._fd, buffers, self.offset)
        self._count(size, entries, records, last_timestamp)

    def _count(self, size: int, entries: int, records: int, last_timestamp: int) -> None:
        self.offset += size
        self.entries += entries
        self.records += records
        self.last_timestamp = last_timestamp
        if not self.started_at:
            self.started_at = time.monotonic()
            self.first_timestamp = last_timestamp

    def acknowledge(self) -> Extent:
        """Promise from now on what was written so far. Returns how far that is."""
        self.acknowledged = Extent(self.offset, self.entries, self.records, self.last_timestamp)
        return self.acknowledged

    def fail(self) -> None:
        """Note that a write or a sync failed: what followed the last promise is to be taken back."""
        self.state = State.FAILED

    def fdatasync(self) -> None:
        """Everything written so far is on disk when this returns."""
        self._directory.disk.fdatasync(self._fd)

    def fsync(self) -> None:
        """As `fdatasync`, and the file's times too."""
        self._directory.disk.fsync(self._fd)

    def has_something_at_its_path(self) -> bool:
        """False once somebody removed or moved the file. For every commit: it does not look at the inode.

        A kernel with fine-grained timestamps (Linux 6.13) takes any `stat` of a file as a question for its times, and
        gives the next write new ones through the journal: a quarter of the throughput when it is asked every time.
        """
        return os.access(self.path, os.F_OK)

    def is_at_its_path(self) -> bool:
        """True while the segment's path leads to this very file."""
        return self._is_file_at(self.path)

    def _is_file_at(self, path: str) -> bool:
        mine = os.fstat(self._fd)
        try:
            there = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # it cannot be told: whatever is done with it next says what is wrong
            return True
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)

    def seal(self, max_size_bytes: int, *, keep_cached: bool = True) -> None:
        """Complete the segment: end entry, sync, the name that the uploader looks for. Closes it.

        May be tried again when it raises. A mostly empty file gives its blocks back; a full one keeps them for the
        pool. A sealed segment without its end entry counts as damaged, so it keeps its name until the entry is there.
        """
        disk = self._directory.disk
        if self.state is not State.NAMED:
            target = os.path.join(self._directory.path, f"{self.name}{SEALED}")
            if self.is_at_its_path():
                self._write_end(max_size_bytes)
                self._sync_before_naming()
                disk.rename(self.path, target)
            elif not self._is_file_at(target):  # where it is after a rename that was done and reported as failed
                # Where it was moved to, the next start on that directory finds it.
                log.error("segment %s was removed or moved by somebody else while it was in use", self.path)
                self._note_lost()
                self.close()
                return
            # The file is the uploader's now, and through the pool perhaps another worker's soon: it is not touched
            # again, even if what follows has to be tried again.
            self.state = State.NAMED
        if self._sync_enabled:
            disk.sync_directory(self._directory.path)
        if not keep_cached:
            disk.forget(self._fd)
        self.close()

    def cut_back(self, extent: Extent | None = None) -> None:
        """Take back, durably, what follows an extent; by default what was not acknowledged.

        After a failed sync the page cache is not believed. The cut goes through the descriptor, so nothing comes back
        with a file that was removed or moved, either. May be tried again when it raises.
        """
        extent = extent or self.acknowledged
        disk = self._directory.disk
        disk.truncate(self._fd, extent.offset)
        disk.fsync(self._fd)  # also with the WAL disabled: what is written again must not be there twice
        self.offset, self.entries, self.records, self.last_timestamp = self.acknowledged = extent
        self.state = State.CUT

    def discard(self) -> None:
        """Close a segment that holds no entry and remove its file."""
        if self.is_at_its_path():
            self._directory.disk.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Close a segment and leave its file as it is."""
        self._directory.disk.close(self._fd)
        self.state = State.CLOSED

    def _note_lost(self) -> None:
        """Note that acknowledged records went with the file: nobody uploads them from here."""
        lost = [Finding(LOST_SEGMENTS, str(self.name), 1, "it was removed or moved while it was in use")]
        try:
            findings.note(self._directory, lost)
        except (OSError, UnknownVersion) as error:
            log.error("cannot note that %d segments were lost: %s; only the log tells it", len(lost), error)

    def _write_end(self, max_size_bytes: int) -> None:
        disk = self._directory.disk
        meta = EndMeta(self.entries, self.records, self.offset, identity=self.identity)
        end = pack_end(meta, self.last_timestamp + 1)  # the writer has reserved this timestamp
        assert len(end) <= END_ENTRY_BYTES, f"BUG: an end entry of {len(end)} bytes, more than {END_ENTRY_BYTES}"
        disk.write(self._fd, [end], self.offset)
        size = self.offset + len(end)
        if size < max_size_bytes // 2:
            disk.truncate(self._fd, size)

    def _sync_before_naming(self) -> None:
        if self._sync_enabled:
            self.fdatasync()
