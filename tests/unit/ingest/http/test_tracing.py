"""Request ids and lines of the access log, over a worker's real connections."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.tracing import IdentifiedExchange, LoggedExchange
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes

V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})


@pytest.fixture
def edge() -> Iterator[Edge]:
    with Edge(request_ids=True) as edge:
        yield edge
        assert edge.exceptions == []


def ids_of(peer: Peer) -> list[str]:
    return re.findall(r"\r\nX-Request-Id: (\S*)\r\n", bytes(peer.transport.written).decode())


def test_plain_exchanges_are_made_where_nothing_is_switched_on() -> None:
    with Edge() as plain:
        assert plain.context.exchange_kind is Exchange
        assert issubclass(plain.context.identified_kind, IdentifiedExchange)
        assert not issubclass(plain.context.identified_kind, LoggedExchange)
        peer = plain.connect()
        peer.feed(request_bytes("POST", V2, BODY) + request_bytes("GET", "/ping") + b"junk\r\n\r\n")
        plain.settle()
        assert ids_of(peer) == []
        assert b"X-Request-Id" not in peer.transport.written


def test_every_answer_has_an_id_of_its_own_or_the_client_s(edge: Edge) -> None:
    peer = edge.connect()
    own = {"X-Request-Id": "mine"}
    requests = [
        *[request_bytes("POST", V2, BODY)] * 4,  # parsed, and then known
        request_bytes("POST", V2, BODY, own),
        request_bytes("GET", "/ping"),
        request_bytes("HEAD", "/ping", headers=own),
        request_bytes("GET", "/nowhere", headers=own),
        request_bytes("POST", V2, b"\xc1", own),
        request_bytes("POST", V2, b"\xc1"),
        b"junk\r\n\r\n",
    ]
    for request in requests:
        peer.feed(request)
        edge.settle()
    assert peer.statuses == [202] * 5 + [204, 204, 404, 400, 400, 400]
    ids = ids_of(peer)
    assert len(ids) == len(requests)
    assert [number for number, found in enumerate(ids) if found == "mine"] == [4, 6, 7, 8]
    assert len(set(ids)) == len(requests) - 3


def test_a_refusal_with_an_id_is_counted_once_and_keeps_its_shape(edge: Edge) -> None:
    peer = edge.connect()
    peer.feed(request_bytes("POST", "/api/v2/write?bucket=b", b"no line", {"X-Request-Id": "mine"}))
    edge.settle()
    assert peer.statuses == [400]
    assert b'"message"' in peer.transport.written
    assert edge.context.refused["bad_request"] == 1


def test_lines_of_the_log_about_a_bug_have_the_id(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Exchange) -> None:
        raise RuntimeError("planted")

    route = edge.surface.routes[b"/ping"]
    route.endpoints[b"GET"] = route.endpoints[b"GET"]._replace(handler=fail)
    peer = edge.connect()
    with caplog.at_level(logging.ERROR):
        peer.feed(request_bytes("GET", "/ping", headers={"X-Request-Id": "mine"}))
        edge.settle()
    assert peer.statuses == [500]
    [record] = [record for record in caplog.records if "a bug in the handler" in record.message]
    fields: dict[str, Any] = record.__dict__["fields"]
    assert fields == {"request_id": "mine"}


def test_the_pages_tell_the_id_s_limits() -> None:
    from arcpipe.ingest.http.request_ids import is_harmless

    for page in ("config.toml", "docs/http-api.md", "docs/openapi.yaml"):
        text = (Path(__file__).parents[4] / page).read_text()
        assert "128\n# letters, digits and ._~:/+=@-" in text or "128 letters, digits and `._~:/+=@-`" in text, page
    assert is_harmless(b"aZ09._~:/+=@-")
