"""Turns of the loop: what one connection may do in one, and what it may keep for the next.

The connections, the routes and the WAL are the real ones, in this process (tests/support/edge.py), so that a test can
look between two turns. Each stream takes hundreds of times as long as a turn.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcpipe.ingest.http.turns import TimeBudget, Turns
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes

V2 = "/write/v2/msgpack"
WRITE = request_bytes("POST", V2, pack({"m": "cpu", "columns": {"usage": [0.5]}}))
NOTHING = request_bytes("GET", "/nothing")
PING = request_bytes("GET", "/ping")
KB = 1 << 10


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with Edge(tmp_path, budget=TimeBudget(), max_inflight_mb=8, max_headers=20, max_header_kb=8) as edge:
        yield edge
        assert edge.exceptions == []


def read(edge: Edge, peer: Peer, data: bytes) -> None:
    """One read of the server, without the turns that follow."""
    edge.call(lambda: peer.connection.data_received(data))


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (NOTHING * 6000, 404),
        (request_bytes("GET", "/ping?" + "&".join(f"a{number}=1" for number in range(32))) * 1000, 204),
        ((WRITE + NOTHING) * 1500, 0),
    ],
)
def test_one_read_of_many_requests_is_handled_in_many_turns(edge: Edge, stream: bytes, status: int) -> None:
    attacker, victim = edge.connect(), edge.connect()
    count = stream.count(b" HTTP/1.1\r\n")
    read(edge, attacker, stream)
    seen: list[Any] = []
    while attacker.connection.reading.rest:
        assert not attacker.transport.reads
        seen.append(len(attacker.statuses))
        read(edge, victim, PING)
        edge.turn()
    edge.settle()
    assert len(seen) > 1
    assert seen[0] < count // 4
    assert victim.statuses == [204] * len(seen)
    assert attacker.transport.reads
    assert len(attacker.statuses) == count
    assert set(attacker.statuses) == ({status} if status else {202, 404})
    assert edge.context.kept_bytes == 0


def test_one_byte_chunks_are_taken_in_many_turns_and_make_the_body(edge: Edge) -> None:
    attacker, victim = edge.connect(), edge.connect()
    body = pack({"m": "cpu", "columns": {"pad": [bytes(70_000)]}})
    stream = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % V2.encode()
    stream += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    read(edge, attacker, stream)
    turns = 0
    while attacker.connection.reading.rest:
        turns += 1
        read(edge, victim, PING)
        edge.turn()
    edge.settle()
    assert turns > 1
    assert victim.statuses == [204] * turns
    assert attacker.statuses == [202]


def test_a_turn_of_thousands_of_reads_shows_life() -> None:
    async def run() -> tuple[int, int]:
        signs: list[None] = []
        turns = Turns(TimeBudget(), lambda: signs.append(None))
        for _ in range(1000):
            turns.charge(0.01)
        many = len(signs)
        await asyncio.sleep(0)  # the next turn
        for _ in range(24):
            turns.charge(0.01)
        return many, len(signs) - many

    many, few = asyncio.run(run())
    assert 30 <= many <= 40
    assert few == 0


def test_connections_have_their_turns_one_after_the_other(edge: Edge) -> None:
    peers = [edge.connect() for _ in range(4)]
    for peer in peers:
        read(edge, peer, NOTHING * 2000)
    while any(peer.connection.reading.rest for peer in peers):
        edge.turn()
        if all(peer.connection.reading.rest for peer in peers):
            counts = [len(peer.statuses) for peer in peers]
            assert min(counts) > 0
    assert [len(peer.statuses) for peer in peers] == [2000] * 4


def test_what_reads_keep_for_later_turns_is_counted_and_bounded(edge: Edge) -> None:
    """An eighth of half of max_inflight_mb: two reads of 250 kB and no third."""
    peers = [edge.connect() for _ in range(3)]
    for peer in peers:
        read(edge, peer, NOTHING * (240 * KB // len(NOTHING)))
    assert 0 < edge.context.kept_bytes <= 512 * KB
    assert peers[2].statuses[-1] == 503
    assert b'"inflight"' in peers[2].transport.written
    while edge.context.kept_bytes:
        edge.turn()
    assert set(peers[0].statuses) == set(peers[1].statuses) == {404}


def test_a_rest_is_forgotten_with_its_connection(edge: Edge) -> None:
    lost, ended = edge.connect(), edge.connect()
    read(edge, lost, NOTHING * 6000)
    read(edge, ended, NOTHING * 3000 + b"nonsense\r\n\r\n" + NOTHING * 3000)
    lost.transport.abort()
    while edge.context.kept_bytes:
        edge.turn()
    assert ended.statuses == [404] * 3000 + [400]
    assert ended.transport.ended


def test_a_client_that_half_closes_gets_all_of_its_answers(edge: Edge) -> None:
    peer = edge.connect()
    read(edge, peer, NOTHING * 6000)
    assert edge.call(peer.connection.eof_received)
    while edge.context.kept_bytes:
        edge.turn()
    edge.turn()
    assert peer.statuses == [404] * 6000
    assert peer.transport.closed


def test_a_worker_that_drains_answers_one_more_request_of_a_rest(edge: Edge) -> None:
    peer = edge.connect()
    read(edge, peer, NOTHING * 6000)
    edge.context.drain()
    edge.call(peer.connection.finish)
    while edge.context.kept_bytes:
        edge.turn()
    assert peer.transport.ended
    assert bytes(peer.transport.written).count(b"Connection: close") == 1


def test_clients_that_do_not_read_take_no_place_of_others(edge: Edge) -> None:
    """Clients that do not read answers do not take the place of those that do."""
    unread = [edge.connect() for _ in range(3)]
    for peer in unread:
        peer.connection.pause_writing()
        read(edge, peer, NOTHING * 5000)
        edge.context.now += 1
    assert edge.context.kept_bytes > edge.context.limits.max_kept // 2
    peer = edge.connect()
    read(edge, peer, (WRITE + NOTHING) * 1500)
    edge.settle()
    edge.turn()
    assert peer.statuses == [202, 404] * 1500
    assert unread[0].transport.closed
    assert not unread[-1].transport.closed
    edge.call(unread[-1].connection.resume_writing)
    edge.settle()
    assert unread[-1].statuses == [404] * 5000
    assert edge.context.kept_bytes == 0
    assert edge.context.refused["inflight"] == sum(peer.transport.closed for peer in unread)


# Numbers and heads


@pytest.mark.parametrize("digits", [20, 4301])
def test_a_content_length_of_too_many_digits_is_400(edge: Edge, digits: int) -> None:
    peer = edge.connect()
    peer.feed(request_bytes("POST", V2, b"", {"Content-Length": "0" * (digits - 1) + "1"}))
    assert peer.statuses == [400]
    assert b"Content-Length has more than 19 digits" in peer.transport.written


def test_too_many_headers_are_refused_before_the_head_is_complete(edge: Edge) -> None:
    peer = edge.connect()
    peer.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(21)))
    assert peer.statuses == [431]
    assert b"server.max_headers = 20" in peer.transport.written


def test_too_long_heads_are_refused_before_they_are_complete(edge: Edge) -> None:
    lines, value = edge.connect(), edge.connect()
    lines.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d: %b\r\n" % (n, b"x" * KB) for n in range(12)))
    value.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\npad: " + b"x" * 200 * KB)
    assert lines.statuses == value.statuses == [431]


@pytest.mark.parametrize("unfinished", [b"0\r\npad: ", b"1;pad="])
def test_a_trailer_that_never_ends_is_refused_as_a_head_is(edge: Edge, unfinished: bytes) -> None:
    peer, other = edge.connect(), edge.connect()
    start = b"POST %b HTTP/1.1\r\nHost: x\r\npad: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % (
        V2.encode(),
        b"x" * 7 * KB,
    )
    peer.feed(start)
    peer.feed(b"1\r\na\r\n" + unfinished)
    for _ in range(7):
        assert peer.feed(b"x" * KB)
        assert peer.statuses == []
    assert edge.context.inflight._arriving_bytes > 7 * KB
    peer.feed(b"x" * 2 * KB)
    assert peer.statuses == [431]
    assert edge.holds_no_body
    body = b"".join(b"%b\r\n%c\r\n" % (b"1;pad=" + b"x" * KB, byte) for byte in pack({"m": "m", "columns": {"n": [1]}}))
    for at in range(0, len(body), 100):
        other.feed((b"" if at else start) + body[at : at + 100])
    other.feed(b"0\r\n" + b"pad: x\r\n" * 100 + b"\r\n")
    edge.settle()
    assert other.statuses == [202]


def test_unfinished_heads_are_counted_until_they_are_complete(edge: Edge) -> None:
    peers = [edge.connect() for _ in range(3)]
    for peer in peers:
        peer.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\npad: " + b"x" * KB + b"\r\n")
    assert edge.context.inflight._arriving_bytes > 3 * KB
    peers[0].feed(b"\r\n")
    peers[1].transport.abort()
    peers[2].feed(b"nonsense\r\n\r\n")
    edge.turn()
    assert [peer.statuses for peer in peers] == [[204], [], [400]]
    assert edge.holds_no_body


def test_heads_of_unanswered_requests_are_bounded(edge: Edge) -> None:
    """Those of /metrics are kept until it is answered."""
    peer = edge.connect()
    head = b"GET /metrics?%d HTTP/1.1\r\nHost: x\r\npad: " + b"x" * 7 * KB + b"\r\n\r\n"
    stream = b"".join(head % number for number in range(30))
    read(edge, peer, stream)
    while peer.connection.paused & 16:
        edge.turn()
    assert len(peer.connection.exchanges) < 15
    edge.settle()
    assert peer.statuses == [200] * 30


@pytest.mark.parametrize("is_used_up", [False, True])
def test_a_read_behind_a_turn_that_is_used_up_has_little_time(
    is_used_up: bool,
) -> None:
    """Thousands of clients may have sent in one turn of the loop, which cannot give each of them a millisecond."""
    budget = TimeBudget(slice_seconds=math.inf)
    with Edge(budget=budget) as edge:
        peer = edge.connect()

        def step() -> int:
            edge.context.turns.charge(budget.turn_seconds if is_used_up else 0.0)
            peer.connection.data_received(NOTHING * 4000)
            return edge.context.kept_bytes

        assert bool(edge.call(step)) == is_used_up
        while edge.context.kept_bytes:
            edge.turn()
        assert peer.statuses == [404] * 4000
