"""A day of operations in a minute: a seeded sequence of them under load, and after each what the model allows.

`ARCPIPE_TEST_SEED` chooses another sequence, `ARCPIPE_TEST_DAY_SECONDS=600` a longer one (30 by default). A failure
prints the seed and the operations so far.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser

from tests.crash.io_faults import FaultyIO
from tests.harness import Client, Server, lake_rows, pack, wait_until
from tests.set_clock import SetClock, needs_libfaketime

SEED = int(os.environ.get("ARCPIPE_TEST_SEED", "1"))
SECONDS = float(os.environ.get("ARCPIPE_TEST_DAY_SECONDS", "30"))
V2 = "/write/v2/msgpack"
STAYS = "the installed version would not start, so this one stays: "
# Of the machine that runs the tests, or of processes that were killed a moment ago.
UNRELATED = {"disk_usage", "restarts"}

pytestmark = [needs_libfaketime, pytest.mark.timeout(600 + SECONDS * 4)]


class Clients:
    """Threads that write numbered records and remember what became of each."""

    def __init__(self, server: Server, threads: int = 3) -> None:
        self.server = server
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.unknown: list[int] = []  # no answer, or one that says so
        self.statuses: Counter[int] = Counter()
        self.errors: list[BaseException] = []
        self._next = 0
        self._lock = threading.Lock()
        self._quiet = threading.Event()
        self._stop = threading.Event()
        self._idle = [threading.Event() for _ in range(threads)]
        self._threads = [threading.Thread(target=self._run, args=(idle,), daemon=True) for idle in self._idle]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No request is on its way."""
        self._quiet.set()
        for idle in self._idle:
            idle.clear()  # only now: a thread may have set it once more at the end of the former pause
        for idle in self._idle:
            assert idle.wait(60)
        yield
        self._quiet.clear()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert self.errors == []

    def wait_for(self, more: int) -> None:
        enough = len(self.acknowledged) + more
        wait_until(lambda: self.errors or len(self.acknowledged) >= enough, f"{more} acknowledgements")
        assert self.errors == []

    def _run(self, idle: threading.Event) -> None:
        try:
            while not self._stop.is_set():
                if self._quiet.is_set():
                    idle.set()
                    time.sleep(0.005)
                elif url := self.server.url:
                    self._write(url)
                time.sleep(0.005)
        except BaseException as error:
            self.errors.append(error)
        finally:
            idle.set()

    def _write(self, url: str) -> None:
        with self._lock:
            number = self._next
            self._next += 1
        try:
            with Client(url, timeout_seconds=30) as client:
                answer = client.request("POST", V2, pack({"m": "day", "columns": {"n": [number]}}))
        except OSError:
            self.unknown.append(number)
            return
        self.statuses[answer.status] += 1
        if answer.status == 202:
            self.acknowledged.append(number)
        else:
            assert answer.status in (503, 507), answer
            (self.refused if "nothing was written" in answer.reason else self.unknown).append(number)


