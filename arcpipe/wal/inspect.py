"""Looking at log files by hand: what they hold, whether they are whole, what can be saved, and taking others' in.

Works on files of a running server, too: nothing here writes to the files that it reads.
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
from arcpipe.wal.verdict import Verdict

_COPY_BYTES: Final = 4 << 20
# `created` of a copy without identities, in µs: whatever its entries' timestamps are, they belong to it.
_NO_BORDER: Final = 1
# A segment of a running server may be cut or renamed while it is read. It holds still when it is looked at again.
_LOOKS: Final = 3
# Segments that were taken in from elsewhere have a slot of their own, so that no worker's names meet theirs.
REPLAY_SLOT: Final = 0


class Summary(NamedTuple):
    """Everything about a file that `arcpipe wal ls` shows. `records` is None where they cannot be counted."""

    report: ScanReport
    records: int | None
    first_timestamp: int  # µs of the first data entry; 0 without one
    problem: str  # why it cannot be read, why it is no log, or how its end is wrong; else empty


def summarize(path: str, *, count: bool = True) -> Summary:
    """Reads a file whole and tells what it holds, and in which verdict that ends."""
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
        report.verdict = Verdict.DAMAGED
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
    """Every segment of a directory in every state, oldest first."""
    files = [file for state in (ACTIVE, SEALED, RECOVERED) for file in directory.segments(state)]
    return sorted(files, key=lambda file: (file.name.created, file.name.slot, file.name.seq))


def entries_of(path: str) -> Iterator[Entry]:
    """The intact data entries of a file, in order.

    Raises:
        NotAWAL: it is no log.
        WALError: it cannot be read.
    """
    try:
        yield from SegmentScan(path)
    except OSError as error:
        raise WALError(f"{path} cannot be read: {error}") from error


def salvage(source: str, target: str) -> ScanReport:
    """Writes what is readable of a damaged file to a new one, records and timestamps as they were.

    Bad blocks are read around; the report's damage tells them.

    Raises:
        WALError: the target exists, or the source holds no intact entry.
    """
    try:
        scan = SegmentScan(source, salvage=True)
    except OSError as error:
        raise WALError(f"{source} cannot be read: {error}") from error
    # Under a segment's name the start entry says the same as the name: readers would take it for another segment's.
    parsed = parse_filename(os.path.basename(target))
    slot, seq = (parsed[0].slot, parsed[0].seq) if parsed is not None else (0, 0)
    written = _copy_segment(Disk(), target, _Reading(scan), slot, seq)
    if not written:
        os.unlink(target)
        raise WALError(f"{source} holds no intact entry; nothing was written")
    return scan.report


class Replay(NamedTuple):
    """What became of one file that was taken in."""

    source: str
    entries: int
    damaged: int


def replay(directory: WALDirectory, sources: list[str], progress: Callable[[str, int], None]) -> Iterator[Replay]:
    """Takes log files from elsewhere into a log directory, where the uploader ships them like its own.

    Entries keep their records and timestamps. Each file is taken in exactly once, whatever interrupts this: its copy is
    made complete under a name that the uploader ignores, then the source is renamed to `….wal.recovered`, and only
    then the copy gets its name; starting again finishes what was begun.

    Args:
        progress: called with a source and the bytes of it that were read since the last call.

    Raises:
        WALError: a copy could not be made: at once if it cannot be written; after all the others if its source cannot
            be read. Such a source stays as it is.
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
    """Accepts copies whose source was renamed already when a replay was interrupted; how many."""
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
    """The files of a directory that wait for being replayed, oldest first: Arc's or ours."""
    names = sorted(name for name in os.listdir(folder) if name.endswith((ACTIVE, SEALED)))
    return [os.path.join(folder, name) for name in names]


def _replay_name(source: str) -> SegmentName:
    """The same name for the same source each time, and another for every other."""
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
    """A payload that cannot name its segment."""


class _Reading:
    """A source that may be read twice; each byte of it counts once."""

    def __init__(self, scan: SegmentScan, progress: Callable[[str, int], None] = lambda source, count: None) -> None:
        self._scan = scan
        self._progress = progress
        self._at = 0

    def __iter__(self) -> Iterator[Entry]:
        try:
            for entry in self._scan:
                self._advance(entry.offset)
                yield entry
        except OSError as error:  # not to be taken for one of the file that the entries go to
            raise _Unreadable(str(error)) from error
        self._advance(self._scan.report.size)

    def _advance(self, offset: int) -> None:
        if offset > self._at:
            self._progress(self._scan.path, offset - self._at)
            self._at = offset


def _copy_segment(disk: Disk, path: str, source: _Reading, slot: int, seq: int) -> int:
    """A completed segment of a source's entries, synced; how many there were.

    It has an identity of its own, unless a payload is no envelope (Arc's are none): then the copy has none, as its
    source, and payloads are verbatim.

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
