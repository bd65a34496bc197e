"""A bare HTTP/1.1 client that sends exactly the bytes it is given."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgpack

from tests.support.waiting import WAIT_SECONDS


def pack(value: Any) -> bytes:
    """Pack with another library than the server's."""
    packed: bytes = msgpack.packb(value)
    return packed


class Response(NamedTuple):
    """Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The text of an error answer, whose shape is asserted on the way."""
        answer = self.json()
        assert sorted(answer) == ["code", "error"]
        return str(answer["error"])


class Client:
    """One HTTP/1.1 connection that sends exactly the bytes that it is told to."""

    def __init__(
        self,
        url: str,
        timeout_seconds: float = WAIT_SECONDS,
        tls: ssl.SSLContext | None = None,
        preamble: bytes = b"",
    ) -> None:
        """Args: url: also "unix:/path". preamble: bytes ahead of everything else, of TLS too."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout_seconds)
            self.socket.connect(parts.path)
        else:
            assert parts.hostname is not None
            self.socket = socket.create_connection((parts.hostname, parts.port), timeout=timeout_seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(preamble)
        if parts.scheme == "https":
            assert tls is not None
            self.socket = tls.wrap_socket(self.socket, server_hostname=parts.hostname)
        self._received = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
        self.send(request_bytes(method, path, body, headers))
        return self.receive(is_head=method == "HEAD")

    def receive(self, is_head: bool = False) -> Response:
        """Read the next answer; an interim one (100) counts.

        Raises:
            ConnectionError: the connection ended before.
        """
        while b"\r\n\r\n" not in self._received:
            self._read_more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("ascii").split("\r\n")
        assert status_line.startswith("HTTP/1.1 "), status_line
        status = int(status_line.split(" ")[1])
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            if name.lower() == "www-authenticate" and "www-authenticate" in headers:  # the only list among them
                value = f"{headers['www-authenticate']}, {value}"
            else:
                assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value
        size = 0 if is_head or status in (204, 304) or status < 200 else int(headers["content-length"])
        while len(self._received) < size:
            self._read_more()
        body, self._received = self._received[:size], self._received[size:]
        return Response(status, headers, body)

    def assert_closed(self) -> None:
        """Assert that the server has ended the connection without another byte."""
        assert self._received == b""
        assert self.socket.recv(65536) == b""

    def _read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._received!r}")
        self._received += data


def request_bytes(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Make a request with Host, and with Content-Length if there may be a body that is not chunked."""
    given = {"Host": "127.0.0.1", **(headers or {})}
    names = {name.lower() for name in given}
    if "transfer-encoding" not in names and "content-length" not in names and (body or method == "POST"):
        given["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


_claims: list[socket.socket] = []  # of the ports that this process was given


def free_port() -> int:
    """Take a port that is free on every address, and that neither the kernel nor another test gives to anybody.

    Where the kernel may give all ports to connections, only the other tests are kept away.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    others = chain(range(last + 1, 65_536), range(first - 1, 10_240, -1))
    for port in chain(others, range(max(first, 10_241), last + 1)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0arcpipe test port {port}")  # until the end of this process
            with socket.socket() as probe:
                probe.bind(("0.0.0.0", port))
        except OSError:
            claim.close()
        else:
            _claims.append(claim)
            return port
    raise AssertionError("no port is free")
