"""What `arcpipe status` makes of an answer that is too large, does not end, or ends too soon."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterable, Iterator

import pytest

from arcpipe.cli import client
from arcpipe.units import MB

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@contextlib.contextmanager
def answering(pieces: Iterable[bytes]) -> Iterator[client.StatusServer]:
    """A server that answers one request with these pieces, until the client has had enough, and closes."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(65536)
            for piece in pieces:
                peer.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield client.StatusServer.at(f"http://127.0.0.1:{listener.getsockname()[1]}", "")
        finally:
            thread.join()


@pytest.mark.parametrize(
    "head", [HEAD + b"\r\n", HEAD + b"Content-Length: 99999999999\r\n\r\n", b"HTTP/1.1 401 No\r\n\r\n"]
)
def test_an_endless_answer_is_not_read_into_memory(head: bytes) -> None:
    told = "its answer has more than 16 MB, so it is not an arcpipe"
    pieces = itertools.chain([head], itertools.repeat(bytes(MB)))
    with answering(pieces) as server, pytest.raises(client.NotAnswering, match=told):
        server.ask()


def test_an_endless_chunked_answer_is_not_read_into_memory() -> None:
    chunk = b"100000\r\n" + bytes(MB) + b"\r\n"
    pieces = itertools.chain([HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(chunk))
    with answering(pieces) as server, pytest.raises(client.NotAnswering, match="more than 16 MB"):
        server.ask()


def test_an_answer_that_trickles_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece of it is late, so no timeout of the socket ends it."""
    monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.0)
    pieces = itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" "))
    with answering(pieces) as server, pytest.raises(client.NotAnswering, match="its answer did not end within 0 s"):
        server.ask()


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"Content-Length: 100\r\n\r\n", b'{"healthy": true}'],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b'50\r\n{"healthy": true}'],
    ],
)
def test_an_answer_that_is_cut_off_is_told_as_such(pieces: list[bytes]) -> None:
    with answering(pieces) as server, pytest.raises(client.NotAnswering, match=r"^not answering: "):
        server.ask()


def test_an_answer_in_pieces_is_whole() -> None:
    body = [b"a" * 1000] * 300
    with answering([HEAD + b"Content-Length: 300000\r\n\r\n", *body]) as server:
        assert server.ask() == b"".join(body)
