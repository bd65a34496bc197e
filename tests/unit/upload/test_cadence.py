"""When sealed segments become a batch: by age, interval and size, at a drain, near a limit, and after a restart."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from arcpipe.counters import Counters, Node, Uploader, Worker
from arcpipe.units import KB, MB
from arcpipe.upload.cadence import Cadence, LastBatch
from arcpipe.upload.uploader import BatchUploader
from arcpipe.wal.directory import SEALED, NodeIdentity, SegmentFile, WALDirectory
from tests.support.uploader import NODE, MemoryStore, fill, ids_in, settings_of

SECOND = 1_000_000


class Died(BaseException):
    """The process ends here."""


class Clock:
    """A steady clock that a test moves. It begins at the present, as the segments' own times are of the present."""

    def __init__(self) -> None:
        self.us = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.us

    def pass_seconds(self, seconds: float) -> None:
        self.us += int(seconds * SECOND)


class Quiet:
    """A WAL directory with an uploader whose clock stands still."""

    def __init__(self, wal: Path, **settings: object) -> None:
        self.wal = wal
        self.directory = WALDirectory(wal)
        self.directory.make()
        self.clock = Clock()
        self.store = MemoryStore()
        self.counters = Counters(2)
        self.settings = settings_of(wal, **{"uploader_interval_seconds": 60, **settings})
        self.next_id = 0
        self.boot = 0
        self.restart()

    def restart(self, *, server: bool = False) -> None:
        """Begin a new uploader; with `server`, everything in shared memory is new, too."""
        if server:
            self.counters = Counters(2)
        self.boot += 1
        self.uploader = self._new()

    def _new(self) -> BatchUploader:
        async def sleep(seconds: float) -> None:
            await asyncio.sleep(0)

        node = NodeIdentity(NODE, self.boot)
        return BatchUploader(self.settings, self.directory, self.counters, node, self.store, sleep, self.clock)

    def seal(self, slot: int = 1, *, seconds_ago: float = 0.0, size: int = 0) -> None:
        """Add a sealed segment of a size in bytes, whose records were written by the clock some seconds ago."""
        before = {file.path for file in self.waiting}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time_ns", lambda: (self.clock.us - int(seconds_ago * SECOND)) * 1000)
            fill(self.wal, slot, [self.next_id], measurements=1)
        self.next_id += 1
        (made,) = {file.path for file in self.waiting} - before
        os.truncate(made, max(size, os.path.getsize(made)))  # as a full segment, which keeps its blocks

    def batches(self) -> int:
        """Let the uploader do all that is due. Returns the number of batches since the start of the server."""

        async def work() -> None:
            while await self.uploader.work_once():
                pass

        asyncio.run(work())
        return self.counters.uploader[Uploader.BATCHES]

    def die_in_a_put(self) -> None:
        """Let the uploader do what is due, and die before it puts an object; the next one may put."""

        def die(key: str) -> None:
            raise Died

        self.store.before_put = die
        with pytest.raises(Died):
            self.batches()
        self.store.before_put = lambda key: None

    @property
    def waiting(self) -> list[SegmentFile]:
        return self.directory.segments(SEALED)


@pytest.fixture
def quiet(tmp_path: Path) -> Quiet:
    return Quiet(tmp_path / "wal")


@pytest.fixture(autouse=True)
def _time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the time of day follow the test's clock, so that it is never ahead of the steady one."""
    monkeypatch.setattr("arcpipe.upload.cadence.ahead_us", lambda: 0)


def test_first_record_of_a_quiet_server_goes_after_5_seconds(quiet: Quiet) -> None:
    quiet.seal(seconds_ago=4.9)
    assert quiet.batches() == 0
    quiet.clock.pass_seconds(0.2)
    assert quiet.batches() == 1
    assert not quiet.waiting


def test_steady_stream_makes_one_batch_per_interval(quiet: Quiet) -> None:
    """Two workers seal again and again: each batch has all segments of both."""
    for second in range(0, 300, 15):
        quiet.seal(1, seconds_ago=6)
        quiet.seal(2, seconds_ago=6)
        assert quiet.batches() == second // 60 + 1
        quiet.clock.pass_seconds(15)
    assert len({key.rsplit("/", 1)[0] for key in quiet.store.objects}) == 1
    assert len(quiet.store.objects) == 5  # one table, one hour
    assert quiet.counters.uploader[Uploader.SEGMENTS] + len(quiet.waiting) == quiet.next_id
    assert all(count == 1 for count in ids_in(quiet.store).values())


def test_batch_collects_what_workers_hold(quiet: Quiet) -> None:
    """A worker that writes a segment is asked to seal it, and the batch waits for it, at most for a second."""
    quiet.seal(1, seconds_ago=6)
    worker = quiet.counters.worker(2)
    worker[Worker.SEGMENT_FIRST_US] = quiet.clock.us - 3 * SECOND
    assert quiet.batches() == 0
    assert quiet.counters.uploader[Uploader.COLLECT_US] == quiet.clock.us
    quiet.clock.pass_seconds(0.5)
    quiet.seal(2, seconds_ago=3)
    worker[Worker.SEGMENT_FIRST_US] = quiet.clock.us  # of its next segment
    assert quiet.batches() == 1
    assert not quiet.waiting


