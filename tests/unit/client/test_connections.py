"""Servers that answer or read byte by byte: the whole answer has one time limit, and the whole request another."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from arcpipe.client.connections import Connections, NoAnswer
from arcpipe.client.options import Node, Options, read_urls
from arcpipe.units import MB
from tests.support.tls import make_certificate

# Of the whole answer, and between two of its bytes: each byte alone comes in time.
ANSWER_SECONDS = 1.0
BYTE_SECONDS = 0.02
# After that the server gives up: a client that still listens has no limit.
LAST_BYTE_SECONDS = 20.0

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Trickle:
    """A server for some connections, one after the other: it answers at once, then byte by byte without an end."""

    def __init__(self, at_once: bytes, repeated: bytes) -> None:
        self.requests: list[bytes] = []
        self.was_left: list[bool] = []
        """Of each connection: whether the client has ended it."""
        self._at_once = at_once
        self._repeated = repeated
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client:
                    client.settimeout(BYTE_SECONDS)
                    self.was_left.append(self._answer(client))

    def _answer(self, client: socket.socket) -> bool:
        self.requests.append(client.recv(1 << 16))
        with suppress(ConnectionError):
            client.sendall(self._at_once)
            for number in range(int(LAST_BYTE_SECONDS / BYTE_SECONDS)):
                at = number % len(self._repeated)
                client.sendall(self._repeated[at : at + 1])
                with suppress(TimeoutError):
                    if not client.recv(1 << 16):
                        return True
            return False
        return True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def trickling(at_once: bytes, repeated: bytes) -> Iterator[tuple[Trickle, Node]]:
    server = Trickle(at_once, repeated)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server, read_urls(f"http://127.0.0.1:{server.port}")[0]
    finally:
        server.close()
        thread.join()


@pytest.fixture
def connections() -> Iterator[Connections]:
    connections = Connections(Options(answer_seconds=ANSWER_SECONDS), has_tls=False)
    yield connections
    connections.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at_once", "repeated"),
    [(b"", b"HTTP/1.1 200 OK"), (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
    ids=["its status", "its header", "interim answers"],
)
def test_a_head_byte_by_byte_is_no_answer_after_its_time(
    connections: Connections, at_once: bytes, repeated: bytes
) -> None:
    with trickling(at_once, repeated) as (server, node), pytest.raises(NoAnswer, match="no answer in time") as told:
        connections.post(node, "/write", {}, b"body")
    assert told.value.may_be_written
    assert server.was_left == [True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at_once", "repeated"),
    [
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n", b"x"),
    ],
    ids=["of a length", "in chunks", "to the end of the connection"],
)
def test_a_body_byte_by_byte_ends_with_what_the_status_says(
    connections: Connections, at_once: bytes, repeated: bytes
) -> None:
    with trickling(at_once, repeated) as (server, node):
        assert connections.post(node, "/write", {}, b"body").status == 202
    assert server.was_left == [True]


def test_each_request_of_a_connection_has_the_whole_time() -> None:
    """A request gets more than what the answer before has left of its time."""
    body = b"x" * (8 * MB)  # more than sockets take without waiting for the server
    connections = Connections(Options(answer_seconds=60.0), has_tls=False)
    peers = []

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            size = 0
            while read := client.recv(1 << 16):
                size += len(read.rpartition(b"\r\n\r\n")[2])
                if size == len(body):
                    size = 0
                    peers.append(client.getpeername())
                    client.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = read_urls(f"http://127.0.0.1:{listener.getsockname()[1]}")[0]
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            assert connections.post(node, "/write", {}, body).status == 204
            assert connections._current is not None
            connections._current.settimeout(0.000_001)  # as after an answer whose last byte came right in time
            assert connections.post(node, "/write", {}, body).status == 204
        finally:
            connections.close()
            thread.join()
    assert len(peers) == 2
    assert len(set(peers)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "TLS"])
def test_a_server_that_reads_little_by_little_has_no_more_time(tmp_path: Path, has_tls: bool) -> None:
    make_certificate(tmp_path)
    told = threading.Event()

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with suppress(ConnectionError, ssl.SSLError), client:
            if has_tls:
                tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
                client = tls.wrap_socket(client, server_side=True)
            for _ in range(int(LAST_BYTE_SECONDS / BYTE_SECONDS)):
                client.recv(1 << 14)
                if told.wait(BYTE_SECONDS):
                    break
            client.close()

    options = Options(answer_seconds=ANSWER_SECONDS, ca_file=tmp_path / "cert.pem" if has_tls else None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        node = read_urls(f"{'https' if has_tls else 'http'}://localhost:{listener.getsockname()[1]}")[0]
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        connections = Connections(options, has_tls)
        try:
            with pytest.raises(NoAnswer, match="no answer in time"):
                connections.post(node, "/write", {}, bytes(32 * MB))
        finally:
            told.set()
            connections.close()
            thread.join()
