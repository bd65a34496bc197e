"""A request is judged by its head before the body is taken: no 100 and no 20 MB for a hopeless write."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import needs_openssl
from tests.support.http import pack, request_bytes
from tests.support.server import Server
from tests.support.tls import make_certificate, tls_server
from tests.support.tokens import create
from tests.support.waiting import WAIT_SECONDS, wait_until

V2 = "/write/v2/msgpack"
MB = 1 << 20
BODY = pack({"m": "cpu", "columns": {"usage": [0.5]}})
LINE = b"cpu usage=0.5"
LARGE = 64 * MB


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose disk counts as full."""
    with Server(tmp_path_factory.mktemp("full"), server_workers=1, wal_min_free_mb=1 << 29) as server:
        yield server
        server.stop()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("head")


@pytest.fixture(scope="module")
def token(directory: Path) -> str:
    """One that may write to the database db1."""
    return create(directory, "--scope", "write", "--database", "db1")


@pytest.fixture(scope="module")
def server(directory: Path, token: str) -> Iterator[Server]:
    with Server(directory, server_workers=1, auth_enabled=True) as server:
        yield server
        server.stop()


def expecting(path: str, size: int, headers: dict[str, str]) -> bytes:
    return request_bytes("POST", path, b"", {"Content-Length": str(size), "Expect": "100-continue", **headers})


@pytest.mark.parametrize("path", [V2, "/api/v1/write/msgpack", "/write", "/api/v2/write", "/api/v3/write_lp"])
def test_a_full_disk_refuses_a_write_before_it_says_continue(full: Server, path: str) -> None:
    with full.client() as client:
        client.send(expecting(path, LARGE, {}))
        response = client.receive()
        assert (response.status, response.headers["retry-after"]) == (507, "10")
        assert response.headers["connection"] == "close"


@pytest.mark.parametrize("framing", [{"Content-Length": str(LARGE)}, {"Transfer-Encoding": "chunked"}], ids=str)
def test_a_full_disk_refuses_a_write_before_any_of_the_body_has_come(full: Server, framing: dict[str, str]) -> None:
    with full.client() as client:
        client.send(request_bytes("POST", V2, b"", framing))
        assert client.receive().status == 507


def test_a_client_may_send_a_refused_body_before_it_reads(full: Server) -> None:
    """As most programs do; a reset would take the answer away."""
    with full.client() as client:
        client.send(request_bytes("POST", V2, b"", {"Content-Length": str(32 * MB)}))
        select.select([client.socket], [], [], WAIT_SECONDS)  # the answer is there
        for _ in range(32):  # more than the kernel keeps: the server reads on
            client.send(bytes(MB))
        response = client.receive()
        assert (response.status, response.headers["connection"]) == (507, "close")
        client.assert_closed()


def test_a_small_refused_body_leaves_the_connection_open(full: Server) -> None:
    """A small body that is refused by its head leaves the connection open."""
    with full.client() as client:
        for _ in range(3):
            assert client.request("POST", V2, BODY).status == 507
        assert client.request("GET", "/ping").status == 204


