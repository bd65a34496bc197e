"""The server to measure: started as a user starts it, watched from outside, stopped by SIGTERM."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.system.children import end_processes, spawn

_READY: Final = re.compile(r"serving on https?://(\S+):(\d+) with (\d+) workers")
_COMPLAINT: Final = re.compile(r"\[(?:WARNING|ERROR|CRITICAL)\].*")
_START_SECONDS: Final = 30.0
_MAX_COMPLAINTS: Final = 100
_METRICS_SECONDS: Final = 10.0
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """The server did not start, did not stay, or did not stop."""


class ProcessUse(NamedTuple):
    """CPU time and memory that a process has used since it started."""

    name: str  # "supervisor", "uploader", "ingest 1", …
    peak_rss_bytes: int
    cpu_seconds: float


class Server:
    """`arcpipe serve` with settings from environment variables; an async context manager, whose exit kills it."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        """Prepare a server, without starting it.

        Args:
            directory: Working directory of the server.
            settings: Dotted keys and their values.
        """
        self._directory = directory
        self._settings = settings
        self._pids: list[int] = []
        self._last: deque[str] = deque(maxlen=50)
        self._ready: asyncio.Future[None]
        self._reader: asyncio.Task[None]
        self._process: asyncio.subprocess.Process
        self.host = ""
        self.port = 0
        self.workers = 0
        self.complaints: list[str] = []  # lines of its log from WARNING on, without their time

    async def __aenter__(self) -> Server:
        """Start the server, and wait until it serves.

        Raises:
            ServerFailed: It ended, or is not ready after _START_SECONDS.
        """
        # The settings are those of the case alone: variables that this shell exports must not change them.
        environment = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        for key, value in self._settings.items():
            environment[f"ARCPIPE_{key.upper().replace('.', '_')}"] = value
        self._ready = asyncio.get_running_loop().create_future()
        self._process = await spawn("arcpipe", "serve", environment=environment, directory=self._directory, stderr=True)
        self._reader = asyncio.create_task(self._read_log())
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready
        except BaseException as error:
            await self._kill()
            if isinstance(error, TimeoutError):
                raise ServerFailed(f"the server is not ready after {_START_SECONDS:g} s:\n{self.log_tail()}") from None
            raise
        self._pids = process_tree(self._process.pid)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the server, if it still runs."""
        await self._kill()

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self._last)

    def usage(self) -> dict[int, ProcessUse]:
        """Return the use of each of its processes by pid, without those that have ended."""
        uses = {pid: use for pid in self._pids if (use := process_use(pid)) is not None}
        if len(uses) < len(self._pids):  # one died and has a successor
            self._pids = process_tree(self._process.pid)
        return uses

    async def counters(self, token: str = "") -> Counter[str]:
        """Read /metrics; return the sum over the labels of each name.

        Raises:
            ServerFailed: There is no answer.
        """
        return await asyncio.to_thread(self._read_metrics, token)

    def _read_metrics(self, token: str) -> Counter[str]:
        scheme = "https" if "server.tls_cert" in self._settings else "http"
        request = urllib.request.Request(f"{scheme}://{self.host}:{self.port}/metrics")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # the certificate is the harness's own
        sums: Counter[str] = Counter()
        try:
            with urllib.request.urlopen(request, timeout=_METRICS_SECONDS, context=tls) as answer:
                for family in text_string_to_metric_families(answer.read().decode("utf-8")):
                    for sample in family.samples:
                        sums[sample.name] += sample.value  # type: ignore[assignment]
        except OSError as error:
            raise ServerFailed(f"/metrics: {error}\n{self.log_tail()}") from None
        return sums

    def terminate(self) -> None:
        """Ask it to drain and stop."""
        self._process.send_signal(signal.SIGTERM)

    async def stopped(self, timeout_seconds: float) -> bool:
        """Wait for its end; return False if it still runs after that time.

        Raises:
            ServerFailed: It ended with an exit code other than 0.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                code = await self._process.wait()
                await self._reader
        except TimeoutError:
            return False
        if code != 0:
            raise ServerFailed(f"the server ended with exit code {code}:\n{self.log_tail()}")
        return True

    def check(self) -> None:
        """Check that it still runs.

        Raises:
            ServerFailed: It has ended.
        """
        if self._process.returncode is not None:
            raise ServerFailed(f"the server ended with exit code {self._process.returncode}:\n{self.log_tail()}")

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while line := (await self._process.stderr.readline()).decode("utf-8", "replace").rstrip("\n"):
            self._last.append(line)
            complaint = _COMPLAINT.search(line)
            if complaint and len(self.complaints) < _MAX_COMPLAINTS:
                self.complaints.append(complaint[0].replace(str(self._directory), "."))
            found = _READY.search(line)
            if found and not self._ready.done():
                self.host, self.port, self.workers = found[1], int(found[2]), int(found[3])
                self._ready.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(ServerFailed(f"the server did not start:\n{self.log_tail()}"))

    async def _kill(self) -> None:
        pids = self._pids
        await end_processes([self._process])
        await asyncio.gather(self._reader, return_exceptions=True)
        # Its children end with it, but a moment later, and write until then.
        await asyncio.to_thread(_wait_until_gone, pids)


async def make_token(directory: Path) -> str:
    """Create a token with the scopes write and read, in the tokens file of a server that runs in this directory."""
    environment = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    process = await spawn(
        *("arcpipe", "token", "create", "--scope", "write", "--scope", "read"),
        environment=environment,
        directory=directory,
        stdout=True,
        stderr=True,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise ServerFailed("arcpipe token create failed")
    return output.decode("ascii").strip()


async def make_certificate(directory: Path, certificate: str, key: str) -> None:
    """Create a self-signed certificate with an ECDSA key, under these names in the directory."""
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", certificate),
        cwd=directory,
        stderr=asyncio.subprocess.DEVNULL,
    )
    if await process.wait() != 0:
        raise ServerFailed("openssl could not make a certificate")


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10.0
    while any(process_use(pid) is not None for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)


def _is_setting(name: str) -> bool:
    return name.startswith(("ARCPIPE_", "WAL_", "WRITE_BUFFER_")) or name == "WORKERS"


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third (state) on; None for a dead process. See proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields if fields[0] != "Z" else None


def process_tree(root: int) -> list[int]:
    """Return the process and all its descendants."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            parents[int(name)] = int(stat[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def process_use(pid: int) -> ProcessUse | None:
    """Return the use of a process; None if it has ended."""
    stat = _stat(pid)
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    if stat is None or peak is None:
        return None
    name = title.partition(b"\0")[0].decode("utf-8", "replace").removeprefix("arcpipe: ")
    return ProcessUse(name, int(peak[1]) * 1024, (int(stat[11]) + int(stat[12])) / _TICKS_PER_SECOND)
