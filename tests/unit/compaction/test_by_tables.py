"""Merges and retention where the files are a part of tables: the table's own atomic commit is the swap."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.cli import lake
from arcpipe.compaction.compactor import Compactor
from arcpipe.compaction.merge import Merge, Stuck
from arcpipe.compaction.plan import Plan, Plans
from arcpipe.compaction.process import CompactionProcess
from arcpipe.compaction.retention import Retention
from arcpipe.compaction.retention_clock import DAY_US
from arcpipe.compaction.retention_looks import RetentionLooks
from arcpipe.compaction.superseded import inputs_of_merges
from arcpipe.config.settings import WAL, Compaction, Settings, Storage, StorageS3
from arcpipe.counters import Compaction as Counted
from arcpipe.counters import Counters
from arcpipe.lake.folders import Folder, parse_folder
from arcpipe.storage import open_store
from arcpipe.tables.base import Conflict, NewFile, Refused, TableName, Unavailable
from arcpipe.tables.stock import Stock
from arcpipe.tables.swap import TableSwap
from tests.support.commits import Handed, Working, in_tables
from tests.support.compaction import HOUR_US, OTHER_NODE, key_of, put
from tests.support.lake import lake_files
from tests.support.table_model import ModelTables

T = TypeVar("T")
TABLE = ("db", "m")


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    """Make an hour of five small files that a table has."""
    made = Handed(tmp_path)
    for _ in range(5):
        made.batch()
    Working(made.directory.path, made.lake, ModelTables(tmp_path / "tables")).round()
    return made


@pytest.fixture
def tables(tmp_path: Path) -> ModelTables:
    return ModelTables(tmp_path / "tables")


@pytest.fixture
def folder(handed: Handed) -> Folder:
    found = parse_folder(min(handed.keys).rpartition("/")[0])
    assert found is not None
    return found


def work(
    handed: Handed,
    tables: ModelTables | None,
    do: Callable[[Compactor], Awaitable[T]],
    dedup: dict[str, Any] | None = None,
) -> T:
    """Do something with a compactor of one process."""

    async def run() -> T:
        store = open_store(f"file://{handed.lake}", StorageS3())
        settings = Settings(
            wal=WAL(dir=handed.directory.path, min_free_mb=0),
            storage=Storage(url=f"file://{handed.lake}"),
            compaction=Compaction(dedup=dedup or {}),
        )
        swap = TableSwap(lambda: tables, store) if tables is not None else None
        compactor = Compactor(settings, handed.directory.path, handed.node, store, tables=swap)
        try:
            return await do(compactor)
        finally:
            if swap is not None:
                await swap.close()
            await store.close()

    return asyncio.run(run())


def rows(handed: Handed, tables: ModelTables) -> list[int]:
    """The values of `n` as a reader of the table sees them."""
    keys = in_tables(tables)
    assert all((handed.lake / key).exists() for key in keys)
    found = [pq.read_table(handed.lake / key, columns=["n"], partitioning=None)["n"].to_pylist() for key in keys]
    assert all(found)
    return sorted(number for numbers in found for number in numbers)


def test_a_merge_replaces_files_of_the_table_at_once(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    wanted = rows(handed, tables)
    outcome = work(handed, tables, lambda compactor: compactor.compact(folder))
    assert outcome is not None
    assert len(outcome.plan.inputs) == 5
    assert len(in_tables(tables)) == 1
    assert rows(handed, tables) == wanted
    assert len(lake_files(handed.lake)) == 6  # those of the earlier state stay for its readers
    assert tables.markers(TABLE).keys() == {handed.node}
    assert work(handed, tables, lambda compactor: compactor.compact(folder)) is None


def test_an_import_after_a_drop_brings_no_row_twice(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    """The inputs of a merge are in the store for a while, and the dropped table alone knew which files they are."""
    wanted = rows(handed, tables)
    work(handed, tables, lambda compactor: compactor.compact(folder))
    tables.drop(TABLE)

    async def bring_back() -> None:
        store = open_store(f"file://{handed.lake}", StorageS3())
        directory = handed.directory.path
        stock = Stock(tables, store, directory, handed.node, inputs_of_merges=inputs_of_merges)
        for report in [report async for report in stock.compare()]:
            assert (len(report.orphans), report.former) == (1, 5)
            await stock.import_files(report)
        await store.close()

    asyncio.run(bring_back())
    assert rows(handed, tables) == wanted


def test_the_command_counts_and_shows_rows_of_merges_once(
    handed: Handed, tables: ModelTables, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = rows(handed, tables)
    work(handed, tables, lambda compactor: compactor.compact(folder))
    config = handed.base / "config.toml"
    config.write_text(f'storage.url = "file://{handed.lake}"\nwal.dir = "{handed.directory.path}"\n')
    lake.count(None, None, config, True)
    said = capsys.readouterr()
    counted = json.loads(said.out)
    assert (counted["files"], counted["rows"]) == (1, len(wanted))
    assert "5 files were left out whose rows are in a merged file, too" in said.err
    lake.head(*TABLE, 100, config, True)
    shown = [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(shown) == wanted


def test_files_that_no_table_has_are_left_alone(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    handed.batch()  # it waits for its commit
    waiting = set(handed.keys) - set(in_tables(tables))
    outcome = work(handed, tables, lambda compactor: compactor.compact(folder))
    assert outcome is not None
    assert waiting.isdisjoint(one.key for one in outcome.plan.inputs)
    Working(handed.directory.path, handed.lake, tables).round()
    assert len(in_tables(tables)) == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_swap_is_finished(
    handed: Handed, tables: ModelTables, folder: Folder, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = rows(handed, tables)

    class Crashing(ModelTables):
        def replace(self, table: TableName, old: list[str], new: list[NewFile]) -> None:  # type: ignore[override]
            if when == "after":
                super().replace(table, old, new)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(handed, Crashing(tables.root), lambda compactor: compactor.compact(folder))
    assert rows(handed, tables) == wanted
    assert Plans(handed.directory.path).read() is not None
    work(handed, tables, lambda compactor: compactor.finish())
    assert rows(handed, tables) == wanted
    assert len(in_tables(tables)) == 1
    assert Plans(handed.directory.path).read() is None


def test_no_output_is_deleted_while_there_is_no_table_to_ask(
    handed: Handed, tables: ModelTables, folder: Folder
) -> None:
    """A crash after the swap, and then the catalogue is lost: whoever registers the table again needs its files."""
    wanted = rows(handed, tables)

    class Crashing(ModelTables):
        def replace(self, table: TableName, old: list[str], new: list[NewFile]) -> None:  # type: ignore[override]
            super().replace(table, old, new)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(handed, Crashing(tables.root), lambda compactor: compactor.compact(folder))
    aside = tables.root.rename(tables.root.with_name("aside"))
    lost = ModelTables(tables.root)
    with pytest.raises(Stuck, match="there is no table"):
        work(handed, lost, lambda compactor: compactor.finish())
    aside.rename(tables.root)
    assert rows(handed, tables) == wanted
    work(handed, tables, lambda compactor: compactor.finish())
    assert Plans(handed.directory.path).read() is None


def test_a_merge_is_given_up_if_its_table_is_dropped_meanwhile(
    handed: Handed, tables: ModelTables, folder: Folder
) -> None:
    class Dropped(ModelTables):
        def files(self, table: TableName) -> Iterator[str]:
            if Plans(handed.directory.path).read() is not None and tables.load(table) is not None:
                tables.drop(table)
            return super().files(table)

    before = lake_files(handed.lake)
    work(handed, Dropped(tables.root), lambda compactor: compactor.compact(folder))
    assert lake_files(handed.lake) == before
    assert Plans(handed.directory.path).read() is None


def test_a_merge_is_given_up_if_somebody_else_was_first(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    class Overtaken(ModelTables):
        def replace(self, table: TableName, old: list[str], new: list[NewFile]) -> None:  # type: ignore[override]
            if len(in_tables(tables)) == 5:
                tables.remove(table, old[:1])  # another engine deleted rows
            super().replace(table, old, new)

    before = lake_files(handed.lake)
    work(handed, Overtaken(tables.root), lambda compactor: compactor.compact(folder))
    assert len(in_tables(tables)) == 4
    assert lake_files(handed.lake) == before  # no output is left: an import would double its rows
    assert Plans(handed.directory.path).read() is None


def test_outputs_that_the_table_had_stay_for_readers_of_that_state(
    handed: Handed, tables: ModelTables, folder: Folder
) -> None:
    """A crash after the swap, and then another node merges the outputs, or an engine rewrites them."""

    class Crashing(ModelTables):
        def replace(self, table: TableName, old: list[str], new: list[NewFile]) -> None:  # type: ignore[override]
            super().replace(table, old, new)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(handed, Crashing(tables.root), lambda compactor: compactor.compact(folder))
    outputs = list(in_tables(tables))
    tables.remove(TABLE, outputs)
    work(handed, tables, lambda compactor: compactor.finish())
    assert Plans(handed.directory.path).read() is None
    assert tables.former(TABLE).issuperset(outputs)
    assert all((handed.lake / key).exists() for key in outputs)


def test_a_conflict_that_concerns_no_input_is_tried_again(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    wanted = rows(handed, tables)

    class Conflicting(ModelTables):
        conflicts = 0

        def replace(self, table: TableName, old: list[str], new: list[NewFile]) -> None:  # type: ignore[override]
            self.conflicts += 1
            if self.conflicts < 3:
                raise Conflict("somebody else committed first")
            super().replace(table, old, new)

    work(handed, Conflicting(tables.root), lambda compactor: compactor.compact(folder))
    assert rows(handed, tables) == wanted
    assert len(in_tables(tables)) == 1


def test_retention_takes_files_out_of_the_table(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    handed.batch()  # it waits for its commit, so it is not touched

    async def expire(compactor: Compactor) -> int:
        store = open_store(f"file://{handed.lake}", StorageS3())
        expired = await Retention(store, compactor).delete(folder)
        left = [one async for one in Retention(store, compactor).find({"db": folder.hour_us * 2}) if one.files]
        await store.close()
        return len(expired.files) - 100 * len(left)

    assert work(handed, tables, expire) == 5
    assert in_tables(tables) == []
    assert len(lake_files(handed.lake)) == 6


def test_a_look_for_old_hours_reads_each_table_once(handed: Handed, tables: ModelTables) -> None:
    """A table of a year has 8,760 hours, and a hundred thousand files."""
    for hour in range(1, 4):
        handed.batch(hour=hour)
    Working(handed.directory.path, handed.lake, tables).round()
    reads: list[TableName] = []

    class Counting(ModelTables):
        def files(self, table: TableName) -> Iterator[str]:
            reads.append(table)
            return super().files(table)

    async def find(compactor: Compactor) -> int:
        store = open_store(f"file://{handed.lake}", StorageS3())
        found = [one async for one in Retention(store, compactor).find({"db": HOUR_US + 100 * DAY_US})]
        await store.close()
        return len(found)

    assert work(handed, Counting(tables.root), find) == 4
    assert reads == [TABLE]


LONG: TableName = ("d" * 250, "m" * 130)


def test_files_of_a_table_whose_names_are_cut_are_merged_too(tmp_path: Path, tables: ModelTables) -> None:
    """The folder does not tell its name; the footers do."""
    handed = Handed(tmp_path)
    for _ in range(3):
        handed.batch([LONG])
    Working(handed.directory.path, handed.lake, tables).round()
    assert tables.all_tables() == [LONG]
    folder = parse_folder(min(handed.keys).rpartition("/")[0])
    assert folder is not None
    assert folder.names != LONG
    wanted = rows(handed, tables)
    outcome = work(handed, tables, lambda compactor: compactor.compact(folder))
    assert outcome is not None
    assert (len(outcome.plan.inputs), len(in_tables(tables))) == (3, 1)
    assert rows(handed, tables) == wanted


def test_a_file_in_a_folder_that_is_not_its_own_names_no_table(tmp_path: Path, tables: ModelTables) -> None:
    handed = Handed(tmp_path)
    handed.batch([LONG])
    handed.batch()
    [own, other] = sorted(handed.keys, key=len, reverse=True)
    (handed.lake / own).write_bytes((handed.lake / other).read_bytes())

    async def held() -> frozenset[str]:
        store = open_store(f"file://{handed.lake}", StorageS3())
        swap = TableSwap(lambda: tables, store) if tables is not None else None
        try:
            return await swap.held("/".join(own.split("/")[:2]))
        finally:
            await swap.close()
            await store.close()

    assert asyncio.run(held()) == frozenset()


def test_files_that_were_rewritten_are_merged_with_the_others(
    handed: Handed, tables: ModelTables, folder: Folder
) -> None:
    for _ in range(2):
        handed.batch(n=pa.string())
    Working(handed.directory.path, handed.lake, tables).round()
    fitted = [handed.lake / key for key in in_tables(tables) if ".fit" in key]
    assert len(fitted) == 2
    for path in fitted:  # older than any request that may be late
        os.utime(path, (path.stat().st_mtime - 3_600,) * 2)
    outcome = work(handed, tables, lambda compactor: compactor.compact(folder))
    assert outcome is not None
    [key] = in_tables(tables)
    found = pq.read_table(handed.lake / key)
    values = zip(found["n"].to_pylist(), found["n_str"].to_pylist(), strict=True)
    assert sorted(int(text) if number is None else number for number, text in values) == sorted(handed.rows[TABLE])


def test_points_that_two_nodes_have_are_merged_by_one_of_them(
    handed: Handed, tables: ModelTables, folder: Folder
) -> None:
    """A client's retry went to another node, which did not know its key. Whoever merges the hour first does it."""
    wanted = rows(handed, tables)
    other = Handed(handed.base / "other", handed.lake, OTHER_NODE)
    for _ in range(3):
        other.batch()
    Working(other.directory.path, other.lake, tables).round()
    assert len(rows(handed, tables)) > len(wanted)
    both = {"db": "series_time"}
    outcome = work(other, tables, lambda compactor: compactor.compact(folder), both)
    assert outcome is not None
    assert (len(outcome.plan.inputs), outcome.superseded) == (8, 6)
    assert rows(handed, tables) == wanted
    assert tables.markers(TABLE).keys() == {handed.node, OTHER_NODE}
    for one in (handed, other):
        assert work(one, tables, lambda compactor: compactor.compact(folder), both) is None
    late = other.batch()
    Working(other.directory.path, other.lake, tables).round()
    assert len(rows(handed, tables)) > len(wanted)
    for path in lake_files(handed.lake):  # older than any request that may be late
        os.utime(path, (0, 0))
    assert work(handed, tables, lambda compactor: compactor.compact(folder), both) is not None
    assert rows(handed, tables) == wanted
    assert not any(late in key for key in in_tables(tables))


