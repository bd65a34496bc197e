"""A real arcpipe: the server process, started by its command line.

`Server` runs `arcpipe serve` on a free port in a directory of its own, in a session of its own, so that all of its
processes can be found and ended by their ids, whatever became of their parents. Where the command line or the memory of
a start is the subject, or the environment is, that is `python -m arcpipe serve` (`by_command`). Otherwise the process
is forked where the libraries are loaded already (`tests.support.preloaded`).
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tests.support import preloaded
from tests.support.directories import batch_files
from tests.support.http import Client, Response, pack
from tests.support.lake import lake_files, lake_rows
from tests.support.processes import Process, processes_of_session
from tests.support.program import COMMAND, environment
from tests.support.waiting import START_SECONDS, STOP_SECONDS, wait_until

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Server:
    """`arcpipe serve` on one set of directories, started as often as a test wants.

    with Server(tmp_path, server_workers=2, wal_max_size_mb=1) as server:
        server.write({"m": "cpu", "columns": {"usage": [0.5]}})
        server.stop()

    Leaving the block ends every process that is still there.
    """

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.wal = directory / "wal"
        self.lake = directory / "lake"
        self.settings: dict[str, object] = {
            "server_port": 0,
            "server_workers": 2,
            "wal_dir": self.wal,
            "wal_min_free_mb": 16,
            "flush_max_age_seconds": 0.2,
            "uploader_interval_seconds": 0,  # where the cadence is not the subject, nothing waits for its turn
            "storage_url": f"file://{self.lake}",
            **settings,
        }
        self.variables: dict[str, str] = {}  # of the environment, other than the settings
        self.prefix: list[str] = []  # a program that executes its arguments in the end, ahead of arcpipe's own command
        self.pass_fds: Sequence[int] = ()  # which that program inherits
        self.by_command = False  # True: as a user starts it, in a process that has to load everything
        self.url = ""  # empty while nobody is known to listen: another server may get the port by then
        self.tls: ssl.SSLContext | None = None  # what its clients trust, where it speaks TLS
        self.pid = 0
        self._process: subprocess.Popen[bytes] | preloaded.Process | None = None
        self._sessions: list[int] = []  # of all its starts
        self._log = directory / "log"
        self._log_start = 0

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()
        self._show_log()

    # Life

    def start(self) -> Server:
        """Start it, and wait until it serves."""
        self.launch()
        try:
            self.wait_until_serving()
        except BaseException:
            self.end()
            self._show_log()
            raise
        return self

    def launch(self) -> None:
        """Start the process, and return at once."""
        assert not self.is_running
        self.url = ""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        environ = environment(**self.settings) | self.variables
        with self._log.open("ab") as log:
            if self.by_command or self.prefix or self.pass_fds or not preloaded.can_fork(environ):
                self._process = self._execute(environ, log)
            else:
                self._process = preloaded.start("serve", directory=self.directory, environ=environ, output=log)
        self.pid = self._process.pid
        self._sessions.append(self.pid)

    def _execute(self, environ: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.prefix, *COMMAND, "serve"],
            cwd=self.directory,
            env=environ,
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Not even a pytest that is killed leaves it behind.
            preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )

    def wait_until_serving(self) -> None:
        """Wait for the log line that tells the port."""

        def serving() -> re.Match[str] | None:
            assert self.is_running, f"ended with exit code {self.exit_code()} instead of serving"
            return re.search(r"serving on (https?://\S+|unix:\S+) with \d+ workers", self.log)

        found = wait_until(serving, "the server to serve", START_SECONDS)
        assert found is not None
        self.url = found[1]

    def stop(self, signal_number: signal.Signals = signal.SIGTERM, code: int = 0) -> None:
        """Stop it, and assert a good end: in time, the exit code, no process left, no bug in the log."""
        self.send_signal(signal_number)
        assert self.exit_code() == code
        self.assert_nobody_left()
        assert "Traceback" not in self.log
        assert "[CRITICAL]" not in self.log

    def restart(self) -> None:
        """Start it again on the same directories after its end, however it ended."""
        self.exit_code()
        self.start()

    def reload(self) -> None:
        """SIGHUP, and the wait until every worker has what is new."""
        before = self.log.count("supervisor: reloaded")
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: self.log.count("supervisor: reloaded") > before, "the reload")

    def send_signal(self, signal_number: signal.Signals) -> None:
        assert self._process is not None
        self.url = ""
        self._process.send_signal(signal_number)

    def exit_code(self) -> int:
        """Wait for the end of the supervisor; its exit code, negative for a signal."""
        assert self._process is not None
        return self._process.wait(STOP_SECONDS)

    def kill(self, role: str) -> int:
        """Kill one process by its role, as `pids` names them, when it is there; return its pid when it is gone."""
        pid = wait_until(lambda: self.pids().get(role), f"the {role}")
        if role == "supervisor":
            self.url = ""
        os.kill(pid, signal.SIGKILL)
        if role == "supervisor":
            assert self.exit_code() == -signal.SIGKILL
        else:
            wait_until(lambda: pid not in [found.pid for found in self.processes()], f"{role} to be gone")
        return pid

    def kill_all(self) -> None:
        """Kill all of its processes in one system call."""
        self.url = ""
        os.killpg(self.pid, signal.SIGKILL)
        assert self.exit_code() == -signal.SIGKILL
        self.assert_nobody_left()

    def end(self) -> None:
        """End all that is left of it by force, of this start and former ones."""
        for session in self._sessions:
            for process in processes_of_session(session):
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        if self._process is not None:
            self._process.wait(STOP_SECONDS)
        wait_until(lambda: not any(map(processes_of_session, self._sessions)), f"the end of sessions {self._sessions}")

    def assert_nobody_left(self) -> None:
        wait_until(lambda: not self.processes(), f"the processes of {self.pid} to be gone")

    def _show_log(self) -> None:
        """Print the log for pytest, which shows it if the test fails."""
        print(f"--- {self._log}\n{self._log.read_text(errors='replace')[-20_000:]}")

    # Looking at it

    @property
    def starts(self) -> list[int]:
        """The supervisor's process id of each start."""
        return list(self._sessions)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def urls(self) -> list[str]:
        """Where it listens: `url`, then those of `server.listeners`."""
        return [self.url, *re.findall(r"also serving on (\S+)", self.log)]

    @property
    def log(self) -> str:
        """The log lines since its last start."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def processes(self) -> list[Process]:
        return processes_of_session(self.pid)

    def pids(self) -> dict[str, int]:
        """Process ids by role: `supervisor`, `ingest 1`, `ingest 2`, …, `uploader`."""
        roles = {"supervisor": self.pid} if self.is_running else {}
        for process in self.processes():
            role = process.title.removeprefix("arcpipe: ")
            # A child has the title of its parent for a moment, before it takes its own.
            if process.pid != self.pid and role != process.title and role != "supervisor":
                roles[role] = process.pid
        return roles

    def wait_for_successor(self, role: str, dead_pid: int) -> int:
        """Wait until another process fills the role; return its pid."""

        def successor() -> int:
            pid = self.pids().get(role, dead_pid)
            return pid if pid != dead_pid else 0

        return wait_until(successor, f"a new {role}")

    def segments(self, suffix: str = ".wal*") -> list[str]:
        """File names of segments: `.wal` active, `.wal.sealed`, `.wal.recovered`; all of them by default."""
        return sorted(path.name for path in self.wal.glob(f"worker-*{suffix}"))

    def assert_log_is_shipped(self) -> None:
        """Assert that nothing in the WAL directory waits for anything."""
        assert self.segments(".wal") == []
        assert self.segments(".wal.sealed") == []
        assert batch_files(self.wal) == []
        assert list((self.wal / "quarantine").iterdir()) == []
        assert list((self.wal / "spool").iterdir()) == []

    # Using it

    def client(self) -> Client:
        return Client(self.url, tls=self.tls)

    def get(self, path: str) -> Response:
        with self.client() as client:
            return client.request("GET", path)

    def post(self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
        """Send one request on a connection of its own."""
        with self.client() as client:
            return client.request("POST", path, body, headers)

    def write(self, value: Any, database: str | None = None) -> None:
        """Write a MessagePack body, and assert that it is acknowledged."""
        headers = {} if database is None else {"x-arc-database": database}
        response = self.post("/write/v2/msgpack", pack(value), headers)
        assert (response.status, response.body) == (202, b"")

    def wait_for_rows(self, count: int, database: str = "*", measurement: str = "*") -> list[dict[str, Any]]:
        """Wait until the local lake holds `count` rows; return all of them."""
        seen: list[Path] = []
        rows: list[dict[str, Any]] = []

        def enough() -> bool:
            nonlocal seen, rows
            files = lake_files(self.lake, database, measurement)
            if files != seen:
                seen, rows = files, lake_rows(self.lake, database, measurement)
            return len(rows) >= count

        wait_until(enough, f"{count} rows in {database}/{measurement}")
        return rows


def serve_and_fail(directory: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run an `arcpipe serve` that is expected to end by itself at once."""
    environ = environment(**settings)
    return preloaded.run("serve", directory=directory, environ=environ, seconds=START_SECONDS)
