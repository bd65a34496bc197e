"""The real uploader in this process, on a small WAL directory, with a store in memory: for what comes of its files."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.config.load import load
from arcpipe.config.settings import Settings
from arcpipe.counters import Counters, Uploader
from arcpipe.disk import Disk
from arcpipe.errors import NotAWAL
from arcpipe.storage import Blob, Listed, ObjectStore
from arcpipe.upload.uploader import BatchUploader
from arcpipe.wal.directory import SEALED, NodeIdentity, WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.reader import SegmentScan
from arcpipe.wal.writer import Group, WALOptions, WALWriter

NODE = "0123456789ab"
NEW_YEAR = 1_767_225_600  # 2026-01-01T00:00:00Z
_MOST_SLEEPS = 20


class Stuck(Exception):
    """The uploader tries something again and again."""


class MemoryStore:
    """An ObjectStore that is a dict."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self.url = "memory://"
        self.objects_at_once = 1
        self.aborted: list[str] = []
        self.listed: list[str] = []
        self.before_put: Callable[[str], None] = lambda key: None
        self.may_put: Callable[[], bool] = lambda: True

    async def put(self, key: str, blob: Blob) -> None:
        while not self.may_put():  # noqa: ASYNC110 (a file of the uploader is looked at)
            await asyncio.sleep(0.005)
        self.before_put(key)
        self.objects[key] = bytes(blob.read_at(0, blob.size))

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        for key, blob in objects:
            await self.put(key, blob)

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def exists(self, key: str) -> bool:
        return key in self.objects

    async def abort_uploads(self, key: str) -> int:
        self.aborted.append(key)
        return 0

    async def list_keys(self, prefix: str) -> list[str]:
        self.listed.append(prefix)
        return sorted(key for key in self.objects if key.startswith(prefix))

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        for key in await self.list_keys(prefix):
            if key > after:
                yield [Listed(key, len(self.objects[key]), 0.0)]

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Outcome(NamedTuple):
    """The work of an uploader: its counters, and the seconds that it wanted to wait."""

    block: memoryview
    sleeps: list[float]


def ids_in(store: MemoryStore) -> Counter[int]:
    """How often each id is in the store."""
    found: Counter[int] = Counter()
    for key, content in store.objects.items():
        if key.endswith(".parquet"):
            found.update(pq.ParquetFile(pa.BufferReader(content)).read(["id"], use_threads=False)["id"].to_pylist())
        else:
            found.update(msgspec.msgpack.decode(content)[3]["columns"]["id"])
    return found


def ids_left(wal: Path) -> set[int]:
    """The ids in sealed segments that are still there."""
    found: set[int] = set()
    for path in wal.glob("**/*.wal.sealed"):
        try:
            for entry in SegmentScan(path):
                found.update(msgspec.msgpack.decode(entry.payload)[3]["columns"]["id"])
        except NotAWAL:
            continue
    return found


def fill(
    wal: Path, slot: int, ids: Iterable[int], *, rows: int = 4, measurements: int = 2, database: str = "db"
) -> None:
    """One sealed segment of a slot, with entries of some measurements and two hours."""
    writer = WALWriter(str(wal), slot, WALOptions())
    ids = list(ids)
    for number, start in enumerate(range(0, len(ids), rows)):
        group = Group()
        mine = ids[start : start + rows]
        columns = {"time": [NEW_YEAR + number // 2 % 2 * 3600 + at for at in range(len(mine))], "id": mine}
        body = msgspec.msgpack.encode({"m": f"m{number % measurements}", "columns": columns})
        group.add(envelope_prefix(KIND_COLUMNAR, database), body, len(mine), writer.next_timestamp())
        writer.commit(group)
    writer.close()


def settings_of(wal: Path, **more: object) -> Settings:
    values = {
        "wal_dir": wal,
        "wal_free_segments": 2,
        "storage_url": f"file://{wal}-lake",
        "uploader_interval_seconds": 0,  # where the cadence is not the subject, nothing waits for its turn
        **more,
    }
    return load(None, {f"ARCPIPE_{name.upper()}": str(value) for name, value in values.items()})


def run(
    wal: Path, store: ObjectStore, *, disk: Disk | None = None, boot: int = 1, batches: int = 99, **settings: object
) -> Outcome:
    """Upload until nothing is left that can be. Raises Stuck."""
    directory = WALDirectory(wal, disk)
    directory.make()
    counters = Counters(1)
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) > _MOST_SLEEPS:
            raise Stuck
        await asyncio.sleep(0)

    async def work() -> None:
        uploader = BatchUploader(
            settings_of(wal, **settings), directory, counters, NodeIdentity(NODE, boot), store, sleep
        )
        for _ in range(batches):
            if not await uploader.work_once():
                return

    asyncio.run(work())
    return Outcome(counters.uploader, sleeps)


def sealed(wal: Path) -> list[str]:
    return [file.filename for file in WALDirectory(wal).segments(SEALED)]


class State(NamedTuple):
    """A moment in the life of a batch: the WAL directory and the store."""

    wal: Path
    objects: dict[str, bytes]


class SnapshotDisk(Disk):
    """Keeps the state after each operation that changes a name or is synced."""

    def __init__(self, wal: Path, folder: Path, store: MemoryStore) -> None:
        self._wal = wal
        self._folder = folder
        self._store = store
        self.states: list[State] = []
        self._lock = threading.RLock()

    def keep(self) -> None:
        with self._lock:
            target = self._folder / f"state-{len(self.states)}"
            shutil.copytree(self._wal, target)
            self.states.append(State(target, dict(self._store.objects)))

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            super().rename(source, target)
            self.keep()

    def unlink(self, path: str) -> None:
        with self._lock:
            super().unlink(path)
            self.keep()

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            super().fdatasync(fd)
            self.keep()


def stopped(counters: memoryview) -> tuple[int, int, int, int]:
    """Return the gauges and the counter of losses: lost, unreadable, damaged manifests, stopped."""
    return (
        counters[Uploader.LOST_SEGMENTS],
        counters[Uploader.UNREADABLE_SEGMENTS],
        counters[Uploader.DAMAGED_MANIFESTS],
        counters[Uploader.STOPPED],
    )
