"""One bad process, one bad disk, one missing file: the healthy rest goes on, and what is wrong is told and mended.

Faults that root cannot provoke by modes or limits are put into the real server by a `sitecustomize`, which does
something only while a file is there. A segment that cannot be read is a directory under its name.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from tests.crash.small_disks import small_disk
from tests.support.faults import Fault
from tests.support.http import Response, pack
from tests.support.lake import numbers
from tests.support.load import Load
from tests.support.server import Server, serve_and_fail
from tests.support.waiting import wait_until

_AT_FDCWD = -100  # of renameat2(2)
_RENAME_EXCHANGE = 2
V2 = "/write/v2/msgpack"
NEVER = 1000  # seconds

NO_PROCESSES = """
import errno, os
fork = os.fork
def failing():
    if os.path.exists(FLAG):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = failing
"""
NO_THREADS = """
import os, threading
start = threading.Thread.start
def failing(self):
    if os.path.exists(FLAG):
        raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = failing
"""
A_BUG = """
import os
statvfs = os.statvfs
def failing(path):
    if os.path.exists(FLAG):
        raise ValueError("a bug")
    return statvfs(path)
os.statvfs = failing
"""
NO_LISTING = """
import errno, os
scandir = os.scandir
def failing(path="."):
    if os.path.exists(FLAG) and str(path).endswith("/wal"):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return scandir(path)
