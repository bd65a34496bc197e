"""While a batch is being uploaded, the next one is converted: in their order, whatever fails in between."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe import durable
from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.counters import RETRY_KINDS, Counters, Uploader
from arcpipe.disk import Disk
from arcpipe.storage import Blob
from arcpipe.units import KB
from arcpipe.upload.batch import Batch
from arcpipe.upload.shipment import Shipment
from arcpipe.upload.uploader import BatchUploader
from arcpipe.wal.directory import SEALED, NodeIdentity, WALDirectory
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.support.directories import batch_files
from tests.support.uploader import NEW_YEAR, NODE, MemoryStore, ids_in, settings_of

# Values of one column in three batches: the first decides its type, the others need siblings.
VALUES: tuple[Sequence[object], ...] = ([1, 2, 3], [0.5, 1.5, 2.5], ["a", "b", "c"])


class HeldStore(MemoryStore):
    """A store that does not answer puts of some batches, by number."""

    def __init__(self, held: set[int] | None = None) -> None:
        super().__init__()
        self.held = held or set()
        self.begun: list[int] = []
        self.puts: dict[str, set[bytes]] = {}  # all contents that a key ever had

    async def put(self, key: str, blob: Blob) -> None:
        number = number_of(key)
        self.begun.append(number)
        while number in self.held:  # noqa: ASYNC110 (as a store that is looked at)
            await asyncio.sleep(0.005)
        await super().put(key, blob)
        self.puts.setdefault(key, set()).add(self.objects[key])


def number_of(key: str) -> int:
    found = re.search(r"-\d+\.(\d+)-[0-9a-f]{8}", key)
    assert found is not None
    return int(found[1])


def segment(wal: Path, ids: list[int], values: Sequence[object]) -> None:
    """Add a sealed segment that is a batch of its own, as `uploader.batch_mb` is 1."""
    writer = WALWriter(str(wal), 1, WALOptions())
    group = Group()
    columns = {"time": [NEW_YEAR] * len(ids), "id": ids, "value": list(values)}
    body = msgspec.msgpack.encode({"m": "m", "columns": columns})
    group.add(envelope_prefix(KIND_COLUMNAR, "db"), body, len(ids), writer.next_timestamp())
    writer.commit(group)
    path = writer.segment.path
    writer.close()
    os.truncate(f"{path}.sealed", 700 * KB)  # as a full one, which keeps its blocks


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    directory = tmp_path / "wal"
    for number, values in enumerate(VALUES):
        segment(directory, list(range(3 * number, 3 * number + 3)), values)
    return directory


class Run:
    """An uploader that drains, and so takes one batch after the other."""

    def __init__(self, wal: Path, store: MemoryStore, boot: int = 1) -> None:
        self.wal = wal
        self.counters = Counters(1)
        directory = WALDirectory(wal)
        directory.make()

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(0.002)

        self.uploader = BatchUploader(
            settings_of(wal, uploader_batch_mb=1), directory, self.counters, NodeIdentity(NODE, boot), store, sleep
        )
        self.uploader.drain()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 (threads and files change it)
                await asyncio.sleep(0.005)

    def work(self, meanwhile: Callable[[], Awaitable[None]] | None = None) -> int:
        """Upload everything; the number of batches."""

        async def run() -> None:
            task = asyncio.get_running_loop().create_task(self.uploader.serve())
            if meanwhile is not None:
                await meanwhile()
            assert await task == 0

        asyncio.run(run())
        assert not WALDirectory(self.wal).segments(SEALED)
        assert batch_files(self.wal) == []
        return self.counters.uploader[Uploader.BATCHES]


def assert_right(store: MemoryStore) -> None:
    """Check that each row is there once, in the columns that the batches' order gives."""
    assert ids_in(store) == dict.fromkeys(range(9), 1)
    columns = {}
    for content in store.objects.values():
        table = pq.read_table(pa.BufferReader(content))
        columns[table.column("id")[0].as_py() // 3] = set(table.column_names) - {"time", "id"}
    assert columns == {0: {"value"}, 1: {"value", "value_f64"}, 2: {"value", "value_str"}}


def test_next_batch_is_converted_and_put_meanwhile(wal: Path) -> None:
    """One batch, not more: the third begins when the first has ended. None is marked before the one before it."""
    store = HeldStore({1})
    run = Run(wal, store)

    async def meanwhile() -> None:
        await run.until(lambda: 2 in map(number_of, store.objects))
        assert set(store.begun) == {1, 2}
        kinds = [name.partition(".")[2].partition(".")[2] for name in batch_files(wal)]
        assert kinds == ["journal", "json"] * 2  # none is uploaded
        store.held.clear()

    assert run.work(meanwhile) == 3
    assert_right(store)
    assert all(len(contents) == 1 for contents in store.puts.values())


def test_one_batch_after_the_other_makes_the_same_columns(wal: Path) -> None:
    store = HeldStore()
    run = Run(wal, store)

    async def one_by_one() -> None:
        while await run.uploader.work_once():
            pass

    asyncio.run(one_by_one())
    assert store.begun == [1, 2, 3]
    assert_right(store)


@pytest.mark.parametrize("held", [{1}, {1, 2}, {2}])
def test_crash_in_between_is_finished_with_the_same_objects(wal: Path, held: set[int]) -> None:
    store = HeldStore(held)
    run = Run(wal, store)

    async def crash() -> None:
        task = asyncio.get_running_loop().create_task(run.uploader.serve())
        await run.until(lambda: 2 in store.begun)
        task.cancel()
        store.held.clear()  # a thread of the conversion may wait for room
        await asyncio.wait([task])

    asyncio.run(crash())
    store.held.clear()
    before = set(store.objects)
    Run(wal, store, boot=2).work()
    assert before <= store.objects.keys()
    assert_right(store)
    assert all(len(contents) == 1 for contents in store.puts.values()), "the same bytes under the same keys"


def test_batch_that_fails_takes_the_next_one_back(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the next one was converted with may not come to be: it is converted again, after this one."""
    store = HeldStore({1})
    finish = Shipment.finish
    failed: list[str] = []

    async def fail_once(shipment: Shipment) -> None:
        batch: Batch = shipment._batch
        if number_of(batch.batch_id) == 1 and not failed:
            await run.until(lambda: 2 in map(number_of, store.objects))
            failed.append(batch.batch_id)
            store.held.clear()
            await shipment.close()
            raise RuntimeError("a bug")
        await finish(shipment)

    monkeypatch.setattr(Shipment, "finish", fail_once)
    run = Run(wal, store)
    assert run.work() == 3
    assert failed
    assert store.begun.count(2) == 2
    assert_right(store)
    assert all(len(contents) == 1 for contents in store.puts.values())


def test_batch_that_cannot_be_converted_ahead_is_tried_in_its_turn(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HeldStore({1})
    convert = Shipment.convert
    failed: list[str] = []

    async def fail_once(shipment: Shipment) -> None:
        batch: Batch = shipment._batch
        if number_of(batch.batch_id) == 2 and not failed:
            failed.append(batch.batch_id)
            store.held.clear()
            raise OSError(errno.ENOSPC, "no space for a spool")
        await convert(shipment)

    monkeypatch.setattr(Shipment, "convert", fail_once)
    run = Run(wal, store)
    assert run.work() == 3
    assert failed
    assert run.counters.uploader[Uploader.RETRIES + RETRY_KINDS.index("disk")] == 1, "it is counted"
    assert_right(store)


def test_full_disk_leaves_the_spare_files_to_the_batch_before(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the end of the first batch makes space: the next one must not take what that needs."""
    store = HeldStore({1})
    run = Run(wal, store)
    real = durable.replace
    refused: list[str] = []

    def replace(disk: Disk, path: str, data: bytes) -> None:
        if 1 in store.held and store.begun:
            refused.append(path)
            raise OSError(errno.ENOSPC, "no space left", path)
        real(disk, path, data)

    monkeypatch.setattr(durable, "replace", replace)

    async def meanwhile() -> None:
        await run.until(lambda: len(refused) >= 1)
        assert (wal / "batches" / "spare-1").exists()
        assert (wal / "batches" / "spare-2").exists()
        store.held.clear()

    assert run.work(meanwhile) == 3
    assert_right(store)
