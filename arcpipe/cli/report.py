"""The report of `arcpipe status`: figures formatted for people, in a terminal or a pipe.

This module knows the shape of a picture, and nothing of its origin. The server reports the issues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arcpipe import __version__
from arcpipe.logs.lines import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from arcpipe.cli.client import Outline
    from arcpipe.cli.rates import Live
    from arcpipe.monitoring.committer_state import CommitterState
    from arcpipe.monitoring.health import Picture
    from arcpipe.monitoring.process_state import CompactionState, UploaderState, WorkerState
    from arcpipe.monitoring.snapshot import Snapshot

_WARNINGS: Final = 8  # lines of warnings that are shown at most


# Figures for people


def _digits(number: float) -> str:
    """Format a number with three significant digits."""
    if number == 0:
        return "0"
    if number < 0.01:
        return "< 0.01"
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:,.0f}"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    whole = isinstance(number, int)
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number /= 1000
        power += 1
    return f"{number if whole and not power else _digits(number)} {units[power]}".rstrip()


def _bytes(number: float) -> str:
    return _scaled(round(number), ("B", "kB", "MB", "GB", "TB", "PB"))


def _per_second(number: float | None) -> str:
    if number is None:
        return "–"
    return _digits(number) if number < 9999.5 else _scaled(number, ("", "k", "M", "G"))


def _bytes_per_second(number: float | None) -> str:
    return "– B/s" if number is None else f"{_bytes(number)}/s"


def _latency(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds == float("inf"):
        return "off the scale"
    return f"{_digits(seconds * 1000)} ms" if seconds < 0.9995 else _age(seconds)


def _age(seconds: float) -> str:
    whole = int(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60:02} min"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def clock(seconds: float) -> str:
    """Format a time in local time, with the date unless it is today."""
    then = datetime.fromtimestamp(seconds)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S")


def _alive(process: WorkerState | UploaderState | CompactionState | CommitterState) -> str:
    if not process.pid:
        return "not started"
    return "alive" if process.alive else f"silent for {_age(process.heartbeat_age_seconds)}"


# The report: the same parts for a terminal and for a pipe


class _Table(NamedTuple):
    """A table whose first `left` columns contain words, and the others numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int


class Report(NamedTuple):
    """A picture, formatted for people."""

    state: str  # of `health.Verdict`, or "silent"
    title: str
    headline: str
    lines: list[str]
    issues: list[tuple[str, str, str]]  # severity, message, what to do
    facts: list[tuple[str, str]]
    tables: list[_Table]


def report_of(url: str, picture: Picture, live: Live) -> Report:
    """Make the report of a picture and its rates."""
    now = picture.instance
    return Report(
        state=picture.verdict.state,
        title=f"arcpipe {now.version} at {url}, up {_age(now.uptime_seconds)}",
        headline=picture.verdict.headline,
        lines=[picture.verdict.promise],
        issues=[(issue.severity, escaped(issue.message), escaped(issue.recommendation)) for issue in picture.issues],
        facts=list(_facts(now, live)),
        tables=[table for table in _tables(now, live) if table.rows],
    )


def outline_of(url: str, outline: Outline) -> Report:
    """Make the report of a server of another version."""
    server, verdict = outline.instance, outline.verdict
    version = escaped(server.version)
    return Report(
        state=verdict.state if verdict.state in _MARKS else "warning",
        title=f"arcpipe {version} at {url}, up {_age(server.uptime_seconds)}",
        headline=escaped(verdict.headline),
        lines=[
            escaped(verdict.promise),
            f"Its figures differ from those that this version ({__version__}) knows: --json shows them unchanged.",
        ],
        issues=[(issue.severity, escaped(issue.message), escaped(issue.recommendation)) for issue in outline.issues],
        facts=[],
        tables=[],
    )


