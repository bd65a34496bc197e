"""Connections that begin with a PROXY header, on real sockets and a real loop: who the client is, and what is refused.

What a request sees of its client is not shown by any answer of the server, so here is one whose only path answers it.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http import Client
from tests.support.waiting import wait_until
from tests.support.whose import Whose, ask

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n"
V2 = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c c0000207 c0000201 dc04 01bb")
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Whose]:
    with Whose(tmp_path) as server:
        yield server


@pytest.mark.parametrize("header", [V1, V2])
def test_the_client_is_who_the_proxy_says(server: Whose, header: bytes) -> None:
    with Client(server.listen(server.trust("127.0.0.1")), preamble=header) as client:
        for _ in range(3):
            assert ask(client) == ["192.0.2.7", "192.0.2.7"]


def test_a_health_check_of_the_proxy_is_its_own(server: Whose) -> None:
    with Client(server.listen(server.trust("127.0.0.0/8")), preamble=LOCAL) as client:
        assert ask(client) == ["127.0.0.1", "127.0.0.1"]


def test_over_a_unix_socket(server: Whose) -> None:
    url = server.listen(server.trust("unix"), is_unix=True)
    with Client(url, preamble=V2) as client:
        assert ask(client) == ["192.0.2.7", "192.0.2.7"]
    with Client(url, preamble=LOCAL) as client:
        assert ask(client) == ["unix", "unix"]


@pytest.mark.parametrize("header", [V1, V2])
def test_the_header_may_come_byte_by_byte_and_requests_with_it(server: Whose, header: bytes) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    url = server.listen(server.trust("127.0.0.1"))
    with Client(url) as client:
        for byte in header:
            client.send(bytes((byte,)))
        assert ask(client) == ["192.0.2.7", "192.0.2.7"]
    with Client(url, preamble=header + request * 3) as client:
        for _ in range(3):
            assert client.receive().json() == ["192.0.2.7", "192.0.2.7"]


def test_each_request_of_a_proxy_has_its_forwarded_address(server: Whose) -> None:
    """Forwarded addresses count for each request where the client is a proxy."""
    url = server.listen(server.trust("127.0.0.1", "10.0.0.0/8"))
    inner = V1.replace(b"192.0.2.7", b"10.0.0.7")
    with Client(url, preamble=inner) as client:
        assert ask(client) == ["10.0.0.7", "10.0.0.7"]
        for address in ("203.0.113.1", "203.0.113.2"):
            assert ask(client, {"X-Forwarded-For": f"1.1.1.1, {address}"}) == ["10.0.0.7", address]
    with Client(url, preamble=V1) as client:  # a client that is none forges it
        assert ask(client, {"X-Forwarded-For": "203.0.113.1"}) == ["192.0.2.7", "192.0.2.7"]


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


def test_the_header_comes_ahead_of_tls(server: Whose, tls: ssl.SSLContext) -> None:
    url = server.listen(server.trust("127.0.0.1"), tls)
    trusting = ssl.create_default_context(cafile=str(server.directory / "cert.pem"))
    for header in (V1, V2):
        with Client(url, preamble=header, tls=trusting) as client:
            for _ in range(3):
                assert ask(client) == ["192.0.2.7", "192.0.2.7"]


def test_a_request_in_one_piece_with_the_end_of_the_handshake_is_answered(server: Whose, tls: ssl.SSLContext) -> None:
    """And the header in one piece with its begin: nothing of it may get lost on the way from one to the other."""
    port = int(server.listen(server.trust("127.0.0.1"), tls).rpartition(":")[2])
    trusting = ssl.create_default_context(cafile=str(server.directory / "cert.pem"))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        trusting.minimum_version = trusting.maximum_version = version
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            sent = V2
            while True:
                try:
                    session.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sent += outgoing.read()
                    if sent:
                        plain.sendall(sent)
                        sent = b""
                    incoming.write(plain.recv(65536))
            session.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            plain.sendall(outgoing.read())
            answer = b""
            while b"192.0.2.7" not in answer:
                try:
                    answer += session.read()
                except ssl.SSLWantReadError:
                    data = plain.recv(65536)
                    assert data, answer
                    incoming.write(data)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "neither the signature of version 2 nor PROXY"),
        (V1.replace(b"TCP4", b"TCP5"), "its line of version 1 is malformed"),
        (b"PROXY ", "bytes of it came within server.header_timeout_seconds"),
        (b"", "0 bytes of it came within server.header_timeout_seconds"),
    ],
)
def test_what_is_no_header_ends_the_connection(
    server: Whose, sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.listen(server.trust("127.0.0.1"))
    with Client(url, preamble=sent, timeout_seconds=30) as client:
        try:
            assert client.socket.recv(1) == b""
        except ConnectionResetError:
            pass
    wait_until(lambda: reason in caplog.text, "the line in the log")
    assert "of 127.0.0.1" in caplog.text
    assert server.context.refused["proxy_protocol"] == 1
    wait_until(lambda: not server.entrances[0].greeting, "nobody to be waited for")


def test_a_half_header_and_then_the_end_is_refused(server: Whose, caplog: pytest.LogCaptureFixture) -> None:
    with Client(server.listen(server.trust("127.0.0.1")), preamble=V2[:20]):
        pass
    wait_until(lambda: "it ended after 20 bytes" in caplog.text, "the line in the log")


def test_somebody_who_is_no_proxy_is_refused_with_the_best_header(
    server: Whose, caplog: pytest.LogCaptureFixture
) -> None:
    for trusted, is_unix in ((server.trust("10.0.0.0/8", "unix"), False), (server.trust("127.0.0.1"), True)):
        with pytest.raises((ConnectionResetError, BrokenPipeError, ConnectionError)):
            ask(Client(server.listen(trusted, is_unix=is_unix), preamble=V1))
    assert "the last one, of 127.0.0.1: it is not among server.trusted_proxies" in caplog.text
    assert "the last one, of unix: it is not among server.trusted_proxies" in caplog.text


def test_those_that_have_not_sent_their_header_count_as_connections(server: Whose) -> None:
    url = server.listen(server.trust("127.0.0.1"))
    silent = [Client(url) for _ in range(8)]
    wait_until(lambda: len(server.entrances[0].greeting) == 8, "the connections")
    with pytest.raises((ConnectionResetError, BrokenPipeError, ConnectionError)):
        ask(Client(url, preamble=V1))
    for client in silent:
        client.socket.close()
    wait_until(lambda: not server.entrances[0].greeting, "them to be gone")
    with Client(url, preamble=V1) as client:
        assert ask(client) == ["192.0.2.7", "192.0.2.7"]


def test_refusals_are_logged_in_sums(server: Whose, caplog: pytest.LogCaptureFixture) -> None:
    url = server.listen(server.trust("127.0.0.1"))
    for _ in range(50):
        with Client(url, preamble=b"x" * 20) as client:
            try:
                assert client.socket.recv(1) == b""
            except ConnectionResetError:
                pass
    assert caplog.text.count("refused") == 1
    assert server.context.refused["proxy_protocol"] == 50
