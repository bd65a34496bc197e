"""`arcpipe status`: what the status page shows, in a terminal.

Asks `/api/v1/status` as anybody could, twice for the rates, which are what lies between two answers. Only this module
knows how figures are written for people; what they mean and what is wrong is the server's to say.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import typer

from arcpipe.errors import ArcpipeError
from arcpipe.unix_http import UnixHTTPConnection

if TYPE_CHECKING:
    from rich.console import RenderableType

    from arcpipe.config import Settings
    from arcpipe.health import Picture
    from arcpipe.listener_settings import Listener
    from arcpipe.snapshot import Distribution, Snapshot, UploaderState, WorkerState

_PATH: Final = "/api/v1/status"
_TIMEOUT_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 1.0
_WINDOW_SECONDS: Final = 10.0  # what quantiles and the rates of uploads are taken over while watching
_WARNINGS: Final = 8

_UNIX: Final = "unix:"

_HEALTHY: Final = 0
_ISSUES: Final = 1
_SILENT: Final = 2


class NotAnswering(ArcpipeError):
    """There is no picture to be had; the text says why."""


def status(
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server. Without it: server.host and server.port of the settings."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds a token with the scope read. Else the variable ARCPIPE_TOKEN counts."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What /api/v1/status answers, as it came.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on each second, until Ctrl-C.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", envvar="ARCPIPE_CONFIG", help="Settings that name the server."),
    ] = None,
) -> None:
    """Show how a running server is: whether data is safe, where it is, how far behind it is, and what to do.

    Exit code: 0 healthy, 1 there are issues, 2 no answer (or none without another token).

    \b
    Examples:
      arcpipe status
      arcpipe status --watch
      ARCPIPE_TOKEN=… arcpipe status --url https://ingest.example:8000 --json
    """
    token = os.environ.get("ARCPIPE_TOKEN", "") if token_file is None else _token_in(token_file)
    if url is None:
        from arcpipe.cli import load_settings

        server = _Server.of_settings(load_settings(config), token)
    else:
        server = _Server.at(url, token)
    try:
        code = _show_json(server, watch) if as_json else _show(server, watch)
    except NotAnswering as error:
        print(f"arcpipe: {server.url}: {error}", file=sys.stderr)
        code = _SILENT
    raise typer.Exit(code)


def _token_in(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArcpipeError(f"--token-file: {path} cannot be read: {getattr(error, 'strerror', error)}") from None


# Asking


class _Server:
    """One server, asked over a connection of its own each time, so that any of its workers may answer."""

    def __init__(self, url: str, host: str, port: int, path: str, tls: ssl.SSLContext | None, token: str):
        self.url = url
        self._host, self._port, self._path, self._tls = host, port, path, tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def at(cls, url: str, token: str) -> _Server:
        """Raises ArcpipeError for what is no URL of a server."""
        if url.startswith(_UNIX) and len(url) > len(_UNIX):
            return cls(url, url, 0, _PATH, None, token)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise ArcpipeError(f"--url: {url!r} is no URL such as http://127.0.0.1:8000 or unix:/path/of.sock")
        is_tls = parts.scheme == "https"
        context = ssl.create_default_context() if is_tls else None
        return cls(url, host, port or (443 if is_tls else 80), parts.path.rstrip("/") + _PATH, context, token)

    @classmethod
    def of_settings(cls, settings: Settings, token: str) -> _Server:
        """The server that these settings start, on this machine."""
        server = settings.server
        listener = _listener_to_ask(settings)
        if listener.path:
            return cls.at(listener.address, token)
        host, port = listener.tcp
        if not port:
            raise ArcpipeError("server.port is 0, so the port is whatever was free; the log says which: --url needs it")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        context = None
        if listener.tls:
            # The certificate itself is what is trusted, whoever signed it and whatever name it is for.
            try:
                context = ssl.create_default_context(cafile=server.tls_cert)
            except (OSError, ssl.SSLError) as error:
                raise ArcpipeError(f"server.tls_cert: {server.tls_cert} cannot be used: {error}") from None
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.check_hostname = False
        shown = f"[{host}]" if ":" in host else host
        url = f"{'https' if context else 'http'}://{shown}:{port}"
        return cls(url, host, port, _PATH, context, token)

    def ask(self) -> bytes:
        """The answer as it came. Raises NotAnswering."""
        connection: http.client.HTTPConnection
        if self._host.startswith(_UNIX):
            connection = UnixHTTPConnection(self._host.removeprefix(_UNIX), _TIMEOUT_SECONDS)
        elif self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls
            )
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            raise NotAnswering(f"not answering within {_TIMEOUT_SECONDS:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise NotAnswering(f"its certificate is not to be trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) if isinstance(error, socket.gaierror | ssl.SSLError) else _reason(error)
            raise NotAnswering(f"not answering: {reason}") from None
        finally:
            connection.close()
        if response.status in (401, 403):
            needed = "a token with the scope 'read' is needed: --token-file FILE, or the variable ARCPIPE_TOKEN"
            raise NotAnswering(f"{needed} ({_error_in(body)})")
        if response.status != http.client.OK:
            raise NotAnswering(f"answered {response.status} {response.reason}: {_error_in(body)}")
        return body

    def picture(self) -> Picture:
        """Raises NotAnswering."""
        return _decode(self.ask())


def _listener_to_ask(settings: Settings) -> Listener:
    """The first listener that tells how the server is; rather one that asks for no certificate of the client."""
    from arcpipe.listener_settings import listeners_of

    telling = [one for one in listeners_of(settings) if one.paths != "writes" and not one.proxy_protocol]
    if not telling:
        raise ArcpipeError("no listener tells how the server is, but behind a proxy: --url has to name one")
    wants_certificate = bool(settings.server.tls_client_ca)
    return min(telling, key=lambda one: wants_certificate and one.tls)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _error_in(body: bytes) -> str:
    import orjson

    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return repr(body[:80].decode("utf-8", "replace"))


def _decode(body: bytes) -> Picture:
    import msgspec

    from arcpipe.health import Picture

    try:
        return msgspec.json.decode(body, type=Picture)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise NotAnswering(f"what answers is no arcpipe of this version: {error}") from None


def _show_json(server: _Server, watch: bool) -> int:
    while True:
        body = server.ask()
        print(body.decode("utf-8"), flush=True)
        if not watch:
            return _HEALTHY if _decode(body).healthy else _ISSUES
        time.sleep(_POLL_SECONDS)


def _show(server: _Server, watch: bool) -> int:
    pictures: deque[Picture] = deque([server.picture()])

    def look() -> Picture:
        """One more picture; all that are older than the window, and all of another start, are forgotten."""
        now = server.picture()
        if _are_apart(pictures[-1].instance, now.instance):
            pictures.clear()
        pictures.append(now)
        while len(pictures) > 2 and now.instance.time - pictures[1].instance.time >= _WINDOW_SECONDS:
            pictures.popleft()
        return now

    if watch:
        return _watch(server, pictures, look)
    time.sleep(_POLL_SECONDS)
    now = look()
    _print(_report(server.url, now, _Live.of(pictures)))
    return _HEALTHY if now.healthy else _ISSUES


def _watch(server: _Server, pictures: deque[Picture], look: Callable[[], Picture]) -> int:
    if not sys.stdout.isatty():
        while True:
            time.sleep(_POLL_SECONDS)
            now = look()
            _print(_report(server.url, now, _Live.of(pictures)))
            print(flush=True)
    from rich.live import Live

    report = _report(server.url, pictures[-1], _Live.of(pictures))
    code = _HEALTHY if pictures[-1].healthy else _ISSUES
    silent_since = 0.0
    try:
        with Live(screen=True, auto_refresh=False) as live:
            live.update(_rich(report, live.console.width), refresh=True)
            while True:
                time.sleep(_POLL_SECONDS)
                try:
                    now = look()
                except NotAnswering as error:
                    silent_since = silent_since or time.time()
                    code = _SILENT
                    report = report._replace(
                        state="silent",
                        headline=f"Not answering since {_clock(silent_since)}",
                        lines=[f"{error}. The figures below are of {_clock(pictures[-1].instance.time)}."],
                    )
                else:
                    silent_since = 0.0
                    report = _report(server.url, now, _Live.of(pictures))
                    code = _HEALTHY if now.healthy else _ISSUES
                live.update(_rich(report, live.console.width), refresh=True)
    except KeyboardInterrupt:
        return code


# What lies between pictures


def _are_apart(earlier: Snapshot, later: Snapshot) -> bool:
    """Whether the difference tells nothing: the server has been started anew, or its clock was set."""
    return abs((later.time - later.uptime_seconds) - (earlier.time - earlier.uptime_seconds)) > 2


class _WorkerRates(NamedTuple):
    """Per second; None where nothing is known."""

    records: float | None
    body_bytes: float | None
    requests: float | None
    refused: float | None
    ack_p99: float | None
    lag_p99: float | None


class _Live(NamedTuple):
    """What is only known from the difference of pictures. Rates are per second, latencies in seconds."""

    workers: dict[int, _WorkerRates]
    ack: Distribution
    sync: Distribution
    groups: Distribution
    rows: float | None
    file_bytes: float | None
    retries: int
    databases: dict[str, float | None]

    @classmethod
    def of(cls, pictures: deque[Picture]) -> _Live:
        """Rates of requests from the last two pictures, all else from the first and the last."""
        now, before, first = pictures[-1].instance, pictures[max(0, len(pictures) - 2)].instance, pictures[0].instance
        known = {worker.slot: worker for worker in before.workers}
        known_first = {worker.slot: worker for worker in first.workers}
        seconds = now.time - first.time

        def grown(name: str) -> Distribution:
            parts = [getattr(worker, name) - getattr(known_first[worker.slot], name) for worker in now.workers]
            return cast("Distribution", reduce(add, parts))

        return cls(
            workers={
                worker.slot: _worker_rates(worker, known[worker.slot], known_first[worker.slot], now.time - before.time)
                for worker in now.workers
            },
            ack=grown("ack_seconds"),
            sync=grown("sync_seconds"),
            groups=grown("group_entries"),
            rows=_rate(first.uploader.rows, now.uploader.rows, seconds),
            file_bytes=_rate(first.uploader.file_bytes, now.uploader.file_bytes, seconds),
            retries=sum(now.uploader.retries.values()) - sum(first.uploader.retries.values()),
            databases={
                name: _rate(first.databases[name].records if name in first.databases else 0, usage.records, seconds)
                for name, usage in now.databases.items()
            },
        )

    def total(self, name: str) -> float | None:
        """The sum of a rate over the workers of whom it is known."""
        rates = [rate for rate in (getattr(worker, name) for worker in self.workers.values()) if rate is not None]
        return sum(rates) if rates else None


def _worker_rates(now: WorkerState, before: WorkerState, first: WorkerState, seconds: float) -> _WorkerRates:
    # A worker publishes what it has counted a few times a second: its figures are as old as its last sign of life.
    seconds += before.heartbeat_age_seconds - now.heartbeat_age_seconds
    return _WorkerRates(
        records=_rate(before.records, now.records, seconds),
        body_bytes=_rate(before.body_bytes, now.body_bytes, seconds),
        requests=_rate(before.requests, now.requests, seconds),
        refused=_rate(before.writes_refused, now.writes_refused, seconds),
        ack_p99=(now.ack_seconds - first.ack_seconds).quantile(0.99),
        lag_p99=(now.loop_lag_seconds - first.loop_lag_seconds).quantile(0.99),
    )


def _rate(before: int, now: int, seconds: float) -> float | None:
    return (now - before) / seconds if seconds > 0.2 and now >= before else None


# Figures for people


def _digits(number: float) -> str:
    """Three significant digits."""
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


def _clock(seconds: float) -> str:
    """In local time, with the day if it is another one."""
    then = datetime.fromtimestamp(seconds)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S")


def _printable(text: str) -> str:
    """Text that others have had a hand in, such as a store's error, without what would move the terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _alive(process: WorkerState | UploaderState) -> str:
    return "alive" if process.alive else f"silent for {_age(process.heartbeat_age_seconds)}"


