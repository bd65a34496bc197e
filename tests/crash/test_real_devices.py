"""The real server on real devices: ext4 whose power is cut under load, and a thin device that runs full.

Needs root and loop devices. `ARCPIPE_TEST_LONG=1` cuts the power twenty times instead of three.

Only what was acknowledged before a cut began is promised to be there. While ext4 shuts down, a sync may still succeed
whose extents it can no longer convert; a machine that loses its power cannot answer any more, this one can.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pytest

from tests.crash.numbered import CATCH_UP_SECONDS, V2, Numbered, each_once, is_shipped
from tests.crash.small_disks import SmallDisk, small_disk, thin_disk
from tests.support.http import Client, pack, request_bytes
from tests.support.lake import lake_files
from tests.support.server import Server
from tests.support.sets import IS_LONG
from tests.support.waiting import WAIT_SECONDS, wait_until

ROUNDS = 20 if IS_LONG else 3
SEED = int(os.environ.get("ARCPIPE_TEST_SEED", "1"))
CONNECTIONS = 6

pytestmark = pytest.mark.timeout(1800 if IS_LONG else 400)

Ids = npt.NDArray[np.int64]


class Answered:
    """An acknowledged request: its number, its connection, and the moments (monotonic) around it."""

    __slots__ = ("answered", "connection", "number", "sent")

    def __init__(self, number: int, connection: int, sent: float, answered: float) -> None:
        self.number = number
        self.connection = connection
        self.sent = sent
        self.answered = answered


class TimedLoad:
    """Connections that write as fast as they are answered until the server goes away; knows when each answer came."""

    ROWS = 200  # per request
    _BALLAST = "x" * 100

    def __init__(self) -> None:
        self.sent = 0  # requests; each has the ids from number * ROWS on
        self.answers: list[Answered] = []
        self._lock = threading.Lock()
        self._bugs: list[BaseException] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, url: str) -> None:
        self._stop.clear()
        self.answers = []
        self._threads = [
            threading.Thread(target=self._run, args=(url, connection), daemon=True) for connection in range(CONNECTIONS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Answered]:
        """Ends the load; the answers since it was started, in order."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self._bugs, self._bugs
        return self.answers

    def ids(self, answers: list[Answered]) -> Ids:
        first = np.array([answer.number for answer in answers], dtype=np.int64)[:, np.newaxis] * self.ROWS
        return np.asarray((first + np.arange(self.ROWS, dtype=np.int64)).ravel())

    def _run(self, url: str, connection: int) -> None:
        try:
            with Client(url) as client:
                while not self._stop.is_set():
                    with self._lock:
                        number = self.sent
                        self.sent += 1
                    ids = list(range(number * self.ROWS, (number + 1) * self.ROWS))
                    columns = {"id": ids, "ballast": [self._BALLAST] * self.ROWS}
                    body = pack({"m": f"m{number % 3}", "columns": columns})
                    sent = time.monotonic()
                    client.send(request_bytes("POST", V2, body))
                    response = client.receive()
                    answered = time.monotonic()
                    assert response.status in (202, 503, 507), response
                    if response.status == 202:
                        self.answers.append(Answered(number, connection, sent, answered))
        except OSError:
            pass  # the server is gone
        except BaseException as bug:
            self._bugs.append(bug)


def counts_in_lake(lake: Path, size: int) -> Ids:
    """How often each id is there; one that was never sent raises."""
    files = [str(file) for file in lake_files(lake)]
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT id FROM read_parquet(?, union_by_name = true, hive_partitioning = false)", [files]
        ).fetchnumpy()
    counts = np.bincount(np.asarray(found["id"], dtype=np.int64), minlength=size)
    assert len(counts) == size, f"id {len(counts) - 1} was never sent"
    return counts


def serve_on(tmp_path: Path, disk: SmallDisk, **settings: object) -> Server:
    """A server whose WAL is on that disk, and its store on another."""
    wal = disk.path / "wal"
    given: dict[str, object] = {"wal_dir": wal, "wal_min_free_mb": 0, "server_workers": 2, "shutdown_drain_seconds": 90}
    server = Server(tmp_path, **given | settings)
    server.wal = wal
    return server


