"""Files that do not fit their table: they are rewritten, each row is in the table once, and no object stays behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.lake.parquet_file import ParquetFile
from arcpipe.storage.local import LocalStore
from arcpipe.tables import states
from arcpipe.tables.base import Committed, NewFile, TableName, Unavailable
from arcpipe.tables.learned import Learned, LearnedColumn
from arcpipe.tables.twins import Twins
from tests.support.commits import Block, Handed, Working, in_tables
from tests.support.lake import lake_files
from tests.support.table_model import ModelTables

M = ("db", "m")


@pytest.fixture
def tables(tmp_path: Path) -> ModelTables:
    return ModelTables(tmp_path / "tables")


@pytest.fixture
def first(tmp_path: Path, tables: ModelTables) -> Handed:
    """A node whose files made the table, with integers."""
    (tmp_path / "first").mkdir()
    handed = Handed(tmp_path / "first", tmp_path / "lake")
    handed.batch()
    assert work(handed, tables).round() == (1, 1, 2, 0, 0)
    return handed


@pytest.fixture
def second(tmp_path: Path, first: Handed) -> Handed:
    """Another node of the same lake."""
    (tmp_path / "second").mkdir()
    return Handed(tmp_path / "second", tmp_path / "lake", "ba9876543210")


def work(handed: Handed, tables: ModelTables) -> Working:
    return Working(handed.directory.path, handed.lake, tables)


def rows(lake: Path, tables: ModelTables, *columns: str) -> list[tuple[Any, ...]]:
    """All rows of the table, as a reader sees them: each column has one type."""
    keys = list(tables.files(M))
    assert len(keys) == len(set(keys))
    whole = pa.concat_tables([pq.read_table(lake / key) for key in keys], promote_options="default")
    names = [whole[name].to_pylist() if name in whole.schema.names else [None] * len(whole) for name in columns]
    return sorted(zip(*names, strict=True), key=repr)


def check(handed: Handed, tables: ModelTables) -> None:
    """Every object of the lake is in a table once, and nothing waits."""
    found = in_tables(tables)
    assert len(found) == len(set(found))
    assert sorted(str(path.relative_to(handed.lake)) for path in lake_files(handed.lake)) == found
    assert handed.files.names() == []
    assert not Path(handed.files.folder, "twins.json").exists()
    assert list(Path(handed.directory.spool).iterdir()) == []


def test_values_of_another_type_go_to_the_sibling(first: Handed, second: Handed, tables: ModelTables) -> None:
    second.batch(n=pa.string(), files=3)
    second.batch([("db", "other")])
    assert work(second, tables).round() == (2, 4, 8, 0, 0)
    wanted: list[tuple[Any, ...]] = [(n, None) for n in first.rows[M]]
    wanted += [(None, str(n)) for n in second.rows[M]]
    assert rows(second.lake, tables, "n", "n_str") == sorted(wanted, key=repr)
    check(second, tables)
    [learned] = Learned.load(second.files.folder, second.files.disk).tables()
    assert learned.columns == [LearnedColumn("n", "n", "str", "i64", "n_str")]


def test_integers_become_floats_where_the_table_has_floats(tmp_path: Path, tables: ModelTables) -> None:
    handed = Handed(tmp_path)
    handed.batch(n=pa.float64())
    assert work(handed, tables).round().failed == 0
    handed.batch(n=pa.int64())
    assert work(handed, tables).round().failed == 0
    assert rows(tmp_path / "lake", tables, "n") == sorted(((float(n),) for n in handed.rows[M]), key=repr)
    assert "n_i64" not in tables.load(M)[1]["types"]  # type: ignore[index]
    check(handed, tables)


def test_files_of_one_commit_may_differ_among_themselves(tmp_path: Path, tables: ModelTables) -> None:
    handed = Handed(tmp_path)
    for types in ({}, {"n": pa.string()}, {"n": pa.float64()}, {"n": pa.string()}):
        handed.batch(**types)
    assert work(handed, tables).round() == (1, 4, 8, 0, 0)
    one, two, three, four = (handed.rows[M][place : place + 2] for place in range(0, 8, 2))
    wanted: list[tuple[Any, ...]] = [(n, None, None) for n in one] + [(None, str(n), None) for n in two + four]
    wanted += [(None, None, float(n)) for n in three]
    assert rows(tmp_path / "lake", tables, "n", "n_str", "n_f64") == sorted(wanted, key=repr)
    check(handed, tables)


@pytest.mark.parametrize("lost", ["answer", "request"])
def test_a_commit_whose_outcome_is_unknown_is_settled_later(
    first: Handed, second: Handed, tables: ModelTables, lost: str
) -> None:
    second.batch(n=pa.string())

    class Losing(ModelTables):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            if lost == "answer" or not any(".fit" in file.key for file in files):
                super().commit(table, files, node, seq)
            raise Unavailable("the answer is lost")

    assert work(second, Losing(tables.root)).round().failed == 1
    assert len(list(Twins.load(second.files.folder, second.files.disk))) == 1
    assert work(second, tables).round().failed == 0
    check(second, tables)
    assert len(rows(second.lake, tables, "n_str")) == 4


def test_a_table_that_fits_meanwhile_gets_the_file_itself(first: Handed, second: Handed, tables: ModelTables) -> None:
    """It was dropped after a copy was put: the copy goes, not the file."""
    second.batch(n=pa.string())

    class Failing(ModelTables):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            if any(".fit" in file.key for file in files):
                raise Unavailable("not now")
            return super().commit(table, files, node, seq)

    assert work(second, Failing(tables.root)).round().failed == 1
    for path in (second.lake / key for key in first.keys):
        path.unlink()
    tables.drop(M)
    assert work(second, tables).round() == (1, 1, 2, 0, 0)
    assert in_tables(tables) == sorted(second.keys)
    check(second, tables)


def test_a_table_that_is_dropped_after_its_commit_gets_the_copy_again(
    first: Handed, second: Handed, tables: ModelTables
) -> None:
    """While the commit file waits for another table: the file itself is deleted by then."""
    second.batch([M, ("db", "other")], n=pa.string())

    class Failing(ModelTables):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            if table == ("db", "other"):
                raise Unavailable("not now")
            return super().commit(table, files, node, seq)

    assert work(second, Failing(tables.root)).round().failed == 1
    assert len([path for path in lake_files(second.lake) if "/m/" in str(path)]) == 2
    tables.drop(M)
    assert work(second, tables).round() == (2, 2, 4, 0, 0)
    assert rows(second.lake, tables, "n_str") == sorted(((str(n),) for n in second.rows[M]), key=repr)


def test_a_copy_that_is_not_its_file_is_never_committed(
    first: Handed, second: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    second.batch(n=pa.string())
    append = ParquetFile.append

    def spoilt(self: ParquetFile, table: pa.Table) -> None:
        place = table.schema.get_field_index("n_str")
        values = pa.array(["bad", *table["n_str"].to_pylist()[1:]]).cast(table.schema.field(place).type)
        append(self, table.set_column(place, table.schema.field(place), values))

    monkeypatch.setattr(ParquetFile, "append", spoilt)
    before = in_tables(tables)
    working = work(second, tables)
    assert working.round().failed == 1
    assert working[Block.FAILING] == 1
    [state] = [one for one in states.read(second.files.folder).listed if one.kind]
    assert "other values in column 'n'" in state.problem
    assert in_tables(tables) == before
    assert [path for path in lake_files(second.lake) if ".fit" in path.name] == []
    monkeypatch.undo()
    assert work(second, tables).round().failed == 0
    check(second, tables)


def test_the_same_file_and_types_make_the_same_object(first: Handed, second: Handed, tables: ModelTables) -> None:
    second.batch(n=pa.string())
    put: list[str] = []

    class Failing(ModelTables):
        def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
            if any(".fit" in file.key for file in files):
                put.extend(file.key for file in files)
                raise Unavailable("not now")
            return super().commit(table, files, node, seq)

    for _ in range(2):
        assert work(second, Failing(tables.root)).round().failed == 1
    assert len(put) == 2
    assert len(set(put)) == 1
    assert len(lake_files(second.lake)) == 3
    assert work(second, tables).round().failed == 0
    check(second, tables)


def test_a_large_file_is_rewritten_in_pieces(
    first: Handed, second: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcpipe.lake.input_file._BATCH_ROWS", 2)
    monkeypatch.setattr("arcpipe.tables.rewriting._READ_BYTES", 1_000)
    second.batch(n=pa.string(), count=9)
    assert work(second, tables).round() == (1, 1, 9, 0, 0)
    [key] = [key for key in tables.files(M) if ".fit" in key]
    assert pq.read_metadata(second.lake / key).num_row_groups == 5
    check(second, tables)


def test_objects_that_cannot_be_deleted_now_are_deleted_later(
    first: Handed, second: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    second.batch(n=pa.string())

    async def fail(self: LocalStore, keys: Sequence[str]) -> None:
        raise OSError("no")

    monkeypatch.setattr(LocalStore, "delete_all", fail)
    assert work(second, tables).round().failed == 1
    assert len(second.files.names()) == 1
    monkeypatch.undo()
    assert work(second, tables).round() == (0, 0, 0, 0, 0)
    check(second, tables)


def test_names_that_differ_in_case_are_two_columns(
    first: Handed, second: Handed, tables: ModelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_case(tables, monkeypatch)
    second.batch(rename={"n": "N"})
    assert work(second, tables).round().failed == 0
    found = {row[0] for row in rows(second.lake, tables, "N_2")} - {None}
    assert found == set(second.rows[M])
    check(second, tables)


def refuse_case(tables: ModelTables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the tables refuse names that differ in case only, as Iceberg and Delta do."""
    from arcpipe.tables.schema import added, wanted

    commit: Callable[..., Committed] = ModelTables.commit

    def checked(self: ModelTables, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        known = {column.name: column.type for column in self.columns(table)}
        added(table, known, wanted(table, files), str)
        return commit(self, table, files, node, seq)

    monkeypatch.setattr(ModelTables, "commit", checked)
