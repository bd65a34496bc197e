"""An S3 server that misbehaves as a test says, and its answers."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SECRET = "do-not-show-this-secret"

Answer = Callable[["Request"], object]


@dataclass(frozen=True)
class Seen:
    """A request that the FaultServer got."""

    command: str
    path: str
    headers: Message


class FaultServer:
    """An HTTP server that answers as the test says: the n-th answer to the n-th request, then the last for ever."""

    access_key_id = "an-access-key-id"
    secret_access_key = SECRET

    def __init__(self) -> None:
        self.answers: list[Answer] = [taken]
        self.requests: list[Seen] = []
        # Set at the end of the test, for answers that wait.
        self.over = threading.Event()
        server = self

        class Bound(Request):
            faults = server

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # five, by default: too few for what comes at once

        self._http = Server(("127.0.0.1", 0), Bound)
        self._http.daemon_threads = True
        self.endpoint_url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Request(BaseHTTPRequestHandler):
    """One request to the FaultServer, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    faults: FaultServer

    def do_PUT(self) -> None:
        seen = self.faults.requests
        seen.append(Seen(self.command, self.path, self.headers))
        self.faults.answers[min(len(seen), len(self.faults.answers)) - 1](self)

    do_POST = do_GET = do_DELETE = do_HEAD = do_PUT

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, text: str = "", **headers: str) -> None:
        """Reads the body and answers."""
        self.body()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def end(self) -> bool:
        """Close the connection after the answer."""
        self.close_connection = True
        return True

    def reset(self) -> bool:
        """Close the connection so that the peer sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        return True


def taken(request: Request) -> None:
    request.reply(200, ETag='"etag"')


def refuses(status: int, code: str = "", message: str = "as the test wants it", more: str = "") -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>" if code else ""
    return lambda request: request.reply(status, text, Content_Type="application/xml")


def begins_upload(request: Request) -> None:
    request.reply(200, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")


@pytest.fixture
def faults() -> Iterator[FaultServer]:
    server = FaultServer()
    yield server
    server.close()


@pytest.fixture
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