def cut_power_under_load(server: Server, disk: SmallDisk, load: TimedLoad, seconds: float) -> list[Answered]:
    """Loads the server for a while and cuts the power; the requests that were acknowledged before, in order."""
    load.start(server.url)
    wait_until(lambda: len(load.answers) > 20, "the load to run")
    time.sleep(seconds)
    cut = time.monotonic()
    disk.cut_power()
    server.kill_all()
    answers = sorted(load.stop(), key=lambda answer: answer.answered)
    return [answer for answer in answers if answer.answered < cut]


@pytest.mark.parametrize("mode", ["fdatasync", "async"])
def test_power_cuts_under_load(tmp_path: Path, mode: str) -> None:
    """Every row that was promised is there once, and none twice, over rounds that begin with what the last one left.

    With `async`, an answer promises that everything older than the interval is on the disk of its worker. So the last
    answer of a connection before the cut, to a request that was sent at t, promises all that the connection was
    answered before t - interval: a bound that holds however slow the machine is.
    """
    rounds = ROUNDS if mode == "fdatasync" or IS_LONG else 2
    interval_seconds = 0.3
    chance = random.Random(SEED)
    load = TimedLoad()
    promised: list[Ids] = []
    with (
        small_disk(tmp_path / "disk", "ext4", 1024) as disk,
        serve_on(
            tmp_path,
            disk,
            wal_sync_mode=mode,
            wal_async_interval_ms=int(interval_seconds * 1000),
            wal_max_size_mb=8,  # some are written over, some are new
            flush_max_age_seconds=0.5,
        ) as server,
    ):
        for _ in range(rounds):
            answers = cut_power_under_load(server, disk, load, chance.uniform(0.2, 2.0))
            if mode == "async":
                last = {answer.connection: answer.sent for answer in answers}
                answers = [answer for answer in answers if answer.answered < last[answer.connection] - interval_seconds]
            promised.append(load.ids(answers))
            disk.power_on()
            server.restart()
        wait_until(lambda: is_shipped(server), "the backlog to be shipped", CATCH_UP_SECONDS)
        server.stop()
        counts = counts_in_lake(server.lake, load.sent * load.ROWS)
        quarantined = os.listdir(server.wal / "quarantine")
    by_round = [int((counts[ids] == 0).sum()) for ids in promised]
    total = sum(map(len, promised))
    print(
        f"{mode}: {rounds} cuts, {load.sent * load.ROWS} rows sent, {total} promised, {int(counts.sum())} in the lake"
    )
    assert (by_round, int((counts > 1).sum()), quarantined) == ([0] * rounds, 0, [])
    assert total > 0


@pytest.mark.parametrize("mode", ["fdatasync", "async"])
def test_a_thin_device_that_is_full_for_a_while(tmp_path: Path, mode: str) -> None:
    """Blocks that were never written cannot be written. The page cache has them all the same, until it needs memory."""
    # All of the device is backed once the filling is gone, however many blocks were tried meanwhile.
    with thin_disk(tmp_path / "disk", 200, 220) as (disk, pool):
        settings = {"wal_async_interval_ms": 1000, "wal_max_size_mb": 16, "flush_max_age_seconds": 3600}
        with serve_on(tmp_path, disk, wal_sync_mode=mode, server_workers=1, **settings) as server:
            numbered = Numbered(server, size_bytes=200_000)
            numbered.write(6)  # what the file system has left of blocks that are backed
            disk.sync()
            pool.fill()
            deadline = time.monotonic() + WAIT_SECONDS
            while "No space left on device" not in server.log:
                numbered.try_to_write()
                assert time.monotonic() < deadline, "the device never ran full"
            full_until = time.monotonic() + 1.5
            while time.monotonic() < full_until:
                numbered.try_to_write()
                time.sleep(0.05)
            evict(server.wal)
            pool.free()
            wait_until(lambda: numbered.try_to_write().status == 202, "it to go on by itself")
            numbered.write(10)
            server.stop(signal.SIGTERM)
            account = numbered.account()
    assert (str(account)) == each_once(len(set(numbered.acknowledged)))


def evict(folder: Path) -> None:
    """Has the page cache forget what is clean, as the kernel may do at any time."""
    for path in folder.glob("worker-*"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
