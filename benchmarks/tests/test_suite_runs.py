"""The benchmark harness on the real server, as small as it goes.

All suites and cases take minutes: ARCPIPE_TEST_BENCHMARKS=1 pytest benchmarks/tests/test_suite_runs.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results.histogram import Histogram
from benchmarks.results.model import Report, read
from benchmarks.suites.catalogue import RECOVERY, SUITES
from benchmarks.system.children import ROOT
from benchmarks.system.machine import is_in_memory
from tests.support.sets import long

pytestmark = pytest.mark.skipif(is_in_memory(ROOT), reason="the harness measures nothing in memory")

SMALL = ("--warmup", "0", "--runs", "1", "--workers", "1")


def bench(directory: Path, *arguments: str) -> Report:
    """Run the harness; return its results, and check that it left no files."""
    json = directory / "results.json"
    # Not below `directory`, which may be in memory.
    data = ROOT / f".bench-{os.getpid()}"
    # A busy machine may answer nothing within the shortest time.
    for seconds in ("0.5", "4", "30"):
        options = ("--seconds", seconds, "--data-dir", data, "--json", json)
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments, *options],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        if "measure longer (--seconds)" not in result.stderr:
            break
    assert result.returncode == 0, result.stdout + result.stderr
    assert not data.exists()
    return read(json)


def test_a_suite_measures_verifies_and_tells_what_the_disk_gives(tmp_path: Path) -> None:
    report = bench(tmp_path, "formats", "--case", "line protocol, gzip", *SMALL)
    [run] = report.suites[0].cases[0].runs
    assert run.parquet_records == run.acknowledged_records > 0
    assert Histogram(run.latency.hdr_histogram).count > 0
    assert run.wal is not None
    assert run.device is not None
    assert run.device.group_bytes == round(run.wal.bytes_per_commit)


@long
def test_an_open_loop_goes_at_half_of_what_the_closed_one_found(tmp_path: Path) -> None:
    report = bench(tmp_path, "latency", "--case", "1 record, half", *SMALL)
    maximum, half = (case.runs[0] for case in report.suites[0].cases)
    assert half.load.records_per_second == maximum.records_per_second / 2
    assert half.parquet_records == half.acknowledged_records > 0


def test_a_backlog_and_a_crashed_log_are_shipped_too(tmp_path: Path) -> None:
    report = bench(
        tmp_path,
        *("flat", "--case", "backlog", "recovery", "--case", "1000 records per entry"),
        *("--backlog-gb", "0.02", "--log-gb", "0.02", *SMALL),
    )
    [loaded] = report.suites[0].cases[0].runs
    assert loaded.backlog_at_start_bytes == 20_000_000
    assert loaded.parquet_records == loaded.acknowledged_records
    [recovered] = report.recovery[0].runs
    assert recovered.parquet_records == recovered.records > 300_000


@pytest.mark.skipif("ARCPIPE_TEST_BENCHMARKS" not in os.environ, reason="takes minutes: ARCPIPE_TEST_BENCHMARKS=1")
@pytest.mark.timeout(1200)
def test_every_case_of_every_suite_works(tmp_path: Path) -> None:
    report = bench(tmp_path, "--quick", *SMALL[:2], "--backlog-gb", "0.05", "--log-gb", "0.05")
    assert [suite.name for suite in report.suites] == list(SUITES)
    for suite in report.suites:
        assert [case.name for case in suite.cases] == [case.name for case in SUITES[suite.name].cases]
    assert [case.name for case in report.recovery] == [case.name for case in RECOVERY.cases]