def test_worker_that_does_not_seal_delays_a_batch_by_a_second(quiet: Quiet) -> None:
    quiet.seal(1, seconds_ago=6)
    quiet.counters.worker(2)[Worker.SEGMENT_FIRST_US] = quiet.clock.us - 3 * SECOND
    assert quiet.batches() == 0
    quiet.clock.pass_seconds(0.9)
    assert quiet.batches() == 0
    quiet.clock.pass_seconds(0.2)
    assert quiet.batches() == 1


def test_segments_of_batch_mb_do_not_wait(tmp_path: Path) -> None:
    quiet = Quiet(tmp_path / "wal", uploader_batch_mb=1)
    quiet.seal(seconds_ago=6)
    assert quiet.batches() == 1
    quiet.seal(size=700 * KB)
    quiet.clock.pass_seconds(10)
    assert quiet.batches() == 1
    quiet.seal(size=400 * KB)
    assert quiet.batches() == 2
    assert len(quiet.waiting) == 1  # beyond batch_mb: it waits for its turn
    quiet.clock.pass_seconds(60)
    assert quiet.batches() == 3


@pytest.mark.parametrize(("seconds_ago", "batches"), [(3600, 3), (61, 3), (50, 2)])
def test_rest_of_a_backlog_waits_no_longer_than_the_interval(tmp_path: Path, seconds_ago: int, batches: int) -> None:
    """Two full batches leave a segment over. It has waited for its turn already, if it is older than the interval."""
    quiet = Quiet(tmp_path / "wal", uploader_batch_mb=1)
    for number in range(5):
        quiet.seal(number % 2 + 1, seconds_ago=seconds_ago, size=400 * KB)
    assert quiet.batches() == batches
    quiet.clock.pass_seconds(11)
    assert quiet.batches() == 3
    assert not quiet.waiting


def test_rest_of_a_backlog_collects_what_workers_hold(tmp_path: Path) -> None:
    """It is a batch like any other: no file more for what was written meanwhile."""
    quiet = Quiet(tmp_path / "wal", uploader_batch_mb=1)
    for _ in range(3):
        quiet.seal(seconds_ago=3600, size=400 * KB)
    worker = quiet.counters.worker(2)
    worker[Worker.SEGMENT_FIRST_US] = quiet.clock.us - 3 * SECOND
    assert quiet.batches() == 1
    quiet.seal(2, seconds_ago=3)
    worker[Worker.SEGMENT_FIRST_US] = 0
    assert quiet.batches() == 2
    assert not quiet.waiting


@pytest.mark.parametrize("server", [False, True])
def test_rest_of_a_backlog_does_not_wait_after_a_crash(tmp_path: Path, server: bool) -> None:
    """The uploader, or all of the server, died in the first batch. Nobody remembers that it left segments over."""
    quiet = Quiet(tmp_path / "wal", uploader_batch_mb=1)
    for _ in range(3):
        quiet.seal(seconds_ago=3600, size=400 * KB)
    quiet.die_in_a_put()
    quiet.restart(server=server)
    assert quiet.batches() == 2
    assert not quiet.waiting
    assert all(count == 1 for count in ids_in(quiet.store).values())


def test_old_records_that_come_one_by_one_make_no_batch_each(quiet: Quiet) -> None:
    """So it is with files that `arcpipe wal replay` brings, and segments that can be read again."""
    for _ in range(3):
        quiet.seal(seconds_ago=3600)
        assert quiet.batches() == 1
        quiet.clock.pass_seconds(2)
    assert len(quiet.waiting) == 2


def test_nothing_waits_once_it_drains(quiet: Quiet) -> None:
    quiet.seal(seconds_ago=6)
    quiet.batches()
    quiet.seal()
    assert quiet.batches() == 1
    quiet.uploader.drain()
    assert quiet.batches() == 2


@pytest.mark.parametrize("settings", [{"uploader_interval_seconds": 0}, {"wal_enabled": False}])
def test_nothing_waits_without_an_interval_or_a_wal(tmp_path: Path, settings: dict[str, object]) -> None:
    """With the WAL off, what waits is not on disk."""
    quiet = Quiet(tmp_path / "wal", **settings)
    for number in range(3):
        quiet.seal()
        assert quiet.batches() == number + 1
    assert not (quiet.wal / "batches" / "last-batch").exists()


