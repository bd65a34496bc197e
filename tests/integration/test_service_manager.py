"""The supervisor and its service manager, which is a double of systemd at its notify socket.

`make test-systemd` does the same with a real one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcpipe.supervisor.service_manager import ServiceManager
from tests.support.http import free_port, pack
from tests.support.server import Server
from tests.support.service_manager import Manager
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
NEVER = 1000  # seconds


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@arcpipe-test-{os.getpid()}-{time.monotonic_ns()}" if request.param == "abstract" else f"{tmp_path}/n"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(f"{tmp_path}/notify")
    yield manager
    manager.close()


def managed(directory: Path, manager: Manager, watchdog: bool = False, **settings: object) -> Server:
    server = Server(directory, **settings)
    server.variables = {"NOTIFY_SOCKET": manager.address}
    if watchdog:
        server.variables["WATCHDOG_USEC"] = "9000000"  # a third of it for a child that hangs
    return server


def all_pids(server: Server) -> dict[str, int]:
    """Process ids by role, of two workers: once each process has taken its title."""
    wait_until(lambda: {"ingest 1", "ingest 2", "uploader"} <= server.pids().keys(), "every process to have its title")
    return server.pids()


def body(first: int, count: int = 1) -> bytes:
    return pack({"m": "counted", "columns": {"n": list(range(first, first + count))}})


# The protocol


def test_notifications_reach_both_kinds_of_address(address: str) -> None:
    double = Manager(address)
    try:
        ServiceManager({"NOTIFY_SOCKET": address}).ready("well")
        assert double.receive() == [{"READY": "1", "STATUS": "well"}]
    finally:
        double.close()


def test_without_a_manager_nothing_is_said(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to the one of whoever runs this process: only the environment that is given counts."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "1"}):
        silent = ServiceManager(environ)
        silent.ready("well")
        silent.is_well()
        silent.keep("listener", [0])
    assert manager.receive() == []


def test_more_sockets_than_a_message_takes_are_all_left_with_the_manager(manager: Manager) -> None:
    with socket.socketpair()[0] as one:
        ServiceManager({"NOTIFY_SOCKET": manager.address}).keep("listener", [one.fileno()] * 600)
    manager.receive()
    assert len(manager.stored) == 600
    assert {message["FDNAME"] for message in manager.messages} == {"listener"}


def test_a_manager_that_takes_nothing_holds_up_no_sign_of_life(manager: Manager) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": manager.address})
    started = time.monotonic()
    for number in range(500):  # far more than its queue takes
        told.status(f"serving {number}")
    assert time.monotonic() - started < 20
    manager.receive()
    told.ready("well")
    assert manager.values("READY") == ["1"]


@pytest.mark.parametrize("trace", ["none", "a socket", "a file", "a long name"])
def test_with_a_manager_that_is_gone_messages_are_dropped_until_it_is_back(tmp_path: Path, trace: str) -> None:
    address = str(tmp_path / ("x" * 200 if trace == "a long name" else "gone"))
    if trace == "a socket":
        Manager(address).close()
    elif trace == "a file":
        Path(address).touch()
    told = ServiceManager({"NOTIFY_SOCKET": address})
    told.ready("well")
    told.keep("listener", [0])
    if trace == "a long name":  # of no socket that could ever be
        return
    Path(address).unlink(missing_ok=True)
    manager = Manager(address)
    try:
        told.status("still well")
        assert manager.receive() == [{"STATUS": "still well"}]
    finally:
        manager.close()


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(manager: Manager) -> None:
    watchdog = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"}
    ServiceManager({**watchdog, "WATCHDOG_PID": "1"}).is_well()
    assert manager.receive() == []
    ServiceManager({**watchdog, "WATCHDOG_PID": str(os.getpid())}).is_well()
    assert manager.receive() == [{"WATCHDOG": "1"}]


# The supervisor


def test_it_is_ready_once_every_worker_listens_and_says_how_it_is(tmp_path: Path, manager: Manager) -> None:
    server = managed(tmp_path, manager, server_workers=3)
    server.launch()
    try:
        manager.wait_for("READY")
        server.wait_until_serving()
        assert sorted(server.pids()) == ["ingest 1", "ingest 2", "ingest 3", "supervisor", "uploader"]
        assert manager.values("STATUS")[-1] == f"serving on {server.url} with 3 workers"
        server.stop()
        manager.receive()
        names = [next(iter(message)) for message in manager.messages]
        assert names.index("READY") < names.index("STOPPING")
        assert "WATCHDOG" in names  # of the drain
    finally:
        server.end()


def test_recovery_comes_before_ready_and_asks_for_time(tmp_path: Path, manager: Manager) -> None:
    with managed(tmp_path, manager, flush_max_age_seconds=NEVER) as server:
        for number in range(10):
            assert server.post(V2, body(number)).status == 202
        server.kill_all()
        manager.receive()
        manager.messages.clear()
        server.restart()
        manager.wait_for("READY")
        said = manager.values("STATUS")
        ready = next(index for index, message in enumerate(manager.messages) if "READY" in message)
        progress = [index for index, message in enumerate(manager.messages) if " of " in message.get("STATUS", "")]
        assert progress
        assert max(progress) < ready, said
        assert any("EXTEND_TIMEOUT_USEC" in message for message in manager.messages[:ready])
        server.stop()


def test_a_reload_begins_and_ends_with_a_notification(tmp_path: Path, manager: Manager) -> None:
    with managed(tmp_path, manager, server_workers=1) as server:
        manager.wait_for("READY")
        before = time.monotonic_ns() // 1000
        url = server.url
        server.send_signal(signal.SIGHUP)
        server.url = url
        manager.wait_for("READY", 2)
        (begun,) = (message for message in manager.messages if "RELOADING" in message)
        assert before <= int(begun["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert manager.messages.index(begun) < max(
            index for index, message in enumerate(manager.messages) if "READY" in message
        )
        assert server.post(V2, body(0)).status == 202
        server.stop()


def test_the_watchdog_is_fed_and_children_that_hang_are_replaced(tmp_path: Path, manager: Manager) -> None:
    """The watchdog is fed while all is well and children that hang are replaced."""
    with managed(tmp_path, manager, watchdog=True, server_workers=2) as server:
        fed = len(manager.values("WATCHDOG"))
        manager.wait_for("WATCHDOG", fed + 2)
        pids = all_pids(server)
        for role in ("ingest 2", "uploader"):
            os.kill(pids[role], signal.SIGSTOP)
        for role in ("ingest 2", "uploader"):
            server.wait_for_successor(role, pids[role])
            assert f"{role} (pid {pids[role]}) has no heartbeat; killing it" in server.log
        assert server.pids()["ingest 1"] == pids["ingest 1"]
        fed = len(manager.values("WATCHDOG"))
        manager.wait_for("WATCHDOG", fed + 2)
        wait_until(lambda: "records/s, backlog 0.0 MB in 0 segments" in manager.values("STATUS")[-1], "the status")
        server.stop()


def test_a_supervisor_that_was_stopped_for_long_kills_nobody(tmp_path: Path, manager: Manager) -> None:
    """As a machine that was asleep, or a frozen control group: everybody's signs are old then."""
    with managed(tmp_path, manager, watchdog=True, server_workers=2) as server:
        pids = all_pids(server)
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
        # Longer than a worker may be silent. Nobody's clock can be set: the kernel stops and resumes these processes.
        time.sleep(3.5)
        for role in ("supervisor", "ingest 1", "ingest 2", "uploader"):
            os.kill(pids[role], signal.SIGCONT)
        fed = len(manager.values("WATCHDOG"))
        manager.wait_for("WATCHDOG", fed + 2)
        assert server.pids() == pids
        server.stop()


