"""Cost of the check of a known token in a worker: the same requests through two connections of one process.

Both read the same bytes with the real parser and router; one checks the token. The handler answers at once and writes
nothing. So the figure compares only the way of a request into the worker, in CPU time of this thread.

    python -m benchmarks.micro.access_check
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final, cast

import typer

from arcpipe.access import tokens
from arcpipe.config.settings import Settings
from arcpipe.ingest.http import responses
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.connection import Connection
from arcpipe.ingest.http.context import IngestContext
from arcpipe.ingest.http.limits import Limits
from arcpipe.ingest.http.router import WRITE, Router
from arcpipe.ingest.http.turns import TimeBudget, Turns

# No turn ends by the clock, which other programs move, too.
_ENDLESS: Final = TimeBudget(*[math.inf] * len(TimeBudget._fields))
_ROUNDS: Final = 2000
_BATCHES: Final = 3
_PIPELINED: Final = 32


class _Nowhere:
    """A transport that takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def _connection(auth: Auth | None) -> Connection:
    context = IngestContext(Limits.of(Settings()), SimpleNamespace(pending_bytes=0), Turns(_ENDLESS), auth=auth)
    handler = (lambda exchange: exchange.answer(responses.ACCEPTED), WRITE)
    surface = context.add_surface(Router({("POST", "/write/v2/msgpack"): handler}).routes)
    connection = Connection(context, surface)
    connection.connection_made(cast(Any, _Nowhere()))
    return connection


def bench() -> None:
    """Print the cost of a request with and without the check."""
    asyncio.run(_measure())


async def _measure() -> None:
    token_id, text = tokens.generate()
    token = tokens.Token(
        id=token_id, sha256=tokens.digest(text.encode()).hex(), scopes=("write",), created=datetime.now(UTC)
    )
    request = (
        f"POST /write/v2/msgpack HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {text}\r\nContent-Length: 5\r\n\r\nhello"
    )
    batch = request.encode("ascii") * _PIPELINED
    connections = {"open": _connection(None), "tokens": _connection(Auth([token])), "open, again": _connection(None)}
    costs: dict[str, list[float]] = {name: [] for name in connections}
    order = random.Random(1)
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)  # a turn of the loop, for the work that is done once in each
        for name in order.sample(list(connections), len(connections)):
            feed = connections[name].data_received
            feed(batch)  # not counted: it warms the caches of the processor
            before = time.thread_time_ns()
            for _ in range(_BATCHES):
                feed(batch)
            costs[name].append((time.thread_time_ns() - before) / (_BATCHES * _PIPELINED))
    for name, cost in costs.items():
        more = statistics.median(mine - base for mine, base in zip(cost, costs["open"], strict=True))
        print(f"{name:<12} {statistics.median(cost) / 1000:.2f} µs per request, over open: {more / 1000:+.2f} µs")


if __name__ == "__main__":
    typer.run(bench)
