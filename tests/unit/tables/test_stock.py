"""Tables against the store, both ways, and the import of files that no table has."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from arcpipe.config.settings import StorageS3
from arcpipe.storage import open_store
from arcpipe.tables.base import Committed, NewFile, Refused, TableName, UnreadableTables
from arcpipe.tables.stock import IMPORT_NODE, Report, Stock
from arcpipe.tables.twins import Twins
from tests.support.commits import Handed, Working, in_tables
from tests.support.compaction import NODE, OTHER_NODE, file_bytes, key_of, put, table_of
from tests.support.table_model import ModelTables


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    return Handed(tmp_path)


@pytest.fixture
def tables(tmp_path: Path) -> ModelTables:
    return ModelTables(tmp_path / "tables")


class Compared:
    """A comparison of tables with a lake, and an import."""

    def __init__(self, handed: Handed, tables: ModelTables, all_nodes: bool = False, gone: str = "") -> None:
        self._handed, self._tables, self._all_nodes, self._gone = handed, tables, all_nodes, gone

    def reports(self, only: TableName | None = None) -> dict[TableName, Report]:
        async def compare() -> dict[TableName, Report]:
            store = open_store(f"file://{self._handed.lake}", StorageS3())
            stock = Stock(self._tables, store, self._handed.directory.path, NODE, self._all_nodes, gone=self._gone)
            found = {report.table: report async for report in stock.compare(only)}
            await store.close()
            return found

        return asyncio.run(compare())

    def import_all(self, tables: ModelTables | None = None) -> int:
        async def work() -> int:
            store = open_store(f"file://{self._handed.lake}", StorageS3())
            stock = Stock(
                tables or self._tables, store, self._handed.directory.path, NODE, self._all_nodes, gone=self._gone
            )
            reports = [report async for report in stock.compare()]
            added = sum([await stock.import_files(report) for report in reports])
            await store.close()
            return added

        return asyncio.run(work())


def lay(handed: Handed, number: int, node: str = NODE, measurement: str = "m") -> str:
    """Put a file that nobody handed over, as before there were tables."""
    key = key_of(number, node=node, measurement=measurement)
    data = file_bytes(table_of([{"time": 0, "host": "a", "n": number}]), handed.base, "db", measurement)
    put(handed.lake, key, data)
    return key


def test_tables_and_store_that_agree_are_whole(handed: Handed, tables: ModelTables) -> None:
    handed.batch([("db", "m"), ("d b", "ü")], files=2)
    Working(handed.directory.path, handed.lake, tables).round()
    found = Compared(handed, tables).reports()
    assert {table: report.is_whole for table, report in found.items()} == {("db", "m"): True, ("d b", "ü"): True}
    assert found["db", "m"][1:4] == (True, 2, 2)


def test_a_table_that_cannot_be_read_is_a_problem_of_its_own(handed: Handed, tables: ModelTables) -> None:
    """Whatever its folder is called: nothing in it is an orphan, which an import would add."""
    handed.batch([("db", "m")])
    Working(handed.directory.path, handed.lake, tables).round()
    lay(handed, 1, measurement="cut")

    class Holed(ModelTables):
        def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
            assert unreadable is not None
            unreadable.update({("db", "cut"): Refused("its log is damaged"), ("db", "away"): Refused("no metadata")})
            return super().all_tables()

    found = Compared(handed, Holed(tables.root)).reports()
    assert {table: report.problem for table, report in found.items()} == {
        ("db", "away"): "no metadata",
        ("db", "cut"): "its log is damaged",
        ("db", "m"): "",
    }
    assert not any(report.orphans for report in found.values())


def test_each_kind_of_file_is_told_apart(handed: Handed, tables: ModelTables) -> None:
    handed.batch(files=2)
    Working(handed.directory.path, handed.lake, tables).round()
    lost = sorted(handed.keys)[0]
    (handed.lake / lost).unlink()
    handed.batch()  # waits
    unfinished = lay(handed, 50)
    Path(handed.directory.batches, f"{unfinished.split('_')[-2]}.json").touch()
    orphan = lay(handed, 60)
    lay(handed, 70, OTHER_NODE)
    lay(handed, 80, measurement="unknown")
    found = Compared(handed, tables).reports()
    report = found["db", "m"]
    assert report.lost == [lost]
    assert [key for key, _ in report.orphans] == [orphan]
    assert (report.waiting, report.others) == (2, 1)
    assert not found["db", "unknown"].is_table
    assert len(found["db", "unknown"].orphans) == 1
    assert set(Compared(handed, tables).reports(("db", "m"))) == {("db", "m")}
    assert len(Compared(handed, tables, all_nodes=True).reports()["db", "m"].orphans) == 2
    assert len(Compared(handed, tables, gone=OTHER_NODE).reports()["db", "m"].orphans) == 2
    assert len(Compared(handed, tables, gone="0000").reports()["db", "m"].orphans) == 1


@pytest.mark.parametrize(
    "location", ["file:/elsewhere/data/x.parquet", "file:///elsewhere/x.parquet", "s3a://b/x.parquet"]
)
def test_files_that_others_wrote_outside_of_the_store_are_not_lost(
    handed: Handed, tables: ModelTables, location: str
) -> None:
    """Spark writes what it rewrites to the place of the table, and Hadoop's file systems have one slash."""
    handed.batch()
    Working(handed.directory.path, handed.lake, tables).round()
    own = lay(handed, 50)
    footer = pq.read_metadata(handed.lake / own)
    (handed.lake / own).unlink()
    written = NewFile(location, 1, 1, footer)
    tables.commit(("db", "m"), [written], OTHER_NODE, 1)
    report = Compared(handed, tables).reports()["db", "m"]
    assert (report.in_table, report.outside, report.lost, report.is_whole) == (2, 1, [], True)


