"""Spark reads, rewrites, deletes and expires in tables to which arcpipe commits. Long: `make test-tables`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcpipe.tables.base import Conflict, Refused
from arcpipe.tables.iceberg.change import Change
from tests.support.iceberg import World, rest_world
from tests.support.spark_sql import VERSION, SparkSQL
from tests.support.tables import CPU, rows

A, B = "0123456789ab", "ba9876543210"

pytestmark = pytest.mark.skipif(not VERSION, reason="needs Spark: make test-tables installs it")


@pytest.fixture
def shared(iceberg_rest: str, tmp_path: Path) -> World:
    return rest_world(iceberg_rest, tmp_path)


def name_of(world: World) -> str:
    return "lake." + ".".join(f"`{part}`" for part in world.identifier())


def numbers(spark: SparkSQL, world: World) -> list[int]:
    """Read a table with Spark and with two other readers, which have to agree."""
    found = sorted(row[0] for row in spark.sql(f"SELECT n FROM {name_of(world)}"))
    assert found == world.numbers()
    return found


def call(spark: SparkSQL, world: World, procedure: str, options: str = "") -> list[list[Any]]:
    table = name_of(world).removeprefix("lake.")
    return spark.sql(f"CALL lake.system.{procedure}(table => '{table}'{options})")


def first_comes(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    attempt = Change.attempt
    waiting = [act]

    def late(self: Change) -> Any:
        while waiting:
            waiting.pop()()
        return attempt(self)

    monkeypatch.setattr(Change, "attempt", late)


def test_spark_reads_all_columns_of_all_files(spark: SparkSQL, shared: World) -> None:
    tables = shared.open()
    tables.commit(CPU, [shared.lake.put(CPU, rows(0), "a"), shared.lake.put(CPU, rows(3, load=0.5), "b")], A, 1)
    assert numbers(spark, shared) == list(range(6))
    assert spark.sql(f"SELECT n, host, load FROM {name_of(shared)} WHERE n IN (1, 4) ORDER BY n") == [
        [1, "h1", None],
        [4, "h1", 0.5],
    ]
    filtered = f"SELECT count(*) FROM {name_of(shared)} WHERE time >= '2026-01-01 00:00:04' AND host = 'h0'"
    assert spark.sql(filtered) == [[1]]


def test_spark_rewrites_and_expires_between_a_lost_answer_and_the_redo(spark: SparkSQL, shared: World) -> None:
    tables = shared.open()
    files = [shared.lake.put(CPU, rows(3 * number), f"b{number}") for number in range(4)]
    for number, file in enumerate(files):
        tables.commit(CPU, [file], A, number + 1)
    call(spark, shared, "rewrite_data_files", ", options => map('rewrite-all', 'true')")
    call(spark, shared, "rewrite_manifests")
    call(spark, shared, "expire_snapshots", ", older_than => TIMESTAMP '2999-01-01 00:00:00', retain_last => 1")
    assert not any(key.endswith(".parquet") for key in shared.lake.objects())  # Spark deleted what it had rewritten
    assert shared.open().commit(CPU, [files[3]], A, 4).files == 0
    assert numbers(spark, shared) == list(range(12))
    tables.commit(CPU, [shared.lake.put(CPU, rows(12), "b4")], A, 5)
    assert numbers(spark, shared) == list(range(15))


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("DELETE FROM {} WHERE n = 1", [0, 2, 3, 4, 5]),
        ("UPDATE {} SET n = 100 WHERE n = 1", [0, 2, 3, 4, 5, 100]),
        ("INSERT INTO {} (time, host, n) VALUES (TIMESTAMP '2026-01-01 05:00:00', 'h9', 9)", [0, 1, 2, 3, 4, 5, 9]),
        ("ALTER TABLE {} ADD COLUMN site STRING", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_spark_changes_the_table_between_staging_and_attempt(
    spark: SparkSQL, shared: World, monkeypatch: pytest.MonkeyPatch, statement: str, left: list[int]
) -> None:
    tables = shared.open()
    tables.commit(CPU, [shared.lake.put(CPU, rows(0), "a")], A, 1)
    file = shared.lake.put(CPU, rows(3), "b")
    first_comes(monkeypatch, lambda: spark.sql(statement.format(name_of(shared))))
    try:
        tables.commit(CPU, [file], A, 2)
    except Conflict:
        tables.commit(CPU, [file], A, 2)
    assert numbers(spark, shared) == left


def test_deletes_by_merge_on_read_are_not_undone_by_a_merge(spark: SparkSQL, shared: World) -> None:
    tables = shared.open()
    old = [shared.lake.put(CPU, rows(3 * number), f"b{number}") for number in range(2)]
    tables.commit(CPU, old, A, 1)
    spark.sql(f"ALTER TABLE {name_of(shared)} SET TBLPROPERTIES ('write.delete.mode'='merge-on-read')")
    spark.sql(f"DELETE FROM {name_of(shared)} WHERE n = 1")
    with pytest.raises(Refused, match="has delete files of another engine"):
        tables.replace(CPU, [file.key for file in old], [shared.lake.put(CPU, rows(0, 6), "merged")])
    tables.commit(CPU, [shared.lake.put(CPU, rows(6), "b2")], A, 2)
    tables.maintain(CPU)
    found = sorted(row[0] for row in spark.sql(f"SELECT n FROM {name_of(shared)}"))
    assert found == [0, 2, 3, 4, 5, 6, 7, 8]


def test_spark_reads_after_a_replacement_and_upkeep(spark: SparkSQL, shared: World) -> None:
    tables = shared.open(history_hours=0)
    old = [shared.lake.put(CPU, rows(3 * number), f"b{number}") for number in range(12)]
    for number, file in enumerate(old):
        tables.commit(CPU, [file], (A, B)[number % 2], number + 1)
    tables.replace(CPU, [file.key for file in old], [shared.lake.put(CPU, rows(0, 36), "merged")])
    assert numbers(spark, shared) == list(range(36))
    tables.maintain(CPU)
    assert numbers(spark, shared) == list(range(36))
    assert spark.sql(f"SELECT count(*) FROM {name_of(shared)}.snapshots") == [[1]]
    assert spark.sql(f"SELECT count(*), sum(record_count) FROM {name_of(shared)}.files") == [[1, 36]]


def test_a_table_that_spark_made_and_partitioned_is_taken(spark: SparkSQL, shared: World) -> None:
    spark.sql(f"CREATE NAMESPACE IF NOT EXISTS {name_of(shared).rpartition('.')[0]}")
    spark.sql(f"CREATE TABLE {name_of(shared)} (time TIMESTAMP, n BIGINT) USING iceberg PARTITIONED BY (hours(time))")
    tables = shared.open()
    tables.commit(CPU, [shared.lake.put(CPU, rows(0), "a")], A, 1)
    spark.sql(f"ALTER TABLE {name_of(shared)} REPLACE PARTITION FIELD hours(time) WITH months(time)")
    tables.commit(CPU, [shared.lake.put(CPU, rows(3), "b")], A, 2)
    spark.sql(f"ALTER TABLE {name_of(shared)} WRITE ORDERED BY host, time")
    tables.commit(CPU, [shared.lake.put(CPU, rows(6), "c")], A, 3)
    assert numbers(spark, shared) == list(range(9))


def test_spark_widens_and_renames_a_column(spark: SparkSQL, shared: World) -> None:
    tables = shared.open()
    tables.commit(CPU, [shared.lake.put(CPU, rows(0, time_ns=1, load=0.5), "a")], A, 1)
    spark.sql(f"ALTER TABLE {name_of(shared)} RENAME COLUMN load TO load_1m")
    tables.commit(CPU, [shared.lake.put(CPU, rows(3, time_ns=2, load=1.5), "b")], A, 2)
    found = spark.sql(f"SELECT n, load_1m FROM {name_of(shared)} WHERE n IN (0, 3) ORDER BY n")
    assert found == [[0, 0.5], [3, 1.5]]
