"""Spark as a reader, in a process of an interpreter that has a pyspark: each version has one of its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.readers.model import Row
from tests.support.program import ROOT

VERSIONS: Final = os.environ.get("ARCPIPE_TEST_SPARK", "").split()
"""Versions of pyspark that are installed in `.venv-spark-VERSION`: `make test-spark` does it.

`3.5.9/iceberg-1.10.1` is that of Spark and a jar in the same place: Spark reads with Iceberg's reader of Parquet then.
"""


class SparkError(Exception):
    """Spark cannot read a folder; the text is its own."""


class Spark:
    """A running Spark of one version. Its first answer takes several seconds."""

    def __init__(self, version: str) -> None:
        version, _, iceberg = version.partition("/")
        environment = ROOT / f".venv-spark-{version}"
        jars = [environment / f"{iceberg}.jar"] if iceberg else []
        self._directory = Path(tempfile.mkdtemp(prefix="arcpipe-spark-"))
        self._errors = (self._directory / "stderr").open("wb")
        self._process = subprocess.Popen(
            [environment / "bin" / "python", Path(__file__).with_name("spark_process.py"), *jars],
            cwd=self._directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def read(self, folder: Path) -> list[Row]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rows = self._directory / "rows"
        self._process.stdin.write(json.dumps({"folder": str(folder), "rows": str(rows)}).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._directory / "stderr").read_text()[-2000:]
        error = json.loads(answer)["error"]
        if error is not None:
            raise SparkError(error)
        found: list[Row] = pickle.loads(rows.read_bytes())
        return found

    def close(self) -> None:
        """End it: it stops its JVM when its input ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        shutil.rmtree(self._directory)