# Sockets


def test_sockets_left_with_the_manager_keep_clients_over_a_crash(tmp_path: Path, manager: Manager) -> None:
    """Listening sockets left with the manager keep clients waiting over a crash."""
    with managed(tmp_path, manager, server_workers=2, flush_max_age_seconds=NEVER) as server:
        wait_until(lambda: manager.receive() and len(manager.stored) == 2, "the sockets")
        assert server.post(V2, body(0)).status == 202
        url = server.url
        server.kill_all()
        server.url = url
        with server.client() as waiting:  # connects, although nobody is there
            waiting.send(f"POST {V2} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body(1))}\r\n\r\n".encode() + body(1))
            start_with_sockets(server, manager.stored)
            assert waiting.receive().status == 202
        assert server.url == url
        manager.receive()
        server.stop()
        manager.receive()
        assert manager.stored == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


def test_inherited_sockets_serve_more_workers_than_there_were(tmp_path: Path, manager: Manager) -> None:
    with managed(tmp_path, manager, server_workers=1) as server:
        wait_until(lambda: manager.receive() and len(manager.stored) == 1, "the socket")
        server.kill_all()
        server.settings["server_workers"] = 3
        start_with_sockets(server, manager.stored)
        for number in range(30):  # spread over all sockets
            assert server.post(V2, body(number)).status == 202
        server.stop()
        server.assert_log_is_shipped()


def test_inherited_sockets_of_another_address_are_closed(tmp_path: Path, manager: Manager) -> None:
    with managed(tmp_path, manager, server_workers=1) as server:
        wait_until(lambda: manager.receive() and len(manager.stored) == 1, "the socket")
        server.kill_all()
        port = server.settings["server_port"] = free_port()
        stored = manager.stored
        manager.stored = []
        start_with_sockets(server, stored)
        assert server.port == port
        assert "1 sockets of the former process are at another address; closing them" in server.log
        server.stop()
        for fd in stored:
            os.close(fd)


def test_inherited_sockets_within_the_new_address_are_served_too(tmp_path: Path, manager: Manager) -> None:
    """Inherited sockets of an address that is in the new one are served in addition to it."""
    port = free_port()
    with managed(tmp_path, manager, server_workers=2, server_port=port) as server:
        wait_until(lambda: manager.receive() and len(manager.stored) == 2, "the sockets")
        server.kill_all()
        server.settings |= {"server_host": "0.0.0.0", "auth_allow_anonymous": True}
        start_with_sockets(server, manager.stored)
        assert server.url == f"http://0.0.0.0:{port}"
        for host in ("127.0.0.1", "127.0.0.2"):
            server.url = f"http://{host}:{port}"
            for number in range(10):  # spread over all sockets
                assert server.post(V2, body(number)).status == 202
        server.stop()


def start_with_sockets(server: Server, fds: list[int]) -> None:
    """Starts it as systemd does a service with stored file descriptors: from 3 on, named by the environment."""
    server.prefix = [
        sys.executable,
        "-c",
        "import os, sys\n"
        "fds = [int(fd) for fd in sys.argv[1].split(',')]\n"
        "high = [os.dup2(fd, 100 + number) for number, fd in enumerate(fds)]\n"
        "for number, fd in enumerate(high):\n"
        "    os.dup2(fd, 3 + number)\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(fds)),\n"
        "    'LISTEN_FDNAMES': ':'.join(['listener'] * len(fds))}\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n",
        ",".join(map(str, fds)),
    ]
    server.pass_fds = fds
    server.start()
