"""The life of a child with an event loop: it takes SIGTERM, says that it is there, and keeps saying so.

async with living(counters, block, Fields(Block.PID, Block.STARTED_US, Block.HEARTBEAT_US), process.stop):
await process.serve()
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
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
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
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


async def _beat(counters: Counters, block: memoryview, field: int) -> None:
    while True:
        block[field] = steady_us()
        logs.set_level(counters.node[Node.LOG_LEVEL])
        logs.flush()
        await asyncio.sleep(_BEAT_SECONDS)