def test_without_dedup_each_node_merges_its_own_files(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    other = Handed(handed.base / "other", handed.lake, OTHER_NODE)
    for _ in range(3):
        other.batch()
    Working(other.directory.path, other.lake, tables).round()
    outcome = work(other, tables, lambda compactor: compactor.compact(folder))
    assert outcome is not None
    assert len(outcome.plan.inputs) == 3


# What one table refuses


class Refusing(ModelTables):
    """One table is as somebody else left it: it takes no change, or cannot be read at all."""

    how = "replace"
    refused = ("db", "m")

    def files(self, table: TableName) -> Iterator[str]:
        if table == self.refused and self.how == "files":
            raise Refused("its protocol has the features deletionVectors")
        return super().files(table)

    def replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        if table == self.refused and self.how == "replace":
            raise Refused("it has delete files of another engine")
        super().replace(table, old, new)

    def remove(self, table: TableName, keys: Sequence[str]) -> None:
        if table == self.refused and self.how == "remove":
            raise Refused("it takes no file out")
        super().remove(table, keys)


def refusing(tables: ModelTables, how: str) -> Refusing:
    made = Refusing(tables.root)
    made.how = how
    return made


@pytest.fixture
def two_tables(tmp_path: Path, tables: ModelTables) -> Handed:
    """Make an hour of five small files of each of two tables."""
    made = Handed(tmp_path)
    for _ in range(5):
        made.batch([("db", "m"), ("db", "n")])
    Working(made.directory.path, made.lake, tables).round()
    return made


def look_twice(handed: Handed, tables: ModelTables) -> Counters:
    """Have the compaction process look through the lake twice, with one compactor."""
    counters = Counters(1)

    async def look(compactor: Compactor) -> None:
        settings = Settings(
            wal=WAL(dir=handed.directory.path, min_free_mb=0),
            storage=Storage(url=f"file://{handed.lake}"),
            compaction=Compaction(enabled=True),
        )
        store = open_store(settings.storage.url, settings.storage.s3)
        for _ in range(2):
            await CompactionProcess(settings, compactor, counters, store).look()
        await store.close()

    work(handed, tables, look)
    return counters


@pytest.mark.parametrize("how", ["replace", "files"])
def test_a_table_that_refuses_a_merge_holds_up_no_other(
    two_tables: Handed, tables: ModelTables, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else one table with the deletes of another engine would end all merges of the node."""
    before = lake_files(two_tables.lake)
    counters = look_twice(two_tables, refusing(tables, how))
    assert [len([key for key in in_tables(tables) if f"/{name}/" in key]) for name in "mn"] == [5, 1]
    assert len(lake_files(two_tables.lake)) == len(before) + 1  # no output of the refused merge is left
    assert Plans(two_tables.directory.path).read() is None
    assert counters.compaction[Counted.LOOKS] == 2
    assert counters.compaction[Counted.FAILURES] == 2
    assert "failed, and is tried again later: " in caplog.text


def test_a_table_without_files_of_arcpipe_is_not_read(handed: Handed, tables: ModelTables) -> None:
    """Such as one of somebody else, which arcpipe cannot read: it would be a failure in each hour."""
    put(handed.lake, "db/report/part-0.parquet", b"of somebody else")
    put(handed.lake, "db/report/_delta_log/00000000000000000000.json", b"{}")

    class Refusing(ModelTables):
        def files(self, table: TableName) -> Iterator[str]:
            if table == ("db", "report"):
                raise Refused("its protocol has the features deletionVectors")
            return super().files(table)

    counters = look_twice(handed, Refusing(tables.root))
    assert counters.compaction[Counted.FAILURES] == 0
    assert counters.compaction[Counted.MERGES] == 1


def test_many_tables_without_metadata_hold_up_no_other(tmp_path: Path, tables: ModelTables) -> None:
    """Somebody deleted a folder of metadata, and dropped none of its tables."""
    lost = [("db", f"a{number}") for number in range(5)]

    class Lost(ModelTables):
        def files(self, table: TableName) -> Iterator[str]:
            if table in lost:
                raise Unavailable(f"cannot read {table}: there is no such file")
            return super().files(table)

    handed = Handed(tmp_path)
    for _ in range(5):
        handed.batch([*lost, TABLE])
    Working(handed.directory.path, handed.lake, tables).round()
    look_twice(handed, Lost(tables.root))
    assert len([key for key in in_tables(tables) if f"/{TABLE[1]}/" in key]) == 1


def test_an_hour_whose_columns_a_table_refuses_is_tried_once(
    handed: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the present and a former name of one column: other hours of the table are merged."""
    for _ in range(5):
        handed.batch(hour=1)
    Working(handed.directory.path, handed.lake, tables).round()
    hours = sorted({key.rpartition("/")[0] for key in in_tables(tables)})
    tries: list[str] = []

    def replace(self: ModelTables, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        tries.append(new[0].key.rpartition("/")[0])
        if tries[-1] == hours[0]:
            raise Refused("'a' and 'b' are one column of the table", column="a", key=new[0].key)
        original(self, table, old, new)

    original = ModelTables.replace
    monkeypatch.setattr(ModelTables, "replace", replace)
    counters = look_twice(handed, tables)
    assert tries == hours
    assert counters.compaction[Counted.LEFT_ALONE] == 5
    assert counters.compaction[Counted.MERGES] == 1
    assert counters.compaction[Counted.FAILURES] == 0


@pytest.mark.parametrize("how", ["remove", "files"])
def test_a_table_that_refuses_retention_holds_up_no_other(
    two_tables: Handed, tables: ModelTables, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = [HOUR_US / 1e6 + 6 * 86_400]

    async def expire(compactor: Compactor) -> None:
        put(two_tables.lake, key_of(99, measurement="new", hour_us=HOUR_US + 6 * DAY_US), b"1")
        store = open_store(f"file://{two_tables.lake}", StorageS3())
        block = Counters(1).compaction
        looks = RetentionLooks({"db": 1}, store, compactor, block, asyncio.Event(), lambda: now[0])
        await looks.look()  # it announces
        now[0] += 86_400
        with pytest.raises(Refused):
            await looks.look()
        await store.close()

    work(two_tables, refusing(tables, how), expire)
    assert [len([key for key in in_tables(tables) if f"/{name}/" in key]) for name in "mn"] == [5, 0]
    assert "retention deletes nothing before" in caplog.text


# A plan that was made while the settings had no tables, or had some


def test_without_tables_in_the_settings_no_file_of_a_table_is_touched(
    handed: Handed, tables: ModelTables, folder: Folder
) -> None:
    """Somebody turned tables off, for a day or by mistake: their readers still need the files."""
    wanted = rows(handed, tables)

    async def expire(compactor: Compactor) -> None:
        store = open_store(f"file://{handed.lake}", StorageS3())
        try:
            await Retention(store, compactor).delete(folder)
        finally:
            await store.close()

    calls: list[Callable[[Compactor], Awaitable[Any]]] = [
        lambda compactor: compactor.finish(),
        lambda compactor: compactor.compact(folder),
        expire,
    ]
    for call in calls:
        with pytest.raises(Stuck, match=r'tables\.format is "none", and tables have files of this node'):
            work(handed, None, call)
    assert rows(handed, tables) == wanted
    os.unlink(
        os.path.join(handed.directory.path, "tables", "ledger.json")
    )  # as an operator does whose tables are gone for good
    assert work(handed, None, lambda compactor: compactor.compact(folder)) is not None


def merge_without_tables(handed: Handed, folder: Folder, monkeypatch: pytest.MonkeyPatch, deleted: int = 0) -> None:
    """Merge a folder as if there were no tables, and die once some of the inputs are deleted."""

    async def die(self: Merge, plan: Plan) -> None:
        await self._store.delete_all([one.key for one in plan.inputs[:deleted]])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Merge, "_delete_inputs", die)
        patched.setattr(Compactor, "_require_no_tables", lambda self: None)  # of a former version
        with pytest.raises(KeyboardInterrupt):
            work(handed, None, lambda compactor: compactor.compact(folder))


@pytest.mark.parametrize("deleted", [0, 2, 5])
def test_a_merge_from_before_the_tables_loses_no_row(
    tmp_path: Path, tables: ModelTables, deleted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs may be gone by then: nobody may delete its outputs because no table has them."""
    handed = Handed(tmp_path)
    for _ in range(5):
        handed.batch()
    wanted = sorted(handed.rows[TABLE])
    folder = parse_folder(min(handed.keys).rpartition("/")[0])
    assert folder is not None

    merge_without_tables(handed, folder, monkeypatch, deleted)
    work(handed, tables, lambda compactor: compactor.finish())
    files = lake_files(handed.lake)
    found = [pq.read_table(path, columns=["n"], partitioning=None)["n"].to_pylist() for path in files]
    assert sorted(number for numbers in found for number in numbers) == wanted
    assert Plans(handed.directory.path).read() is None


def test_a_merge_of_files_of_tables_waits_for_the_tables(handed: Handed, tables: ModelTables, folder: Folder) -> None:
    """Without them nobody knows which files readers of the table need."""

    class Crashing(ModelTables):
        def replace(self, table: TableName, old: list[str], new: list[NewFile]) -> None:  # type: ignore[override]
            raise KeyboardInterrupt

    wanted = rows(handed, tables)
    with pytest.raises(KeyboardInterrupt):
        work(handed, Crashing(tables.root), lambda compactor: compactor.compact(folder))
    with pytest.raises(Stuck, match=r'merges files of tables, and tables\.format is "none" now'):
        work(handed, None, lambda compactor: compactor.finish())
    assert rows(handed, tables) == wanted
    work(handed, tables, lambda compactor: compactor.finish())
    assert rows(handed, tables) == wanted
    assert len(in_tables(tables)) == 1


@pytest.mark.parametrize("deleted", [0, 2])
def test_a_merge_by_a_command_without_tables_is_finished_in_the_table(
    handed: Handed, tables: ModelTables, folder: Folder, deleted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody called it with other settings than the server's, and it was killed."""
    wanted = rows(handed, tables)

    merge_without_tables(handed, folder, monkeypatch, deleted)
    work(handed, tables, lambda compactor: compactor.finish())
    assert rows(handed, tables) == wanted
    assert len(in_tables(tables)) == 1


def test_a_merge_of_which_the_table_has_some_files_waits_for_a_person(
    handed: Handed, tables: ModelTables, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_without_tables(handed, folder, monkeypatch)
    tables.remove(TABLE, in_tables(tables)[:2])
    before = lake_files(handed.lake)
    with pytest.raises(Stuck, match="the table has 3 of its 5 files"):
        work(handed, tables, lambda compactor: compactor.finish())
    assert lake_files(handed.lake) == before
