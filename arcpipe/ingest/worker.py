"""One forked ingest worker: its loop, its sockets, its WAL, and its way out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import uvloop

from arcpipe import descriptors
from arcpipe.allocator import keep_freed_memory
from arcpipe.child import take_sigterm
from arcpipe.clock import steady_us
from arcpipe.counters import BEGUN, LATENCY_BOUNDS_US, Counters, Histogram, Worker
from arcpipe.counters import Node as NodeBlock
from arcpipe.counters import Uploader as UploaderBlock
from arcpipe.errors import ArcpipeError
from arcpipe.ingest import service
from arcpipe.ingest.http.entrance import Entrance
from arcpipe.ingest.http.finishing import finish_greetings, finish_requests
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.linger import LINGER_SECONDS
from arcpipe.ingest.http.timeouts import expire_connections
from arcpipe.ingest.http.tls_server import TLSServer
from arcpipe.ingest.publishing import Publisher
from arcpipe.ingest.reloading import Reloads
from arcpipe.ingest.resting import Rest
from arcpipe.ingest.stand_in import StandIn
from arcpipe.units import MB
from arcpipe.wal import findings
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from arcpipe.wal.findings import LOST_RECORDS, Finding
from arcpipe.wal.group_commit import group_commit
from arcpipe.wal.writer import WALOptions, WALWriter

if TYPE_CHECKING:
    from arcpipe.access.reload import Access
    from arcpipe.config.listeners import Listener
    from arcpipe.config.settings import Settings
    from arcpipe.ingest.service import Service

log = logging.getLogger(__name__)

# Bytes of freed memory that the process keeps: a body of some MB and its columns take that. A larger body gives its own
# back.
_KEPT_MEMORY_BYTES: Final = 64 * MB
# Seconds that a thread may hold the interpreter while another one waits: loop and commit thread hand over often.
_SWITCH_INTERVAL_SECONDS: Final = 0.0002
_TICK_SECONDS: Final = 0.25
# Seconds, after `shutdown.delay_seconds`, until a worker stops if somebody else than the supervisor told it to. All
# processes get the signal at once then, and the supervisor must begin the stop before it misses a worker.
_ALONE_SECONDS: Final = 1.0


def wal_options(settings: Settings) -> WALOptions:
    """Return the settings that the WAL needs."""
    wal, flush = settings.wal, settings.flush
    return WALOptions(
        sync_mode=wal.sync_mode if wal.enabled else "off",
        async_interval_seconds=wal.async_interval_ms / 1000,
        max_size_bytes=wal.max_size_mb * MB,
        max_age_seconds=wal.max_age_seconds,
        flush_max_records=flush.max_records,
        flush_max_age_seconds=flush.max_age_seconds,
        recycle=wal.recycle,
        free_segments=wal.free_segments,
    )


def note_lost_records(directory: WALDirectory, slot: int, boot: int, lost: int) -> bool:
    """Note how many records this process has lost: with the WAL disabled, the disk may refuse answered ones at the end.

    Args:
        boot: number of the present start. In a container each start has the same pids.

    Returns:
        Whether records were lost.
    """
    if not lost:
        return False
    what = "answered while wal.enabled was false, and never written: the disk did not take them at the end"
    process = f"ingest {slot}, pid {os.getpid()} of start {boot}"
    try:
        findings.note(directory, [Finding(LOST_RECORDS, process, lost, what)])
    except (OSError, ArcpipeError) as error:
        log.error("cannot note that %d records were lost: %s; only the log tells it", lost, error)
    return True


class IngestWorker:
    """Serves its sockets until SIGTERM, then answers what is in flight, commits, seals and returns."""

    def __init__(
        self,
        settings: Settings,
        slot: int,
        listeners: Sequence[tuple[Listener, socket.socket]],
        counters: Counters,
        node: NodeIdentity,
        last_timestamp: int,
        access: Access,
    ) -> None:
        self._settings = settings
        self._slot = slot
        self._listeners = listeners
        self._counters = counters
        self._block = counters.worker(slot)
        self._node = node
        self._last_timestamp = last_timestamp
        self._access = access
        self._directory = WALDirectory(settings.wal.dir)
        self._loop_lag_us = Histogram(LATENCY_BOUNDS_US)
        self._crash: BaseException | None = None
        self._stopping = asyncio.Event()
        self._told_to_stop = False

    def run(self) -> int:
        """Serve until told to stop; return the exit code of the process."""
        keep_freed_memory(_KEPT_MEMORY_BYTES)
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        room = descriptors.room_here(self._settings.server.max_connections)
        descriptors.keep_reserve(room.reserved)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._serve(Limits.of(self._settings, room)))

    async def _serve(self, limits: Limits) -> int:
        loop = asyncio.get_running_loop()
        take_sigterm(loop, lambda: self._stop(loop))
        writer = WALWriter(
            self._directory,
            self._slot,
            wal_options(self._settings),
            node=self._node.node,
            last_timestamp=self._last_timestamp,
            wait_for_disk=True,
        )
        writer.collect_us = lambda: self._counters.uploader[UploaderBlock.COLLECT_US]
        served = service.build(
            *(self._settings, self._slot, self._counters, self._access, limits),
            lambda committed: group_commit(writer, loop, committed, self._crashed, limits.max_pending),
            show_heartbeat=self._show_heartbeat,
        )
        publisher = Publisher(self._block, served, self._loop_lag_us)
        reloads = Reloads(self._counters.node, self._access, served, self._settings.auth.tokens_file)
        entrances = [self._entrance(served, listener) for listener, _ in self._listeners]
        servers = [
            await self._listen(loop, entrance, limits, bound)
            for entrance, (_, bound) in zip(entrances, self._listeners, strict=True)
        ]
        # Whoever sees the process id sees a heartbeat, too, and the segment.
        self._block[Worker.STARTED_US] = steady_us()
        publisher.publish(reloads.loaded)
        self._block[Worker.PID] = os.getpid()
        # All that exists now stays for ever: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        ticker = loop.create_task(self._tick_for_ever(served, publisher, reloads))
        log.info("listening")
        await self._stopping.wait()
        ticker.cancel()
        if self._crash is not None:
            log.critical("the commit thread ended: %r", self._crash, exc_info=self._crash)
            return 1
        served.context.drain()
        await self._close(servers, entrances)
        await finish_requests(served.context)
        await served.commit.drain()
        served.commit.close()
        if served.access_log is not None:
            served.access_log.close()
        publisher.publish(reloads.loaded)
        if not note_lost_records(self._directory, self._slot, self._node.boot, writer.stats.lost_records):
            log.info("stopped: everything that was answered is in the WAL")
        return 0

    def _entrance(self, served: Service, listener: Listener) -> Entrance:
        tls = self._access.tls if listener.tls else None
        return Entrance(served.context, served.surface, listener, served.trusted, tls)

    async def _listen(
        self, loop: asyncio.AbstractEventLoop, entrance: Entrance, limits: Limits, bound: socket.socket
    ) -> asyncio.Server | TLSServer:
        backlog = self._settings.server.backlog
        if entrance.tls is not None:
            return TLSServer(
                *(loop, entrance.connect, bound, backlog, entrance.tls),
                *(limits.header_timeout, LINGER_SECONDS, limits.max_handshakes),
            )
        create = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
        return await create(entrance.connect, sock=bound, backlog=backlog)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Handle SIGTERM. The supervisor sends it in time; anybody else sends it to all processes at once."""
        delay = self._settings.shutdown.delay_seconds
        if self._told_to_stop or not delay or self._counters.node[NodeBlock.DRAINING] >= BEGUN:
            self._stopping.set()
        else:
            self._told_to_stop = True
            loop.call_later(delay + _ALONE_SECONDS, self._stopping.set)

    def _crashed(self, error: BaseException) -> None:
        self._crash = error
        self._stopping.set()

    @staticmethod
    async def _close(servers: Sequence[asyncio.Server | TLSServer], entrances: Sequence[Entrance]) -> None:
        """Close the listening sockets without a reset for clients that wait in their queues."""
        await asyncio.sleep(0)  # a turn of the loop accepts the clients in the queue
        for server in servers:
            server.close()
        await asyncio.sleep(0)  # another one tells the protocols of those that were accepted last
        await finish_greetings(entrances, [server for server in servers if isinstance(server, TLSServer)])

    async def _tick_for_ever(self, served: Service, publisher: Publisher, reloads: Reloads) -> None:
        context = served.context
        stand_in = StandIn(self._directory, self._counters)
        rest = Rest(context.encoding)
        while True:
            context.tick()
            rest.tick(context.now)
            stand_in.tick()
            served.admission.tick()
            expire_connections(context)
            context.inflight.tick(context.now)
            reloads.tick()
            served.writes.follow_clock()
            publisher.publish(reloads.loaded)
            due = time.monotonic() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self._loop_lag_us.observe(int(max(0.0, time.monotonic() - due) * 1e6))

    def _show_heartbeat(self) -> None:
        self._block[Worker.HEARTBEAT_US] = steady_us()
