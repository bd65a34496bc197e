"""What a one-record request costs from socket to disk, with and without an idempotency key, by turns.

    python -m benchmarks.micro.request_cpu [--pairs N] [--requests N] [--connections N]

A real server with one worker, over loopback. Each connection sends its next request when it has the answer. The load is
in another process. There are two figures: the CPU time of the worker, with kernel, event loop, commit thread and syncs;
and the time that passes, which is what clients get.

Other programs and the host make a request cost a third more or less from one second to the next. So a pair is short,
and there are many: a figure is the median of their differences, with the interval that holds it 19 times of 20.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final, NamedTuple
from uuid import uuid4

import typer
from msgpack import packb

from benchmarks.system.server import Server

_BODY: Final = packb({"m": "cpu", "columns": {"time": [1_700_000_000], "host": ["web-1"], "usage": [0.5]}})
_WARM_UP_PAIRS: Final = 4


class _Cost(NamedTuple):
    cpu_us: float  # of the worker
    elapsed_us: float


def bench(
    pairs: Annotated[int, typer.Option(min=10, help="turns without and with a key")] = 500,
    requests: Annotated[int, typer.Option(min=1, help="of a turn")] = 2048,
    connections: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Measure the time of each request."""
    asyncio.run(_measure(pairs, requests, connections))


async def _measure(pairs: int, requests: int, connections: int) -> None:
    found: list[dict[bool, _Cost]] = []
    with tempfile.TemporaryDirectory() as name:
        settings = {"server.workers": "1", "server.port": "0", "server.host": "127.0.0.1"}
        async with Server(Path(name), settings) as server:
            ours, theirs = multiprocessing.Pipe()
            load = multiprocessing.get_context("spawn").Process(
                target=_load, args=(server.host, server.port, requests, connections, theirs)
            )
            load.start()
            theirs.close()
            for number in range(_WARM_UP_PAIRS + pairs):
                turns = (False, True) if number % 2 else (True, False)
                costs = {has_keys: await _turn(server, ours, has_keys, requests) for has_keys in turns}
                if number >= _WARM_UP_PAIRS:
                    found.append(costs)
            ours.close()
            await asyncio.to_thread(load.join)
            server.check()
    _show("CPU time", [(costs[False].cpu_us, costs[True].cpu_us) for costs in found])
    _show("elapsed", [(costs[False].elapsed_us, costs[True].elapsed_us) for costs in found])


async def _turn(server: Server, load: Connection, has_keys: bool, requests: int) -> _Cost:
    """Return what each request of a turn takes."""
    load.send(has_keys)
    await asyncio.to_thread(load.recv)  # its requests are made
    before = _worker_seconds(server)
    load.send(None)
    elapsed = await asyncio.to_thread(load.recv)
    return _Cost((_worker_seconds(server) - before) / requests * 1e6, elapsed / requests * 1e6)


def _show(what: str, found: list[tuple[float, float]]) -> None:
    for kind, figures in zip(("without a key", "with a key"), zip(*found, strict=True), strict=True):
        quartiles = statistics.quantiles(figures)
        shown = ", ".join(f"{one:.1f}" for one in quartiles)
        print(f"{what} {kind}: least {min(figures):.1f} µs, quartiles {shown} µs")
    differences = sorted(keyed - plain for plain, keyed in found)
    count = len(differences)
    reach = math.ceil(0.98 * math.sqrt(count))  # ranks around the middle, by the binomial distribution
    low, high = differences[max(0, count // 2 - reach)], differences[min(count - 1, count // 2 + reach)]
    middle = statistics.median(differences)
    share = middle / statistics.median([plain for plain, _ in found])
    print(f"{what} of the key: {middle:+.2f} µs ({low:+.2f} to {high:+.2f}), {share:.1%} of a request; {count} pairs")


def _worker_seconds(server: Server) -> float:
    """Return the time of the workers' threads on a core; the kernel counts it by the nanosecond."""
    workers = [pid for pid, use in server.usage().items() if use.name.startswith("ingest")]
    threads = [thread for pid in workers for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _load(host: str, port: int, requests: int, connections: int, orders: Connection) -> None:
    sockets = [socket.create_connection((host, port)) for _ in range(connections)]
    head = b"POST /write/v2/msgpack HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: telegraf/1.30\r\n" + (
        b"Content-Type: application/msgpack\r\nAccept: */*\r\nx-arc-database: production\r\n"
    )
    tail = b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY
    while True:
        try:
            has_keys = orders.recv()
        except EOFError:
            break
        # Ahead, because pauses between them would make groups smaller.
        made = [head + (_key() if has_keys else b"") + tail for _ in range(requests)]
        orders.send(None)
        orders.recv()
        began = time.perf_counter()
        for at in range(0, requests, connections):
            for one, request in zip(sockets, made[at : at + connections], strict=False):
                one.sendall(request)
            for one, _ in zip(sockets, made[at : at + connections], strict=False):
                answer = one.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 202"), answer
        orders.send(time.perf_counter() - began)
    for one in sockets:
        one.close()


def _key() -> bytes:
    return b"Idempotency-Key: %b\r\n" % str(uuid4()).encode()


if __name__ == "__main__":
    typer.run(bench)
