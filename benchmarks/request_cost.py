"""CPU time of a request between socket and log, of this checkout and of others, in one run.

    python -m benchmarks.request_cost [OTHER_CHECKOUT]…

Requests go through the real protocol, routes and codec of a checkout, in a process of its own, and are answered as if
they were committed; sockets, log and disk are left out, so nothing hides what a line of Python costs. Checkouts take
turns. The figure is the best of many short pieces, because all else that the machine does can only add to one.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

_KINDS: Final = ("one record", "one record, 16 in a read", "1000 records")
_PIECES: Final = 60


def bench(
    others: Annotated[list[Path] | None, typer.Argument(help="Directories of other checkouts.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Measure the CPU time of a request."""
    checkouts = [*(others or []), Path(__file__).parents[1]]
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
            for kind, figure, first in zip(_KINDS, figures, best[checkouts[0]], strict=True)
        )
        print(f"{checkout}: {', '.join(shown)}")


class _Log:
    """Takes entries as a group commit does, and acknowledges when told to."""

    def __init__(self, group: Any) -> None:
        self.pending_bytes = 0
        self._new_group = group
        self._group = group()

    def append(self, prefix: Any, body: Any, records: int, waiter: Any) -> None:
        self._group.add(prefix, body, records, 1)
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


def child(checkout: str) -> None:
    """Measures in this process; prints µs per request, one figure for each kind."""
    sys.path.insert(0, checkout)
    import numpy as np
    from msgpack import packb

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
    admission = Admission(Settings(), counters.node)
    log = _Log(Group)
    context: Any
    writes: Any
    try:
        from arcpipe.ingest.http.turns import TimeBudget, Turns
    except ImportError:  # an older checkout
        for module in ("connection", "reading"):  # turns end by the clock, and other programs run, too
            loaded = sys.modules.get(f"arcpipe.ingest.http.{module}")  # None in checkouts of another layout
            for name in ("SLICE_SECONDS", "SMALL_SECONDS"):
                if hasattr(loaded, name):
                    setattr(loaded, name, math.inf)
        old: Any = IngestContext
        context = old(Limits.of(Settings()), None)
        turns = (context.turns,) if hasattr(context, "turns") else ()
        writes = cast(Any, WriteEndpoints)(admission, context.encoding, *turns)
        context.commit = writes.commit = log
    else:
        # No turn ends by the clock, as other programs run, too.
        budget = TimeBudget(*[math.inf] * len(TimeBudget._fields))
        context = IngestContext(Limits.of(Settings()), log, Turns(budget))
        writes = WriteEndpoints(admission, context.encoding, context.turns, cast(Any, log))
    routes = Router({("POST", "/write/v2/msgpack"): (writes.msgpack(responses.ACCEPTED), WRITE)}).routes
    if hasattr(context, "add_surface"):
        connection = Connection(context, context.add_surface(routes))
    else:
        context.routes = routes
        connection = cast(Any, Connection)(context)

    def request(body: bytes) -> bytes:
        head = (
            "POST /write/v2/msgpack HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: telegraf/1.30\r\n"
            "Content-Type: application/msgpack\r\nAccept: */*\r\nx-arc-database: production\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    small = request(packb({"m": "cpu", "columns": {"time": [1_700_000_000], "host": ["web-1"], "usage": [0.5]}}))
    floats = np.random.default_rng(1).random((3, 1000)).tolist()
    columns = {"time": list(range(1_700_000_000, 1_700_001_000)), "a": floats[0], "b": floats[1], "c": floats[2]}
    large = request(packb({"m": "cpu", "columns": columns}))

    def piece(data: bytes, reads: int) -> float:
        before = time.process_time()
        for _ in range(reads):
            connection.data_received(data)
            writes.committed(log.waiters(), None)
        return time.process_time() - before

    async def measure() -> None:
        connection.connection_made(_Transport())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for data, reads, requests in ((small, 1000, 1000), (small * 16, 62, 62 * 16), (large, 200, 200)):
            best = math.inf
            for _ in range(_PIECES):
                best = min(best, piece(data, reads))
                await asyncio.sleep(0)  # a turn of the loop, for what is done once in each
            print(best / requests * 1e6)

    asyncio.run(measure())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        typer.run(bench)
