"""Replay WAL files from elsewhere: copy them into a WAL directory, where they are uploaded like its own segments.

    finish_interrupted(directory, folder)
    for done in replay(directory, replay_sources(folder), progress): ...

The server of that directory may be running. A source is only renamed, once its copy is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from arcpipe.disk import Disk
from arcpipe.errors import NotAWAL, WALError
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, SegmentName, WALDirectory
from arcpipe.wal.format import ENTRY_HEADER, ENTRY_HEADER_SIZE, FILE_HEADER_SIZE
from arcpipe.wal.inspect import Reading, Unreadable, copy_segment
from arcpipe.wal.pool import FREE_NAME
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.recovery import archive

# Replayed segments have a slot of their own, so that their names never collide with those of a worker.
REPLAY_SLOT: Final = 0
# Ends the name of a copy that is being made: the uploader ignores it.
_INCOMING: Final = ".incoming"
# Bytes of a source's first entry that its copy's name depends on, at most.
_BEGINNING_BYTES: Final = 4096


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
        directory.disk.unlink(_incoming(directory, _former_name(source)))
        try:
            name = _replay_name(source, _beginning(directory.disk, source))
            incoming = _incoming(directory, name)
            directory.disk.unlink(incoming)
            scan = SegmentScan(source, disk=directory.disk)
            entries = copy_segment(directory.disk, incoming, Reading(scan, progress), name.slot, name.seq)
        except (NotAWAL, Unreadable, OSError) as error:
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
    waiting = {name.removesuffix(_INCOMING) for name in os.listdir(directory.path) if name.endswith(_INCOMING)}
    accepted = 0
    for source in os.listdir(folder) if waiting else ():
        if not source.endswith(RECOVERED):
            continue
        original = os.path.join(folder, source.removesuffix(RECOVERED))
        for name in _names_of_archived(original):
            if str(name) in waiting:
                _accept(directory, _incoming(directory, name))
                waiting.discard(str(name))
                accepted += 1
    return accepted


def _names_of_archived(original: str) -> list[SegmentName]:
    """List the names that a replay may have given to the copy of a source that it has archived since."""
    sources = (original + ACTIVE, original + SEALED)
    names = [_former_name(source) for source in sources]
    with contextlib.suppress(OSError):  # it was readable then: a later call finishes it
        beginning = _beginning(Disk(), original + RECOVERED)
        names += [_replay_name(source, beginning) for source in sources]
    return names


def replay_sources(folder: str) -> list[str]:
    """List the WAL files of a directory that can be replayed, oldest first: Arc's or ours.

    Raises:
        WALError: the directory is a free pool, of this node or another one. What its files hold was uploaded.
    """
    names = sorted(name for name in os.listdir(folder) if name.endswith((ACTIVE, SEALED)))
    if retired := [name for name in names if FREE_NAME.match(name)]:
        raise WALError(
            f"{os.path.join(folder, retired[0])} is a retired segment: its records were uploaded, and a replay would "
            "store them twice. Nothing was replayed; name the WAL directory itself, or move such files away"
        )
    return [os.path.join(folder, name) for name in names]


def _replay_name(source: str, beginning: bytes) -> SegmentName:
    """Make a name from a source's path and beginning: the same each time, and another one for every other source.

    The path alone would not do. The next file may come to the same path while the copy of the former one waits for its
    upload, and would take its place.
    """
    return _name_from(os.path.realpath(source).encode("utf-8", "surrogateescape") + b"\0" + beginning)


def _former_name(source: str) -> SegmentName:
    """Make the name that versions up to 0.1 gave to a source's copy, which one of them may have left unfinished."""
    return _name_from(os.path.realpath(source).encode("utf-8", "surrogateescape"))


def _name_from(data: bytes) -> SegmentName:
    number = int.from_bytes(hashlib.sha256(data).digest()[:6], "big") + 1
    return SegmentName(REPLAY_SLOT, "19700101_000000", number)


def _beginning(disk: Disk, path: str) -> bytes:
    """Read the part of a file that tells it from others and never changes: its header and its first entry.

    Raises:
        OSError: it cannot be read.
    """
    fd = disk.open_for_reading(path)
    try:
        head = disk.read(fd, FILE_HEADER_SIZE + ENTRY_HEADER_SIZE + _BEGINNING_BYTES, 0)
    finally:
        disk.close(fd)
    first = FILE_HEADER_SIZE + ENTRY_HEADER_SIZE
    length = ENTRY_HEADER.unpack_from(head, FILE_HEADER_SIZE)[0] if len(head) >= first else 0
    return head[: first + length]


def _incoming(directory: WALDirectory, name: SegmentName) -> str:
    return os.path.join(directory.path, f"{name}{_INCOMING}")


def _accept(directory: WALDirectory, incoming: str) -> None:
    target = incoming.removesuffix(_INCOMING) + SEALED
    directory.disk.rename(incoming, target)
    directory.sync()


def _archive_source(source: str) -> None:
    folder = os.path.dirname(os.path.abspath(source))
    archive(WALDirectory(folder), source)
    Disk().sync_directory(folder)
