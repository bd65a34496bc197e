"""The end of all connections when a worker stops: each client gets the answers that it waits for, within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from arcpipe.ingest.http.states import FRESH, HEADER, IDLE

if TYPE_CHECKING:
    from arcpipe.ingest.http.context import IngestContext
    from arcpipe.ingest.http.entrance import Entrance
    from arcpipe.ingest.http.tls_server import TLSServer

# Seconds that requests which are still arriving have to arrive and be answered.
_FINISH_SECONDS: Final = 5.0
# Seconds since its last request in which a connection counts as busy.
_BUSY_SECONDS: Final = 1.0
# Seconds that busy connections have for one more request, and new ones for their first.
_LAST_WORDS_SECONDS: Final = 0.25


async def finish_greetings(entrances: Sequence[Entrance], tls_servers: Sequence[TLSServer]) -> None:
    """Let connections that have just come get as far as their first request; end those that do not."""
    last_words = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < last_words:
        if not any(server.handshakes for server in tls_servers) and not any(
            entrance.greeting for entrance in entrances
        ):
            break
        await asyncio.sleep(0.005)
    for entrance in entrances:
        entrance.close()


async def finish_requests(context: IngestContext) -> None:
    """End every connection with its last answer.

    A busy connection that is idle at this moment may send one more request, which then is its last: it is probably on
    its way, and would end in a reset. So is the rest of a head that has just begun.
    """
    context.tick()
    deadline = context.now + _FINISH_SECONDS
    last_words = context.now + _LAST_WORDS_SECONDS
    busy = set()
    for connection in list(context.connections):
        if connection.state in (FRESH, IDLE, HEADER) and context.now - connection.since < _BUSY_SECONDS:
            busy.add(connection)
        else:
            connection.finish()
    while time.monotonic() < last_words:
        if busy.isdisjoint(context.connections):
            break
        await asyncio.sleep(0.005)
    for connection in busy & context.connections:
        connection.finish()
    while time.monotonic() < deadline:
        if all(connection.is_finished for connection in context.connections):
            return
        context.tick()
        await asyncio.sleep(0.01)
