"""Hands on the real program: the event loop that a test turns, the thread that works in turns, the uploader that
gives up after some tries, the store that is outside of the disk. What is driven is arcpipe's own.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from arcpipe import config
from arcpipe.counters import Counters
from arcpipe.counters import Uploader as UploaderBlock
from arcpipe.errors import StorageError
from arcpipe.ingest.write import write_failure
from arcpipe.storage import Blob
from arcpipe.storage.base import require_key
from arcpipe.upload.retry import Retry
from arcpipe.upload.uploader import BatchUploader
from arcpipe.wal.directory import Node, WALDirectory
from arcpipe.wal.format import KIND_COLUMNAR, envelope_prefix
from arcpipe.wal.group_commit import group_commit
from arcpipe.wal.pipeline import Pipeline
from arcpipe.wal.segment import Segment
from arcpipe.wal.writer import WALOptions, WALWriter
from tests.crash.entries import make_body

_PATIENCE_SECONDS = 60.0  # nothing here waits for long, unless it hangs


class Clock:
    """Stands in for the module `time`: moves a little with each look, and as the test says."""

    def __init__(self) -> None:
        self.now_us = 1_760_000_000_000_000
        self.monotonic_us = 0
        self.perf_counter = time.perf_counter
        self.time = lambda: self.now_us / 1e6
        self.sleep = time.sleep

    def time_ns(self) -> int:
        self.now_us += 7
        return self.now_us * 1000

    def monotonic(self) -> float:
        self.monotonic_us += 7
        return self.monotonic_us / 1e6


# The thread that makes and seals segments


class Killed(BaseException):
    """Ends the thread of a worker that was killed, at its next operation."""


class Turn:
    """Lets a thread do one operation at a time."""

    current = threading.local()

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = False
        self._permits = 0.0
        self._killed = False
        self.jobs = 0  # given and not yet done

    def started(self) -> None:
        self.current.turn = self

    def done(self) -> None:
        with self._changed:
            self.jobs -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """In the thread: ahead of an operation."""
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._permits > 0 or self._killed)
            self._waiting = False
            if self._killed:
                raise Killed
            self._permits -= 1

    def step(self) -> None:
        """From outside: the thread does its next operation, if it has one, and stops ahead of the one after."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self.jobs)
            if self.jobs:
                self._permits = 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._permits and (self._waiting or not self.jobs))

    def open(self) -> None:
        with self._changed:
            self._permits = float("inf")
            self._changed.notify_all()

    def kill(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self.jobs)
            self._killed = True
            self._changed.notify_all()


class SteppedPipeline(Pipeline):
    """The real pipeline, whose thread waits for its turn ahead of each operation."""

    def __init__(self, make: Callable[[], Segment], seal: Callable[[Segment], None]) -> None:
        self.turn = Turn()
        self.turn.jobs = 1

        def in_turn(job: Callable[..., Any], again: bool) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                self.turn.started()
                try:
                    self.turn.wait()
                    result = job(*arguments)
                except OSError:
                    if not again:
                        self.turn.done()
                    raise
                except BaseException:
                    self.turn.done()
                    raise
                self.turn.done()
                return result

            return run

        super().__init__(in_turn(make, False), in_turn(seal, True))

    def _take_ready(self) -> Segment | BaseException:
        while self._ready.empty() and self.turn.jobs:
            self.turn.step()
        return super()._take_ready()

    def _next(self) -> Segment | BaseException:
        segment = self._take_ready()
        self.turn.jobs += 1  # only now: there is no other before it is asked for
        self._jobs.put("make")
        return segment

    def make_instead(self, make: Callable[[], Segment]) -> Segment:
        segment = super().make_instead(make)
        self.turn.jobs += 1
        return segment

    def complete(self, segment: Segment) -> None:
        self.turn.jobs += 1
        super().complete(segment)

    def close(self) -> None:
        self.turn.open()
        super().close()

    def kill(self) -> None:
        self.turn.kill()
        self._jobs.put("stop")


# The worker


class _Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._call()