def test_a_full_disk_takes_what_is_no_write(full: Server) -> None:
    with full.client() as client:
        assert client.request("POST", "/query?q=CREATE%20DATABASE%20x").status == 200


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        (f"{V2}?db=..", {}, 400, "is no database name"),
        (V2, {"x-arc-database": "a/b"}, 400, "is no database name"),
        (f"{V2}?db=db1&precision=weeks", {}, 400, "'precision'"),
        ("/write?db=db1&accept_partial=perhaps", {}, 400, "'accept_partial'"),
        ("/write?db=db1&db=db1", {}, 400, "is given 2 times"),
        (f"{V2}?db=db2", {}, 403, "this token is not for the database 'db2'"),
        ("/api/v1/status", {}, 405, "this path takes GET, HEAD"),
        (f"{V2}?db=db1", {"Content-Encoding": "br"}, 415, "is not supported"),
        ("/api/wal/cleanup", {}, 403, "this token lacks the scope 'admin'"),
    ],
)
def test_what_is_wrong_with_a_head_is_told_instead_of_continue(
    server: Server, token: str, path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    with server.client() as client:
        client.send(expecting(path, LARGE, {"Authorization": f"Bearer {token}", **headers}))
        response = client.receive()
        assert response.status == status
        assert reason in response.json()["error"]
        client.assert_closed()


def test_what_is_right_with_a_head_is_answered_with_continue(server: Server, token: str) -> None:
    with server.client() as client:
        client.send(expecting("/write?db=db1", len(LINE), {"Authorization": f"Bearer {token}"}))
        assert client.receive().status == 100
        client.send(LINE)
        assert client.receive().status == 204


def test_a_backlog_refuses_a_large_write_before_it_takes_the_body(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where a directory has to be: nothing can be uploaded")
    with Server(tmp_path, server_workers=1, wal_max_backlog_mb=1, wal_max_size_mb=1) as server:
        body = pack({"m": "large", "columns": {"pad": [bytes(900_000)]}})
        wait_until(lambda: server.post(V2, body).status == 503, "a backlog")
        with server.client() as client:
            client.send(expecting(V2, LARGE, {}))
            response = client.receive()
            assert (response.status, response.json()["code"]) == (503, "backlog")


def test_a_write_is_judged_again_when_it_is_whole(tmp_path: Path) -> None:
    """The head comes while there is room, the body when there is not."""
    (tmp_path / "lake").write_text("a file where a directory has to be: nothing can be uploaded")
    with (
        Server(tmp_path, server_workers=1, wal_max_backlog_mb=1, wal_max_size_mb=1) as server,
        server.client() as early,
    ):
        early.send(request_bytes("POST", V2, BODY)[:-1])
        body = pack({"m": "large", "columns": {"pad": [bytes(900_000)]}})
        wait_until(lambda: server.post(V2, body).status == 503, "a backlog")
        early.send(BODY[-1:])
        assert early.receive().status == 503


# Slow readers


def thin_line(server: Server) -> socket.socket:
    """A connection on which little is on its way at a time: most of the last answers waits in the server."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    line.settimeout(60)
    line.connect(("127.0.0.1", server.port))
    return line if server.tls is None else server.tls.wrap_socket(line, server_hostname="localhost")


@pytest.mark.parametrize("scheme", ["http", pytest.param("https", marks=needs_openssl)])
def test_a_slow_reader_gets_all_of_the_last_answers(tmp_path: Path, scheme: str) -> None:
    """It begins long after the time that a client has to close; what it gets is whole to the last byte."""
    if scheme == "https":
        make_certificate(tmp_path)
        server = tls_server(tmp_path, server_workers=1)
    else:
        server = Server(tmp_path, server_workers=1)
    with server, thin_line(server) as slow:
        slow.sendall(request_bytes("GET", "/") + request_bytes("GET", "/", headers={"Connection": "close"}))
        time.sleep(4)  # by the clocks of a real server and of the kernel; see test_ending.py for one that is set
        received = b"".join(iter(lambda: slow.recv(1 << 16), b""))
        assert received.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert received.endswith(b"</html>\n")
        server.stop()


def test_a_client_that_takes_nothing_of_its_last_answer_is_cut_off(tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=1, server_keep_alive_seconds=15)
    with server, server.client() as asking, thin_line(server) as stalled:
        last = request_bytes("GET", "/", headers={"Connection": "close"})
        stalled.sendall(request_bytes("GET", "/") * 5 + last)

        def connections() -> int:
            status = asking.request("GET", "/api/v1/status").json()
            return int(status["instance"]["workers"][0]["connections"])

        wait_until(lambda: connections() == 2, "both connections to be counted")
        wait_until(lambda: connections() == 1, "the end of the one that stalls")
        server.stop()
