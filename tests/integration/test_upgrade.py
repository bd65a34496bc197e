"""SIGUSR2 when something is wrong: whatever it is, the running instance stays, goes on, and says why."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import preloaded
from tests.support.careful_load import CarefulLoad
from tests.support.http import free_port, pack
from tests.support.lake import lake_rows, numbers
from tests.support.program import ROOT, environment
from tests.support.server import Server
from tests.support.service_manager import Manager
from tests.support.waiting import wait_until

V2 = "/write/v2/msgpack"
REFUSED = "the installed version would not start, so this one stays: "

# As long as a flag is there: a trial that takes its time, or a program that cannot be executed.
SLOW_TRIAL = """
import os, sys, time
if "--check" in sys.orig_argv:
    while os.path.exists(FLAG):
        time.sleep(0.05)
"""
NO_EXECUTION = """
import errno, os, sys
execve = os.execve
def failing(path, argv, env):
    if os.path.exists(FLAG) and "--check" not in argv:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    execve(path, argv, env)
os.execve = failing
"""


class Upgradable(Server):
    """A server whose address and directories stand in its settings file."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, server_workers=2)
        del self.settings["server_port"], self.settings["wal_dir"]
        self.config = directory / "config.toml"
        self.listening = free_port()
        self.configure()

    def configure(self, host: str = "127.0.0.1", port: int = 0, wal: Path | None = None, more: str = "") -> None:
        self.config.write_text(
            f'[server]\nhost = "{host}"\nport = {port or self.listening}\n'
            f'[auth]\nallow_anonymous = true\n[wal]\ndir = "{wal or self.wal}"\n{more}'
        )

    def signal_upgrade(self) -> None:
        os.kill(self.pid, signal.SIGUSR2)

    def is_refused(self) -> str:
        """The reason that comes."""
        before = self.log.count(REFUSED)
        self.signal_upgrade()
        wait_until(lambda: self.log.count(REFUSED) > before, "a refusal")
        return self.log.rpartition(REFUSED)[2].partition("\n")[0]

    def upgrade(self) -> None:
        before = self.log.count("supervisor: serving on")
        self.signal_upgrade()
        wait_until(lambda: self.log.count("supervisor: serving on") > before, "the new version")

    def fault(self, source: str) -> Path:
        """Has a `sitecustomize` in each of its programs, and switches the fault on; the flag."""
        folder = self.directory / "fault"
        folder.mkdir()
        flag = self.directory / "fault is on"
        (folder / "sitecustomize.py").write_text(f"FLAG = {str(flag)!r}\n{source}")
        self.variables["PYTHONPATH"] = f"{folder}:{ROOT}"
        return flag

    def numbers(self) -> list[int]:
        return numbers(self.lake)

    def put(self, number: int) -> None:
        assert self.post(V2, pack({"m": "counted", "columns": {"n": [number]}})).status == 202


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Upgradable]:
    server = Upgradable(tmp_path)
    yield server
    server.end()
    server._show_log()


def test_whatever_would_stop_the_new_version_keeps_the_running_one(server: Upgradable) -> None:
    # More of warnings than is kept of what a trial says.
    server.variables = {f"ARCPIPE_NO_SETTING_{number:02}_{'X' * 60}": "" for number in range(50)}
    server.start()
    pids = server.pids()
    node = server.wal / "node.json"
    good = node.read_bytes()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server.configure(port=port)
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in server.is_refused()
    server.configure(host="no-such-host.invalid")
    assert "cannot listen on no-such-host.invalid port" in server.is_refused()
    server.configure(wal=server.directory / "other")
    reason = server.is_refused()
    assert f"{server.directory}/other is another directory than {server.wal}, which is in use" in reason
    assert not (server.directory / "other").exists()
    server.configure()
    node.write_bytes(b"{")
    assert "node.json is damaged" in server.is_refused()
    node.write_bytes(good)
    # Nothing has changed, and nothing stands in the way of a good one.
    assert server.pids() == pids
    server.put(1)
    server.configure()
    server.upgrade()
    server.put(2)
    server.stop()
    assert server.numbers() == [1, 2]


def test_from_loopback_to_every_address_and_back(server: Upgradable) -> None:
    server.start()
    with CarefulLoad(server.url) as load:
        load.wait_for(50)
        server.configure(host="0.0.0.0")
        server.upgrade()
        load.wait_for(50)
        socket.create_connection(("127.0.0.2", server.listening)).close()
        server.upgrade()
        load.wait_for(50)
    assert load.failures == []  # not even of those who waited in the queue of the former address
    assert len(server.pids()) == 4
    server.configure()
    server.upgrade()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.listening))
    with CarefulLoad(server.url) as again:
        again.wait_for(50)
    server.stop()
    found = [row["n"] for row in lake_rows(server.lake)]
    assert len(found) == len(load.acknowledged) + len(again.acknowledged)


def test_from_every_address_to_one_of_them(server: Upgradable) -> None:
    """Found by a day of random operations: connections were refused from the end of the old workers on."""
    server.configure(host="0.0.0.0")
    server.start()
    server.url = f"http://127.0.0.1:{server.listening}"
    with CarefulLoad(server.url) as load:
        load.wait_for(50)
        server.configure()
        server.upgrade()
        load.wait_for(50)
    assert load.failures == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.listening))
    server.stop()
    assert len(server.numbers()) == len(load.acknowledged)


