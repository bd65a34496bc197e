"""The command line: which suites, how long, how often, and where the results go.

Exit codes: 0 all measured and verified, 1 a run failed or its records are not all in Parquet, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import uvloop
from rich.console import Console

from benchmarks import machine, report
from benchmarks.load import LoadFailed
from benchmarks.results import CaseResult, LoadOptions, Report, Run, SuiteResult
from benchmarks.run import Status, run_case
from benchmarks.server import ServerFailed
from benchmarks.suites import SUITES, Suite

_DEFAULT_DATA_DIR = Path("data")


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]...", help=f"{', '.join(SUITES)}; all of them if none is named."),
    ] = None,
    cases: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case of the suites; may be repeated.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="Measured time of a run.")] = None,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of load before the measured time.")] = 1.0,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each case; cases alternate.")] = None,
    connections: Annotated[int | None, typer.Option(min=1, help="Keep-alive connections.")] = None,
    records: Annotated[int | None, typer.Option(min=1, help="Records per body.")] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Open loop at so many records per second; 0 is a closed loop.")
    ] = 0.0,
    workers: Annotated[int, typer.Option(min=0, help="Ingest workers of the server; 0 is one per core.")] = 0,
    load_processes: Annotated[int, typer.Option(min=1, help="Processes that make the load.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting for every case, such as wal.max_size_mb=200."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the server's files go, on the disk to be measured; removed again. Default: ./data"),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything measured to FILE.")] = None,
) -> None:
    """Measure the real server on this machine, and verify in Parquet what it acknowledged.

    \b
    Examples:
      python -m benchmarks sync-modes --seconds 10 --runs 5 --json results.json
      python -m benchmarks end-to-end --seconds 120 --rate 3000000
    """
    unknown = [name for name in suites or () if name not in SUITES]
    if unknown:
        raise typer.BadParameter(f"there is no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    extra = dict(_key_and_value(setting) for setting in settings or ())
    if workers:
        extra["server.workers"] = str(workers)

    def plan(suite: Suite) -> tuple[Suite, LoadOptions]:
        load = LoadOptions(
            format=suite.format,
            records_per_body=records or suite.records_per_body,
            connections=connections or suite.connections,
            warmup_seconds=warmup,
            seconds=seconds or suite.seconds,
            records_per_second=rate,
            load_processes=min(load_processes, connections or suite.connections),
        )
        chosen = tuple(
            case._replace(settings={**case.settings, **extra})
            for case in suite.cases
            if not cases or case.name in cases
        )
        baseline = suite.baseline if any(case.name == suite.baseline for case in chosen) else ""
        return suite._replace(cases=chosen, runs=runs or suite.runs, baseline=baseline), load

    plans = [(suite, load) for suite, load in (plan(SUITES[name]) for name in suites or SUITES) if suite.cases]
    if not plans:
        raise typer.BadParameter(f"no suite has a case {' or '.join(cases or ())}")
    with _run_directory(data_dir) as directory:
        sys.exit(_main(plans, directory, json))


def _main(plans: list[tuple[Suite, LoadOptions]], directory: Path, json: Path | None) -> int:
    out = Console(highlight=False)
    progress = _Progress()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    facts = machine.describe(directory)
    report.show_machine(out, facts)
    results: list[SuiteResult] = []
    try:
        for suite, load in plans:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(_stoppable(_measure(suite, load, directory, progress)))
            results.append(result)
            report.show_suite(out, result)
    except (LoadFailed, ServerFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("benchmarks: interrupted", file=sys.stderr)
        return 1
    finally:
        if json is not None and results:
            content = msgspec.json.encode(Report(started_at, sys.argv, facts, results, []))
            json.write_bytes(msgspec.json.format(content, indent=1) + b"\n")
    complete = all(not run.missing_records for result in results for case in result.cases for run in case.runs)
    return 0 if complete else 1


async def _measure(suite: Suite, load: LoadOptions, directory: Path, progress: _Progress) -> SuiteResult:
    """All rounds of a suite. The order of the cases turns around with each round, so that a machine that gets
    faster or slower over time favours none."""
    runs: dict[str, list[Run]] = {case.name: [] for case in suite.cases}
    total = suite.runs * len(suite.cases)
    number = 0
    for round_number in range(1, suite.runs + 1):
        for case in suite.cases if round_number % 2 else reversed(suite.cases):
            number += 1
            label = f"{suite.name} {number}/{total}: {case.name}"
            with progress.of(label) as status:
                run = await run_case(
                    case.name,
                    case.settings,
                    round_number,
                    msgspec.structs.replace(load, format=case.format or load.format),
                    directory / "run",
                    suite.wait_for_parquet,
                    status,
                )
            runs[case.name].append(run)
            progress.line(
                f"{label}: {report.count(run.records_per_second)} records/s, "
                f"{report.count(run.requests_per_second)} requests/s, p99 {report.duration(run.latency.p99_seconds)}, "
                f"drained in {report.duration(run.drain_seconds)}, "
                + (f"{run.missing_records:,} RECORDS MISSING" if run.missing_records else "all records in Parquet")
            )
    cases = [CaseResult(case.name, case.settings, case.power_cut, runs[case.name]) for case in suite.cases]
    return SuiteResult(suite.name, suite.title, load, suite.baseline, cases)


async def _stoppable(work: Coroutine[Any, Any, SuiteResult]) -> SuiteResult:
    """Lets SIGTERM end the work as Ctrl-C does: children killed, files removed."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


class _Progress:
    """What goes on, on stderr: a line that changes in a terminal, a line per run elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def of(self, label: str) -> Iterator[Status]:
        """A function that shows how far the run with this label is."""
        if not self._console.is_terminal:
            yield lambda text: None
            return
        with self._console.status(label) as shown:
            yield lambda text: shown.update(f"{label}: {text}")

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


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


def _key_and_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set {setting}: write KEY=VALUE")
    return key, value


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(bench)
    app(prog_name="python -m benchmarks")
