"""Group commit in a real event loop: nothing is answered before its sync, and what fails fails as a group."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import uvloop

from arcpipe.wal import background_sync as background_sync_module
from arcpipe.wal import group_commit as group_commit_module
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.group_commit import BufferedCommit, Commit, GroupCommit, group_commit
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import SyncMode, WALOptions, WALWriter
from tests.support.waiting import WAIT_SECONDS
from tests.support.wal_doubles import Clock, HeldDisk, WatchedLock

PREFIX = envelope_prefix(1, "db")
Answer = tuple[list[int], int | None]


def body(number: int, size: int = 0) -> bytes:
    packed: bytes = msgpack.packb({"m": "m", "columns": {"number": [number], "filler": [bytes(size)]}})
    return packed


def contents(directory: WALDirectory, state: str = SEALED) -> list[int]:
    """The numbers in the segments of one state. Lists them again if one is renamed before it is read."""
    while True:
        with suppress(FileNotFoundError):
            return [
                msgpack.unpackb(entry.payload)[3]["columns"]["number"][0]
                for file in directory.segments(state)
                for entry in SegmentScan(file.path)
            ]


class Bench:
    """A loop, a writer on a disk that can be held, and the answers in the order in which they came."""

    def __init__(self, path: Path, options: WALOptions) -> None:
        self.disk = HeldDisk()
        self.directory = WALDirectory(path / "wal", self.disk)
        self.directory.make()
        self.writer = WALWriter(self.directory, 1, options)
        self.answers: list[Answer] = []
        self.crashes: list[BaseException] = []
        self.commit: Commit

    def open(self) -> None:
        self.commit = group_commit(self.writer, asyncio.get_running_loop(), self._committed, self.crashes.append)

    def _committed(self, waiters: list[Any], error: OSError | None) -> None:
        self.answers.append((list(waiters), error.errno if error is not None else None))

    def append(self, *numbers: int, size: int = 0) -> None:
        for number in numbers:
            self.commit.append(PREFIX, body(number, size), 1, number)

    @property
    def thread_commit(self) -> GroupCommit | BufferedCommit:
        assert isinstance(self.commit, GroupCommit | BufferedCommit)
        return self.commit

    def answered(self) -> list[int]:
        return [number for waiters, error in self.answers if error is None for number in waiters]

    async def until(self, condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.002)

    async def turns(self) -> None:
        """Let the loop do all that it has to do: the thread that could give it more is held."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def finish(self) -> list[int]:
        await self.commit.drain()
        self.commit.close()
        return contents(self.directory)


Run = Callable[..., None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Runs a coroutine function with a bench of these options, in both loops."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_with(test: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> None:
        bench = Bench(tmp_path, WALOptions(**options))

        async def main() -> None:
            bench.open()
            await test(bench)
            assert not bench.thread_commit._thread.is_alive(), "the test has not closed it"

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), 2 * WAIT_SECONDS))

    return run_with


def test_nothing_is_answered_before_its_sync(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.hold()
        bench.append(1, 2, 3)
        await bench.until(bench.disk.held.is_set)
        await bench.turns()
        assert bench.answers == []
        assert bench.commit.pending_bytes > 0
        bench.disk.go_on.set()
        await bench.until(lambda: bench.answers)
        assert bench.answers == [([1, 2, 3], None)]
        assert bench.commit.pending_bytes == 0
        assert await bench.finish() == [1, 2, 3]

    run(test)


def test_what_arrives_during_a_commit_goes_out_as_one_group(run: Run) -> None:
    async def test(bench: Bench) -> None:
        await bench.until(lambda: bench.disk.count("rename") == 2)  # the next segment is made, and no other writes
        bench.disk.hold()
        bench.append(0)
        await bench.until(bench.disk.held.is_set)
        for number in range(1, 50):
            bench.append(number)
            await asyncio.sleep(0)
        writes = bench.disk.count("write")
        bench.disk.go_on.set()
        await bench.until(lambda: len(bench.answered()) == 50)
        assert bench.answers == [([0], None), (list(range(1, 50)), None)]
        assert bench.disk.count("write") == writes + 1
        assert await bench.finish() == list(range(50))

    run(test)


def test_what_arrives_until_the_turn_after_a_commit_joins_the_next_group(run: Run) -> None:
    async def test(bench: Bench) -> None:
        committed = bench._committed

        def and_send_again(waiters: list[Any], error: OSError | None) -> None:
            committed(waiters, error)
            if waiters == [0]:  # in the turn of the loop that answers, before its sockets are read
                bench.append(2)

        bench.thread_commit._on_committed = and_send_again
        bench.disk.hold()
        bench.append(0)
        await bench.until(bench.disk.held.is_set)
        bench.append(1)
        bench.disk.go_on.set()
        await bench.until(lambda: len(bench.answered()) == 3)
        assert bench.answers == [([0], None), ([1, 2], None)]
        assert await bench.finish() == [0, 1, 2]

    run(test)


NEVER = 3600.0


def test_a_group_waits_for_as_many_entries_as_were_answered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "COMMIT_SECONDS", NEVER)

    async def test(bench: Bench) -> None:
        bench.append(0, 1, 2)
        await bench.until(lambda: bench.answers)
        bench.append(3, 4)
        await bench.turns()
        assert bench.answered() == [0, 1, 2]
        bench.append(5)
        bench.append(6)  # in the same turn
        await bench.until(lambda: len(bench.answers) == 2)
        assert bench.answers == [([0, 1, 2], None), ([3, 4, 5, 6], None)]
        assert await bench.finish() == list(range(7))

    run(test)


