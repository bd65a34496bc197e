"""What a request costs a worker, against HTTP alone: the same requests to real servers, which take turns.

Each server has one worker and one connection. A turn is some groups of pipelined requests. Its cost is the CPU time of
the worker since the end of its last turn, so that what it does after its answers counts too.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.guard.baseline import GuardFailed, Pair
from benchmarks.load.bodies import Body, make_bodies
from benchmarks.system.children import end_processes, spawn
from benchmarks.system.server import Server

REFERENCE: Final = "HTTP alone"
# Bytes of a turn's bodies, and the most requests of a turn: some 10 ms of a worker.
_TURN_BYTES: Final = 6_000_000
_TURN_REQUESTS: Final = 2048
# Requests and bytes that are sent before their answers are read.
_PIPELINED: Final = 32
_PIPELINED_BYTES: Final = 2_000_000
_ANSWER_END: Final = b"\r\n\r\n"
_PATIENCE_SECONDS: Final = 60.0


class Case(NamedTuple):
    """Requests of one format to a server with these settings."""

    name: str
    format: str
    records: int
    settings: Mapping[str, str]


_FDATASYNC: Final = {"wal.sync_mode": "fdatasync"}

CASES: Final = (
    Case("columns, 1000 records", "columnar", 1000, _FDATASYNC),
    Case("columns, 1000 records, async", "columnar", 1000, {"wal.sync_mode": "async"}),
    Case("columns, 1000 records, WAL off", "columnar", 1000, {"wal.enabled": "false"}),
    Case("columns, 1 record", "columnar", 1, _FDATASYNC),
    Case("rows, 1000 records", "rows", 1000, _FDATASYNC),
    Case("line protocol, 1000 lines", "line protocol", 1000, _FDATASYNC),
    Case("telegraf, 1000 lines", "telegraf", 1000, _FDATASYNC),
    Case("arrow, 1000 rows", "arrow", 1000, _FDATASYNC),
    Case("remote write, 1000 samples", "remote write", 1000, _FDATASYNC),
    Case("otlp logs, 1000 records", "otlp logs", 1000, _FDATASYNC),
)


async def measure(cases: Sequence[Case], directory: Path, rounds: int) -> dict[str, list[Pair]]:
    """Return the costs of each case, in µs per request, round by round.

    Raises:
        GuardFailed: A server did not take a request.
        ServerFailed: A server did not start.
    """
    async with AsyncExitStack() as stack:
        bare = _Worker(*await stack.enter_async_context(_bare_server()))
        workers = {}
        for settings in {tuple(sorted(case.settings.items())) for case in cases}:
            folder = Path(tempfile.mkdtemp(prefix="server-", dir=directory))
            fixed = {"server.port": "0", "server.workers": "1", "flush.max_age_seconds": "3600"}
            server = await stack.enter_async_context(Server(folder, {**fixed, **dict(settings)}))
            pid = next(pid for pid, use in server.usage().items() if use.name.startswith("ingest"))
            workers[settings] = _Worker(pid, server.port)
        pairs: dict[str, list[Pair]] = {}
        for case in cases:
            worker = workers[tuple(sorted(case.settings.items()))]
            pairs[case.name] = await asyncio.to_thread(_take_turns, case, worker, bare, rounds)
        return pairs


@asynccontextmanager
async def _bare_server() -> AsyncIterator[tuple[int, int]]:
    """Run HTTP alone; yield its process id and port."""
    process = await spawn("benchmarks.guard.bare_http", stdin=True, stdout=True)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _PATIENCE_SECONDS)
        if not line:
            raise GuardFailed("the server of HTTP alone did not start; its last words are above")
        yield process.pid, int(line)
    finally:
        await end_processes([process])


class _Worker:
    """A process that serves HTTP, and the way to it."""

    def __init__(self, pid: int, port: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self.port = port
        self._counted_ns = 0

    def cpu_us(self) -> float:
        """Return the CPU time of all its threads since the last call."""
        now = sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks.iterdir())
        used, self._counted_ns = now - self._counted_ns, now
        return used / 1000


def _take_turns(case: Case, worker: _Worker, bare: _Worker, rounds: int) -> list[Pair]:
    bodies = make_bodies(case.format, case.records, seed=1)[:16]
    requests = [_request(body) for body in bodies]
    size = max(map(len, requests))
    pipelined = max(1, min(_PIPELINED, _PIPELINED_BYTES // size))
    count = max(1, min(_TURN_REQUESTS, _TURN_BYTES // size) // pipelined)
    groups = [
        b"".join(requests[(turn * pipelined + one) % len(requests)] for one in range(pipelined))
        for turn in range(count)
    ]
    pairs = []
    with _connected(worker.port) as to_worker, _connected(bare.port) as to_bare:
        for number in range(rounds + 2):  # the first two warm caches, and meet new columns
            costs = []
            for one, connection in ((worker, to_worker), (bare, to_bare)):
                for group in groups:
                    _exchange(case, connection, group, pipelined)
                costs.append(one.cpu_us() / (count * pipelined))
            if number > 1:
                pairs.append(Pair(*costs))
    return pairs


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _request(body: Body) -> bytes:
    content = body.at(1_800_000_000_000_000)
    encoding = f"Content-Encoding: {body.content_encoding}\r\n" if body.content_encoding else ""
    head = (
        f"POST {body.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {body.content_type}\r\n{encoding}"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode("ascii") + content


def _exchange(case: Case, connection: socket.socket, group: bytes, requests: int) -> None:
    """Send requests, and read their answers.

    Raises:
        GuardFailed: An answer is not 2xx, or there is none.
    """
    try:
        connection.sendall(group)
        answers = b""
        while answers.count(_ANSWER_END) < requests and (data := connection.recv(1 << 16)):
            answers += data
    except OSError as error:
        raise GuardFailed(f"{case.name}: the server gave no answer: {error}") from None
    if answers.count(b"HTTP/1.1 2") < requests:
        raise GuardFailed(f"{case.name}: an answer is not 2xx: {answers[-500:]!r}")