def test_a_file_that_is_rewritten_and_its_copy_both_wait(handed: Handed, tables: ModelTables) -> None:
    """An import of either would double its rows."""
    file, copy = lay(handed, 50), lay(handed, 51)
    handed.files.make()
    Twins.load(handed.files.folder, handed.files.disk).add(1, handed.node, "db/m", file, copy)
    report = Compared(handed, tables).reports()["db", "m"]
    assert (report.waiting, report.orphans) == (2, [])
    assert Compared(handed, tables).import_all() == 0


def test_an_import_adds_what_no_table_has_and_nothing_twice(handed: Handed, tables: ModelTables) -> None:
    old = [lay(handed, number) for number in range(50, 55)]
    handed.batch()
    Working(handed.directory.path, handed.lake, tables).round()
    assert Compared(handed, tables).import_all() == 5
    assert Compared(handed, tables).import_all() == 0
    assert in_tables(tables) == sorted([*old, *handed.keys])
    handed.batch()
    assert Working(handed.directory.path, handed.lake, tables).round().files == 1
    assert all(report.is_whole for report in Compared(handed, tables).reports().values())


def test_what_waits_for_its_commit_is_not_imported(handed: Handed, tables: ModelTables) -> None:
    handed.batch()
    assert Compared(handed, tables).import_all() == 0
    assert Working(handed.directory.path, handed.lake, tables).round().files == 1


def test_two_imports_at_once_add_no_file_twice(handed: Handed, tables: ModelTables) -> None:
    """The other one commits just before: it saw the same files, which are in no table."""
    keys = [lay(handed, number) for number in range(50, 53)]

    class Second(ModelTables):
        first = True

        def commit(self, table: TableName, files: list[NewFile], node: str, seq: int) -> Committed:  # type: ignore[override]
            if self.first:
                self.first = False
                tables.commit(table, files[:2], IMPORT_NODE, seq)
            return super().commit(table, files, node, seq)

    assert Compared(handed, tables).import_all(Second(tables.root)) == 1
    assert in_tables(tables) == sorted(keys)


def test_a_file_that_is_committed_meanwhile_is_no_orphan(handed: Handed, tables: ModelTables) -> None:
    handed.batch()

    class Late(ModelTables):
        """The committer works between the first look at the table and the look at the commit files."""

        looked = False

        def files(self, table: TableName):  # type: ignore[no-untyped-def]
            yield from super().files(table)
            if not self.looked:
                self.looked = True
                Working(handed.directory.path, handed.lake, tables).round()

    handed.batch()
    Working(handed.directory.path, handed.lake, tables).round()
    handed.batch()
    report = Compared(handed, Late(tables.root)).reports()["db", "m"]
    assert report.orphans == []


def test_files_that_somebody_took_out_are_not_added_again(handed: Handed, tables: ModelTables) -> None:
    """Another engine compacted: the old files stay for readers of the earlier state."""
    handed.batch(files=3)
    Working(handed.directory.path, handed.lake, tables).round()
    gone = sorted(handed.keys)[:2]
    tables.remove(("db", "m"), gone)
    report = Compared(handed, tables).reports()["db", "m"]
    assert (report.former, report.orphans, report.is_whole) == (2, [], True)
    assert Compared(handed, tables).import_all() == 0
