"""`arcpipe status`: the content of the status page, in a terminal.

It asks for `/api/v1/status` twice, because rates are differences of two answers. The server judges the figures and
reports the issues.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arcpipe.cli.options import config_option, token_of, token_option
from arcpipe.errors import ArcpipeError, ConfigError

if TYPE_CHECKING:
    from arcpipe.cli.client import Outline, StatusServer
    from arcpipe.cli.rates import Sample
    from arcpipe.cli.report import Report
    from arcpipe.monitoring.health import Picture

_POLL_SECONDS: Final = 1.0  # between two questions
_WINDOW_SECONDS: Final = 10.0  # time over which --watch computes quantiles and the rates of uploads

_HEALTHY: Final = 0
_ISSUES: Final = 1
_SILENT: Final = 2


def status(
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server. Without it: server.host and server.port of the settings."),
    ] = None,
    cacert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM certificates to trust instead of the system's."),
    ] = None,
    token_file: Annotated[Path | None, token_option("read")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer of /api/v1/status unchanged.")] = False,
    alive: Annotated[
        bool, typer.Option("--alive", help="Only ask if it answers at all, as an orchestrator does: needs no token.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Update every second, until Ctrl-C.")] = False,
    config: Annotated[
        Path | None,
        config_option("Settings that name the server."),
    ] = None,
) -> None:
    """Show the state of a running server: whether data is safe, what waits for its upload, and what to do.

    Exit code: 0 healthy, 1 there are issues, 2 no answer (or another token is needed, or nobody can be asked). With
    --alive: 0 or 2.

    \b
    Examples:
      arcpipe status
      arcpipe status --watch
      ARCPIPE_TOKEN=… arcpipe status --url https://ingest.example:8000 --cacert ca.pem --json
    """
    from arcpipe.cli.client import NotAnswering

    try:
        server = _server(url, token_of(token_file), cacert, config)
    except ConfigError:
        raise
    except ArcpipeError as error:  # 1 would say that the server has issues
        print(f"arcpipe: {error}", file=sys.stderr)
        raise typer.Exit(_SILENT) from None
    try:
        if alive:
            server.ask_health()
            code = _HEALTHY
        else:
            code = _show_json(server, watch) if as_json else _show(server, watch)
    except NotAnswering as error:
        print(f"arcpipe: {server.url}: {error}", file=sys.stderr)
        code = _SILENT
    raise typer.Exit(code)


def _server(url: str | None, token: str, cacert: Path | None, config: Path | None) -> StatusServer:
    """Return the server to ask. Raises ArcpipeError."""
    from arcpipe.cli.client import StatusServer

    if url is not None:
        return StatusServer.at(url, token, cacert)
    from arcpipe.cli.serving import load_settings

    return StatusServer.of_settings(load_settings(config), token, cacert)


def _show_json(server: StatusServer, watch: bool) -> int:
    from arcpipe.cli.client import decode

    while True:
        body = server.ask()
        code = _code(decode(body))
        print(body.decode("utf-8", "backslashreplace"), flush=True)
        if not watch:
            return code
        time.sleep(_POLL_SECONDS)


def _code(answer: Picture | Outline) -> int:
    return _HEALTHY if answer.healthy else _ISSUES


def _show(server: StatusServer, watch: bool) -> int:
    from arcpipe.cli.report import show

    looks = _Looks(server)
    answer = looks.look()
    if watch and sys.stdout.isatty():
        return _watch(looks, _code(answer))
    while True:
        # An outline has no rates, so it needs no second look.
        if watch or looks.samples:
            time.sleep(_POLL_SECONDS)
            answer = looks.look()
        show(looks.report())
        if not watch:
            return _code(answer)
        print(flush=True)


class _Looks:
    """The pictures of the last seconds, or the last outline if the server is of another version."""

    def __init__(self, server: StatusServer) -> None:
        self._server = server
        self._outline: Outline | None = None
        self.samples: deque[Sample] = deque()
        self.came_at = 0.0  # time of day of the last answer

    def look(self) -> Picture | Outline:
        """Ask once more, and forget pictures that are older than the window or from before a restart.

        Raises:
            NotAnswering: there is no answer.
        """
        from arcpipe.cli.client import Outline
        from arcpipe.cli.rates import Sample, are_apart

        answer = self._server.picture()
        self.came_at = time.time()
        if isinstance(answer, Outline):
            self.samples.clear()
            self._outline = answer
            return answer
        samples, now = self.samples, Sample(answer, time.monotonic())
        if samples and are_apart(samples[-1], now):
            samples.clear()
        samples.append(now)
        while len(samples) > 2 and now.came_at - samples[1].came_at >= _WINDOW_SECONDS:
            samples.popleft()
        return answer

    def report(self) -> Report:
        """Make a report of the pictures."""
        from arcpipe.cli.rates import Live
        from arcpipe.cli.report import outline_of, report_of

        if self.samples:
            return report_of(self._server.url, self.samples[-1].picture, Live.of(self.samples))
        assert self._outline is not None, "BUG: a report before the first look"
        return outline_of(self._server.url, self._outline)


def _watch(looks: _Looks, code: int) -> int:
    from rich.live import Live as Screen

    from arcpipe.cli.client import NotAnswering
    from arcpipe.cli.report import clock, drawn

    report = looks.report()
    silent_since = 0.0
    try:
        with Screen(screen=True, auto_refresh=False) as screen:
            screen.update(drawn(report, screen.console.width), refresh=True)
            while True:
                time.sleep(_POLL_SECONDS)
                try:
                    code = _code(looks.look())
                except NotAnswering as error:
                    silent_since = silent_since or time.time()
                    code = _SILENT
                    report = report._replace(
                        state="silent",
                        headline=f"Not answering since {clock(silent_since)}",
                        lines=[f"{error}. The figures below are of {clock(looks.came_at)}."],
                    )
                else:
                    silent_since = 0.0
                    report = looks.report()
                screen.update(drawn(report, screen.console.width), refresh=True)
    except KeyboardInterrupt:
        return code
