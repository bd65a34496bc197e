"""Memory held by connections that make no progress is counted, whatever they have sent.

The kinds are those of `python -m benchmarks.worst.connections --hold`, which measures them by the thousand. The server
here may hold little, and each kind would take some times more than it may, if a part of it were not counted.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.worst import holding
from benchmarks.worst.held import resident_bytes
from tests.support.http import pack
from tests.support.program import ROOT
from tests.support.server import Server
from tests.support.sets import long

V2 = "/write/v2/msgpack"
MB = 1 << 20
INFLIGHT_MB = 4
COUNT = 800
# Bytes of a connection itself, whatever it sends: docs/operations.md tells how many.
EACH = 10_000


@contextmanager
def held(server: Server, kind: str, count: int) -> Iterator[dict[str, int]]:
    """Connections of a kind that have sent what the server takes; how many there are."""
    with subprocess.Popen(
        [*holding.COMMAND, kind, str(count), "127.0.0.1", str(server.port)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        try:
            assert client.stdout is not None
            yield json.loads(client.stdout.readline())
        finally:
            client.kill()


@pytest.mark.parametrize(
    "kind",
    [
        *("head", "head-lines", "head-refused", "trailers", "body-pieces", "chunks", "pipelined"),
        *(pytest.param(kind, marks=long) for kind in ("head-dribbles", "head-short-lines", "asked-head")),
        *(pytest.param(kind, marks=long) for kind in ("trailer", "body")),
    ],
)
def test_a_worker_holds_what_it_may_and_little_of_each_connection(tmp_path: Path, kind: str) -> None:
    with Server(
        tmp_path,
        server_workers=1,
        server_max_body_mb=1,
        server_max_inflight_mb=INFLIGHT_MB,
        server_header_timeout_seconds=300,
        server_body_timeout_seconds=300,
    ) as server:
        worker = server.pids()["ingest 1"]
        with server.client() as client:
            assert client.request("POST", V2, pack({"m": "cpu", "columns": {"usage": [0.5]}})).status == 202
            before = resident_bytes(worker)
            with held(server, kind, COUNT) as told:
                assert told["opened"] == COUNT
                assert client.request("GET", "/ping").status == 204
                grown = resident_bytes(worker) - before
                assert server.post(V2, pack({"m": "cpu", "columns": {"usage": [0.5]}})).status in (202, 503)
        assert grown < 3 * INFLIGHT_MB * MB + COUNT * EACH
        assert server.pids()["ingest 1"] == worker
        server.stop()
