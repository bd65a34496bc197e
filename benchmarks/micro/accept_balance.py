"""How evenly the kernel spreads connections over workers: by simulation, by bare sockets, and by the real server.

    python -m benchmarks.micro.accept_balance --workers 8

Each worker has its own SO_REUSEPORT socket, and the kernel chooses one by a hash of both addresses and ports: as by a
die. The figure is the part of the mean that the busiest worker has on top, so 1.5 means half as many again. While all
connections send alike, throughput ends where the busiest worker's core is full: at 1 / 1.5 of what all cores could do.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.system.server import Server

_CONNECTIONS: Final = (16, 64, 256, 1024)
_DRAWS: Final = 2000
_PATIENCE_SECONDS: Final = 30.0


def bench(
    workers: Annotated[int, typer.Option(min=2, help="Workers, each with a socket of its own.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of real connections.")] = 5,
) -> None:
    """Print the busiest worker's connections over the mean, by the number of connections."""
    source = random.Random(1)
    with tempfile.TemporaryDirectory() as folder, _listeners(workers) as bare:
        real = asyncio.run(_served(Path(folder), workers, rounds))
        print(
            f"{workers} workers{'simulated':>18}{'bare sockets':>16}{'arcpipe':>12}   idle workers of arcpipe, at most"
        )
        for count in _CONNECTIONS:
            drawn = [Counter(source.randrange(workers) for _ in range(count)) for _ in range(_DRAWS)]
            sockets = [bare(count) for _ in range(rounds)]
            print(
                f"{count:>9}{_over(drawn, workers):>18.2f}{_over(sockets, workers):>16.2f}"
                f"{_over(real[count], workers):>12.2f}   {max(workers - len(one) for one in real[count])}"
            )


def _over(spreads: list[Counter[int]], workers: int) -> float:
    """Return the mean over the spreads of the busiest worker's share over the mean."""
    return statistics.mean(max(one.values()) * workers / one.total() for one in spreads)


@contextmanager
def _listeners(workers: int) -> Iterator[Callable[[int], Counter[int]]]:
    """Listen with a socket for each worker; yield what makes connections and counts them by socket."""
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for _ in range(workers):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", sockets[0].getsockname()[1] if sockets else 0))
            one.listen(2048)
            one.setblocking(False)
            sockets.append(one)
        port = sockets[0].getsockname()[1]

        def spread(count: int) -> Counter[int]:
            found: Counter[int] = Counter()
            with ExitStack() as opened:
                for _ in range(count):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port)))
                for index, one in enumerate(sockets):
                    while (accepted := _accept(one)) is not None:
                        opened.enter_context(accepted)
                        found[index] += 1
            return found

        yield spread


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


async def _served(directory: Path, workers: int, rounds: int) -> dict[int, list[Counter[int]]]:
    """Return the spreads of connections to the real server, by their number."""
    settings = {"server.port": "0", "server.workers": str(workers)}
    async with Server(directory, settings) as server:
        pids = [pid for pid, use in server.usage().items() if use.name.startswith("ingest")]
        own = {pid: _sockets(pid) for pid in pids}
        return {
            count: [await asyncio.to_thread(_spread, server.port, own, count) for _ in range(rounds)]
            for count in _CONNECTIONS
        }


def _spread(port: int, own: dict[int, int], count: int) -> Counter[int]:
    """Return the connections by worker; `own` are the sockets that each has without any."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(_sockets(pid) > least for pid, least in own.items()) and time.monotonic() < deadline:
        time.sleep(0.01)  # those of the round before are being closed
    with ExitStack() as opened:
        for _ in range(count):
            one = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS))
            one.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
            one.recv(1 << 12)  # so it has been accepted
        return +Counter({pid: _sockets(pid) - least for pid, least in own.items()})


def _sockets(pid: int) -> int:
    found = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(entry.path).startswith("socket:")
        except FileNotFoundError:  # closed since
            pass
    return found


if __name__ == "__main__":
    typer.run(bench)
