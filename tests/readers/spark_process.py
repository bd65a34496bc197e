"""The other end of `spark.Spark`: a program for an interpreter that has pyspark, which has nothing of the tests'.

Each line of its input is JSON, `{"folder": …, "rows": …}`: it reads the folder and pickles its rows into the file
`rows`. Each line of its output, `{"error": …}`, is null for a folder that could be read.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def read(session: Any, folder: Path) -> list[dict[str, Any]]:
    reader = session.read.option("mergeSchema", "true")
    if not any(child.is_dir() for child in folder.rglob("year=*")):  # of the folders `2026/01/…` no column is made
        reader = reader.option("recursiveFileLookup", "true")
    frame = reader.parquet(str(folder))
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame.collect()]
    return [{name: plain(value) for name, value in row.items()} for row in rows]


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
    for name, value in {
        "spark.ui.enabled": "false",
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
