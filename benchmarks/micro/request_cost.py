"""CPU time of a request between socket and WAL, of this checkout and of others, in one run.

    python -m benchmarks.micro.request_cost [OTHER_CHECKOUT]…

Requests go through the real protocol, routes and codec of a checkout, in a process of its own. They are answered as if
they were committed: sockets, WAL and disk are left out, so nothing hides the cost of a line of Python. Checkouts take
turns. A figure is the best of many short pieces, because everything else on the machine can only add to one.

Requests of most kinds repeat their head, which the worker then knows. Those with a new key differ in the value of
Idempotency-Key alone, or in that of X-Request-Id, too. Those of the kind "parsed" each have another head, which goes
through the parser. The requests of a read are one group.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

import typer

KINDS: Final = (
    "one record",
    "one record, a new key",
    "one record, a new key and a new id",
    "one record, parsed",
    "one record, 16 in a read",
    "one record, 16 in a read, new keys",
    "1000 records",
)
_PIECES: Final = 60


def bench(
    others: Annotated[list[Path] | None, typer.Argument(help="Directories of other checkouts.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Measure the CPU time of a request."""
    checkouts = [*(others or []), Path(__file__).parents[2]]
    best: dict[Path, list[float]] = {}
    for _ in range(rounds):
        for checkout in checkouts:
            command = [sys.executable, __file__, "--child", str(checkout)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = [float(figure) for figure in output.split()]
            best[checkout] = [min(pair) for pair in zip(found, best.get(checkout, found), strict=True)]
    for checkout, figures in best.items():
        shown = (
            f"{kind}: {figure:.2f} µs ({figure / first - 1:+.1%})"
            for kind, figure, first in zip(KINDS, figures, best[checkouts[0]], strict=True)
        )
        print(f"{checkout}: {', '.join(shown)}")


class _Commit:
    """Takes entries as a group commit does, and acknowledges them when told to."""

    def __init__(self, group: Any) -> None:
        self.pending_bytes = 0
        self._new_group = group
        self._group = group()

    def append(self, prefix: Any, body: Any, records: int, waiter: Any, *front: Any) -> None:
        self._group.add(prefix, body, records, 1, *front)  # other checkouts have no front
        self._group.waiters.append(waiter)

    def waiters(self) -> list[Any]:
        waiters: list[Any] = self._group.waiters
        self._group = self._new_group()
        return waiters


class _Transport:
    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 202"), data


class _Worker:
    """The part of a worker between socket and WAL, from the checkout that `sys.path` begins with."""

    def __init__(self) -> None:
        from arcpipe.config.settings import Settings
        from arcpipe.counters import Counters, Node
        from arcpipe.ingest.endpoints.admission import Admission
        from arcpipe.ingest.endpoints.write import WriteEndpoints
        from arcpipe.ingest.http import responses
        from arcpipe.ingest.http.connection import Connection
        from arcpipe.ingest.http.context import IngestContext
        from arcpipe.ingest.http.limits import Limits
        from arcpipe.ingest.http.router import WRITE, Router
        from arcpipe.wal.writer import Group

        counters = Counters(1)
        counters.node[Node.DISK_FREE_BYTES] = 1 << 50
        self._commit = _Commit(Group)
        commit: Any = self._commit
        turns = endless_turns()
        context = IngestContext(Limits.of(Settings()), commit, turns)
        writes = WriteEndpoints(Admission(Settings(), counters.node), context.encoding, turns, commit)
        with suppress(ImportError):  # a checkout without idempotency keys
            from arcpipe.ingest.endpoints import idempotency

            make: Any = getattr(idempotency, "recent_keys", idempotency.RecentKeys)
            writes._recent = make(Settings().idempotency.window_seconds)
        routes = Router({("POST", "/write/v2/msgpack"): (writes.msgpack(responses.ACCEPTED), WRITE)}).routes
        self._writes = writes
        self._connection: Any = Connection(context, context.add_surface(routes))

    def connect(self) -> None:
        """Begin the connection; needs a running loop."""
        self._connection.connection_made(_Transport())

    def piece(self, reads: list[bytes]) -> float:
        """Feed the reads to the connection, and answer each; return the CPU seconds."""
        receive, committed, waiters = self._connection.data_received, self._writes.committed, self._commit.waiters
        before = time.process_time()
        for data in reads:
            receive(data)
            committed(waiters(), None)
        return time.process_time() - before


def endless_turns() -> Any:
    """Return turns that never end by the clock, which other programs move, too."""
    from arcpipe.ingest.http.turns import TimeBudget, Turns

    return Turns(TimeBudget(*[math.inf] * len(TimeBudget._fields)))


def _request(body: bytes, agent: str = "telegraf/1.30", key: str = "", request_id: str = "") -> bytes:
    head = (
        f"POST /write/v2/msgpack HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: {agent}\r\n"
        "Content-Type: application/msgpack\r\nAccept: */*\r\nx-arc-database: production\r\n"
        f"{f'Idempotency-Key: {key}' + chr(13) + chr(10) if key else ''}"
        f"{f'X-Request-Id: {request_id}' + chr(13) + chr(10) if request_id else ''}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _pieces() -> Iterator[tuple[Callable[[], list[bytes]], int]]:
    """Yield for each of KINDS a maker of the reads of a piece, and the requests of a piece."""
    import numpy as np
    from msgpack import packb

    body = packb({"m": "cpu", "columns": {"time": [1_700_000_000], "host": ["web-1"], "usage": [0.5]}})
    floats = np.random.default_rng(1).random((3, 1000)).tolist()
    columns = {"time": list(range(1_700_000_000, 1_700_001_000)), "a": floats[0], "b": floats[1], "c": floats[2]}
    small, large = _request(body), _request(packb({"m": "cpu", "columns": columns}))
    numbers = count(100_000)
    yield lambda: [bytes(bytearray(small)) for _ in range(1000)], 1000  # each its own memory, as from a socket
    yield lambda: [_request(body, key=str(uuid4())) for _ in range(1000)], 1000
    yield lambda: [_request(body, key=str(uuid4()), request_id=str(uuid4())) for _ in range(1000)], 1000
    yield lambda: [_request(body, f"agent/{next(numbers)}") for _ in range(1000)], 1000
    yield lambda: [small * 16] * 62, 62 * 16
    yield lambda: [b"".join(_request(body, key=str(uuid4())) for _ in range(16)) for _ in range(62)], 62 * 16
    yield lambda: [large] * 200, 200


async def _measure(worker: _Worker) -> None:
    worker.connect()
    await asyncio.sleep(0)
    for make_reads, requests in _pieces():
        best = math.inf
        for _ in range(_PIECES):
            best = min(best, worker.piece(make_reads()))
            await asyncio.sleep(0)  # a turn of the loop, for the work that is done once in each
        print(best / requests * 1e6)


def child(checkout: str) -> None:
    """Measure in this process; print µs per request, one figure for each kind."""
    sys.path.insert(0, checkout)
    asyncio.run(_measure(_Worker()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        typer.run(bench)
