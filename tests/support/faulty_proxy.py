"""A proxy that does to requests what networks and servers do: loses answers, cuts, refuses for a while, is slow."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.support.key_model import QuietServer


class Faults(NamedTuple):
    """The shares of requests that meet each fault."""

    lost_answers: float = 0.0
    """The server takes the request; the client gets no byte of the answer."""
    cut_answers: float = 0.0
    """The same, after some bytes of the answer."""
    cut_requests: float = 0.0
    """The connection ends in the middle of the request, and the server gets a part of it."""
    refused: float = 0.0
    """503 with `retry_after`, without asking the server."""
    slow: float = 0.0
    """The answer comes after `slow_seconds`."""
    retry_after: str = "0"
    slow_seconds: float = 0.05


class FaultyProxy:
    """Passes requests on to `target`, which may change, with faults by chance.

    with FaultyProxy(server.url, Faults(lost_answers=0.2), seed=1) as proxy:
        Client(proxy.url)
    """

    def __init__(self, target: str, faults: Faults, seed: int = 0) -> None:
        self.target = target
        self.faults = faults
        self.met: Counter[str] = Counter()
        self.times: list[float] = []
        """When each request came, on the monotonic clock."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = QuietServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_fault(self) -> str:
        """Draw what happens to a request: the name of a share, or nothing."""
        with self._lock:
            self.times.append(time.monotonic())
            chance = self._random.random()
            for name in ("lost_answers", "cut_answers", "cut_requests", "refused", "slow"):
                chance -= getattr(self.faults, name)
                if chance < 0:
                    self.met[name] += 1
                    return name
            self.met["passed"] += 1
            return ""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        fault = self.proxy.next_fault()
        if fault == "cut_requests":
            self._send_half(self.rfile.read(length // 2))
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed: no proxy makes a whole request of a part
            self.close_connection = True
            return
        if fault == "refused":
            self._answer(503, {"Retry-After": self.proxy.faults.retry_after}, b'{"error": "busy; nothing was written"}')
            return
        try:
            answer, content = self._pass_on(body)
        except OSError:  # the server is gone at this moment
            self.close_connection = True
            return
        if fault in ("lost_answers", "cut_answers"):
            if fault == "cut_answers":
                self.wfile.write(b"HTTP/1.1 2")
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(self.proxy.faults.slow_seconds)
        self._answer(answer.status, dict(answer.getheaders()), content)

    def _headers(self) -> dict[str, str]:
        dropped = ("host", "content-length", "connection")
        return {name: value for name, value in self.headers.items() if name.lower() not in dropped}

    def _pass_on(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        target = urlsplit(self.proxy.target)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        try:
            connection.request("POST", self.path, body, self._headers())
            answer = connection.getresponse()
            return answer, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def _send_half(self, half: bytes) -> None:
        """Give the server a part of the request, and end the connection."""
        target = urlsplit(self.proxy.target)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        try:
            connection.putrequest("POST", self.path)
            for name, value in self._headers().items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", self.headers["content-length"])
            connection.endheaders(half)
        except OSError:
            pass
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
