"""One open segment: made, written, synced, and then sealed or cut back. One thread at a time owns it."""

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
from arcpipe.disk import Buffer, Disk
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
    """The state of an open segment."""

    OPEN = "open"  # takes entries
    FAILED = "failed"  # a write or a sync failed: it must be cut back before anything else is accepted
    CUT = "cut"  # cut back, durably: the writer must leave it, and have it sealed
    NAMED = "named"  # has its final name; only the directory's sync is missing
    CLOSED = "closed"


class Extent(NamedTuple):
    """A part of a segment: from its beginning to the end of one of its entries."""

    offset: int
    entries: int
    records: int
    last_timestamp: int


class Segment:
    """An open segment. The next entry goes to `offset`; all entries up to `acknowledged` were promised to clients."""

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
        left: list[str] | None = None,
    ) -> Segment:
        """Make a segment and put it into service: start entry written and synced, name and directories durable.

        Writes over a file of the pool if there is one, and makes a new file otherwise.

        Args:
            above_us: `created` will be above this timestamp.
            sync: False leaves every sync out (`wal.enabled = false`, a weaker promise).
            retained: groups that the segment holds, durably, as soon as it has its name.
            replaces: the number of the segment that these groups come from, and the offset where they begin there.
            left: gets the path of a segment that could not be made, and that may have had its name: it is removed, but
                not for certain and not durably.

        Raises:
            OSError: it could not be made.
        """
        disk = directory.disk
        created = max(time.time_ns() // 1000, above_us + 1)
        # In a later second than the file's last stale entry: so the second in the new name is a border by itself.
        path = pool.take(slot, created // _SECOND_US * _SECOND_US) if pool is not None else None
        is_reused = path is not None
        path = path or os.path.join(directory.free, f"new-{slot}-next")
        fd, leftovers, left = -1, [path], [] if left is None else left
        try:
            fd = disk.open(path) if is_reused else _create_anew(disk, path)
            name = SegmentName.at(slot, created, seq)
            identity = make_identity(slot, seq)
            head = FILE_HEADER + pack_start(StartMeta(node, slot, seq, created, __version__, identity, replaces))
            segment = cls(directory, fd, name, created, len(head), identity, sync)
            segment._write_beginning(head, retained)
            if sync or is_reused:  # even with `wal.enabled = false`, a new name must not show stale content alone
                disk.fdatasync(fd)
            # Only this process makes names of this slot, so a path that is free now is free at the rename.
            if os.path.exists(segment.path):
                raise FileExistsError(errno.EEXIST, "a segment of this name exists already", segment.path)
            leftovers.append(segment.path)
            disk.rename(path, segment.path)
            if sync:
                directory.sync()
        except BaseException:
            disk.close(fd)
            for leftover in leftovers:
                with contextlib.suppress(OSError):
                    disk.unlink(leftover)
            left += leftovers[1:]
            raise
        return segment

    def _write_beginning(self, head: bytes, retained: Sequence[Group]) -> None:
        """Write the file header, the start entry and the groups that the segment holds from the beginning."""
        buffers: list[Buffer] = [head]
        for group in retained:
            group.fit(self.identity, self.last_timestamp)
            buffers += group.buffers
            self._count(group.size, group.entries, group.records, group.last_timestamp)
        self.acknowledge()
        self._directory.disk.write(self._fd, buffers, 0)

    def write(self, buffers: Sequence[Buffer], size: int, entries: int, records: int, last_timestamp: int) -> None:
        """Append whole entries. After an error nothing counts as written, and the segment must be cut back.

        Raises:
            OSError: a part of them may be in the file.
        """
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
        """Count everything written so far as acknowledged, and return its extent."""
        self.acknowledged = Extent(self.offset, self.entries, self.records, self.last_timestamp)
        return self.acknowledged

    def fail(self) -> None:
        """Note that a write or a sync failed: the segment must be cut back to `acknowledged`."""
        self.state = State.FAILED

    def fdatasync(self) -> None:
        """Bring everything written so far to the disk."""
        self._directory.disk.fdatasync(self._fd)

    def fsync(self) -> None:
        """Bring everything written so far and the file's times to the disk."""
        self._directory.disk.fsync(self._fd)

    def start_writing(self, size: int) -> None:
        """Have the kernel begin to bring the last bytes to the disk. Waits for nothing, and promises nothing."""
        self._directory.disk.forget(self._fd, self.offset - size, size)

    def has_something_at_its_path(self) -> bool:
        """Tell if a file is at the segment's path; it may be another one. Cheap enough for every commit.

        Note: `stat` would be too slow here. From Linux 6.13 on, a `stat` makes the next write update the file's times
        through the journal; one per commit costs a quarter of the throughput.
        """
        return os.access(self.path, os.F_OK)

    def is_at_its_path(self) -> bool:
        """Tell if the segment's path leads to this very file."""
        return self._is_file_at(self.path)

    def _is_file_at(self, path: str) -> bool:
        try:
            there, mine = os.stat(path), os.fstat(self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # unknown: the next operation on the file reports what is wrong
            return True
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)

    def seal(self, max_size_bytes: int, *, keep_cached: bool = True) -> None:
        """Seal the segment and close it: write the end entry, sync, give it the name that the uploader looks for.

        A file that is less than half full gives its unused blocks back; a fuller one keeps them for the pool. Without
        an end entry a sealed segment counts as damaged, so the segment is renamed only after that is on disk.

        Args:
            max_size_bytes: the size of a full segment.
            keep_cached: False drops the file from the page cache.

        Raises:
            OSError: a step failed; the call may be repeated.
        """
        disk = self._directory.disk
        if self.state is not State.NAMED:
            target = os.path.join(self._directory.path, f"{self.name}{SEALED}")
            if self.is_at_its_path():
                self._write_end(max_size_bytes)
                self._sync_before_naming()
                disk.rename(self.path, target)
            elif not self._is_file_at(target):  # it is there after a rename that succeeded and reported a failure
                # If it was moved to another directory, the next start there finds it.
                log.error("segment %s was removed or moved by somebody else while it was in use", self.path)
                self._note_lost()
                self.close()
                return
            # The file belongs to the uploader now, and through the pool perhaps soon to another worker. A repeated call
            # must not touch it again.
            self.state = State.NAMED
        if self._sync_enabled:
            disk.sync_directory(self._directory.path)
        if not keep_cached:
            disk.forget(self._fd)
        self.close()

    def cut_back(self, extent: Extent | None = None) -> None:
        """Cut the segment back, durably, to an extent; by default to `acknowledged`.

        The page cache cannot be trusted after a failed sync, so the cut is synced. It goes through the descriptor, so
        it also reaches a file that was removed or moved.

        Raises:
            OSError: it could not be cut; the call may be repeated.
        """
        extent = extent or self.acknowledged
        disk = self._directory.disk
        disk.truncate(self._fd, extent.offset)
        disk.fsync(self._fd)  # even with `wal.enabled = false`: entries that are written again must not be there twice
        self.offset, self.entries, self.records, self.last_timestamp = self.acknowledged = extent
        self.state = State.CUT

    def discard(self) -> None:
        """Close the segment, which must hold no entry, and remove its file."""
        try:
            if self.is_at_its_path():
                self._directory.disk.unlink(self.path)
        finally:
            self.close()

    def close(self) -> None:
        """Close the segment and leave its file as it is."""
        self._directory.disk.close(self._fd)
        self.state = State.CLOSED

    def _note_lost(self) -> None:
        """Note that acknowledged records are lost with the file: nobody uploads it from here."""
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


def _create_anew(disk: Disk, path: str) -> int:
    """Create a file in place of one that an earlier call may have left."""
    disk.unlink(path)
    return disk.create(path)
