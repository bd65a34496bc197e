"""Cut segments after their last intact entry, or where a successor holds the following entries again.

Recovery changes nothing else in a file. Each cut can be repeated after a crash in the middle of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from arcpipe.errors import NotAWAL, is_full
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.format import EndMeta, StartMeta, pack_end
from arcpipe.wal.life import read_start
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport, SegmentScan
from arcpipe.wal.verdict import Consequence, consequence

log = logging.getLogger(__name__)


def cut_and_end(directory: WALDirectory, fd: int, report: ScanReport) -> None:
    """Cut a torn tail off and write the end entry. The caller syncs.

    On a full disk the files of the free pool are removed first.

    Raises:
        OSError: the end entry is not written; at most the tail is gone.
    """
    disk = directory.disk
    if report.size > report.end_offset:
        disk.truncate(fd, report.end_offset)
    end = pack_end(EndMeta(report.entries, None, report.end_offset, True, report.identity), report.last_timestamp + 1)
    try:
        disk.write(fd, [end], report.end_offset)
        return
    except OSError as error:
        disk.truncate(fd, report.end_offset)
        if not is_full(error):
            raise
    FreePool(directory, 0).give_back()
    try:
        disk.write(fd, [end], report.end_offset)
    except OSError:
        disk.truncate(fd, report.end_offset)
        raise


def cut_replaced(directory: WALDirectory, files: Sequence[SegmentFile]) -> dict[str, str]:
    """Cut off, durably, the entries that a successor holds again, before either segment is sealed.

    After a failed background sync a worker writes the retained groups into a successor. The successor's start entry
    names the segment that it replaces, and the offset from which on. If a crash came before the worker's own cut, both
    segments hold the same entries.

    Args:
        files: active segments that no process writes to any more.

    Returns:
        The files that must not be sealed now, with the reason: the cut failed, or its place is unknown.
    """
    held: dict[str, str] = {}
    for file in files:
        try:
            start = read_start(file.path, directory.disk)
        except FileNotFoundError:
            continue
        except OSError as error:
            if _holds_entries(directory, file):
                reason = f"{file.filename} may hold a part of it again, and cannot be read: {error}"
                held.update((older.filename, reason) for older in files if _is_older(older, file))
            continue
        if start is None or start.replaces is None or (start.slot, start.seq) != file.name[::2]:
            continue
        for replaced in _replaced_by(directory, file, start):
            try:
                _cut(directory, replaced, start.replaces[1])
            except OSError as error:
                reason = f"{replaced.filename} cannot be cut where {file.filename} replaces it: {error}"
                held[file.filename] = held[replaced.filename] = reason
    return held


def _is_older(older: SegmentFile, file: SegmentFile) -> bool:
    return older.name.slot == file.name.slot and older.name.seq < file.name.seq


def _holds_entries(directory: WALDirectory, file: SegmentFile) -> bool:
    """Tell if the readable part of a file has an entry: a segment that was only made ready replaces nothing."""
    try:
        return any(True for _ in SegmentScan(file.path, disk=directory.disk, salvage=True))
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _replaced_by(directory: WALDirectory, file: SegmentFile, start: StartMeta) -> list[SegmentFile]:
    assert start.replaces is not None
    if start.replaces[0] >= start.seq:  # no writer makes such an entry
        return []
    found = (candidate for state in (ACTIVE, SEALED) for candidate in directory.segments(state, file.name.slot))
    return [candidate for candidate in found if candidate.name.seq == start.replaces[0]]


def _cut(directory: WALDirectory, file: SegmentFile, offset: int) -> None:
    """Cut a segment at an offset, durably. Give it a new end entry if it was sealed."""
    disk = directory.disk
    if file.size <= offset:
        return
    if file.state == SEALED and _ends_at(directory, file, offset):
        return
    log.warning("WAL file %s is cut at offset %d: its successor holds again what followed", file.filename, offset)
    fd = disk.open(file.path)
    try:
        disk.truncate(fd, offset)
        if file.state == SEALED:
            report = _scan(directory, file, ACTIVE)
            if consequence(report.verdict) is Consequence.CUT_AND_SEAL:
                cut_and_end(directory, fd, report)
        disk.fsync(fd)
    finally:
        disk.close(fd)


def _ends_at(directory: WALDirectory, file: SegmentFile, offset: int) -> bool:
    """Tell if a sealed segment was cut at or before this offset before it was sealed."""
    try:
        end = _scan(directory, file, SEALED).end
    except NotAWAL:
        return True  # nothing of it is uploaded anyway
    return end is not None and end.offset <= offset


def _scan(directory: WALDirectory, file: SegmentFile, state: str) -> ScanReport:
    scan = SegmentScan(file.path, disk=directory.disk, state=state)
    for _ in scan:
        pass
    return scan.report
