"""Counters in shared memory: each slot has one writer, every process reads them all.

One anonymous mapping is made before the first fork. A counter is an aligned unsigned 64-bit integer, read and
written in one machine instruction, so nobody needs a lock and the hot path pays one store. Gauges are stored the
same way. Nothing here survives the supervisor; what must survive is on disk.
"""

from __future__ import annotations

import mmap
from typing import Final


class Worker:
    """Fields of an ingest worker's block. Copied from the worker's own state a few times a second."""

    (
        PID,
        STARTED_US,
        HEARTBEAT_US,
        CONNECTIONS,
        REQUESTS,
        WRITES_ACCEPTED,
        WRITES_REFUSED,
        RECORDS,
        BODY_BYTES,
        WAL_ENTRIES,
        WAL_RECORDS,
        WAL_BYTES,
        WAL_COMMITS,
        WAL_SYNCS,
        WAL_SYNC_US,
        WAL_ROTATIONS,
        WAL_FAILURES,
        SEGMENT_SEQ,
        SEGMENT_BYTES,
        SEGMENT_STARTED_US,
    ) = range(20)
    SIZE: Final = 20


class Uploader:
    """Fields of the uploader's block."""

    (
        PID,
        STARTED_US,
        HEARTBEAT_US,
        BATCHES,
        BATCH_SEQ,
        SEGMENTS,
        ENTRIES,
        ROWS,
        FILES,
        FILE_BYTES,
        RETRIES,
        RESCUED,
        DEAD_LETTERS,
        DAMAGED,
        LAST_UPLOAD_US,
    ) = range(15)
    SIZE: Final = 15


class Node:
    """Fields of the supervisor's block: what concerns the whole instance."""

    (
        STARTED_US,
        BACKLOG_BYTES,
        BACKLOG_SEGMENTS,
        DISK_FREE_BYTES,
        DISK_TOTAL_BYTES,
        WORKER_RESTARTS,
        UPLOADER_RESTARTS,
        DRAINING,
    ) = range(8)
    SIZE: Final = 8


class Counters:
    """The mapping and its blocks. Make it before forking.

    Blocks are memoryviews of unsigned 64-bit integers: `counters.worker(1)[Worker.RECORDS] += n`.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        size = Node.SIZE + Uploader.SIZE + workers * Worker.SIZE
        self._memory = mmap.mmap(-1, size * 8)
        self._view = memoryview(self._memory).cast("Q")
        self.node = self._view[: Node.SIZE]
        self.uploader = self._view[Node.SIZE : Node.SIZE + Uploader.SIZE]

    def worker(self, slot: int) -> memoryview:
        """The block of a worker slot, numbered from 1."""
        if not 1 <= slot <= self.workers:
            raise IndexError(f"worker slot {slot} is not between 1 and {self.workers}")
        start = Node.SIZE + Uploader.SIZE + (slot - 1) * Worker.SIZE
        return self._view[start : start + Worker.SIZE]
