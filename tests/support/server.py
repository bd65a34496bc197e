"""A real arcpipe and what surrounds it: the server process, a bare HTTP client, a load, and the lake as DuckDB sees it.

`Server` runs `python -m arcpipe serve` on a free port in a directory of its own, in a session of its own, so that all
of its processes can be found and ended by their ids, whatever became of their parents. Nothing here knows arcpipe's
modules: what is tested is what a user gets.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import duckdb
import msgpack
import numpy as np
import numpy.typing as npt
import pytest

from tests.support.s3server import S3Bucket

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "arcpipe"]
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
IS_LONG = os.environ.get("ARCPIPE_TEST_LONG") not in (None, "", "0")  # whether tests may take many minutes
long = pytest.mark.skipif(not IS_LONG, reason="of the long set: ARCPIPE_TEST_LONG=1")
"""Of what is shown by others of its kind, too: not in each run of CI."""

# Generous, because a loaded machine is slow: a passing test never waits so long.
START_SECONDS = 120.0
STOP_SECONDS = 150.0
WAIT_SECONDS = 120.0

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def copy_at_one_moment(source: str | Path, where: Path) -> None:
    """Copies a directory in which other threads make, rename and remove files."""
    while True:
        before = sorted(str(path) for path in Path(source).rglob("*"))
        with contextlib.suppress(shutil.Error):  # one of the files has gone
            shutil.copytree(source, where)
            if before == sorted(str(path) for path in Path(source).rglob("*")):
                return
        shutil.rmtree(where)


def wait_until(condition: Callable[[], T], what: str = "the condition", seconds: float = WAIT_SECONDS) -> T:
    """Asks until the answer is true, and returns it. AssertionError with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}; last seen: {value!r}"
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def environment(**settings: object) -> dict[str, str]:
    """This process's environment without any setting of arcpipe, plus `wal_dir=…` as ARCPIPE_WAL_DIR and so on."""
    ours = ("ARCPIPE_", "WAL_", "WRITE_BUFFER_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept.pop("WORKERS", None)
    values = {
        f"ARCPIPE_{name.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in settings.items()
    }
    return kept | {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"} | values


class Process(NamedTuple):
    """What /proc tells of a process."""

    pid: int
    title: str


def processes_of_session(session: int) -> list[Process]:
    """The processes of a session of which any thread still runs.

    A killed process shows as a zombie while one of its threads waits for a disk, and holds its locks until then.
    """
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(entry)) != session:  # far cheaper than to read it from /proc
                continue
        except ProcessLookupError:
            continue
        process = Path("/proc", entry)
        try:
            threads = list((process / "task").iterdir())
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # gone since the listing
            continue
        if any(_state(thread) not in "ZX" for thread in threads):
            found.append(Process(int(entry), title))
    return found


def _state(directory: Path) -> str:
    """The state of a thread; X if it is gone."""
    try:
        return (directory / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


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
            "storage_url": f"file://{self.lake}",
            **settings,
        }
        self.variables: dict[str, str] = {}  # of the environment, beside the settings
        self.prefix: list[str] = []  # a program that executes its arguments in the end, ahead of arcpipe's own command
        self.pass_fds: Sequence[int] = ()  # which that program inherits
        self.url = ""  # empty while nobody is known to listen: another server may get the port by then
        self.tls: ssl.SSLContext | None = None  # what its clients trust, where it speaks TLS
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
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
        """Starts it and waits until it serves."""
        self.launch()
        try:
            self.wait_until_serving()
        except BaseException:
            self.end()
            self._show_log()
            raise
        return self

    def launch(self) -> None:
        """Starts the process and returns at once."""
        assert not self.is_running
        self.url = ""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.prefix, *COMMAND, "serve"],
                cwd=self.directory,
                env=environment(**self.settings) | self.variables,
                pass_fds=self.pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Not even a pytest that is killed leaves it behind.
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )
        self.pid = self._process.pid
        self._sessions.append(self.pid)

    def wait_until_serving(self) -> None:
        """Waits for the line in the log that tells the port."""

        def serving() -> re.Match[str] | None:
            assert self.is_running, f"ended with exit code {self.exit_code()} instead of serving"
            return re.search(r"serving on (https?://\S+|unix:\S+) with \d+ workers", self.log)

        found = wait_until(serving, "the server to serve", START_SECONDS)
        assert found is not None
        self.url = found[1]

    def stop(self, signal_number: signal.Signals = signal.SIGTERM, code: int = 0) -> None:
        """Asks it to end and asserts that it does so well: in time, the exit code, nobody left, no bug in the log."""
        self.send_signal(signal_number)
        assert self.exit_code() == code
        self.assert_nobody_left()
        assert "Traceback" not in self.log
        assert "[CRITICAL]" not in self.log

    def restart(self) -> None:
        """Starts it again on the same directories after its end, however it ended."""
        self.exit_code()
        self.start()

    def send_signal(self, signal_number: signal.Signals) -> None:
        assert self._process is not None
        self.url = ""
        self._process.send_signal(signal_number)

    def exit_code(self) -> int:
        """Waits for the end of the supervisor; negative for a signal."""
        assert self._process is not None
        return self._process.wait(STOP_SECONDS)

    def kill(self, role: str) -> int:
        """SIGKILL for one process by its role, as `pids` names them; returns when it is gone. Its pid."""
        pid = self.pids()[role]
        if role == "supervisor":
            self.url = ""
        os.kill(pid, signal.SIGKILL)
        if role == "supervisor":
            assert self.exit_code() == -signal.SIGKILL
        else:
            wait_until(lambda: pid not in [found.pid for found in self.processes()], f"{role} to be gone")
        return pid

    def kill_all(self) -> None:
        """SIGKILL for all of its processes in one system call."""
        self.url = ""
        os.killpg(self.pid, signal.SIGKILL)
        assert self.exit_code() == -signal.SIGKILL
        self.assert_nobody_left()

    def end(self) -> None:
        """Ends whatever is left of it, of this start or a former one, by force."""
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
        """For pytest, which shows it if the test fails."""
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
        """What it logged since its last start."""
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
        """Waits until somebody else fills the role; his pid."""
        return (
            wait_until(lambda: self.pids().get(role, dead_pid) not in (0, dead_pid), f"a new {role}")
            and (self.pids()[role])
        )

    def segments(self, suffix: str = ".wal*") -> list[str]:
        """File names of segments: `.wal` active, `.wal.sealed`, `.wal.recovered`; all of them by default."""
        return sorted(path.name for path in self.wal.glob(f"worker-*{suffix}"))

    def assert_log_is_shipped(self) -> None:
        """Nothing in the log directory waits for anything any more."""
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
        """One request on a connection of its own."""
        with self.client() as client:
            return client.request("POST", path, body, headers)

    def write(self, value: Any, database: str | None = None) -> None:
        """Writes a MessagePack body and asserts that it is acknowledged."""
        headers = {} if database is None else {"x-arc-database": database}
        response = self.post("/write/v2/msgpack", pack(value), headers)
        assert (response.status, response.body) == (202, b"")

    def wait_for_rows(self, count: int, database: str = "*", measurement: str = "*") -> list[dict[str, Any]]:
        """Waits until the local lake holds so many rows; all of them."""
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
    """`arcpipe serve` that is expected to end by itself, at once."""
    return subprocess.run(
        [*COMMAND, "serve"],
        cwd=directory,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


# HTTP


def pack(value: Any) -> bytes:
    """MessagePack, by another library's encoder than the server's."""
    packed: bytes = msgpack.packb(value)
    return packed


class Response(NamedTuple):
    """Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The text of an error answer, whose shape is asserted on the way."""
        answer = self.json()
        assert sorted(answer) == ["code", "error"]
        return str(answer["error"])


class Client:
    """One HTTP/1.1 connection that sends exactly the bytes that it is told to."""

    def __init__(
        self,
        url: str,
        timeout_seconds: float = WAIT_SECONDS,
        tls: ssl.SSLContext | None = None,
        preamble: bytes = b"",
    ) -> None:
        """Args: url: also "unix:/path". preamble: bytes ahead of everything else, of TLS too."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout_seconds)
            self.socket.connect(parts.path)
        else:
            assert parts.hostname is not None
            self.socket = socket.create_connection((parts.hostname, parts.port), timeout=timeout_seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(preamble)
        if parts.scheme == "https":
            assert tls is not None
            self.socket = tls.wrap_socket(self.socket, server_hostname=parts.hostname)
        self._received = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
        self.send(request_bytes(method, path, body, headers))
        return self.receive(is_head=method == "HEAD")

    def receive(self, is_head: bool = False) -> Response:
        """The next answer; an interim one (100) counts. ConnectionError if the connection ends before."""
        while b"\r\n\r\n" not in self._received:
            self._read_more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("ascii").split("\r\n")
        assert status_line.startswith("HTTP/1.1 "), status_line
        status = int(status_line.split(" ")[1])
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            if name.lower() == "www-authenticate" and "www-authenticate" in headers:  # the only list among them
                value = f"{headers['www-authenticate']}, {value}"
            else:
                assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value
        size = 0 if is_head or status in (204, 304) or status < 200 else int(headers["content-length"])
        while len(self._received) < size:
            self._read_more()
        body, self._received = self._received[:size], self._received[size:]
        return Response(status, headers, body)

    def assert_closed(self) -> None:
        """The server has ended the connection, with nothing more to say."""
        assert self._received == b""
        assert self.socket.recv(65536) == b""

    def _read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._received!r}")
        self._received += data


def request_bytes(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A request as bytes, with Host, and with Content-Length if there may be a body that is not chunked."""
    given = {"Host": "127.0.0.1", **(headers or {})}
    names = {name.lower() for name in given}
    if "transfer-encoding" not in names and "content-length" not in names and (body or method == "POST"):
        given["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


# The WAL directory


def batch_files(wal: Path) -> list[str]:
    """The files in `batches/` but for the spare ones, which stay."""
    return sorted(name for name in os.listdir(wal / "batches") if not re.fullmatch(r"spare-[12]", name))


# The lake


def lake_files(path: Path, database: str = "*", measurement: str = "*") -> list[Path]:
    """The Parquet files of a store on disk, dead letters not among them."""
    return sorted(path.glob(f"{database}/{measurement}/**/*.parquet"))


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    """To make one takes ten times as long as to read a small lake. It keeps nothing of the files that it read."""
    return duckdb.connect(config={"threads": 1, "enable_external_file_cache": False})


def lake_rows(path: Path, database: str = "*", measurement: str = "*") -> list[dict[str, Any]]:
    """Every row as DuckDB reads it, ordered by time; `time` as µs since the epoch."""
    files = lake_files(path, database, measurement)
    if not files:
        return []
    with _database().cursor() as connection:
        cursor = connection.execute(
            "SELECT * REPLACE (epoch_us(time) AS time) "
            "FROM read_parquet(?, union_by_name = true, hive_partitioning = false) ORDER BY time",
            [[str(file) for file in files]],
        )
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def lake_types(path: Path, database: str = "*", measurement: str = "*") -> dict[str, str]:
    """DuckDB's type of each column."""
    with _database().cursor() as connection:
        described = connection.execute(
            "DESCRIBE SELECT * FROM read_parquet(?, union_by_name = true, hive_partitioning = false)",
            [[str(file) for file in lake_files(path, database, measurement)]],
        ).fetchall()
    return {row[0]: row[1] for row in described}


class Store(NamedTuple):
    """A place for the files of a server: the settings that lead there, and how to get a directory with its objects."""

    settings: dict[str, object]
    read: Callable[[], Path]


def local_store(directory: Path) -> Store:
    return Store({"storage_url": f"file://{directory}/lake"}, lambda: directory / "lake")


def s3_store(bucket: S3Bucket, directory: Path) -> Store:
    """DuckDB needs an extension to read S3 itself, so objects are downloaded before they are read."""
    settings: dict[str, object] = {
        "storage_url": f"s3://{bucket.bucket}/some/prefix",
        "storage_s3_endpoint_url": bucket.endpoint_url,
        "storage_s3_region": bucket.region,
        "storage_s3_access_key_id": bucket.access_key_id,
        "storage_s3_secret_access_key": bucket.secret_access_key,
        "storage_s3_addressing_style": "path",
    }

    def read() -> Path:
        for key in bucket.list_keys():
            path = directory / "downloaded" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bucket.read(key))
        return directory / "downloaded" / "some" / "prefix"

    return Store(settings, read)


# The command line


def drawn_in_terminal(*arguments: str, cwd: Path, env: Mapping[str, str], columns: int) -> str:
    """What a command that succeeds draws in a terminal that is so many columns wide."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "arcpipe", *arguments],
        cwd=cwd,
        env={**env, "COLUMNS": str(columns), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
    ) as process:
        os.close(terminal)
        drawn = b""
        while True:
            try:
                part = os.read(controller, 65536)
            except OSError:  # the terminal is gone with its last user
                break
            if not part:
                break
            drawn += part
        assert process.wait(timeout=60) == 0
    os.close(controller)
    return drawn.decode()


# A load whose every record is known


class Load:
    """Connections that write as fast as they are answered: each record once, under an id of its own.

    Remembers what was sent and what was acknowledged; a request whose answer did not come is not sent again. Goes on
    over restarts of the server (`server.url` is looked up for each connection). `pause_seconds` between the requests of
    a connection make it a load that the machine does not notice.
    """

    RECORDS = 50  # per request
    DATABASES = ("alpha", "beta")
    HOUR = 3600

    def __init__(self, server: Server, connections: int = 4, pause_seconds: float = 0.0) -> None:
        self._server = server
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._next_request = 0
        self._lock = threading.Lock()
        self._sent: list[int] = []
        self._acknowledged: list[int] = []
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(connections)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
        assert not self._errors, self._errors

    @property
    def acknowledged_requests(self) -> int:
        return len(self._acknowledged)

    def wait_for_requests(self, more: int) -> None:
        """Waits until so many more requests have been acknowledged."""
        enough = self.acknowledged_requests + more
        wait_until(lambda: self._errors or self.acknowledged_requests >= enough, f"{more} acknowledged requests")

    def sent(self) -> npt.NDArray[np.int64]:
        return self._ids(self._sent)

    def acknowledged(self) -> npt.NDArray[np.int64]:
        return self._ids(self._acknowledged)

    def assert_exactly_once(self, lake: Path) -> None:
        """Acknowledged ⊆ found ⊆ sent, no id twice, every value as it was sent, no dead letters."""
        assert not list(lake.glob("_dead_letter/**/*.*"))
        files = [str(file) for file in lake_files(lake)]
        with _database().cursor() as connection:
            found = connection.execute(
                "SELECT id, value, host FROM read_parquet(?, union_by_name = true, hive_partitioning = false)", [files]
            ).fetchnumpy()
        ids: npt.NDArray[np.int64] = np.asarray(found["id"])
        unique, counts = np.unique(ids, return_counts=True)
        acknowledged, sent = self.acknowledged(), self.sent()
        problems = {
            "lost": np.setdiff1d(acknowledged, unique),
            "twice": unique[counts > 1],
            "never sent": np.setdiff1d(unique, sent),
        }
        shown = {
            name: f"{len(bad)} ids: {_ranges(bad)}, requests {sorted(set((bad // self.RECORDS).tolist()))[:20]}"
            for name, bad in problems.items()
            if len(bad)
        }
        assert not shown, f"of {len(acknowledged)} acknowledged ids in {len(files)} files: {shown}"
        assert np.array_equal(np.asarray(found["value"]), ids / 4)
        assert set(found["host"]) <= {f"host-{ids % self.RECORDS % 7}" for ids in range(self.RECORDS)}

    def _ids(self, requests: list[int]) -> npt.NDArray[np.int64]:
        first = np.array(requests, dtype=np.int64)[:, np.newaxis] * self.RECORDS
        return np.sort((first + np.arange(self.RECORDS, dtype=np.int64)).ravel())

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if url := self._server.url:
                    try:
                        with Client(url) as client:
                            while not self._stop.is_set():
                                self._exchange(client)
                                self._stop.wait(self._pause_seconds)
                    except OSError:
                        pass
                self._stop.wait(0.01)  # the server is dead, or is just being started
        except BaseException as error:
            self._errors.append(error)

    def _exchange(self, client: Client) -> None:
        with self._lock:
            number = self._next_request
            self._next_request += 1
        body = pack(self._body(number))
        request = request_bytes(
            "POST", "/write/v2/msgpack", body, {"x-arc-database": self.DATABASES[number % len(self.DATABASES)]}
        )
        self._sent.append(number)
        client.send(request)
        response = client.receive()
        # Refusals are answers too (a full backlog, a log that cannot be written); any other one is a bug.
        assert response.status in (202, 503, 507), response
        if response.status == 202:
            self._acknowledged.append(number)

    def _body(self, number: int) -> Any:
        """Each of the four shapes in turn, of about 20 kB, in two measurements and over two hours."""
        first = number * self.RECORDS
        ids = range(first, first + self.RECORDS)
        start = 1_767_225_600 + number % 2 * self.HOUR
        measurement = f"m{number % 3 % 2}"
        hosts = [f"host-{index % 7}" for index in range(self.RECORDS)]
        columns: dict[str, list[Any]] = {
            "time": [start + index for index in range(self.RECORDS)],
            "id": list(ids),
            "value": [identity / 4 for identity in ids],
            "host": hosts,
            "pad": ["x" * 380] * self.RECORDS,
        }
        match number % 4:
            case 0:
                return {"m": measurement, "columns": columns}
            case 1:
                del columns["time"]
                return [{"m": measurement, "columns": columns}]
            case 2:
                return {"batch": [self._row(columns, measurement, index) for index in range(self.RECORDS)]}
            case _:
                half = self.RECORDS // 2
                front = {name: values[:half] for name, values in columns.items()}
                rows = [self._row(columns, measurement, index) for index in range(half, self.RECORDS)]
                return [{"m": measurement, "columns": front}, *rows]

    def _row(self, columns: Mapping[str, list[Any]], measurement: str, index: int) -> dict[str, Any]:
        return {
            "m": measurement,
            "t": columns["time"][index],
            "h": columns["host"][index],
            "fields": {name: columns[name][index] for name in ("id", "value", "pad")},
        }


def _ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers as `3-5, 9`, the first few."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = int(number)
        else:
            ranges.append([int(number), int(number)])
    shown = ", ".join(f"{low}-{high}" if low != high else str(low) for low, high in ranges[:10])
    return shown + (" …" if len(ranges) > 10 else "")