@pytest.mark.parametrize(
    ("figures", "is_due"),
    [
        ({Node.BACKLOG_BYTES: 11_000 * MB}, True),
        ({Node.BACKLOG_BYTES: 10_000 * MB}, False),
        ({Node.DISK_TOTAL_BYTES: 1000 * MB, Node.DISK_FREE_BYTES: 511 * MB}, True),
        ({Node.DISK_TOTAL_BYTES: 1000 * MB, Node.DISK_FREE_BYTES: 514 * MB}, False),
        ({}, False),  # nobody has measured
    ],
)
def test_nothing_waits_near_a_limit(quiet: Quiet, figures: dict[int, int], is_due: bool) -> None:
    """`wal.max_backlog_mb` is 20,480 and `wal.min_free_mb` 512 by default."""
    quiet.seal(seconds_ago=6)
    quiet.batches()
    quiet.seal()
    for field, value in figures.items():
        quiet.counters.node[field] = value
    assert (quiet.batches() == 2) == is_due


def test_quarter_of_the_backlog_limit_does_not_wait(tmp_path: Path) -> None:
    quiet = Quiet(tmp_path / "wal", wal_max_backlog_mb=1)
    quiet.seal(seconds_ago=6)
    quiet.batches()
    quiet.seal(size=MB // 4)
    assert quiet.batches() == 2


def test_uploader_that_restarts_keeps_the_cadence(quiet: Quiet) -> None:
    """One that dies again and again makes no more batches than one that lives."""
    for second in range(0, 120, 10):
        quiet.seal(seconds_ago=6)
        quiet.restart()
        assert quiet.batches() == second // 60 + 1
        quiet.clock.pass_seconds(10)


def test_server_that_restarts_keeps_the_cadence(quiet: Quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory is new then; a file tells the time of the last batch."""
    monkeypatch.setattr("arcpipe.upload.cadence.now_us", quiet.clock)
    quiet.seal(seconds_ago=6)
    assert quiet.batches() == 1
    mark = quiet.wal / "batches" / "last-batch"
    os.utime(mark, ns=(quiet.clock.us * 1000, quiet.clock.us * 1000))
    for _ in range(5):
        quiet.clock.pass_seconds(10)
        quiet.seal(seconds_ago=6)
        quiet.restart(server=True)
        assert quiet.batches() == 0
    quiet.clock.pass_seconds(11)
    assert quiet.batches() == 1
    assert not quiet.waiting


def test_clock_that_was_set_back_delays_nothing(quiet: Quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the last batch is in the future then."""
    quiet.seal(seconds_ago=6)
    quiet.batches()
    monkeypatch.setattr("arcpipe.upload.cadence.now_us", lambda: quiet.clock.us - 3600 * SECOND)
    quiet.seal(seconds_ago=6)
    quiet.restart(server=True)
    assert quiet.batches() == 1


def test_segment_from_the_future_waits_for_5_seconds(quiet: Quiet) -> None:
    """Its worker wrote it before somebody set the clock back."""
    quiet.seal(seconds_ago=-3600)
    assert quiet.batches() == 0
    quiet.clock.pass_seconds(5)
    assert quiet.batches() == 1


def test_server_that_was_stopped_begins_as_a_quiet_one(quiet: Quiet) -> None:
    async def drain() -> None:
        quiet.uploader.drain()
        assert await quiet.uploader.serve() == 0

    quiet.seal(seconds_ago=6)
    quiet.batches()
    quiet.seal()
    asyncio.run(drain())
    assert not quiet.waiting
    quiet.seal(seconds_ago=6)
    quiet.restart(server=True)
    assert quiet.batches() == 1


def test_batch_of_a_crash_goes_on_at_once(quiet: Quiet) -> None:
    """It was planned, so nothing of it waits for its turn; new segments do."""
    quiet.seal(seconds_ago=6)
    quiet.die_in_a_put()
    quiet.seal(seconds_ago=6)
    quiet.restart()
    assert quiet.batches() == 1
    assert len(quiet.waiting) == 1
    quiet.clock.pass_seconds(61)
    assert quiet.batches() == 2
    assert all(count == 1 for count in ids_in(quiet.store).values())


def test_mark_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    directory = WALDirectory(tmp_path / "gone")
    mark = LastBatch(directory)
    mark.note()
    assert mark.age_us() is None
    mark.forget()


def test_gauges_tell_batches_from_what_waits(quiet: Quiet) -> None:
    quiet.seal(seconds_ago=6)
    block = quiet.counters.uploader
    seen: list[tuple[int, int]] = []
    quiet.store.before_put = lambda key: seen.append((block[Uploader.BATCHED_SEGMENTS], block[Uploader.BATCHED_BYTES]))
    size = quiet.waiting[0].size
    quiet.batches()
    assert seen == [(1, size)]
    assert (block[Uploader.BATCHED_SEGMENTS], block[Uploader.BATCHED_BYTES]) == (0, 0)
    assert block[Uploader.PLANNED_US] == quiet.clock.us


def test_cadence_without_segments_of_workers_does_not_ask(tmp_path: Path) -> None:
    """A batch that is full asks nobody to seal."""
    quiet = Quiet(tmp_path / "wal", uploader_batch_mb=1)
    cadence = Cadence(quiet.settings, quiet.directory, quiet.counters, lambda: False, quiet.clock)
    quiet.seal(size=MB)
    assert cadence.is_due(quiet.waiting)
    assert not quiet.counters.uploader[Uploader.COLLECT_US]
