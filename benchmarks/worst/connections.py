"""Cost of connections that send nothing or almost nothing: memory of each, and latency of the others.

    python -m benchmarks.worst.connections --idle 10000 --active 500 --rate 2000 --seconds 10
    python -m benchmarks.worst.connections --idle 0 --slow 100 --active 32 --rate 2000
    python -m benchmarks.worst.connections --hold all --json

The load is an open loop of small writes at a fixed rate. Rounds without and with the others alternate on one server
with one worker, so that other programs disturb both alike. A slow client sends a byte of a request at a time.
`--hold` measures the memory that connections of other kinds hold (`held.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import resource
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
import uvloop

from benchmarks.grouping import grouped
from benchmarks.load.drive import load_processes
from benchmarks.load.generator import LoadSpec
from benchmarks.report.tables import plural
from benchmarks.results.histogram import Histogram
from benchmarks.system.server import Server
from benchmarks.worst.held import measure_all, resident_bytes
from benchmarks.worst.holding import KINDS

_TRICKLE_SECONDS: Final = 0.5
_REQUEST: Final = b"POST /write/v2/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + bytes(4000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadChoice:
    """The connections, and the load of those that send requests."""

    idle: Annotated[int, typer.Option(min=0, help="Connections that send nothing.")] = 10_000
    slow: Annotated[int, typer.Option(min=0, help="Connections that send a byte every half second.")] = 0
    active: Annotated[int, typer.Option(min=1, help="Connections that send requests.")] = 500
    rate: Annotated[float, typer.Option(min=1, help="Requests per second of all active connections.")] = 2000
    seconds: Annotated[float, typer.Option(min=1, help="Measured time of a round.")] = 10
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of rounds.")] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldChoice:
    """Kinds of connections whose memory is measured instead."""

    hold: Annotated[
        list[str] | None,
        typer.Option(help=f"Measure instead the memory that a kind of connections holds: all, {', '.join(KINDS)}"),
    ] = None
    count: Annotated[int, typer.Option(min=1, help="Connections of --hold.")] = 10_000
    setting: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the server of --hold.")] = None
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each kind of --hold.")] = False


@grouped
def bench(load: LoadChoice, hold: HoldChoice) -> None:
    """Measure a server with and without idle or slow connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hold.hold:
        kinds = list(KINDS) if "all" in hold.hold else hold.hold
        changed = dict(text.split("=", 1) for text in hold.setting or ())
        asyncio.run(measure_all(kinds, hold.count, load.seconds, changed, hold.json))
        return
    directory = Path(tempfile.mkdtemp(prefix="connections-", dir="."))
    spec = LoadSpec(
        host="",
        port=0,
        format="columnar",
        records=1,
        connections=load.active,
        warmup_seconds=1,
        seconds=load.seconds,
        requests_per_second=load.rate,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_measure(directory.resolve(), load.idle, load.slow, spec, load.rounds))
    finally:
        shutil.rmtree(directory)


async def _measure(directory: Path, idle: int, slow: int, load: LoadSpec, rounds: int) -> None:
    settings = {
        "server.port": "0",
        "server.workers": "1",
        "server.max_connections": str(idle + slow + load.connections + 10),
        "server.keep_alive_seconds": "3600",
        "server.header_timeout_seconds": "3600",
        "server.body_timeout_seconds": "3600",
        "server.max_body_seconds": "36000",
        "wal.dir": str(directory / "wal"),
        "storage.url": f"file://{directory / 'lake'}",
    }
    found: dict[str, list[Histogram]] = {"without": [], "with": []}
    async with Server(directory, settings) as server:
        pid = next(pid for pid, use in server.usage().items() if use.name.startswith("ingest"))
        for _ in range(rounds):
            found["without"].append(await _round(server, load))
            before = resident_bytes(pid)
            async with _connections(server, idle) as opened, _connections(server, slow) as trickling:
                grown = resident_bytes(pid) - before
                stop = asyncio.Event()
                trickle = asyncio.create_task(_trickle(trickling, stop))
                found["with"].append(await _round(server, load))
                stop.set()
                await trickle
                if opened:
                    print(
                        f"{len(opened)} idle connections: {grown / len(opened):,.0f} bytes each of the worker's memory"
                    )
        server.terminate()
        await server.stopped(60)
    for label, histograms in found.items():
        for histogram in histograms:
            shown = " ".join(f"p{q:g} {histogram.percentile(q) * 1e3:.2f}" for q in (50, 90, 99, 99.9))
            print(f"{label:8} {shown} max {histogram.maximum_seconds * 1e3:.1f} ms, {histogram.count} requests")
    median = {
        label: [sorted(h.percentile(q) for h in histograms)[len(histograms) // 2] * 1e3 for q in (50, 99)]
        for label, histograms in found.items()
    }
    print(
        f"{load.connections} connections at {load.requests_per_second:g} requests/s, "
        f"medians of {plural(rounds, 'round')}: "
        f"p50 {median['without'][0]:.2f} ms without, {median['with'][0]:.2f} ms with {idle} idle and {slow} slow ones; "
        f"p99 {median['without'][1]:.2f} and {median['with'][1]:.2f} ms"
    )


async def _round(server: Server, load: LoadSpec) -> Histogram:
    spec = msgspec.structs.replace(load, host=server.host, port=server.port)
    async with load_processes(spec, 1) as processes:
        finished = (await processes.run())[0]
    return Histogram(finished.histogram)


@asynccontextmanager
async def _connections(server: Server, count: int) -> AsyncIterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    loop = asyncio.get_running_loop()
    try:
        for _ in range(count):
            one = socket.socket()
            one.setblocking(False)
            opened.append(one)
            await loop.sock_connect(one, (server.host, server.port))
        await asyncio.sleep(1)  # the server has accepted the last connection by then
        yield opened
    finally:
        for one in opened:
            one.close()


async def _trickle(connections: list[socket.socket], stop: asyncio.Event) -> None:
    """Send a byte on each connection every _TRICKLE_SECONDS."""
    at = 0
    while not stop.is_set():
        for one in connections:
            one.send(_REQUEST[at : at + 1])
        at += 1
        try:
            await asyncio.wait_for(stop.wait(), _TRICKLE_SECONDS)
        except TimeoutError:
            pass


if __name__ == "__main__":
    typer.run(bench)
