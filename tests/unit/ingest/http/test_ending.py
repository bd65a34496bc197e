"""The end of a connection: which request is the last one, what becomes of later bytes, and how long its client has.

The connections, the routes and the WAL are the real ones, in this process (tests/support/edge.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from arcpipe.ingest.http.linger import LINGER_SECONDS, Linger
from arcpipe.ingest.http.turns import TimeBudget
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes
from tests.support.wal_doubles import FaultyDisk

V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
WRITE = request_bytes("POST", V2, BODY)
LAST = request_bytes("POST", V2, BODY, {"Connection": "close"})
OLD = WRITE.replace(b"HTTP/1.1", b"HTTP/1.0")


class Stalled:
    """A worker whose disk waits."""

    def __init__(self, directory: Path) -> None:
        self.may_write = threading.Event()
        disk = FaultyDisk()
        self.edge = Edge(directory, disk, max_body_mb=1, max_pipelined=4)
        disk.fault = lambda operation, _: (operation == "write" and not self.may_write.wait(30)) or None

    def settle(self) -> None:
        self.may_write.set()
        self.edge.settle()

    @property
    def accepted(self) -> int:
        return self.edge.writes.accepted


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Stalled]:
    stalled = Stalled(tmp_path)
    with stalled.edge:
        yield stalled
        stalled.settle()
        assert stalled.edge.exceptions == []


def drain(edge: Edge) -> None:
    """As the worker does at SIGTERM."""
    edge.context.drain()
    for connection in list(edge.context.connections):
        edge.call(connection.finish)


def in_one_read(peer: Peer, *requests: bytes) -> None:
    peer.feed(b"".join(requests))


def in_a_read_each(peer: Peer, *requests: bytes) -> None:
    for request in requests:
        peer.feed(request)


def byte_by_byte(peer: Peer, *requests: bytes) -> None:
    for byte in b"".join(requests):
        peer.feed(bytes([byte]))


READS = pytest.mark.parametrize("send", [in_one_read, in_a_read_each, byte_by_byte])
Send = Callable[..., None]


@READS
@pytest.mark.parametrize("last", [LAST, OLD], ids=["close", "HTTP/1.0"])
def test_nothing_behind_the_clients_own_last_request_is_handled(stalled: Stalled, send: Send, last: bytes) -> None:
    peer = stalled.edge.connect()
    send(peer, WRITE, last, WRITE, WRITE, b"junk\r\n\r\n")
    stalled.settle()
    assert peer.statuses == [202, 202]
    assert peer.transport.ended
    assert stalled.accepted == 2
    assert stalled.edge.context.requests == 2
    assert not any(stalled.edge.context.refused.values())


@READS
def test_a_draining_worker_commits_nothing_after_the_last_answer(stalled: Stalled, send: Send) -> None:
    """A worker that drains commits nothing after the answer that ends a connection."""
    peer = stalled.edge.connect()
    stalled.edge.context.drain()
    send(peer, *[WRITE] * 4)
    stalled.settle()
    assert peer.statuses == [202]
    assert stalled.accepted == 1
    assert peer.transport.ended


@READS
def test_nothing_after_the_current_request_is_committed_in_a_drain(stalled: Stalled, send: Send) -> None:
    """Nothing that comes after the request that is under way at the drain is committed."""
    peer = stalled.edge.connect()
    peer.feed(WRITE + WRITE)
    drain(stalled.edge)
    send(peer, *[WRITE] * 3)
    stalled.settle()
    assert peer.statuses == [202, 202]
    assert stalled.accepted == 2


@pytest.mark.parametrize("at", [5, len(WRITE) - len(BODY) - 1])
def test_a_head_begun_before_the_drain_is_no_further_request(stalled: Stalled, at: int) -> None:
    """A head that has begun before the drain is no request after the last one."""
    peer = stalled.edge.connect()
    peer.feed(WRITE + WRITE[:at])
    drain(stalled.edge)
    peer.feed(WRITE[at:])
    stalled.edge.pass_seconds(100)  # nor is it waited for
    stalled.settle()
    assert peer.statuses == [202]
    assert stalled.accepted == 1


@pytest.mark.parametrize("identified", [False, True])
def test_a_listener_with_its_own_paths_drains_like_all(stalled: Stalled, identified: bool) -> None:
    write = WRITE.replace(b"\r\n\r\n", b"\r\nX-Request-Id: a\r\n\r\n", 1) if identified else WRITE
    peer = stalled.edge.connect(stalled.edge.paths("writes"))
    for _ in range(3):  # its head is known now
        peer.feed(write)
        stalled.settle()
    stalled.may_write.clear()
    peer.feed(write)
    drain(stalled.edge)
    peer.feed(write * 2)
    stalled.settle()
    assert peer.statuses == [202] * 4
    assert stalled.accepted == 4
    assert peer.transport.ended


def test_a_body_that_has_begun_before_the_drain_is_the_last_request(stalled: Stalled) -> None:
    peer = stalled.edge.connect()
    peer.feed(WRITE + WRITE[:-3])
    drain(stalled.edge)
    peer.feed(WRITE[-3:] + WRITE)
    stalled.settle()
    assert peer.statuses == [202, 202]
    assert stalled.accepted == 2


def test_a_drain_answers_begun_requests_and_writes_no_others(stalled: Stalled) -> None:
    """Requests that had begun at the drain are answered, and no later one is written."""
    peer = stalled.edge.connect()
    peer.feed(WRITE * 50)  # of which most waits for its turn
    drain(stalled.edge)
    stalled.settle()
    assert peer.statuses == [202] * stalled.accepted
    assert 1 <= stalled.accepted < 50
    assert peer.transport.ended


# Time


def test_a_silent_client_has_the_header_timeout_until_it_has_sent() -> None:
    """A client that never sends has the time of a head and one that has sent that of an idle one."""
    with Edge(header_timeout_seconds=5, keep_alive_seconds=50) as edge:
        silent, blank, used = edge.connect(), edge.connect(), edge.connect()
        blank.feed(b"\r\n")
        used.feed(request_bytes("GET", "/ping"))
        edge.pass_seconds(4)
        blank.feed(b"\r\n")
        assert not silent.transport.closed
        edge.pass_seconds(2)
        assert [peer.transport.closed for peer in (silent, blank, used)] == [True, True, False]
        assert silent.statuses == []
        edge.pass_seconds(50)
        assert used.transport.closed


@pytest.mark.parametrize(
    ("front", "trickle", "seconds"),
    [
        (b"", WRITE[: WRITE.index(b"\r\n\r\n")], 5),
        (request_bytes("POST", V2, b"", {"Content-Length": "500"}), b"x" * 100, 40),
        (request_bytes("POST", V2, b"", {"Transfer-Encoding": "chunked"}), b"c8\r\n" + b"x" * 100, 40),
        # It is not of the body, so no byte of that comes within the body's timeout.
        (request_bytes("POST", V2, b"", {"Transfer-Encoding": "chunked"}), b"5;a=" + b"x" * 100, 10),
    ],
    ids=["head", "length", "chunks", "chunk extension"],
)
def test_a_byte_each_second_moves_no_total_timeout(front: bytes, trickle: bytes, seconds: int) -> None:
    with Edge(header_timeout_seconds=5, body_timeout_seconds=10, max_body_seconds=40) as edge:
        peer = edge.connect()
        if front:
            peer.feed(front)
        for byte in trickle[:seconds]:
            assert peer.statuses == []
            peer.feed(bytes([byte]))
            edge.pass_seconds(1)
        edge.pass_seconds(0.5)
        assert peer.statuses == [408]
        assert peer.transport.ended


def test_a_body_that_pauses_for_less_than_its_timeout_is_taken() -> None:
    with Edge(body_timeout_seconds=10) as edge:
        peer = edge.connect()
        peer.feed(WRITE[: -len(BODY)])
        for byte in BODY:
            edge.pass_seconds(9)
            peer.feed(bytes([byte]))
        edge.settle()
        assert peer.statuses == [202]


def test_a_refused_body_may_come_for_longer_than_a_client_may_linger() -> None:
    """As of most programs, which read no answer before they have sent all."""
    with Edge(max_body_mb=1, body_timeout_seconds=10) as edge:
        peer = edge.connect()
        peer.feed(request_bytes("POST", V2, b"", {"Content-Length": str(32 << 20)}))
        assert peer.statuses == [413]
        for _ in range(4):
            peer.feed(bytes(1000))
            edge.pass_seconds(LINGER_SECONDS * 0.9)
            assert not peer.transport.closed
        edge.pass_seconds(LINGER_SECONDS)
        assert peer.transport.closed


def test_whoever_takes_a_byte_now_and_then_is_waited_for_and_not_for_ever() -> None:
    linger = Linger(0.0, longest_seconds=100.0, sending_seconds=10.0)
    for now in range(0, 100, 10):
        assert linger.goes_on(1000 - now, float(now), 15.0)
    assert not linger.goes_on(1, 100.5, 15.0)
    stopped = Linger(0.0, longest_seconds=100.0, sending_seconds=10.0)
    assert stopped.goes_on(1000, 1.0, 15.0)
    assert stopped.goes_on(1000, 15.0, 15.0)
    assert not stopped.goes_on(1000, 15.5, 15.0)


def test_whoever_has_taken_all_has_some_time_to_close() -> None:
    linger = Linger(0.0, longest_seconds=100.0, sending_seconds=10.0)
    assert linger.goes_on(1000, 5.0, 15.0)
    assert linger.goes_on(0, 8.0, 15.0)
    assert linger.goes_on(0, 8.0 + LINGER_SECONDS, 15.0)
    assert not linger.goes_on(0, 8.5 + LINGER_SECONDS, 15.0)
    at_once = Linger(0.0, longest_seconds=100.0, sending_seconds=10.0)
    assert not at_once.goes_on(0, LINGER_SECONDS + 0.25, 15.0)


def test_whoever_still_sends_is_waited_for_and_not_for_ever() -> None:
    linger = Linger(0.0, longest_seconds=100.0, sending_seconds=10.0)
    for now in range(12):
        linger.note_dropped(float(now))
        assert linger.goes_on(0, float(now), 15.0)
    linger.note_dropped(12.5)
    assert not linger.goes_on(0, 12.5, 15.0)


def test_a_slow_reader_gets_all_answers_before_a_last_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reader gets all answers ahead of a refusal that ends its connection."""
    with Edge(tmp_path, keep_alive_seconds=75) as edge:
        slow, gone = edge.connect(), edge.connect()
        for peer in (slow, gone):
            monkeypatch.setattr(peer.transport, "write", partial(write_and_pause, peer))
            peer.feed(request_bytes("GET", "/ping") * 3 + b"no request\r\n\r\n")
            assert peer.statuses == [204]
        edge.pass_seconds(70)
        monkeypatch.undo()
        edge.call(slow.connection.resume_writing)
        edge.turn()
        assert slow.statuses == [204] * 3 + [400]
        edge.pass_seconds(10)
        assert gone.transport.closed
        assert gone.statuses == [204]


def write_and_pause(peer: Peer, data: bytes) -> None:
    """As of a client that does not read: the transport has too much to send."""
    peer.transport.written += data
    peer.connection.pause_writing()


def test_a_read_that_has_the_end_of_tls_too_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS ends both directions at once, so that a rest of the read has no other turn; its answers are lost."""
    with Edge(tmp_path, budget=TimeBudget(slice_seconds=0.0001, turn_seconds=math.inf)) as edge:
        peer = edge.connect()
        monkeypatch.setattr(peer.transport, "can_write_eof", lambda: False)
        stream = b"".join(request_bytes("POST", V2, BODY, {"X-Pad": f"{number:04}" * 150}) for number in range(50))
        edge.call(lambda: peer.connection.data_received(stream))
        assert peer.connection.reading.rest
        assert not edge.call(peer.connection.eof_received)
        peer.transport.close()
        edge.settle()
        assert edge.writes.accepted == 50
        assert edge.context.kept_bytes == 0
        assert edge.exceptions == []