def test_what_came_during_a_commit_is_expected_on_top(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "COMMIT_SECONDS", NEVER)

    async def test(bench: Bench) -> None:
        bench.disk.hold()
        bench.append(0)
        await bench.until(bench.disk.held.is_set)
        bench.append(1, 2)
        bench.disk.go_on.set()
        await bench.until(lambda: bench.answers)
        await bench.turns()
        assert bench.answers == [([0], None)]
        bench.append(3)
        await bench.until(lambda: len(bench.answers) == 2)
        assert bench.answers == [([0], None), ([1, 2, 3], None)]
        assert await bench.finish() == [0, 1, 2, 3]

    run(test)


def test_a_client_alone_never_waits_for_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "COMMIT_SECONDS", NEVER)

    async def test(bench: Bench) -> None:
        for number in range(20):
            bench.append(number)
            await bench.until(lambda: len(bench.answers) == number + 1)  # noqa: B023
        assert bench.answers == [([number], None) for number in range(20)]
        assert await bench.finish() == list(range(20))

    run(test)


def test_a_group_goes_without_entries_that_do_not_come(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(0, 1, 2)
        await bench.until(lambda: bench.answers)
        for number in (3, 4):  # the second one is alone again, and waits for nobody
            bench.append(number)
            await bench.until(lambda: len(bench.answered()) == number + 1)  # noqa: B023
        assert bench.answers == [([0, 1, 2], None), ([3], None), ([4], None)]
        assert await bench.finish() == [0, 1, 2, 3, 4]

    run(test)


def test_draining_does_not_wait_for_expected_entries(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "COMMIT_SECONDS", NEVER)

    async def test(bench: Bench) -> None:
        bench.append(0, 1, 2)
        await bench.until(lambda: bench.answers)
        bench.append(3)
        await bench.turns()
        assert bench.answered() == [0, 1, 2]
        assert await bench.finish() == [0, 1, 2, 3]
        assert bench.answered() == [0, 1, 2, 3]

    run(test)


def test_large_groups_go_out_and_are_answered_one_after_the_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "GROUP_BYTES", 3000)

    async def test(bench: Bench) -> None:
        bench.disk.hold()
        bench.append(0)
        await bench.until(bench.disk.held.is_set)
        bench.append(*range(1, 9), size=1000)
        bench.disk.go_on.set()
        await bench.until(lambda: len(bench.answered()) == 9)
        assert bench.answers == [([0], None), ([1, 2, 3], None), ([4, 5, 6], None), ([7, 8], None)]
        assert bench.commit.pending_bytes == 0
        assert await bench.finish() == list(range(9))

    run(test)


def test_a_large_group_that_fails_takes_no_other_along(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "GROUP_BYTES", 3000)

    async def test(bench: Bench) -> None:
        await bench.until(lambda: not bench.writer._pipeline._ready.empty())  # only commits sync from here on
        bench.disk.hold()
        bench.append(0)
        await bench.until(bench.disk.held.is_set)
        bench.append(*range(1, 9), size=1000)
        failed: list[str] = []

        def fail_once(operation: str, path: str) -> None:
            if operation == "write" and threading.current_thread().name == "group commit" and not failed:
                failed.append(path)
                raise OSError(errno.EIO, "bad block")

        bench.disk.fault = fail_once
        bench.disk.go_on.set()
        await bench.until(lambda: len(bench.answers) == 4)
        assert bench.answers == [([0], None), ([1, 2, 3], errno.EIO), ([4, 5, 6], None), ([7, 8], None)]
        assert await bench.finish() == [0, 4, 5, 6, 7, 8]

    run(test)


