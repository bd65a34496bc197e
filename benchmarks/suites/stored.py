"""WAL directories as a server leaves them, made with arcpipe's own code and without the server."""

from __future__ import annotations

import os
import time
from typing import Final

from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.group import Group
from arcpipe.wal.segment import Segment
from benchmarks.load.bodies import make_bodies

SEGMENT_BYTES: Final = 100_000_000  # about `wal.max_size_mb`
_GROUP_BYTES: Final = 1 << 20
_SLOTS: Final = 2


def make_wal(directory: WALDirectory, total_bytes: int, records_per_entry: int, sealed: bool) -> tuple[int, int]:
    """Write columnar bodies to segments of about SEGMENT_BYTES, which stay in the page cache.

    Args:
        directory: Where the segments go.
        total_bytes: Bytes of all segments.
        records_per_entry: Records of each body.
        sealed: Seal the segments, so that they wait for the uploader; otherwise leave them active, as a crash does.

    Returns:
        The number of records and of segments.
    """
    directory.make()
    now_us = time.time_ns() // 1000
    contents = [body.at(now_us) for body in make_bodies("columnar", records_per_entry, seed=1)]
    prefix = envelope_prefix(1, "default")
    last = [0] * _SLOTS  # timestamps
    records = segments = written = turn = 0
    while written < total_bytes:
        slot = segments % _SLOTS
        segments += 1
        segment = Segment.make(directory, None, slot + 1, segments, "node", above_us=last[slot], sync=False)
        timestamp = segment.created
        size = min(SEGMENT_BYTES, total_bytes - written)
        while segment.offset < size:
            group = Group(segment.identity)
            while group.size < min(_GROUP_BYTES, size - segment.offset):
                timestamp += 1
                group.add(prefix, contents[turn], records_per_entry, timestamp)
                turn = (turn + 1) % len(contents)
            segment.write(group.buffers, group.size, group.entries, group.records, timestamp)
            records += group.records
        written += segment.offset
        last[slot] = timestamp
        if sealed:
            segment.seal(0)
        else:
            segment.close()
    return records, segments


def write_back(directory: WALDirectory, cached_bytes: int | None = None) -> None:
    """Write the segments to the disk; drop all but the first `cached_bytes` from the page cache, if that is given."""
    size = 0
    for state in (ACTIVE, SEALED):
        for file in directory.segments(state):
            size += file.size
            with open(file.path, "rb") as opened:
                os.fsync(opened.fileno())
                if cached_bytes is not None and size > cached_bytes:
                    directory.disk.forget(opened.fileno())
