"""Spark with Delta, and DuckDB with its extension, each in a process of an interpreter that has it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.support.program import ROOT

INSTALLED: Final = os.environ.get("ARCPIPE_TEST_DELTA", "").split()
"""`3.5.9/delta-3.3.2`, a Spark with jars of Delta, and `1.4.4`, a DuckDB, if `make test-tables` has installed them."""


class EngineError(Exception):
    """An engine refuses a statement; the text is its own."""


class Engine:
    """A running engine. The first answer of Spark takes several seconds."""

    def __init__(self, name: str, directory: Path) -> None:
        spark, duckdb = INSTALLED
        place = ROOT / (f".venv-spark-{spark.partition('/')[0]}" if name == "spark" else f".venv-duckdb-{duckdb}")
        self._errors = (directory / f"{name}.err").open("wb")
        self._process = subprocess.Popen(
            [
                *(place / "bin" / "python", Path(__file__).with_name("engine_process.py"), name),
                ROOT / f".venv-spark-{spark}",
            ],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def run(self, sql: str) -> list[list[Any]]:
        """Run a statement, and return its rows."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"sql": sql}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, Path(self._errors.name).read_text()[-2000:]
        answer = json.loads(line)
        if answer["error"] is not None:
            raise EngineError(answer["error"])
        rows: list[list[Any]] = answer["rows"]
        return rows

    def close(self) -> None:
        """End it: it stops when its input ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
