"""Publishing: copies a worker's counts into the shared memory that status and metrics read."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from arcpipe.clock import steady_us, steady_us_at
from arcpipe.counters import STATUSES, Histogram, Worker, count_statuses, pack_usage

if TYPE_CHECKING:
    from arcpipe.ingest.service import Service
    from arcpipe.wal.segment import Segment


class Loaded(NamedTuple):
    """The readings that a worker goes by, as the supervisor has numbered them."""

    tokens: int
    tls: int
    reloads: int


class Publisher:
    """Publishes the counts of one process on top of those of its predecessors in the slot."""

    def __init__(self, block: memoryview, service: Service, loop_lag_us: Histogram) -> None:
        self._block = block
        self._before = block.tolist()  # counts of earlier processes of the slot
        self._service = service
        self._loop_lag_us = loop_lag_us

    def publish(self, loaded: Loaded) -> None:
        """Copy all counts. Call it a few times a second."""
        block, service = self._block, self._service
        context, writer = service.context, service.commit.writer
        block[Worker.HEARTBEAT_US] = steady_us()
        block[Worker.CONNECTIONS] = len(context.connections)
        block[Worker.MAX_CONNECTIONS] = context.limits.max_connections
        self._publish_segment(writer.current)
        if writer.stats.last_failure_us:
            block[Worker.LAST_FAILURE_US] = writer.stats.last_failure_us
        block[Worker.LOG_LEVEL] = logging.root.level
        block[Worker.TOKENS_LOADED] = loaded.tokens
        block[Worker.TLS_LOADED] = loaded.tls
        block[Worker.RELOADS_TAKEN] = loaded.reloads
        if service.access_log is not None:
            lines = service.access_log.writer
            self._add(Worker.ACCESS_LINES, [lines.lines, lines.dropped])
        gate = service.judges.gate
        if gate is not None:
            self._add(Worker.LIMITS_UNTRACKED, [gate.untracked])
            self._add(Worker.LIMITED, gate.limited)
        self._add(Worker.LOOP_LAG_US, self._loop_lag_us.values())
        self._add(Worker.REFUSED, list(context.refused.values()))
        self._publish_wal()
        self._publish_writes()
        self._publish_routes()

    def _publish_wal(self) -> None:
        stats = self._service.commit.writer.stats
        self._add(Worker.LOST_RECORDS, [stats.lost_records])
        self._add(
            Worker.WAL_ENTRIES,
            [stats.entries, stats.records, stats.bytes, stats.commits, stats.syncs, stats.rotations, stats.failures],
        )
        self._add(Worker.SYNC_US, stats.sync_us.values())
        self._add(Worker.GROUP_ENTRIES, stats.group_entries.values())

    def _publish_writes(self) -> None:
        block, writes = self._block, self._service.writes
        usage = list(writes.usage.values())
        self._add(Worker.REQUESTS, [self._service.context.requests, writes.accepted, writes.refused])
        self._add(Worker.KEYED_WRITES, [writes.keyed, writes.replayed, writes.other_bodies])
        block[Worker.RECORDS] = sum(words[1] for words in usage)
        block[Worker.BODY_BYTES] = sum(words[2] for words in usage)
        self._add(Worker.ACK_US, writes.ack_us.values())
        words = pack_usage(writes.usage)
        block[Worker.DATABASES : Worker.DATABASES + len(words)] = array("Q", words)

    def _publish_routes(self) -> None:
        service = self._service
        by_route = [route.answered for route in service.surface.routes.values()]
        for number, answered in enumerate((*by_route, service.context.unrouted)):
            if answered:
                self._add(Worker.ROUTES + number * len(STATUSES), count_statuses(answered))

    def _publish_segment(self, segment: Segment | None) -> None:
        """Show the segment that the worker writes, or zeros: the disk lets it make none."""
        block = self._block
        seq = segment.name.seq if segment is not None else 0
        if block[Worker.SEGMENT_SEQ] != seq:
            block[Worker.SEGMENT_FIRST_US] = 0  # a reader at this moment must not take it for the next segment's
        block[Worker.SEGMENT_SEQ] = seq
        block[Worker.SEGMENT_BYTES] = segment.offset if segment is not None else 0
        block[Worker.SEGMENT_CREATED_US] = segment.created if segment is not None else 0
        block[Worker.SEGMENT_ENTRIES] = segment.entries if segment is not None else 0
        started_at = segment.started_at if segment is not None else 0.0
        block[Worker.SEGMENT_FIRST_US] = steady_us_at(started_at) if started_at else 0

    def _add(self, start: int, values: Sequence[int]) -> None:
        end = start + len(values)
        self._block[start:end] = array("Q", map(add, self._before[start:end], values))
