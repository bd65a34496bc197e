"""The other end of `spark.Spark`: a program for an interpreter that has pyspark, which has nothing of the tests'.

Its argument is the jar of Iceberg, if that is to read the files. Each line of its input is JSON,
`{"folder": …, "rows": …}`: it reads the folder and pickles its rows into the file `rows`. Each line of its output,
`{"error": …}`, is null for a folder that could be read.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def read(session: Any, folder: Path) -> list[dict[str, Any]]:
    reader = session.read.option("mergeSchema", "true")
    if not any(child.is_dir() for child in folder.rglob("year=*")):  # of the folders `2026/01/…` no column is made
        reader = reader.option("recursiveFileLookup", "true")
    frame = reader.parquet(str(folder))
    if session.conf.get("spark.jars", ""):
        frame = iceberg_table(session, folder, frame.schema)
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame.collect()]
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def iceberg_table(session: Any, folder: Path, schema: Any) -> Any:
    """Make a table of the files; it is added to from folders without further ones."""
    directory = Path(tempfile.mkdtemp(dir=Path.cwd()))
    for number, file in enumerate(sorted(folder.rglob("*.parquet"))):
        shutil.copyfile(file, directory / f"{number}.parquet")
    table = f"db.{directory.name}"
    session.createDataFrame([], schema).writeTo(f"lake.{table}").using("iceberg").create()
    session.sql(f"CALL lake.system.add_files(table => '{table}', source_table => '`parquet`.`{directory}`')")
    return session.table(f"lake.{table}")


def plain(value: Any) -> Any:
    """Spark's times are local ones, in the time zone that `main` sets, and bytes are bytearrays."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    return bytes(value) if isinstance(value, bytearray) else value


def main() -> None:
    os.environ["TZ"] = "UTC"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the JVM prints is no answer
    from pyspark.sql import SparkSession  # type: ignore[import-not-found, unused-ignore]

    builder = SparkSession.builder.master("local[1]")
    jar = sys.argv[1] if len(sys.argv) > 1 else ""
    iceberg = {
        "spark.jars": jar,
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hadoop",
        "spark.sql.catalog.lake.warehouse": f"file://{Path.cwd()}/warehouse",
    }
    for name, value in {
        **(iceberg if jar else {}),
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.session.timeZone": "UTC",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    for line in sys.stdin:
        asked = json.loads(line)
        error = None
        try:
            Path(asked["rows"]).write_bytes(pickle.dumps(read(session, Path(asked["folder"]))))
        except Exception as failure:
            error = str(failure)
        print(json.dumps({"error": error}), file=answers, flush=True)
    session.stop()


if __name__ == "__main__":
    main()
