"""Who is read from and who waits: the pipeline of a connection, and the bytes that a worker holds.

The connections, the routes and the WAL are the real ones, in this process (tests/support/edge.py), so that a test can
look between two reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.ingest.http import context, responses
from arcpipe.ingest.http.background import HELD_BYTES
from arcpipe.ingest.http.flow_control import PATIENCE_BYTES
from arcpipe.ingest.http.request_parser import WAITING_HEAD_BYTES
from arcpipe.wal.group_commit import GroupCommit
from tests.support.edge import Edge, Peer
from tests.support.http import pack, request_bytes
from tests.support.waiting import wait_until
from tests.support.wal_doubles import FaultyDisk

MB = 1 << 20
V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
WRITE = request_bytes("POST", V2, BODY)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    """Half a megabyte is for bodies that arrive, and half for those that wait for the WAL."""
    with Edge(
        tmp_path,
        max_body_mb=1,
        max_inflight_mb=1,
        max_pipelined=4,
        header_timeout_seconds=50,
        body_timeout_seconds=30,
    ) as edge:
        yield edge
        assert edge.exceptions == []


def large(size: int = 400_000) -> bytes:
    return request_bytes("POST", V2, pack({"m": "large", "columns": {"pad": [bytes(size)]}}))


def feed(peer: Peer, data: bytes, read_size: int = 1 << 16) -> int:
    """Lets the server read as much of the data as it will; how much that was."""
    at = 0
    while at < len(data) and peer.feed(data[at : at + read_size]):
        at += read_size
    return min(at, len(data))


def test_clients_wait_for_the_disk_although_they_are_answered_before_it(tmp_path: Path) -> None:
    """With the WAL disabled. They would be refused soon, while whoever waits is not."""
    disk = FaultyDisk()
    may_write = threading.Event()
    with Edge(tmp_path, disk, wal_enabled=False, max_body_mb=1, max_inflight_mb=1) as edge:
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        peers = [edge.connect() for _ in range(4)]
        fed = 0
        for peer in peers * 20:
            fed += peer.feed(large(50_000))
            edge.turn()
        assert not any(peer.transport.reads for peer in peers)
        assert [status for peer in peers for status in peer.statuses] == [202] * fed
        assert MB // 2 < edge.commit.pending_bytes < MB
        may_write.set()
        edge.settle()
        for _ in peers:  # each has its turn
            edge.turn()
        assert all(peer.transport.reads for peer in peers)
        assert peers[0].feed(WRITE)


def test_clients_do_not_wait_for_a_buffer_that_nobody_fills(tmp_path: Path) -> None:
    """With the WAL disabled, and fewer bytes in flight than its buffer has at other times."""
    disk = FaultyDisk()
    with Edge(tmp_path, disk, wal_enabled=False, flush_seconds=3600, max_body_mb=1, max_inflight_mb=1) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        peer = edge.connect()

        def is_read() -> bool:
            edge.turn()
            return peer.transport.reads

        for _ in range(3):
            while peer.feed(large(50_000)):
                edge.turn()
            may_write.set()
            wait_until(is_read, "being read again")
            may_write.clear()
        may_write.set()
        assert set(peer.statuses) == {202}
        edge.loop.run_until_complete(edge.commit.drain())


# Pipelining


def test_reading_stops_above_the_allowed_unanswered_requests(
    tmp_path: Path,
) -> None:
    """A connection with as many unanswered requests as allowed is read and with one more is not."""
    disk = FaultyDisk()
    with Edge(tmp_path, disk, max_pipelined=4) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        peer = edge.connect()
        for _ in range(4):
            assert peer.feed(WRITE)
        assert peer.transport.reads
        assert peer.feed(WRITE)
        assert not peer.transport.reads
        may_write.set()
        edge.settle()
        assert peer.transport.reads
        assert peer.statuses == [202] * 5


def test_a_pause_for_a_full_pipeline_is_not_the_clients_time(edge: Edge) -> None:
    peer = edge.connect()
    for _ in range(5):
        peer.feed(WRITE + WRITE[:20])
    edge.context.now += 60
    edge.settle()
    edge.pass_seconds(1)
    assert 408 not in peer.statuses


def test_many_requests_of_one_read_are_answered_in_order(edge: Edge) -> None:
    """Only a few of them are under way at a time."""
    requests = (WRITE + request_bytes("GET", "/ping") + request_bytes("GET", "/nothing")) * 300
    peer = edge.connect()
    assert peer.feed(requests)
    assert isinstance(edge.commit, GroupCommit)
    assert edge.commit._collecting.entries <= 4
    edge.settle()
    assert peer.statuses == [202, 204, 404] * 300
    assert peer.transport.reads


def test_a_body_after_the_most_waiting_heads_is_read_in_the_end(tmp_path: Path) -> None:
    """A body after as many bytes of heads as may wait is read once they are answered."""
    with Edge(tmp_path) as edge:

        def write(number: int, pad: int) -> bytes:  # each with a head that is not known
            return request_bytes("POST", V2, BODY, {"X-Pad": f"{number:04}" + "x" * pad})

        peer = edge.connect()
        counted = len(write(0, 1200)) - len(BODY) - len("POST  HTTP/1.1")
        many = WAITING_HEAD_BYTES // counted + 1  # the last of them is one too many, and comes with half of another
        last = write(many, 0)
        assert peer.feed(b"".join(write(number, 1200) for number in range(many)) + last[:-1])
        assert not peer.transport.reads
        edge.settle()
        assert peer.statuses == [202] * many
        assert peer.feed(last[-1:])
        edge.settle()
        assert peer.statuses == [202] * (many + 1)


def test_requests_of_a_client_wait_until_it_reads_answers(edge: Edge) -> None:
    """Requests of a client that does not read are not handled until it does."""
    peer = edge.connect()
    peer.feed(WRITE)
    peer.connection.pause_writing()  # as the transport does when too much waits to be sent
    edge.call(lambda: peer.connection.data_received(request_bytes("GET", "/ping") * 100 + WRITE))
    edge.settle()
    assert peer.statuses == [202]
    edge.call(peer.connection.resume_writing)
    edge.settle()
    assert peer.statuses == [202] + [204] * 100 + [202]
    assert peer.transport.reads


def test_a_client_that_does_not_read_while_requests_of_it_wait_is_cut_off(edge: Edge) -> None:
    peer = edge.connect()
    peer.feed(WRITE)
    edge.settle()  # no answer comes between two steps
    peer.connection.pause_writing()
    edge.call(lambda: peer.connection.data_received(request_bytes("GET", "/ping") * 100))
    edge.pass_seconds(70)
    assert not peer.transport.closed
    edge.pass_seconds(10)
    assert peer.transport.closed


# The WAL is slower than its clients


def test_only_writers_are_not_read_while_too_much_waits_for_the_wal(tmp_path: Path) -> None:
    """Who writes is not read while too much waits for the WAL and all others are."""
    disk = FaultyDisk()
    with Edge(tmp_path, disk, max_body_mb=1, max_inflight_mb=1) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        peers = [edge.connect() for _ in range(3)]
        feed(peers[0], large())
        feed(peers[1], large())
        assert [peer.transport.reads for peer in peers] == [False, False, True]
        newcomer = edge.connect()
        for peer in (peers[2], newcomer):
            for path in ("/ping", "/health", "/ready"):
                assert peer.feed(request_bytes("GET", path))
        assert peers[2].statuses == newcomer.statuses == [204, 200, 200]
        assert newcomer.feed(WRITE)
        assert not newcomer.transport.reads
        may_write.set()
        edge.settle()
        assert all(peer.transport.reads for peer in (*peers, newcomer))
        assert peers[0].statuses == peers[1].statuses == [202]
        assert newcomer.statuses == [204, 200, 200, 202]


def test_a_large_body_is_taken_if_nothing_of_its_client_waits(
    tmp_path: Path,
) -> None:
    """A large body of a client that has nothing waiting is taken and above twice as much it waits."""
    disk = FaultyDisk()
    with Edge(tmp_path, disk, max_body_mb=1, max_inflight_mb=1) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        busy, newcomer, late = (edge.connect() for _ in range(3))
        body = large(400_000)
        feed(busy, large(600_000))
        for part in (
            body[: 1 << 18],
            body[1 << 18 :],
        ):  # more than half of what may be waits, and none of it is its own
            assert newcomer.feed(part)
        assert not newcomer.transport.reads
        feed(edge.connect(), body)
        assert edge.context.inflight.is_full
        assert late.feed(body[: 1 << 18])
        assert not late.transport.reads
        assert late.statuses == []
        may_write.set()
        edge.settle()
        assert late.feed(body[1 << 18 :])
        edge.settle()
        assert [peer.statuses for peer in (busy, newcomer, late)] == [[202], [202], [202]]


def test_encoding_waits_while_much_waits_for_the_wal(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is encoded while much waits for the WAL, and all of it afterwards."""
    monkeypatch.setattr(context, "_ENCODED_AHEAD_BYTES", -1)  # what waits is always more
    sender, small = edge.connect(), edge.connect()
    encoded: list[int] = []

    def add(number: int) -> None:
        edge.context.encoding.add(sender.connection, 1000, lambda _: encoded.append(number), lambda _: None)

    for number in range(3):
        edge.call(partial(add, number))
    edge.turn()
    assert encoded == []
    monkeypatch.undo()
    small.feed(WRITE)  # its commit goes on with the rest

    def is_done() -> bool:
        edge.turn()
        return len(encoded) == 3 and not edge.context.encoding.held_bytes

    wait_until(is_done, "the bodies to be encoded")
    assert encoded == [0, 1, 2]


