"""Uploads, redone batches, merges and crashes of two nodes, against a model of what a reader has to see."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import hypothesis.strategies as st
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from arcpipe.compaction.compactor import Compactor
from arcpipe.compaction.outputs import OutputBounds
from arcpipe.compaction.rewrite import RewriteBounds
from arcpipe.config.settings import WAL, Compaction, Parquet, Settings, Storage
from arcpipe.disk import Disk
from arcpipe.errors import MissingObject
from arcpipe.storage import Blob, Listed
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE, file_bytes, key_of, make_wal, table_of

Row = tuple[str | None, int, int]  # host, time, n
BOUNDS = RewriteBounds(sort_bytes=3_000, collected_bytes=1_000, outputs=OutputBounds(file_bytes=40_000))


class Crash(BaseException):
    """The process is gone."""


class Fuse:
    """Ends a process at its nth change of store or plan, before or after it."""

    def __init__(self, left: int | None, after: bool) -> None:
        self._left = left
        self._after = after
        self._dead = False

    def before(self) -> None:
        if self._dead or (self._left == 0 and not self._after):
            self._dead = True
            raise Crash

    def done(self) -> None:
        if self._left == 0 and self._after:
            self._dead = True
            raise Crash
        if self._left is not None:
            self._left -= 1


class Objects:
    """The objects of a bucket, with a clock."""

    def __init__(self) -> None:
        self.data: dict[str, tuple[bytes, float]] = {}
        self.now = HOUR_US / 1e6 + 100_000.0

    def put(self, key: str, data: bytes) -> None:
        self.data[key] = data, self.now


class MemoryStore:
    """A LakeStore in memory, of a process that may end at any operation."""

    url = "s3://bucket"
    objects_at_once = 1

    def __init__(self, objects: Objects, fuse: Fuse) -> None:
        self._objects = objects
        self._fuse = fuse

    async def put(self, key: str, blob: Blob) -> None:
        self._fuse.before()
        self._objects.put(key, bytes(blob.read_at(0, blob.size)))
        self._fuse.done()

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        raise NotImplementedError

    async def exists(self, key: str) -> bool:
        return key in self._objects.data

    async def abort_uploads(self, key: str) -> int:
        return 0

    async def delete(self, key: str) -> None:
        self._fuse.before()
        self._objects.data.pop(key, None)
        self._fuse.done()

    async def remove_empty(self, folder: str, modified_before: float) -> None:
        pass

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)

    async def move(self, source: str, target: str) -> None:
        self._fuse.before()
        if source not in self._objects.data:
            raise MissingObject(source)
        self._objects.put(target, self._objects.data[source][0])
        self._fuse.done()
        await self.delete(source)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        if key not in self._objects.data:
            raise MissingObject(key)
        return self._objects.data[key][0][offset : offset + length]

    async def list_keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self._objects.data if key.startswith(prefix))

    async def put_new(self, key: str, blob: Blob) -> bool:
        raise NotImplementedError

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        for key in await self.list_keys(prefix):
            data, modified = self._objects.data[key]
            yield [Listed(key, len(data), modified, str(hash(data)))]

    async def list_folders(self, folder: str) -> list[str]:
        names = {key.removeprefix(folder) for key in await self.list_keys(folder)}
        return sorted({name.partition("/")[0] for name in names if "/" in name})

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class MortalDisk(Disk):
    """The disk of the plan, of a process that may end at any operation."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def rename(self, source: str, target: str) -> None:
        self._fuse.before()
        super().rename(source, target)
        self._fuse.done()

    def unlink(self, path: str) -> None:
        if path.endswith(".tmp"):
            super().unlink(path)
            return
        self._fuse.before()
        super().unlink(path)
        self._fuse.done()


rows_of_a_file = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 6)), min_size=1, max_size=30)


