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
from array import array
from collections.abc import Sequence
from operator import add
from typing import TYPE_CHECKING, Final

import uvloop

from arcpipe import descriptors, logs
from arcpipe.access import tokens
from arcpipe.allocator import keep_freed_memory
from arcpipe.clock import steady_us, steady_us_at
from arcpipe.counters import (
    BEGUN,
    LATENCY_BOUNDS_US,
    MAX_ROUTES,
    STATUSES,
    Counters,
    Histogram,
    Worker,
    count_statuses,
    pack_usage,
    unpack_usage,
)
from arcpipe.counters import Node as NodeBlock
from arcpipe.errors import ArcpipeError
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.endpoints.influx import InfluxEndpoints
from arcpipe.ingest.endpoints.logged_writes import LoggedWrites
from arcpipe.ingest.endpoints.ops import OpsEndpoints
from arcpipe.ingest.endpoints.write import WriteEndpoints
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.access_log import AccessLog
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.client_address import ForwardedFor, TrustedProxies
from arcpipe.ingest.http.context import IngestContext
from arcpipe.ingest.http.entrance import Entrance
from arcpipe.ingest.http.gate import Gate
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.linger import LINGER_SECONDS
from arcpipe.ingest.http.origins import protect
from arcpipe.ingest.http.request_ids import RequestIds
from arcpipe.ingest.http.router import WRITE, Router
from arcpipe.ingest.http.states import ANSWER, BODY, FRESH, HEADER, IDLE, LINGER
from arcpipe.ingest.http.tls_server import TLSServer
from arcpipe.ingest.http.tracing import NotingAuth, kinds
from arcpipe.ingest.stand_in import StandIn
from arcpipe.logs.line_writer import LineWriter
from arcpipe.wal import findings
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from arcpipe.wal.findings import LOST_RECORDS, Finding
from arcpipe.wal.group_commit import group_commit
from arcpipe.wal.writer import WALOptions, WALWriter

if TYPE_CHECKING:
    from arcpipe.access.reload import Access
    from arcpipe.config.listeners import Listener
    from arcpipe.config.settings import Settings
    from arcpipe.wal.segment import Segment

log = logging.getLogger(__name__)

