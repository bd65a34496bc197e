"""Numbered records written to a real server, and what the lake holds of them.

Knows nothing of faults: tests of any kind of fault ask here whether each acknowledged record is there exactly once.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.http import Response, pack
from tests.support.lake import lake_rows
from tests.support.server import Server
from tests.support.waiting import WAIT_SECONDS, wait_until

V2 = "/write/v2/msgpack"
# The uploader waits up to 30 s between two tries when a fault lasted long; a loaded machine doubles it.
CATCH_UP_SECONDS = WAIT_SECONDS
# What health may say of the machine that runs the tests, or of a process that has just been started.
_UNRELATED = {"disk_usage", "uploader_down", "worker_down"}


class Account(NamedTuple):
    """The fate of the acknowledged records."""

    acknowledged: int
    lost: list[int]
    twice: list[int]
    unexpected: list[int]  # in the lake, but never acknowledged

    def __str__(self) -> str:
        parts = [
            f"{len(numbers)} {what}: {_spans(numbers)}"
            for what, numbers in (("lost", self.lost), ("twice", self.twice), ("unexpected", self.unexpected))
            if numbers
        ]
        return f"{self.acknowledged} acknowledged, " + ("; ".join(parts) or "each there once")


def each_once(count: int) -> str:
    """The account of `count` records of which nothing else is to be said."""
    return str(Account(count, [], [], []))


class Numbered:
    """Writes one record per request, each with a number and ballast of its own."""

    def __init__(self, server: Server, size_bytes: int = 1000, measurement: str = "numbered") -> None:
        self.server = server
        self.acknowledged: list[int] = []
        self._next = 0
        self._size = size_bytes
        self._measurement = measurement

    def write(self, count: int = 1) -> None:
        """Writes and asserts that each record is acknowledged."""
        with self.server.client() as client:
            for _ in range(count):
                number = self.next_number()
                response = client.request("POST", V2, self.body(number))
                assert response.status == 202, response
                self.acknowledged.append(number)

    def try_to_write(self, number: int | None = None) -> Response:
        """Writes one record, a new one by default, on a connection of its own; it may be refused."""
        number = self.next_number() if number is None else number
        response = self.server.post(V2, self.body(number))
        if response.status == 202:
            self.acknowledged.append(number)
        return response

    def next_number(self) -> int:
        self._next += 1
        return self._next - 1

    def body(self, number: int) -> bytes:
        ballast = random.Random(number).randbytes(self._size // 2).hex()
        return pack({"m": self._measurement, "columns": {"number": [number], "ballast": [ballast]}})

    def numbers_in_lake(self) -> list[int]:
        return [row["number"] for row in lake_rows(self.server.lake, measurement=self._measurement)]

    def account(self) -> Account:
        """Compares the lake with what was acknowledged."""
        counts = Counter(self.numbers_in_lake())
        acknowledged = set(self.acknowledged)
        return Account(
            len(acknowledged),
            sorted(acknowledged - counts.keys()),
            sorted(number for number, count in counts.items() if count > 1),
            sorted(counts.keys() - acknowledged),
        )

    def wait_until_in_lake(self, numbers: set[int]) -> None:
        wait_until(lambda: numbers <= set(self.numbers_in_lake()), f"{len(numbers)} records", CATCH_UP_SECONDS)


class KilledServers:
    """Servers that were killed with acknowledged records in active segments: each kind is run once, then copied."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._made: dict[tuple[int, int], Numbered] = {}

    def copy(self, directory: Path, records: int, workers: int = 1) -> Numbered:
        """Give the records of a server in `directory`, which was killed and is to be started again.

        Those of one worker are in one segment, those of several in the segments of all.
        """
        made = self._made.get((records, workers))
        if made is None:
            made = self._made[records, workers] = self._run(records, workers)
        shutil.copytree(made.server.wal, directory / "wal")
        numbered = Numbered(Server(directory, server_workers=workers))
        numbered.acknowledged = list(made.acknowledged)
        numbered._next = made._next
        return numbered

    def _run(self, records: int, workers: int) -> Numbered:
        place = self._base / f"{records} of {workers}"
        place.mkdir()
        with Server(place, server_workers=workers, flush_max_age_seconds=3600) as server:
            numbered = Numbered(server)
            if workers == 1:
                numbered.write(records)
            else:
                for _ in range(records):  # on connections of their own
                    assert numbered.try_to_write().status == 202
            server.kill_all()
        return numbered


def is_shipped(server: Server) -> bool:
    """Nothing that was completed waits any more."""
    try:
        batches = [name for name in os.listdir(server.wal / "batches") if not name.startswith("spare")]
        return not server.segments(".wal.sealed") and not batches
    except FileNotFoundError:
        return False


def is_told_by_health(server: Server, seconds: float = WAIT_SECONDS) -> bool:
    """Whether health comes to say, within a while, that there is something to look at."""
    try:
        wait_until(lambda: problems(server), "health to tell", seconds)
    except AssertionError:
        return False
    return True


def problems(server: Server) -> list[dict[str, Any]]:
    """The issues that health tells, but for those that leave the instance healthy, or are of the machine."""
    picture = server.get("/api/v1/status").json()
    assert picture["healthy"] == all(issue["severity"] == "info" for issue in picture["issues"])
    return [issue for issue in picture["issues"] if issue["severity"] != "info" and issue["code"] not in _UNRELATED]


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    """The files that match, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def _spans(numbers: list[int]) -> str:
    """Sorted numbers as `3-5, 9`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}-{high}" if low != high else str(low) for low, high in spans)
