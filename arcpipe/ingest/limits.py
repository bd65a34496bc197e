"""What bounds a worker: sizes, connections, bytes in flight, the disk, the backlog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from arcpipe.counters import Node
from arcpipe.ingest import responses

if TYPE_CHECKING:
    from arcpipe.config import Settings
    from arcpipe.ingest.protocol import Connection

# The reason that a closed gate gives for pausing a connection.
GATE_CLOSED: Final = 4

# Requests of one connection that may wait for their answers; more stay in the socket until some are answered.
MAX_PIPELINED: Final = 64

# With the log disabled clients do not wait for the disk: without this bound they would fill `server.max_inflight_mb`.
MAX_UNWRITTEN: Final = 32 << 20


class Limits(NamedTuple):
    """The settings that bound one worker; sizes in bytes, times in seconds."""

    max_body: int
    max_header: int
    max_connections: int
    max_inflight: int
    header_timeout: float
    body_timeout: float
    keep_alive: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        server = settings.server
        return cls(
            max_body=server.max_body_mb << 20,
            max_header=server.max_header_kb << 10,
            max_connections=server.max_connections,
            max_inflight=server.max_inflight_mb << 20
            if settings.wal.enabled
            else min(server.max_inflight_mb << 20, MAX_UNWRITTEN),
            header_timeout=server.header_timeout_seconds,
            body_timeout=server.body_timeout_seconds,
            keep_alive=server.keep_alive_seconds,
        )


class Admission:
    """Whether writes are taken at all: not when the disk is nearly full, nor when uploads are too far behind.

    The supervisor measures both and shares the figures; looking costs two reads of memory.
    """

    def __init__(self, settings: Settings, node: memoryview) -> None:
        self._node = node
        self._max_backlog = settings.wal.max_backlog_mb << 20
        self._min_free = settings.wal.min_free_mb << 20
        self._no_space = responses.error(
            507,
            "no_space",
            f"less than wal.min_free_mb = {settings.wal.min_free_mb} MB is free on the log's disk; nothing was written",
            b"Retry-After: 10\r\n",
        )
        self._backlog = responses.error(
            503,
            "backlog",
            f"more than wal.max_backlog_mb = {settings.wal.max_backlog_mb} MB wait to be uploaded; nothing was written",
            b"Retry-After: 10\r\n",
        )

    def refusal(self) -> bytes | None:
        """The answer to give instead of writing, or None."""
        if self._node[Node.DISK_FREE_BYTES] < self._min_free:
            return self._no_space
        if self._node[Node.BACKLOG_BYTES] > self._max_backlog:
            return self._backlog
        return None


class ReadingGate:
    """Pauses reading while more bytes wait for their commit than a worker may hold, and resumes below half of it.

    Only complete requests count, and these leave by themselves: so the gate always opens again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._paused: set[Connection] = set()

    def is_closed(self, pending_bytes: int) -> bool:
        return pending_bytes > self._limit

    def pause(self, connection: Connection) -> None:
        self._paused.add(connection)
        connection.pause_reading(GATE_CLOSED)

    def update(self, pending_bytes: int) -> None:
        """To be called when bytes have left."""
        if self._paused and pending_bytes <= self._limit // 2:
            paused, self._paused = self._paused, set()
            for connection in paused:
                connection.resume_reading(GATE_CLOSED)
