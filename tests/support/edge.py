"""A worker's connections in this process: the real protocol, routes and WAL, without sockets and processes.

A test feeds bytes, moves the clock and looks inside between two steps.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from arcpipe.access.reload import Access
from arcpipe.config.settings import WAL, Flush, Server, Settings, Storage
from arcpipe.counters import Counters, Node
from arcpipe.disk import Disk
from arcpipe.ingest.http.connection import Connection
from arcpipe.ingest.http.context import Surface
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.flow_control import TURN
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.router import offered
from arcpipe.ingest.http.timeouts import expire_connections
from arcpipe.ingest.http.turns import TimeBudget
from arcpipe.ingest.service import build
from arcpipe.ingest.worker import wal_options
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.group_commit import group_commit
from arcpipe.wal.writer import WALWriter
from tests.support.waiting import WAIT_SECONDS

T = TypeVar("T")

ALL_THE_TIME: Final = TimeBudget(*[math.inf] * len(TimeBudget._fields))


class Transport(asyncio.Transport):
    """Keeps what is written, and tells the connection of its end as a loop does: at the next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.written = bytearray()
        self.reads = True
        self.ended = False  # nothing can be written any more
        self.closed = False
        self.connection: Connection | None = None
        self.protocol: asyncio.BaseProtocol | None = None
        self._loop = loop

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            self._kept = protocol.get_buffer  # as uvloop keeps it, until the next one

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.ended = True
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        assert self.protocol is not None
        self.protocol.connection_lost(None)


class Peer:
    """A client: one connection, and what it was answered."""

    def __init__(self, edge: Edge, surface: Surface | None = None) -> None:
        self.transport = Transport(edge.loop)
        self.connection = self.transport.connection = Connection(edge.context, surface or edge.surface)
        self.transport.protocol = self.connection
        self._edge = edge
        self._unread = b""  # in the socket: the server has stopped reading in the middle of a piece
        edge.call(lambda: self.connection.connection_made(self.transport))
        edge.turn()

    def feed(self, data: bytes) -> bool:
        """Have the server read once, and turn until that is handled; False if it would not read now."""
        if self.transport.closed or not self.transport.reads:
            return False
        data, self._unread = self._unread + data, b""
        while data and not self.transport.closed:
            if not self.transport.reads:
                self._unread = data
                break
            data = data[self._read(data) :]
            while self.connection.paused == TURN:
                self._edge.turn()
        return True

    def _read(self, data: bytes) -> int:
        """Have the server read once, as a loop does; return how many bytes it has taken."""
        protocol = self.transport.protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            self._edge.call(lambda: self.connection.data_received(data))
            return len(data)
        room = self._edge.call(lambda: memoryview(protocol.get_buffer(-1)))
        size = min(len(room), len(data))
        assert size > 0, "a loop ends the connection if there is no room"
        room[:size] = data[:size]
        self._edge.call(lambda: protocol.buffer_updated(size))
        return size

    def half_close(self) -> None:
        protocol = self.transport.protocol
        assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)
        if not self.transport.closed and not self._edge.call(protocol.eof_received):
            self.transport.close()

    @property
    def statuses(self) -> list[int]:
        """The statuses of all answers so far; no answer of this server has such a line in its body."""
        return [int(part[:3]) for part in bytes(self.transport.written).split(b"HTTP/1.1 ")[1:]]