def test_small_writes_go_on_while_a_thread_is_behind(edge: Edge) -> None:
    """A client is not read while it waits for its answer, and is once it has it."""
    may_go_on = threading.Event()
    sender, small = edge.connect(), edge.connect()

    def work(_: object) -> None:
        may_go_on.wait(30)

    def is_answered() -> bool:
        edge.turn()
        return len(small.statuses) == sent

    edge.call(lambda: edge.context.encoding.add(sender.connection, 600_000, work, lambda _: None))
    for sent in range(1, 6):  # noqa: B007 - is_answered reads it
        assert small.feed(WRITE)
        wait_until(is_answered, "an answer", 30)
    assert edge.context.encoding.held_bytes == 600_000 + HELD_BYTES
    may_go_on.set()
    assert small.statuses == [202] * 5


def test_above_twice_what_may_wait_for_the_wal_only_small_bodies_are_taken(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with Edge(tmp_path, disk, max_body_mb=1, max_inflight_mb=1) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        writer = edge.connect()
        for _ in range(3):  # so that its head is known
            writer.feed(WRITE)
        peers = [edge.connect() for _ in range(3)]
        for peer in peers:
            assert peer.feed(large())
        newcomer = edge.connect()
        newcomer.feed(large(100_000) + request_bytes("GET", "/ping"))
        assert newcomer.statuses == [503, 204]
        assert b"Retry-After: 1" in newcomer.transport.written
        small = edge.connect()
        assert small.feed(WRITE)
        for _ in range(20):
            edge.connect().feed(large(50_000))
        last = edge.connect()
        last.feed(WRITE)
        assert last.statuses == [503]
        may_write.set()
        edge.settle()
        assert newcomer.feed(WRITE)
        edge.settle()
        assert newcomer.statuses == [503, 204, 202]
        assert small.statuses == [202]
        assert [peer.statuses for peer in peers] == [[202]] * 3


# Bodies that arrive


def test_bodies_go_on_in_the_order_in_which_they_began(edge: Edge) -> None:
    """The body that began first goes on and the others follow one after the other."""
    peers = [edge.connect() for _ in range(6)]
    request = large()
    read = [feed(peer, request[:-10]) for peer in peers]
    assert read[0] == len(request) - 10
    assert peers[0].transport.reads
    assert not any(peer.transport.reads for peer in peers[2:])
    assert sum(read) < MB + (1 << 16)
    for index, peer in enumerate(peers):
        read[index] += feed(peer, request[read[index] :])
        assert read[index] == len(request), "the first one of those that are left is read to its end"
        edge.settle()
    assert [peer.statuses for peer in peers] == [[202]] * 6
    assert edge.holds_no_body


def test_who_was_read_while_there_was_room_waits_too_once_there_is_none(tmp_path: Path) -> None:
    """So slow ones, each of which brings as much as one read takes, leave room for the first read of whoever comes."""
    read = 1 << 18
    with Edge(tmp_path, max_body_mb=1, max_inflight_mb=4) as edge:
        request = large(1_000_000)
        slow = [edge.connect() for _ in range(20)]
        for peer in slow:  # the first eight fill what is allowed
            peer.feed(request[:read])
        assert [peer for peer in slow if peer.transport.reads] == slow[:1]
        feed(slow[0], request[read:-1000], read)
        assert all(peer.statuses == [] for peer in slow)
        other = edge.connect()
        sent = feed(other, request, read)
        for _ in range(40):
            edge.pass_seconds(0.25)
            sent += feed(other, request[sent:], read)
            edge.settle()
        assert other.statuses == [202]
        assert slow[0].statuses == [503]


def test_the_last_one_that_waited_is_not_refused_with_those_it_waited_for(edge: Edge) -> None:
    """With the slow ones gone, nobody waits for its room: it goes on, and has its own time."""
    slow, other = edge.connect(), edge.connect()
    feed(slow, large()[:200_000])
    request = large()
    sent = feed(other, request)
    assert len(request) > sent > 1 << 18
    for _ in range(8):
        edge.pass_seconds(0.25)
    assert slow.statuses == [503]
    assert other.statuses == []
    feed(other, request[sent:])
    edge.settle()
    assert other.statuses == [202]


def test_small_bodies_pass_large_ones_that_wait(edge: Edge) -> None:
    peers = [edge.connect() for _ in range(4)]
    for peer in peers:
        feed(peer, large()[:-10])
    other = edge.connect()
    for at in (10, len(WRITE) - 3, len(WRITE)):
        assert other.feed(WRITE[:at])
        assert other.feed(WRITE[at:]) or at == len(WRITE)
        edge.settle()
    assert other.statuses == [202] * 3


def test_a_first_body_that_trickles_is_refused_for_those_that_wait(edge: Edge) -> None:
    """A first body that brings little while others wait is refused and they go on."""
    slow, *others = [edge.connect() for _ in range(3)]
    request = large()
    feed(slow, request[:-1000])
    read = [feed(peer, request) for peer in others]
    assert not others[1].transport.reads
    for _ in range(12):
        slow.feed(b"x")
        edge.pass_seconds(0.25)
    assert slow.statuses == [503]
    assert b'"inflight"' in slow.transport.written
    assert b"Retry-After: 1" in slow.transport.written
    for peer, done in zip(others, read, strict=True):
        if peer.statuses != [503]:
            assert done + feed(peer, request[done:]) == len(request)
            edge.settle()
    assert sorted(peer.statuses[0] for peer in others)[0] == 202


def test_a_first_body_that_brings_enough_is_not_refused_while_others_wait(edge: Edge) -> None:
    first, *others = [edge.connect() for _ in range(3)]
    request = large(1_000_000)
    at = feed(first, request[:300_000])
    for peer in others:
        feed(peer, request)
    for _ in range(20):
        at += feed(first, request[at : at + 33_000], 33_000)
        edge.pass_seconds(0.12)
    assert first.statuses == []
    feed(first, request[at:])
    edge.settle()
    assert first.statuses == [202]


def test_a_long_wait_for_room_is_503_and_not_408(edge: Edge) -> None:
    """Whoever waits for room longer than the body timeout is 503 and not 408."""
    first, second = edge.connect(), edge.connect()
    request = large(1_000_000)
    at = feed(first, request[:600_000])
    feed(second, request)
    assert not second.transport.reads
    seconds = 0.0
    while not second.statuses:
        at += feed(first, request[at : at + 5_000], 5_000)  # with that it may stay, as of the next line
        edge.context.inflight._moved += PATIENCE_BYTES
        edge.pass_seconds(0.5)
        seconds += 0.5
    assert second.statuses == [503]
    assert 30 <= seconds <= 31
    assert first.statuses == []


def test_of_too_many_small_bodies_the_latest_is_refused(edge: Edge) -> None:
    """When small bodies fill all there is the latest is refused and the others go on."""
    request = large(60_000)
    peers = [edge.connect() for _ in range(40)]
    idle = edge.connect()
    for peer in peers:
        feed(peer, request[:-10])
        assert edge.context.inflight._arriving_bytes <= 3 * MB // 2
    refused = [peer for peer in peers if peer.statuses == [503]]
    assert 10 <= len(refused) < 30
    assert refused == peers[-len(refused) :]
    assert idle.feed(request_bytes("GET", "/health"))
    assert idle.statuses == [200]
    for peer in peers[: -len(refused)]:
        assert peer.feed(request[-10:])
        edge.settle()
        assert peer.statuses == [202]
    assert edge.holds_no_body


def test_a_head_that_never_ends_gives_way_to_bodies(tmp_path: Path) -> None:
    """A head that never ends, after the last request of a client gives way to bodies."""
    disk = FaultyDisk()
    with Edge(tmp_path, disk, max_body_mb=1, max_inflight_mb=1, header_timeout_seconds=50) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        gone = edge.connect()
        gone.feed(WRITE + WRITE[:30])
        gone.half_close()
        others = [edge.connect() for _ in range(4)]
        for peer in others:
            feed(peer, large()[:200_000])
        assert not others[-1].transport.reads
        for _ in range(8):
            edge.pass_seconds(0.25)
        assert others[0].statuses == [503]
        may_write.set()
        edge.settle()
        assert gone.statuses == [202]


def test_a_body_that_is_given_up_gives_its_room_back(edge: Edge) -> None:
    def reset(peer: Peer) -> None:
        peer.transport.abort()

    def half_close(peer: Peer) -> None:
        peer.half_close()

    def misbehave(peer: Peer) -> None:
        peer.feed(bytes(MB))

    def sleep(peer: Peer) -> None:
        edge.pass_seconds(31)

    for give_up in (reset, half_close, misbehave, sleep):
        peer = edge.connect()
        feed(peer, large()[:-10])
        assert not edge.holds_no_body
        give_up(peer)
        edge.turn()
        assert edge.holds_no_body, give_up.__name__


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(1, 300_000), st.sampled_from([0.0, 0.0, 0.25, 2.0])),
        min_size=20,
        max_size=120,
    ),
    st.lists(st.sampled_from([500, 60_000, 200_000, 900_000]), min_size=12, max_size=12),
)
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_whatever_arrives_in_whatever_order_everybody_is_answered(
    steps: list[tuple[int, int, float]], sizes: list[int]
) -> None:
    """Twelve clients send bodies in pieces; when each then sends the rest as fast as it is read, nobody is left."""
    with Edge(max_body_mb=1, max_inflight_mb=1, header_timeout_seconds=1000) as edge:
        requests = [large(size) for size in sizes]
        peers = [edge.connect() for _ in sizes]
        sent = [0] * len(sizes)

        def send(index: int, size: int) -> None:
            piece = requests[index][sent[index] : sent[index] + size]
            if piece and peers[index].feed(piece):
                sent[index] += len(piece)

        def is_done(index: int) -> bool:
            return peers[index].transport.ended or bool(peers[index].statuses)

        for index, size, seconds in steps:
            send(index, size)
            held = edge.context.inflight._arriving_bytes
            assert held <= 2 * MB + 300_000
            if seconds:
                edge.pass_seconds(seconds)
                edge.settle()
        for _ in range(1000):
            for index in range(len(sizes)):
                send(index, 1 << 18)
            edge.settle()
            edge.pass_seconds(0.25)
            if all(map(is_done, range(len(sizes)))):
                break
        assert all(set(peer.statuses) <= {202, 503, 408} and peer.statuses for peer in peers)
        assert edge.holds_no_body
        assert edge.exceptions == []


