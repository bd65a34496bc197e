"""The backlog of a WAL directory: the segments that wait for the uploader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from arcpipe.counters import Counters, Worker
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentFile, WALDirectory

_ABOVE_ALL: Final = 1 << 63  # no segment has this number


class PendingSegments(NamedTuple):
    """Segments that no worker writes any more."""

    sealed: list[SegmentFile]
    being_sealed: list[SegmentFile]
    """By a thread of their worker, which a slow disk delays, or by a recovery that may still have to begin."""


def find_pending(directory: WALDirectory, counters: Counters) -> PendingSegments:
    """List the segments that wait for the uploader.

    Raises:
        OSError: the directory cannot be listed.
    """
    files = directory.segments((ACTIVE, SEALED))
    # Read after the listing: a segment that a worker leaves in between counts.
    current = [_written_by(counters.worker(slot)) for slot in range(1, counters.workers + 1)]
    sealed = [file for file in files if file.state == SEALED]
    names = {file.name for file in sealed}
    being_sealed = [
        file
        for file in files
        if file.state == ACTIVE
        and file.name not in names
        and 0 < file.name.slot <= len(current)
        and file.name.seq < current[file.name.slot - 1]
    ]
    return PendingSegments(sealed, being_sealed)


def _written_by(worker: memoryview) -> int:
    """Return the number of the segment that a worker writes; 0 before it has begun.

    It is above all others if the worker has left its last segment, and can make no other.
    """
    return worker[Worker.SEGMENT_SEQ] or (_ABOVE_ALL if worker[Worker.PID] else 0)


def total_bytes(files: Iterable[SegmentFile]) -> int:
    """Return the size of all these segments together."""
    return sum(file.size for file in files)
