"""The command line: which suites, how long, how often, and where the results go.

Exit codes: 0 all measured and verified, 1 a run failed or its records are not all in Parquet, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
import uvloop
from rich.console import Console

from benchmarks import machine, report
from benchmarks.bodies import FORMATS
from benchmarks.compare import NothingInCommon, compare, show_comparison
from benchmarks.load import LoadFailed
from benchmarks.results import CaseResult, LoadOptions, Report, Run, SuiteResult, UnusableResults, read
from benchmarks.run import Status, run_case
from benchmarks.server import ServerFailed
from benchmarks.suites import SUITES, Case, Suite
from benchmarks.target import PROTOCOLS, Target, TargetFailed, parse_target, probe, run_target

_DEFAULT_DATA_DIR = Path("data")
_STDOUT = Path("-")

C = TypeVar("C", Case, Target)
Work = Callable[["_Progress"], Coroutine[Any, Any, SuiteResult]]


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
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write everything measured to FILE, or what --compare found; - is stdout."),
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
      python -m benchmarks sync-modes --seconds 10 --runs 5 --json results.json
      python -m benchmarks end-to-end --seconds 120 --rate 3000000
      python -m benchmarks --target http://127.0.0.1:8086 --protocol influx1 --format telegraf
    """
    if compared:
        sys.exit(_compare(*compared, json))
    if targets:
        if suites or cases or settings or workers:
            raise typer.BadParameter("suites, --case, --set and --workers are not for --target, which runs as it is")
        chosen_targets, chosen_formats = _plan_targets(targets, protocols or [], formats or [], database, org, token)
        load = LoadOptions(
            format="",
            records_per_body=records or 1000,
            connections=connections or 32,
            warmup_seconds=warmup,
            seconds=seconds or 5,
            records_per_second=rate,
            load_processes=min(load_processes, connections or 32),
        )
        work: list[Work] = [
            partial(_measure_targets, chosen_targets, msgspec.structs.replace(load, format=name), runs or 3)
            for name in chosen_formats
        ]
        sys.exit(_main(work, machine.describe(None), json))
    if protocols or formats:
        raise typer.BadParameter("--protocol and --format go with --target")
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
        work = [partial(_measure, suite, load, directory) for suite, load in plans]
        sys.exit(_main(work, machine.describe(directory), json))