# What a body of some MB and its columns take; a larger one gives back what it took.
_KEPT_MEMORY_BYTES: Final = 64 << 20
# How long a thread may hold the interpreter while the other waits: the loop and the commit thread hand over often.
_SWITCH_INTERVAL_SECONDS: Final = 0.0002
_TICK_SECONDS: Final = 0.25
# At shutdown, requests that are still arriving have this time to arrive and be answered.
_FINISH_SECONDS: Final = 5.0
# Connections that were used so lately are waited for so long at shutdown.
_BUSY_SECONDS: Final = 1.0
_LAST_WORDS_SECONDS: Final = 0.25
# A worker that was told by itself stops so long after `shutdown.delay_seconds`: where all processes were told at once,
# the supervisor says first that it is time, and takes nobody for dead.
_ALONE_SECONDS: Final = 1.0
_RELOAD_LINE_SECONDS: Final = 10.0


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
        self._block = counters.worker(slot)
        self._before = self._block.tolist()  # what earlier processes of the slot have counted
        self._loop_lag_us = Histogram(LATENCY_BOUNDS_US)
        self._node = node
        self._last_timestamp = last_timestamp
        self._node_block = counters.node
        self._auth = Auth(access.tokens) if access.tokens is not None else None
        self._tokens_loaded = access.tokens_loaded
        self._tls = access.tls
        self._tls_loaded = access.tls_loaded
        room = descriptors.room_here(settings.server.max_connections)
        self._reserved_descriptors = room.reserved
        limits = Limits.of(settings, room)
        self._context = IngestContext(limits, self._auth, self._show_life)
        server = settings.server
        self._trusted = TrustedProxies(server.trusted_proxies)
        if self._trusted and server.forwarded_header:
            self._context.forwarded = ForwardedFor(self._trusted, server.forwarded_header)
        self._reloads = self._reloads_asked = counters.node[NodeBlock.RELOADS]
        self._access_log: AccessLog | None = None
        if settings.access_log.format != "off":
            writer = LineWriter(settings.access_log.path, self._reloads)
            self._access_log = AccessLog(settings.access_log, slot, writer)
        self._gate: Gate | None = None
        if counters.meters is not None:
            self._gate = Gate(
                *(self._auth, settings.limits, counters.meters, slot, counters.workers, self._context.forwarded)
            )
        self._choose_kinds()
        self._choose_auth()
        self._admission = admission = Admission(settings, counters.node)
        self._stand_in = StandIn(WALDirectory(settings.wal.dir), counters)
        writes = WriteEndpoints if self._access_log is None else LoggedWrites
        self._writes = writes(admission, self._context.encoding, self._context.turns)
        self._writes.usage.update((name, list(usage)) for name, usage in unpack_usage(self._block))
        ops = OpsEndpoints(settings, counters, admission, slot)
        judge = self._writes.judge(None)
        table, self._context.origins = protect(
            {
                ("POST", "/write/v2/msgpack"): (self._writes.msgpack(responses.ACCEPTED), WRITE, judge),
                ("POST", "/api/v1/write/msgpack"): (self._writes.msgpack(responses.NO_CONTENT), WRITE, judge),
                **InfluxEndpoints(self._writes).routes(),
                **ops.table(),
            },
            settings,
        )
        self._context.routes = Router(table).routes
        self._entrances: list[Entrance] = []
        ops.routes = [path.decode("ascii") for path in self._context.routes]
        assert len(self._context.routes) < MAX_ROUTES
        self._next_reload_line = 0.0
        self._crash: BaseException | None = None
        self._stopping = asyncio.Event()
        self._told_to_stop = False

    def _choose_kinds(self) -> None:
        """Makes requests of the kind that knows what has to be told of them, and no more."""
        request_ids, access_log = self._settings.server.request_ids, self._access_log
        ids = RequestIds() if request_ids or access_log is not None else None
        self._context.exchange_kind, self._context.identified_kind = kinds(ids, request_ids, access_log)

    def _choose_auth(self) -> None:
        """Has requests judged by limits and tokens, as far as there are any."""
        context = self._context
        if self._gate is not None and (self._gate.is_needed or context.gate is not None):
            context.auth = context.gate = self._gate  # for good: it knows of connections that it has counted
        elif self._auth is not None and self._access_log is not None:
            context.auth = NotingAuth(self._auth)

    def run(self) -> int:
        """Serves until told to stop; the exit code of the process."""
        keep_freed_memory(_KEPT_MEMORY_BYTES)
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        descriptors.keep_reserve(self._reserved_descriptors)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._serve())

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, loop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        directory = WALDirectory(self._settings.wal.dir)
        writer = WALWriter(
            directory,
            self._slot,
            wal_options(self._settings),
            node=self._node.node,
            last_timestamp=self._last_timestamp,
            wait_for_disk=True,
        )
        commit = group_commit(writer, loop, self._committed, self._crashed)
        self._context.commit = self._writes.commit = commit
        servers = [await self._listen(loop, *one) for one in self._listeners]
        # Whoever sees the process id sees a sign of life too.
        self._block[Worker.STARTED_US] = self._block[Worker.HEARTBEAT_US] = steady_us()
        self._block[Worker.PID] = os.getpid()
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
        self._context.drain()
        await asyncio.sleep(0)  # a turn of the loop accepts who waits in the queue: closing the socket would reset them
        for server in servers:
            server.close()
        await asyncio.sleep(0)  # and another one tells the protocols of those who were accepted in the last
        await self._finish_greetings([server for server in servers if isinstance(server, TLSServer)])
        await self._finish_requests()
        await commit.drain()
        commit.close()
        if self._access_log is not None:
            self._access_log.close()
        self._publish()
        if not self._has_lost(directory):
            log.info("stopped: everything that was answered is in the WAL")
        return 0

    async def _listen(
        self, loop: asyncio.AbstractEventLoop, listener: Listener, bound: socket.socket
    ) -> asyncio.Server | TLSServer:
        tls = self._tls if listener.tls else None
        entrance = Entrance(self._context, listener, self._trusted, tls)
        self._entrances.append(entrance)
        backlog = self._settings.server.backlog
        if entrance.tls is not None:
            limits = self._context.limits
            return TLSServer(
                *(loop, entrance.connect, bound, backlog, entrance.tls),
                *(limits.header_timeout, LINGER_SECONDS, limits.max_handshakes),
            )
        create = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
        return await create(entrance.connect, sock=bound, backlog=backlog)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """At SIGTERM. The supervisor sends it when it is time; whoever sends it to all processes does so at once."""
        delay = self._settings.shutdown.delay_seconds
        if self._told_to_stop or not delay or self._node_block[NodeBlock.DRAINING] >= BEGUN:
            self._stopping.set()
        else:
            self._told_to_stop = True
            loop.call_later(delay + _ALONE_SECONDS, self._stopping.set)

    def _committed(self, waiters: list[object], error: OSError | None) -> None:
        self._writes.committed(waiters, error)  # type: ignore[arg-type]
        self._context.bytes_moved()

    def _crashed(self, error: BaseException) -> None:
        self._crash = error
        self._stopping.set()

    async def _finish_greetings(self, tls_servers: list[TLSServer]) -> None:
        """Lets connections that have just come get as far as their first request; ends those that do not."""
        last_words = time.monotonic() + _LAST_WORDS_SECONDS
        while time.monotonic() < last_words:
            if not any(server.handshakes for server in tls_servers) and not any(
                entrance.greeting for entrance in self._entrances
            ):
                break
            await asyncio.sleep(0.005)
        for entrance in self._entrances:
            entrance.close()

    async def _finish_requests(self) -> None:
        """Ends every connection with its last answer.

        Busy ones that are idle at this moment have the chance to send one more request, which is that last one: it is
        probably on its way, and would end in a reset.
        """
        context = self._context
        context.tick()
        deadline = context.now + _FINISH_SECONDS
        last_words = context.now + _LAST_WORDS_SECONDS
        busy = set()
        for connection in list(context.connections):
            if connection.state in (FRESH, IDLE) and context.now - connection.since < _BUSY_SECONDS:
                busy.add(connection)
            else:
                connection.finish()
        while time.monotonic() < last_words:
            if busy.isdisjoint(context.connections):
                break
            await asyncio.sleep(0.005)
        for connection in busy & context.connections:
            connection.finish()
        while time.monotonic() < deadline:
            if all(connection.is_finished for connection in self._context.connections):
                return
            context.tick()
            await asyncio.sleep(0.01)

    async def _tick_for_ever(self) -> None:
        while True:
            self._context.tick()
            self._stand_in.tick()
            self._admission.tick()
            self._expire_connections()
            self._context.inflight.tick(self._context.now)
            self._reload()
            self._writes.follow_clock()
            self._publish()
            due = time.monotonic() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self._loop_lag_us.observe(int(max(0.0, time.monotonic() - due) * 1e6))

    def _reload(self) -> None:
        """Takes what the supervisor has read anew and found good."""
        node = self._node_block
        logs.set_level(node[NodeBlock.LOG_LEVEL])
        logs.flush()
        if self._auth is not None:
            loaded = node[NodeBlock.TOKENS_LOADED]
            if loaded != self._tokens_loaded:
                try:
                    self._auth.replace(tokens.read(self._settings.auth.tokens_file))
                except ArcpipeError as error:  # it has changed again since the supervisor read it
                    self._report_failed_reload("tokens file", error)
                else:
                    self._tokens_loaded = loaded
                    if self._gate is not None:
                        self._gate.reload()
                        self._choose_auth()
            self._auth.tick(self._context.now)
        if self._tls is not None:
            loaded = node[NodeBlock.TLS_LOADED]
            if loaded != self._tls_loaded:
                try:
                    self._tls.reload()
                except ArcpipeError as error:
                    self._report_failed_reload("certificate", error)
                else:
                    self._tls_loaded = loaded

        self._tick_access()

    def _tick_access(self) -> None:
        """Opens the access log again where a reload was asked for, and looks after it and the limits."""
        reloads = self._node_block[NodeBlock.RELOADS]
        access_log = self._access_log
        if access_log is None:
            self._reloads = reloads
        else:
            if reloads != self._reloads_asked:
                self._reloads_asked = reloads
                access_log.flush()
                access_log.writer.reopen(reloads)
            self._reloads = access_log.writer.reopened
            access_log.tick(self._context.now)
        if self._context.gate is not None:
            self._context.gate.tick()

    def _report_failed_reload(self, what: str, error: ArcpipeError) -> None:
        if self._context.now >= self._next_reload_line:
            self._next_reload_line = self._context.now + _RELOAD_LINE_SECONDS
            log.error("trying on to reload; the former %s stays in force until then: %s", what, error)

    def _expire_connections(self) -> None:
        context = self._context
        limits = context.limits
        patience = {
            FRESH: limits.header_timeout,
            IDLE: limits.keep_alive,
            HEADER: limits.header_timeout,
            BODY: min(limits.body_timeout, limits.max_body_seconds),
            ANSWER: limits.keep_alive,  # of a client that does not read
            LINGER: LINGER_SECONDS,
        }
        now = context.now
        expired = [
            connection
            for connections in (context.connections, context.turned_away)
            for connection in connections
            if now - connection.since > patience[connection.state]
            # The worker's own time to answer is not the client's, unless that does not read what it is answered.
            and (
                (connection.state != ANSWER and not (connection.state == LINGER and connection.exchanges))
                or connection.is_unread
            )
        ]
        for connection in expired:
            connection.expire()

    def _show_life(self) -> None:
        self._block[Worker.HEARTBEAT_US] = steady_us()

    def _publish(self) -> None:
        """Copies what this process has counted into shared memory, on top of what its predecessors had."""
        context, writes = self._context, self._writes
        stats = context.commit.writer.stats
        usage = list(writes.usage.values())
        self._show_life()
        self._block[Worker.CONNECTIONS] = len(context.connections)
        self._block[Worker.MAX_CONNECTIONS] = context.limits.max_connections
        self._publish_segment(context.commit.writer.current)
        if stats.last_failure_us:
            self._block[Worker.LAST_FAILURE_US] = stats.last_failure_us
        self._block[Worker.LOG_LEVEL] = logging.root.level
        self._block[Worker.TOKENS_LOADED] = self._tokens_loaded
        self._block[Worker.TLS_LOADED] = self._tls_loaded
        self._block[Worker.RELOADS_TAKEN] = self._reloads
        if self._access_log is not None:
            self._add(Worker.ACCESS_LINES, [self._access_log.writer.lines, self._access_log.writer.dropped])
        if self._gate is not None:
            self._add(Worker.LIMITS_UNTRACKED, [self._gate.untracked])
            self._add(Worker.LIMITED, self._gate.limited)
        self._add(Worker.LOST_RECORDS, [stats.lost_records])
        self._add(Worker.REQUESTS, [context.requests, writes.accepted, writes.refused])
        self._block[Worker.RECORDS] = sum(words[1] for words in usage)
        self._block[Worker.BODY_BYTES] = sum(words[2] for words in usage)
        self._add(
            Worker.WAL_ENTRIES,
            [*(stats.entries, stats.records, stats.bytes, stats.commits, stats.syncs, stats.rotations, stats.failures)],
        )
        self._add(Worker.ACK_US, writes.ack_us.values())
        self._add(Worker.SYNC_US, stats.sync_us.values())
        self._add(Worker.LOOP_LAG_US, self._loop_lag_us.values())
        self._add(Worker.GROUP_ENTRIES, stats.group_entries.values())
        self._add(Worker.REFUSED, list(context.refused.values()))
        for number, answered in enumerate((*(route.answered for route in context.routes.values()), context.unrouted)):
            if answered:
                self._add(Worker.ROUTES + number * len(STATUSES), count_statuses(answered))
        words = pack_usage(writes.usage)
        self._block[Worker.DATABASES : Worker.DATABASES + len(words)] = array("Q", words)

    def _has_lost(self, directory: WALDirectory) -> bool:
        """Whether, with the WAL disabled, records that were answered could never be written. That is noted then."""
        lost = self._context.commit.writer.stats.lost_records
        if not lost:
            return False
        what = "answered while wal.enabled was false, and never written: the disk did not take them at the end"
        # In a container each start has the same pids.
        process = f"ingest {self._slot}, pid {os.getpid()} of start {self._node.boot}"
        try:
            findings.note(directory, [Finding(LOST_RECORDS, process, lost, what)])
        except (OSError, ArcpipeError) as error:
            log.error("cannot note that %d records were lost: %s; only the log tells it", lost, error)
        return True

    def _publish_segment(self, segment: Segment | None) -> None:
        """Show the segment that is being written, or zeros: the disk lets none be made."""
        block = self._block
        seq = segment.name.seq if segment is not None else 0
        if block[Worker.SEGMENT_SEQ] != seq:
            block[Worker.SEGMENT_FIRST_US] = 0  # whoever looks now shall not take it for that of the next one
        block[Worker.SEGMENT_SEQ] = seq
        block[Worker.SEGMENT_BYTES] = segment.offset if segment is not None else 0
        block[Worker.SEGMENT_CREATED_US] = segment.created if segment is not None else 0
        block[Worker.SEGMENT_ENTRIES] = segment.entries if segment is not None else 0
        started_at = segment.started_at if segment is not None else 0.0
        block[Worker.SEGMENT_FIRST_US] = steady_us_at(started_at) if started_at else 0

    def _add(self, start: int, values: list[int]) -> None:
        end = start + len(values)
        self._block[start:end] = array("Q", map(add, self._before[start:end], values))
