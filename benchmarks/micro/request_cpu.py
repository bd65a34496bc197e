"""CPU time of a worker for a one-record request from socket to disk, with and without an idempotency key, by turns.

    python -m benchmarks.micro.request_cpu [--rounds N] [--requests N] [--connections N]

A real server with one worker, over loopback: kernel, event loop, commit thread and syncs are in the figure, user and
system time. Each connection sends its next request when it has the answer. The load is in another process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Final
from uuid import uuid4

import typer
from msgpack import packb

from benchmarks.system.server import Server

KINDS: Final = ("without a key", "with a key")
_BODY: Final = packb({"m": "cpu", "columns": {"time": [1_700_000_000], "host": ["web-1"], "usage": [0.5]}})


def bench(
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    requests: Annotated[int, typer.Option(min=1)] = 4000,
    connections: Annotated[int, typer.Option(min=1)] = 16,
) -> None:
    """Measure the CPU time of a worker for each request."""
    asyncio.run(_measure(rounds, requests, connections))


async def _measure(rounds: int, requests: int, connections: int) -> None:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        settings = {"server.workers": "1", "server.port": "0", "server.host": "127.0.0.1"}
        async with Server(Path(name), settings) as server:
            for number in range(2 * (rounds + 1)):
                kind = KINDS[number % 2]
                before = _worker_seconds(server)
                arguments = (server.host, server.port, requests, connections, kind == KINDS[1])
                load = multiprocessing.get_context("spawn").Process(target=_load, args=arguments)
                load.start()
                await asyncio.to_thread(load.join)
                assert load.exitcode == 0, f"the load ended with {load.exitcode}"
                if number >= 2:  # the first two warm up
                    found[kind].append((_worker_seconds(server) - before) / requests * 1e6)
            server.check()
    for kind, figures in found.items():
        print(f"{kind}: median {statistics.median(figures):.1f} µs, least {min(figures):.1f} µs of {len(figures)}")
    pairs = [keyed - plain for plain, keyed in zip(*found.values(), strict=True)]
    print(f"the key: median of pairs {statistics.median(pairs):+.2f} µs")


def _worker_seconds(server: Server) -> float:
    """Return the time of the workers' threads on a core; the kernel counts it by the nanosecond."""
    workers = [pid for pid, use in server.usage().items() if use.name.startswith("ingest")]
    threads = [thread for pid in workers for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _load(host: str, port: int, requests: int, connections: int, has_keys: bool) -> None:
    sockets = [socket.create_connection((host, port)) for _ in range(connections)]
    head = b"POST /write/v2/msgpack HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: telegraf/1.30\r\n" + (
        b"Content-Type: application/msgpack\r\nAccept: */*\r\nx-arc-database: production\r\n"
    )
    tail = b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY
    # Ahead, because pauses between them would make groups smaller.
    made = [head + (_key() if has_keys else b"") + tail for _ in range(requests)]
    for at in range(0, requests, connections):
        for one, request in zip(sockets, made[at : at + connections], strict=False):
            one.sendall(request)
        for one, _ in zip(sockets, made[at : at + connections], strict=False):
            answer = one.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 202"), answer
    for one in sockets:
        one.close()


def _key() -> bytes:
    return b"Idempotency-Key: %b\r\n" % str(uuid4()).encode()


if __name__ == "__main__":
    typer.run(bench)
