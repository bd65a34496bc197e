"""The command line: which suites, how long, how often, and where the results go.

Exit codes: 0 all measured and verified, 1 a run failed or its records are not all in Parquet, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
import uvloop
from rich.console import Console

from benchmarks.load.generator import LoadFailed
from benchmarks.report import tables
from benchmarks.report.markdown import NoPlace
from benchmarks.report.outputs import (
    Outputs,
    can_draw,
    command_line,
    console_for,
    show_compared,
    show_results,
    write_json,
)
from benchmarks.report.progress import PlannedRun, Progress
from benchmarks.results.model import (
    LoadOptions,
    RecoveryCase,
    RecoveryRun,
    Report,
    Run,
    SuiteResult,
)
from benchmarks.suites.catalogue import RECOVERY, SUITES, Suite
from benchmarks.suites.rounds import measure, measure_recovery, measure_targets
from benchmarks.suites.target import PROTOCOLS, TargetFailed, plan_targets
from benchmarks.system import machine
from benchmarks.system.server import ServerFailed

_DEFAULT_DATA_DIR = Path("data")

Result = SuiteResult | list[RecoveryCase]


class Work(NamedTuple):
    """A suite to be run."""

    measure: Callable[[Progress], Coroutine[Any, Any, Result]]
    runs: list[PlannedRun]


# `--quick`
_QUICK_SECONDS = {"end-to-end": 10.0}
_QUICK_OTHER_SECONDS = 1.0
_QUICK_WARMUP_SECONDS = 0.5
_QUICK_GB = 0.1  # part of the sizes of logs
_DEFAULT_BACKLOG_GB = 10.0
_DEFAULT_LOG_GB = 2.0
# For the check that a run finds room on the disk: what a closed loop may reach, what a record takes in Parquet and in
# the log that is not yet shipped, and what nobody may fill (`wal.min_free_mb` and some more).
_MOST_RECORDS_PER_SECOND = 15e6
_BYTES_PER_RECORD = 60
_SPARE_BYTES = 1 << 30
# Backlog that a run may add to one that is there at its start, before writes are refused.
_SPARE_BACKLOG_MB = 20480
_NAMES = (*SUITES, RECOVERY.name)


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]...", help=f"{', '.join(_NAMES)}; all of them if none is named."),
    ] = None,
    cases: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case of the suites; may be repeated.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="Measured time of a run.")] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Seconds of load before the measured time. Default: 1")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each case; cases alternate.")] = None,
    connections: Annotated[
        int | None, typer.Option(min=1, help="Keep-alive connections of cases that do not say it themselves.")
    ] = None,
    records: Annotated[
        int | None, typer.Option(min=1, help="Records per body of cases that do not say it themselves.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Open loop at so many records per second; 0 is a closed loop. Default: a closed loop, but for "
            f"end-to-end ({SUITES['end-to-end'].records_per_second:.0f}) and latency (half of a closed loop's).",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ingest workers of the server; 0 is one per core.")] = 0,
    load_processes: Annotated[int, typer.Option(min=1, help="Processes that make the load.")] = 1,
    backlog_gb: Annotated[
        float | None, typer.Option(min=0.01, help=f"Backlog of the suite flat. Default: {_DEFAULT_BACKLOG_GB:g}")
    ] = None,
    log_gb: Annotated[
        float | None, typer.Option(min=0.01, help=f"Log of the suite recovery. Default: {_DEFAULT_LOG_GB:g}")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Everything once and briefly: a look, no figures.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Show suites and cases, and measure nothing.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting for every case, such as wal.max_size_mb=200."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the server's files go, on the disk to be measured; removed again. Default: ./data"),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write everything measured to FILE, or what --compare found; - is stdout."),
    ] = None,
    charts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the results: SVG and PNG files in DIR.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the tables into the places of FILE, or all of them into a new FILE."),
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="FILE", help="Measure nothing: show, draw, write what --json wrote to FILE."),
    ] = None,
    compared: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A.json B.json", help="Measure nothing: compare two files of --json."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="[NAME=]URL",
            help="Load this server, which already runs, instead of starting one; repeated, they take turns.",
        ),
    ] = None,
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            metavar="|".join(PROTOCOLS),
            help="How to write to --target; once for all of them, or once for each.",
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME", help="What to write to --target; may be repeated."),
    ] = None,
    database: Annotated[str, typer.Option(help="Database or bucket of --target to write to.")] = "bench",
    org: Annotated[str, typer.Option(help="Organisation of --target (influx2).")] = "bench",
    token: Annotated[
        str, typer.Option(envvar="BENCH_TOKEN", help="What --target asks for; influx1: USER:PASSWORD.")
    ] = "",
) -> None:
    """Measure the real server on this machine, and verify in Parquet what it acknowledged.

    \b
    Examples:
      python -m benchmarks --quick
      python -m benchmarks sync-modes --seconds 10 --runs 5 --json results.json --charts charts
      python -m benchmarks end-to-end --seconds 120 --rate 3000000
      python -m benchmarks --target http://127.0.0.1:8086 --protocol influx1 --format telegraf
    """
    if compared:
        sys.exit(show_compared(*compared, json))
    outputs = Outputs(json, charts, markdown)
    if charts is not None and not can_draw():
        print("benchmarks: --charts needs matplotlib: pip install 'arcpipe[bench]', or make bench", file=sys.stderr)
        sys.exit(2)
    if sources:
        if json is not None:
            raise typer.BadParameter("--json writes what is measured or compared, and --from does neither")
        sys.exit(show_results(sources, suites or [], outputs))
    if show_list:
        tables.show_list(Console(highlight=False), [*SUITES.values(), RECOVERY])
        return
    if warmup is None:
        warmup = _QUICK_WARMUP_SECONDS if quick else 1.0
    if targets:
        if suites or cases or settings or workers:
            raise typer.BadParameter("suites, --case, --set and --workers are not for --target, which runs as it is")
        try:
            chosen_targets, chosen_formats = plan_targets(targets, protocols or [], formats or [], database, org, token)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        load = LoadOptions(
            format="",
            records_per_body=records or 1000,
            connections=connections or 32,
            warmup_seconds=warmup,
            seconds=seconds or 5,
            records_per_second=rate or 0.0,
            load_processes=min(load_processes, connections or 32),
        )
        work: list[Work] = [
            Work(
                partial(measure_targets, chosen_targets, msgspec.structs.replace(load, format=name), runs or 3),
                [PlannedRun(target.name, load.warmup_seconds + load.seconds) for target in chosen_targets]
                * (runs or 3),
            )
            for name in chosen_formats
        ]
        sys.exit(_main(work, machine.describe(None), outputs))
    if protocols or formats:
        raise typer.BadParameter("--protocol and --format go with --target")
    unknown = [name for name in suites or () if name not in _NAMES]
    if unknown:
        raise typer.BadParameter(f"there is no suite {unknown[0]!r}; there are {', '.join(_NAMES)}")
    extra = dict(_key_and_value(setting) for setting in settings or ())
    default_settings = {"server.workers": str(workers)} if workers else {}
    part = _QUICK_GB if quick else 1.0
    backlog_bytes = int((backlog_gb or _DEFAULT_BACKLOG_GB * part) * 1e9)
    room = {"wal.max_backlog_mb": str(backlog_bytes // 1_000_000 + _SPARE_BACKLOG_MB)}
    log_bytes = int((log_gb or _DEFAULT_LOG_GB * part) * 1e9)

    def plan(suite: Suite, directory: Path) -> Work | None:
        load = LoadOptions(
            format=suite.format,
            records_per_body=records or suite.records_per_body,
            connections=connections or suite.connections,
            warmup_seconds=warmup,
            seconds=seconds or (_QUICK_SECONDS.get(suite.name, _QUICK_OTHER_SECONDS) if quick else suite.seconds),
            records_per_second=suite.records_per_second if rate is None else rate,
            load_processes=load_processes,
        )
        seconds_each = load.warmup_seconds + load.seconds
        bytes_each = seconds_each * (load.records_per_second or _MOST_RECORDS_PER_SECOND) * _BYTES_PER_RECORD
        wanted = {case.name for case in suite.cases if not cases or case.name in cases}
        wanted |= {case.half_of for case in suite.cases if case.name in wanted}
        chosen = tuple(
            case._replace(settings={**default_settings, **(room if case.has_backlog else {}), **case.settings, **extra})
            for case in suite.cases
            if case.name in wanted
            and _has_room(directory, f"{suite.name}: {case.name}", bytes_each + 2 * backlog_bytes * case.has_backlog)
        )
        baseline = suite.baseline if any(case.name == suite.baseline for case in chosen) else ""
        suite = suite._replace(cases=chosen, runs=runs or (1 if quick else suite.runs), baseline=baseline)
        runs_planned = [PlannedRun(case.name, seconds_each) for case in chosen] * suite.runs
        work = Work(partial(measure, suite, load, directory, backlog_bytes), runs_planned)
        return work if chosen else None

    def plan_recovery(directory: Path) -> Work | None:
        chosen = tuple(
            case
            for case in RECOVERY.cases
            if (not cases or case.name in cases)
            and _has_room(directory, f"{RECOVERY.name}: {case.name}", 2 * log_bytes * case.part_of_log)
        )
        suite = RECOVERY._replace(cases=chosen, runs=runs or (1 if quick else RECOVERY.runs))
        work = Work(
            partial(measure_recovery, suite, log_bytes, directory),
            [PlannedRun(case.name, 0.0) for case in chosen] * suite.runs,
        )
        return work if chosen else None

    with _run_directory(data_dir) as directory:
        plans = [
            plan_recovery(directory) if name == RECOVERY.name else plan(SUITES[name], directory)
            for name in suites or _NAMES
        ]
        work = [one for one in plans if one is not None]
        if not work:
            raise typer.BadParameter(f"no case is left; there are {', '.join(_case_names())}")
        sys.exit(_main(work, machine.describe(directory), outputs))


def _main(work: Sequence[Work], facts: machine.Machine, outputs: Outputs) -> int:
    out = console_for(outputs.json)
    progress = Progress([one.runs for one in work])
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    tables.show_machine(out, facts)
    results: list[SuiteResult] = []
    recovery: list[RecoveryCase] = []
    failed = False
    try:
        for one in work:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, progress.suite():
                    result = runner.run(_stoppable(one.measure(progress)))
            except (LoadFailed, ServerFailed, TargetFailed) as error:
                print(f"benchmarks: {error}", file=sys.stderr)
                failed = True  # what ends one suite need not end the others
                continue
            if isinstance(result, SuiteResult):
                results.append(result)
                tables.show_suite(out, result)
            else:
                recovery = result
                tables.show_recovery(out, RECOVERY.title, result)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("benchmarks: interrupted", file=sys.stderr)
        return 1
    finally:
        measured = Report(started_at, command_line(), facts, results, recovery)
        if outputs.json is not None and (results or recovery):
            write_json(outputs.json, measured)
    try:
        outputs.draw_and_write([measured])
    except (NoPlace, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        failed = True
    runs: list[Run | RecoveryRun] = [run for result in results for case in result.cases for run in case.runs]
    runs += [run for case in recovery for run in case.runs]
    return 1 if failed or any(run.missing_records for run in runs) else 0


async def _stoppable(work: Coroutine[Any, Any, Result]) -> Result:
    """Lets SIGTERM end the work as Ctrl-C does: children killed, files removed."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


