"""`arcpipe serve` as a process: its start and end, its settings, and when what was written reaches the store."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arcpipe.config import cores
from arcpipe.supervisor.last_words import EXIT_UNKNOWN
from tests.support.http import Client, Response, pack, request_bytes
from tests.support.lake import lake_files, lake_rows, numbers
from tests.support.load import Load
from tests.support.processes import processes_of_session
from tests.support.server import Server, serve_and_fail
from tests.support.sets import long
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.wal_files import arc_file

V2 = "/write/v2/msgpack"
NEW_YEAR = 1_767_225_600  # 2026-01-01T00:00:00Z
NEVER = 1000  # seconds, or millions of records: longer or more than any test


def body(first: int, count: int, pad: int = 0) -> bytes:
    """`count` records numbered from `first`, each with `pad` bytes that do not matter."""
    columns: dict[str, list[object]] = {"n": list(range(first, first + count))}
    if pad:
        columns["pad"] = [b"\0" * pad] * count
    return pack({"m": "counted", "columns": columns})


# Processes


def by_command(server: Server) -> Server:
    """As a user starts it, in a process that has to load everything."""
    server.by_command = True
    return server


def test_every_process_says_who_it_is(tmp_path: Path) -> None:
    with by_command(Server(tmp_path, server_workers=3)) as server:
        assert sorted(server.pids()) == ["ingest 1", "ingest 2", "ingest 3", "supervisor", "uploader"]
        titles = {process.pid: process.title for process in server.processes()}
        assert titles[server.pid] == "arcpipe: supervisor"
        assert os.getpriority(os.PRIO_PROCESS, server.pids()["uploader"]) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + 5
        )
        assert len(os.listdir(f"/proc/{server.pid}/task")) == 1  # who forks has one thread
        server.stop()


def test_a_server_does_without_the_parser_of_commands(tmp_path: Path) -> None:
    """Its libraries would be in the memory of each process, and take 0.2 s at each start."""
    with by_command(Server(tmp_path, server_workers=1)) as server:
        for pid in server.pids().values():
            loaded = Path(f"/proc/{pid}/maps").read_text()
            assert "pyarrow" in loaded
            assert "pydantic" not in loaded
            assert "/pandas/" not in loaded  # which the tests install, and Arrow looks for
        server.stop()


def state(server: Server) -> dict[str, object]:
    """What a process inherits or sets up: signals, directory, files and the rest of it."""
    found: dict[str, object] = {}
    for role, pid in server.pids().items():
        status = Path(f"/proc/{pid}/status").read_text()
        found[role] = (
            re.findall(r"^(?:Sig(?:Ign|Cgt)|Umask|NoNewPrivs|Seccomp):.*", status, re.MULTILINE),
            os.readlink(f"/proc/{pid}/cwd") == str(server.directory),
            *(os.getsid(pid) == server.pid, os.getpgid(pid) == server.pid, os.getpriority(os.PRIO_PROCESS, pid)),
            Path(f"/proc/{pid}/oom_score_adj").read_text(),
            [os.readlink(f"/proc/{pid}/fd/{number}") == str(server.directory / "log") for number in range(3)],
        )
    files = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{server.pid}/fd")]
    found["files"] = sorted(re.sub(r"\d+", "N", name.replace(str(server.directory), "")) for name in files)
    found["threads"] = len(os.listdir(f"/proc/{server.pid}/task"))
    found["blocked"] = re.findall(r"^SigBlk:.*", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    return found


def test_a_server_that_the_tests_fork_is_as_one_that_is_executed(tmp_path: Path) -> None:
    states: list[dict[str, object]] = []
    for is_executed in (True, False):
        directory = tmp_path / str(is_executed)
        directory.mkdir()
        server = Server(directory, server_workers=1)
        server.by_command = is_executed
        with server:
            states.append(state(server))
            server.stop()
    assert states[0] == states[1]


def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2, flush_max_age_seconds=NEVER) as server:
        for number in range(64):
            assert server.post(V2, body(number, 1)).status == 202
        sizes = {name: (server.wal / name).read_bytes().count(b"counted") for name in server.segments(".wal")}
        slots = {name.split("-")[1] for name, entries in sizes.items() if entries}
        assert slots == {"1", "2"}
        server.stop()
        assert numbers(server.lake) == list(range(64))


def test_workers_default_to_one_per_core(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=0) as server:
        workers = [role for role in server.pids() if role.startswith("ingest")]
        assert len(workers) == cores.available().number
        server.stop()


def test_settings_come_from_a_file_and_arcs_own_variables(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[storage]\nlayout = "hive"\n')
    server = Server(tmp_path)
    del server.settings["server_workers"], server.settings["flush_max_age_seconds"]
    server.variables = {"WORKERS": "1", "WRITE_BUFFER_AGE": "0.2", "WAL_SYNC_MODE": "fsync"}
    server.prefix = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    with server:
        assert sorted(server.pids()) == ["ingest 1", "supervisor", "uploader"]
        server.write({"m": "m", "columns": {"time": [NEW_YEAR], "n": [1]}})
        server.wait_for_rows(1)
        wait_until((server.wal / "schema.json").exists, "the registry")
        # Whatever is in the WAL directory is for its owner, and to be read by his group.
        found: dict[Path, int] = {}
        for path in [server.wal, *server.wal.rglob("*")]:
            with contextlib.suppress(FileNotFoundError):  # renamed since
                found[path] = stat.S_IMODE(path.stat().st_mode)
        assert {server.wal / name for name in ("node.json", "schema.json", "schema.json.copy", "LOCK")} <= set(found)
        for path, mode in found.items():
            assert mode == (0o750 if path.is_dir() else 0o640), path
        server.stop()
    (file,) = lake_files(server.lake)
    assert "year=2026/month=01/day=01/hour=00" in str(file)


# When it cannot start


def test_bad_settings_end_with_exit_code_2_and_name_the_key(tmp_path: Path) -> None:
    done = serve_and_fail(tmp_path, wal_sync_mode="fdatsync", server_port="http", wal_max_sise_mb=1)
    assert done.returncode == 2
    assert 'wal.sync_mode = "fdatsync"' in done.stderr
    assert 'did you mean "fdatasync"?' in done.stderr
    assert "server.port" in done.stderr
    mistyped = "ARCPIPE_WAL_MAX_SISE_MB: not used, as it is not a setting; did you mean ARCPIPE_WAL_MAX_SIZE_MB?"
    assert mistyped in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_an_open_address_without_auth_is_refused(tmp_path: Path) -> None:
    done = serve_and_fail(tmp_path, server_host="0.0.0.0", server_port=0)
    assert done.returncode == 2
    assert "server.host" in done.stderr


def test_a_second_instance_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        done = serve_and_fail(tmp_path, **{**server.settings, "server_port": 0})
        assert done.returncode == 1
        assert f"{server.wal} is in use by another arcpipe (pid {server.pid})" in done.stderr
        assert "Traceback" not in done.stderr
        server.write({"m": "m", "columns": {"n": [1]}})
        server.stop()
        assert numbers(server.lake) == [1]


@pytest.mark.parametrize("holder", ["somebody else", "another arcpipe"])
def test_a_port_that_is_taken_is_refused(tmp_path: Path, holder: str) -> None:
    (tmp_path / "one").mkdir()
    with Server(tmp_path / "one", server_workers=2) as server, socket.socket() as taken:
        if holder == "somebody else":
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind(("127.0.0.1", 0))
            taken.listen()
        port = taken.getsockname()[1] if holder == "somebody else" else server.port
        done = serve_and_fail(tmp_path, server_port=port, server_workers=2)
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_log_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = serve_and_fail(tmp_path, wal_dir=tmp_path / "file" / "wal", server_port=0)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


# The end


@pytest.mark.parametrize("signal_number", [pytest.param(signal.SIGTERM, marks=pytest.mark.smoke), signal.SIGINT])
def test_a_signal_drains_what_is_in_flight_and_ships_everything(tmp_path: Path, signal_number: signal.Signals) -> None:
    with by_command(Server(tmp_path, wal_max_size_mb=1)) as server, Load(server) as load:
        load.wait_for_requests(200)
        server.stop(signal_number)
        load.stop()
        server.assert_log_is_shipped()
        assert server.segments() == []
        load.assert_exactly_once(server.lake)
        assert "stopped; everything is uploaded" in server.log


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=long)])
def test_a_signal_to_every_process_drains_too(tmp_path: Path, signal_number: signal.Signals) -> None:
    """As a terminal sends its Ctrl-C, and systemd its SIGTERM unless told otherwise."""
    with Server(tmp_path, wal_max_size_mb=1) as server, Load(server) as load:
        load.wait_for_requests(100)
        os.killpg(server.pid, signal_number)
        assert server.exit_code() == 0
        load.stop()
        server.assert_log_is_shipped()
        load.assert_exactly_once(server.lake)


def test_a_signal_while_it_starts_ships_what_the_last_run_left(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=NEVER) as server:
        server.write({"m": "m", "columns": {"n": [1]}})
        server.kill_all()
        server.launch()
        wait_until(lambda: "uploader" in server.pids() and "ingest 1" in server.pids(), "children")
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == [1]


def test_a_request_that_is_still_arriving_is_finished_first(tmp_path: Path) -> None:
    request = body(0, 1)
    with Server(tmp_path, server_workers=1) as server, server.client() as arriving, server.client() as idle:
        assert idle.request("GET", "/health").status == 200
        arriving.send(
            f"POST {V2} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n".encode() + request[:-1]
        )
        # Its first bytes have been read once a later request has been answered by the same worker.
        assert idle.request("GET", "/health").status == 200
        server.send_signal(signal.SIGTERM)
        idle.assert_closed()
        arriving.send(request[-1:])
        response = arriving.receive()
        assert (response.status, response.headers["connection"]) == (202, "close")
        assert server.exit_code() == 0
        assert numbers(server.lake) == [0]


@pytest.mark.parametrize("to", ["the supervisor", "every process"])
def test_a_delayed_stop_tells_load_balancers_first_and_serves_meanwhile(tmp_path: Path, to: str) -> None:
    with Server(tmp_path, server_workers=2, shutdown_delay_seconds=NEVER) as server:
        url = server.url

        def ready() -> Response:
            with Client(url) as client:
                return client.request("GET", "/ready")

        assert (ready().status, ready().headers.get("retry-after")) == (200, None)
        with Client(url) as kept:
            assert kept.request("POST", V2, body(0, 1)).status == 202
            if to == "every process":
                os.killpg(server.pid, signal.SIGTERM)
            else:
                server.send_signal(signal.SIGTERM)
            wait_until(lambda: ready().status == 503, "load balancers to be told")
            assert (ready().json()["code"], ready().headers["retry-after"]) == ("draining", "5")
            # Whatever else there is goes on: old connections and new ones, and a worker that dies has a successor.
            response = kept.request("POST", V2, body(1, 1))
            assert (response.status, response.headers.get("connection")) == (202, None)
            dead = server.kill("ingest 1")
            server.wait_for_successor("ingest 1", dead)
            for number in range(2, 20):
                with Client(url) as client:
                    assert client.request("POST", V2, body(number, 1)).status == 202
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        server.assert_nobody_left()
        assert numbers(server.lake) == list(range(20))
        assert "/ready answers 503 from now on; requests are taken for another 1000 s" in server.log


def test_a_delayed_stop_stops_when_the_delay_is_over(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, shutdown_delay_seconds=0.6) as server:
        assert server.post(V2, body(0, 1)).status == 202
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before >= 0.6
        assert numbers(server.lake) == [0]


def test_workers_told_of_a_delayed_stop_wait_for_the_supervisor(tmp_path: Path) -> None:
    """Workers that are told of a delayed stop too do not end before the supervisor says so."""
    with Server(tmp_path, server_workers=2, shutdown_delay_seconds=0.6) as server:
        os.killpg(server.pid, signal.SIGTERM)
        assert server.exit_code() == 0
        assert "stopped: everything that was answered is in the WAL" in server.log
        assert not [line for line in server.log.splitlines() if "supervisor: ingest" in line]
        assert "uploader died" not in server.log


def test_at_the_stop_exactly_the_answered_requests_are_written(tmp_path: Path) -> None:
    """Clients send without waiting for answers; RFC 9112 §9.6."""
    with Server(tmp_path, server_workers=1) as server:
        clients = [server.client() for _ in range(8)]
        stopping = threading.Event()

        def send(first: int, client: Client) -> None:
            """Sends until the connection ends."""
            with contextlib.suppress(OSError):
                for number in range(first, first + 100_000):
                    request = request_bytes("POST", V2, body(number, 1))
                    client.send(request)
                    if number == first + 50:
                        stopping.set()

        def receive(client: Client) -> int:
            """Count the answers until one says that it is the last, or the connection ends."""
            for count in itertools.count():
                try:
                    response = client.receive()
                except ConnectionError:
                    return count
                assert response.status == 202
                if response.headers.get("connection") == "close":
                    return count + 1
            raise AssertionError

        with ThreadPoolExecutor(16) as pool:
            for index, client in enumerate(clients):
                pool.submit(send, index * 1_000_000, client)
            answered = [pool.submit(receive, client) for client in clients]
            assert stopping.wait(60)
            server.stop()
            counts = [future.result(60) for future in answered]
            for client in clients:
                client.socket.close()
        written = numbers(server.lake)
        wanted = [index * 1_000_000 + number for index, count in enumerate(counts) for number in range(count)]
        assert written == wanted


def test_what_cannot_be_shipped_in_time_is_shipped_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")  # a file where the store's directory should be
    with Server(
        tmp_path, server_workers=1, storage_url=f"file://{tmp_path}/blocked/lake", shutdown_drain_seconds=0.5
    ) as server:
        server.write({"m": "m", "columns": {"n": [1]}})
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        server.assert_nobody_left()
        assert "the next start goes on with 1 sealed segments" in server.log
        assert "died" not in server.log
        assert len(server.segments(".wal.sealed")) == 1
        server.settings["storage_url"] = f"file://{server.lake}"
        server.restart()
        server.wait_for_rows(1)
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == [1]


def test_a_second_signal_does_not_wait_any_longer(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    with Server(
        tmp_path, server_workers=1, storage_url=f"file://{tmp_path}/blocked/lake", shutdown_drain_seconds=NEVER
    ) as server:
        server.write({"m": "m", "columns": {"n": [1]}})
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: "ingest 1" not in server.pids(), "the worker to stop")
        server.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0
        server.assert_nobody_left()


def test_an_uploader_that_dies_while_draining_has_a_successor_that_ships(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    lake = tmp_path / "blocked" / "lake"
    with Server(tmp_path, server_workers=1, storage_url=f"file://{lake}") as server:
        server.write({"m": "m", "columns": {"n": [1]}})
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: "ingest 1" not in server.pids(), "the worker to stop")
        server.kill("uploader")
        (tmp_path / "blocked").unlink()
        assert server.exit_code() == 0
        server.assert_nobody_left()
        server.assert_log_is_shipped()
        assert numbers(lake) == [1]


def test_children_end_with_the_supervisor_however_it_dies(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2) as server:
        session = server.pid
        assert len(processes_of_session(session)) == 4
        server.kill("supervisor")
        wait_until(lambda: not processes_of_session(session), "the children to be gone")


# When segments are complete


def test_a_segment_is_complete_by_size(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1, flush_max_age_seconds=NEVER) as server:
        for first in range(0, 100, 10):  # three such bodies fill a segment
            assert server.post(V2, body(first, 10, 30_000)).status == 202
        server.wait_for_rows(90)
        assert numbers(server.lake) == list(range(90))
        server.stop()
        assert numbers(server.lake) == list(range(100))


def test_a_body_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1) as server:
        for first in range(0, 3000, 1000):
            assert server.post(V2, body(first, 1000, 3000)).status == 202
        server.stop()
        assert numbers(server.lake) == list(range(3000))


@pytest.mark.parametrize(
    "limits",
    [
        {"wal_max_age_seconds": 0.3, "flush_max_age_seconds": NEVER},
        {"wal_max_age_seconds": NEVER, "flush_max_age_seconds": 0.3},
    ],
    ids=["age", "flush age"],
)
def test_a_segment_is_complete_by_age(tmp_path: Path, limits: dict[str, object]) -> None:
    with Server(tmp_path, server_workers=1, **limits) as server:
        for number in range(3):
            before = time.monotonic()
            assert server.post(V2, body(number, 1)).status == 202
            server.wait_for_rows(number + 1)
            assert time.monotonic() - before > 0.3  # the age begins after `before`: load only makes this longer
        assert len(lake_files(server.lake)) == 3
        server.stop()


def test_a_segment_is_complete_by_records(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, flush_max_records=100, flush_max_age_seconds=NEVER) as server:
        for first in (0, 60, 120):
            assert server.post(V2, body(first, 60)).status == 202
            if first:
                server.wait_for_rows(120)
        assert numbers(server.lake) == list(range(120))
        assert len(lake_files(server.lake)) == 1
        server.stop()
        assert numbers(server.lake) == list(range(180))


# Sync modes and recycling


@pytest.mark.parametrize(
    "settings",
    [
        {"wal_sync_mode": "fsync"},
        {"wal_sync_mode": "fdatasync"},
        {"wal_sync_mode": "async", "wal_async_interval_ms": 20},
        {"wal_enabled": False},
    ],
    ids=["fsync", "fdatasync", "async", "disabled"],
)
def test_every_sync_mode_takes_a_load_and_ships_all_of_it(tmp_path: Path, settings: dict[str, object]) -> None:
    with Server(tmp_path, wal_max_size_mb=1, **settings) as server, Load(server) as load:
        load.wait_for_requests(400)
        load.stop()
        server.stop()
        server.assert_log_is_shipped()
        assert len(load.acknowledged()) == len(load.sent())
        load.assert_exactly_once(server.lake)


@pytest.mark.parametrize("mode", ["fsync", pytest.param("fdatasync", marks=pytest.mark.smoke), "async"])
def test_what_is_acknowledged_survives_a_crash_of_every_process(tmp_path: Path, mode: str) -> None:
    with by_command(Server(tmp_path, wal_sync_mode=mode, flush_max_age_seconds=NEVER)) as server:
        for number in range(20):
            assert server.post(V2, body(number, 1)).status == 202
        server.kill_all()
        server.restart()
        server.stop()
        assert numbers(server.lake) == list(range(20))


def test_a_disabled_log_ships_what_it_buffered_within_the_flush_age(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_enabled=False) as server:
        for number in range(3):
            assert server.post(V2, body(number, 1)).status == 202
        server.wait_for_rows(3)
        assert numbers(server.lake) == [0, 1, 2]
        # What it had in memory nobody knows any more, however long ago that was.
        server.wait_for_successor("ingest 1", server.kill("ingest 1"))
        server.stop(code=EXIT_UNKNOWN)
        assert "the WAL is disabled, and a worker ended with what it held in memory" in server.log


@pytest.mark.parametrize("recycle", [True, False])
def test_segments_are_written_over_only_if_the_setting_says_so(tmp_path: Path, recycle: bool) -> None:
    # Open descriptors, so that the number of a file that is gone is not given to another one.
    held: dict[int, int] = {}
    names: dict[int, set[str]] = {}

    def look(server: Server) -> None:
        for name in server.segments(".wal"):
            try:
                fd = os.open(server.wal / name, os.O_RDONLY)
            except FileNotFoundError:
                continue
            number = os.fstat(fd).st_ino
            if held.setdefault(number, fd) != fd:
                os.close(fd)
            names.setdefault(number, set()).add(name)

    def is_reused() -> bool:
        return any(len(used) > 1 for used in names.values())

    with Server(tmp_path, server_workers=1, wal_max_size_mb=1, wal_recycle=recycle) as server:
        # With recycling until it is seen, for files of the pool are not written over in the second they came from.
        deadline = time.monotonic() + WAIT_SECONDS
        sent = 0
        while sent < 300 or (recycle and not is_reused() and time.monotonic() < deadline):
            assert server.post(V2, body(sent, 10, 30_000)).status == 202
            sent += 10
            look(server)
            if not sent % 50:  # the pool fills when segments were shipped
                wait_until(lambda: not server.segments(".wal.sealed"), "segments to be shipped")
        for fd in held.values():
            os.close(fd)
        assert is_reused() == recycle
        server.stop()
        assert numbers(server.lake) == list(range(sent))


def test_no_more_than_free_segments_are_kept(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1, wal_max_size_mb=1, wal_free_segments=1) as server:
        for first in range(0, 200, 10):
            assert server.post(V2, body(first, 10, 30_000)).status == 202
        server.stop()
        assert len(os.listdir(server.wal / "free")) <= 1
        assert numbers(server.lake) == list(range(200))


# What a start finds


def test_a_log_that_a_crash_left_is_replayed_and_kept_for_a_while(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=2, flush_max_age_seconds=NEVER) as server:
        for number in range(30):
            assert server.post(V2, body(number, 1)).status == 202
        left = server.segments(".wal")
        server.kill_all()
        server.restart()
        server.wait_for_rows(30)
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == list(range(30))
        assert set(server.segments(".wal.recovered")) <= {f"{name}.recovered" for name in left}
        assert server.segments(".wal.recovered")
        server.settings["wal_keep_recovered_seconds"] = 0
        server.restart()
        server.stop()
        assert server.segments() == []
        assert numbers(server.lake) == list(range(30))


def test_a_log_of_another_number_of_workers_is_replayed(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=3, flush_max_age_seconds=NEVER) as server:
        for number in range(60):
            assert server.post(V2, body(number, 1)).status == 202
        server.kill_all()
        server.settings["server_workers"] = 1
        server.restart()
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == list(range(60))


def test_the_log_of_an_arc_installation_is_shipped(tmp_path: Path) -> None:
    """Row maps with a database each, and the form with a prefix: what Arc's own versions left in their logs."""

    def row(number: int, **more: object) -> dict[str, object]:
        return {"measurement": "counted", "time": (NEW_YEAR + number) * 1_000_000, "fields": {"n": number}, **more}

    wal = tmp_path / "wal"
    wal.mkdir()
    prefixed = b"\x01\x00\x05plant" + pack([row(2), row(3)])
    (wal / "worker-4-20251008_140530.wal").write_bytes(
        arc_file(pack([row(0, _database="production"), row(1)]), prefixed)
    )
    with Server(tmp_path, server_workers=1) as server:
        server.wait_for_rows(4)
        server.stop()
        server.assert_log_is_shipped()
        assert {path.name for path in server.lake.iterdir()} - {".arcpipe-staging"} == {
            "production",
            "default",
            "plant",
        }
        assert [row["n"] for row in lake_rows(server.lake)] == [0, 1, 2, 3]


