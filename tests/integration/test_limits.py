"""Every limit of the edge at its value and one beyond, over raw sockets; what a refusal says, and where it is counted.

The limits of bodies as sent and decoded have theirs in test_ingest_http.py and test_content_encoding_http.py; how
reading is paused and goes on has its own in tests/unit/ingest/http/test_flow_control.py.
"""

from __future__ import annotations

import resource
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arcpipe.descriptors import RESERVED
from tests.support.http import Client, Response, pack, request_bytes
from tests.support.processes import memory_kb
from tests.support.server import Server
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "cpu", "columns": {"time": [1_700_000_000], "usage": [0.5]}})
WRITE = request_bytes("POST", V2, BODY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("limits"),
        server_workers=1,
        server_max_header_kb=2,
        server_max_headers=10,
        server_max_url_kb=1,
        server_max_body_mb=1,
        server_max_inflight_mb=4,
        server_header_timeout_seconds=300,  # however slow the machine, nobody here is too slow
        server_body_timeout_seconds=300,
    ) as server:
        yield server
        server.stop()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose every timeout is short."""
    with Server(
        tmp_path_factory.mktemp("impatient"),
        server_workers=1,
        server_header_timeout_seconds=1,
        server_body_timeout_seconds=1,
        server_max_body_seconds=2.5,
        server_keep_alive_seconds=2,
    ) as server:
        yield server
        server.stop()


def refused(server: Server, reason: str) -> float:
    """How often the server has refused for that reason."""
    for line in server.get("/metrics").body.decode().splitlines():
        if line.startswith(f'arcpipe_refused_requests_total{{reason="{reason}"}}'):
            return float(line.split()[-1])
    raise AssertionError(f"{reason} is not counted")


def error_of(response: Response) -> tuple[int, str, str]:
    return response.status, str(response.json()["code"]), response.headers.get("connection", "")


# Heads


def ping(path: str = "/ping", *headers: tuple[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode()


def head_of(size: int) -> bytes:
    """Make a request whose line and headers have `size` bytes by the parser's count: all but the line ends."""
    rest = size - len("/ping") - 4 - len("Hostx") - 4 - len("pad") - 4
    return ping("/ping", ("pad", "x" * rest))


def test_a_head_of_the_largest_size_is_taken_and_a_byte_more_is_431(client: Client) -> None:
    client.send(head_of(2048))
    assert client.receive().status == 204
    client.send(head_of(2049))
    response = client.receive()
    assert error_of(response) == (431, "header_too_large", "close")
    assert response.reason == "request line and headers exceed server.max_header_kb = 2"
    client.assert_closed()


def test_a_head_that_never_ends_is_431_as_soon_as_it_is_too_large(client: Client) -> None:
    """One header line of any length is nothing that the parser tells of before it is complete."""
    client.send(b"GET /ping HTTP/1.1\r\nHost: x\r\npad: ")

    def is_answered() -> bool:
        client.send(b"x" * 100)
        return bool(select.select([client.socket], [], [], 0.002)[0])

    wait_until(is_answered, "the refusal")  # what the worker has read at first does not count
    assert error_of(client.receive()) == (431, "header_too_large", "close")
    client.assert_closed()


def test_as_many_headers_as_allowed_are_taken_and_one_more_is_431(client: Client) -> None:
    client.send(ping("/ping", *((f"h{number}", "x") for number in range(9))))  # Host is the tenth
    assert client.receive().status == 204
    client.send(ping("/ping", *((f"h{number}", "x") for number in range(10))))
    response = client.receive()
    assert error_of(response) == (431, "header_too_large", "close")
    assert response.reason == "there are more headers than server.max_headers = 10"
    client.assert_closed()


