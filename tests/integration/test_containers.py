"""A server in a container: foreign variables, a part of the machine's cores, few open files."""

from __future__ import annotations

import functools
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcpipe import descriptors
from tests.support.http import Client, pack
from tests.support.program import COMMAND, environment, service_variables
from tests.support.server import Server
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
BODY = pack({"m": "large", "columns": {"pad": [bytes(400_000)]}})
LIMIT = 256


def is_empty(group: Path) -> bool:
    """Whether the cgroup has no process."""
    return not (group / "cgroup.procs").read_text()


@pytest.fixture
def half_a_core() -> Iterator[Path | None]:
    """A cgroup that gives its processes half a core; None where this machine lets nobody make one."""
    for mounted, settings in (
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
        ("/sys/fs/cgroup/cpu,cpuacct", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
        ("/sys/fs/cgroup", {"cpu.max": "50000 100000"}),
    ):
        group = Path(mounted, f"arcpipe-test-{os.getpid()}")
        try:
            group.mkdir()
            for name, value in settings.items():
                (group / name).write_text(value)
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        wait_until(functools.partial(is_empty, group), "the processes of the cgroup to be gone")
        group.rmdir()
        return
    yield None


def test_a_quota_of_half_a_core_makes_one_worker(tmp_path: Path, half_a_core: Path | None) -> None:
    if half_a_core is None:
        pytest.skip("no cgroup with a quota of CPU time can be made here")
    server = Server(tmp_path, server_workers=0)
    server.prefix = ["sh", "-c", f'echo $$ > {half_a_core}/cgroup.procs && exec "$@"', "sh"]
    with server:
        assert "1 workers: the CPU quota of the cgroup is 0.5 cores" in server.log
        assert [role for role in server.pids() if role.startswith("ingest")] == ["ingest 1"]
        server.stop()


def test_few_open_files_and_variables_of_a_service_of_our_name(tmp_path: Path) -> None:
    """A worker takes as many connections as it can open files for, besides what it needs itself, and says so."""
    server = Server(tmp_path, server_workers=1, server_max_connections=1000, wal_max_size_mb=1)
    server.variables = service_variables("ARCPIPE")
    server.prefix = ["prlimit", f"--nofile={LIMIT}"]
    taken = LIMIT // 2
    clients: list[socket.socket] = []
    with server:
        assert server.log.count("Kubernetes makes them for a Service of such a name") == 1
        told = f"server.max_connections = 1000 needs 1512 open files, and a process may have {LIMIT}"
        assert f"{told}: each worker takes {taken} connections and answers 503 above that" in server.log
        [worker] = server.get("/api/v1/status").json()["instance"]["workers"]
        assert worker["max_connections"] == taken
        assert f'\narcpipe_connections_limit{{worker="1"}} {taken}.0\n' in server.get("/metrics").body.decode()
        with server.client() as client:
            assert client.request("GET", "/ping").status == 204
            clients += [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(taken - 1)]
            for _ in range(3):  # told so, and not cut off
                with Client(server.url) as further:
                    refused = further.receive()
                    assert (refused.status, refused.json()["code"]) == (503, "too_many_connections")
            # The WAL rotates all the same.
            for _ in range(6):
                assert client.request("POST", V2, BODY).status == 202
        for one in clients:
            one.close()
        server.stop()


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]], ids=" ".join)
def test_fewer_open_files_than_it_needs_itself_stop_a_start_and_say_so(tmp_path: Path, command: list[str]) -> None:
    done = subprocess.run(
        ["prlimit", f"--nofile={descriptors.LEAST - 1}", *COMMAND, *command],
        cwd=tmp_path,
        env=environment(server_port=0),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"a process may have {descriptors.LEAST - 1} open files, and it needs {descriptors.LEAST}" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_the_least_open_files_it_serves(tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=1, wal_max_size_mb=1)
    server.prefix = ["prlimit", f"--nofile={descriptors.LEAST}"]
    with server, server.client() as client:
        for _ in range(6):
            assert client.request("POST", V2, BODY).status == 202
        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (descriptors.LEAST, descriptors.LEAST)
        server.wait_for_rows(6, measurement="large")
        client.socket.close()
        server.stop()
