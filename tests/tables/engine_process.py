"""The other end of `engines.Engine`: a program for an interpreter that has an engine, which has nothing of the tests'.

Its argument is "spark" with a folder of jars, or "duckdb". Each line of its input is JSON, `{"sql": …}`; each line of
its output is `{"rows": […], "error": …}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[str], list[Any]]


def spark(jars: Path) -> Run:
    from pyspark.sql import SparkSession  # type: ignore[import-not-found, unused-ignore]

    builder = SparkSession.builder.master("local[2]")
    for name, value in {
        "spark.jars": ",".join(map(str, jars.glob("*.jar"))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.default.parallelism": "2",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return lambda sql: [list(row) for row in session.sql(sql).collect()]


def duckdb() -> Run:
    import duckdb

    [extension] = (Path(duckdb.__file__).parents[1] / "duckdb_ext").rglob("delta.duckdb_extension")
    connection = duckdb.connect()
    connection.execute(f"LOAD '{extension}'")
    return lambda sql: connection.execute(sql).fetchall()


def main() -> None:
    os.environ["TZ"] = "UTC"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the JVM prints is no answer
    run = spark(Path(sys.argv[2])) if sys.argv[1] == "spark" else duckdb()
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"rows": run(json.loads(line)["sql"]), "error": None}
        except Exception as failure:
            answer = {"rows": [], "error": str(failure)}
        print(json.dumps(answer, default=str), file=answers, flush=True)


if __name__ == "__main__":
    main()
