"""Plan the work of a command line: the cases that were chosen, their load, and the disk space that they need."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks.report.progress import PlannedRun, Progress
from benchmarks.results.model import LoadOptions, RecoveryCase, SuiteResult
from benchmarks.suites.catalogue import RECOVERY, SUITES, Case, Suite
from benchmarks.suites.protocols import Target
from benchmarks.suites.rounds import measure, measure_recovery, measure_targets

DEFAULT_BACKLOG_GB: Final = 10.0
DEFAULT_WAL_GB: Final = 2.0

# Measured seconds of `--quick`, by suite; of all others.
_QUICK_SECONDS: Final = {"end-to-end": 10.0, "end-to-end-arrow": 10.0}
_QUICK_OTHER_SECONDS: Final = 1.0
_QUICK_WARMUP_SECONDS: Final = 0.5
_WARMUP_SECONDS: Final = 1.0
# Part of the default sizes of backlog and WAL that `--quick` uses.
_QUICK_PART: Final = 0.1

# Upper bounds to check the free space with: the rate of a closed loop, and the bytes of a record in Parquet and in the
# WAL that is not uploaded yet.
_MOST_RECORDS_PER_SECOND: Final = 15e6
_BYTES_PER_RECORD: Final = 60
# Space that stays free on the disk: `wal.min_free_mb` and a reserve.
_SPARE_BYTES: Final = 1 << 30
# Backlog that a run may add to the one at its start before the server refuses writes.
_SPARE_BACKLOG_MB: Final = 20480

# Defaults of a load for servers that already run.
_TARGET_RECORDS: Final = 1000
_TARGET_CONNECTIONS: Final = 32
_TARGET_SECONDS: Final = 5.0
_TARGET_RUNS: Final = 3

Result = SuiteResult | list[RecoveryCase]


class Work(NamedTuple):
    """A suite to run."""

    measure: Callable[[Progress], Coroutine[Any, Any, Result]]
    runs: list[PlannedRun]


class LoadPlan(NamedTuple):
    """The load of the command line; None where the suite decides."""

    seconds: float | None = None
    warmup: float | None = None
    connections: int | None = None
    records: int | None = None
    rate: float | None = None
    processes: int = 1


class Planner(NamedTuple):
    """The choices of a command line, from which the work of each suite follows."""

    load: LoadPlan
    cases: list[str]  # names; empty for all
    runs: int | None
    is_quick: bool
    default_settings: dict[str, str]  # of each case that does not set them
    settings: dict[str, str]  # of each case, whatever it sets
    backlog_gb: float | None
    wal_gb: float | None

    def plan(self, name: str, directory: Path) -> Work | None:
        """Plan a suite.

        Args:
            name: A suite of the catalogue.
            directory: Where the server's files go; cases that may not fit on its disk are left out.

        Returns:
            The work; None if no case is left.
        """
        return self._recovery(directory) if name == RECOVERY.name else self._suite(SUITES[name], directory)

    def targets(self, targets: list[Target], formats: list[str], directory: Path | None = None) -> list[Work]:
        """Plan the load of other servers, format by format; files of those that are started go into `directory`."""
        connections = self.load.connections or _TARGET_CONNECTIONS
        load = LoadOptions(
            format="",
            records_per_body=self.load.records or _TARGET_RECORDS,
            connections=connections,
            warmup_seconds=self._warmup_seconds,
            seconds=self.load.seconds or _TARGET_SECONDS,
            records_per_second=self.load.rate or 0.0,
            load_processes=min(self.load.processes, connections),
        )
        rounds = self.runs or _TARGET_RUNS
        planned = [PlannedRun(target.name, load.warmup_seconds + load.seconds) for target in targets] * rounds
        loads = [msgspec.structs.replace(load, format=name) for name in formats]
        return [Work(partial(measure_targets, targets, one, rounds, directory), planned) for one in loads]

    @property
    def _warmup_seconds(self) -> float:
        if self.load.warmup is not None:
            return self.load.warmup
        return _QUICK_WARMUP_SECONDS if self.is_quick else _WARMUP_SECONDS

    def _suite(self, suite: Suite, directory: Path) -> Work | None:
        load = self._load(suite)
        backlog_bytes = self._bytes(self.backlog_gb, DEFAULT_BACKLOG_GB)
        seconds_each = load.warmup_seconds + load.seconds
        bytes_each = seconds_each * (load.records_per_second or _MOST_RECORDS_PER_SECOND) * _BYTES_PER_RECORD
        chosen = tuple(
            self._with_settings(case, backlog_bytes)
            for case in self._chosen(suite)
            if _has_space(directory, f"{suite.name}: {case.name}", bytes_each + 2 * backlog_bytes * case.has_backlog)
        )
        baseline = suite.baseline if any(case.name == suite.baseline for case in chosen) else ""
        suite = suite._replace(cases=chosen, runs=self._runs(suite.runs), baseline=baseline)
        runs = [PlannedRun(case.name, seconds_each) for case in chosen] * suite.runs
        return Work(partial(measure, suite, load, directory, backlog_bytes), runs) if chosen else None

    def _load(self, suite: Suite) -> LoadOptions:
        quick_seconds = _QUICK_SECONDS.get(suite.name, _QUICK_OTHER_SECONDS)
        return LoadOptions(
            format=suite.format,
            records_per_body=self.load.records or suite.records_per_body,
            connections=self.load.connections or suite.connections,
            warmup_seconds=self._warmup_seconds,
            seconds=self.load.seconds or (quick_seconds if self.is_quick else suite.seconds),
            records_per_second=suite.records_per_second if self.load.rate is None else self.load.rate,
            load_processes=self.load.processes,
        )

    def _chosen(self, suite: Suite) -> list[Case]:
        """Select the cases that were named, and those whose rate they need."""
        wanted = {case.name for case in suite.cases if not self.cases or case.name in self.cases}
        wanted |= {case.half_of for case in suite.cases if case.name in wanted}
        return [case for case in suite.cases if case.name in wanted]

    def _with_settings(self, case: Case, backlog_bytes: int) -> Case:
        backlog = {"wal.max_backlog_mb": str(backlog_bytes // 1_000_000 + _SPARE_BACKLOG_MB)}
        settings = {**self.default_settings, **(backlog if case.has_backlog else {}), **case.settings, **self.settings}
        return case._replace(settings=settings)

    def _recovery(self, directory: Path) -> Work | None:
        wal_bytes = self._bytes(self.wal_gb, DEFAULT_WAL_GB)
        chosen = tuple(
            case
            for case in RECOVERY.cases
            if (not self.cases or case.name in self.cases)
            and _has_space(directory, f"{RECOVERY.name}: {case.name}", 2 * wal_bytes * case.part_of_wal)
        )
        suite = RECOVERY._replace(cases=chosen, runs=self._runs(RECOVERY.runs))
        runs = [PlannedRun(case.name, 0.0) for case in chosen] * suite.runs
        return Work(partial(measure_recovery, suite, wal_bytes, directory), runs) if chosen else None

    def _runs(self, usual: int) -> int:
        return self.runs or (1 if self.is_quick else usual)

    def _bytes(self, chosen_gb: float | None, default_gb: float) -> int:
        return int((chosen_gb or default_gb * (_QUICK_PART if self.is_quick else 1)) * 1e9)


def _has_space(directory: Path, name: str, needed_bytes: float) -> bool:
    """Tell whether a run fits on the disk; print a line if it does not."""
    free = shutil.disk_usage(directory).free
    if free >= needed_bytes + _SPARE_BYTES:
        return True
    needed = (needed_bytes + _SPARE_BYTES) / 1e9
    text = f"may need {needed:.0f} GB below {directory.parent}, where {free / 1e9:.0f} GB are free"
    print(f"benchmarks: left out: {name}: {text}", file=sys.stderr)
    return False
