"""Power cuts while batches are handed over and committed: each file is in its table once, whatever the disk kept.

The disk's states are enumerated, as in `test_power_cut`. The tables are outside of the disk: what they took is durable.
Bugs are planted, and each has to be found.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import inspect
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import pytest

from arcpipe import durable
from arcpipe.config.settings import StorageS3
from arcpipe.counters import Counters
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError
from arcpipe.storage import open_store
from arcpipe.tables import ledger as ledger_module
from arcpipe.tables.base import TableName, UnreadableTables
from arcpipe.tables.commit_file import CommitFileName, CommitFiles, DataFile
from arcpipe.tables.committer import Committer
from arcpipe.tables.ledger import Ledger
from arcpipe.tables.pending import Chunk
from arcpipe.tables.table_commits import TableCommits
from arcpipe.upload.handover import Handover
from arcpipe.upload.spares import Spares
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from tests.crash.power_cut import states_after_power_cuts
from tests.crash.recording import CHANGES, Fault, Note, RecordingDisk
from tests.crash.system_calls import mounted
from tests.support.compaction import NODE, file_bytes, key_of, put, table_of
from tests.support.sets import IS_LONG, long
from tests.support.table_model import ModelTables

BATCHES = 4
STATES = 20_000 if IS_LONG else 450  # of one recording
_ALL = 500  # about: there are no more different ones, however many may be tried
TABLES = (("db", "m"), ("db", "other"))


class MemoryTables(ModelTables):
    """The tables of the tests, in memory: no power cut reaches them."""

    def __init__(self, content: dict[TableName, Any], on_commit: Callable[[], None] = lambda: None) -> None:
        super().__init__(Path("/nowhere"))
        self.content = content
        self._on_commit = on_commit

    def load(self, table: TableName) -> tuple[int, dict[str, Any]] | None:
        return self.content.get(table)

    def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
        return sorted(self.content)

    def _write(self, table: TableName, version: int, content: dict[str, Any]) -> None:
        self.content[table] = version, content
        self._on_commit()


class Lake(NamedTuple):
    """The files of some batches, in a directory that no power cut reaches."""

    root: Path
    batches: dict[str, dict[str, DataFile]]  # by batch id: files by key


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    root = tmp_path_factory.mktemp("lake")
    batches: dict[str, dict[str, DataFile]] = {}
    data = file_bytes(table_of([{"time": 0, "n": 1}]), root)
    for number in range(1, BATCHES + 1):
        files: dict[str, DataFile] = {}
        for database, measurement in TABLES[: 1 + number % 2]:
            key = key_of(number, database=database, measurement=measurement)
            put(root, key, data)
            files[key] = DataFile(key, 1, len(data), 0, 0)
        batches[key.split("_")[-2]] = files
    return Lake(root, batches)


class Node:
    """Uploader and committer of one life of a node, on a disk and its tables."""

    def __init__(self, disk: RecordingDisk, lake: Lake, boot: int, tables: MemoryTables) -> None:
        self.directory = WALDirectory(f"{disk.base}/wal")
        self.directory.make()
        self.lake = lake
        self.tables = tables
        self.handover = Handover(
            self.directory, NodeIdentity(NODE, boot), Spares(self.directory, with_tables=True), 1 << 40
        )
        self._store = open_store(f"file://{lake.root}", StorageS3())
        self._committer = Committer(tables, self._store, self.directory.path, Counters(1).committer, sleep=_at_once)

    def manifest(self, batch: str) -> str:
        return f"{self.directory.batches}/{batch}.uploaded.json"

    def hand_over(self, batch: str) -> None:
        self.handover.hand_over(batch, "file:///lake", self.lake.batches[batch])

    def forget(self, batch: str) -> None:
        """Retire its segments, which are not the subject here, and remove its manifest."""
        self.directory.disk.unlink(self.manifest(batch))
        self.directory.disk.sync_directory(self.directory.batches)

    def unfinished(self) -> list[str]:
        names = self.directory.disk.names(self.directory.batches)
        return [batch for batch in self.lake.batches if f"{batch}.uploaded.json" in names]

    async def round(self) -> None:
        await self._committer.round(force=True)

    async def close(self) -> None:
        self._committer.close()
        await self._store.close()


async def _at_once(seconds: float) -> None:
    return


def record(lake: Lake, seed: int, fault: Fault | None = None) -> tuple[RecordingDisk, int]:
    """A life of a node: batches are handed over, forgotten and committed, in an order that the seed chooses.

    Returns the recording, and its length when all batches were uploaded and nothing had happened yet.

    Args:
        fault: strikes from then on; each step is tried again until it succeeds.
    """
    rng = random.Random(seed)
    disk = RecordingDisk(seed=seed)
    content: dict[TableName, Any] = {}
    tables = MemoryTables(content, lambda: disk.note("tables", copy.deepcopy(content)))

    async def live() -> int:
        node = Node(disk, lake, 1, tables)
        for batch in lake.batches:
            durable.replace(node.directory.disk, node.manifest(batch), b"{}")
        begun = len(disk.log)
        disk.faults = [fault] if fault is not None else []
        try:
            for batch in lake.batches:
                if rng.random() < 0.3:
                    await insist(node.round)
                await insist(lambda batch=batch: node.hand_over(batch))  # type: ignore[misc]
                if rng.random() < 0.7:
                    await insist(node.round)
                await insist(lambda batch=batch: node.forget(batch))  # type: ignore[misc]
                if rng.random() < 0.5:
                    await insist(node.round)
        finally:
            await node.close()
        return begun

    with mounted(disk), a_random_first_counter(rng):
        return disk, asyncio.run(live())


async def insist(step: Callable[[], Any]) -> None:
    """Do a step as the uploader and the committer do: until it succeeds."""
    problem: Exception | None = None
    for _ in range(20):
        try:
            done = step()
            if inspect.isawaitable(done):
                await done
        except (OSError, ArcpipeError) as error:
            problem = error
            continue
        return
    raise AssertionError(f"it does not succeed, however often it is tried: {problem}")


def a_random_first_counter(rng: random.Random) -> Any:
    return mock.patch.object(ledger_module, "secrets", mock.Mock(randbits=rng.getrandbits))


def come_up(image: dict[str, bytes | None], lake: Lake, content: dict[TableName, Any], seed: int) -> None:
    """Start again on what a crash left: batches that are there are ended again; then all is committed."""
    tables = MemoryTables(copy.deepcopy(content))
    disk = RecordingDisk(image)

    async def live() -> None:
        node = Node(disk, lake, 2, tables)
        try:
            await node.round()  # the committer may be first
            for batch in node.unfinished():
                node.hand_over(batch)
                node.forget(batch)
            await node.round()
            assert node._committer.files.names() == []
        finally:
            await node.close()

    with mounted(disk), a_random_first_counter(random.Random(seed + 1_000_000)):
        asyncio.run(live())
    found = Counter(key for table in tables.all_tables() for key in tables.files(table))
    wanted = {key for files in lake.batches.values() for key in files}
    assert {key: count for key, count in found.items() if count > 1} == {}, "files are there twice"
    assert wanted - found.keys() == set(), "files are missing"


def check(lake: Lake, seeds: Sequence[int] = (1, 2, 3), states: int = STATES) -> int:
    """Try the states that a power cut, or a kill, may leave. Returns how many there were."""
    count = 0
    for seed in seeds:
        disk, begun = record(lake, seed)
        for state in states_after_power_cuts(disk, random.Random(seed), states // len(seeds), since=begun):
            notes = [one for one in disk.log[: state.after] if isinstance(one, Note) and one.kind == "tables"]
            come_up(dict(state.image), lake, notes[-1].value if notes else {}, seed)
            count += 1
    return count


@pytest.fixture(autouse=True)
def fresh(quiet: None) -> None:
    pass


def complaint(lake: Lake) -> str:
    """The complaint of the check; the empty string without one."""
    try:
        check(lake)
    except Exception as error:  # of any kind: a stop that nothing ends is one, too
        return f"{type(error).__name__} {error}"
    return ""


def test_no_power_cut_loses_or_doubles_a_file(lake: Lake) -> None:
    assert check(lake) > min(STATES // 4, _ALL)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        pytest.param(errno.EIO, "after"),
        pytest.param(errno.ENOSPC, "before"),
        pytest.param(errno.EIO, "before", marks=long),
        pytest.param(errno.ENOSPC, "after", marks=long),
    ],
)
def test_no_fault_of_the_disk_loses_or_doubles_a_file(lake: Lake, error: int, how: Literal["before", "after"]) -> None:
    """Each change fails once, or three times, and a power cut may follow."""
    skips = itertools.count() if IS_LONG else iter(range(0, 400, 17))
    for skip in skips:
        fault = Fault(CHANGES, skip, 1 + skip % 2 * 2, how, error)
        disk, begun = record(lake, skip % 5, fault)
        if not fault.struck:
            break
        for state in states_after_power_cuts(disk, random.Random(skip), 8, since=begun):
            notes = [one for one in disk.log[: state.after] if isinstance(one, Note) and one.kind == "tables"]
            come_up(dict(state.image), lake, notes[-1].value if notes else {}, skip)
        come_up(disk.image(), lake, last_tables(disk), skip)
    assert skip > 50, "there were fewer changes than there must be"


def last_tables(disk: RecordingDisk) -> dict[TableName, Any]:
    return next((one.value for one in reversed(disk.log) if isinstance(one, Note) and one.kind == "tables"), {})


# The same harness has to find bugs


def test_it_is_caught_if_the_marker_is_not_looked_at(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    async def all_files(self: TableCommits, table: TableName, files: list[Any]) -> list[Any]:
        return files

    monkeypatch.setattr(ModelTables, "checks_markers", False)
    monkeypatch.setattr(TableCommits, "_without_present", all_files)
    assert "files are there twice" in complaint(lake)


def test_it_is_caught_if_a_commit_file_is_removed_before_its_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Committer._commit_chunk

    async def removed_first(self: Committer, chunk: Chunk, failed: set[tuple[str, TableName]]) -> None:
        self.files.remove(chunk.names)
        await commit(self, chunk, failed)

    monkeypatch.setattr(Committer, "_commit_chunk", removed_first)
    assert "files are" in complaint(lake)


def test_it_is_caught_if_a_number_is_issued_before_the_ledger_has_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = Ledger.issue

    def too_early(self: Ledger, node: NodeIdentity, write: Callable[[str, bytes], None]) -> int:
        return issue(self, node, lambda path, data: None)

    monkeypatch.setattr(Ledger, "issue", too_early)
    assert "never issued" in complaint(lake)


def test_it_is_caught_if_a_batch_gets_a_second_commit_file(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handover, "_without", lambda self, files, earlier: dict(files))
    assert "files are there twice" in complaint(lake)


def test_it_is_caught_if_files_are_committed_whose_names_are_not_durable(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer sees a name that the uploader has not synced yet: here the uploader never does."""
    sync_directory = Disk.sync_directory

    def late(self: Disk, path: str) -> None:
        if not path.endswith("/tables"):
            sync_directory(self, path)

    monkeypatch.setattr(Disk, "sync_directory", late)
    assert complaint(lake) != ""


