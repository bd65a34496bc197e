"""Spark and DuckDB on Delta tables of arcpipe: they read them, and Spark maintains them between our commits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcpipe.tables.base import Conflict, Refused, TableName
from arcpipe.tables.delta.checkpoints import uri_of
from arcpipe.tables.delta.paths import root_of
from tests.support.delta import CPU, DeltaLake, local_lake, rows_of
from tests.tables.engines import INSTALLED, Engine, EngineError

pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="make test-tables installs the engines"),
    pytest.mark.timeout(3_600),  # Spark takes minutes for a VACUUM on a busy machine
]

NAMED: TableName = ("my db", "c/p%20u")


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine("spark", tmp_path_factory.mktemp("spark"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def duck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine("duckdb", tmp_path_factory.mktemp("duckdb"))
    yield engine
    engine.close()


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[DeltaLake]:
    made = local_lake(tmp_path)
    yield made
    made.close()


def place(lake: DeltaLake, table: TableName = CPU) -> str:
    return uri_of(lake.storage, root_of(table))


def by_spark(spark: Engine, lake: DeltaLake, table: TableName = CPU) -> list[int]:
    return sorted(row[0] for row in spark.run(f"SELECT n FROM delta.`{place(lake, table)}`"))


def by_duckdb(duck: Engine, lake: DeltaLake, table: TableName = CPU) -> list[int]:
    return sorted(row[0] for row in duck.run(f"SELECT n FROM delta_scan('{place(lake, table)}')"))


@pytest.mark.parametrize("table", [CPU, NAMED], ids=["plain", "named"])
@pytest.mark.parametrize("hidden", ["._~", "._"])
def test_both_read_every_row_and_prune_none(
    lake: DeltaLake, spark: Engine, duck: Engine, table: TableName, hidden: str
) -> None:
    """With `._` the files are in folders with percent signs, from before the tables."""
    lake = local_lake(lake.directory, hidden=hidden)
    tables = lake.open()
    for seq in range(1, 13):
        rows = [row | {"a b": row["n"], "text": "x" * 40 + str(row["n"])} for row in rows_of(seq * 10)]
        tables.commit(table, [lake.file(rows, table)], "n1", seq)
    expected = list(range(10, 130))
    assert by_spark(spark, lake, table) == by_duckdb(duck, lake, table) == expected
    for run, name, column in (
        (spark.run, f"delta.`{place(lake, table)}`", "`a b`"),
        (duck.run, f"delta_scan('{place(lake, table)}')", '"a b"'),
    ):
        assert run(f"SELECT count(*), min(n), max({column}) FROM {name}") == [[120, 10, 129]]
        assert run(f"SELECT count(*) FROM {name} WHERE text = '{'x' * 40}77'") == [[1]]
        assert run(f"SELECT count(*) FROM {name} WHERE n >= 100 AND v < 55") == [[10]]
        [[first, last]] = run(f"SELECT min(time), max(time) FROM {name}")
        assert run(f"SELECT count(*) FROM {name} WHERE time = '{first}'") == [[12]]
        assert run(f"SELECT count(*) FROM {name} WHERE time >= '{last}'") == [[12]]
    lake.close()


def test_rewrites_and_vacuums_between_crash_and_redo_add_nothing(lake: DeltaLake, spark: Engine, duck: Engine) -> None:
    tables = lake.open()
    for seq in range(1, 13):
        tables.commit(CPU, [lake.file(rows_of(seq * 10))], "n1", seq)
    last = lake.file(rows_of(130))
    tables.commit(CPU, [last], "n1", 13)
    spark.run(f"OPTIMIZE delta.`{place(lake)}`")
    spark.run(f"VACUUM delta.`{place(lake)}` RETAIN 0 HOURS")
    spark.run(
        f"ALTER TABLE delta.`{place(lake)}` SET TBLPROPERTIES "
        "('delta.logRetentionDuration' = 'interval 0 seconds', 'delta.checkpointInterval' = '1')"
    )
    assert lake.listed("db/cpu/2026/") == []
    log = lake.root / "db/cpu/_delta_log"
    for path in log.glob("*.json"):
        os.utime(path, (1, 1))
    spark.run(f"INSERT INTO delta.`{place(lake)}` SELECT * FROM delta.`{place(lake)}` WHERE n = 10")
    tables.maintain(CPU)
    assert not (log / f"{12:020}.json").exists()  # of our last commit nothing is left but the marker
    for redo in (tables, lake.open()):
        assert redo.commit(CPU, [last], "n1", 13).files == 0
    assert tables.commit(CPU, [lake.file(rows_of(140))], "n1", 14).files == 1
    assert by_spark(spark, lake) == by_duckdb(duck, lake) == [10, *range(10, 150)]
    assert set(tables.files(CPU)) <= set(lake.listed())


def test_every_statement_of_spark_goes_with_commits_between(lake: DeltaLake, spark: Engine, duck: Engine) -> None:
    tables, other = lake.open(), lake.open()
    name = f"delta.`{place(lake)}`"
    expected = list(range(10))
    tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
    for seq, statement in enumerate(
        (
            f"ALTER TABLE {name} ADD COLUMNS (extra STRING)",
            f"DELETE FROM {name} WHERE n = 5",
            f"UPDATE {name} SET extra = 'x' WHERE n < 3",
            f"OPTIMIZE {name} ZORDER BY (host)",
            f"INSERT INTO {name} (n) VALUES (1000)",
            f"VACUUM {name} RETAIN 0 HOURS",
            f"ALTER TABLE {name} ALTER COLUMN n COMMENT 'a number'",
            f"MERGE INTO {name} t USING (SELECT 7 AS k) s ON t.n = s.k WHEN MATCHED THEN DELETE",
            f"RESTORE TABLE {name} TO VERSION AS OF LAST",
            f"OPTIMIZE {name}",
        ),
        2,
    ):
        spark.run(statement.replace("LAST", str(lake.delta().version() - 1)))
        node = tables if seq % 2 else other
        node.commit(CPU, [lake.file([{"n": seq * 100, "extra": "y"}])], "n1", seq)
        expected.append(seq * 100)
    assert tables.markers(CPU) == other.markers(CPU) == {"n1": 11}
    found = by_spark(spark, lake)
    assert found == by_duckdb(duck, lake)
    # The table went back to before our commit of 900, as somebody wanted; what came later is there.
    assert found == sorted([n for n in expected if n not in (5, 7, 900)] + [1000])
    assert [column.name for column in tables.columns(CPU)][-1] == "extra"


def test_vacuum_leaves_a_young_file_that_waits_for_its_commit(lake: DeltaLake, spark: Engine) -> None:
    """The default is 7 days, by the age of the file. An older one is deleted: see docs/tables.md."""
    tables = lake.open()
    tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
    young, old = lake.file(rows_of(10)), lake.file(rows_of(20))
    for file, days in ((young, 6.9), (old, 8.1)):
        then = (lake.root / file.key).stat().st_mtime - days * 86_400
        os.utime(lake.root / file.key, (then, then))
    spark.run(f"VACUUM delta.`{place(lake)}`")
    left = lake.listed("db/cpu/2026/")
    assert young.key in left
    assert old.key not in left


def test_a_table_to_which_spark_gave_a_new_feature_is_refused(lake: DeltaLake, spark: Engine) -> None:
    tables = lake.open()
    tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
    spark.run(f"ALTER TABLE delta.`{place(lake)}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    for one in (tables, lake.open()):
        with pytest.raises(Refused, match="deletionVectors"):
            one.commit(CPU, [lake.file(rows_of(10))], "n1", 2)
    assert by_spark(spark, lake) == list(range(10))


def test_a_table_that_spark_made_is_taken(lake: DeltaLake, spark: Engine, duck: Engine) -> None:
    spark.run(
        f"CREATE TABLE delta.`{place(lake)}` (time TIMESTAMP, host STRING, n BIGINT, v DOUBLE, late STRING) USING delta"
    )
    tables = lake.open()
    assert tables.committed(CPU, "n1") is None
    tables.commit(CPU, [lake.file(rows_of(0))], "n1", 1)
    assert by_spark(spark, lake) == by_duckdb(duck, lake) == list(range(10))


def test_merged_files_of_a_compaction_meet_those_of_spark(lake: DeltaLake, spark: Engine) -> None:
    tables = lake.open()
    files = [lake.file(rows_of(number * 10)) for number in range(4)]
    tables.commit(CPU, files, "n1", 1)
    tables.replace(CPU, [file.key for file in files[:2]], [lake.file(rows_of(0, 20))])
    assert by_spark(spark, lake) == list(range(40))
    spark.run(f"OPTIMIZE delta.`{place(lake)}`")
    with pytest.raises(Conflict, match="gone"):
        tables.replace(CPU, [file.key for file in files[2:]], [lake.file(rows_of(20, 20))])
    assert by_spark(spark, lake) == list(range(40))


def test_spark_cannot_change_columns_beside_one_with_a_space(lake: DeltaLake, spark: Engine) -> None:
    """A known limit: everything else works."""
    lake.open().commit(CPU, [lake.file([{"n": 1, "a b": 2}])], "n1", 1)
    with pytest.raises(EngineError, match="DELTA_INVALID_CHARACTERS_IN_COLUMN_NAMES"):
        spark.run(f"ALTER TABLE delta.`{place(lake)}` ADD COLUMNS (x INT)")
    spark.run(f"INSERT INTO delta.`{place(lake)}` SELECT * FROM delta.`{place(lake)}`")
    assert by_spark(spark, lake) == [1, 1]
