"""Cost of a setting per request of a worker, for machines that are too busy to compare whole runs.

The servers run side by side, each with one worker, and take turns: a few hundred requests to one, as many to the next,
and round again. The cost of a round is the CPU time of the worker (/proc/PID/task/*/schedstat, ns), not the time on a
clock. Two processes of the same code differ by a few percent, so there are several servers of each kind. All get the
same bytes: those without authentication get a token, too.

    python -m benchmarks.micro.paired --records 1 --servers 4 --rounds 50
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from benchmarks.load.bodies import make_bodies
from benchmarks.suites.catalogue import SUITES
from benchmarks.system.server import Server, make_certificate, make_token

_PIPELINED: Final = 32


class _Rival:
    """One server, and the connection to it."""

    def __init__(self, name: str, server: Server, token: str, tls: bool, records: int) -> None:
        self.name = name
        self._pid = next(pid for pid, use in server.usage().items() if use.name.startswith("ingest"))
        self._socket: socket.socket = socket.create_connection((server.host, server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket)
        body = make_bodies("columnar", records, seed=1)[0]
        content = body.at(1_800_000_000_000_000)
        head = f"POST {body.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        self._request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode("ascii") + content
        self.cpu_ns: list[float] = []  # per request, of each round
        self.round(_PIPELINED)
        self.cpu_ns.clear()

    def round(self, requests: int) -> None:
        """Send requests, a few at a time, and keep their cost."""
        self._exchange()  # not counted: it warms the caches of the processor
        before = self._used_ns()
        for _ in range(requests // _PIPELINED):
            self._exchange()
        self.cpu_ns.append((self._used_ns() - before) / requests)

    def _exchange(self) -> None:
        self._socket.sendall(self._request * _PIPELINED)
        answers = b""
        while (whole := answers.count(b"\r\n\r\n")) < _PIPELINED:
            answers += self._socket.recv(1 << 16)
        assert answers.count(b"HTTP/1.1 202") == whole, answers[:500]

    def _used_ns(self) -> int:
        tasks = Path(f"/proc/{self._pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())


async def _compare(records: int, servers: int, rounds: int, requests: int, directory: Path) -> None:
    rivals = []
    cases = SUITES["access"].cases
    async with AsyncExitStack() as stack:
        for number, case in enumerate(cases * servers):
            folder = directory / str(number)
            os.mkdir(folder)
            token = await make_token(folder)
            certificate = case.settings.get("server.tls_cert", "")
            if certificate:
                await make_certificate(folder, certificate, case.settings["server.tls_key"])
            settings = {**case.settings, "server.port": "0", "server.workers": "1", "flush.max_age_seconds": "3600"}
            server = await stack.enter_async_context(Server(folder, settings))
            rivals.append(_Rival(case.name, server, token, bool(certificate), records))
        order = random.Random(1)
        for _ in range(rounds):
            for rival in order.sample(rivals, len(rivals)):
                await asyncio.to_thread(rival.round, requests)
    print(
        f"{records} records per body, {_PIPELINED} pipelined; {servers} servers of each kind, "
        f"{rounds} rounds of {requests} requests to each"
    )
    base = _Cost.of([rival for rival in rivals if rival.name == cases[0].name])
    for case in cases:
        cost = _Cost.of([rival for rival in rivals if rival.name == case.name])
        more = cost.mean_us - base.mean_us
        error = (cost.error_us**2 + base.error_us**2) ** 0.5
        print(
            f"{case.name:<15} {cost.mean_us:6.1f} ± {cost.error_us:.1f} µs of worker CPU per request"
            + (f"; over {cases[0].name}: {more:+.1f} ± {error:.1f} µs, {more / base.mean_us:+.1%}" if more else "")
        )


class _Cost(NamedTuple):
    """Cost of a kind of server: the mean of its servers' medians, and the standard error of that mean."""

    mean_us: float
    error_us: float

    @classmethod
    def of(cls, rivals: list[_Rival]) -> _Cost:
        medians = [statistics.median(rival.cpu_ns) / 1000 for rival in rivals]
        return cls(statistics.mean(medians), statistics.stdev(medians) / len(medians) ** 0.5)


def main(
    records: Annotated[int, typer.Option(min=1, help="Records per body.")] = 1,
    servers: Annotated[int, typer.Option(min=2, help="Servers of each kind.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each server.")] = 50,
    requests: Annotated[int, typer.Option(min=_PIPELINED, help="Requests of a turn.")] = 320,
    data_dir: Annotated[Path | None, typer.Option(help="Where the servers' files go; removed again.")] = None,
) -> None:
    """Compare the cost of open access, tokens, and tokens with TLS for a worker."""
    with tempfile.TemporaryDirectory(dir=data_dir and data_dir.resolve()) as directory:
        asyncio.run(_compare(records, servers, rounds, requests // _PIPELINED * _PIPELINED, Path(directory)))


if __name__ == "__main__":
    typer.run(main)
