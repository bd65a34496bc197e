"""A victim and attackers, which send what is legal, small and costly: it is answered, and nobody is killed.

Bounds are many times what `python -m benchmarks.worst.stall` measures, and a fraction of what each of these streams
once made a client wait. The streams and both sides are those of that benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.worst.attacks import ATTACKS, MORE_ATTACKS, Recipe, load_corpus
from benchmarks.worst.stall import COMMAND, be_victim
from tests.support.certificates import needs_openssl
from tests.support.http import pack, request_bytes
from tests.support.processes import memory_kb
from tests.support.program import ROOT
from tests.support.server import Server
from tests.support.sets import long
from tests.support.tls import make_certificate, tls_server
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
WRITE = request_bytes("POST", V2, pack({"m": "cpu", "columns": {"usage": [0.5]}}))
SECONDS = 0.8
WORST_MS = 2000.0
# A stall by the input occurs each time, one by another program of the machine does not.
TRIES = 3
CASES = {**ATTACKS, **MORE_ATTACKS, **load_corpus()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # What the attackers write stays in the WAL: its conversion takes longer than the tests, and is not their subject.
    later = {"flush_max_age_seconds": 1000, "uploader_interval_seconds": 1000}
    with Server(tmp_path_factory.mktemp("stalls"), server_workers=1, server_max_inflight_mb=128, **later) as server:
        yield server
        assert "Traceback" not in server.log  # it is not stopped: what the attackers wrote would be uploaded first


@contextlib.contextmanager
def attack(server: Server, recipe: Recipe) -> Iterator[None]:
    where = ("127.0.0.1", str(server.port))
    with subprocess.Popen(
        [*COMMAND, "--attack", json.dumps(recipe), *where], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    "name", [*ATTACKS, *(pytest.param(name, marks=long) for name in (*MORE_ATTACKS, *load_corpus()))]
)
def test_a_victim_is_answered_beside(server: Server, name: str) -> None:
    worker = server.pids()["ingest 1"]
    worst = []
    for _ in range(TRIES):
        with attack(server, CASES[name]):
            seen = be_victim("127.0.0.1", server.port, SECONDS)
        assert seen["failed"] == ""
        assert seen["worst_ms"] is not None
        worst.append(seen["worst_ms"])
        if worst[-1] < WORST_MS:
            break
    assert min(worst) < WORST_MS, worst
    assert server.pids()["ingest 1"] == worker
    assert "has no heartbeat" not in server.log
    assert memory_kb(worker) < 700_000


def test_bodies_that_become_large_take_memory_in_turn(tmp_path: Path) -> None:
    """Of 20 clients each sends what becomes 90 MB: nobody waits for them, and their memory is that of one."""
    with Server(tmp_path, server_workers=1, server_max_inflight_mb=128, flush_max_age_seconds=1000) as server:
        worker = server.pids()["ingest 1"]
        with attack(server, {**ATTACKS["Arrow of zeros"], "clients": 20}):
            seen = be_victim("127.0.0.1", server.port, 2 * SECONDS)
        assert seen["failed"] == ""
        assert memory_kb(worker) < 350_000


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that nobody has attacked: it has nothing to upload first."""
    with Server(tmp_path_factory.mktemp("quiet"), server_workers=1, flush_max_age_seconds=1000) as server:
        yield server
        assert "Traceback" not in server.log


def test_a_body_of_too_many_shapes_is_413_with_the_reason(quiet: Server) -> None:
    body = b"\n".join(b"m f%x=1" % number for number in range(20_000))
    response = quiet.post("/write", body)
    assert (response.status, response.json()["code"]) == (413, "body_too_large")
    most = 4096 + len(body) // 256
    assert response.reason.startswith(f"the body has more than {most} shapes (measurement, tags, fields and their")
    rows = pack([{"m": "m", "fields": {f"f{number:x}": 1}} for number in range(20_000)])
    assert quiet.post(V2, rows).status == 413
    few = b"\n".join(b"m f%x=1" % number for number in range(4_000))
    assert quiet.post("/write", few).status == 204


def test_a_body_of_too_many_bad_lines_is_400_and_nothing_of_it_is_written(quiet: Server) -> None:
    response = quiet.post("/write", b"good f=1\n" + b"x\n" * 20_000)
    assert (response.status, response.reason) == (
        400,
        "the body has more than 5346 bad lines; nothing was written",
    )


# Descriptors


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_the_wal_rotates_when_connections_have_used_up_all_descriptors(tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=1, server_max_connections=1000, wal_max_size_mb=1)
    server.prefix = ["prlimit", "--nofile=256"]
    idle: list[socket.socket] = []
    with server:
        worker = server.pids()["ingest 1"]
        with server.client() as client:
            assert client.request("GET", "/ping").status == 204
            limit = resource.prlimit(worker, resource.RLIMIT_NOFILE)[0]
            assert limit == 256 - 64
            # It takes no more connections than fit with all else. So somebody takes away what is left.
            few = descriptors(worker) + 20
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (few, 256))

            def is_full() -> bool:
                idle.append(socket.create_connection(("127.0.0.1", server.port), 30))
                return descriptors(worker) >= few - 1

            wait_until(is_full, "the last descriptor")
            body = pack({"m": "large", "columns": {"pad": [bytes(400_000)]}})
            for _ in range(12):
                assert client.request("POST", V2, body).status == 202
            wait_until(lambda: len(server.segments(".wal.sealed")) + len(server.segments(".wal")) > 0, "segments")
        assert resource.prlimit(worker, resource.RLIMIT_NOFILE)[0] == limit
        assert server.pids()["ingest 1"] == worker
        for connection in idle:
            connection.close()
        server.stop()


@needs_openssl
def test_handshakes_that_are_not_over_are_few_and_hold_up_nobody(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    with tls_server(tmp_path, server_workers=1, server_max_connections=30) as server:
        worker = server.pids()["ingest 1"]
        before = descriptors(worker)
        silent = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(100)]
        for _ in range(3):
            with server.client() as client:
                assert client.request("GET", "/ping").status == 204
                assert descriptors(worker) < before + 60
        for connection in silent:
            connection.close()
        server.stop()
