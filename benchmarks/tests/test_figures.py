"""Suites, the figures of their results, the disk, and WAL directories that suites make."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory
from arcpipe.wal.reader import SegmentScan
from benchmarks.load.bodies import KINDS
from benchmarks.report.progress import PlannedRun, Progress
from benchmarks.results.model import (
    CaseResult,
    DeviceLimit,
    RecoveryRun,
    SuiteResult,
    WALUse,
)
from benchmarks.suites.catalogue import SUITES
from benchmarks.suites.device import device_limit
from benchmarks.suites.stored import make_wal
from benchmarks.tests.made import run


def test_what_a_suite_compares_with_is_one_of_its_cases() -> None:
    for suite in SUITES.values():
        names = [case.name for case in suite.cases]
        assert len(set(names)) == len(names)
        assert suite.baseline in {"", *names}
        for index, case in enumerate(suite.cases):
            assert not case.half_of or case.half_of in names[:index]
            assert (case.format or suite.format).partition(" + ")[0] in {*KINDS, "a format per case"}


def test_the_share_of_the_baseline_is_that_of_the_same_round() -> None:
    def of(case: str, *rates: float) -> CaseResult:
        wal, device = WALUse(30e6, 100, 3e5), DeviceLimit("fdatasync", 1, 300_000, 120e6, 60e6)
        runs = [run(rate, number, case=case, wal=wal, device=device) for number, rate in enumerate(rates, 1)]
        return CaseResult(case, {}, "", runs)

    base, other = of("base", 100, 10, 1000), of("other", 90, 9, 500)
    suite = SuiteResult("name", "title", base.runs[0].load, "base", [base, other])
    assert suite.share_of_baseline(other) == pytest.approx(0.9)
    assert other.runs[0].share_of_device == pytest.approx(0.25)


def test_a_recovery_tells_what_a_start_waits_for_from_what_follows() -> None:
    run = RecoveryRun(
        round=1,
        started_at="",
        wal_bytes=2_000_000_000,
        segments=20,
        records=10,
        parquet_records=9,
        empty_start_seconds=1.0,
        start_seconds=3.0,
        scan_seconds=1.6,
        uploaded_seconds=13.0,
    )
    assert run.scan_bytes_per_second == pytest.approx(1.25e9)
    assert run.ready_bytes_per_second == pytest.approx(1e9)
    assert run.upload_bytes_per_second == pytest.approx(0.2e9)
    assert run.missing_records == 1


def test_the_time_left_is_what_the_round_before_took() -> None:
    quick, slow = PlannedRun("quick", 1), PlannedRun("slow", 1)
    progress = Progress([[quick, slow, quick, slow], [quick]])
    with progress.suite():
        progress.count("quick", 3)
        progress.count("slow", 101)
        assert progress.seconds_left == pytest.approx(3 + 101 + (1 + (2 + 100) / 2))
        progress.count("slow", 101)
        progress.count("quick", 3)
    with progress.suite():
        progress.count("quick", 3)
    assert progress.seconds_left == 0


# The disk and its files


def test_the_bare_loop_leaves_nothing_behind(tmp_path: Path) -> None:
    limit = device_limit(tmp_path, "fdatasync", 5000, 2, seconds=0.02)
    assert limit.overwriting_bytes_per_second > 0
    assert limit.appending_bytes_per_second > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("records_per_entry", "sealed"), [(1000, True), (1, False)])
def test_a_log_that_is_made_is_read_as_one(tmp_path: Path, records_per_entry: int, sealed: bool) -> None:
    directory = WALDirectory(tmp_path)
    records, segments = make_wal(directory, 500_000, records_per_entry, sealed)
    found = directory.segments(SEALED if sealed else ACTIVE)
    assert len(found) == segments == 1
    scan = SegmentScan(found[0].path)
    assert sum(1 for _ in scan) * records_per_entry == records
    assert not scan.report.damage