class Day:
    """The server, its clients, and the operations."""

    def __init__(self, directory: Path, faults: FaultyIO) -> None:
        self.chance = random.Random(SEED)
        self.faults = faults
        self.done: list[str] = []
        self.config = directory / "config.toml"
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            self.port = probe.getsockname()[1]
        self.server = Server(directory, wal_max_size_mb=1, flush_max_age_seconds=0.1, shutdown_drain_seconds=20)
        del self.server.settings["server_port"], self.server.settings["wal_dir"]
        self.clock = SetClock(self.server)
        preloads = [self.server.variables["LD_PRELOAD"], faults.variables["LD_PRELOAD"]]
        self.server.variables |= faults.variables | {"LD_PRELOAD": ":".join(preloads)}
        self.configure()

    def configure(self, host: str = "127.0.0.1", port: int = 0, wal: Path | None = None, level: str = "INFO") -> None:
        self.config.write_text(
            f'[server]\nhost = "{host}"\nport = {port or self.port}\n[auth]\nallow_anonymous = true\n'
            f'[wal]\ndir = "{wal or self.server.wal}"\n[log]\nlevel = "{level}"\n'
        )

    def counted(self) -> float:
        """Records of which /metrics says that they were taken."""
        text = self.server.get("/metrics").body.decode()
        samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == "arcpipe_records_total")

    def settled(self) -> float:
        """The same once it has not changed for a second: workers may publish it a moment after their answers."""
        while True:
            before = self.counted()
            time.sleep(1)
            if self.counted() == before:
                return before

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get("/api/v1/status").json()
        return found

    def issues(self) -> set[str]:
        return {issue["code"] for issue in self.status()["issues"] if issue["severity"] != "info"} - UNRELATED

    def wait_for_line(self, text: str, before: int) -> None:
        wait_until(lambda: self.server.log.count(text) > before, text)

    # Operations: each returns when the model allows one state again: all live, writes are taken

    def reload(self) -> None:
        before = self.server.log.count("supervisor: reloaded")
        os.kill(self.server.pid, signal.SIGHUP)
        self.wait_for_line("supervisor: reloaded", before)

    def reload_bad(self) -> None:
        text = "the settings are refused, and the log level stays as it was"
        before = self.server.log.count(text)
        self.configure(level="LOUD")
        os.kill(self.server.pid, signal.SIGHUP)
        self.wait_for_line(text, before)
        self.configure()

    def upgrade(self) -> None:
        self.configure(host=self.chance.choice(["127.0.0.1", "0.0.0.0"]))
        before = self.server.log.count("supervisor: serving on")
        os.kill(self.server.pid, signal.SIGUSR2)
        self.wait_for_line("supervisor: serving on", before)

    def upgrade_bad(self) -> None:
        pids, before = self.server.pids(), self.server.log.count(STAYS)
        node = self.server.wal / "node.json"
        good = node.read_bytes()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            match self.chance.choice(["port", "wal", "node", "host", "level"]):
                case "port":
                    self.configure(port=taken.getsockname()[1])
                case "wal":
                    self.configure(wal=self.server.directory / "other")
                case "node":
                    node.write_bytes(b"{")
                case "host":
                    self.configure(host="no-such-host.invalid")
                case _:
                    self.configure(level="LOUD")
            os.kill(self.server.pid, signal.SIGUSR2)
            self.wait_for_line(STAYS, before)
        node.write_bytes(good)
        self.configure()
        assert self.server.pids() == pids

    def kill_child(self) -> None:
        role = self.chance.choice(["ingest 1", "ingest 2", "uploader"])
        self.server.wait_for_successor(role, self.server.kill(role))

    def kill_supervisor(self) -> None:
        self.server.kill("supervisor")
        self.server.restart()

    def pause(self) -> None:
        pids = self.server.pids()
        pid = pids[self.chance.choice(sorted(pids))]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.0, 1.5))
        os.kill(pid, signal.SIGCONT)

    def step_clock(self) -> None:
        uptime = self.status()["instance"]["uptime_seconds"]
        self.clock.set(self.chance.choice([-7200.0, -3.0, 0.0, 3.0, 18000.0]))
        assert 0 <= self.status()["instance"]["uptime_seconds"] - uptime < 60

    def sick_wal(self) -> None:
        """Each write is refused, with a code, and health says so."""
        error = self.chance.choice([errno.EIO, errno.ENOSPC, errno.EACCES])
        before = self.clients.statuses[507 if error == errno.ENOSPC else 503]
        with self.faults.rule("write create", "*/wal/*", error, process="*ingest*"):
            wait_until(
                lambda: self.clients.statuses[507 if error == errno.ENOSPC else 503] > before or self.clients.errors,
                "refusals",
            )
            wait_until(lambda: "write_failures" in self.issues(), "the issue write_failures")

    def sick_store(self) -> None:
        with self.faults.rule("create write", "*/lake/*", errno.EIO, process="*uploader*") as rule:
            self.clients.wait_for(20)
            wait_until(lambda: rule.hits, "an upload that fails")

    def stop_and_start(self) -> None:
        self.server.send_signal(signal.SIGTERM)
        assert self.server.exit_code() == 0
        assert "stopped; " in self.server.log.splitlines()[-1]
        self.server.assert_nobody_left()
        self.server.restart()

    # The model

    def check(self) -> None:
        """All live, writes are taken, and the figures are those that the clients counted."""
        everybody = ["ingest 1", "ingest 2", "supervisor", "uploader"]
        wait_until(lambda: sorted(self.server.pids()) == everybody, "all four processes")
        self.clients.wait_for(10)
        with self.clients.paused():
            first = self.settled(), len(self.clients.acknowledged), len(self.clients.unknown)
        self.clients.wait_for(10)
        with self.clients.paused():
            taken = self.settled() - first[0]
            acknowledged = len(self.clients.acknowledged) - first[1]
            assert acknowledged <= taken <= acknowledged + len(self.clients.unknown) - first[2]

    def run(self) -> None:
        operations = [
            *(self.reload, self.reload_bad, self.upgrade, self.upgrade_bad, self.kill_child, self.kill_supervisor),
            *(self.pause, self.step_clock, self.sick_wal, self.sick_store, self.stop_and_start),
        ]
        self.server.start()
        self.clients = Clients(self.server)
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            operation = self.chance.choice(operations)
            self.done.append(operation.__name__)
            operation()
            self.check()
        self.clients.end()
        self.server.stop()


def test_a_day_of_random_operations(tmp_path: Path, faults: FaultyIO) -> None:
    day = Day(tmp_path, faults)
    try:
        day.run()
        found = Counter(row["n"] for row in lake_rows(day.server.lake))
        assert set(day.clients.acknowledged) - found.keys() == set()
        assert [number for number, count in found.items() if count > 1] == []
        assert found.keys() & set(day.clients.refused) == set()
    finally:
        print(f"seed {SEED}, {len(day.done)} operations: {', '.join(day.done)}")
        day.clock.__exit__()
