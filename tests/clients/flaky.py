"""A proxy that refuses the first writes, as a server that is overloaded does, and then passes everything on."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class FlakyProxy:
    """Answers the first `refusals` POSTs with 503, and asks for a retry at once.

    with FlakyProxy(server.url, refusals=2) as proxy:
        client = Client(proxy.url)
    """

    def __init__(self, target: str, refusals: int) -> None:
        self.refused = 0
        self.passed = 0
        self._left = refusals
        self._lock = threading.Lock()
        self.target = urlsplit(target)

        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def takes_refusal(self) -> bool:
        """Count a write; whether it is to be refused."""
        with self._lock:
            refused = self._left > 0
            self._left -= refused
            self.refused += refused
            self.passed += not refused
            return refused

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FlakyProxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        body = self._body()
        if self.proxy.takes_refusal():
            self._answer(503, [("Retry-After", "0")], b'{"error":"busy","code":"unavailable"}')
        else:
            self._pass_on(body)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _pass_on(self, body: bytes) -> None:
        dropped = ("host", "content-length", "transfer-encoding", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = http.client.HTTPConnection(self.proxy.target.hostname or "", self.proxy.target.port, timeout=60)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
