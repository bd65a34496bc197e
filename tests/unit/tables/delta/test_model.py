"""Nodes, engines and a store that fails, in any order: every file is in the table once, and no marker goes back."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.errors import MissingObject, StorageError
from arcpipe.lake.file_schema import TIME_TYPE
from arcpipe.storage import Blob, Listed
from arcpipe.tables.base import Conflict, Dropped, NewFile, Unavailable
from arcpipe.tables.delta.paths import key_of
from arcpipe.tables.delta.state import State, actions_of
from arcpipe.tables.delta.tables import DeltaTables

TABLE = ("db", "cpu")
NODES = ("n0", "n1", "n2")


class MemoryStore:
    """A LakeStore in memory, whose next put may fail, or succeed without an answer."""

    url = "s3://bucket"
    objects_at_once = 1

    def __init__(self, data: dict[str, bytes]) -> None:
        self.data = data
        self.next_put = "right"

    async def put(self, key: str, blob: Blob) -> None:
        self.data[key] = bytes(blob.read_at(0, blob.size))

    async def put_all(self, objects: Sequence[tuple[str, Blob]]) -> None:
        raise NotImplementedError

    async def put_new(self, key: str, blob: Blob) -> bool:
        outcome, self.next_put = self.next_put, "right"
        if outcome == "refused":
            raise StorageError("nothing happened")
        if key in self.data:
            return False
        await self.put(key, blob)
        if outcome == "lost":
            raise StorageError("the answer was lost")
        return True

    async def exists(self, key: str) -> bool:
        return key in self.data

    async def abort_uploads(self, key: str) -> int:
        return 0

    async def delete(self, key: str) -> None:
        self.data.pop(key, None)

    async def remove_empty(self, folder: str, modified_before: float) -> None:
        pass

    async def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)

    async def move(self, source: str, target: str) -> None:
        raise NotImplementedError

    async def read(self, key: str, offset: int, length: int) -> bytes:
        if key not in self.data:
            raise MissingObject(key)
        return self.data[key][offset : offset + length]

    async def list_keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.data if key.startswith(prefix))

    async def list_objects(self, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        for key in await self.list_keys(prefix):
            if key > after:
                yield [Listed(key, len(self.data[key]), 1.0)]

    async def list_folders(self, folder: str) -> list[str]:
        names = {key.removeprefix(folder) for key in await self.list_keys(folder)}
        return sorted({name.partition("/")[0] for name in names if "/" in name})

    async def check(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture(autouse=True, scope="module")
def no_checkpoints() -> Iterator[None]:
    """deltalake cannot reach a store in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcpipe.tables.delta.tables.make_checkpoint", lambda storage, root: None)
        yield


def footer(column: str) -> tuple[int, pq.FileMetaData]:
    memory = io.BytesIO()
    pq.write_table(pa.table({"time": pa.array([1], TIME_TYPE), column: [1]}), memory)
    return len(memory.getvalue()), pq.read_metadata(memory)


FOOTERS = [footer(column) for column in "ab"]


class Node:
    """A node with files that wait for their commit, as the committer has them."""

    def __init__(self, name: str, data: dict[str, bytes]) -> None:
        self.name = name
        self.seq = 0
        self.waiting: dict[int, NewFile] = {}
        self._data = data
        self.start()

    def start(self) -> None:
        """Start, or start again after a crash: what is in memory is gone."""
        self.store = MemoryStore(self._data)
        self.tables = DeltaTables(Tables(format="delta"), Storage(url="s3://bucket"), store=self.store)

    def hand_over(self, column: int) -> str:
        self.seq += 1
        size, metadata = FOOTERS[column]
        key = f"db/cpu/2026/01/01/00/{self.name}_{self.seq}.parquet"
        self.waiting[self.seq] = NewFile(key, size, 1, metadata)
        return key

    def attempt(self, outcome: str = "right", between: Callable[[], object] = lambda: None) -> bool:
        """Commit what waits, in one attempt. Returns False if its outcome is not known, or nothing happened.

        Args:
            between: what others do after the marker was read.
        """
        try:
            marker = self.tables.committed(TABLE, self.name) or 0
            between()
            self.store.next_put = outcome
            files = [file for seq, file in self.waiting.items() if seq > marker]
            if files:
                self.tables.commit(TABLE, files, self.name, self.seq)
        except (Conflict, Unavailable):
            return False
        finally:
            self.store.next_put = "right"
        self.waiting.clear()
        return True


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hand over", "hand over", "right", "lost", "refused", "crash", "merge", "race", "look"]),
        st.integers(0, len(NODES) - 1),
        st.integers(0, 1),
    ),
    max_size=40,
)


class Result(NamedTuple):
    """The end of a play."""

    added: Counter[str]  # by every commit: two adds of one file are one file to a reader, until somebody merges it
    held: set[str]  # in the table, or taken out by a merge
    wanted: set[str]
    markers: dict[str, int]


def play(steps: list[tuple[str, int, int]]) -> Result:
    data: dict[str, bytes] = {}
    nodes = [Node(name, data) for name in NODES]
    wanted: set[str] = set()
    held: set[str] = set()
    markers: dict[str, int] = {}
    try:
        for step, number, column in steps:
            node = nodes[number]
            match step:
                case "hand over":
                    wanted.add(node.hand_over(column))
                case "crash":
                    node.tables.close()
                    node.start()
                case "look":
                    node.tables.committed(TABLE, node.name)
                case "race":  # the other commits after this one has read the marker
                    other = nodes[number - 1]
                    wanted |= {node.hand_over(column), other.hand_over(column)}
                    node.attempt(between=other.attempt)
                case "merge":
                    held |= merge(node)
                case _:
                    node.attempt(step)
            found = node.tables.markers(TABLE)
            assert all(found.get(name, 0) >= seq for name, seq in markers.items())
            markers = found
        for node in nodes:
            assert any(node.attempt() for _ in range(9)), "it meets conflicts for ever"
        if wanted:
            held.update(nodes[0].tables.files(TABLE))
        added = Counter(
            key_of("db/cpu", action["path"], "")
            for commit in data.values()
            for kind, action in actions_of(commit)
            if kind == "add"
        )
        return Result(added, held, wanted, nodes[0].tables.markers(TABLE))
    finally:
        for node in nodes:
            node.tables.close()


def merge(node: Node) -> set[str]:
    """Let an engine take all files out of the table. Returns them."""
    try:
        old = list(node.tables.files(TABLE))
    except Dropped:
        return set()
    node.tables.replace(TABLE, old, [])
    return set(old)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
@pytest.mark.slow
def test_every_file_is_added_once_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    result = play(steps)
    assert result.added == Counter(result.wanted)
    assert result.held == result.wanted
    assert result.markers == {name: seq for name in NODES if (seq := sum(f"/{name}_" in key for key in result.wanted))}


def test_the_model_notices_a_commit_without_the_markers_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a lost answer, and the same files once more."""
    steps = [("hand over", 0, 0), ("lost", 0, 0)]
    assert set(play(steps).added.values()) == {1}
    monkeypatch.setattr(State, "marker", lambda state, node: None)
    assert set(play(steps).added.values()) == {2}
