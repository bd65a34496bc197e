"""The uploader of the crash tests: arcpipe's own, in one thread and impatient, and a store outside of the disk."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from arcpipe.config import settings as config
from arcpipe.counters import Counters
from arcpipe.counters import Uploader as UploaderBlock
from arcpipe.errors import StorageError
from arcpipe.storage import Blob, Listed
from arcpipe.storage.base import require_key
from arcpipe.units import MB
from arcpipe.upload.retry import Retry
from arcpipe.upload.uploader import BatchUploader
from arcpipe.wal.directory import NodeIdentity, WALDirectory


class StoreFault(NamedTuple):
    """Calls of the store that fail: `times` of them after the first `skip`, before or after they took effect."""

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
        self.turns: Callable[[], int] = lambda: 0  # of the loop that a put takes: others go on meanwhile
        self.fault: StoreFault | None = None
        self._calls = 0

    async def put(self, key: str, blob: Blob) -> None:
        require_key(key)
        content = bytes(blob.read_at(0, blob.size))
        for _ in range(self.turns()):
            await asyncio.sleep(0)
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

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        yield [Listed(key, len(self.objects[key]), 0.0) for key in await self.list_keys(prefix) if key > after]

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

    `puts_module.threading` has to be `Unbounded`, because nobody takes away what waits for its upload meanwhile.
    """

    is_dying = False  # its process was killed: nothing is done any more

    def run_in_executor(self, executor: object, func: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        if self.is_dying:
            future.cancel()
            return future
        # Behind what the work itself has the loop do, as from a thread.
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
def _the_loop() -> InlineLoop:
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


class InlinePool:
    """Does at once what the conversion has threads do, one job after the other."""

    def __init__(self, threads: int, name: str, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._jobs: deque[Callable[[], None]] = deque()
        self._is_working = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        if self._is_working:  # by a job, which may hold a lock that the next one needs
            return
        self._is_working = True
        while self._jobs:
            try:
                self._jobs.popleft()()
            except BaseException as error:
                self._on_error(error)
        self._is_working = False


class _TinyMegabytes(int):
    """A setting in MB, each of 6144 bytes: segments of these tests are small, and are to be written over."""

    def __mul__(self, unit: int, /) -> int:
        return int(self) * 6144 * (unit // MB)


SETTINGS = config.Settings(
    wal=config.WAL(max_size_mb=_TinyMegabytes(1), free_segments=3),
    uploader=config.Uploader(threads=1, concurrent_uploads=1, interval_seconds=0),
    storage=config.Storage(url=MemoryStore.url),
    parquet=config.Parquet(compression="none"),
)


def _no_delay(*_: object) -> float:
    """Return 0 s. To make a mock of it takes a tenth of the time of a batch."""
    return 0.0


class Shipping:
    """The uploader's process: its work, its death and its successor."""

    patience = 6  # tries of one step until it counts as hung and is killed

    def __init__(self, directory: WALDirectory, store: MemoryStore, recycle: bool, ahead: int = 0) -> None:
        """Begin with no process.

        Args:
            ahead: segments of a batch, where the next one is converted while one is put; 0: all that wait, one by one.
        """
        self.node = NodeIdentity("0123456789ab", 1)
        self.counters = Counters(1)
        self._directory = directory
        self._store = store
        self._settings = SETTINGS if recycle else _without_recycling(SETTINGS)
        self._looks_ahead = ahead > 0
        if ahead:
            self._settings = _with_small_batches(self._settings, ahead)
        self._uploader: BatchUploader | None = None
        self._tries = 0
        self._work: asyncio.Task[bool]
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
                self._uploader._looks_ahead = self._looks_ahead
            with mock.patch.object(Retry, "delay", _no_delay):
                self._work = _the_loop().create_task(self._uploader.work_once())
                worked = _the_loop().run_until_complete(self._work)
            self.has_nothing_to_do = not worked and not self._uploader._has_more
            return worked
        except (asyncio.CancelledError, OSError, StorageError):
            self.die()
            return False

    def die(self) -> None:
        """A kill: what its tasks have not done is not done any more."""
        self._uploader = None
        loop = _the_loop()
        loop.is_dying = True
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
        loop.is_dying = False

    @property
    def batches_done(self) -> int:
        return int(self.counters.uploader[UploaderBlock.BATCHES])

    @property
    def reported(self) -> list[str]:
        """Name the faults that the counters tell: /metrics and /health show them."""
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
        if self._tries > self.patience:  # whichever of its tasks this is: all of it ends
            self._work.cancel()
            await asyncio.Event().wait()


def _with_small_batches(settings: config.Settings, segments: int) -> config.Settings:
    uploader = msgspec.structs.replace(settings.uploader, batch_mb=_TinyMegabytes(segments), concurrent_uploads=4)
    return msgspec.structs.replace(settings, uploader=uploader)


def _without_recycling(settings: config.Settings) -> config.Settings:
    return msgspec.structs.replace(settings, wal=msgspec.structs.replace(settings.wal, recycle=False))