# The report: the same parts for a terminal and for a pipe


class _Table(NamedTuple):
    """`left` counts the columns, from the first, that hold words."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int


class _Report(NamedTuple):
    state: str  # of `health.Verdict`, or "silent"
    title: str
    headline: str
    lines: list[str]
    issues: list[tuple[str, str, str]]  # severity, message, what to do
    facts: list[tuple[str, str]]
    tables: list[_Table]


def _report(url: str, picture: Picture, live: _Live) -> _Report:
    now = picture.instance
    return _Report(
        state=picture.verdict.state,
        title=f"arcpipe {now.version} at {url}, up {_age(now.uptime_seconds)}",
        headline=picture.verdict.headline,
        lines=[picture.verdict.promise],
        issues=[
            (issue.severity, _printable(issue.message), _printable(issue.recommendation)) for issue in picture.issues
        ],
        facts=list(_facts(now, live)),
        tables=[table for table in _tables(now, live) if table.rows],
    )


def _facts(now: Snapshot, live: _Live) -> Iterator[tuple[str, str]]:
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
    oldest = f"oldest record {_age(now.oldest_unshipped_seconds)}" if now.oldest_unshipped_seconds else "nothing waits"
    unreadable = f" ({now.unrecovered_segments} cannot be read)" if now.unrecovered_segments else ""
    yield (
        "waiting",
        f"{_bytes(now.backlog_bytes)} in {now.backlog_segments} segments{unreadable}, {oldest}; "
        f"{now.backlog_bytes / now.max_backlog_bytes:.1%} of the limit, {_bytes(now.max_backlog_bytes)}",
    )
    uploader = now.uploader
    last = uploader.last_upload_age_seconds
    yield (
        "uploaded",
        f"{_per_second(live.rows)} rows/s, {_bytes_per_second(live.file_bytes)} of Parquet, "
        f"last upload {'none yet' if last is None else _age(last) + ' ago'}; "
        f"in all {uploader.rows:,} rows in {uploader.files:,} files, {_bytes(uploader.file_bytes)}",
    )
    kinds = ", ".join(f"{kind}: {times:,}" for kind, times in uploader.retries.items() if times)
    odd = f"{uploader.rescued:,} rescued, {uploader.dead_letters:,} dead letters, {uploader.damaged:,} damaged"
    yield (
        "uploader",
        f"{_alive(uploader)}, pid {uploader.pid}, up {_age(uploader.uptime_seconds)}, {_bytes(uploader.memory_bytes)}, "
        f"{now.uploader_restarts} restarts; tried again {kinds or 'never'}; {odd}",
    )
    yield "store", _printable(now.store)
    used = 1 - now.disk_free_bytes / now.disk_total_bytes if now.disk_total_bytes else 0.0
    yield (
        "log",
        f"{_printable(now.wal_dir)}, sync mode {now.sync_mode}; disk {used:.0%} used, "
        f"{_bytes(now.disk_free_bytes)} free of {_bytes(now.disk_total_bytes)}; {now.worker_restarts} worker restarts",
    )


def _tables(now: Snapshot, live: _Live) -> Iterator[_Table]:
    columns = ("worker", "state", "pid", "up", "connections", "records/s", "bodies", "ack p99", "loop lag p99")
    yield _Table(
        (*columns, "memory", "segment"),
        [
            (
                *(f"ingest {worker.slot}", _alive(worker), str(worker.pid), _age(worker.uptime_seconds)),
                f"{worker.connections:,}",
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
        [(_clock(line.time), line.level, line.process, _printable(line.text)) for line in now.warnings[:_WARNINGS]],
        left=4,
    )


def _print(report: _Report) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(_rich(report, console.width))
    else:
        print("\n".join(_plain(report)), flush=True)


def _plain(report: _Report) -> Iterator[str]:
    yield report.title
    yield f"{report.state}: {report.headline}"
    yield from report.lines
    for severity, message, advice in report.issues:
        yield f"{severity}: {message}"
        yield f"  what to do: {advice}"
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
    """A table that is wider than the terminal, as several under one another; each begins with the first column.

    The last column is not counted where it holds words, because those can go on in the next line.
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


def _rich(report: _Report, width: int) -> RenderableType:
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
            issues.add_row(Text(severity, _STYLES[severity]), Text(message))
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