def test_it_is_caught_if_a_commit_file_goes_before_its_batch(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: Committer, names: Sequence[CommitFileName]) -> None:
        self.files.remove([name for name in names if name in self._done])

    monkeypatch.setattr(Committer, "forget", at_once)
    assert "files are there twice" in complaint(lake)


def test_it_is_caught_if_a_batch_may_come_back_after_its_commit_file(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal of its manifest is in the page cache only."""
    monkeypatch.setattr(Node, "forget", _unsynced)
    assert complaint(lake) == ""  # the committer syncs the folder itself
    remove = CommitFiles.remove
    forget = Committer.forget

    def without_sync(self: Committer, names: Sequence[CommitFileName]) -> None:
        with mock.patch.object(Disk, "sync_directory", return_value=None):
            forget(self, names)

    monkeypatch.setattr(Committer, "forget", without_sync)
    monkeypatch.setattr(CommitFiles, "remove", _and_synced(remove))
    assert "files are there twice" in complaint(lake)


def _unsynced(self: Node, batch: str) -> None:
    self.directory.disk.unlink(self.manifest(batch))


def _and_synced(remove: Callable[..., None]) -> Callable[..., None]:
    sync_directory = Disk.sync_directory

    def removed(self: CommitFiles, names: Iterator[CommitFileName]) -> None:
        remove(self, names)
        sync_directory(self.disk, self.folder)

    return removed
