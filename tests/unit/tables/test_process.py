"""The committer process: its rounds, what it does when nothing works, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arcpipe.config.load import load
from arcpipe.config.settings import StorageS3
from arcpipe.counters import Committer as Block
from arcpipe.counters import Counters, Uploader
from arcpipe.errors import ConfigError
from arcpipe.storage import open_store
from arcpipe.tables import process as module
from arcpipe.tables import states
from arcpipe.tables.base import Maintained, TableFormat, TableName, Unavailable, UnreadableTables
from arcpipe.tables.process import CommitterProcess
from tests.support.commits import Handed, in_tables
from tests.support.table_model import ModelTables

_MANY_SECONDS = 60.0


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    return Handed(tmp_path)


@pytest.fixture
def tables(tmp_path: Path) -> ModelTables:
    return ModelTables(tmp_path / "tables")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "_FIRST_SECONDS": 0.0,
        "_RETRY_SECONDS": (0.01, 0.02),
        "_BUSY_SECONDS": 0.01,
        "_LOOK_SECONDS": 0.01,
    }.items():
        monkeypatch.setattr(module, name, value)


class Process:
    """A committer process in this one, until a condition holds, and then to its end."""

    def __init__(self, handed: Handed, open_tables: Callable[[], TableFormat], interval: float = _MANY_SECONDS) -> None:
        self.counters = Counters(1)
        self.block = self.counters.committer
        variables = {
            "ARCPIPE_TABLES_FORMAT": "delta",
            "ARCPIPE_TABLES_COMMIT_INTERVAL_SECONDS": str(interval),
            "ARCPIPE_STORAGE_URL": f"file://{handed.lake}",
            "ARCPIPE_WAL_DIR": handed.directory.path,
        }
        self._settings = load(None, variables)
        self._handed = handed
        self._open_tables = open_tables

    def run(self, until: Callable[[], bool], then: Callable[[], None] = lambda: None) -> None:
        asyncio.run(asyncio.wait_for(self._run(until, then), _MANY_SECONDS))

    async def _run(self, until: Callable[[], bool], then: Callable[[], None]) -> None:
        store = open_store(f"file://{self._handed.lake}", StorageS3())
        process = CommitterProcess(self._settings, self._handed.directory.path, self.counters, store, self._open_tables)
        serving = asyncio.create_task(process.serve())
        while not until():  # noqa: ASYNC110 (counters have no event)
            await asyncio.sleep(0.005)
        then()
        process.stop()
        await serving
        process.close()
        await store.close()

    @property
    def state(self) -> states.TablesState:
        return states.read(self._handed.files.folder)


def test_it_commits_every_interval(handed: Handed, tables: ModelTables) -> None:
    process = Process(handed, lambda: tables, interval=0.02)
    handed.batch()
    process.run(lambda: process.block[Block.COMMITS] == 1 and process.block[Block.ROUNDS] >= 3)
    assert in_tables(tables) == sorted(handed.keys)


def test_its_end_commits_what_was_handed_over_meanwhile(handed: Handed, tables: ModelTables) -> None:
    process = Process(handed, lambda: tables)
    process.run(lambda: process.block[Block.ROUNDS] == 1, lambda: [handed.batch() for _ in range(3)])  # type: ignore[arg-type]
    assert in_tables(tables) == sorted(handed.keys)
    assert process.block[Block.WAITING_BATCHES] == 0


def test_its_end_does_not_wait_for_a_table_that_does_not_answer(handed: Handed, tables: ModelTables) -> None:
    class Dead(ModelTables):
        def committed(self, table: TableName, node: str) -> int | None:
            raise Unavailable("no answer")

    process = Process(handed, lambda: Dead(tables.root))
    handed.batch()
    process.run(lambda: process.block[Block.ROUNDS] == 1)
    assert process.block[Block.WAITING_BATCHES] == 1
    assert process.state.listed[0].problem == "no answer"


def test_a_catalogue_that_does_not_answer_is_tried_until_it_does(handed: Handed, tables: ModelTables) -> None:
    tries: list[int] = []

    class Late(ModelTables):
        def check(self) -> None:
            tries.append(1)
            if len(tries) < 4:
                raise Unavailable("the catalogue does not answer")
            super().check()

    seen: list[str] = []

    def until() -> bool:
        if process.block[Block.UNREACHABLE] and process.state.unreachable:
            seen.append(process.state.unreachable)
        return process.block[Block.COMMITS] == 1

    process = Process(handed, lambda: Late(tables.root))
    handed.batch()
    process.run(until)
    assert "the catalogue does not answer" in seen
    assert len(tries) == 4
    assert (process.block[Block.UNREACHABLE], process.block[Block.FAILURES], process.state.unreachable) == (0, 3, "")


def test_a_library_that_is_missing_is_told(handed: Handed) -> None:
    def fail() -> TableFormat:
        raise ConfigError("it needs a library")

    process = Process(handed, fail)
    handed.batch()
    process.run(lambda: process.block[Block.FAILURES] >= 2)
    assert process.block[Block.UNREACHABLE] == 1
    assert process.state.unreachable == "it needs a library"


def test_a_foreign_marker_stops_it_until_somebody_acts(handed: Handed, tables: ModelTables) -> None:
    handed.batch()
    tables.commit(("db", "m"), [], handed.node, 77 << 32 | 7)
    process = Process(handed, lambda: tables)
    process.run(lambda: process.block[Block.STOPPED] == 1 and "never issued" in process.state.stopped)
    assert in_tables(tables) == []
    tables.drop(("db", "m"))
    process.run(lambda: process.block[Block.COMMITS] == 1)
    assert process.block[Block.STOPPED] == 0
    assert process.state.stopped == ""


def test_an_uploader_that_is_held_back_gets_a_round_of_its_own(handed: Handed, tables: ModelTables) -> None:
    process = Process(handed, lambda: tables)

    def until() -> bool:
        if process.block[Block.ROUNDS] == 1 and not process.counters.uploader[Uploader.HELD_BACK]:
            handed.batch()
            process.counters.uploader[Uploader.HELD_BACK] = 1
        return process.block[Block.COMMITS] == 1

    module._HELD_BACK_SECONDS, before = 0.01, module._HELD_BACK_SECONDS  # type: ignore[misc]
    try:
        process.run(until)
    finally:
        module._HELD_BACK_SECONDS = before  # type: ignore[misc]
    assert in_tables(tables) == sorted(handed.keys)


def test_a_command_that_holds_the_lock_is_waited_for(handed: Handed, tables: ModelTables) -> None:
    handed.batch()
    lock = handed.files.lock()
    lock.__enter__()
    process = Process(handed, lambda: tables)
    steps: list[int] = []

    def until() -> bool:
        steps.append(1)
        if len(steps) == 10:
            assert process.block[Block.ROUNDS] == 0
            lock.__exit__(None, None, None)
        return process.block[Block.COMMITS] == 1

    process.run(until)
    assert process.block[Block.FAILURES] == 0


def test_tables_are_looked_after_between_rounds(
    handed: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UPKEEP_SECONDS", 0.01)
    done: list[TableName] = []

    class Kept(ModelTables):
        def maintain(self, table: TableName) -> Maintained:
            done.append(table)
            if len(done) == 1:
                raise Unavailable("not now")
            return super().maintain(table)

    process = Process(handed, lambda: Kept(tables.root), interval=0.02)
    handed.batch()
    process.run(lambda: process.block[Block.MAINTAINED] >= 2)
    assert process.block[Block.UPKEEP_FAILURES] == 1
    assert set(done) == {("db", "m")}
    assert in_tables(tables) == sorted(handed.keys)


def test_tables_that_nobody_writes_to_any_more_are_looked_after_too(
    handed: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merges and retention take files out of them, which would be in the store for ever."""
    handed.batch()
    Process(handed, lambda: tables).run(lambda: bool(in_tables(tables)))
    for name in ("_UPKEEP_SECONDS", "_IDLE_SECONDS"):
        monkeypatch.setattr(module, name, 0.01, raising=False)
    done: list[TableName] = []

    class Kept(ModelTables):
        def maintain(self, table: TableName) -> Maintained:
            done.append(table)
            return super().maintain(table)

    later = Process(handed, lambda: Kept(tables.root), interval=0.02)
    later.run(lambda: len(done) > 2)
    assert set(done) == {("db", "m")}
    assert later.block[Block.COMMITS] == 0