def test_an_address_that_was_free_at_the_trial_is_kept_for_the_new_version(server: Upgradable) -> None:
    """The uploader is stopped, so that some seconds are between the trial and the new program."""
    server.start()
    port = free_port()
    server.configure(port=port)
    uploader = server.pids()["uploader"]
    os.kill(uploader, signal.SIGSTOP)
    server.signal_upgrade()
    wait_for_the_end_of_the_trial(uploader)
    with socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        late.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="Address already in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
    wait_until(lambda: f"serving on http://127.0.0.1:{port}" in server.log, "the new version")
    server.url = f"http://127.0.0.1:{port}"
    server.put(1)
    server.stop()


def test_old_workers_serve_until_a_new_version_can_start(
    server: Upgradable,
) -> None:
    """A new version that cannot start after all lets the former workers serve until it can."""
    manager = Manager(str(server.directory / "notify"))
    server.variables = {"NOTIFY_SOCKET": manager.address}
    server.start()
    pids = server.pids()
    server.put(1)
    os.kill(pids["uploader"], signal.SIGSTOP)
    server.signal_upgrade()
    wait_for_the_end_of_the_trial(pids["uploader"])
    server.configure(more="[log]\nlevel = 'LOUD'\n")
    sentence = "the new version cannot start yet, the former workers serve"
    wait_until(lambda: manager.receive() and server.log.count(sentence) >= 2, "two tries")
    assert "the former workers serve, as the new version cannot start yet: " in manager.values("STATUS")[-1]
    assert 'log.level = "LOUD"' in server.log
    server.put(2)
    # Nothing but these workers looks at backlog and disk by now, and old figures would be no reason to take writes.
    wait_until(lambda: server.log.count(sentence) >= 4, "more tries than figures hold")
    assert "supervisor_down" not in server.get("/api/v1/status").body.decode()
    server.put(3)
    assert {role: pid for role, pid in server.pids().items() if role.startswith("ingest")} == {
        role: pid for role, pid in pids.items() if role.startswith("ingest")
    }
    server.configure()
    wait_until(lambda: server.log.count("supervisor: serving on") == 2, "the new version")
    assert server.pids()["supervisor"] == pids["supervisor"]
    server.put(4)
    server.stop()
    assert len(manager.values("READY")) == 2  # the new version is ready, too
    manager.close()
    assert server.numbers() == [1, 2, 3, 4]


def test_a_stop_before_the_new_version_can_start_loses_nothing(server: Upgradable) -> None:
    """A stop while the new version cannot start ends all and loses nothing."""
    server.start()
    uploader = server.pids()["uploader"]
    os.kill(uploader, signal.SIGSTOP)
    server.signal_upgrade()
    wait_for_the_end_of_the_trial(uploader)
    server.configure(more="[log]\nlevel = 'LOUD'\n")
    wait_until(lambda: "the former workers serve" in server.log, "a try")
    server.put(1)
    server.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0
    server.assert_nobody_left()
    server.configure()
    server.restart()
    server.wait_for_rows(1)
    server.stop()
    assert server.numbers() == [1]


def wait_for_the_end_of_the_trial(uploader: int) -> None:
    """Until the uploader, which is stopped, has a SIGTERM that waits."""

    def pending() -> int:
        found = re.search(r"^ShdPnd:\s+([0-9a-f]+)$", Path(f"/proc/{uploader}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1], 16) & 1 << signal.SIGTERM - 1

    wait_until(pending, "the uploader to be told")


def test_a_program_that_cannot_be_executed_leaves_the_running_one(server: Upgradable) -> None:
    flag = server.fault(NO_EXECUTION)
    server.start()
    pids = server.pids()
    flag.touch()
    server.signal_upgrade()
    wait_until(lambda: "the installed version cannot be executed, so this one stays" in server.log, "the refusal")
    server.wait_for_successor("uploader", pids["uploader"])
    assert server.pids()["ingest 1"] == pids["ingest 1"]
    server.put(1)
    server.wait_for_rows(1)
    flag.unlink()
    server.upgrade()
    server.stop()


def test_during_a_trial_that_hangs_signals_and_deaths_are_seen(server: Upgradable) -> None:
    flag = server.fault(SLOW_TRIAL)
    server.start()
    flag.touch()
    server.signal_upgrade()
    wait_until(lambda: "trial" in str(server.processes()) or len(server.processes()) > 4, "the trial")
    dead = server.kill("ingest 1")
    successor = server.wait_for_successor("ingest 1", dead)
    assert not [name for name in open_files(successor) if "memfd:trial" in name]
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "supervisor: reloaded" in server.log, "the reload")
    server.signal_upgrade()
    wait_until(lambda: "an upgrade is being tried already" in server.log, "the second signal")
    server.put(1)
    started = time.monotonic()
    server.stop()  # which asserts that nobody is left
    assert time.monotonic() - started < 60


def open_files(pid: int) -> list[str]:
    """Return what the descriptors of a process name, without those that it closes meanwhile."""
    names = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            names.append(os.readlink(entry.path))
    return names


def test_beside_a_running_instance_a_check_says_whether_it_could_take_over(server: Upgradable) -> None:
    server.start()

    def check(*command: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run(*command, directory=server.directory, environ=environment(**server.settings))

    done = check("serve", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"could take over from the running one (pid {server.pid})" in done.stdout
    server.configure(host="0.0.0.0")
    assert check("config", "check").returncode == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server.configure(port=taken.getsockname()[1])
        done = check("config", "check")
        assert done.returncode == 1
        assert "Address already in use" in done.stderr
    assert (server.wal / "LOCK").read_text() == f"{server.pid}\n"
    server.configure()
    server.put(1)
    server.stop()