@contextmanager
def _run_directory(parent: Path | None) -> Iterator[Path]:
    """A new directory on the disk to be measured; it goes with all that is in it."""
    chosen = (parent or _DEFAULT_DATA_DIR).resolve()
    if machine.is_in_memory(chosen):
        raise typer.BadParameter(f"{chosen} is in memory, where a sync costs nothing: name a directory on a disk")
    existed = chosen.exists()
    chosen.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=chosen))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        if not existed:
            with suppress(OSError):
                chosen.rmdir()


def _has_room(directory: Path, what: str, needed_bytes: float) -> bool:
    """Whether a run finds room on the disk; says so if it does not."""
    free = shutil.disk_usage(directory).free
    if free >= needed_bytes + _SPARE_BYTES:
        return True
    needed = (needed_bytes + _SPARE_BYTES) / 1e9
    text = f"may need {needed:.0f} GB below {directory.parent}, where {free / 1e9:.0f} GB are free"
    print(f"benchmarks: left out: {what}: {text}", file=sys.stderr)
    return False


def _case_names() -> list[str]:
    return [case.name for suite in SUITES.values() for case in suite.cases] + [case.name for case in RECOVERY.cases]


def _key_and_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set {setting}: write KEY=VALUE")
    return key, value


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(bench)
    app(prog_name="python -m benchmarks")