class Edge:
    """One worker with its WAL in a directory of its own. A context manager."""

    def __init__(
        self,
        directory: Path | None = None,
        disk: Disk | None = None,
        *,
        budget: TimeBudget = ALL_THE_TIME,
        wal_enabled: bool = True,
        flush_seconds: float = 5.0,
        **server: Any,
    ) -> None:
        """Make a worker in this process.

        Args:
            directory: of its WAL; a temporary one by default.
            disk: what the WAL does its system calls with.
            budget: ends turns; by default they take all the time that they need.
            wal_enabled: the setting.
            flush_seconds: `flush.max_age_seconds`.
            server: settings of the section.
        """
        self._own = tempfile.TemporaryDirectory() if directory is None else None
        base = Path(self._own.name) if self._own is not None else directory
        assert base is not None
        settings = Settings(
            server=Server(workers=1, **server),
            wal=WAL(enabled=wal_enabled, dir=str(base / "wal"), sync_mode="async", min_free_mb=0, max_size_mb=4),
            storage=Storage(url=f"file://{base / 'lake'}"),
            flush=Flush(max_age_seconds=flush_seconds),
        )
        self.loop = asyncio.new_event_loop()
        self.directory = WALDirectory(settings.wal.dir, disk)
        self.directory.make()
        self.directory.lock()
        node = self.directory.next_boot()
        self.counters = Counters(1)
        self.counters.node[Node.DISK_FREE_BYTES] = 1 << 50
        writer = WALWriter(self.directory, 1, wal_options(settings), node=node.node)
        limits = Limits.of(settings)
        self.service = build(
            *(settings, 1, self.counters, Access(None, 0, None, 0), limits),
            lambda committed: group_commit(writer, self.loop, committed, self._crashed, limits.max_pending),
            budget,
        )
        self.context, self.surface, self.writes = self.service.context, self.service.surface, self.service.writes
        self.commit = self.service.commit
        self.context.dated.set_time(0)  # always: two of these are compared byte by byte
        self.loop.set_exception_handler(self._note_exception)
        self.exceptions: list[dict[str, Any]] = []

    def __enter__(self) -> Edge:
        asyncio.set_event_loop(self.loop)
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()
        self.commit.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        asyncio.set_event_loop(None)
        if self._own is not None:
            self._own.cleanup()

    def _crashed(self, error: BaseException) -> None:
        self.exceptions.append({"exception": error})

    def _note_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.exceptions.append(context)

    def connect(self, surface: Surface | None = None) -> Peer:
        return Peer(self, surface)

    def paths(self, paths: str) -> Surface:
        """Make the surface of a listener that offers only "writes" or "operations"."""
        return self.context.add_surface(offered(self.surface.routes, paths))

    def call(self, callback: Callable[[], T]) -> T:
        """Call something in the loop, as a loop calls a protocol."""

        async def run() -> T:
            return callback()

        return self.loop.run_until_complete(run())

    def pass_seconds(self, seconds: float) -> None:
        """Move the clock of timeouts, and do the work of a tick."""
        self.context.now += seconds
        self.call(lambda: expire_connections(self.context))
        self.call(lambda: self.context.inflight.tick(self.context.now))
        self.turn()

    @property
    def holds_no_body(self) -> bool:
        """Whether no body is counted as arriving, and none waits."""
        inflight = self.context.inflight
        return not (inflight.arriving or inflight.waiting)

    def _connections(self) -> set[Connection]:
        return cast(set[Connection], self.context.connections)

    def _complete_requests(self) -> list[Exchange]:
        """List the whole requests of all clients that read their answers."""
        return [
            exchange
            for connection in self._connections()
            if not connection.is_unread
            for exchange in connection.exchanges
            if exchange is not connection.arriving
        ]

    def turn(self) -> None:
        """Turn the loop once."""
        self.loop.run_until_complete(asyncio.sleep(0))

    def settle(self) -> None:
        """Run the loop until nothing is being decoded, encoded, committed or answered."""
        deadline = time.monotonic() + WAIT_SECONDS

        async def wait() -> None:
            context = self.context
            while (
                self.commit.pending_bytes
                or context.decoding.held_bytes
                or context.encoding.held_bytes
                or any(one.reading.rest and not one.is_unread for one in self._connections())
                or any(exchange.response is None for exchange in self._complete_requests())
            ):
                assert time.monotonic() < deadline, "the worker does not settle"
                await asyncio.sleep(0.0002)
            await asyncio.sleep(0)

        self.loop.run_until_complete(wait())
