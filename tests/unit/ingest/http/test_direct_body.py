"""Large bodies of known length, whose bytes pass the parser by: in pieces, or from the socket into their memory.

The connections, the routes and the WAL are the real ones, in this process (tests/support/edge.py).
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from arcpipe.codec.envelope import decode_arrow
from arcpipe.ingest.http.direct_body import DIRECT_BYTES, PLAIN_BYTES, BodyReceiver, DirectBody
from arcpipe.ingest.http.limits import READ_BYTES
from arcpipe.wal.format import KeyedPrefix, Prefix
from arcpipe.wal.group import SMALL_BODY_BYTES, Group
from arcpipe.wal.reader import SegmentScan
from benchmarks.worst.held import resident_bytes
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes

MB = 1 << 20
STREAM = {"Content-Type": "application/vnd.apache.arrow.stream"}
INGEST = "/api/v1/ingest/m?db=d"
SMALL = request_bytes("POST", "/write/v2/msgpack", pack({"m": "cpu", "columns": {"usage": [0.5]}}))
CLOSE = {"Connection": "close"}


def stream(rows: int) -> bytes:
    times = pa.array(1_767_225_600_000_000 + np.arange(rows), pa.timestamp("us", "UTC"))
    table = pa.table({"time": times, "value": np.random.default_rng(rows).random(rows)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


LARGE = stream(20_000)
HEAD = request_bytes("POST", INGEST, b"", STREAM | {"Content-Length": str(len(LARGE))})
LINES = b"".join(b'{"time": %d, "v": 0.5}\n' % (1_767_225_600_000 + row) for row in range(4_000))
NDJSON = request_bytes("POST", INGEST, LINES, {"Content-Type": "application/x-ndjson"})
assert len(LARGE) > DIRECT_BYTES
assert DIRECT_BYTES > len(LINES) > PLAIN_BYTES


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with Edge(tmp_path, max_body_mb=4, max_inflight_mb=16, body_timeout_seconds=30) as edge:
        yield edge
        assert edge.exceptions == []
        edge.settle()
        assert edge.holds_no_body


def is_direct(peer: Peer) -> bool:
    return isinstance(peer.transport.protocol, BodyReceiver)


def payloads(edge: Edge, directory: Path) -> list[bytes]:
    """The payloads of all entries, once the worker is at rest."""
    edge.settle()
    while True:
        with suppress(FileNotFoundError):  # a segment that was just sealed has another name
            return [
                bytes(entry.payload) for path in sorted(directory.glob("wal/*.wal*")) for entry in SegmentScan(path)
            ]


def streams(edge: Edge, directory: Path) -> list[bytes]:
    """The Arrow streams among them."""
    decoded = (decode_arrow(payload) for payload in payloads(edge, directory))
    return [bytes(found[2].arrow) for found in decoded if found is not None]


def _cuts() -> list[int]:
    """Places around the head, the first byte of the body, the thresholds, the ends of reads and the end."""
    edges = (len(HEAD), len(HEAD) + PLAIN_BYTES, READ_BYTES, len(HEAD) + READ_BYTES, len(HEAD) + len(LARGE))
    return sorted({place + by for place in edges for by in (-4, -3, -1, 0, 1, 2)} | {1, 17, len(HEAD) // 2})


def test_a_large_body_may_be_cut_anywhere_and_others_follow_it(edge: Edge, tmp_path: Path) -> None:
    data = HEAD + LARGE + SMALL + NDJSON + SMALL
    for cut in _cuts():
        peer = edge.connect()
        assert peer.feed(data[:cut])
        assert is_direct(peer) == (len(HEAD) <= cut < len(HEAD) + len(LARGE)), cut
        assert peer.feed(data[cut:])
        edge.settle()
        assert not is_direct(peer)
        assert peer.statuses == [202] * 4, cut
        peer.half_close()
    assert streams(edge, tmp_path) == [LARGE] * len(_cuts())


def test_reads_of_any_sizes_give_the_same_bodies(edge: Edge, tmp_path: Path) -> None:
    source = random.Random(22)
    requests = 0
    for longest in (700, 5_000, 70_000, 1_000_000):
        peer = edge.connect()
        data = (SMALL + HEAD + LARGE + NDJSON + HEAD + LARGE) * 2
        at = 0
        while at < len(data):
            end = at + source.randrange(1, longest)
            assert peer.feed(data[at:end])
            at = end
        edge.settle()
        assert peer.statuses == [202] * 8
        requests += 4
    assert streams(edge, tmp_path) == [LARGE] * requests


def test_a_body_after_a_head_that_is_known_is_received_directly_too(edge: Edge, tmp_path: Path) -> None:
    peer = edge.connect()
    for _ in range(3):  # the head is learned, and then found
        assert peer.feed(HEAD + LARGE[:100])
        assert is_direct(peer)
        assert peer.feed(LARGE[100:])
        edge.settle()
    assert streams(edge, tmp_path) == [LARGE] * 3


def test_nothing_keeps_the_memory_of_a_body_that_is_done(edge: Edge) -> None:
    """uvloop keeps the methods of whoever stood in: an idle connection would hold as much as its last body had."""
    peers = [edge.connect() for _ in range(2)]
    for peer in peers:
        assert peer.feed(HEAD + LARGE[:1000])
    assert sum(isinstance(found, DirectBody) for found in gc.get_objects()) == 2
    assert peers[0].feed(LARGE[1000:])
    peers[1].transport.abort()
    edge.settle()
    assert peers[0].statuses == [202]
    assert [found for found in gc.get_objects() if isinstance(found, DirectBody)] == []


def test_what_is_chunked_small_or_of_another_format_is_not_received_directly(edge: Edge) -> None:
    peer = edge.connect()
    chunked = request_bytes("POST", INGEST, b"", STREAM | {"Transfer-Encoding": "chunked"})
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE)
    lines = LINES * 4
    assert len(lines) > DIRECT_BYTES
    gzipped = request_bytes("POST", INGEST, b"", STREAM | {"Content-Encoding": "gzip", "Content-Length": "300000"})
    others = [
        chunked,
        request_bytes("POST", INGEST, stream(1_000), STREAM),
        request_bytes("POST", INGEST, lines, {"Content-Type": "application/x-ndjson"}),
    ]
    for data in others:
        assert peer.feed(data[:1_000])
        assert not is_direct(peer)
        assert peer.feed(data[1_000:])
        edge.settle()
    assert peer.statuses == [202] * 3
    assert peer.feed(gzipped + bytes(1_000))
    assert not is_direct(peer)
    peer.half_close()


@pytest.mark.parametrize("sent", [0, 1, PLAIN_BYTES, DIRECT_BYTES, len(LARGE) - 1])
@pytest.mark.parametrize("ends", ["half close", "lost"])
def test_a_body_that_stays_incomplete_is_dropped(edge: Edge, tmp_path: Path, sent: int, ends: str) -> None:
    peer = edge.connect()
    assert peer.feed(HEAD + LARGE[:sent])
    assert edge.context.inflight.arriving.get(peer.connection, 0) == sent
    if ends == "half close":
        peer.half_close()
    else:
        peer.transport.abort()
    edge.turn()
    assert edge.holds_no_body
    assert peer.connection.parser.direct is None
    assert payloads(edge, tmp_path) == []
    assert peer.statuses == []


def test_a_client_that_sends_nothing_more_gets_408_and_is_read_no_further(edge: Edge, tmp_path: Path) -> None:
    peer = edge.connect()
    assert peer.feed(HEAD + LARGE[:100_000])
    for number in range(3):  # progress renews its time
        edge.pass_seconds(25)
        assert peer.feed(LARGE[100_000 + number : 100_001 + number])
    assert peer.statuses == []
    edge.pass_seconds(31)
    assert peer.statuses == [408]
    assert edge.holds_no_body
    assert not is_direct(peer)
    peer.feed(LARGE[100_003:])  # is dropped
    assert payloads(edge, tmp_path) == []


def test_a_slow_body_is_refused_in_the_end_whatever_its_progress(edge: Edge) -> None:
    peer = edge.connect()
    assert peer.feed(HEAD)
    at = 0
    while not peer.statuses and at < 1_000:
        edge.pass_seconds(20)
        peer.feed(LARGE[at : at + 1])
        at += 1
    assert peer.statuses == [408]
    assert at < 1_000


def test_a_body_that_is_refused_by_its_head_is_read_and_dropped(edge: Edge, tmp_path: Path) -> None:
    """It is below 1 MB, so that the connection can be used again."""
    peer = edge.connect()
    head = HEAD.replace(b"db=d", b"db=.")
    assert peer.feed(head + LARGE[:10])
    assert not is_direct(peer)
    assert edge.holds_no_body
    assert peer.feed(LARGE[10:] + SMALL + head)
    assert not is_direct(peer)
    assert peer.feed(LARGE + SMALL)
    edge.settle()
    assert peer.statuses == [400, 202, 400, 202]
    assert len(payloads(edge, tmp_path)) == 2


def test_a_larger_one_ends_the_connection(edge: Edge, tmp_path: Path) -> None:
    peer = edge.connect()
    head = request_bytes("POST", INGEST.replace("db=d", "db=."), b"", STREAM | {"Content-Length": str(2 * MB)})
    assert peer.feed(head + LARGE)
    assert peer.statuses == [400]
    assert not is_direct(peer)
    peer.feed(LARGE * 8 + SMALL)
    edge.settle()
    assert peer.statuses == [400]
    assert payloads(edge, tmp_path) == []


def test_a_body_that_waits_for_its_go_ahead_gets_it_once(edge: Edge) -> None:
    peer = edge.connect()
    assert peer.feed(SMALL + HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    edge.settle()
    assert peer.statuses == [202, 100]
    assert peer.feed(LARGE)
    edge.settle()
    assert peer.statuses == [202, 100, 202]


def test_nothing_after_a_last_request_is_handled(edge: Edge, tmp_path: Path) -> None:
    head = request_bytes("POST", INGEST, b"", STREAM | CLOSE | {"Content-Length": str(len(LARGE))})
    for cut in (len(head), len(head) + len(LARGE)):
        peer = edge.connect()
        data = head + LARGE + SMALL
        assert peer.feed(data[:cut])
        peer.feed(data[cut:])
        edge.settle()
        assert peer.statuses == [202]
        assert peer.transport.ended
        peer.transport.abort()
        edge.turn()
    assert streams(edge, tmp_path) == [LARGE] * 2


def test_a_body_without_memory_is_refused_and_its_bytes_are_let_go(tmp_path: Path) -> None:
    with Edge(tmp_path, max_body_mb=1, max_inflight_mb=1, body_timeout_seconds=30) as edge:
        peers = [edge.connect() for _ in range(4)]
        for peer in peers:
            peer.feed(HEAD + LARGE[:200_000])
        assert len(edge.context.inflight.waiting) > 0  # as far as memory goes; the oldest goes on
        for peer in peers:
            peer.feed(LARGE[200_000:])
            edge.settle()
        for _ in range(4):
            for peer in peers:
                peer.feed(b"")
            edge.pass_seconds(1)
        edge.settle()
        assert [peer.statuses for peer in peers] == [[202]] * 4
        assert edge.holds_no_body
        assert edge.exceptions == []


def test_bodies_above_what_may_be_announced_come_in_pieces(edge: Edge, tmp_path: Path) -> None:
    """Four times the 8 MB for arriving bodies: address space has a bound, too."""
    head = request_bytes("POST", INGEST, b"", STREAM | {"Content-Length": str(4 * MB)})
    peers = [edge.connect() for _ in range(9)]
    for peer in peers:
        assert peer.feed(head + b"\0")
    assert [is_direct(peer) for peer in peers] == [True] * 8 + [False]
    later = edge.connect()
    assert later.feed(HEAD + LARGE)
    edge.settle()
    assert later.statuses == [202]
    peers[0].transport.abort()
    edge.turn()
    assert later.feed(HEAD + LARGE[:9])
    assert is_direct(later)
    assert later.feed(LARGE[9:])
    for peer in peers[1:]:
        peer.transport.abort()
    edge.settle()
    assert streams(edge, tmp_path) == [LARGE] * 2


def test_a_key_belongs_to_the_stream_and_to_what_stands_before_it(edge: Edge, tmp_path: Path) -> None:
    peer = edge.connect()
    keyed = HEAD.replace(b"\r\n\r\n", b"\r\nIdempotency-Key: one\r\n\r\n")
    for request in (keyed, keyed, keyed.replace(b"ingest/m", b"ingest/n")):
        assert peer.feed(request + LARGE)
        edge.settle()
    assert peer.statuses == [202] * 3
    assert (edge.writes.keyed, edge.writes.replayed, edge.writes.other_bodies) == (1, 2, 1)
    assert streams(edge, tmp_path) == [LARGE]


def test_what_is_announced_and_not_sent_takes_no_memory() -> None:
    before = resident_bytes(os.getpid())
    bodies = [DirectBody(size) for size in (100 * MB, 100 * MB, 30 * MB, 30 * MB, 5 * MB)]
    for body in bodies:
        body.add(b"x" * 1000)
        assert len(body.room()) == READ_BYTES
    assert resident_bytes(os.getpid()) - before < 2 * MB


def test_the_room_ends_with_the_body() -> None:
    body = DirectBody(READ_BYTES + 5)
    body.add(bytes(READ_BYTES))
    assert len(body.room()) == 5
    body.add(b"12345")
    assert body.whole() == bytes(READ_BYTES) + b"12345"
    assert body.whole().readonly


def test_a_receiver_passes_everything_on() -> None:
    told: list[object] = []

    body = DirectBody(7)

    class Told:
        def body_room(self) -> memoryview:
            return body.room()

        def body_received(self, size: int) -> None:
            told.append(size)

        def eof_received(self) -> bool:
            told.append("eof")
            return True

        def connection_lost(self, exc: Exception | None) -> None:
            told.append(exc)

        def pause_writing(self) -> None:
            told.append("pause")

        def resume_writing(self) -> None:
            told.append("resume")

    receiver = BodyReceiver(Told())
    assert not isinstance(receiver, asyncio.Protocol)  # otherwise the loop would not ask it for memory
    assert len(receiver.get_buffer(1)) == 7
    receiver.buffer_updated(3)
    assert receiver.eof_received() is True
    receiver.pause_writing()
    receiver.resume_writing()
    error = OSError()
    receiver.connection_lost(error)
    assert told == [3, "eof", "pause", "resume", error]


@pytest.mark.parametrize("size", [0, 100, SMALL_BODY_BYTES, SMALL_BODY_BYTES + 1])
@pytest.mark.parametrize("key", [b"", b"key"])
def test_a_front_is_part_of_the_body_and_of_its_checksum(key: bytes, size: int) -> None:
    plain, body = Prefix(3, "db", {}), bytes(size)
    prefix = KeyedPrefix(plain, "token", len(key)) if key else plain
    for identity in (b"i" * 16, b"j" * 16):
        whole, fronted = Group(identity), Group(identity)
        whole.add(prefix, b"front" + body, 1, 7, key)
        fronted.add(prefix, body, 1, 7, key + b"front")
        assert b"".join(fronted.buffers) == b"".join(whole.buffers)
        assert fronted.size == whole.size == len(b"".join(whole.buffers))
        assert len(fronted.buffers) == (1 if size <= SMALL_BODY_BYTES else 2)