@pytest.mark.parametrize("pieces", [1, 3, 500])
def test_bytes_of_repeated_headers_count_as_those_of_others(client: Client, pieces: int) -> None:
    def send(data: bytes) -> None:
        step = -(-len(data) // pieces)
        for at in range(0, len(data), step):
            client.send(data[at : at + step])

    name, value = "n" * 50, "v" * 150
    rest = 2048 - len("/ping") - 4 - len("Hostx") - 4 - 8 * (len(name) + len(value) + 4) - len("pad") - 4
    send(ping("/ping", *[(name, value)] * 8, ("pad", "x" * rest)))
    assert client.receive().status == 204
    send(ping("/ping", *[(name, value)] * 8, ("pad", "x" * (rest + 1))))
    assert client.receive().status == 431


def test_repeated_headers_count_each(client: Client) -> None:
    client.send(ping("/ping", *([("h", "x")] * 9)))
    assert client.receive().status == 204
    client.send(ping("/ping", *([("h", "x")] * 10)))
    assert client.receive().status == 431


def test_trailers_count_as_headers_do(client: Client) -> None:
    start = b"POST /write/v2/msgpack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n"
    start %= (len(BODY), BODY)
    client.send(start + b"pad: x\r\n\r\n")
    assert client.receive().status == 202
    client.send(start + b"pad: " + b"x" * 2048 + b"\r\n\r\n")
    assert client.receive().status == 431
    client.assert_closed()


@pytest.mark.parametrize("pieces", [1, 2, 64])
def test_the_longest_url_is_taken_and_one_byte_more_is_414(client: Client, pieces: int) -> None:
    def send(data: bytes) -> None:
        step = -(-len(data) // pieces)
        for at in range(0, len(data), step):
            client.send(data[at : at + step])

    send(ping("/ping?" + "x" * (1024 - 6)))
    assert client.receive().status == 204
    send(ping("/ping?" + "x" * (1024 - 5)))
    response = client.receive()
    assert error_of(response) == (414, "url_too_long", "close")
    assert response.reason == "the URL exceeds server.max_url_kb = 1"


# Connections


def test_connections_above_the_limit_read_their_503(tmp_path: Path) -> None:
    """Connections above the limit read their 503 though they have sent a request."""
    with Server(tmp_path, server_workers=1, server_max_connections=3) as server:
        clients = [server.client() for _ in range(3)]
        assert [client.request("GET", "/ping").status for client in clients] == [204] * 3
        for _ in range(5):
            with server.client() as further:
                further.send(WRITE * 100)
                response = further.receive()
                assert error_of(response) == (503, "too_many_connections", "close")
                assert response.headers["retry-after"] == "1"
                further.assert_closed()
        for client in clients:
            assert client.request("POST", V2, BODY).status == 202
            client.socket.close()

        def served() -> bool:
            with server.client() as client:
                try:
                    return client.request("GET", "/ping").status == 204
                except ConnectionError:
                    return False

        wait_until(served, "a place to be free")
        wait_until(lambda: refused(server, "too_many_connections") >= 5, "the refusals to be counted")
        server.stop()


# Timeouts


# How long each may take is tested with a clock that is set: tests/unit/ingest/http/test_ending.py.


def trickle(client: Client, data: bytes, pause_seconds: float = 0.1) -> None:
    """Send a byte now and then until the server has had enough."""
    client.socket.settimeout(pause_seconds)
    for byte in data:
        try:
            client.send(bytes([byte]))
            client._read_more()
        except TimeoutError:
            continue
        except ConnectionError:
            pass
        return
    raise AssertionError("the server took it all")


def test_a_head_that_trickles_is_408(impatient: Server) -> None:
    with impatient.client() as client:
        trickle(client, WRITE[: WRITE.index(b"\r\n\r\n")] * 10)
        assert error_of(client.receive()) == (408, "timeout", "close")


def test_a_body_that_stops_is_408(impatient: Server) -> None:
    with impatient.client() as client:
        client.send(WRITE[:-3])
        assert error_of(client.receive()) == (408, "timeout", "close")
        client.assert_closed()


@pytest.mark.parametrize("kind", ["length", "chunks", "chunk extension"])
def test_a_body_that_trickles_without_end_is_408(impatient: Server, kind: str) -> None:
    headers = {"Content-Length": "5000"} if kind == "length" else {"Transfer-Encoding": "chunked"}
    with impatient.client() as client:
        client.send(request_bytes("POST", V2, b"", headers))
        data = {"length": b"x" * 500, "chunks": b"c8\r\n" + b"x" * 200, "chunk extension": b"5;a=" + b"x" * 500}[kind]
        trickle(client, data)
        assert error_of(client.receive()) == (408, "timeout", "close")


def test_an_idle_connection_is_closed_without_a_word(impatient: Server) -> None:
    with impatient.client() as fresh, impatient.client() as used:
        assert used.request("POST", V2, BODY).status == 202
        fresh.assert_closed()
        used.assert_closed()


def test_a_client_that_never_reads_its_answers_is_cut_off(impatient: Server) -> None:
    with Client(impatient.url, timeout_seconds=0.2) as client:
        requests = request_bytes("GET", "/health") * 500

        def is_cut_off() -> bool:
            try:
                client.socket.send(requests)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return False

        wait_until(is_cut_off, "the end of the connection")


def test_timeouts_are_counted(impatient: Server) -> None:
    with impatient.client() as client:
        client.send(b"GET")
        assert client.receive().status == 408
    wait_until(lambda: refused(impatient, "timeout") >= 1, "the timeout to be counted")


# Bytes in flight


def large_request(size: int) -> bytes:
    front = pack({"m": "large", "columns": {"pad": [b"x" * 70_000]}})[:-70_005]
    pad = size - len(front) - 5
    return request_bytes("POST", V2, front + b"\xc6" + pad.to_bytes(4, "big") + bytes(pad))


def test_bodies_that_arrive_at_once_on_many_connections_take_turns(server: Server) -> None:
    """250 MB are on their way; the worker holds some of it at a time, and every body is written."""
    pid = server.pids()["ingest 1"]
    request = large_request(1 << 20)
    with server.client() as warm_up:
        for _ in range(10):
            warm_up.send(request)
            assert warm_up.receive().status == 202
    before = memory_kb(pid)
    ready = threading.Barrier(250)

    def write(_: int) -> int:
        """As clients do: all at once, and again where that was refused; how often it took."""
        ready.wait(60)
        for attempt in range(1, 50):
            with server.client() as client:
                try:
                    client.send(request)
                except ConnectionError:
                    continue
                response = client.receive()
            if response.status == 202:
                return attempt
            assert error_of(response) == (503, "inflight", "close")
            assert response.headers["retry-after"] == "1"
            time.sleep(0.05 * attempt)
        raise AssertionError("refused each time")

    with ThreadPoolExecutor(250) as pool:
        attempts = list(pool.map(write, range(250)))
    assert len(attempts) == 250
    assert memory_kb(pid) - before < 125_000


def test_slow_large_bodies_hold_up_neither_small_nor_other_large_ones(server: Server) -> None:
    """The slow ones hold more than there is room for; whoever comes is served, and they give way."""
    slow = [server.client() for _ in range(20)]
    request = large_request(1 << 20)
    for client in slow:
        client.socket.setblocking(False)
        try:
            client.socket.send(request[:-1000])
        except BlockingIOError:
            pass
    with server.client() as other:
        for _ in range(50):
            assert other.request("POST", V2, BODY).status == 202
        for _ in range(5):
            other.send(request)
            assert other.receive().status == 202
    for client in slow:
        client.socket.close()


# A hundred slow clients


def test_a_hundred_slow_clients_hold_up_nobody(server: Server) -> None:
    """Half of them are within a head, half within a body; they stay so until the others are done."""
    slow = [server.client() for _ in range(100)]
    for number, client in enumerate(slow):
        client.send(WRITE[: len(WRITE) - 5 if number % 2 else 20])
    with server.client() as other:
        for _ in range(300):
            assert other.request("POST", V2, BODY).status == 202
            assert other.request("GET", "/ping").status == 204
    for number, client in enumerate(slow):
        if number % 2:
            client.send(WRITE[-5:])
            assert client.receive().status == 202
        client.socket.close()


# Refusals in words, and counted


def test_no_space_and_others_are_counted_by_reason(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_min_free_mb=1 << 29) as server:
        for _ in range(3):
            response = server.post(V2, BODY)
            assert (response.status, response.json()["code"]) == (507, "no_space")
            assert response.headers["retry-after"] == "10"
        assert server.post("/nothing").status == 404
        assert server.get(V2).status == 405
        # A worker shows its counters four times a second, all at once: with the last refusal, the others are there.
        wait_until(lambda: refused(server, "method_not_allowed") == 1, "the last refusal to be counted")
        assert refused(server, "no_space") == 3
        assert refused(server, "not_found") == 1
        server.stop()


def test_a_backlog_above_its_limit_is_503_and_counted(tmp_path: Path) -> None:
    blocked = tmp_path / "lake"
    blocked.write_text("a file where a directory has to be: nothing can be uploaded")
    with Server(tmp_path, server_workers=1, wal_max_backlog_mb=1, wal_max_size_mb=1) as server:
        body = large_request(900_000)

        def is_refused() -> Response | None:
            with server.client() as client:
                client.send(body)
                response = client.receive()
            return response if response.status != 202 else None

        response = wait_until(is_refused, "a refusal")
        assert response is not None
        assert (response.status, response.json()["code"]) == (503, "backlog")
        assert response.headers["retry-after"] == "10"
        wait_until(lambda: refused(server, "backlog") >= 1, "the refusal to be counted")


# Files


@pytest.mark.parametrize(("hard", "expected"), [(4096, 1512), (600, 600)])
def test_the_file_limit_is_raised_to_what_the_connections_need(tmp_path: Path, hard: int, expected: int) -> None:
    server = Server(tmp_path, server_workers=1, server_max_connections=1000)
    server.prefix = ["prlimit", f"--nofile=256:{hard}"]
    with server:
        assert resource.prlimit(server.pids()["ingest 1"], resource.RLIMIT_NOFILE) == (expected - RESERVED, hard)
        warning = f"server.max_connections = 1000 needs 1512 open files, and a process may have {hard}"
        assert (warning in server.log) == (hard < 1512)
        server.stop()