os.scandir = failing
"""


def body(first: int, count: int = 1) -> bytes:
    return pack({"m": "counted", "columns": {"n": list(range(first, first + count))}})


def picture(server: Server) -> dict[str, Any]:
    response = server.get("/api/v1/status")
    assert response.status == 200
    found: dict[str, Any] = response.json()
    return found


def issue(server: Server, code: str) -> str:
    """The message of an issue that holds, or nothing."""
    return next((issue["message"] for issue in picture(server)["issues"] if issue["code"] == code), "")


def samples(server: Server) -> dict[str, float]:
    """Those of /metrics that have no labels."""
    text = server.get("/metrics").body.decode()
    found = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in found if not sample.labels}


# Segments that cannot be read


def make_unreadable(segment: Path, aside: Path) -> Callable[[], None]:
    """Makes reading the segment fail; what gives it back."""
    segment.rename(aside)
    segment.mkdir()

    def give_back() -> None:
        """Change places in one step: a segment whose name is gone for a moment counts as recovered."""
        places = (_AT_FDCWD, os.fsencode(aside), _AT_FDCWD, os.fsencode(segment))
        assert ctypes.CDLL(None, use_errno=True).renameat2(*places, _RENAME_EXCHANGE) == 0, ctypes.get_errno()
        aside.rmdir()

    return give_back


def segment_with_data(server: Server) -> Path:
    """The one active segment that holds records."""
    [name] = [name for name in server.segments(".wal") if b"counted" in (server.wal / name).read_bytes()]
    return server.wal / name


def test_a_dead_worker_s_unreadable_segment_is_uploaded_later(tmp_path: Path) -> None:
    """A segment of a dead worker that cannot be read is told and uploaded once it can."""
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=NEVER) as server:
        assert server.post(V2, body(0, 100)).status == 202
        dead = server.pids()["ingest 1"]
        os.kill(server.pid, signal.SIGSTOP)  # until the segment is as a bad disk would have it
        os.kill(dead, signal.SIGKILL)
        segment = segment_with_data(server)
        give_back = make_unreadable(segment, tmp_path / "aside")
        os.kill(server.pid, signal.SIGCONT)
        server.wait_for_successor("ingest 1", dead)
        assert server.post(V2, body(100)).status == 202  # its successor has other files
        wait_until(lambda: issue(server, "unreadable_segments"), "the issue")
        assert f"1 segments cannot be read: {segment.name}" in issue(server, "unreadable_segments")
        found = picture(server)["instance"]
        assert (found["backlog_segments"], found["unrecovered_segments"]) == (1, 1)
        assert samples(server)["arcpipe_wal_unrecovered_segments"] == 1
        wait_until(lambda: server.log.count(f"{segment.name} cannot be recovered") > 1, "another try")
        give_back()
        server.wait_for_rows(100)
        assert numbers(server.lake) == list(range(100))
        wait_until(lambda: not issue(server, "unreadable_segments"), "the issue to be gone")
        assert "recovered 1 of 1 segments that could not be read before" in server.log
        server.stop()
        assert "stopped; everything is uploaded" in server.log
        assert numbers(server.lake) == list(range(101))


def test_a_segment_unreadable_at_the_start_is_uploaded_later(tmp_path: Path) -> None:
    """A segment that cannot be read at the start is uploaded while the server runs."""
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=NEVER) as server:
        assert server.post(V2, body(0, 100)).status == 202
        server.kill_all()
        segment = segment_with_data(server)
        give_back = make_unreadable(segment, tmp_path / "aside")
        server.restart()
        assert segment.name in issue(server, "unreadable_segments")
        server.stop()
        assert "stopped; the next start goes on with 1 segments that could not be recovered. Keep the" in server.log
        assert "everything is uploaded" not in server.log
        server.restart()
        assert segment.name in issue(server, "unreadable_segments")
        give_back()
        server.wait_for_rows(100)
        server.stop()
        assert "stopped; everything is uploaded" in server.log
        assert numbers(server.lake) == list(range(100))


def test_a_file_in_quarantine_is_told_and_not_called_uploaded(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "worker-1-20251008_140530-000001.wal").write_bytes(os.urandom(5000))
    with Server(tmp_path, server_workers=1) as server:
        assert issue(server, "quarantine").startswith("1 files are in ")
        server.stop()
        assert "stopped; everything is uploaded but for 1 files in quarantine. Keep the WAL directory" in server.log


# Processes and threads that cannot be had


def test_a_fork_that_fails_is_tried_again_at_the_start_and_later(tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=2)
    fault = Fault(server, NO_PROCESSES)
    fault.on()
    try:
        server.launch()
        for name in ("uploader", "ingest 1", "ingest 2"):
            line = f"cannot start {name}: [Errno 11] Resource temporarily unavailable; trying again in"
            wait_until(lambda line=line: server.log.count(line) > 2, line)  # type: ignore[misc]
        fault.off()
        server.wait_until_serving()
        wait_until(lambda: len(server.pids()) == 4, "all processes")
        assert server.post(V2, body(0)).status == 202
        fault.on()
        before = server.log.count("cannot start ingest 1")
        dead = server.kill("ingest 1")
        wait_until(lambda: server.log.count("cannot start ingest 1") > before + 1, "a fork that fails")
        fault.off()
        server.wait_for_successor("ingest 1", dead)
        for number in range(1, 20):  # spread over both
            assert server.post(V2, body(number)).status == 202
        server.stop()
        assert numbers(server.lake) == list(range(20))
    finally:
        server.end()
        server._show_log()


@pytest.mark.parametrize("lacking", [NO_PROCESSES, NO_THREADS], ids=["processes", "threads"])
def test_a_worker_that_dies_without_room_for_recovery_ends_nobody(tmp_path: Path, lacking: str) -> None:
    """A worker that dies while there is no room for its recovery ends nobody."""
    server = Server(tmp_path, server_workers=2, flush_max_age_seconds=NEVER)
    fault = Fault(server, lacking)
    with server:
        for number in range(20):  # spread over both
            assert server.post(V2, body(number)).status == 202
        pids = server.pids()
        fault.on()
        for role in ("ingest 1", "ingest 2"):
            server.kill(role)
        sentence = "cannot start" if lacking == NO_PROCESSES else "cannot go on: can't start new thread"
        wait_until(lambda: server.log.count(sentence) > 3, "failed starts")
        fault.off()
        for role in ("ingest 1", "ingest 2"):
            server.wait_for_successor(role, pids[role])
        wait_until(lambda: server.post(V2, body(20)).status == 202, "a write")
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert numbers(server.lake) == list(range(21))


@pytest.mark.parametrize("patience", ["until it goes on", "until it is stopped"])
def test_a_start_that_gets_no_thread_waits(tmp_path: Path, patience: str) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=NEVER) as server:
        assert server.post(V2, body(0)).status == 202
        server.kill_all()
        fault = Fault(server, NO_THREADS)
        fault.on()
        if patience == "until it is stopped":
            server.settings["shutdown_drain_seconds"] = 1  # nothing can be uploaded meanwhile
        server.launch()
        reasons = ("the start has to wait: can't start new thread", "cannot go on: can't start new thread")
        wait_until(lambda: any(reason in server.log for reason in reasons), "a thread that cannot be started")
        if patience == "until it is stopped":
            server.send_signal(signal.SIGTERM)
            assert server.exit_code() == 0
            server.assert_nobody_left()
            return
        fault.off()
        server.wait_until_serving()
        wait_until(lambda: len(server.pids()) == 3, "all processes")
        server.stop()
        assert numbers(server.lake) == [0]


def test_a_worker_that_dies_again_and_again_ends_nobody_else(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2) as server:
        dead = 0
        for _ in range(8):  # as often in a row as ended the whole instance once
            server.wait_for_successor("ingest 1", dead)
            dead = server.kill("ingest 1")
        wait_until(lambda: server.log.count("ingest 1 (pid") >= 8, "its deaths to be noted")
        healthy = server.pids()["ingest 2"]
        server.wait_for_successor("ingest 1", dead)
        wait_until(lambda: issue(server, "failed_starts"), "the issue")
        assert re.search(r"ingest 1 could not be started .* ([89]|1\d) times in a row", issue(server, "failed_starts"))
        assert "has no heartbeat" not in server.log
        assert server.pids()["ingest 2"] == healthy
        for number in range(20):
            assert server.post(V2, body(number)).status == 202
        wait_until(lambda: not issue(server, "failed_starts"), "the issue to be gone once it was well")
        server.stop()
        assert numbers(server.lake) == list(range(20))


def test_a_worker_that_finds_its_disk_full_at_its_start_waits_for_space(tmp_path: Path) -> None:
    settings = {"server_workers": 2, "wal_min_free_mb": 0, "wal_max_size_mb": 4, "wal_recycle": False}
    with small_disk(tmp_path / "disk", "tmpfs", 32) as disk:
        wal = disk.path / "wal"
        with Server(tmp_path, wal_dir=wal, **settings) as server:
            server.wal = wal
            dead = server.pids()["ingest 1"]
            disk.fill()
            server.kill("ingest 1")

            def waits_for_space() -> bool:
                disk.fill()
                deaths = server.log.count("died: exit code 75, as the machine refused something")
                return deaths >= 3 or ("No space left" in server.log and "ingest 1" in server.pids())

            wait_until(waits_for_space, "a worker without space")
            assert server.is_running
            disk.free()
            server.wait_for_successor("ingest 1", dead)
            wait_until(lambda: server.post(V2, body(0)).status == 202, "writes to go on")
            for number in range(1, 20):
                assert server.post(V2, body(number)).status == 202
            server.stop()
            assert numbers(server.lake) == list(range(20))


def test_a_bug_in_the_supervisor_s_own_rounds_ends_nobody(tmp_path: Path) -> None:
    server = Server(tmp_path, server_workers=2)
    fault = Fault(server, A_BUG)
    with server:
        fault.on()
        wait_until(lambda: "a bug in the supervisor; it goes on" in server.log, "the bug")
        dead = server.kill("ingest 1")
        server.wait_for_successor("ingest 1", dead)
        fault.off()
        wait_until(lambda: server.post(V2, body(0)).status == 202, "a write")  # nobody knew the free space
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert numbers(server.lake) == [0]


# A directory that cannot be looked at


def test_a_directory_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    """A directory that cannot be listed is told by endpoints that still answer."""
    server = Server(tmp_path, server_workers=2, shutdown_drain_seconds=1)
    fault = Fault(server, NO_LISTING)
    acknowledged: list[int] = []

    def write(number: int) -> Response:
        """Send one; it is noted if it was acknowledged."""
        response = server.post(V2, body(number))
        if response.status == 202:
            acknowledged.append(number)
        return response

    def is_refused() -> bool:
        response = write(1)
        return response.status == 503 and "the WAL directory cannot be looked at" in response.reason

    with server:
        assert write(0).status == 202
        server.wait_for_rows(1)
        fault.on()
        wait_until(is_refused, "writes to be refused")  # the other worker may learn of it a little later
        assert server.get("/health").status == 200
        assert "Input/output error" in issue(server, "wal_unlisted")
        found = picture(server)["instance"]
        assert set(found["segments"]) == {"free", "quarantine"}  # what can be listed
        assert found["disk_total_bytes"] > 0
        assert samples(server)["arcpipe_wal_listed"] == 0
        dead = server.kill("ingest 1")
        wait_until(lambda: "cannot look for the segments of ingest 1" in server.log, "its death to be noted")
        assert server.log.count("cannot look at") == 1
        fault.off()
        server.wait_for_successor("ingest 1", dead)
        wait_until(lambda: write(2).status == 202, "writes to go on")
        server.wait_for_rows(len(acknowledged))
        assert issue(server, "wal_unlisted") == ""
        fault.on()
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 4
        server.assert_nobody_left()
        assert "stopped; whether everything is uploaded is unknown: [Errno 5] Input/output error" in server.log
        assert numbers(server.lake) == acknowledged


@pytest.mark.parametrize("folder", ["free", "quarantine"])
def test_a_missing_folder_is_told_by_endpoints_that_still_answer(tmp_path: Path, folder: str) -> None:
    with Server(tmp_path, server_workers=1) as server:

        def is_told() -> bool:
            shutil.rmtree(server.wal / folder, ignore_errors=True)  # whoever makes a segment makes it again
            return folder in issue(server, "wal_unlisted")

        wait_until(is_told, "the issue")
        assert "active" in picture(server)["instance"]["segments"]
        assert "arcpipe_wal_listed" in samples(server)
        assert server.get("/health").status == 200
        (server.wal / folder).mkdir(exist_ok=True)
        assert issue(server, "wal_unlisted") == ""
        server.stop()


# The lock


def test_who_removes_the_lock_file_lets_no_second_instance_in(tmp_path: Path) -> None:
    lock = tmp_path / "wal" / "LOCK"
    with Server(tmp_path, wal_max_size_mb=1) as server, Load(server, pause_seconds=0.02) as load:
        load.wait_for_requests(50)
        os.kill(server.pid, signal.SIGSTOP)  # or it would make the file again before the second one looks
        lock.unlink()
        try:
            done = serve_and_fail(tmp_path, **{**server.settings, "server_port": 0})
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert done.returncode == 1
        assert f"{server.wal} is in use by another arcpipe" in done.stderr
        wait_until(lock.exists, "the file to be made again")
        wait_until(lambda: lock.read_text() == f"{server.pid}\n", "its owner to be in it")
        done = serve_and_fail(tmp_path, **{**server.settings, "server_port": 0})
        assert f"{server.wal} is in use by another arcpipe (pid {server.pid})" in done.stderr
        load.wait_for_requests(50)
        load.stop()
        server.stop()
        server.assert_log_is_shipped()
        load.assert_exactly_once(server.lake)


def test_a_version_that_hands_over_only_the_file_s_lock_is_upgraded(tmp_path: Path) -> None:
    """Its workers may even hold the directory's lock, where it came after a version that has one."""
    (tmp_path / "wal").mkdir()
    server = Server(tmp_path, server_workers=1)
    server.prefix = [
        sys.executable,
        "-c",
        "import fcntl, os, signal, sys\n"
        "wal, command = sys.argv[1], sys.argv[2:]\n"
        "file = os.open(wal + '/LOCK', os.O_RDWR | os.O_CREAT)\n"
        "directory = os.open(wal, os.O_RDONLY)\n"
        "for fd in (file, directory): fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.close(file)\n"
        "    while True: signal.pause()\n"
        "os.close(directory)\n"
        "os.dup2(file, 3)\n"
        "os.set_inheritable(3, True)\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'lock',\n"
        "    'INHERITED_CHILDREN': str(child)}\n"
        "os.execv(command[0], command)\n",
        str(tmp_path / "wal"),
    ]
    with server:
        fd = os.open(server.wal, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
        server.stop()
