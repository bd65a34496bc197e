"""The write endpoints without a server: what no request of a test could bring about."""

from __future__ import annotations

import mmap
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

from arcpipe.codec.columns import Encoded
from arcpipe.config import Settings
from arcpipe.counters import Counters
from arcpipe.ingest.background import Background
from arcpipe.ingest.limits import Admission
from arcpipe.ingest.protocol import Connection, Exchange
from arcpipe.ingest.turns import Turns
from arcpipe.ingest.write import Targets, WriteEndpoints
from arcpipe.wal.format import MAX_PAYLOAD_BYTES


def test_a_body_that_becomes_more_than_readers_of_the_log_take_is_413_and_not_appended() -> None:
    counted: list[str] = []
    connection: Any = SimpleNamespace(unrouted={}, exchanges=deque(), count_refusal=counted.append)
    exchange = Exchange(cast(Connection, connection), {})
    encoding = Background("encoding", lambda: True, lambda: None, interrupts=True)
    writes = WriteEndpoints(Admission(Settings(), Counters(1).node), encoding, Turns())  # without a WAL to append to
    target = Targets(None, writes.usage).of(exchange)
    body = memoryview(mmap.mmap(-1, MAX_PAYLOAD_BYTES))  # takes no memory
    writes.append(exchange, target, Encoded(False, body, 1), b"")
    assert exchange.response is not None
    assert exchange.response.startswith(b"HTTP/1.1 413 ")
    assert (writes.refused, writes.usage) == (1, {"default": [0, 0, 0]})
