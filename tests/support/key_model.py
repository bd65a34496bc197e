"""A model of the server: it keeps records and keys in memory, as the real one promises to.

It stands where the real server would, in front of the same clients: what is proven with it is proven of the client.
"""

from __future__ import annotations

import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgpack

from tests.support.compression import zstd


class Written(NamedTuple):
    """A request that the model took."""

    key: str
    database: str
    path: str
    body: bytes


class QuietServer(ThreadingHTTPServer):
    """Serves clients that may be killed, and says nothing about it."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ModelServer:
    """Takes every body once for each database and key.

    with ModelServer() as server:
        Client(server.url)
    """

    def __init__(self) -> None:
        self.written: list[Written] = []
        self.replayed = 0
        self.conflicts: list[str] = []
        """Keys that came again with other bytes."""
        self._kept: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"model": self})
        self._server = QuietServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, key: str, database: str, path: str, body: bytes) -> bool:
        """Keep a body; whether its key was known."""
        with self._lock:
            known = self._kept.get((database, key)) if key else None
            if known is not None:
                self.replayed += 1
                if known != body:
                    self.conflicts.append(key)
                return True
            self._kept[database, key] = body
            self.written.append(Written(key, database, path, body))
            return False

    def numbers(self, database: str = "*") -> list[int]:
        """Return the column `n` of all records, sorted, as `tests.support.lake.numbers` does."""
        with self._lock:
            written = list(self.written)
        return sorted(record["n"] for one in written if database in ("*", one.database) for record in records_of(one))


def records_of(written: Written) -> list[dict[str, Any]]:
    """Return the records of a body, each with its `measurement`."""
    if not written.path.startswith("/write/v2/msgpack"):
        return [_of_line(line) for line in written.body.decode().split("\n") if line and not line.startswith("#")]
    found: list[dict[str, Any]] = []
    for element in msgpack.unpackb(written.body, timestamp=3):
        if "columns" in element:
            columns = element["columns"]
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                found.append({"measurement": element["m"], **{k: v for k, v in row.items() if v is not None}})
        else:
            found.append(
                {"measurement": element["m"], "time": element["t"], **element["fields"], **element.get("tags", {})}
            )
    return found


def _of_line(line: str) -> dict[str, Any]:
    """Read one of the plain lines that tests write: no escapes, numbers only."""
    head, fields, *_ = line.split(" ")
    pairs = [field.split("=") for field in fields.split(",")]
    return {"measurement": head.split(",")[0], **{name: int(value.rstrip("i")) for name, value in pairs}}


class _Handler(BaseHTTPRequestHandler):
    model: ModelServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # cut off: nothing of it counts
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        key = self.headers.get("idempotency-key", "")
        database = parse_qs(parts.query).get("db", ["default"])[0]
        encoding = self.headers.get("content-encoding", "")
        if encoding:
            body = gzip.decompress(body) if encoding == "gzip" else zstd.decompress(body)
        is_known = self.model.take(key, database, parts.path, body)
        self.send_response_only(204)
        if is_known:
            self.send_header("Idempotency-Replayed", "true")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