class TurnedLoop:
    """The part of an event loop that a group commit asks for; it turns when `run` is called."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._timers: list[_Timer] = []

    def call_soon(self, call: Callable[..., None], *arguments: Any) -> None:
        self._calls.put((call, arguments))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> _Timer:
        self._timers.append(_Timer(lambda: call(*arguments)))
        return self._timers[-1]

    def run(self, is_waiting: Callable[[], bool] = lambda: False) -> None:
        """Turns until nothing is left to call and nothing is waited for."""
        while is_waiting() or not self._calls.empty():
            call, arguments = self._calls.get(timeout=_PATIENCE_SECONDS)
            call(*arguments)

    def fire_timers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            timer.fire()


class Worker:
    """One slot's writer under the real group commit. `on_answer(numbers, response)`: None acknowledges."""

    def __init__(
        self,
        directory: WALDirectory,
        slot: int,
        options: WALOptions,
        node: str,
        last_timestamp: int,
        on_answer: Callable[[list[int], bytes | None], None],
    ) -> None:
        """Raises OSError: the directory cannot be read."""
        self.writer = WALWriter(directory, slot, options, node=node, last_timestamp=last_timestamp, wait_for_disk=True)
        self._loop = TurnedLoop()
        self._prefix = envelope_prefix(KIND_COLUMNAR, "db")
        self._on_answer = on_answer
        self._unsynced: list[int] = []  # acknowledged, and not on the disk as far as we know: the `async` mode
        loop: Any = self._loop
        self._commit: Any = group_commit(self.writer, loop, self._committed, self._crashed)

    def send(self, entries: list[tuple[int, int]]) -> None:
        """Numbers and sizes of entries that arrive together; returns when they are answered."""
        for number, size in entries:
            self._commit.append(self._prefix, make_body(number, size), 1, number)
        self._loop.run(self._is_committing)

    def flush(self) -> None:
        """What waits in memory for its age is old enough now."""
        self._loop.fire_timers()
        self._loop.run(self._is_committing)

    def tick(self) -> None:
        self.writer.tick()

    def sync(self) -> None:
        """The background sync of the `async` mode is due."""
        if self.writer._background is not None:
            self.writer._background.sync_now()

    def take_synced(self) -> list[int]:
        """What was acknowledged in the `async` mode and is no longer kept in memory for the next sync."""
        background = self.writer._background
        kept = sum(group.entries for group in background.retained) if background is not None else 0
        count = len(self._unsynced) - kept
        synced, self._unsynced = self._unsynced[:count], self._unsynced[count:]
        return synced

    @property
    def offset(self) -> int:
        return self.writer.current.offset if self.writer.current is not None else 0

    @property
    def turn(self) -> Turn:
        pipeline = self.writer._pipeline
        assert isinstance(pipeline, SteppedPipeline)
        return pipeline.turn

    def close(self) -> None:
        for _ in range(4):  # as `drain`
            self.flush()
        self._commit.close()

    def kill(self) -> list[int]:
        """Ends it as SIGKILL ends its process: nothing more is done, nothing is closed. What only it had in memory."""
        pipeline = self.writer._pipeline
        assert isinstance(pipeline, SteppedPipeline)
        pipeline.kill()
        self._commit._thread._groups.put(None)
        background = self.writer._background
        if background is not None:
            background._stopped = True
            background._hurry.set()
            background._wake.set()
        return self._unsynced

    def _is_committing(self) -> bool:
        return bool(self._commit._committing)

    def _committed(self, waiters: list[int], error: OSError | None) -> None:
        if not waiters:
            return
        if error is None and self.writer._background is not None:
            self._unsynced += waiters
        self._on_answer(waiters, None if error is None else write_failure(error))

    def _crashed(self, error: BaseException) -> None:
        raise AssertionError("the commit thread ended") from error


# The store and the uploader


class StoreFault(NamedTuple):
    """Calls of the store that fail: `times` of them behind the first `skip`, before or after they took effect."""

    skip: int
    times: float
    after: bool


class MemoryStore:
    """The object store: no power cut and no fault of the disk reaches it. `on_put`/`on_delete` learn of each effect."""

    url = "memory://store"
    objects_at_once = 1

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self.on_put: Callable[[str, bytes], None] = lambda key, content: None
        self.on_delete: Callable[[str], None] = lambda key: None
        self.fault: StoreFault | None = None
        self._calls = 0

    async def put(self, key: str, blob: Blob) -> None:
        require_key(key)
        content = bytes(blob.read_at(0, blob.size))
        fails = self._fails(after=False)
        self.objects[key] = content
        self.on_put(key, content)
        self._fails(after=True, now=fails)

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        for key, blob in objects:
            await self.put(key, blob)

    async def delete(self, key: str) -> None:
        fails = self._fails(after=False)
        self.objects.pop(key, None)
        self.on_delete(key)
        self._fails(after=True, now=fails)

    async def exists(self, key: str) -> bool:
        self._fails(after=True, now=self._fails(after=False))
        return key in self.objects

    async def abort_uploads(self, key: str) -> int:
        return 0

    async def list_keys(self, prefix: str) -> list[str]:
        self._fails(after=True, now=self._fails(after=False))
        return sorted(key for key in self.objects if key.startswith(prefix))

    async def check(self) -> None:
        return

    async def close(self) -> None:
        return

    def _fails(self, after: bool, now: bool = False) -> bool:
        """Raises what fails before its effect; says what is to fail after it."""
        if after:
            if now:
                raise StorageError("the answer of the store was lost", "connection")
            return False
        self._calls += 1
        fault = self.fault
        if fault is None or not fault.skip < self._calls <= fault.skip + fault.times:
            return False
        if not fault.after:
            raise StorageError("the store cannot be reached", "connection")
        return True


