"""Large Arrow bodies over real sockets: by TCP, a Unix socket and TLS, pipelined, and through a kill of the worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.certificates import needs_openssl
from tests.support.http import Client, request_bytes
from tests.support.lake import lake_files
from tests.support.server import Server
from tests.support.tls import make_certificate, tls_server, trusting
from tests.support.waiting import wait_until
from tests.unit.ingest.http.test_direct_body import INGEST, SMALL, STREAM, stream

ROWS = 150_000  # 2.4 MB: several reads
LARGE = stream(ROWS)
REQUEST = request_bytes("POST", INGEST, LARGE, STREAM)


def rows(server: Server) -> int:
    """Count the rows of large bodies in the lake."""
    return sum(pq.read_metadata(file).num_rows for file in lake_files(server.lake, "d"))


def write_all(client: Client) -> None:
    """Send large and small requests at once, and as pieces, and read their answers."""
    client.send(SMALL + REQUEST + SMALL + REQUEST)
    assert [client.receive().status for _ in range(4)] == [202] * 4
    for at in range(0, len(REQUEST), 100_000):
        client.send(REQUEST[at : at + 100_000])
    client.send(SMALL)
    assert [client.receive().status for _ in range(2)] == [202] * 2


@pytest.mark.parametrize("way", ["tcp", "unix", pytest.param("tls", marks=needs_openssl)])
def test_large_and_small_bodies_are_taken_in_turn(tmp_path: Path, way: str) -> None:
    if way == "tls":
        make_certificate(tmp_path)
        server = tls_server(tmp_path, server_workers=1)
    elif way == "unix":
        listeners = json.dumps([{"address": f"unix:{tmp_path}/socket"}])
        server = Server(tmp_path, server_workers=1, server_listeners=listeners)
    else:
        server = Server(tmp_path, server_workers=1)
    with server:
        url = f"unix:{tmp_path}/socket" if way == "unix" else server.url
        with Client(url, tls=trusting(tmp_path) if way == "tls" else None) as client:
            write_all(client)
        wait_until(lambda: rows(server) >= 3 * ROWS)
        assert rows(server) == 3 * ROWS
        server.stop()
        assert "Traceback" not in server.log


def test_a_body_that_a_kill_cuts_leaves_nothing_and_its_retry_comes_once(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        worker = server.pids()["ingest 1"]
        with server.client() as client:
            client.send(REQUEST)
            assert client.receive().status == 202
            client.send(REQUEST[:-100_000])
            os.kill(worker, signal.SIGKILL)
            with contextlib.suppress(ConnectionError):
                client.send(REQUEST[-100_000:])
            with pytest.raises(ConnectionError):
                client.receive()
        wait_until(lambda: server.pids().get("ingest 1") not in (None, worker))

        def retried() -> bool:
            with contextlib.suppress(ConnectionError), server.client() as again:
                again.send(REQUEST)
                return again.receive().status == 202
            return False

        wait_until(retried)
        server.stop()  # once everything is uploaded
        assert rows(server) == 2 * ROWS