def _facts(now: Snapshot, live: Live) -> Iterator[tuple[str, str]]:
    groups = f"{_digits(live.groups.sum / live.groups.count)}" if live.groups.count else "–"
    yield (
        "accepted",
        f"{_per_second(live.total('records'))} records/s, {_bytes_per_second(live.total('body_bytes'))}, "
        f"{_per_second(live.total('requests'))} requests/s, {_per_second(live.total('refused'))} writes refused/s",
    )
    yield (
        "acknowledged",
        f"p50 {_latency(live.ack.quantile(0.5))}, p99 {_latency(live.ack.quantile(0.99))}; "
        f"disk sync p99 {_latency(live.sync.quantile(0.99))}; {groups} entries per commit",
    )
    yield "waiting", _waiting(now)
    uploader = now.uploader
    last = uploader.last_upload_age_seconds
    yield (
        "uploaded",
        f"{_per_second(live.rows)} rows/s, {_bytes_per_second(live.file_bytes)} of Parquet, "
        f"last upload {'none yet' if last is None else _age(last) + ' ago'}; "
        f"in all {uploader.rows:,} rows in {uploader.files:,} files, {_bytes(uploader.file_bytes)}",
    )
    yield "files", _files(now)
    if now.compaction is not None:
        yield "compaction", _compaction(now.compaction)
        if (retention := _retention(now.compaction)) is not None:
            yield "retention", retention
    if now.committer is not None:
        yield "tables", _tables_fact(now.committer)
    kinds = ", ".join(f"{kind}: {times:,}" for kind, times in uploader.retries.items() if times)
    odd = f"{uploader.rescued:,} rescued, {uploader.dead_letters:,} dead letters, {uploader.damaged:,} damaged"
    yield (
        "uploader",
        f"{_alive(uploader)}, pid {uploader.pid}, up {_age(uploader.uptime_seconds)}, {_bytes(uploader.memory_bytes)}, "
        f"{now.uploader_restarts} restarts; tried again {kinds or 'never'}; {odd}",
    )
    replayed = sum(worker.replayed_writes for worker in now.workers)
    if uploader.keys or replayed or uploader.repeated:
        yield (
            "retries",
            f"{uploader.keys:,} idempotency keys known; {replayed:,} retries answered, {uploader.repeated:,} dropped",
        )
    yield "store", escaped(now.store)
    disk = "not known"
    if now.supervisor_alive and now.disk_total_bytes:
        used = 1 - now.disk_free_bytes / now.disk_total_bytes
        disk = f"{used:.0%} used, {_bytes(now.disk_free_bytes)} free of {_bytes(now.disk_total_bytes)}"
    yield (
        "WAL",
        f"{escaped(now.wal_dir)}, sync mode {now.sync_mode}; disk {disk}; {now.worker_restarts} worker restarts",
    )


def _waiting(now: Snapshot) -> str:
    if not now.supervisor_alive:
        return f"not known: nobody has measured it for {_age(now.measured_age_seconds)}"
    if now.wal_unlisted:
        return "not known: the WAL directory cannot be listed"
    oldest = f"oldest record {_age(now.oldest_unshipped_seconds)}" if now.oldest_unshipped_seconds else "nothing waits"
    if now.oldest_unshipped_seconds > now.unshipped_limit_seconds:
        oldest += f", late: more than {_age(now.unshipped_limit_seconds)}"
    unreadable = f" ({now.unrecovered_segments} cannot be read)" if now.unrecovered_segments else ""
    turn = ""
    if now.waiting_segments and now.next_batch_seconds:
        turn = (
            f" {_bytes(now.waiting_bytes)} of it for the next batch, in {_age(now.next_batch_seconds)} at the latest;"
        )
    return (
        f"{_bytes(now.backlog_bytes)} in {now.backlog_segments} segments{unreadable}, {oldest};{turn} "
        f"{now.backlog_bytes / now.max_backlog_bytes:.1%} of the limit, {_bytes(now.max_backlog_bytes)}"
    )


_LEAST_UPTIME: Final = 60.0  # seconds after which the files of an hour can be told


def _files(now: Snapshot) -> str:
    uploader = now.uploader
    if not uploader.files:
        return "none yet since the start"
    per_hour = "–"
    if now.uptime_seconds >= _LEAST_UPTIME:
        per_hour = f"{_digits(uploader.files * 3600 / now.uptime_seconds)}"
    rows, size = uploader.rows / uploader.files, uploader.file_bytes / uploader.files
    return f"{per_hour} files/h, {_digits(rows)} rows and {_bytes(size)} per file, since the start"


def _compaction(compaction: CompactionState) -> str:
    last = compaction.last_look_age_seconds
    look = "no look yet" if last is None else f"last look {_age(last)} ago"
    waits = "nothing waits"
    if compaction.waiting_hours:
        waits = f"{compaction.waiting_files:,} files of {compaction.waiting_hours:,} hours wait"
    state = "needs a decision" if compaction.stopped else _alive(compaction)
    return (
        f"{state}, {look}, {waits}; in all {compaction.files_in:,} files became {compaction.files_out:,}, "
        f"{_bytes(max(0, compaction.bytes_in - compaction.bytes_out))} saved; {compaction.failures:,} failures, "
        f"{compaction.left_alone:,} files left as they are"
    )


def _tables_fact(committer: CommitterState) -> str:
    last = committer.last_commit_age_seconds
    waits = "nothing waits"
    if committer.waiting_batches:
        waits = (
            f"{committer.waiting_batches:,} batches wait ({_bytes(committer.waiting_bytes)}), the oldest for "
            f"{_age(committer.oldest_waiting_seconds)}"
        )
    state = "stopped" if committer.stopped else "unreachable" if committer.unreachable else _alive(committer)
    troubles = committer.failing + committer.refused + committer.missing
    return (
        f"{committer.format}, {state}, last commit {'none yet' if last is None else _age(last) + ' ago'}, {waits}; "
        f"in all {committer.rows:,} rows in {committer.files:,} files by {committer.commits:,} commits, "
        f"{committer.conflicts:,} conflicts, {committer.failures:,} failures; {troubles:,} tables have trouble"
    )


def _retention(compaction: CompactionState) -> str | None:
    deleted = f"{compaction.expired_files:,} files deleted, {_bytes(compaction.expired_bytes)}"
    if compaction.retention_from:
        return f"{deleted}; nothing goes before {clock(compaction.retention_from)}: the log says why"
    return deleted if compaction.expired_files else None


