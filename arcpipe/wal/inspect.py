"""Looking at log files by hand: what they hold, whether they are whole, what can be saved, and taking others' in.

Works on files of a running server, too: nothing here writes to the files that it reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

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
    pack_end,
    pack_start,
)
from arcpipe.wal.reader import Entry, ScanReport, SegmentScan, count_records
from arcpipe.wal.recovery import archive

_COPY_BYTES: Final = 4 << 20
# `created` of a copy, in µs: whatever its entries' timestamps are, they belong to it.
_NO_BORDER: Final = 1
# Segments that were taken in from elsewhere have a slot of their own, so that no worker's names meet theirs.
REPLAY_SLOT: Final = 0


class Summary(NamedTuple):
    """A segment as `arcpipe wal ls` shows it. `records` is None where an entry's records cannot be counted."""

    file: SegmentFile
    report: ScanReport
    records: int | None
    first_timestamp: int  # µs of the first data entry; 0 without one
    problem: str  # why it cannot be read at all, or empty


def summarize(file: SegmentFile) -> Summary:
    """Reads a segment whole and tells what it holds."""
    try:
        scan = SegmentScan(file.path)
    except (NotAWAL, OSError) as error:
        return Summary(file, ScanReport(file.size), None, 0, str(error))
    records: int | None = 0
    first = 0
    for entry in scan:
        first = first or entry.timestamp
        found = count_records(entry.payload)
        records = None if records is None or found is None else records + found
    return Summary(file, scan.report, records, first, "")


def all_segments(directory: WALDirectory) -> list[SegmentFile]:
    """Every segment of a directory in every state, oldest first."""
    files = [file for state in (ACTIVE, SEALED, RECOVERED) for file in directory.segments(state)]
    return sorted(files, key=lambda file: (file.name.created, file.name.slot, file.name.seq))


def entries_of(path: str) -> Iterator[Entry]:
    """The intact data entries of a file, in order."""
    yield from SegmentScan(path)


def salvage(source: str, target: str) -> ScanReport:
    """Writes what is readable of a damaged file to a new one, entries and timestamps as they were.

    Raises:
        WALError: the target exists, or the source holds no intact entry.
    """
    scan = SegmentScan(source, salvage=True)
    # Under a segment's name the start entry says the same as the name: readers would take it for another segment's.
    parsed = parse_filename(os.path.basename(target))
    slot, seq = (parsed[0].slot, parsed[0].seq) if parsed is not None else (0, 0)
    written = _write_segment(Disk(), target, scan, StartMeta("", slot, seq, _NO_BORDER, __version__))
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

    Entries keep their bytes and timestamps. Each file is taken in exactly once, whatever interrupts this: its copy is
    made complete under a name that the uploader ignores, then the source is renamed to `….wal.recovered`, and only
    then the copy gets its name; starting again finishes what was begun.

    Args:
        progress: called with a source and the bytes of it that were read since the last call.

    Raises:
        WALError: a copy could not be made.
    """
    directory.make()
    for source in sources:
        name = _replay_name(source)
        incoming = os.path.join(directory.path, f"{name}.incoming")
        directory.disk.unlink(incoming)
        scan = SegmentScan(source)
        start = StartMeta("", name.slot, name.seq, _NO_BORDER, __version__)
        read = _counting(scan, source, progress)
        entries = _write_segment(directory.disk, incoming, read, start)
        directory.sync()
        if not entries:
            directory.disk.unlink(incoming)
        _archive_source(source)
        if entries:
            _accept(directory, incoming)
        yield Replay(source, entries, len(scan.report.damage))


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


def _counting(scan: SegmentScan, source: str, progress: Callable[[str, int], None]) -> Iterator[Entry]:
    at = 0
    for entry in scan:
        progress(source, entry.offset - at)
        at = entry.offset
        yield entry
    progress(source, scan.report.size - at)


def _write_segment(
    disk: Disk,
    path: str,
    entries: Iterator[Entry] | SegmentScan,
    start: StartMeta,
) -> int:
    """A completed segment of these entries, verbatim, synced; how many there were."""
    try:
        fd = disk.create(path)
    except FileExistsError:
        raise WALError(f"{path} exists already; name a file that does not") from None
    count = last = 0
    records: int | None = 0
    try:
        buffers: list[bytes | memoryview] = []
        offset = size = 0
        for entry in entries:
            if not count:
                buffers.append(FILE_HEADER + pack_start(start))
                size = len(buffers[0])
            payload = entry.payload
            buffers += (ENTRY_HEADER.pack(len(payload), entry.timestamp, crc32(payload)), payload)
            size += ENTRY_HEADER.size + len(payload)
            count += 1
            last = max(last, entry.timestamp)
            found = count_records(payload)
            records = None if records is None or found is None else records + found
            if size >= _COPY_BYTES:
                disk.write(fd, buffers, offset)
                offset += size
                buffers, size = [], 0
        end = pack_end(EndMeta(count, records, offset + size), last + 1)
        disk.write(fd, [*buffers, end], offset)
        disk.fsync(fd)
    except OSError as error:
        disk.unlink(path)
        raise WALError(f"cannot write {path}: {error}") from error
    finally:
        disk.close(fd)
    disk.sync_directory(os.path.dirname(os.path.abspath(path)))
    return count