class Machine(RuleBasedStateMachine):
    """Two nodes on one bucket. `shown` are the rows that a reader sees once no merge is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="compaction-model-"))
        self.objects = Objects()
        self.wals = {node: make_wal(self.directory / node, node) for node in (NODE, OTHER_NODE)}
        self.numbers = {NODE: 0, OTHER_NODE: 0}
        self.half_done: dict[str, list[tuple[str, bytes]]] = {NODE: [], OTHER_NODE: []}
        self.sent: dict[str, list[tuple[int, Row]]] = {NODE: [], OTHER_NODE: []}  # with the number of the batch
        self.n = 0
        self.dedup = False
        self.is_torn = {NODE: False, OTHER_NODE: False}

    @initialize(dedup=st.booleans())
    def choose(self, dedup: bool) -> None:
        self.dedup = dedup

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            shutil.rmtree(self.directory)

    def make(self, node: str, rows: list[tuple[str | None, int]]) -> tuple[str, bytes]:
        self.numbers[node] += 1
        number = self.numbers[node]
        content = []
        for host, time in rows:
            self.n += 1
            content.append({"time": time, "host": host, "n": self.n})
            self.sent[node].append((number, (host, time, self.n)))
        if all(row["host"] is None for row in content):
            for row in content:
                del row["host"]
        return key_of(number, node=node), file_bytes(table_of(content), self.directory)

    @rule(node=st.sampled_from([NODE, OTHER_NODE]), files=st.lists(rows_of_a_file, min_size=1, max_size=4))
    def upload(self, node: str, files: list[list[tuple[str | None, int]]]) -> None:
        for rows in files:
            self.objects.put(*self.make(node, rows))

    @rule(node=st.sampled_from([NODE, OTHER_NODE]), rows=rows_of_a_file)
    def begin_a_batch(self, node: str, rows: list[tuple[str | None, int]]) -> None:
        """Put its object, and crash before the batch is marked as uploaded."""
        key, data = self.make(node, rows)
        self.manifest(key, node).write_text("{}")
        self.objects.put(key, data)
        self.half_done[node].append((key, data))

    @rule(node=st.sampled_from([NODE, OTHER_NODE]))
    def redo_the_batch(self, node: str) -> None:
        for key, data in self.half_done[node]:
            self.objects.put(key, data)
            self.manifest(key, node).unlink()
        self.half_done[node] = []

    def manifest(self, key: str, node: str) -> Path:
        return self.wals[node] / "batches" / (key.rpartition("/")[2].split("_")[2] + ".json")

    @rule(node=st.sampled_from([NODE, OTHER_NODE]))
    def merge(self, node: str) -> None:
        self.objects.now += 1000
        self.run(node, Fuse(None, False))
        self.is_torn[node] = False

    @rule(node=st.sampled_from([NODE, OTHER_NODE]), left=st.integers(0, 14), after=st.booleans())
    def merge_and_crash(self, node: str, left: int, after: bool) -> None:
        self.objects.now += 1000
        try:
            self.run(node, Fuse(left, after))
        except Crash:
            self.is_torn[node] = True
        else:
            self.is_torn[node] = False

    def run(self, node: str, fuse: Fuse) -> None:
        chosen = Settings(
            wal=WAL(dir=str(self.wals[node]), min_free_mb=0),
            storage=Storage(url="s3://bucket"),
            parquet=Parquet(row_group_rows=25),
            compaction=Compaction(dedup={"db": "series_time"} if self.dedup else {}),
        )

        async def main() -> None:
            store = MemoryStore(self.objects, fuse)
            compactor = Compactor(
                *(chosen, str(self.wals[node]), node, store),
                now=lambda: self.objects.now,
                rewrite_bounds=BOUNDS,
                disk=MortalDisk(fuse),
            )
            await compactor.finish()
            for work in [work async for work in compactor.find()]:
                await compactor.compact(work.folder)

        asyncio.run(main())

    def seen(self) -> list[tuple[str, Row]]:
        found = []
        for key, (data, _) in self.objects.data.items():
            if key.endswith(".parquet"):
                node = NODE if NODE in key else OTHER_NODE
                path = self.directory / "read.parquet"
                path.write_bytes(data)
                for row in pq.read_table(path, partitioning=None).to_pylist():
                    time = round(row["time"].timestamp() * 1e6) - HOUR_US
                    found.append((node, (row.get("host"), time, row["n"])))
        return found

    def last(self, node: str) -> set[Row]:
        points = {
            (host, time): n for _, (host, time, n) in sorted(self.sent[node], key=lambda one: (one[0], one[1][2]))
        }
        return {(host, time, n) for (host, time), n in points.items()}

    @invariant()
    def no_row_is_missing_and_none_is_there_twice(self) -> None:
        seen = Counter(self.seen())
        for node in (NODE, OTHER_NODE):
            of_node = Counter({row: count for (owner, row), count in seen.items() if owner == node})
            sent = Counter(row for _, row in self.sent[node])
            needed = self.last(node) if self.dedup else set(sent)
            assert needed <= set(of_node), "a row is missing"
            assert set(of_node) <= set(sent)
            if not self.is_torn[node]:
                assert all(count == 1 for count in of_node.values()), "a row is there twice"

    def end(self) -> None:
        for node in (NODE, OTHER_NODE):
            self.redo_the_batch(node)
        for _ in range(2):
            for node in (NODE, OTHER_NODE):
                self.merge(node)
        self.no_row_is_missing_and_none_is_there_twice()
        assert not [key for key in self.objects.data if not key.endswith(".parquet")]
        if self.dedup:
            wanted = Counter(row for node in (NODE, OTHER_NODE) for row in self.last(node))
            assert Counter(row for _, row in self.seen()) == wanted
        for wal in self.wals.values():
            assert not (wal / "compaction" / "plan.json").exists()


Machine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = pytest.mark.slow(Machine.TestCase)