def _tables(now: Snapshot, live: Live) -> Iterator[_Table]:
    columns = ("worker", "state", "pid", "up", "connections", "records/s", "bodies", "ack p99", "loop lag p99")
    yield _Table(
        (*columns, "memory", "segment"),
        [
            (
                *(f"ingest {worker.slot}", _alive(worker), str(worker.pid), _age(worker.uptime_seconds)),
                f"{worker.connections:,} of {worker.max_connections:,}",
                _per_second(rates.records),
                _bytes_per_second(rates.body_bytes),
                *(_latency(rates.ack_p99), _latency(rates.lag_p99), _bytes(worker.memory_bytes)),
                f"{_bytes(worker.segment_bytes)} of {_bytes(now.max_size_bytes)}",
            )
            for worker, rates in zip(now.workers, live.workers.values(), strict=True)
        ],
        left=2,
    )
    yield _Table(
        ("segments", "files", "on disk"),
        [(state, f"{found.files:,}", _bytes(found.bytes)) for state, found in now.segments.items()],
        left=1,
    )
    databases = sorted(now.databases.items(), key=lambda item: -item[1].records)
    yield _Table(
        ("database", "records/s", "records", "bodies", "requests"),
        [
            (
                name or "all others",
                _per_second(live.databases[name]),
                *(f"{usage.records:,}", _bytes(usage.body_bytes), f"{usage.requests:,}"),
            )
            for name, usage in databases
        ],
        left=1,
    )
    yield _Table(
        ("warned at", "level", "process", "text"),
        [(clock(line.time), line.level, line.process, escaped(line.text)) for line in now.warnings[:_WARNINGS]],
        left=4,
    )


def show(report: Report) -> None:
    """Print a report, with colours and tables if stdout is a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(drawn(report, console.width))
    else:
        print("\n".join(_plain(report)), flush=True)


def _plain(report: Report) -> Iterator[str]:
    yield report.title
    yield f"{report.state}: {report.headline}"
    yield from report.lines
    for severity, message, advice in report.issues:
        yield f"{severity}: {message}"
        yield f"  what to do: {advice}"
    if report.facts:
        yield ""
        yield from _aligned([*report.facts], left=2)
    for table in report.tables:
        yield ""
        yield from _aligned([table.columns, *table.rows], table.left)


def _aligned(rows: list[tuple[str, ...]], left: int) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _parts(table: _Table, width: int) -> Iterator[_Table]:
    """Split a table that is wider than the terminal into several; each begins with the first column.

    The width of a last column with words is not counted, because words can be wrapped.
    """
    widths = [max(map(len, column)) + 2 for column in zip(table.columns, *table.rows, strict=True)]
    if table.left == len(table.columns):
        widths[-1] = 0
    shown = [0]
    for number in range(1, len(widths)):
        if len(shown) > 1 and sum(widths[index] for index in (*shown, number)) > width:
            yield _columns_of(table, shown)
            shown = [0]
        shown.append(number)
    yield _columns_of(table, shown)


def _columns_of(table: _Table, numbers: list[int]) -> _Table:
    return _Table(
        tuple(table.columns[number] for number in numbers),
        [tuple(row[number] for number in numbers) for row in table.rows],
        sum(number < table.left for number in numbers),
    )


_STYLES: Final = {
    "good": "green",
    "warning": "yellow",
    "critical": "red",
    "silent": "red",
    "error": "red",
    "info": "dim",
}
_MARKS: Final = {"good": "✓", "warning": "!", "critical": "✕", "silent": "✕"}


def drawn(report: Report, width: int) -> RenderableType:
    """Return a report as rich draws it."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    style = _STYLES[report.state]
    old = "dim" if report.state == "silent" else ""
    parts: list[Any] = [
        Text(report.title, "dim"),
        Text(f"{_MARKS[report.state]} {report.headline}", f"bold {style}"),
        *(Text(line) for line in report.lines),
    ]
    if report.issues and report.state != "silent":
        issues = Table.grid(padding=(0, 2))
        for severity, message, advice in report.issues:
            issues.add_row(Text(severity, _STYLES.get(severity, "")), Text(message))
            issues.add_row("", Text(f"what to do: {advice}", "dim"))
        parts.append(Padding(issues, (1, 0, 0, 0)))
    facts = Table.grid(padding=(0, 2))
    for name, value in report.facts:
        facts.add_row(Text(name, "dim"), Text(value, old))
    parts.append(Padding(facts, (1, 0, 0, 0)))
    for table in (part for whole in report.tables for part in _parts(whole, width)):
        drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", style=old)
        for number, column in enumerate(table.columns):
            words = number < table.left
            drawn.add_column(column, justify="left" if words else "right", no_wrap=number < len(table.columns) - 1)
        for row in table.rows:
            drawn.add_row(*(Text(cell, old or _STYLES.get(cell, "")) for cell in row))
        parts.append(Padding(drawn, (1, 0, 0, 0)))
    return Group(*parts)