def _main(work: Sequence[Work], facts: machine.Machine, json: Path | None) -> int:
    out = _console(json)
    progress = _Progress()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    report.show_machine(out, facts)
    results: list[SuiteResult] = []
    try:
        for measure in work:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(_stoppable(measure(progress)))
            results.append(result)
            report.show_suite(out, result)
    except (LoadFailed, ServerFailed, TargetFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("benchmarks: interrupted", file=sys.stderr)
        return 1
    finally:
        if json is not None and results:
            _write_json(json, Report(started_at, _command(), facts, results, []))
    complete = all(not run.missing_records for result in results for case in result.cases for run in case.runs)
    return 0 if complete else 1


def _compare(path_a: Path, path_b: Path, json: Path | None) -> int:
    try:
        comparison = compare(path_a, read(path_a), path_b, read(path_b))
    except (UnusableResults, NothingInCommon) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    show_comparison(_console(json), comparison)
    if json is not None:
        _write_json(json, comparison)
    return 0


def _console(json: Path | None) -> Console:
    """Where tables go: stdout, unless JSON goes there."""
    return Console(highlight=False, stderr=json == _STDOUT)


def _write_json(path: Path, content: msgspec.Struct) -> None:
    text = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    if path == _STDOUT:
        sys.stdout.buffer.write(text)
    else:
        path.write_bytes(text)


def _command() -> list[str]:
    """The command line as the results keep it: without a secret."""
    words = list(sys.argv)
    for index, word in enumerate(words):
        if word.startswith("--token="):
            words[index] = "--token=…"
        elif index and words[index - 1] == "--token":
            words[index] = "…"
    return words


def _plan_targets(
    urls: list[str], protocols: list[str], formats: list[str], database: str, org: str, token: str
) -> tuple[list[Target], list[str]]:
    """The targets, and the formats that they are to be sent.

    Raises:
        typer.BadParameter: what is asked for does not go together.
    """
    if len(protocols) not in (1, len(urls)):
        raise typer.BadParameter(f"--protocol says how to write to --target: give one of {', '.join(PROTOCOLS)}")
    for name in protocols:
        if name not in PROTOCOLS:
            raise typer.BadParameter(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    try:
        targets = [
            parse_target(url, protocol, database, org, token)
            for url, protocol in zip(urls, protocols * len(urls) if len(protocols) == 1 else protocols, strict=True)
        ]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if len({target.name for target in targets}) < len(targets):
        raise typer.BadParameter("give each --target a name of its own: NAME=URL")
    spoken = ", ".join(dict.fromkeys(protocols))
    kinds = [name for name in PROTOCOLS[protocols[0]].kinds if all(name in PROTOCOLS[one].kinds for one in protocols)]
    if not kinds:
        raise typer.BadParameter(f"no format is taken by all of {spoken}")
    taken = [name for name in FORMATS if name.partition(" + ")[0] in kinds]
    for name in formats:
        if name not in taken:
            raise typer.BadParameter(f"--format {name!r}: for {spoken} there are {', '.join(taken)}")
    return targets, formats or kinds[:1]


async def _measure(suite: Suite, load: LoadOptions, directory: Path, progress: _Progress) -> SuiteResult:
    """All rounds of a suite."""

    def run_one(case: Case, round_number: int, status: Status) -> Awaitable[Run]:
        return run_case(
            case.name,
            case.settings,
            round_number,
            msgspec.structs.replace(load, format=case.format or load.format),
            directory / "run",
            suite.wait_for_parquet,
            status,
        )

    runs = await _take_turns(suite.name, suite.cases, suite.runs, run_one, progress)
    cases = [CaseResult(case.name, case.settings, case.power_cut, runs[case.name]) for case in suite.cases]
    return SuiteResult(suite.name, suite.title, load, suite.baseline, cases)


async def _measure_targets(targets: list[Target], load: LoadOptions, rounds: int, progress: _Progress) -> SuiteResult:
    """All rounds of targets under one load; the first one is what the others are compared with."""
    probed = [probe(target, load.format, load.records_per_body) for target in targets]

    def run_one(target: Target, round_number: int, status: Status) -> Awaitable[Run]:
        return run_target(target, round_number, load, status)

    name = f"target: {load.format}"
    runs = await _take_turns(name, [target for target, _ in probed], rounds, run_one, progress)
    cases = [
        CaseResult(
            target.name,
            {"target": target.url, "protocol": target.protocol, "database": target.database, "server": told},
            "",
            runs[target.name],
        )
        for target, told in probed
    ]
    baseline = targets[0].name if len(targets) > 1 else ""
    return SuiteResult(name, f"Servers that already run, {load.format}", load, baseline, cases)


async def _take_turns(
    name: str,
    cases: Sequence[C],
    rounds: int,
    run_one: Callable[[C, int, Status], Awaitable[Run]],
    progress: _Progress,
) -> dict[str, list[Run]]:
    """The runs by case. The order of the cases turns around with each round, so that a machine that gets
    faster or slower over time favours none."""
    runs: dict[str, list[Run]] = {case.name: [] for case in cases}
    total = rounds * len(cases)
    number = 0
    for round_number in range(1, rounds + 1):
        for case in cases if round_number % 2 else reversed(cases):
            number += 1
            label = f"{name} {number}/{total}: {case.name}"
            with progress.of(label) as status:
                run = await run_one(case, round_number, status)
            runs[case.name].append(run)
            if run.parquet_records is None:
                outcome = "not verified"
            elif run.missing_records:
                outcome = f"{run.missing_records:,} RECORDS MISSING"
            else:
                outcome = f"drained in {report.duration(run.drain_seconds)}, all records in Parquet"
            progress.line(
                f"{label}: {report.count(run.records_per_second)} records/s, "
                f"{report.count(run.requests_per_second)} requests/s, p99 {report.duration(run.latency.p99_seconds)}, "
                f"{outcome}"
            )
    return runs


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
