"""The life of a child with an event loop: it takes SIGTERM, says that it is there, and keeps saying so.

    async with living(counters, block, Fields(Block.PID, Block.STARTED_US, Block.HEARTBEAT_US), process.stop):
        await process.serve()

The worker, which has a life of its own, shares how SIGTERM is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from arcpipe import logs
from arcpipe.clock import steady_us
from arcpipe.counters import Counters, Node

_BEAT_SECONDS: Final = 0.5


class Fields(NamedTuple):
    """The fields of a child's block that the supervisor looks at."""

    pid: int
    started_us: int
    heartbeat_us: int


@asynccontextmanager
async def living(
    counters: Counters, block: memoryview, fields: Fields, stop: Callable[[], None]
) -> AsyncIterator[None]:
    """Be a child of the supervisor. SIGTERM was blocked before the fork.

    Args:
        block: the counters of this child.
        stop: called by SIGTERM.
    """
    take_sigterm(asyncio.get_running_loop(), stop)
    # The heartbeat is set before the pid, so that a reader of the pid finds a heartbeat.
    block[fields.started_us] = block[fields.heartbeat_us] = steady_us()
    block[fields.pid] = os.getpid()
    # All objects so far stay for ever: the garbage collector need not look at them again.
    gc.collect()
    gc.freeze()
    heartbeat = asyncio.create_task(_beat(counters, block, fields.heartbeat_us))
    try:
        yield
    finally:
        heartbeat.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await heartbeat


def take_sigterm(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call `stop` in the loop at each SIGTERM of this process, which was blocked before the fork.

    The signal stays blocked in all threads but for one that waits for it. So no moment of a process's end is open to a
    second one: the supervisor sends one, and a service manager may send another to all processes. A handler of the
    loop is undone when the loop closes, and what comes then writes to a closed descriptor, or kills.
    """

    def wait() -> None:
        while True:
            signal.sigwait({signal.SIGTERM})
            try:
                loop.call_soon_threadsafe(stop)
            except RuntimeError:  # the loop is closed: the process ends already
                return

    threading.Thread(target=wait, name="SIGTERM", daemon=True).start()


async def _beat(counters: Counters, block: memoryview, field: int) -> None:
    while True:
        block[field] = steady_us()
        logs.set_level(counters.node[Node.LOG_LEVEL])
        logs.flush()
        await asyncio.sleep(_BEAT_SECONDS)