class InlineLoop(asyncio.SelectorEventLoop):
    """Does at once what a thread would do: so the uploader's operations have one order, and no state waits for threads.

    `shipment_module.threading` has to be `Unbounded`, because nobody takes away what waits for its upload meanwhile.
    """

    def run_in_executor(self, executor: object, func: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        # The outcome comes after all that the work has handed to the loop, as that of a thread does.
        try:
            result = func(*arguments)
        except Exception as error:
            self.call_soon(future.set_exception, error)
        else:
            self.call_soon(future.set_result, result)
        return future


class Unbounded:
    """Stands in for the module `threading`: its semaphores never make anybody wait."""

    Lock = staticmethod(threading.Lock)

    @staticmethod
    def Semaphore(value: int) -> threading.Semaphore:
        return threading.Semaphore(1 << 20)


@functools.cache
def _the_loop() -> asyncio.AbstractEventLoop:
    """One for all uploaders of this process: to make one takes as long as to ship a small batch."""
    return InlineLoop()


class InlineExecutor:
    """Does at once what recovery has threads do."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class GaveUp(BaseException):
    """The uploader has tried as often as the test has patience for."""


class _TinyMegabytes(int):
    """A setting in MB that stands for so few bytes: segments of these tests are small and are to be written over."""

    size_bytes = 6144

    def __lshift__(self, bits: int) -> int:
        return self.size_bytes >> 20 - bits


SETTINGS = config.Settings(
    wal=config.WAL(max_size_mb=_TinyMegabytes(1), free_segments=3),
    uploader=config.Uploader(threads=1, concurrent_uploads=1),
    storage=config.Storage(url=MemoryStore.url),
    parquet=config.Parquet(compression="none"),
)


class Shipping:
    """The uploader's process: its work, its death and its successor."""

    patience = 6  # tries of one step until it counts as hung and is killed

    def __init__(self, directory: WALDirectory, store: MemoryStore, recycle: bool) -> None:
        self.node = Node("0123456789ab", 1)
        self.counters = Counters(1)
        self._directory = directory
        self._store = store
        self._settings = SETTINGS if recycle else _without_recycling(SETTINGS)
        self._uploader: BatchUploader | None = None
        self._tries = 0
        self.has_nothing_to_do = False

    def work(self) -> bool:
        """A batch, if there is one. False: there was none, or the uploader died of what it met."""
        self.has_nothing_to_do = False
        self._tries = 0
        try:
            if self._uploader is None:
                self._uploader = BatchUploader(
                    self._settings, self._directory, self.counters, self.node, self._store, self._wait
                )
            with mock.patch.object(Retry, "delay", return_value=0.0):
                worked = _the_loop().run_until_complete(self._uploader.work_once())
            self.has_nothing_to_do = not worked and not self._uploader._has_more
            return worked
        except (GaveUp, OSError, StorageError):
            self.die()
            return False

    def die(self) -> None:
        self._uploader = None

    @property
    def batches_done(self) -> int:
        return int(self.counters.uploader[UploaderBlock.BATCHES])

    @property
    def reported(self) -> list[str]:
        """What the counters say that is wrong: they are in /metrics and /health."""
        block = self.counters.uploader
        words = {
            "damages shipped around": block[UploaderBlock.DAMAGED],
            "unreadable segments": block[UploaderBlock.UNREADABLE_SEGMENTS],
            "damaged manifests": block[UploaderBlock.DAMAGED_MANIFESTS],
            "lost segments": block[UploaderBlock.LOST_SEGMENTS],
            "uploaders stopped by a manifest of another version": block[UploaderBlock.STOPPED],
        }
        return [f"{count} {what}" for what, count in words.items() if count]

    async def _wait(self, seconds: float) -> None:
        self._tries += 1
        if self._tries > self.patience:
            raise GaveUp


def _without_recycling(settings: config.Settings) -> config.Settings:
    return msgspec.structs.replace(settings, wal=msgspec.structs.replace(settings.wal, recycle=False))
