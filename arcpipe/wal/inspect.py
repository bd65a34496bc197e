"""Inspect WAL files by hand: list and verify them, salvage intact entries, and replay files from elsewhere.

Works on files of a running server, too: nothing here writes to a file that it reads.
"""

from __future__ import annotations

import errno
import hashlib
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
    SegmentName,
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
from arcpipe.wal.recovery import archive
from arcpipe.wal.report import end_problem
from arcpipe.wal.verdict import ScanVerdict

_COPY_BYTES: Final = 4 * MB  # bytes per write of a copy
# µs: `created` of a copy without identities. So low that no entry of it counts as stale.
_NO_BORDER: Final = 1
# Tries to read a file: a segment of a running server may be cut or renamed meanwhile, but hardly three times.
_LOOKS: Final = 3
# Replayed segments have a slot of their own, so that their names never collide with those of a worker.
REPLAY_SLOT: Final = 0


class Summary(NamedTuple):
    """Everything that `arcpipe wal ls` shows of a file. `records` is None if they cannot be counted."""

    report: ScanReport
    records: int | None
    first_timestamp: int  # µs of the first data entry; 0 without one
    problem: str  # why it cannot be read, why it is not a WAL file, or how its end is wrong; else empty


def summarize(path: str, *, count: bool = True) -> Summary:
    """Read a whole file, and return its counts and its verdict."""
    for look in range(1, _LOOKS + 1):
        try:
            return _summarize(path, count)
        except OSError as error:
            problem = error
            if look == _LOOKS or error.errno != errno.EIO:
                break
    size = os.path.getsize(path) if os.path.exists(path) else 0
    return Summary(ScanReport(size), None, 0, str(problem))


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
        WALError: the target exists, or the source holds no intact entry.
    """
    try:
        scan = SegmentScan(source, salvage=True)
    except OSError as error:
        raise WALError(f"{source} cannot be read: {error}") from error
    # If the target has a segment's name, its start entry must agree: else readers take it for another segment's.
    parsed = parse_filename(os.path.basename(target))
    slot, seq = (parsed[0].slot, parsed[0].seq) if parsed is not None else (0, 0)
    written = _copy_segment(Disk(), target, _Reading(scan), slot, seq)
    if not written:
        os.unlink(target)
        raise WALError(f"{source} holds no intact entry; nothing was written")
    return scan.report


class Replay(NamedTuple):
    """The result of replaying one file."""

    source: str
    entries: int
    damaged: int


def replay(directory: WALDirectory, sources: list[str], progress: Callable[[str, int], None]) -> Iterator[Replay]:
    """Copy WAL files from elsewhere into a WAL directory, where they are uploaded like its own segments.

    Entries keep their records and timestamps. Each file is taken in exactly once, whatever interrupts this. Its copy is
    completed under a name that the uploader ignores. Then the source is renamed to `….wal.recovered`, and only then
    the copy gets its final name. `finish_interrupted` completes what an interrupted call began.

    Args:
        progress: called with a source and the bytes of it that were read since the last call.

    Raises:
        WALError: a copy cannot be written (at once), or a source cannot be read (after all others; that source stays
            as it is).
    """
    directory.make()
    unreadable: list[str] = []
    for source in sources:
        name = _replay_name(source)
        incoming = os.path.join(directory.path, f"{name}.incoming")
        directory.disk.unlink(incoming)
        try:
            scan = SegmentScan(source, disk=directory.disk)
            entries = _copy_segment(directory.disk, incoming, _Reading(scan, progress), name.slot, name.seq)
        except (NotAWAL, _Unreadable, OSError) as error:
            unreadable.append(str(error) if isinstance(error, NotAWAL) else f"{source} cannot be read: {error}")
            continue
        directory.sync()
        if not entries:
            directory.disk.unlink(incoming)
        _archive_source(source)
        if entries:
            _accept(directory, incoming)
        yield Replay(source, entries, len(scan.report.damage))
    if unreadable:
        raise WALError(f"{'; '.join(unreadable)}. It stays where it is; `arcpipe wal salvage` saves what is readable.")


def finish_interrupted(directory: WALDirectory, folder: str) -> int:
    """Accept the copies whose source was renamed before a replay was interrupted. Return their number."""
    if not os.path.isdir(directory.path):
        return 0
    waiting = {name.removesuffix(".incoming") for name in os.listdir(directory.path) if name.endswith(".incoming")}
    accepted = 0
    for source in os.listdir(folder):
        if not source.endswith(RECOVERED):
            continue
        original = os.path.join(folder, source.removesuffix(RECOVERED))
        for suffix in (ACTIVE, SEALED):
            name = str(_replay_name(original + suffix))
            if name in waiting:
                _accept(directory, os.path.join(directory.path, f"{name}.incoming"))
                accepted += 1
    return accepted


def replay_sources(folder: str) -> list[str]:
    """List the WAL files of a directory that can be replayed, oldest first: Arc's or ours."""
    names = sorted(name for name in os.listdir(folder) if name.endswith((ACTIVE, SEALED)))
    return [os.path.join(folder, name) for name in names]


def _replay_name(source: str) -> SegmentName:
    """Make a name from a source's path: the same each time, and another one for every other source."""
    digest = hashlib.sha256(os.path.realpath(source).encode("utf-8", "surrogateescape")).digest()
    return SegmentName(REPLAY_SLOT, "19700101_000000", int.from_bytes(digest[:6], "big") + 1)


def _accept(directory: WALDirectory, incoming: str) -> None:
    target = incoming.removesuffix(".incoming") + SEALED
    directory.disk.rename(incoming, target)
    directory.sync()


def _archive_source(source: str) -> None:
    folder = os.path.dirname(os.path.abspath(source))
    archive(WALDirectory(folder), source)
    Disk().sync_directory(folder)


class _Unreadable(Exception):
    """A source could not be read to its end."""


class _NoEnvelope(Exception):
    """A payload cannot carry an identity."""


class _Reading:
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
            raise _Unreadable(str(error)) from error
        self._advance(self._scan.report.size)

    def _advance(self, offset: int) -> None:
        if offset > self._at:
            self._progress(self._scan.path, offset - self._at)
            self._at = offset


def _copy_segment(disk: Disk, path: str, source: _Reading, slot: int, seq: int) -> int:
    """Write a whole segment of a source's entries, synced, and return their number.

    The copy gets an identity of its own. But if a payload is not an envelope, as in Arc's files, the copy has no
    identity, like its source, and its payloads are verbatim.

    Raises:
        WALError: it cannot be written, or the path is taken.
        _Unreadable: the source cannot be read to its end; there is no copy.
    """
    try:
        return _write_segment(disk, path, source, StartMeta("", slot, seq, 0, __version__, make_identity(slot, seq)))
    except _NoEnvelope:
        return _write_segment(disk, path, source, StartMeta("", slot, seq, _NO_BORDER, __version__))


def _write_segment(disk: Disk, path: str, entries: _Reading, start: StartMeta) -> int:
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
    except (_NoEnvelope, _Unreadable):
        disk.unlink(path)
        raise
    except OSError as error:
        disk.unlink(path)
        raise WALError(f"cannot write {path}: {error}") from error
    return count


def _fill_segment(disk: Disk, fd: int, entries: _Reading, start: StartMeta) -> int:
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
