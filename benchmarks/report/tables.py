"""Results as tables: drawn in a terminal, otherwise aligned text."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.results.model import (
    CaseResult,
    DeviceLimit,
    LoadOptions,
    RecoveryCase,
    RecoveryRun,
    Run,
    SuiteResult,
    WALUse,
)
from benchmarks.system.machine import Machine

_BACKLOG_LINES = 12
# Cores that other programs may use without a remark; kernel threads that write for the server use some.
_NOISE_CORES = 0.3
_CLOSED_LOOP = (
    "Closed loop: a connection sends when it has its last answer. So latencies are those of a server at its limit, and "
    "a stall counts once per connection. The suite latency has an open loop."
)
UNVERIFIED = (
    "Not verified: the benchmark cannot look into the storage of these servers. A figure counts acknowledged records, "
    "on disk or not; the documentation of a server says what it promises with an acknowledgement."
)


class _Column(NamedTuple):
    title: str
    cell: Callable[[CaseResult], str]
    is_text: bool = False


def show_machine(console: Console, machine: Machine) -> None:
    """Print the machine that figures were measured on."""
    cache = f", write cache: {machine.device_write_cache}" if machine.device_write_cache else ""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    note(console, f"arcpipe {machine.arcpipe}; {machine.python}; {packages}")
    note(
        console,
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB; {machine.kernel}; "
        f"load average {machine.load_average:.1f} at the start",
    )
    if machine.file_system:
        note(console, f"data on {machine.file_system} ({machine.mount_options}) on {machine.device}{cache}")


def show_suite(console: Console, suite: SuiteResult) -> None:
    """Print the tables of a suite: figures, resources, the backlog over time, and problems."""
    heading(console, suite.title)
    note(console, load_in_words(suite))
    _table(console, suite.cases, _figures(suite))
    if not all(run.load.records_per_second for case in suite.cases for run in case.runs):
        note(console, _CLOSED_LOOP)
    if any(run.to_parquet for case in suite.cases for run in case.runs):
        _table(console, suite.cases, _to_parquet())
        for case in suite.cases:
            _backlog(console, case.runs[-1])
    if suite.is_of_targets:
        _table(console, suite.cases, _target_resources())
        note(console, UNVERIFIED)
    else:
        _table(console, suite.cases, _wal(suite.cases))
        _table(console, suite.cases, _resources())
    if any(case.power_cut for case in suite.cases):
        note(console, "The last column of the first table holds if the disk honours its flush command.")
    _problems(console, suite)


def show_recovery(console: Console, title: str, cases: Sequence[RecoveryCase]) -> None:
    """Print the table of starts after a crash."""
    heading(console, title)

    def median(case: RecoveryCase, value: Callable[[RecoveryRun], float]) -> float:
        return case.median(value)

    def gb_per_second(case: RecoveryCase, value: Callable[[RecoveryRun], float]) -> str:
        return f"{median(case, value) / 1e9:.2f}"

    titles = (
        *("case", "WAL, GB", "segments", "serves after", "without a WAL", "verified after", "verifying, GB/s"),
        *("s per GB", "all in Parquet after", "into Parquet, MB/s", "records/s", "verified in Parquet"),
    )
    rows = [
        (
            case.name,
            gb_per_second(case, lambda run: run.wal_bytes),
            f"{case.runs[0].segments}",
            duration(median(case, lambda run: run.start_seconds)),
            duration(median(case, lambda run: run.empty_start_seconds)),
            duration(median(case, lambda run: run.scan_seconds)),
            gb_per_second(case, lambda run: run.scan_bytes_per_second),
            f"{1e9 / median(case, lambda run: run.scan_bytes_per_second):.2f}",
            duration(median(case, lambda run: run.uploaded_seconds)),
            f"{median(case, lambda run: run.upload_bytes_per_second) / 1e6:,.1f}",
            count(median(case, lambda run: run.records / (run.uploaded_seconds - run.start_seconds))),
            f"{sum(run.parquet_records for run in case.runs):,}",
        )
        for case in cases
    ]
    draw(console, titles, [title == "case" for title in titles], rows)
    note(
        console,
        "A start waits for verification: the checksum of every entry is checked, and the segments are sealed. "
        "They become Parquet afterwards, while the server serves.",
    )
    for case in cases:
        for run in case.runs:
            if run.missing_records:
                text = f"FAILED: {case.name}, round {run.round}: {run.missing_records:,} records are not in Parquet"
                console.print(Text(text, "bold red"), soft_wrap=True)


def load_in_words(suite: SuiteResult) -> str:
    """Describe the load of a suite, as far as it is the same for all cases."""
    load = suite.load
    loads = [run.load for case in suite.cases for run in case.runs]

    def same(value: Callable[[LoadOptions], Any], text: Callable[[Any], str], otherwise: str) -> str:
        values = set(map(value, loads))
        return text(values.pop()) if len(values) == 1 else otherwise

    def records(number: int) -> str:
        return f"{plural(number, 'record')} per body"

    def connections(number: int) -> str:
        return plural(number, "connection")

    def loop(rate: float) -> str:
        return f"open loop, {count(rate)} records/s" if rate else "closed loop"

    runs = len(suite.cases[0].runs)
    sent = (
        same(lambda one: one.format, str, "a format per case"),
        same(lambda one: one.records_per_body, records, "records per body by case"),
        same(lambda one: one.connections, connections, "connections by case"),
        same(lambda one: one.records_per_second, loop, "closed or open loop by case"),
        f"{load.load_processes} load process{'es' if load.load_processes > 1 else ''} on the same cores",
    )
    how_often = f"median of {runs} alternating runs" if runs > 1 else "one run"
    return f"{', '.join(sent)}; {load.seconds:g} s after {load.warmup_seconds:g} s of warm-up, {how_often}"


def plural(number: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{number:,} {noun}{'s' if number > 1 else ''}"


def _wal(cases: Sequence[CaseResult]) -> list[_Column]:
    """Return columns of the WAL, and of the disk alone with groups of the same size."""

    def wal(case: CaseResult, value: Callable[[WALUse], float], form: str) -> str:
        uses = [run.wal for run in case.runs if run.wal is not None]
        return form.format(statistics.median(map(value, uses))) if uses else ""

    def device(case: CaseResult, value: Callable[[DeviceLimit], float]) -> str:
        limits = [run.device for run in case.runs if run.device is not None]
        return f"{statistics.median(map(value, limits)) / 1e6:,.1f}" if limits else ""

    columns = [
        _Column("case", lambda case: case.name, is_text=True),
        _Column("WAL MB/s", lambda case: wal(case, lambda use: use.bytes_per_second / 1e6, "{:,.1f}")),
        _Column("KB per commit", lambda case: wal(case, lambda use: use.bytes_per_commit / 1e3, "{:,.1f}")),
        _Column("commits/s", lambda case: wal(case, lambda use: use.commits_per_second, "{:,.0f}")),
        _Column(
            "disk alone, writing over, MB/s", lambda case: device(case, lambda one: one.overwriting_bytes_per_second)
        ),
        _Column("appending, MB/s", lambda case: device(case, lambda one: one.appending_bytes_per_second)),
        _Column("WAL of disk", _share_of_device),
    ]
    if any(run.backlog_at_start_bytes for case in cases for run in case.runs):
        columns.append(
            _Column("backlog at the start, GB", lambda case: f"{case.runs[0].backlog_at_start_bytes / 1e9:.1f}")
        )
    return columns


def _share_of_device(case: CaseResult) -> str:
    shares = [share for run in case.runs if (share := run.share_of_device) is not None]
    return f"{statistics.median(shares):.0%}" if shares else ""


def _figures(suite: SuiteResult) -> list[_Column]:
    columns = [
        _Column("case", lambda case: case.name, is_text=True),
        _Column("records/s", lambda case: count(case.median(lambda run: run.records_per_second))),
        _Column("requests/s", lambda case: count(case.median(lambda run: run.requests_per_second))),
        _Column("MB/s", lambda case: f"{case.median(lambda run: run.body_bytes_per_second) / 1e6:,.1f}"),
        _Column("p50", lambda case: duration(case.median(lambda run: run.latency.p50_seconds))),
        _Column("p99", lambda case: duration(case.median(lambda run: run.latency.p99_seconds))),
        _Column("p99.9", lambda case: duration(case.median(lambda run: run.latency.p999_seconds))),
        _Column("max", lambda case: duration(case.median(lambda run: run.latency.maximum_seconds))),
    ]
    if len(suite.cases[0].runs) > 1:
        columns.insert(2, _Column("± runs", lambda case: f"{case.spread(lambda run: run.records_per_second):.0%}"))
    if suite.baseline:

        def share(case: CaseResult) -> str:
            ratio = suite.share_of_baseline(case)
            return "" if ratio is None else f"{ratio:.0%}"

        columns.append(_Column(f"of {suite.baseline}", share))
    if any(run.device for case in suite.cases for run in case.runs):
        columns.append(_Column("WAL of disk", _share_of_device))
    if len({bool(run.load.records_per_second) for case in suite.cases for run in case.runs}) > 1:
        columns.insert(1, _Column("loop", lambda case: "open" if case.runs[0].load.records_per_second else "closed"))
    if any(case.power_cut for case in suite.cases):
        columns.append(_Column("a power cut may take", lambda case: case.power_cut, is_text=True))
    return columns


def _to_parquet() -> list[_Column]:
    def median(case: CaseResult, name: str) -> float:
        return case.median(lambda run: getattr(run.to_parquet, name))

    return [
        _Column("case", lambda case: case.name, is_text=True),
        _Column("into Parquet under load, records/s", lambda case: count(median(case, "parquet_records_per_second"))),
        _Column("backlog growth, records/s", lambda case: count(median(case, "backlog_growth_records_per_second"))),
        _Column("peak backlog, records", lambda case: count(median(case, "backlog_peak_records"))),
        _Column("all in Parquet after", lambda case: duration(median(case, "catch_up_seconds"))),
        _Column("HTTP to Parquet, records/s", lambda case: count(median(case, "records_per_second"))),
    ]


def _resources() -> list[_Column]:
    def cores(prefix: str) -> Callable[[CaseResult], str]:
        def cell(case: CaseResult) -> str:
            total = case.median(lambda run: sum(one.cores for one in run.processes if one.name.startswith(prefix)))
            return f"{total:.2f}"

        return cell

    def peak(prefix: str) -> Callable[[CaseResult], str]:
        def cell(case: CaseResult) -> str:
            largest = case.median(
                lambda run: max((one.peak_rss_bytes for one in run.processes if one.name.startswith(prefix)), default=0)
            )
            return f"{largest / 1e6:,.0f}"

        return cell

    def worker_time(case: CaseResult) -> str:
        return f"{case.median(lambda run: run.cpu_seconds_per_request or 0.0) * 1e6:.1f} µs"

    return [
        _Column("case", lambda case: case.name, is_text=True),
        _Column("worker CPU per request", worker_time),
        _Column("cores: workers", cores("ingest")),
        _Column("cores: uploader", cores("uploader")),
        _Column("cores: load", lambda case: f"{case.median(lambda run: run.load_cores):.2f}"),
        _Column("cores: others", lambda case: f"{case.median(lambda run: run.other_cores + run.stolen_cores):.2f}"),
        _Column("peak MB: a worker", peak("ingest")),
        _Column("peak MB: uploader", peak("uploader")),
        _Column("verified in Parquet", lambda case: f"{sum(run.parquet_records or 0 for run in case.runs):,}"),
        _Column("drain", lambda case: duration(case.median(lambda run: run.drain_seconds))),
    ]


def _target_resources() -> list[_Column]:
    """Return columns of targets, whose processes may be on another machine."""

    def server(case: CaseResult, value: Callable[[Run], float], form: str) -> str:
        return form.format(case.median(value)) if all(run.processes for run in case.runs) else "not known"

    def cores(run: Run) -> float:
        return sum(one.cores for one in run.processes)

    def microseconds_per_request(run: Run) -> float:
        return (run.cpu_seconds_per_request or 0.0) * 1e6

    def rss_bytes(run: Run) -> float:
        return sum(one.peak_rss_bytes for one in run.processes)

    return [
        _Column("case", lambda case: case.name, is_text=True),
        _Column("server", lambda case: case.settings.get("server", ""), is_text=True),
        _Column("protocol", lambda case: case.settings.get("protocol", ""), is_text=True),
        _Column(
            "server CPU per request",
            lambda case: server(case, microseconds_per_request, "{:,.0f} µs"),
        ),
        _Column("cores: server", lambda case: server(case, cores, "{:.2f}")),
        _Column("peak MB: server", lambda case: server(case, lambda run: rss_bytes(run) / 1e6, "{:,.0f}")),
        _Column("cores: load", lambda case: f"{case.median(lambda run: run.load_cores):.2f}"),
        _Column("cores: others", lambda case: f"{case.median(lambda run: run.other_cores + run.stolen_cores):.2f}"),
        _Column("acknowledged", lambda case: f"{sum(run.acknowledged_records for run in case.runs):,}"),
    ]


def _backlog(console: Console, run: Run) -> None:
    """Print acknowledged and uploaded records over time, in a few lines."""
    last = len(run.samples) - 1
    chosen = sorted({round(last * line / (_BACKLOG_LINES - 1)) for line in range(_BACKLOG_LINES)})
    rows = [
        (
            f"{sample.seconds:.1f} s",
            count(sample.acknowledged_records),
            count(sample.parquet_records),
            count(sample.backlog_records),
            f"{sample.waiting_bytes / 1e6:,.0f}",
        )
        for sample in (run.samples[index] for index in chosen)
    ]
    titles = (f"time ({run.case})", "acknowledged", "in Parquet", "backlog, records", "sealed segments, MB")
    draw(console, titles, [False] * len(titles), rows)


def _problems(console: Console, suite: SuiteResult) -> None:
    for case in suite.cases:
        for run in case.runs:
            where = f"{case.name}, round {run.round}"
            if run.missing_records:
                text = (
                    f"{run.missing_records:,} of {run.acknowledged_records:,} acknowledged records are not in Parquet"
                )
                if run.missing_records < 0:
                    text = f"Parquet has {-run.missing_records:,} rows more than were acknowledged"
                console.print(Text(f"FAILED: {where}: {text}", "bold red"), soft_wrap=True)
    runs = [run for case in suite.cases for run in case.runs]
    complaints = Counter(complaint for run in runs for complaint in run.complaints)
    for complaint, count in complaints.items():
        times = f" {count} times" if count > 1 else ""
        console.print(Text(f"The server logged{times}: {complaint}", "yellow"), soft_wrap=True)
    noise = max(run.other_cores + run.stolen_cores for run in runs)
    if noise > _NOISE_CORES and all(run.processes for run in runs):
        text = f"Other programs used up to {noise:.1f} cores during these runs: compare figures within a round only."
        console.print(Text(text, "yellow"), soft_wrap=True)


def _table(console: Console, cases: Sequence[CaseResult], columns: Sequence[_Column]) -> None:
    rows = [tuple(column.cell(case) for column in columns) for case in cases]
    draw(console, [column.title for column in columns], [column.is_text for column in columns], rows)


def draw(
    console: Console,
    titles: Sequence[str],
    is_text: Sequence[bool],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str] = (),
) -> None:
    """Print a table, with text on the left and numbers on the right; `styles` are those of the rows."""
    if console.is_terminal:
        table = Table()
        for title, text in zip(titles, is_text, strict=True):
            table.add_column(Text(title), justify="left" if text else "right")
        for index, row in enumerate(rows):
            table.add_row(*map(Text, row), style=styles[index] if styles else None)
        console.print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    for line in (titles, *rows):
        cells = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        )
        console.print(Text("  ".join(cells).rstrip()), soft_wrap=True)
    console.print()


def heading(console: Console, title: str) -> None:
    """Print a heading."""
    console.print()
    console.print(Text(title, "bold"), soft_wrap=True)


def note(console: Console, text: str) -> None:
    """Print a remark."""
    console.print(Text(text, "dim"), soft_wrap=True)


def count(value: float) -> str:
    """Format a number: millions as "12.3 M", smaller ones whole."""
    return f"{value / 1e6:,.2f} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Format a time in seconds or milliseconds."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"
