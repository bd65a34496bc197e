"""The worst that clients can send: the uploader ships it in the memory that it is to have.

`python -m benchmarks.worst.upload` has many more of them; these take little time, or ARCPIPE_TEST_LONG=1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sets import long

LIMIT_MB = 600
USUAL_MB = 467  # what loads as clients send them may take


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("case", "limit_mb"),
    [
        ("remote write", USUAL_MB),  # 470 to 531 MB before
        ("100M small integers", LIMIT_MB),
        pytest.param("one string of 90 MB", LIMIT_MB, marks=long),
        ("4,096 columns, 2,700 rows", LIMIT_MB),
        ("Arrow: integers of a byte", LIMIT_MB),  # 824 MB before
        pytest.param("Arrow: booleans", LIMIT_MB, marks=long),  # 2.4 GB before
        pytest.param("Arrow: maps", LIMIT_MB, marks=long),  # 642 MB before
        pytest.param("Arrow: one stream of maps", LIMIT_MB, marks=long),
        # The metadata of open files, of columns and of long values: over 800 MB where each file has a bound of its own.
        # Minutes each; that the bound holds and that it is in real bytes is tested in test_tables and test_parquet.
        pytest.param("16 tables, 4,000 columns, 4 hours", LIMIT_MB, marks=long),
        pytest.param("16 tables, 256 texts of 4 kB, 4 hours", LIMIT_MB, marks=long),
    ],
)
def test_the_uploader_keeps_to_its_memory(case: str, limit_mb: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worst.upload", "--json", "--case", case],
        cwd=Path(__file__).parents[2],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    figures = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert figures["shipped"]
    assert figures["peak RSS MB"] < limit_mb
