"""The command line of the benchmarks: `python -m benchmarks`.

Exit codes: 0 all runs were measured and verified, 1 a run failed, records are missing in Parquet, or a part is slower
than the guard allows, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import typer
import uvloop
from rich.console import Console

from benchmarks.grouping import grouped
from benchmarks.guard import command
from benchmarks.load.generator import LoadFailed
from benchmarks.options import SUITE_NAMES, Choice, GuardChoice, LoadChoice, OutputChoice, ServerChoice, TargetChoice
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
from benchmarks.report.progress import Progress
from benchmarks.results.model import RecoveryCase, RecoveryRun, Report, Run, SuiteResult
from benchmarks.suites.catalogue import RECOVERY, SUITES, RecoverySuite, Suite
from benchmarks.suites.plan import LoadPlan, Planner, Result, Work
from benchmarks.suites.probe import TargetFailed
from benchmarks.suites.protocols import plan_targets
from benchmarks.system import machine
from benchmarks.system.server import ServerFailed

_DEFAULT_DATA_DIR: Final = Path("data")


@grouped
def bench(
    choice: Choice,
    load: LoadChoice,
    server: ServerChoice,
    output: OutputChoice,
    guard: GuardChoice,
    target: TargetChoice,
) -> None:
    """Measure the real server on this machine, and verify in Parquet what it acknowledged.

    \b
    Examples:
      python -m benchmarks --quick
      python -m benchmarks sync-modes --seconds 10 --runs 5 --json results.json --charts charts
      python -m benchmarks end-to-end --seconds 120 --rate 3000000
      python -m benchmarks --guard
      python -m benchmarks --target http://127.0.0.1:8086 --protocol influx1 --format telegraf
    """
    if output.compared:
        sys.exit(show_compared(*output.compared, output.json))
    if guard.guard:
        sys.exit(_guard(choice, server, guard))
    if guard.record or guard.baseline is not None:
        raise typer.BadParameter("--record and --baseline go with --guard")
    outputs = Outputs(output.json, output.charts, output.markdown)
    if output.charts is not None and not can_draw():
        print("benchmarks: --charts needs matplotlib: pip install 'arcpipe[bench]', or make bench", file=sys.stderr)
        sys.exit(2)
    if output.sources:
        if output.json is not None:
            raise typer.BadParameter("--json writes what is measured or compared, and --from does neither")
        sys.exit(show_results(output.sources, choice.suites or [], outputs))
    if choice.show_list:
        _show_list()
        return
    planner = _planner(choice, load, server)
    if target.targets:
        sys.exit(_load_targets(planner, choice, server, target, outputs))
    if target.protocols or target.formats or target.commands:
        raise typer.BadParameter("--protocol, --format and --command go with --target")
    unknown = [name for name in choice.suites or () if name not in SUITE_NAMES]
    if unknown:
        raise typer.BadParameter(f"there is no suite {unknown[0]!r}; there are {', '.join(SUITE_NAMES)}")
    with _run_directory(server.data_dir) as directory:
        plans = [planner.plan(name, directory) for name in choice.suites or SUITE_NAMES]
        work = [one for one in plans if one is not None]
        if not work:
            raise typer.BadParameter(f"no case is left; there are {', '.join(_case_names())}")
        sys.exit(_main(work, machine.describe(directory), outputs))


def _guard(choice: Choice, server: ServerChoice, guard: GuardChoice) -> int:
    unknown = [name for name in choice.cases or () if name not in command.CASE_NAMES]
    if choice.suites or unknown:
        raise typer.BadParameter(
            f"--guard has no suites; with --case, there are {', '.join(map(repr, command.CASE_NAMES))}"
        )
    with _run_directory(server.data_dir) as directory:
        rounds = choice.runs or command.ROUNDS
        return command.guard(directory, choice.cases or (), rounds, guard.baseline, record=guard.record)


def _planner(choice: Choice, load: LoadChoice, server: ServerChoice) -> Planner:
    return Planner(
        load=LoadPlan(load.seconds, load.warmup, load.connections, load.records, load.rate, load.load_processes),
        cases=choice.cases or [],
        runs=choice.runs,
        is_quick=choice.quick,
        default_settings={"server.workers": str(server.workers)} if server.workers else {},
        settings=dict(_key_and_value(setting) for setting in server.settings or ()),
        backlog_gb=server.backlog_gb,
        wal_gb=server.wal_gb,
    )


def _load_targets(
    planner: Planner, choice: Choice, server: ServerChoice, target: TargetChoice, outputs: Outputs
) -> int:
    if choice.suites or choice.cases or server.settings or server.workers:
        raise typer.BadParameter("suites, --case, --set and --workers are not for --target, which runs as it is")
    try:
        targets, formats = plan_targets(
            target.targets or [],
            target.protocols or [],
            target.formats or [],
            target.database,
            target.org,
            target.token,
            target.commands or [],
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not target.commands:
        return _main(planner.targets(targets, formats), machine.describe(None), outputs)
    with _run_directory(server.data_dir) as directory:
        return _main(planner.targets(targets, formats, directory), machine.describe(directory), outputs)


def _show_list() -> None:
    suites: list[Suite | RecoverySuite] = [*SUITES.values(), RECOVERY]
    rows = []
    for suite in suites:
        cases = ", ".join(f"{case.name!r}" for case in suite.cases)
        seconds = f"{suite.seconds:g} s" if isinstance(suite, Suite) else ""
        rows.append((suite.name, f"{len(suite.cases) * suite.runs}", seconds, suite.title, cases))
    titles = ("suite", "runs", "each", "what", "cases")
    tables.draw(Console(highlight=False), titles, [True, False, False, True, True], rows)


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
                failed = True  # the other suites may still succeed
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
    """Let SIGTERM end the work as Ctrl-C does: kill children, remove files."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


@contextmanager
def _run_directory(parent: Path | None) -> Iterator[Path]:
    """Make a directory on the disk to measure; remove it at the end."""
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
