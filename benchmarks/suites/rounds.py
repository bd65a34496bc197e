"""Rounds of a suite: its cases take turns, and the runs of each become its result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks.report import tables
from benchmarks.report.progress import Progress, Status
from benchmarks.results.model import CaseResult, LoadOptions, RecoveryCase, RecoveryRun, Run, SuiteResult
from benchmarks.suites.catalogue import Case, RecoverySuite, Suite
from benchmarks.suites.probe import probe
from benchmarks.suites.protocols import Target
from benchmarks.suites.recovery import run_recovery
from benchmarks.suites.run import Order, run_case
from benchmarks.suites.target import run_target
from benchmarks.suites.turns import turn

C = TypeVar("C", Case, Target)


async def measure(
    suite: Suite, load: LoadOptions, directory: Path, backlog_bytes: int, progress: Progress
) -> SuiteResult:
    """Run all rounds of a suite.

    Args:
        suite: The cases to run.
        load: The load, where a case sets nothing else.
        directory: For the server's files.
        backlog_bytes: Size of the backlog of cases that have one.
        progress: Follows the runs.

    Raises:
        LoadFailed: The load of a run failed.
        ServerFailed: The server of a run failed.
    """
    reached: dict[str, float] = {}  # records/s of each case's last run

    async def run_one(case: Case, round_number: int, status: Status) -> Run:
        own = msgspec.structs.replace(
            load,
            format=case.format or load.format,
            records_per_body=case.records_per_body or load.records_per_body,
            connections=case.connections or load.connections,
            measurements=case.measurements,
            records_per_second=reached[case.half_of] / 2 if case.half_of else load.records_per_second,
        )
        own = msgspec.structs.replace(own, load_processes=min(own.load_processes, own.connections))
        backlog = backlog_bytes if case.has_backlog else 0
        run = await run_case(Order(case, round_number, own, directory / "run", backlog, suite.wait_for_parquet, status))
        reached[case.name] = run.records_per_second
        return run

    turns_around = not any(case.half_of for case in suite.cases)
    runs = await _take_turns(suite.name, suite.cases, suite.runs, run_one, progress, turns_around)
    cases = [CaseResult(case.name, case.settings, case.power_cut, runs[case.name]) for case in suite.cases]
    return SuiteResult(suite.name, suite.title, load, suite.baseline, cases)


async def measure_recovery(
    suite: RecoverySuite, wal_bytes: int, directory: Path, progress: Progress
) -> list[RecoveryCase]:
    """Run all rounds of starts after a crash."""
    runs: dict[str, list[RecoveryRun]] = {case.name: [] for case in suite.cases}
    for round_number in range(1, suite.runs + 1):
        for case in suite.cases:
            with progress.run(f"{suite.name}, round {round_number}: {case.name}", case.name) as status:
                run = await run_recovery(case, wal_bytes, round_number, directory / "run", status)
            runs[case.name].append(run)
            progress.line(
                f"{suite.name}: {case.name}: {run.wal_bytes / 1e9:.2f} GB verified in "
                f"{tables.duration(run.scan_seconds)}, serves after {tables.duration(run.start_seconds)}, in Parquet "
                f"after {tables.duration(run.uploaded_seconds)}, {_outcome(run)}"
            )
    return [RecoveryCase(case.name, case.records_per_entry, runs[case.name]) for case in suite.cases]


async def measure_targets(
    targets: list[Target], load: LoadOptions, rounds: int, directory: Path | None, progress: Progress
) -> SuiteResult:
    """Run all rounds of targets under one load; the others are compared with the first.

    Args:
        targets: Servers that run already, or whose command starts them for each of their turns.
        load: The load of each turn.
        rounds: Turns of each target.
        directory: For the files of those that are started.
        progress: Follows the runs.
    """
    targets = [target._replace(format=load.format) for target in targets]
    told: dict[str, str] = {}  # name and version of each target's server
    known: dict[str, Target] = {}  # those that were probed, as the probe corrected them
    for target in targets:
        if not target.command:
            known[target.name], told[target.name] = probe(target, load.format, load.records_per_body)

    async def run_one(target: Target, round_number: int, status: Status) -> Run:
        if target.command:
            status("starting the server")
        async with turn(target, directory) as its:
            if target.command:
                found = await asyncio.to_thread(probe, target, load.format, load.records_per_body)
                known[target.name], told[target.name] = found
            run = await run_target(known[target.name], round_number, load, status)
            status("stopping the server" if target.command else "")
        return msgspec.structs.replace(run, drain_seconds=its.drain_seconds)

    name = "target-" + load.format.replace(" + ", "-").replace(" ", "-")
    runs = await _take_turns(name, targets, rounds, run_one, progress)
    cases = [CaseResult(target.name, _about(target, told[target.name]), "", runs[target.name]) for target in targets]
    baseline = targets[0].name if len(targets) > 1 else ""
    title = "Servers under the same load" if len(targets) > 1 else f"{targets[0].url} by {targets[0].protocol}"
    return SuiteResult(name, f"{title}: {load.format}", load, baseline, cases)


def _about(target: Target, told: str) -> dict[str, str]:
    about = {"target": target.url, "protocol": target.protocol, "database": target.database, "server": told}
    return {**about, "command": target.command} if target.command else about


async def _take_turns(
    name: str,
    cases: Sequence[C],
    rounds: int,
    run_one: Callable[[C, int, Status], Awaitable[Run]],
    progress: Progress,
    turns_around: bool = True,
) -> dict[str, list[Run]]:
    """Run all rounds; return the runs by case.

    The order of the cases is reversed with each round, so that a machine that gets faster or slower favours none of
    them. It is not if a case needs the result of another one (`turns_around` is false).
    """
    runs: dict[str, list[Run]] = {case.name: [] for case in cases}
    total = rounds * len(cases)
    number = 0
    for round_number in range(1, rounds + 1):
        for case in cases if round_number % 2 or not turns_around else reversed(cases):
            number += 1
            label = f"{name} {number}/{total}: {case.name}"
            with progress.run(label, case.name) as status:
                run = await run_one(case, round_number, status)
            runs[case.name].append(run)
            progress.line(
                f"{label}: {tables.count(run.records_per_second)} records/s, "
                f"{tables.count(run.requests_per_second)} requests/s, p99 {tables.duration(run.latency.p99_seconds)}, "
                + (f"drained in {tables.duration(run.drain_seconds)}, " if run.drain_seconds else "")
                + _outcome(run)
            )
    return runs


def _outcome(run: Run | RecoveryRun) -> str:
    if run.parquet_records is None:
        return "not verified"
    return f"{run.missing_records:,} RECORDS MISSING" if run.missing_records else "all records in Parquet"