# Heads in small reads


@pytest.mark.parametrize("first", [1, 5, 12, 40])
def test_a_head_of_the_largest_size_is_taken_wherever_its_reads_end(tmp_path: Path, first: int) -> None:
    with Edge(tmp_path, max_header_kb=2) as edge:
        pad = "x" * (2048 - len("/ping") - len("Hostx") - len("pad") - 3 * 4)
        head = f"GET /ping HTTP/1.1\r\nHost: x\r\npad: {pad}\r\n\r\n".encode()
        peer = edge.connect()
        assert feed(peer, head[:first]) == first
        feed(peer, head[first:], read_size=5)
        edge.settle()
        assert peer.statuses == [204]


# What a connection keeps of heads

SHORT_LINES = b"".join(b"h%d: x\r\n" % number for number in range(98))


@pytest.mark.parametrize("read_size", [100, 1 << 16])
def test_a_trailer_without_an_end_is_refused_and_counted_until_then(tmp_path: Path, read_size: int) -> None:
    with Edge(tmp_path, max_header_kb=8) as edge:
        peer = edge.connect()
        peer.feed(b"POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        peer.feed(b"1\r\nx\r\n0\r\ntrailer: ")
        feed(peer, b"v" * 6000, read_size)
        assert peer.statuses == []
        assert edge.context.inflight._arriving_bytes > 5000 or read_size > 6000
        feed(peer, b"v" * 200_000, read_size)
        assert peer.statuses == [431]
        assert edge.holds_no_body


def test_chunks_of_any_number_are_no_head_without_an_end(tmp_path: Path) -> None:
    with Edge(tmp_path, max_header_kb=1) as edge:
        peer = edge.connect()
        peer.feed(b"POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in b"m f=1\n" * 500:
            for part in (b"1\r\n", b"%c\r\n" % byte):
                assert peer.feed(part)
        peer.feed(b"0\r\nSome: trailer\r\n\r\n")
        edge.settle()
        assert peer.statuses == [204]


def test_the_lines_of_heads_that_wait_are_counted_with_their_bytes(tmp_path: Path) -> None:
    """A short line takes many times its bytes, and ten heads of 98 such lines are 100 kB."""
    disk = FaultyDisk()
    with Edge(tmp_path, disk) as edge:
        may_write = threading.Event()
        disk.fault = lambda operation, _: (operation == "write" and not may_write.wait(30)) or None
        peer = edge.connect()
        peer.feed(WRITE)
        taken = 0
        while taken < 64 and peer.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + SHORT_LINES + b"\r\n"):
            taken += 1
        assert 4 <= taken <= 10
        may_write.set()
        edge.settle()
        assert peer.statuses == [202] + [204] * taken


def test_an_idle_connection_keeps_nothing_of_the_head_it_was_asked_with(tmp_path: Path) -> None:
    with Edge(tmp_path) as edge:
        asked, refused = edge.connect(), edge.connect()
        asked.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + SHORT_LINES + b"\r\n")
        refused.feed(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + SHORT_LINES * 2)
        assert (asked.statuses, refused.statuses) == ([204], [431])
        for peer in (asked, refused):
            assert not peer.connection.parser.headers
            assert not peer.connection.parser.url


def test_clients_that_do_not_read_a_large_answer_share_one(edge: Edge) -> None:
    page = responses.body(200, b"text/html", bytes(50_000))
    assert edge.context.dated[page] is edge.context.dated[page]