def test_a_table_that_cannot_be_read_keeps_no_other_from_its_upkeep(
    handed: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handed.batch()
    Process(handed, lambda: tables).run(lambda: bool(in_tables(tables)))
    for name in ("_UPKEEP_SECONDS", "_IDLE_SECONDS"):
        monkeypatch.setattr(module, name, 0.01)
    done: list[TableName] = []

    class Holed(ModelTables):
        def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
            assert unreadable is not None
            unreadable["db", "lost"] = Unavailable("its metadata is gone")
            return super().all_tables()

        def maintain(self, table: TableName) -> Maintained:
            done.append(table)
            return super().maintain(table)

    Process(handed, lambda: Holed(tables.root), interval=0.02).run(lambda: len(done) > 2)
    assert set(done) == {("db", "m")}
    assert "the upkeep of table 'db'.'lost' has to wait: it cannot be read: its metadata is gone" in caplog.text


def test_a_short_time_for_upkeep_comes_to_all_tables(
    handed: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first ones are due again before the last ones had their turn."""
    handed.batch([("db", name) for name in "abcd"])
    monkeypatch.setattr(module, "_UPKEEP_SECONDS", 0.001)
    done: list[TableName] = []

    class Slow(ModelTables):
        def maintain(self, table: TableName) -> Maintained:
            done.append(table)
            time.sleep(0.02)
            return super().maintain(table)

    Process(handed, lambda: Slow(tables.root), interval=0.03).run(lambda: len(done) >= 12)
    assert {done[:12].count(("db", name)) for name in "abcd"} <= {2, 3, 4}
