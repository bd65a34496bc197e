"""A committer is killed, Spark rewrites and expires everything, the next one commits. Long: `make test-tables`."""

from __future__ import annotations

import pytest

from tests.crash.steps import Step
from tests.crash.test_tables_steps import OF_FORMATS, OF_THE_COMMITTER
from tests.support.spark_sql import VERSION, SparkSQL
from tests.tables.grid import DATABASE, MEASUREMENTS, Make, Place

pytestmark = pytest.mark.skipif(not VERSION, reason="needs Spark: make test-tables installs it")

# From the first moment on at which a table may have what the redo is about to commit.
STEPS = {
    name: step
    for name, step in (OF_FORMATS["iceberg"] | OF_THE_COMMITTER).items()
    if any(part in name for part in ("attempt", "end of commit files", "removal"))
}


def namespace_of(place: Place) -> str:
    return place.world.identifier((DATABASE, MEASUREMENTS[0]))[0]


def change_all(spark: SparkSQL, place: Place) -> list[str]:
    """Rewrite and expire whatever is there by now. Returns the tables, each of which has one snapshot left."""
    namespace = namespace_of(place)
    names: list[str] = []
    if [namespace] in spark.sql("SHOW NAMESPACES IN lake"):
        names = [row[1] for row in spark.sql(f"SHOW TABLES IN lake.`{namespace}`")]
    for name in names:
        table = f"`{namespace}`.`{name}`"
        call = f"CALL lake.system.{{}}(table => '{table}'{{}})"
        spark.sql(call.format("rewrite_data_files", ", options => map('rewrite-all', 'true')"))
        spark.sql(call.format("rewrite_manifests", ""))
        expired = ", older_than => TIMESTAMP '2999-01-01 00:00:00', retain_last => 1"
        spark.sql(call.format("expire_snapshots", expired))
        assert spark.sql(f"SELECT count(*) FROM lake.{table}.snapshots") in ([[0]], [[1]])
    return names


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_rows_are_there_once_whatever_spark_does_between_kill_and_redo(make: Make, spark: SparkSQL, step: Step) -> None:
    place = make("iceberg rest")
    assert place.commit(die=step) == -9
    change_all(spark, place)
    assert place.commit() == 0
    place.check()
    assert sorted(change_all(spark, place)) == sorted(MEASUREMENTS)
    place.check_rows()


def test_a_table_that_spark_dropped_between_kill_and_redo_is_made_anew(make: Make, spark: SparkSQL) -> None:
    """What the redo commits is there once. Of earlier batches nobody asks: they were dropped with the table."""
    place = make("iceberg rest")
    assert place.commit(die=STEPS["before the end of commit files"]) == -9
    spark.sql(f"DROP TABLE lake.`{namespace_of(place)}`.`{MEASUREMENTS[0]}`")
    assert place.commit() == 0
    place.check()