def test_answers_come_in_the_order_of_the_entries(run: Run) -> None:
    async def test(bench: Bench) -> None:
        for number in range(500):
            bench.append(number, size=number % 7 * 1000)
            if number % 3 == 0:
                await asyncio.sleep(0)
        assert await bench.finish() == list(range(500))
        assert bench.answered() == list(range(500))

    run(test, max_size_bytes=100_000)


def test_a_failure_fails_exactly_its_group(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1, 2)
        await bench.until(lambda: len(bench.answers) == 1)
        with bench.disk.failing("write", error=errno.ENOSPC):
            bench.append(3, 4)
            await bench.until(lambda: len(bench.answers) == 2)
        bench.append(5, 6)
        await bench.until(lambda: len(bench.answers) == 3)
        assert bench.answers == [([1, 2], None), ([3, 4], errno.ENOSPC), ([5, 6], None)]
        assert await bench.finish() == [1, 2, 5, 6]

    run(test)


def test_a_failed_sync_is_not_acknowledged_and_not_shipped(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1)
        await bench.until(lambda: len(bench.answers) == 1)
        bench.disk.hold()
        bench.append(2)
        await bench.until(bench.disk.held.is_set)
        bench.append(3)  # collected while the sync that fails is running
        with bench.disk.failing("fdatasync"):
            bench.disk.go_on.set()
            await bench.until(lambda: len(bench.answers) == 3)
        bench.append(4)
        await bench.until(lambda: len(bench.answers) == 4)
        assert [error for _, error in bench.answers] == [None, errno.EIO, errno.EIO, None]
        assert await bench.finish() == [1, 4]

    run(test)


