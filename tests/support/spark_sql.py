"""Spark as somebody else who changes tables: SQL in, rows out, in a process of an interpreter that has pyspark.

`make test-tables` installs it, with Iceberg's runtime. Each statement takes a second or so, and the first some more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
VERSION: Final = os.environ.get("ARCPIPE_TEST_SPARK_TABLES", "")
"""`3.5.9/iceberg-1.10.1`: of Spark, and of the jar beside it, in `.venv-spark-3.5.9`."""


class SparkSQL:
    """A running Spark whose catalogue `lake` is a REST catalogue."""

    def __init__(self, uri: str) -> None:
        version, _, jar = VERSION.partition("/")
        environment = ROOT / f".venv-spark-{version}"
        self._directory = Path(tempfile.mkdtemp(prefix="arcpipe-spark-"))
        self._errors = (self._directory / "stderr").open("wb")
        self._process = subprocess.Popen(
            [environment / "bin" / "python", __file__, environment / f"{jar}.jar", uri],
            cwd=self._directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def sql(self, statement: str) -> list[list[Any]]:
        """Run a statement; raises RuntimeError with Spark's own text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(statement).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._directory / "stderr").read_text()[-2000:]
        found = json.loads(answer)
        if found["error"] is not None:
            raise RuntimeError(found["error"])
        rows: list[list[Any]] = found["rows"]
        return rows

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        shutil.rmtree(self._directory)


def plain(value: Any) -> Any:
    """Return a value as JSON has it; times and others as texts."""
    return value if value is None or isinstance(value, int | float) else str(value)


def main(jar: str, uri: str) -> None:
    """Answer statements, one a line, until the input ends."""
    os.environ["TZ"] = "UTC"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the JVM prints is no answer
    from pyspark.sql import SparkSession  # type: ignore[import-not-found, unused-ignore]

    options = {
        "spark.jars": jar,
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "rest",
        "spark.sql.catalog.lake.uri": uri,
        "spark.sql.catalog.lake.cache-enabled": "false",
    }
    builder = SparkSession.builder.master("local[1]")
    for key, value in options.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    for line in sys.stdin:
        error, rows = None, []
        try:
            rows = [[plain(value) for value in row] for row in session.sql(json.loads(line)).collect()]
        except Exception as raised:  # whatever it is, the test reads it
            error = str(raised)
        answers.write(json.dumps({"error": error, "rows": rows}) + "\n")
        answers.flush()
    session.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
