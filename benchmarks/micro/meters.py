"""Error of limits that several workers count without a lock, and the cost of the check of a request.

    python -m benchmarks.micro.meters

Processes send requests of the same client as fast as they can, each through its own gate over the same memory, and
count the accepted ones. The limit allows an exact number in that time; every request above it is an error. Errors come
from requests that workers hold ready, and from numbers that overwrote each other.
"""

from __future__ import annotations

import os
import struct
import time
from collections import defaultdict
from typing import Annotated, Any, Final, NamedTuple

import typer

from arcpipe.config.settings import ClientLimits, Limits
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.gate import Gate
from arcpipe.ingest.http.router import WRITE
from arcpipe.meters import NS, Meters

_RATES: Final = (10.0, 1_000.0, 100_000.0)
_SLOTS: Final = 16384


class _Connection:
    """The part of a connection that a gate reads."""

    def __init__(self) -> None:
        self.unrouted: defaultdict[bytes, int] = defaultdict(int)
        self.announced_bytes = 0

    def client_of(self, _headers: dict[bytes, bytes]) -> str:
        """Return the address of the one client."""
        return "192.0.2.7"


class Outcome(NamedTuple):
    """Numbers of requests in a race."""

    asked: int
    taken: int
    allowed: float


def race(rate: float, processes: int, seconds: float) -> Outcome:
    """Let `processes` processes ask for one client for `seconds`."""
    meters = Meters(processes, _SLOTS)
    limits = Limits(per_address=ClientLimits(requests_per_second=rate))
    start = time.monotonic_ns() + NS // 5
    end = start + int(seconds * NS)
    reader, writer = os.pipe()
    children = []
    for worker in range(1, processes + 1):
        child = os.fork()
        if not child:
            os.write(writer, struct.pack("QQ", *_ask(Gate(None, limits, meters, worker, processes), start, end)))
            os._exit(0)
        children.append(child)
    asked = taken = 0
    for _ in children:
        one, other = struct.unpack("QQ", os.read(reader, 16))
        asked, taken = asked + one, taken + other
    for child in children:
        os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    return Outcome(asked, taken, rate + rate * seconds)


def _ask(gate: Gate, start: int, end: int) -> tuple[int, int]:
    connection: Any = _Connection()
    exchange = Exchange(connection, {})
    asked = taken = 0
    while time.monotonic_ns() < start:
        pass
    while time.monotonic_ns() < end:
        for _ in range(10):
            asked += 1
            taken += gate.refusal(exchange, WRITE) is None
    return asked, taken


def cost(limits: Limits, pieces: int = 50, asked: int = 2000) -> float:
    """Return the nanoseconds of CPU of one check: the best of many pieces."""
    gate = Gate(None, limits, Meters(2, _SLOTS), 1, 2)
    connection: Any = _Connection()
    exchange = Exchange(connection, {})
    exchange.body = bytes(100)
    best = float("inf")
    for _ in range(pieces):
        before = time.process_time_ns()
        for _ in range(asked):
            gate.refusal(exchange, WRITE)
        best = min(best, (time.process_time_ns() - before) / asked)
    return best


def bench(
    processes: Annotated[int, typer.Option(min=1, help="Workers that ask at the same time.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.1)] = 5.0,
) -> None:
    """Measure the error of limits over several workers, and the cost of a check."""
    for rate in _RATES:
        found = race(rate, processes, seconds)
        print(
            f"{rate:g}/s, {processes} processes, {seconds:g} s: asked {found.asked}, allowed {found.allowed:.0f}, "
            f"taken {found.taken} ({found.taken / found.allowed - 1:+.2%})"
        )
    for state, limits in (
        ("taken, far below the limit", ClientLimits(requests_per_second=1e9, mb_per_second=1e9)),
        ("refused", ClientLimits(requests_per_second=0.001)),
    ):
        print(f"a request that is {state}: {cost(Limits(per_address=limits)):.0f} ns")


if __name__ == "__main__":
    typer.run(bench)
