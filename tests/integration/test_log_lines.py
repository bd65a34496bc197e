"""The log of a real server: for journald, for a collector of JSON, and what becomes of lines that are held back."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.http import Client, pack
from tests.support.program import COMMAND, ROOT, environment
from tests.support.server import Server
from tests.support.waiting import STOP_SECONDS, wait_until
from tests.support.wal_files import segment

V2 = "/write/v2/msgpack"
DEAD_LETTERS = 60
PRIORITIES = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<2>"}

# Each process logs thirty warnings at once, when it logs one of these for the first time, and nothing after them.
REPEATING = """
import logging
info = logging.Logger.info
begun = ("listening", "serving on", "batch ")
def info_and_warnings(self, message, *arguments, **more):
    info(self, message, *arguments, **more)
    if (message % arguments).startswith(begun):
        from arcpipe import logs
        for number in range(30):
            self.warning("again %d", number)
        logs._REPEAT_SECONDS = 0.5
logging.Logger.info = info_and_warnings
"""


class Journal:
    """journald's end of the socket that it gives to a service as its stderr."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        status = os.fstat(self.theirs.fileno())
        self.stream = f"{status.st_dev}:{status.st_ino}"
        self._received = b""
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._ours.recv(65536):
                self._received += data

    @property
    def text(self) -> str:
        return self._received.decode()

    def lines(self) -> list[str]:
        """All of them, once everybody who wrote is gone."""
        self._thread.join(STOP_SECONDS)
        assert self._received.endswith(b"\n")
        return self.text.split("\n")[:-1]


@contextlib.contextmanager
def service(directory: Path, journal: Journal, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a service manager starts it."""
    given = {"server_port": 0, "server_workers": 1, "wal_dir": directory / "wal", "wal_min_free_mb": 16, **settings}
    given |= {"flush_max_age_seconds": 0.2, "storage_url": f"file://{directory / 'lake'}"}
    with subprocess.Popen(
        [*COMMAND, "serve"],
        cwd=directory,
        env=environment(**given) | {"JOURNAL_STREAM": journal.stream},
        stdin=subprocess.DEVNULL,
        stderr=journal.theirs.fileno(),
    ) as process:
        journal.theirs.close()
        try:
            yield process
        finally:
            process.kill()


def test_each_line_of_a_service_is_json_with_its_priority(tmp_path: Path) -> None:
    """Each line of a service is JSON with its priority and each dead letter has one."""
    (tmp_path / "wal").mkdir()
    payloads = [pack(f"no envelope {number}") for number in range(DEAD_LETTERS)]
    (tmp_path / "wal" / "worker-1-20251008_140530-000001.wal").write_bytes(segment(payloads)[0])
    journal = Journal()
    with service(tmp_path, journal, log_format="json") as process:
        found = wait_until(lambda: re.search(r"serving on (http://[0-9.:]+) with", journal.text), "the server")
        assert found is not None
        with Client(found[1]) as client:
            assert client.request("POST", V2, pack({"m": "m", "columns": {"n": [1]}})).status == 202
            worker = client.request("GET", "/api/v1/status").json()["instance"]["workers"][0]["pid"]
        wait_until(lambda: journal.text.count("cannot be converted") >= DEAD_LETTERS, "the dead letters")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: f"(pid {worker}) died" in journal.text, "the death of the worker")
        wait_until(lambda: journal.text.count('"listening"') >= 2, "its successor")
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    lines = journal.lines()
    entries = [json.loads(line[3:], parse_constant=refuse) for line in lines]
    assert [line[:3] for line in lines] == [PRIORITIES[entry["level"]] for entry in entries]
    assert {entry["process"] for entry in entries} >= {"supervisor", "ingest 1", "uploader"}
    letters = [entry["message"] for entry in entries if "cannot be converted" in entry["message"]]
    assert len(letters) == len(set(letters)) == DEAD_LETTERS
    assert not [entry for entry in entries if "held_back" in entry]
    assert "died: killed by SIGKILL" in next(
        entry["message"] for entry in entries if entry["level"] == "ERROR" and "died" in entry["message"]
    )


def test_lines_that_are_held_back_are_told_soon_by_every_process(tmp_path: Path) -> None:
    """And not when something else happens to be logged, which may be never."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(REPEATING)
    server = Server(tmp_path, server_workers=1)
    server.variables["PYTHONPATH"] = f"{tmp_path / 'faults'}:{ROOT}"

    def has_told(line: str) -> bool:
        return line in server.log

    with server:
        server.write({"m": "m", "columns": {"n": [1]}})
        for process in ("supervisor", "ingest 1", "uploader"):
            wait_until(functools.partial(has_told, f"{process}: again 29 held_back=10"), f"the line of {process}")
            assert server.log.count(f"{process}: again") == 21
        server.stop()
