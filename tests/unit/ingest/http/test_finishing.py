"""The end of a worker: what becomes of requests that are still arriving."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from arcpipe.ingest.http.finishing import finish_requests
from arcpipe.ingest.http.states import ANSWER, FRESH, HEADER, IDLE


class Sender:
    """A connection whose request is complete in the next turn of the loop, and is its last one then."""

    def __init__(self, context: Context, state: int, since: float) -> None:
        self.state = state
        self.since = since
        self.is_finished = False
        self.was_cut_off = False
        self._context = context

    def send_the_rest(self) -> None:
        if not self.was_cut_off:
            self.state = ANSWER
            self._context.connections.discard(self)

    def finish(self) -> None:
        self.was_cut_off = self.state in (FRESH, IDLE, HEADER)
        self.is_finished = True


class Context:
    """The part of the worker's context that the end looks at."""

    def __init__(self) -> None:
        self.connections: set[Sender] = set()
        self.tick()

    def tick(self) -> None:
        self.now = time.monotonic()


@pytest.mark.parametrize("state", [FRESH, IDLE, HEADER])
@pytest.mark.parametrize("age_seconds", [0.0, 60.0])
def test_a_request_on_its_way_is_the_last_one(state: int, age_seconds: float) -> None:
    """A head that comes in two packets is on its way as well. Who has sent nothing for long is not waited for."""
    context = Context()
    sender = Sender(context, state, context.now - age_seconds)
    context.connections.add(sender)

    async def end() -> None:
        asyncio.get_running_loop().call_soon(sender.send_the_rest)
        await finish_requests(cast(Any, context))

    asyncio.run(end())
    assert sender.was_cut_off == (age_seconds > 1)
