"""CPU time of a worker for a large body from socket to disk, of this checkout and of others, by turns.

    python -m benchmarks.micro.body_cpu [OTHER_CHECKOUT]… [--format arrow] [--records 100000]

A real server of each checkout, with one worker, over loopback: kernel, event loop, threads and syncs are in the figure,
by /proc/PID/task/*/schedstat (ns), and user time alone, in ticks of /proc/PID/stat: that of the system depends on the
pages that the WAL is written into. The servers run side by side and take turns of a few bodies.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

_CONNECTIONS: Final = 4
_HERE: Final = Path(__file__).parents[2]


def bench(
    others: Annotated[list[Path] | None, typer.Argument(help="Directories of other checkouts.")] = None,
    format_: Annotated[str, typer.Option("--format", help="Of the bodies, as in the suite formats.")] = "arrow",
    records: Annotated[int, typer.Option(min=1)] = 100_000,
    rounds: Annotated[int, typer.Option(min=1)] = 12,
    bodies: Annotated[int, typer.Option(min=1, help="Of a round.")] = 24,
) -> None:
    """Measure the CPU time of a worker for each body."""
    checkouts = [*(others or []), _HERE]
    command = [sys.executable, __file__, "--child", format_, str(records), str(bodies)]
    children = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        )
        for checkout in checkouts
    ]
    found: list[list[float]] = [[] for _ in children]
    user: list[float] = [0.0 for _ in children]
    for number in range(rounds + 1):
        for at, (child, figures) in enumerate(zip(children, found, strict=True)):
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            both, alone = map(float, child.stdout.readline().split())
            if number:  # the first one warms up
                figures.append(both)
                user[at] += alone / rounds
    for child in children:
        child.communicate()
    for checkout, figures, alone in zip(checkouts, found, user, strict=True):
        ratios = [one / first for one, first in zip(figures, found[0], strict=True)]
        print(
            f"{checkout}: median {statistics.median(figures):,.0f} µs, least {min(figures):,.0f} µs of {len(figures)}; "
            f"ratio of pairs {statistics.median(ratios):.3f}, of the least {min(figures) / min(found[0]):.3f}; "
            f"user time alone {alone:,.0f} µs, ratio {alone / user[0]:.3f}"
        )


async def _child(format_: str, records: int, bodies: int) -> None:
    from benchmarks.load.bodies import make_bodies
    from benchmarks.system.server import Server

    made = make_bodies(format_, records, seed=1)
    settings = {"server.workers": "1", "server.port": "0", "server.host": "127.0.0.1", "wal.max_size_mb": "100"}
    with tempfile.TemporaryDirectory() as name:
        async with Server(Path(name), settings) as server:
            pid = next(pid for pid, use in server.usage().items() if use.name.startswith("ingest"))
            sockets = [socket.create_connection((server.host, server.port)) for _ in range(_CONNECTIONS)]
            requests = []
            for body in made:
                content = body.at(time.time_ns() // 1000)
                lines = f"Content-Type: {body.content_type}\r\nContent-Length: {len(content)}\r\n"
                if body.content_encoding:
                    lines += f"Content-Encoding: {body.content_encoding}\r\n"
                head = f"POST {body.path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n"
                requests.append(head.encode("ascii") + content)
            while await asyncio.to_thread(sys.stdin.readline):
                before, user_before = _used_ns(pid), _user_seconds(pid)
                await asyncio.to_thread(_send, sockets, requests, bodies)
                both, user = _used_ns(pid) - before, _user_seconds(pid) - user_before
                print(both / bodies / 1e3, user / bodies * 1e6, flush=True)
            server.check()


def _send(sockets: list[socket.socket], requests: list[bytes], bodies: int) -> None:
    for at in range(bodies):
        one = sockets[at % len(sockets)]
        one.sendall(requests[at % len(requests)])
        answer = one.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 20"), answer


def _used_ns(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())


def _user_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        asyncio.run(_child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        typer.run(bench)
