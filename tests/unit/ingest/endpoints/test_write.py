"""The write endpoints without a server: what no request of a test could bring about."""

from __future__ import annotations

import errno
import mmap
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.access import tokens
from arcpipe.access.tokens import Token
from arcpipe.codec.columns import Encoded
from arcpipe.config.settings import Settings
from arcpipe.counters import MAX_DATABASES, Counters
from arcpipe.errors import BadPayload, NotAllowed
from arcpipe.ingest.endpoints.admission import Admission
from arcpipe.ingest.endpoints.targets import Targets
from arcpipe.ingest.endpoints.write import WriteEndpoints
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.background import Background
from arcpipe.ingest.http.connection import Connection
from arcpipe.ingest.http.exchange import Exchange
from arcpipe.ingest.http.turns import TimeBudget, TooLong, Turns
from arcpipe.names import is_database_name
from arcpipe.wal.format import MAX_PAYLOAD_BYTES
from tests.support.edge import ALL_THE_TIME, Edge
from tests.support.http import pack, request_bytes
from tests.support.prometheus_messages import V1
from tests.support.wal_doubles import FaultyDisk


def body(records: int) -> bytes:
    return pack({"m": "cpu", "columns": {"usage": [0.5] * records}})


def write(database: str, records: int, token: str = "") -> bytes:
    headers = {"x-arc-database": database} | ({"Authorization": f"Bearer {token}"} if token else {})
    return request_bytes("POST", "/write/v2/msgpack", body(records), headers)


def test_a_body_that_becomes_too_large_an_entry_is_413() -> None:
    """A body that becomes more than readers of the WAL take is 413 and not appended."""
    counted: list[str] = []
    connection: Any = SimpleNamespace(unrouted={}, exchanges=deque(), count_refusal=counted.append)
    exchange = Exchange(cast(Connection, connection), {})
    encoding = Background("encoding", lambda: True, lambda: None, interrupts=True)
    no_wal: Any = None
    writes = WriteEndpoints(Admission(Settings(), Counters(1).node), encoding, Turns(TimeBudget()), no_wal)
    target = Targets(None).of(exchange)
    body = memoryview(mmap.mmap(-1, MAX_PAYLOAD_BYTES))  # takes no memory
    writes.append(exchange, target, Encoded(False, body, 1), b"")
    assert exchange.response is not None
    assert exchange.response.startswith(b"HTTP/1.1 413 ")
    assert (writes.refused, writes.usage) == (1, {})


# Databases


@given(name=st.text() | st.sampled_from(["Home Assistant", "..", "a/b", "_x", "ü" * 64, "ü" * 65]))
def test_a_name_is_the_same_wherever_it_stands(name: str) -> None:
    """In a header, as `db`, and as `bucket`, where a retention policy may follow."""
    raw = name.encode("utf-8", "surrogatepass")
    query = quote_from_bytes(raw, safe=b"").encode()
    ways = [({b"x-arc-database": raw}, b"db=other"), ({}, b"db=" + query), ({}, b"bucket=" + query)]
    for headers, given_query in [*ways, ({}, b"bucket=" + query + b"/autogen")]:
        exchange = Exchange(cast(Connection, SimpleNamespace(unrouted={})), headers, query=given_query)
        if is_database_name(name):
            assert Targets(None).of(exchange).database == name
        elif given_query.startswith(b"bucket") and is_database_name(name.partition("/")[0]):
            assert Targets(None).of(exchange).database == name.partition("/")[0]
        else:
            with pytest.raises(BadPayload):
                Targets(None).of(exchange)


@given(name=st.text(max_size=64).filter(is_database_name), other=st.text(max_size=64).filter(is_database_name))
def test_a_token_is_for_its_databases_alone(name: str, other: str) -> None:
    exchange = Exchange(cast(Connection, SimpleNamespace(unrouted={})), {b"x-arc-database": name.encode()})
    exchange.databases = frozenset((other,))
    targets = Targets(None)
    for _ in range(2):  # the first time, and when it is known
        if name == other:
            assert targets.of(exchange).database == name
        else:
            with pytest.raises(NotAllowed, match="this token is not for the database"):
                targets.of(exchange)


