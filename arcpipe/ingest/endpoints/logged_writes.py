"""Write endpoints of a worker with an access log."""

from __future__ import annotations

from time import perf_counter

from arcpipe.codec.columns import Encoded
from arcpipe.ingest.endpoints.idempotency import Claim
from arcpipe.ingest.endpoints.targets import Target, Targets
from arcpipe.ingest.endpoints.write import WriteEndpoints
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.tracing import LoggedExchange


class LoggedWrites(WriteEndpoints):
    """Write endpoints that note in each exchange its fields of the access log."""

    def _find(self, exchange: Exchange, targets: Targets) -> Target:
        target = super()._find(exchange, targets)
        if isinstance(exchange, LoggedExchange):
            exchange.database = target.database
            exchange.body_bytes = len(exchange.body)
        return target

    def append(self, exchange: Exchange, target: Target, encoded: Encoded, answer: bytes) -> None:
        if isinstance(exchange, LoggedExchange):
            exchange.records = encoded[2]
            exchange.appended = perf_counter()
        super().append(exchange, target, encoded, answer)

    def replay(self, exchange: Exchange, target: Target, answer: bytes, encoded: Encoded, first: Claim) -> None:
        if isinstance(exchange, LoggedExchange):
            exchange.records = 0
        super().replay(exchange, target, answer, encoded, first)
