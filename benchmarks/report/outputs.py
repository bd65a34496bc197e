"""Write results to the terminal, JSON, charts and pages, and read them again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from rich.console import Console

from benchmarks.report import tables
from benchmarks.report.compare import NothingInCommon, compare, show_comparison
from benchmarks.report.markdown import NoPlace, write_markdown
from benchmarks.results.model import RECOVERY, RECOVERY_TITLE, Report, UnusableResults, read

_STDOUT: Final = Path("-")


class Outputs(NamedTuple):
    """Destinations of results besides the terminal."""

    json: Path | None
    charts: Path | None
    markdown: Path | None

    def draw_and_write(self, reports: Sequence[Report]) -> None:
        """Draw charts and write pages of the suites without missing records.

        Raises:
            NoPlace: The page has no place for these suites.
            OSError: A file cannot be written.
        """
        reports = [_complete(one) for one in reports]
        if self.charts is not None:
            from benchmarks.report.charts import write_charts  # matplotlib takes a second to import, and is optional

            for one in reports:
                write_charts(one, self.charts)
        if self.markdown is not None:
            write_markdown(reports, self.markdown, self.charts)


def _complete(measured: Report) -> Report:
    """Leave out the suites with missing records."""
    return msgspec.structs.replace(
        measured,
        suites=[suite for suite in measured.suites if not any(run.missing_records for run in suite.runs)],
        recovery=[case for case in measured.recovery if not any(run.missing_records for run in case.runs)],
    )


def show_results(sources: Sequence[Path], suites: Sequence[str], outputs: Outputs) -> int:
    """Show results of earlier runs; return the exit code.

    Args:
        sources: Files of --json.
        suites: Names of suites to show; all if there are none.
        outputs: Destinations besides the terminal.
    """
    out = console_for(outputs.json)
    try:
        reports = [read(path) for path in sources]
        if suites:
            reports = [
                msgspec.structs.replace(
                    one,
                    suites=[suite for suite in one.suites if suite.name in suites],
                    recovery=one.recovery if RECOVERY in suites else [],
                )
                for one in reports
            ]
            if not any(one.suites or one.recovery for one in reports):
                raise UnusableResults(f"no file has results of {', '.join(suites)}")
        for one in reports:
            tables.show_machine(out, one.machine)
            for suite in one.suites:
                tables.show_suite(out, suite)
            if one.recovery:
                tables.show_recovery(out, RECOVERY_TITLE, one.recovery)
        outputs.draw_and_write(reports)
    except (UnusableResults, NoPlace, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def show_compared(path_a: Path, path_b: Path, json: Path | None) -> int:
    """Compare two files of results; return the exit code."""
    try:
        comparison = compare(path_a, read(path_a), path_b, read(path_b))
    except (UnusableResults, NothingInCommon) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    show_comparison(console_for(json), comparison)
    if json is not None:
        write_json(json, comparison)
    return 0


def console_for(json: Path | None) -> Console:
    """Return the console for tables: stdout, unless JSON goes there."""
    return Console(highlight=False, stderr=json == _STDOUT)


def write_json(path: Path, content: msgspec.Struct) -> None:
    """Write indented JSON; to stdout if the path is `-`."""
    text = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    if path == _STDOUT:
        sys.stdout.buffer.write(text)
    else:
        path.write_bytes(text)


def command_line() -> list[str]:
    """Return the command line without secrets, as results keep it."""
    words = list(sys.argv)
    for index, word in enumerate(words):
        if word.startswith("--token="):
            words[index] = "--token=…"
        elif index and words[index - 1] == "--token":
            words[index] = "…"
    return words