def test_draining_waits_for_everything_that_was_appended(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.hold()
        bench.append(1)
        await bench.until(bench.disk.held.is_set)
        bench.append(2)
        draining = asyncio.ensure_future(bench.commit.drain())
        await bench.turns()
        assert not draining.done()
        bench.append(3)
        bench.disk.go_on.set()
        await draining
        assert bench.answered() == [1, 2, 3]
        await bench.commit.drain()
        assert await bench.finish() == [1, 2, 3]

    run(test)


def test_draining_takes_along_what_was_appended_in_the_same_turn(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1)
        assert await bench.finish() == [1]
        assert bench.answered() == [1]

    run(test)


def test_an_idle_writer_still_completes_its_segment(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1)
        await bench.until(lambda: contents(bench.directory) == [1])
        assert bench.writer.stats.rotations == 1
        assert await bench.finish() == [1]

    run(test, flush_max_age_seconds=0.05)


@pytest.mark.parametrize("where", ["commit", "tick"])
def test_a_bug_in_the_commit_thread_is_reported_and_answers_nothing(run: Run, where: str) -> None:
    async def test(bench: Bench) -> None:
        def bug(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        setattr(bench.writer, where, bug)
        bench.append(1)
        await bench.until(lambda: bench.crashes)
        assert isinstance(bench.crashes[0], ZeroDivisionError)
        assert bench.answered() == ([] if where == "commit" else [1])
        bench.commit.close()

    run(test)


def test_a_bug_in_making_segments_reaches_the_same_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        await bench.until(lambda: not bench.writer._pipeline._ready.empty())

        def bug(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(Segment, "make", bug)
        for number in range(4):
            bench.append(number, size=900)
            await asyncio.sleep(0.01)
        await bench.until(lambda: bench.crashes)
        assert isinstance(bench.crashes[0], ZeroDivisionError)
        bench.commit.close()

    run(test, max_size_bytes=2000)


# The async mode


def test_async_answers_before_any_sync(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.disk.hold()
        bench.append(1, 2)
        await bench.until(lambda: bench.answered() == [1, 2])
        bench.append(3)
        await bench.until(lambda: bench.answered() == [1, 2, 3])
        bench.disk.go_on.set()
        assert await bench.finish() == [1, 2, 3]

    run(test, sync_mode="async", async_interval_seconds=30.0)


def test_async_holds_answers_back_while_a_sync_takes_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a power cut never takes more than what was answered within one interval."""
    clock = Clock()
    monkeypatch.setattr(background_sync_module, "time", clock)

    async def test(bench: Bench) -> None:
        await bench.until(lambda: not bench.writer._pipeline._ready.empty())
        background = bench.writer._background
        assert background is not None
        lock = WatchedLock()
        background._syncing = lock  # type: ignore[assignment]
        bench.disk.hold()
        bench.append(0)
        await bench.until(lambda: bench.answered() == [0])
        syncing = threading.Thread(target=background.sync_now)
        syncing.start()
        await bench.until(bench.disk.held.is_set)
        clock.pass_seconds(3599)
        bench.append(1)
        await bench.until(lambda: bench.answered() == [0, 1])
        clock.pass_seconds(2)
        bench.append(2)
        await bench.until(lock.somebody_waits.is_set)  # the commit, before its answer
        assert bench.answered() == [0, 1]
        bench.disk.go_on.set()
        await bench.until(lambda: bench.answered() == [0, 1, 2])
        syncing.join()
        assert await bench.finish() == [0, 1, 2]

    run(test, sync_mode="async", async_interval_seconds=3600.0)


def test_async_a_failed_background_sync_refuses_nothing_and_loses_nothing(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1, 2)
        await bench.until(lambda: bench.answered() == [1, 2])
        background = bench.writer._background
        assert background is not None
        with bench.disk.failing("fdatasync"):
            background.sync_now()
        bench.append(3)
        assert await bench.finish() == [1, 2, 3]
        assert bench.answered() == [1, 2, 3]

    run(test, sync_mode="async", async_interval_seconds=3600.0)


# With the WAL disabled


def off(**options: Any) -> dict[str, Any]:
    mode: SyncMode = "off"
    return {"sync_mode": mode, **options}


def test_disabled_answers_from_memory_and_writes_when_old(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1, 2)
        await bench.until(lambda: bench.answered() == [1, 2])
        assert contents(bench.directory, ACTIVE) == []
        bench.append(3)
        await bench.until(lambda: contents(bench.directory, ACTIVE) + contents(bench.directory) == [1, 2, 3])
        assert bench.answered() == [1, 2, 3]
        await bench.until(lambda: bench.commit.pending_bytes == 0)
        assert await bench.finish() == [1, 2, 3]
        assert bench.disk.count("fdatasync") == bench.disk.count("fsync") == 0

    run(test, **off(flush_max_age_seconds=0.4))


def test_disabled_writes_what_became_full_during_a_write_right_behind_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcpipe.wal.group_commit.TICK_SECONDS", 3600.0)  # no timer does it

    async def test(bench: Bench) -> None:
        for number in range(30):
            bench.append(number, size=300_000)
            if number % 15 == 14:
                await asyncio.sleep(0)
        await bench.until(lambda: len(contents(bench.directory, ACTIVE)) == 30)
        assert await bench.finish() == list(range(30))

    run(test, **off(flush_max_age_seconds=7200.0))


def test_disabled_writes_when_the_buffer_is_full(run: Run) -> None:
    async def test(bench: Bench) -> None:
        for number in range(30):
            bench.append(number, size=300_000)
            await asyncio.sleep(0)
        await bench.until(lambda: len(contents(bench.directory, ACTIVE)) >= 13)
        assert bench.answered() == list(range(30))
        assert await bench.finish() == list(range(30))

    run(test, **off(flush_max_age_seconds=3600))


def test_disabled_draining_writes_what_is_buffered(run: Run) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1)
        await bench.until(lambda: bench.answered() == [1])
        bench.append(2)
        assert await bench.finish() == [1, 2]
        assert sorted(bench.answered()) == [1, 2]

    run(test, **off(flush_max_age_seconds=3600))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again without the usual pause."""
    monkeypatch.setattr(group_commit_module, "BUFFER_RETRY_SECONDS", 0.01)


@pytest.mark.usefixtures("at_once")
def test_disabled_a_failed_write_is_repeated_in_order(run: Run) -> None:
    """With the WAL disabled, a failed write is tried until it succeeds, in the same order."""

    async def test(bench: Bench) -> None:
        with bench.disk.failing("write"):
            bench.append(1, 2)
            await bench.until(lambda: bench.writer.stats.failures >= 3)
            bench.append(3)
            await bench.until(lambda: bench.answered() == [1, 2, 3])
            failures = bench.writer.stats.failures
            await bench.until(lambda: bench.writer.stats.failures > failures)
        await bench.until(lambda: contents(bench.directory, ACTIVE) + contents(bench.directory) == [1, 2, 3])
        bench.append(4)
        assert await bench.finish() == [1, 2, 3, 4]
        assert bench.writer.stats.lost_records == 0

    run(test, **off(flush_max_age_seconds=0.02))


@pytest.mark.usefixtures("at_once")
def test_disabled_more_than_the_limit_is_refused_while_writes_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit_module, "BUFFER_LIMIT_BYTES", 10_000)

    async def test(bench: Bench) -> None:
        with bench.disk.failing("write", "create", error=errno.ENOSPC):
            bench.append(0)
            await bench.until(lambda: bench.writer.stats.failures)
            await bench.until(lambda: bench.commit.pending_bytes == 0)  # nobody is kept from being read and refused
            for number in range(1, 8):
                bench.append(number, size=3000)
            await bench.until(lambda: sum(len(waiters) for waiters, _ in bench.answers) == 8)
            assert bench.answered() == [0, 1, 2, 3, 4]
            refused = [(waiters, error) for waiters, error in bench.answers if error is not None]
            assert refused == [([5, 6, 7], errno.ENOSPC)]
            outcomes = [error for waiters, error in bench.answers if waiters]
            assert outcomes == [None, errno.ENOSPC, None], "the refused ones of a turn are told first"
        await bench.until(lambda: len(contents(bench.directory, ACTIVE) + contents(bench.directory)) >= 5)
        bench.append(9)
        await bench.until(lambda: 9 in bench.answered())
        assert await bench.finish() == [0, 1, 2, 3, 4, 9]

    run(test, **off(flush_max_age_seconds=0.02))


def test_disabled_what_cannot_be_written_at_the_end_is_counted_and_told(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(bench: Bench) -> None:
        bench.append(1, 2)
        await bench.until(lambda: bench.answered() == [1, 2])
        with bench.disk.failing("write"):
            bench.append(3)
            await bench.finish()
        assert sorted(bench.answered()) == [1, 2, 3]
        assert bench.writer.stats.lost_records == 3
        assert "lost 3 acknowledged records: [Errno 5] Input/output error" in caplog.text

    run(test, **off(flush_max_age_seconds=3600))


def test_disabled_one_failed_write_at_the_end_loses_nothing(run: Run) -> None:
    async def test(bench: Bench) -> None:
        refuse_once = iter([OSError(errno.EIO, "bad block")])

        def fault(operation: str, path: str) -> None:
            in_commit = operation == "write" and threading.current_thread().name == "group commit"
            if in_commit and (error := next(refuse_once, None)) is not None:
                raise error

        bench.append(1)
        bench.disk.fault = fault
        assert await bench.finish() == [1]
        assert bench.writer.stats.failures == 1

    run(test, **off(flush_max_age_seconds=3600))


class Waiter:
    """Whoever waits for an answer."""


@pytest.mark.parametrize("mode", ["fdatasync", "async", "off"])
def test_nothing_of_a_group_is_kept_longer_than_needed(run: Run, mode: SyncMode) -> None:
    """Who waited until it was answered, the bodies until they are on disk."""

    async def test(bench: Bench) -> None:
        waiters: list[weakref.ref[Waiter]] = []
        bodies: list[weakref.ref[memoryview]] = []
        answered = 0

        def committed(done: list[Any], error: OSError | None) -> None:
            nonlocal answered
            answered += len(done)

        bench.thread_commit._on_committed = committed
        for number in range(30):
            waiter, content = Waiter(), memoryview(body(number, 10_000))
            waiters.append(weakref.ref(waiter))
            bodies.append(weakref.ref(content))
            bench.commit.append(PREFIX, content, 1, waiter)
            del waiter, content
            await asyncio.sleep(0)
        await bench.until(lambda: answered == 30)
        await bench.until(lambda: not any(waiter() for waiter in waiters))
        if mode != "fdatasync":
            assert all(content() is not None for content in bodies), "these are not on disk yet"
        if bench.writer._background is not None:
            bench.writer._background.sync_now()
        await bench.commit.drain()
        bench.append(99)  # the thread and the loop forget a group with the next one
        await bench.commit.drain()
        if bench.writer._background is not None:
            bench.writer._background.sync_now()
        await bench.until(lambda: not any(content() for content in bodies))
        assert len(await bench.finish()) == 31

    run(test, sync_mode=mode, async_interval_seconds=7200.0, flush_max_age_seconds=7200.0)
