"""The server of a day: its settings, clock, disk, stderr and store, each of which may go wrong while it runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import struct
import termios
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from typer.testing import CliRunner

from arcpipe.cli import token as cli_token
from tests.crash.io_faults import FaultyIO
from tests.support.directories import batch_files
from tests.support.http import Client, Response, free_port, request_bytes
from tests.support.lake import lake_files
from tests.support.program import ROOT
from tests.support.s3proxy import FaultyProxy
from tests.support.s3server import S3Bucket
from tests.support.server import Server
from tests.support.set_clock import SetClock
from tests.support.stores import s3_store
from tests.support.waiting import wait_until

# While the flag is there, the WAL directory cannot be listed by the processes whose titles match what it says.
_NO_LISTING: Final = """
import errno, os
scandir = os.scandir
def failing(path="."):
    if str(path).endswith("/wal"):
        try:
            with open(FLAG) as flag:
                wanted = flag.read()
        except FileNotFoundError:
            return scandir(path)
        from fnmatch import fnmatch
        from setproctitle import getproctitle
        if fnmatch(getproctitle(), wanted):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return scandir(path)
os.scandir = failing
"""


class Instance(Server):
    """A server of which everything may change: settings in a file, tokens, the clock, and whoever reads its stderr."""

    def __init__(self, directory: Path, faults: FaultyIO, bucket: S3Bucket | None) -> None:
        super().__init__(directory, wal_max_size_mb=1, flush_max_age_seconds=0.1, shutdown_drain_seconds=60)
        for name in ("server_port", "server_workers", "wal_dir"):
            del self.settings[name]
        self.faults = faults
        self.bucket = bucket
        self.proxy: FaultyProxy | None = None
        if bucket is not None:
            self.proxy = FaultyProxy(bucket.endpoint_url)
            self.proxy.__enter__()
            self.settings |= s3_store(bucket, directory).settings | {"storage_s3_endpoint_url": self.proxy.url}
        self.listening = free_port()
        self.config = directory / "config.toml"
        self.tokens = directory / "tokens.toml"
        self.workers = 2
        self.host = "127.0.0.1"
        self.sync_mode = "fdatasync"
        self.configure()
        self.token = self.create_token("write")
        self.admin = self.create_token("admin")
        self.clock = SetClock(self)
        preloads = [self.variables["LD_PRELOAD"], faults.variables["LD_PRELOAD"]]
        self._listing = directory / "no listing"
        folder = directory / "fault"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(f"FLAG = {str(self._listing)!r}\n{_NO_LISTING}")
        self.variables |= faults.variables | {"LD_PRELOAD": ":".join(preloads), "PYTHONPATH": f"{folder}:{ROOT}"}
        self.stderr = Stderr(directory / "stderr", directory / "log")
        self.prefix = ["sh", "-c", 'exec "$@" >"$0" 2>&1', str(self.stderr.path)]

    def close(self) -> None:
        """End all of its processes by force, and show its log."""
        self.end()
        self.stderr.close()
        if self.proxy is not None:
            self.proxy.__exit__(None, None, None)
        self.clock.__exit__()

    # Settings

    def configure(self, *, port: int = 0, wal: Path | None = None, level: str = "INFO") -> None:
        self.config.write_text(
            f'[server]\nhost = "{self.host}"\nport = {port or self.listening}\nworkers = {self.workers}\n'
            f'[auth]\nenabled = true\ntokens_file = "{self.tokens}"\n'
            f'[wal]\ndir = "{wal or self.wal}"\nsync_mode = "{self.sync_mode}"\n[log]\nlevel = "{level}"\n'
        )

    def create_token(self, scope: str) -> str:
        """A new token, by the command; the file has it then."""
        arguments = ["create", "--scope", scope, "--config", str(self.config)]
        done = CliRunner().invoke(cli_token.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def revoke_token(self, token: str) -> None:
        arguments = ["revoke", token, "--config", str(self.config)]
        done = CliRunner().invoke(cli_token.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    @property
    def roles(self) -> list[str]:
        return sorted(["supervisor", "uploader", *self.ingest_roles])

    @property
    def ingest_roles(self) -> list[str]:
        return [f"ingest {slot}" for slot in range(1, self.workers + 1)]

    # What it tells

    def ask(self, path: str) -> Response:
        """An answer of 200, of whichever worker gives one: one of them may hang."""

        def answer() -> Response | None:
            try:
                with Client(self.url, timeout_seconds=1) as client:
                    client.send(request_bytes("GET", path, headers={"Authorization": f"Bearer {self.admin}"}))
                    return client.receive()
            except OSError:
                return None

        found = wait_until(answer, f"an answer to {path}")
        assert found is not None
        assert found.status == 200, found
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("/api/v1/status").body)
        return found

    def lines(self, text: str) -> int:
        return self.log.count(text)

    def wait_for_line(self, text: str, before: int) -> None:
        """Waits until it was told once more than it was before."""
        wait_until(lambda: self.lines(text) > before, text)

    def last_words(self) -> str:
        """The end of what it said, once it has ended."""
        self.stderr.drain()
        return self.log.rstrip("\n").rpartition("\n")[2]

    # What goes wrong

    @contextmanager
    def no_listing(self, process: str) -> Iterator[None]:
        """Processes with such titles cannot list the WAL directory."""
        new = self._listing.with_suffix(".new")
        new.write_text(process)
        os.replace(new, self._listing)
        try:
            yield
        finally:
            self._listing.unlink()

    # What is on its disk

    def unfinished_batches(self) -> int:
        """Those that a start would go on with: each has up to three files."""
        return len({re.sub(r"(\.uploaded)?\.(json|journal)\Z", "", name) for name in batch_files(self.wal)})


class Stderr:
    """A pipe that takes what the server says into a file, unless nobody reads it."""

    def __init__(self, path: Path, log: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR)  # its own writer, so that it never ends
        self._log = log
        self._reads = threading.Event()
        self._reads.set()
        self._idle = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @contextmanager
    def nobody_reads(self) -> Iterator[None]:
        """It is full for the time of a block."""
        self._reads.clear()
        wait_until(self._idle.is_set, "the reader to stop")
        fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            for size in (4096, 1):
                try:
                    while True:
                        os.write(fd, b" " * (size - 1) + b"\n")
                except BlockingIOError:
                    pass
            yield
        finally:
            os.close(fd)
            self._reads.set()

    def drain(self) -> None:
        """Returns when all that was written is in the file."""
        wait_until(lambda: self._waiting() == 0 and self._idle.is_set() and self._waiting() == 0, "the log")

    def close(self) -> None:
        self._stop = True
        self._reads.set()
        self._thread.join(60)
        os.close(self._fd)

    def _waiting(self) -> int:
        count: int = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0]
        return count

    def _run(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while not self._stop:
                if not self._reads.is_set():
                    self._idle.set()
                    self._reads.wait()
                self._idle.clear()
                while select.select([self._fd], [], [], 0)[0]:
                    log.write(os.read(self._fd, 65536))
                self._idle.set()
                select.select([self._fd], [], [], 0.05)


class Lake:
    """The store, read as it grows."""

    def __init__(self, instance: Instance, folder: str = "downloaded") -> None:
        self._bucket = instance.bucket
        self._root = instance.directory / folder if self._bucket is not None else instance.lake
        self._numbers: dict[tuple[str, int], list[int]] = {}  # by path and time

    def read(self) -> Counter[int]:
        """How often each number is there; files that are known are not read again."""
        if self._bucket is not None:
            self._download(self._bucket)
        known, self._numbers = self._numbers, {}
        for path in lake_files(self._root):
            key = str(path), path.stat().st_mtime_ns
            if key not in known:
                known[key] = pq.ParquetFile(path).read(columns=["n"])["n"].to_pylist()
            self._numbers[key] = known[key]
        return Counter(number for numbers in self._numbers.values() for number in numbers)

    @property
    def files(self) -> int:
        """Those that the last `read` has seen."""
        return len(self._numbers)

    def dead_letters(self) -> list[Path]:
        return list(self._root.glob("_dead_letter/**/*.*"))

    def _download(self, bucket: S3Bucket) -> None:
        there = {self._root / key.removeprefix("some/prefix/"): key for key in bucket.list_keys()}
        for path in set(self._root.rglob("*.*")) - there.keys():
            path.unlink()
        for path, key in there.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bucket.read(key))
