"""One forked ingest worker: its loop, its socket, its log, and its way out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

import uvloop

from arcpipe.counters import Counters, Worker
from arcpipe.ingest import responses
from arcpipe.ingest.limits import Admission, Limits, ReadingGate
from arcpipe.ingest.ops import OpsEndpoints
from arcpipe.ingest.protocol import ANSWER, BODY, HEADER, IDLE, LINGER, LINGER_SECONDS, Connection
from arcpipe.ingest.router import Route, Router
from arcpipe.ingest.write import WriteEndpoints
from arcpipe.wal.directory import Node as NodeIdentity
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.writer import GroupCommit, WALOptions, WALWriter

if TYPE_CHECKING:
    from arcpipe.config import Settings

log = logging.getLogger(__name__)

# How long a thread may hold the interpreter while the other waits: the loop and the commit thread hand over often.
_SWITCH_INTERVAL_SECONDS: Final = 0.0002
_TICK_SECONDS: Final = 0.25
# At shutdown, requests that are still arriving get so long to arrive and be answered.
_FINISH_SECONDS: Final = 5.0


class IngestContext:
    """What the connections of a worker share."""

    commit: GroupCommit
    routes: dict[bytes, Route]

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.gate = ReadingGate(limits.max_inflight)
        self.connections: set[Connection] = set()
        self.now = time.monotonic()  # as of the last tick: fine enough for timeouts of seconds
        self.next_bug_line = 0.0
        self.requests = 0
        self.draining = False


def wal_options(settings: Settings) -> WALOptions:
    """What the log needs to know of the settings."""
    wal, flush = settings.wal, settings.flush
    return WALOptions(
        sync_mode=wal.sync_mode if wal.enabled else "off",
        async_interval_seconds=wal.async_interval_ms / 1000,
        max_size_bytes=wal.max_size_mb << 20,
        max_age_seconds=wal.max_age_seconds,
        flush_max_records=flush.max_records,
        flush_max_age_seconds=flush.max_age_seconds,
        recycle=wal.recycle,
        free_segments=wal.free_segments,
    )


class IngestWorker:
    """Serves one socket until SIGTERM, then answers what is in flight, commits, seals and returns."""

    def __init__(
        self,
        settings: Settings,
        slot: int,
        listener: socket.socket,
        counters: Counters,
        node: NodeIdentity,
        last_timestamp: int,
    ) -> None:
        self._settings = settings
        self._slot = slot
        self._listener = listener
        self._block = counters.worker(slot)
        self._node = node
        self._last_timestamp = last_timestamp
        self._context = IngestContext(Limits.of(settings))
        admission = Admission(settings, counters.node)
        self._writes = WriteEndpoints(admission)
        ops = OpsEndpoints(counters, admission)
        self._context.routes = Router(
            {
                ("POST", "/write/v2/msgpack"): self._writes.msgpack(responses.ACCEPTED),
                ("POST", "/api/v1/write/msgpack"): self._writes.msgpack(responses.NO_CONTENT),
                ("GET", "/health"): ops.health,
                ("GET", "/ready"): ops.ready,
            }
        ).routes
        self._crash: BaseException | None = None
        self._stopping = asyncio.Event()

    def run(self) -> int:
        """Serves until told to stop; the exit code of the process."""
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._serve())

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        directory = WALDirectory(self._settings.wal.dir)
        writer = WALWriter(
            directory,
            self._slot,
            wal_options(self._settings),
            node=self._node.node,
            last_timestamp=self._last_timestamp,
        )
        commit = GroupCommit(writer, loop, self._committed, self._crashed)
        self._context.commit = self._writes.commit = commit
        server = await loop.create_server(
            lambda: Connection(self._context), sock=self._listener, backlog=self._settings.server.backlog
        )
        self._block[Worker.PID] = os.getpid()
        self._block[Worker.STARTED_US] = time.time_ns() // 1000
        # What was imported and made so far stays for ever: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        ticker = loop.create_task(self._tick_for_ever())
        log.info("listening")
        await self._stopping.wait()
        ticker.cancel()
        if self._crash is not None:
            log.critical("the commit thread ended: %r", self._crash, exc_info=self._crash)
            return 1
        self._context.draining = True
        server.close()
        await self._finish_requests()
        await commit.drain()
        commit.close()
        self._copy_counters()
        log.info("stopped: everything that was answered is in the log")
        return 0

    def _committed(self, waiters: list[object], error: OSError | None) -> None:
        self._writes.committed(waiters, error)  # type: ignore[arg-type]
        self._context.gate.update(self._context.commit.pending_bytes)

    def _crashed(self, error: BaseException) -> None:
        self._crash = error
        self._stopping.set()

    async def _finish_requests(self) -> None:
        """Ends idle connections now and the others with their last answer."""
        deadline = time.monotonic() + _FINISH_SECONDS
        for connection in list(self._context.connections):
            connection.finish()
        while time.monotonic() < deadline:
            if all(connection.state in (IDLE, LINGER) for connection in self._context.connections):
                return
            await asyncio.sleep(0.01)

    async def _tick_for_ever(self) -> None:
        while True:
            self._context.now = time.monotonic()
            self._expire_connections()
            self._copy_counters()
            await asyncio.sleep(_TICK_SECONDS)

    def _expire_connections(self) -> None:
        context = self._context
        limits = context.limits
        patience = {
            IDLE: limits.keep_alive,
            HEADER: limits.header_timeout,
            BODY: limits.body_timeout,
            LINGER: LINGER_SECONDS,
        }
        now = context.now
        expired = [
            connection
            for connection in context.connections
            if connection.state != ANSWER
            and now - connection.since > patience[connection.state]
            and not (connection.state == LINGER and connection.exchanges)
        ]
        for connection in expired:
            connection.expire()

    def _copy_counters(self) -> None:
        block, writes, stats = self._block, self._writes, self._context.commit.writer.stats
        segment = self._context.commit.writer.segment
        block[Worker.HEARTBEAT_US] = time.time_ns() // 1000
        block[Worker.CONNECTIONS] = len(self._context.connections)
        block[Worker.REQUESTS] = self._context.requests
        block[Worker.WRITES_ACCEPTED] = writes.accepted
        block[Worker.WRITES_REFUSED] = writes.refused
        block[Worker.RECORDS] = writes.records
        block[Worker.BODY_BYTES] = writes.body_bytes
        block[Worker.WAL_ENTRIES] = stats.entries
        block[Worker.WAL_RECORDS] = stats.records
        block[Worker.WAL_BYTES] = stats.bytes
        block[Worker.WAL_COMMITS] = stats.commits
        block[Worker.WAL_SYNCS] = stats.syncs
        block[Worker.WAL_SYNC_US] = int(stats.sync_seconds * 1e6)
        block[Worker.WAL_ROTATIONS] = stats.rotations
        block[Worker.WAL_FAILURES] = stats.failures
        block[Worker.SEGMENT_SEQ] = segment.name.seq
        block[Worker.SEGMENT_BYTES] = segment.offset
        block[Worker.SEGMENT_STARTED_US] = segment.created
