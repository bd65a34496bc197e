"""Requests whose heads are known are handled as the parser would have had them handled.

Two workers, of which one remembers no head, get the same bytes in the same reads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpipe.ingest.endpoints.idempotency import RecentKeys
from arcpipe.ingest.http.auth import Auth
from arcpipe.ingest.http.head_cache import MAX_HEAD_BYTES
from arcpipe.ingest.http.states import ANSWER, IDLE
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes
from tests.support.kernel import kernel_of_checkout
from tests.support.tokens import new_token
from tests.support.waiting import WAIT_SECONDS
from tests.support.wal_doubles import FaultyDisk

NOW = datetime.now(UTC)
V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
WRITE = request_bytes("POST", V2, BODY)


class _NoHeads(dict[bytes, Any]):
    """Forgets what it is told."""

    def __setitem__(self, key: bytes, value: Any) -> None:
        pass


class Edges(NamedTuple):
    usual: Edge
    parsing: Edge  # has every head parsed
    may_write: threading.Event  # disks and decoding wait for it: so no answer comes by chance between two reads

    def wait(self) -> None:
        assert self.may_write.wait(WAIT_SECONDS)


@pytest.fixture(scope="module")
def edges() -> Iterator[Edges]:
    may_write = threading.Event()
    may_write.set()
    disk = FaultyDisk()
    disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
    with ExitStack() as stack:
        stack.callback(may_write.set)
        usual, parsing = (
            stack.enter_context(Edge(None, disk, max_body_mb=1, max_inflight_mb=2, max_pipelined=4, max_header_kb=8))
            for _ in range(2)
        )
        parsing.surface.heads.known = _NoHeads()
        for each in (usual, parsing):  # what they know depends on the time of a commit
            each.writes._recent = RecentKeys(0.0)
        yield Edges(usual, parsing, may_write)
        may_write.set()


@pytest.fixture
def edge() -> Iterator[Edge]:
    with Edge(max_body_mb=1) as edge:
        yield edge
        assert edge.exceptions == []


def learned(edge: Edge, request: bytes = WRITE) -> Peer:
    """A connection of a worker that knows the head of the request."""
    peer = edge.connect()
    for _ in range(2):
        peer.feed(request)
        edge.settle()
    assert edge.surface.heads.known
    return peer


def count_parsed(peer: Peer) -> list[int]:
    """A list that gets the size of what is given to the parser."""
    sizes: list[int] = []
    parser = peer.connection.parser
    feed = parser.feed

    class Counting(type(parser)):  # type: ignore[misc]
        __slots__ = ()

        def feed(self, data: bytes, is_last: bool) -> None:
            sizes.append(len(data))
            feed(data, is_last)

    parser.__class__ = Counting
    return sizes


def with_length(length: str, body: bytes = BODY, extra: str = "") -> bytes:
    return f"POST {V2} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{extra}\r\n".encode() + body


# What is taken, and what is left to the parser


def test_a_head_is_parsed_twice_and_then_known_whatever_its_length(edge: Edge) -> None:
    peer = learned(edge)
    parsed = count_parsed(peer)
    other = pack({"m": "cpu", "columns": {"usage": [0.5, 1, 2]}})
    peer.feed(WRITE + request_bytes("POST", V2, other) + WRITE)
    edge.settle()
    assert peer.statuses == [202] * 5
    assert parsed == []
    assert peer.connection.state == IDLE
    assert edge.context.requests == 5


def test_a_head_that_comes_once_is_not_kept(edge: Edge) -> None:
    peer = edge.connect()
    for number in range(50):
        peer.feed(request_bytes("POST", f"{V2}?db=d{number}", BODY))
        edge.settle()
    assert edge.surface.heads.known == {}


@pytest.mark.parametrize(
    "extra",
    [
        "Connection: keep-alive\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: websocket\r\n",
        "X-Two: 1\r\nX-Two: 2\r\n",
        f"X-Long: {'x' * MAX_HEAD_BYTES}\r\n",
    ],
)
def test_an_unusual_head_is_parsed_each_time(edge: Edge, extra: str) -> None:
    peer = edge.connect()
    for _ in range(4):
        peer.feed(with_length(str(len(BODY)), extra=extra))
        edge.settle()
    assert edge.surface.heads.known == {}


@pytest.mark.parametrize("length", ["+30", "-1", " 30", "3_0", "", "30 ", "0x1e", "٣٠", "9" * 30, "30, 30", "1e1"])
def test_a_length_that_is_no_number_is_refused_as_ever(edge: Edge, length: str) -> None:
    peer = learned(edge, with_length(str(len(BODY))))
    strange = edge.connect()
    strange.feed(with_length(length, b""))
    edge.settle()
    unknown = edge.connect()
    unknown.feed(with_length(length, b"", "X-Else: 1\r\n"))
    edge.settle()
    assert bytes(strange.transport.written) == bytes(unknown.transport.written)
    assert peer.statuses == [202, 202]


def test_a_length_above_the_limit_is_refused(edge: Edge) -> None:
    learned(edge, with_length(str(len(BODY))))
    peer = edge.connect()
    peer.feed(with_length(str((1 << 20) + 1), b""))
    edge.settle()
    assert peer.statuses == [413]


def test_a_body_that_is_not_whole_is_waited_for_and_times_out(edge: Edge) -> None:
    peer = learned(edge)
    peer.feed(WRITE[:-1])
    edge.pass_seconds(100)
    assert peer.statuses == [202, 202, 408]


def test_the_rest_of_a_read_behind_known_heads_is_parsed(edge: Edge) -> None:
    peer = learned(edge)
    peer.feed(WRITE + request_bytes("GET", "/ping") + WRITE[:40])
    peer.feed(WRITE[40:])
    edge.settle()
    assert peer.statuses == [202, 202, 202, 204, 202]


def test_a_known_head_within_a_body_is_body(edge: Edge) -> None:
    peer = learned(edge)
    within = request_bytes("POST", V2, WRITE)
    assert peer.feed(within[: -len(WRITE)])
    assert peer.feed(WRITE)
    edge.settle()
    assert peer.statuses == [202, 202, 400]


def test_bytes_behind_a_request_that_ends_the_connection_are_no_request(edge: Edge) -> None:
    learned(edge)
    peer = edge.connect()
    peer.feed(request_bytes("POST", V2, BODY, {"Connection": "close"}))
    peer.feed(WRITE)
    edge.settle()
    assert peer.statuses == [202]
    assert edge.writes.accepted == 3


def test_a_worker_that_drains_ends_connections_with_known_heads_too(edge: Edge) -> None:
    peer = learned(edge)
    edge.context.drain()
    peer.feed(WRITE)
    edge.settle()
    assert b"Connection: close" in peer.transport.written
    assert peer.transport.ended


def test_more_than_may_be_pipelined_waits(edge: Edge) -> None:
    peer = learned(edge)
    peer.feed(WRITE * 1000)
    assert not peer.transport.reads
    assert peer.connection.state == ANSWER
    edge.settle()
    assert peer.statuses == [202] * 1002
    assert peer.transport.reads


# Request ids


def ids_of(peer: Peer) -> list[str]:
    return re.findall(r"X-Request-Id: (\S*)\r\n", bytes(peer.transport.written).decode())


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Request-ID", "x-request-id"])
def test_a_head_with_another_id_is_known_and_has_its_own_answer(edge: Edge, name: str) -> None:
    """A head that differs in its id alone is known, and answered with its own id."""

    def write(number: int) -> bytes:
        return request_bytes("POST", V2, BODY, {name: f"id-{number}"})

    peer = edge.connect()
    for number in range(2):
        peer.feed(write(number))
        edge.settle()
    parsed = count_parsed(peer)
    peer.feed(write(2) + write(3) + write(0))
    peer.feed(write(4))
    edge.settle()
    assert parsed == []
    assert peer.statuses == [202] * 6
    assert ids_of(peer) == [f"id-{number}" for number in (0, 1, 2, 3, 0, 4)]
    assert len(edge.surface.heads.known) == 1


@pytest.mark.parametrize("bad", ["a b", "a,b", 'a"', "ä", "x" * 129, "", "a\tb", "<a>", "%41", "a;b"])
def test_an_id_that_is_not_harmless_is_not_given_back_nor_known(edge: Edge, bad: str) -> None:
    peer = edge.connect()
    for _ in range(3):
        peer.feed(request_bytes("POST", V2, BODY, {"X-Request-Id": "good"}))
        peer.feed(request_bytes("POST", V2, BODY, {"X-Request-Id": bad}))
        edge.settle()
    assert peer.statuses == [202] * 6
    assert ids_of(peer) == ["good"] * 3
    assert len(edge.surface.heads.known) == 1


def test_an_id_sent_twice_is_not_given_back(edge: Edge) -> None:
    peer = edge.connect()
    for _ in range(3):
        peer.feed(request_bytes("POST", V2, BODY, {"X-Request-Id": "one"}))
        peer.feed(request_bytes("POST", V2, BODY, {"X-Request-Id": "one", "x-request-id": "two"}))
        edge.settle()
    assert peer.statuses == [202] * 6
    assert ids_of(peer) == ["one"] * 3


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key"])
def test_a_head_with_another_idempotency_key_is_known_and_has_its_own_key(edge: Edge, name: str) -> None:
    def write(key: str) -> bytes:
        return request_bytes("POST", V2, BODY, {name: key})

    peer = edge.connect()
    for key in ("one", '"two"'):
        peer.feed(write(key))
        edge.settle()
    parsed = count_parsed(peer)
    peer.feed(write("three") + write('"four"'))
    edge.settle()
    peer.feed(write('"three"'))
    edge.settle()
    assert parsed == []
    assert peer.statuses == [202] * 5
    answers = bytes(peer.transport.written).split(b"HTTP/1.1 ")[1:]
    assert [b"Idempotency-Replayed: true" in answer for answer in answers] == [False] * 4 + [True]
    assert len(edge.surface.heads.known) == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_a_head_with_another_key_and_another_id_is_known(edge: Edge, order: tuple[int, int, int]) -> None:
    def write(number: int, key: str, count: int = 1) -> bytes:
        body = pack({"m": "cpu", "columns": {"usage": [0.5] * count}})
        lines = (f"Idempotency-Key: {key}", f"Content-Length: {len(body)}", f"X-Request-Id: id-{number}")
        head = [f"POST {V2} HTTP/1.1", "Host: x", *(lines[place] for place in order), "Accept: */*", "", ""]
        return "\r\n".join(head).encode() + body

    peer = edge.connect()
    for number in range(2):
        peer.feed(write(number, f"key-{number}"))
        edge.settle()
    parsed = count_parsed(peer)
    peer.feed(write(2, "long" * 30, 1000) + write(300, '"two"') + write(4, "3"))
    edge.settle()
    peer.feed(write(5, "two"))
    edge.settle()
    assert parsed == []
    peer.feed(write(6, "no key") + write(7, "4").replace(b"id-7", b"no id"))
    edge.settle()
    assert peer.statuses == [202] * 6 + [400, 202]
    assert ids_of(peer)[:7] == [f"id-{number}" for number in (0, 1, 2, 300, 4, 5, 6)]
    answers = bytes(peer.transport.written).split(b"HTTP/1.1 ")[1:]
    assert [b"Idempotency-Replayed: true" in answer for answer in answers] == [False] * 5 + [True] + [False] * 2
    assert len(edge.surface.heads.known) == 1


@pytest.mark.parametrize("bad", ["a b", "a,b", 'a"', "x" * 129, "", "a\tb", "a;b", '"a'])
def test_a_bad_idempotency_key_is_refused_in_a_known_head_too(edge: Edge, bad: str) -> None:
    peer = edge.connect()
    for number in range(3):
        peer.feed(request_bytes("POST", V2, BODY, {"Idempotency-Key": f"good-{number}"}))
        peer.feed(request_bytes("POST", V2, BODY, {"Idempotency-Key": bad}))
        edge.settle()
    assert peer.statuses == [202, 400] * 3


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("is_before", [True, False])
def test_keys_and_lengths_of_any_size_are_cut_from_known_heads(edge: Edge, is_before: bool, by_kernel: bool) -> None:
    edge.surface.heads.kernel = kernel_of_checkout().Outline if by_kernel else None

    def write(key: str, count: int) -> bytes:
        body = pack({"m": "cpu", "columns": {"usage": [0.5] * count}})
        lines = [f"Idempotency-Key: {key}", f"Content-Length: {len(body)}"][:: 1 if is_before else -1]
        return "\r\n".join([f"POST {V2} HTTP/1.1", "Host: x", *lines, "Accept: */*", "", ""]).encode() + body

    peer = edge.connect()
    for number in range(2):
        peer.feed(write(f"first-{number}", 1))
        edge.settle()
    parsed = count_parsed(peer)
    keys = [letter * size for size in (1, 36, 2, 128, 127, 35) for letter in "ab"]
    for times in range(2):
        for count, key in enumerate(keys, 1):
            peer.feed(write(key, count * 13 * 9 ** (count % 3)))
        edge.settle()
        assert edge.writes.replayed == times * len(keys)
    assert parsed == []
    assert peer.statuses == [202] * (2 + 2 * len(keys))


@pytest.mark.slow
def test_heads_with_ids_that_come_once_drive_out_no_others(edge: Edge) -> None:
    peer = learned(edge)
    for number in range(3000):
        peer.feed(request_bytes("POST", f"{V2}?db=d{number}", BODY, {"X-Request-Id": f"id-{number}"}))
        edge.settle()
    assert len(edge.surface.heads.known) == 1


# Access


def test_the_token_in_a_known_head_is_judged_with_each_request(edge: Edge) -> None:
    text, token = new_token(databases=("db1",), expires=NOW + timedelta(hours=1))
    auth = edge.context.auth = Auth([token])
    credentials = {"Authorization": f"Bearer {text}", "x-arc-database": "db1"}
    write = request_bytes("POST", V2, BODY, credentials)
    peer = learned(edge, write)
    parsed = count_parsed(peer)
    peer.feed(write)
    auth.replace([])
    peer.feed(write)
    auth.replace([msgspec.structs.replace(token, scopes=("read",))])
    peer.feed(write)
    auth.replace([msgspec.structs.replace(token, databases=("db2",))])
    peer.feed(write)
    auth.replace([token])
    peer.feed(write)
    edge.settle()
    assert peer.statuses == [202, 202, 202, 401, 403, 403, 202]
    assert parsed == []
    assert auth.refused == 2


def test_a_known_head_with_another_token_is_another_head(edge: Edge) -> None:
    text, token = new_token()
    edge.context.auth = Auth([token])
    write = request_bytes("POST", V2, BODY, {"Authorization": f"Bearer {text}"})
    peer = learned(edge, write)
    peer.feed(write.replace(text.encode(), text.encode()[:-1] + (b"1" if text.endswith("0") else b"0")))
    edge.settle()
    assert peer.statuses == [202, 202, 401]


# The difference


_HEADERS = st.sampled_from(
    [
        "",
        "X-A: 1\r\n",
        "Connection: keep-alive\r\n",
        "x-arc-database: db1\r\n",
        "x-arc-database: not good\r\n",
        "Content-Encoding: gzip\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        *(f"X-Request-Id: {number}\r\n" for number in range(5)),
        "x-request-id: lower\r\n",
        "X-Request-ID:  two-blanks\r\n",
        "X-Request-Id: not harmless\r\n",
        "X-Request-Id: \r\n",
        "X-Request-Id: a\r\nX-Request-Id: b\r\n",
        *(f"Idempotency-Key: {number}\r\n" for number in range(5)),
        'idempotency-key: "lower"\r\n',
        "Idempotency-Key:  two-blanks\r\n",
        "Idempotency-Key: no key\r\n",
        "Idempotency-Key: \r\n",
        "Idempotency-Key: a\r\nIdempotency-Key: b\r\n",
        *(f"Idempotency-Key: k{number}\r\nX-Request-Id: {number}\r\n" for number in range(3)),
        *(f"X-Request-Id: {number}\r\nX: y\r\nidempotency-key: k{number}\r\n" for number in range(3)),
        *(f"IDEMPOTENCY-KEY: {number}\r\n" for number in range(2)),
        *(f"X-Idempotency-Key: {number}\r\nX: Idempotency-Key: {number}\r\n" for number in range(2)),
        "Idempotency-Key: a,b\r\n",
        'Idempotency-Key: "a\\""\r\n',
    ]
)
_BEHIND = st.sampled_from(
    ["", "", "", "X-B: 2\r\n", *(f"Idempotency-Key: {key}\r\n" for key in ("7", '"7"', "long" * 30, "no key", "8"))]
)
_PATHS = st.sampled_from([V2, V2, V2, f"{V2}?db=a", "/write", "/nothing", "/ping", f"http://x{V2}"])
_METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "HEAD"])
_BODIES = st.sampled_from([BODY, BODY, pack({"m": "cpu", "columns": {"usage": [1] * 300}}), b"cpu v=1", b"\xc1", b""])


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 30))
    if kind == 0:
        return draw(st.sampled_from([b"\r\n", b"\r", b"\n", b"junk\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"]))
    body = draw(_BODIES)
    front = f"{draw(_METHODS)} {draw(_PATHS)} HTTP/{draw(st.sampled_from(['1.1'] * 9 + ['1.0']))}\r\nHost: x\r\n"
    before, behind = draw(_HEADERS), draw(_BEHIND)
    if kind == 1:
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        return f"{front}{before}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked
    length = str(len(body)) if kind > 3 else draw(st.sampled_from(["007", "+1", "99999999", f"{len(body)} ", "1_0"]))
    name = draw(st.sampled_from(["Content-Length", "Content-Length", "content-length", "CONTENT-LENGTH"]))
    return f"{front}{before}{name}: {length}\r\n{behind}\r\n".encode() + body


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    requests=st.lists(_requests(), min_size=1, max_size=12),
    repeats=st.integers(1, 3),
    cuts=st.lists(st.integers(1, 400), max_size=30),
    settles=st.booleans(),
)
def test_known_and_parsed_heads_make_no_difference(
    edges: Edges, requests: list[bytes], repeats: int, cuts: list[int], settles: bool
) -> None:
    outcomes = []
    stream = b"".join(requests) * repeats
    for edge in (edges.usual, edges.parsing):

        def settle(edge: Edge = edge) -> None:
            edges.may_write.set()
            edge.settle()
            edges.may_write.clear()
            edge.context.decoding.rest(edges.wait)

        settle()
        context = edge.context
        edge.surface.heads._seen.clear()
        before: tuple[Any, ...] = (context.requests, edge.writes.accepted, edge.writes.refused, dict(context.refused))
        peer = edge.connect()
        states = []
        at = 0
        for size in [*cuts, len(stream)]:
            if at >= len(stream):
                break
            if not peer.feed(stream[at : at + size]):
                settle()
                if not peer.feed(stream[at : at + size]):
                    break
            at += size
            states.append((peer.connection.state, len(peer.connection.exchanges)) if settles else None)
            if settles:
                settle()
                states.append((peer.connection.state, len(peer.connection.exchanges)))
        settle()
        peer.half_close()
        settle()
        after: tuple[Any, ...] = (context.requests, edge.writes.accepted, edge.writes.refused, dict(context.refused))
        outcomes.append(
            (
                bytes(peer.transport.written),
                [
                    {name: now - then[name] for name, now in count.items()} if isinstance(count, dict) else count - then
                    for then, count in zip(before, after, strict=True)
                ],
                peer.transport.closed,
                peer.transport.ended,
                states,
            )
        )
        assert edge.exceptions == []
        while context.connections or context.turned_away:
            edge.pass_seconds(400)
            settle()
        assert edge.holds_no_body
        assert edge.commit.pending_bytes == 0
    assert outcomes[0] == outcomes[1]
