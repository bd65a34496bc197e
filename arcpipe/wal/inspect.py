"""Inspect WAL files by hand: list and verify them, and copy their intact entries.

Works on files of a running server, too: nothing here writes to a file that it reads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from arcpipe import __version__
from arcpipe.disk import Disk
from arcpipe.errors import NotAWAL, WALError
from arcpipe.units import MB
from arcpipe.wal.directory import (
    ACTIVE,
    RECOVERED,
    SEALED,
    SegmentFile,
    WALDirectory,
    parse_filename,
)
from arcpipe.wal.format import (
    ENTRY_HEADER,
    FILE_HEADER,
    EndMeta,
    StartMeta,
    crc32,
    make_identity,
    pack_end,
    pack_start,
    with_identity,
)
from arcpipe.wal.reader import Entry, ScanReport, SegmentScan, count_records
from arcpipe.wal.report import end_problem
from arcpipe.wal.verdict import ScanVerdict

_COPY_BYTES: Final = 4 * MB  # bytes per write of a copy
# µs: `created` of a copy without identities. So low that no entry of it counts as stale.
_NO_BORDER: Final = 1
# Tries to read a file: a running server may write to a segment or cut it meanwhile, but hardly each time.
_LOOKS: Final = 3


class Summary(NamedTuple):
    """Everything that `arcpipe wal ls` shows of a file. `records` is None if they cannot be counted."""

    report: ScanReport
    records: int | None
    first_timestamp: int  # µs of the first data entry; 0 without one
    problem: str  # why it cannot be read, why it is not a WAL file, or how its end is wrong; else empty


def summarize(path: str, *, count: bool = True) -> tuple[str, Summary] | None:
    """Read a whole file, and return its counts and its verdict. A running server may seal or retire it meanwhile.

    Args:
        count: count its records, too.

    Returns:
        Its present path and the summary; None if it is gone, as after its upload.
    """
    left = _LOOKS
    while True:
        left -= 1
        try:
            summary = _summarize(path, count)
            # A retired file is written over, and what was read of it then is not what it held. No name is used again.
            os.stat(path)
            if left and path.endswith(ACTIVE) and summary.report.verdict is ScanVerdict.DAMAGED:
                continue  # of a group that was just being written, only the later entries may have been seen
            return path, summary
        except FileNotFoundError:
            later = next((name for name in _later_names(path) if os.path.exists(name)), None)
            if later is None:
                return None
            path, left = later, _LOOKS
        except OSError as error:
            if left and error.errno == errno.EIO:
                continue
            size = os.path.getsize(path) if os.path.exists(path) else 0
            return path, Summary(ScanReport(size), None, 0, str(error))


def _later_names(path: str) -> list[str]:
    """List the names that a file gets after its present one."""
    states = (ACTIVE, SEALED, RECOVERED)
    state = next((state for state in states[:2] if path.endswith(state)), None)
    if state is None:
        return []
    return [path.removesuffix(state) + later for later in states[states.index(state) + 1 :]]


def _summarize(path: str, count: bool) -> Summary:
    try:
        scan = SegmentScan(path)
    except NotAWAL as error:
        report = ScanReport(os.path.getsize(path))
        report.verdict = ScanVerdict.DAMAGED
        return Summary(report, None, 0, str(error))
    records: int | None = 0 if count else None
    first = 0
    for entry in scan:
        first = first or entry.timestamp
        if records is not None:
            found = count_records(entry.payload)
            records = None if found is None else records + found
    return Summary(scan.report, records, first, end_problem(scan.report, scan.was_active))


def all_segments(directory: WALDirectory) -> list[SegmentFile]:
    """List all segments of a directory in every state, oldest first."""
    files = [file for state in (ACTIVE, SEALED, RECOVERED) for file in directory.segments(state)]
    return sorted(files, key=lambda file: (file.name.created, file.name.slot, file.name.seq))


def entries_of(path: str) -> Iterator[Entry]:
    """Yield the intact data entries of a file, in order.

    Raises:
        NotAWAL: it is not a WAL file.
        WALError: it cannot be read.
    """
    try:
        yield from SegmentScan(path)
    except OSError as error:
        raise WALError(f"{path} cannot be read: {error}") from error


def salvage(source: str, target: str) -> ScanReport:
    """Write the intact entries of a damaged file to a new one, with their records and timestamps.

    Bad blocks are left out; `damage` of the report lists them.

    Raises:
        WALError: the target exists, the source holds no intact entry, or it cannot be read.
    """
    try:
        scan = SegmentScan(source, salvage=True)
    except OSError as error:
        raise WALError(f"{source} cannot be read: {error}") from error
    # If the target has a segment's name, its start entry must agree: else readers take it for another segment's.
    parsed = parse_filename(os.path.basename(target))
    slot, seq = (parsed[0].slot, parsed[0].seq) if parsed is not None else (0, 0)
    try:
        written = copy_segment(Disk(), target, Reading(scan), slot, seq)
    except Unreadable as error:
        raise WALError(f"{source} cannot be read: {error}") from error
    if not written:
        os.unlink(target)
        raise WALError(f"{source} holds no intact entry; nothing was written")
    return scan.report


class Unreadable(Exception):
    """A source could not be read to its end."""


class _NoEnvelope(Exception):
    """A payload cannot carry an identity."""


class Reading:
    """A source that may be read twice, and reports progress of each byte once."""

    def __init__(self, scan: SegmentScan, progress: Callable[[str, int], None] = lambda source, count: None) -> None:
        self._scan = scan
        self._progress = progress
        self._at = 0

    def __iter__(self) -> Iterator[Entry]:
        try:
            for entry in self._scan:
                self._advance(entry.offset)
                yield entry
        except OSError as error:  # must not be mistaken for an error of the file that the entries go to
            raise Unreadable(str(error)) from error
        self._advance(self._scan.report.size)

    def _advance(self, offset: int) -> None:
        if offset > self._at:
            self._progress(self._scan.path, offset - self._at)
            self._at = offset


def copy_segment(disk: Disk, path: str, source: Reading, slot: int, seq: int) -> int:
    """Write a whole segment of a source's entries, synced, and return their number.

    The copy gets an identity of its own. But if a payload is not an envelope, as in Arc's files, the copy has no
    identity, like its source, and its payloads are verbatim.

    Raises:
        WALError: it cannot be written, or the path is taken.
        Unreadable: the source cannot be read to its end; there is no copy.
    """
    try:
        return _write_segment(disk, path, source, StartMeta("", slot, seq, 0, __version__, make_identity(slot, seq)))
    except _NoEnvelope:
        return _write_segment(disk, path, source, StartMeta("", slot, seq, _NO_BORDER, __version__))


def _write_segment(disk: Disk, path: str, entries: Reading, start: StartMeta) -> int:
    try:
        fd = disk.create(path)
    except FileExistsError:
        raise WALError(f"{path} exists already; name a file that does not") from None
    except OSError as error:
        raise WALError(f"cannot write {path}: {error}") from error
    try:
        try:
            count = _fill_segment(disk, fd, entries, start)
            disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.sync_directory(os.path.dirname(os.path.abspath(path)))
    except (_NoEnvelope, Unreadable):
        disk.unlink(path)
        raise
    except OSError as error:
        disk.unlink(path)
        raise WALError(f"cannot write {path}: {error}") from error
    return count


def _fill_segment(disk: Disk, fd: int, entries: Reading, start: StartMeta) -> int:
    count = last = offset = size = 0
    records: int | None = 0
    identity = start.identity
    buffers: list[bytes | memoryview] = []
    for entry in entries:
        if not count:
            created = max(entry.timestamp - 1, 0) if identity else start.created
            buffers.append(FILE_HEADER + pack_start(msgspec.structs.replace(start, created=created)))
            size = len(buffers[0])
        payload: bytes | memoryview | None = entry.payload
        if identity:
            payload = with_identity(entry.payload, identity)
        if payload is None:
            raise _NoEnvelope
        buffers += (ENTRY_HEADER.pack(len(payload), entry.timestamp, crc32(payload)), payload)
        size += ENTRY_HEADER.size + len(payload)
        count += 1
        last = max(last, entry.timestamp)
        found = count_records(entry.payload)
        records = None if records is None or found is None else records + found
        if size >= _COPY_BYTES:
            disk.write(fd, buffers, offset)
            offset += size
            buffers, size = [], 0
    end = pack_end(EndMeta(count, records, offset + size, False, identity), last + 1)
    disk.write(fd, [*buffers, end], offset)
    return count