def test_a_damaged_log_does_not_stop_the_start(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    wal.mkdir()
    (wal / "worker-1-20251008_140530-000001.wal").write_bytes(os.urandom(5000))
    (wal / "worker-1-20251008_140530-000002.wal").write_bytes(b"")
    (wal / "worker-1-20251008_140530-000003.wal.sealed").write_bytes(os.urandom(5000))
    (wal / "somebody else's file").write_text("stays")
    with Server(tmp_path, server_workers=1) as server:
        server.write({"m": "m", "columns": {"n": [1]}})
        server.wait_for_rows(1)
        server.stop()
        assert numbers(server.lake) == [1]
        assert (wal / "somebody else's file").read_text() == "stays"
        kept = [path.read_bytes() for path in (wal / "quarantine").iterdir()]
        assert sorted(map(len, kept)) in ([5000, 5000], [0, 5000, 5000])


def test_what_two_nodes_cannot_convert_is_kept_of_both(tmp_path: Path) -> None:
    """Even of segments of one name, as workers have that start in one second."""
    letters = {}
    for node in ("one", "two"):
        wal = tmp_path / node / "wal"
        wal.mkdir(parents=True)
        payload = pack(f"no envelope of {node}")
        (wal / "worker-1-20251008_140530-000001.wal").write_bytes(arc_file(payload))
        letters[node] = payload
        with Server(tmp_path / node, server_workers=1, storage_url=f"file://{tmp_path}/lake") as server:
            server.stop()
            server.assert_log_is_shipped()
    kept = [path.read_bytes() for path in (tmp_path / "lake" / "_dead_letter").rglob("*.msgpack")]
    assert sorted(kept) == sorted(letters.values())


def test_a_server_starts_again_after_each_end_on_the_same_directory(tmp_path: Path) -> None:
    with Server(tmp_path, server_workers=1) as server:
        for number in range(2):
            server.write({"m": "m", "columns": {"n": [number]}})
            server.stop()
            server.restart()
        server.stop()
        assert numbers(server.lake) == [0, 1]
        assert json.loads((server.wal / "node.json").read_text())["boot"] == 3


# Children that die


def test_a_server_whose_workers_all_keep_dying_has_its_own_exit_code(tmp_path: Path) -> None:
    """A server none of whose workers can be kept alive ends with an exit code of its own."""
    with Server(tmp_path, server_workers=1) as server:
        assert server.post(V2, body(0, 1)).status == 202
        dead = 0
        for _ in range(8):  # as often as it may die early, each time after a longer pause
            server.wait_for_successor("ingest 1", dead)
            dead = server.kill("ingest 1")
        assert server.exit_code() == 3
        assert "no worker can be kept alive (see above); stopping." in server.log
        server.assert_nobody_left()
        server.restart()
        server.stop()
        assert numbers(server.lake) == [0]


@pytest.mark.parametrize("role", ["ingest 1", "uploader"])
def test_a_child_that_dies_has_a_successor_and_nothing_is_lost(tmp_path: Path, role: str) -> None:
    with Server(tmp_path, server_workers=1) as server:
        assert server.post(V2, body(0, 10)).status == 202
        dead = server.kill(role)
        server.wait_for_successor(role, dead)
        # The socket outlives its worker: a connection waits in its queue until the successor listens.
        assert server.post(V2, body(10, 10)).status == 202
        server.wait_for_rows(20)
        assert f"{role} (pid {dead}) died: killed by SIGKILL; restarting in" in server.log
        server.stop()
        assert numbers(server.lake) == list(range(20))


def test_an_uploader_dead_at_the_stop_has_a_successor(tmp_path: Path) -> None:
    """An uploader that is dead when the server stops has a successor that ships."""
    with Server(tmp_path, server_workers=1, flush_max_age_seconds=NEVER) as server:
        assert server.post(V2, body(0, 1)).status == 202
        server.kill("uploader")
        server.stop()
        server.assert_log_is_shipped()
        assert numbers(server.lake) == [0]


def test_a_log_directory_that_is_removed_under_way_is_made_again(tmp_path: Path) -> None:
    """Its contents are gone with it, and not acknowledged again; writes go on as soon as it is back."""
    with Server(tmp_path, server_workers=1) as server:
        assert server.post(V2, body(0, 1)).status == 202
        server.wait_for_rows(1)
        shutil.rmtree(server.wal, ignore_errors=True)  # parts of it are made again at once
        wait_until(lambda: server.post(V2, body(1, 1)).status == 202, "a write to be taken")
        server.wait_for_rows(2)
        assert numbers(server.lake) == [0, 1]