# What is counted


def test_records_of_a_failed_group_are_not_counted_as_accepted(tmp_path: Path) -> None:
    """Records of a group that could not be written are not counted as taken in."""
    fails = threading.Event()

    def fault(operation: str, _: str) -> None:
        if operation == "write" and fails.is_set():
            raise OSError(errno.EIO, "broken")

    disk = FaultyDisk()
    disk.fault = fault
    with Edge(tmp_path, disk) as edge:
        peer = edge.connect()
        for set_fault in (fails.clear, fails.set, fails.clear):
            set_fault()
            peer.feed(write("db1", 3) + write("db2" if fails.is_set() else "db1", 3))
            edge.settle()
        assert peer.statuses == [202, 202, 503, 503, 202, 202]
        assert edge.writes.usage == {"db1": [4, 12, 4 * len(body(3))]}
        assert (edge.writes.accepted, edge.writes.refused) == (4, 2)


def test_names_that_are_refused_take_no_place_among_those_that_are_counted(tmp_path: Path) -> None:
    token_id, text = tokens.generate()
    digest = tokens.digest(text.encode()).hex()
    token = Token(id=token_id, sha256=digest, scopes=("write",), created=datetime.now(UTC), databases=("real",))
    with Edge(tmp_path) as edge:
        edge.context.auth = Auth([token])
        peer = edge.connect()
        for number in range(MAX_DATABASES + 10):
            peer.feed(write(f"invented{number}", 1, text))
            edge.settle()
        peer.feed(write("real", 1, text))
        edge.settle()
        assert peer.statuses == [403] * (MAX_DATABASES + 10) + [202]
        assert edge.writes.usage == {"real": [1, 1, len(body(1))]}
        assert all(len(targets._known) <= 1 for targets in edge.writes._targets.values())


def test_names_beyond_the_last_place_are_counted_together(tmp_path: Path) -> None:
    with Edge(tmp_path) as edge:
        peer = edge.connect()
        for number in range(MAX_DATABASES + 10):
            peer.feed(write(f"db{number}", 2))
            edge.settle()
        usage = edge.writes.usage
        assert len(usage) == MAX_DATABASES
        assert usage[""] == [11, 22, 11 * len(body(2))]


# Where bodies are encoded


def test_of_tiny_bodies_that_take_too_long_one_is_tried_in_each_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was tried in the loop and done anew on the thread, so clients that pipelined them stalled all others."""
    tried: list[None] = []
    check = Turns.check

    def counted(turns: Turns, *arguments: Any) -> None:
        try:
            check(turns, *arguments)
        except TooLong:
            tried.append(None)
            raise

    monkeypatch.setattr(Turns, "check", counted)
    lines = request_bytes("POST", "/api/v1/ingest/cpu", b'{"usage":0.5}', {"Content-Type": "application/x-ndjson"})
    with Edge(tmp_path, budget=ALL_THE_TIME._replace(small_seconds=-1.0)) as edge:
        peer = edge.connect()
        for count in (40, 20):
            tried.clear()
            peer.feed(lines * count)
            assert len(tried) == 1
            edge.settle()
        assert peer.statuses == [202] * 60
        assert edge.exceptions == []


@pytest.mark.parametrize("path", ["/v1/logs", "/api/v1/write"])
def test_a_tiny_body_of_telemetry_has_as_long_in_the_loop_as_a_small_one(tmp_path: Path, path: str) -> None:
    """None is done within the time of other tiny ones, so each was begun twice."""
    series = V1["WriteRequest"]()
    one = series.timeseries.add()
    one.labels.add(name="__name__", value="up")
    one.samples.add(timestamp=1_700_000_000_000, value=1.0)
    body = b"\x0a\x04\x12\x02\x12\x00" if path == "/v1/logs" else bytes(series.SerializeToString())
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "identity"}
    with Edge(tmp_path, budget=ALL_THE_TIME._replace(small_seconds=-1.0)) as edge:
        peer = edge.connect()
        peer.feed(request_bytes("POST", path, body, headers))
        edge.settle()
        assert peer.statuses == [200 if path == "/v1/logs" else 204]
        assert edge.context.encoding.finished == 0
