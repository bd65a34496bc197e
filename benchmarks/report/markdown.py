"""Write results as tables into the marked places of a page, such as `docs/benchmarks.md`.

A place is the text between two comments. The first one names the suites that the place shows:

    <!-- benchmarks sync-modes recovery -->
    <!-- /benchmarks -->
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.report.tables import UNVERIFIED, count, duration, load_in_words
from benchmarks.results.model import RECOVERY, RECOVERY_TITLE, CaseResult, RecoveryCase, Report, Run, SuiteResult

_PLACE: Final = re.compile(r"(<!-- benchmarks ([\w .-]+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
_CHARTS: Final = ("throughput", "", "latency", "backlog")  # of a suite, in this order
_MOST_CHARTS: Final = 2
_PLACE_OPTIONS: Final = ("--data-dir", "--json", "--charts", "--markdown")


class NoPlace(Exception):
    """The page has no place for these results; the text says how to make one."""


def write_markdown(reports: Sequence[Report], page: Path, charts: Path | None) -> None:
    """Fill the places of a page; a new page gets all results.

    Args:
        reports: The results.
        page: The file.
        charts: Directory with charts of these results, which are shown below their tables.

    Raises:
        NoPlace: The page names none of these suites.
        OSError: The page cannot be read or written.
    """
    if not page.exists():
        names = [name for report in reports for name in _names(report)]
        page.write_text(_place_content(reports, names, page, charts), encoding="utf-8")
        return
    text = page.read_text(encoding="utf-8")
    known = {name for report in reports for name in _names(report)}

    def fill(found: re.Match[str]) -> str:
        wanted = found[2].split()
        if not known & set(wanted):
            return found[0]
        return found[1] + _place_content(reports, wanted, page, charts) + found[3]

    filled = _PLACE.sub(fill, text)
    if not any(known & set(found[2].split()) for found in _PLACE.finditer(text)):
        raise NoPlace(
            f"{page} has no place for {', '.join(sorted(known))}: put the lines <!-- benchmarks SUITE… --> and "
            "<!-- /benchmarks --> where they belong"
        )
    page.write_text(filled, encoding="utf-8")


def _names(report: Report) -> list[str]:
    return [suite.name for suite in report.suites] + [RECOVERY] * bool(report.recovery)


def _place_content(reports: Sequence[Report], names: Sequence[str], page: Path, charts: Path | None) -> str:
    tables: list[str] = []
    commands: dict[str, list[str]] = {}  # by time and machine of their runs
    is_unverified = False
    for report in reports:
        suites = [suite for name in names for suite in report.suites if suite.name == name]
        tables += [_suite(suite, page, charts) for suite in suites]
        is_unverified |= any(suite.is_of_targets for suite in suites)
        has_recovery = RECOVERY in names and bool(report.recovery)
        if has_recovery:
            tables.append(_recovery(report.recovery))
        if suites or has_recovery:
            command = shlex.join(["python", "-m", "benchmarks", *_without_places(report.command[1:])])
            commands.setdefault(_origin(report), []).append(f"`{command}`")
    notes = [UNVERIFIED] * is_unverified
    notes += [f"{origin} {', '.join(lines)}" for origin, lines in commands.items()]
    return "\n" + "\n\n".join(tables + notes) + "\n\n"


def _suite(suite: SuiteResult, page: Path, charts: Path | None) -> str:
    columns: list[tuple[str, Callable[[CaseResult], str]]] = [
        ("", lambda case: case.name),
        ("records/s", lambda case: count(case.median(lambda run: run.records_per_second))),
        ("requests/s", lambda case: count(case.median(lambda run: run.requests_per_second))),
        ("p50", lambda case: duration(case.median(lambda run: run.latency.p50_seconds))),
        ("p99", lambda case: duration(case.median(lambda run: run.latency.p99_seconds))),
        ("p99.9", lambda case: duration(case.median(lambda run: run.latency.p999_seconds))),
        ("CPU per request", _cpu),
    ]
    if any(len(case.runs) > 1 for case in suite.cases):
        columns.insert(2, ("± runs", lambda case: f"{case.spread(lambda run: run.records_per_second):.0%}"))
    if suite.baseline:
        columns.append((f"of {suite.baseline}", lambda case: _percent(suite.share_of_baseline(case))))
    if any(run.share_of_device for run in suite.runs):
        columns.append(("WAL, of the disk alone", _share_of_device))
    if all(run.to_parquet for run in suite.runs):
        columns += [
            ("into Parquet, records/s", lambda case: count(_to_parquet(case, "parquet_records_per_second"))),
            ("peak backlog, records", lambda case: count(_to_parquet(case, "backlog_peak_records"))),
            ("backlog growth, records/s", lambda case: count(_to_parquet(case, "backlog_growth_records_per_second"))),
        ]
    if any(case.power_cut for case in suite.cases):
        columns.append(("a power cut may take", lambda case: case.power_cut))
    rows = [[cell(case) for _, cell in columns] for case in suite.cases]
    shown = 0
    parts = [f"**{suite.title}.** {load_in_words(suite)}.", _table([title for title, _ in columns], rows)]
    for suffix in _CHARTS if charts is not None else ():
        name = f"{suite.name}-{suffix}" if suffix else suite.name
        if charts is not None and (charts / f"{name}.svg").exists() and shown < _MOST_CHARTS:
            path = os.path.relpath(charts / f"{name}.svg", page.parent)
            shown += 1
            parts.append(f"![{suite.title}{suffix and f': {suffix}'}]({path})")
    return "\n\n".join(parts)


def _recovery(cases: Sequence[RecoveryCase]) -> str:
    titles = ("WAL left by a crash", "size", "verified", "s per GB", "serves after", "without a WAL", "into Parquet")
    rows = [
        [
            case.name,
            f"{case.median(lambda run: run.wal_bytes) / 1e9:.2f} GB",
            f"{case.median(lambda run: run.scan_bytes_per_second) / 1e9:.2f} GB/s",
            f"{1e9 / case.median(lambda run: run.scan_bytes_per_second):.2f}",
            duration(case.median(lambda run: run.start_seconds)),
            duration(case.median(lambda run: run.empty_start_seconds)),
            f"{case.median(lambda run: run.upload_bytes_per_second) / 1e6:,.0f} MB/s",
        ]
        for case in cases
    ]
    runs = len(cases[0].runs)
    how_often = f"Median of {runs} runs." if runs > 1 else "One run."
    return f"**{RECOVERY_TITLE}.** {how_often}\n\n{_table(titles, rows)}"


def _origin(report: Report) -> str:
    """Return a sentence on the time, the machine and the versions of a measurement."""
    machine = report.machine
    disk = ""
    if machine.file_system:
        cache = f", write cache: {machine.device_write_cache}" if machine.device_write_cache else ""
        disk = f"; data on {machine.file_system} on {machine.device}{cache}"
    return (
        f"Measured on {report.started_at[:10]} with arcpipe {machine.arcpipe} on {machine.python}; {machine.cpu}, "
        f"{machine.cores} cores that the load shares, {machine.memory_bytes / 2**30:.0f} GiB, {machine.kernel}{disk}."
    )


def _without_places(words: Sequence[str]) -> list[str]:
    """Return a command line without the options that name files, which change no figure."""
    kept = []
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        if not is_value and name not in _PLACE_OPTIONS:
            kept.append(word)
        is_value = not is_value and name in _PLACE_OPTIONS and not equals
    return kept


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _cpu(case: CaseResult) -> str:
    seconds = _median(case, lambda run: run.cpu_seconds_per_request)
    return "" if seconds is None else f"{seconds * 1e6:,.0f} µs"


def _median(case: CaseResult, value: Callable[[Run], float | None]) -> float | None:
    """Return the median of a figure; None if it is not known of every run."""
    if any(value(run) is None for run in case.runs):
        return None
    return case.median(lambda run: value(run) or 0.0)


def _share_of_device(case: CaseResult) -> str:
    return _percent(_median(case, lambda run: run.share_of_device))


def _to_parquet(case: CaseResult, name: str) -> float:
    return case.median(lambda run: float(getattr(run.to_parquet, name)))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
