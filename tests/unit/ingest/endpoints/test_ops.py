"""One answer for all who ask for the metrics or the status at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from arcpipe.monitoring import snapshot
from tests.support.edge import Edge
from tests.support.http import request_bytes

METRICS = request_bytes("GET", "/metrics")


def slow_looks(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[None]]:
    """Have each look at the server wait for an event; return that, and a list with an item for each look."""
    may_look = threading.Event()
    take = snapshot.take
    taken: list[None] = []

    def slow_take(*arguments: Any) -> Any:
        assert may_look.wait(30)
        taken.append(None)
        return take(*arguments)

    monkeypatch.setattr(snapshot, "take", slow_take)
    return may_look, taken


def test_whoever_asks_behind_a_client_that_is_gone_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    may_look, taken = slow_looks(monkeypatch)
    with Edge() as edge:
        first, gone, behind, last = (edge.connect() for _ in range(4))
        first.feed(METRICS)  # its answer is being made: the others have the next one
        while edge.call(lambda: not first.connection.exchanges):
            edge.turn()
        for peer in (gone, behind, last):
            peer.feed(METRICS)
        gone.transport.abort()
        edge.turn()
        may_look.set()
        edge.settle()
        assert [peer.statuses for peer in (first, behind, last)] == [[200]] * 3
        assert gone.statuses == []
        assert 1 <= len(taken) <= 2
        assert edge.exceptions == []


def test_metrics_are_made_once_however_clients_spell_what_they_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each spelling had an answer of its own: 60 clients kept the thread of operations busy for seconds."""
    may_look, taken = slow_looks(monkeypatch)
    with Edge() as edge:
        peer = edge.connect()
        for number in range(30):
            peer.feed(request_bytes("GET", "/metrics", headers={"Accept": f"text/plain; spelling={number}"}))
            peer.feed(
                request_bytes("GET", "/metrics", headers={"Accept": f"application/openmetrics-text; spelling={number}"})
            )
        may_look.set()
        edge.settle()
        assert peer.statuses == [200] * 60
        assert peer.transport.written.count(b"# EOF\n") == 30
        assert len(taken) <= 4  # two for each form
        assert edge.exceptions == []
