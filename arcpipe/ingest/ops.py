"""The endpoints that tell how the instance is; whichever worker answers, it answers for all."""

from __future__ import annotations

from arcpipe import __version__
from arcpipe.counters import Counters, Node
from arcpipe.ingest import responses
from arcpipe.ingest.limits import Admission
from arcpipe.ingest.protocol import Exchange


class OpsEndpoints:
    """Handlers of everything that is not a write."""

    def __init__(self, counters: Counters, admission: Admission) -> None:
        self._counters = counters
        self._admission = admission

    def health(self, exchange: Exchange) -> None:
        """Alive: this worker answers."""
        status = {"status": "ok", "service": "arcpipe", "version": __version__, "workers": self._counters.workers}
        exchange.answer(responses.json(200, status))

    def ready(self, exchange: Exchange) -> None:
        """Whether a load balancer should send writes here."""
        if self._counters.node[Node.DRAINING]:
            exchange.answer(responses.error(503, "draining", "this instance is shutting down"))
            return
        exchange.answer(self._admission.refusal() or responses.json(200, {"status": "ready"}))
