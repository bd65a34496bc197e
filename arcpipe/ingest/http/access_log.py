"""The access log: which requests get a line, and its format.

Much of a line comes from clients, so all of it is escaped: nothing that a client sends ends a line, forges a field or
drives a terminal. A line never contains the query of a request, nor a header with a token.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from arcpipe.units import KB

if TYPE_CHECKING:
    from arcpipe.config.settings import AccessLog as Settings
    from arcpipe.logs.line_writer import LineWriter

log = logging.getLogger(__name__)

# Lines, and seconds, that are collected at most before the thread gets them.
_BATCH_LINES: Final = 256
_BATCH_SECONDS: Final = 0.1
# Seconds to write the last lines: a reader that does not read must not delay the end of the worker.
_CLOSE_SECONDS: Final = 1.0
# Seconds between two log lines about a problem.
_PROBLEM_LINE_SECONDS: Final = 60.0
# Bytes after which values of clients are cut; a URL may have a megabyte.
_MAX_VALUE_BYTES: Final = KB
# Characters that are escaped in a quoted field of the combined format, as Apache does.
_QUOTED: Final = {0x22: '\\"', 0x5C: "\\\\"}


class Line(Struct, frozen=True, gc=False):
    """A request and its answer, by the names of the JSON format. Fields that a request lacks are None."""

    time: str  # when the answer was given, UTC
    worker: int
    client: str
    token: str | None  # the id of it
    request_id: str
    method: str
    path: str
    database: str | None
    records: int  # that it wrote
    bytes: int  # of the body once decoded
    status: int
    queue_ms: float  # from the whole request to its place in a group: waiting, decoding, encoding
    commit_ms: float  # from there until the group was on disk
    total_ms: float  # from the head to the answer


class CombinedLine(Line, frozen=True, gc=False):
    """The same, with the fields that only the combined format has."""

    answer_bytes: int
    referer: str
    agent: str


class AccessLog:
    """Collects lines in the loop, and has a thread write them in batches."""

    def __init__(self, settings: Settings, worker: int, writer: LineWriter) -> None:
        self.worker = worker
        self.is_combined = settings.format == "combined"
        self.writer = writer
        self._path = settings.path
        self._sample = settings.sample
        self._always_errors = settings.always_errors
        self._lines: list[Line] = []
        self._encode_json = msgspec.json.Encoder().encode_lines
        self._timer: asyncio.TimerHandle | None = None
        self._second = 0
        self._time = ""  # of that second
        self._next_problem_line = 0.0
        self._told_dropped = 0

    def takes(self, status: bytes) -> bool:
        """Choose whether a request with this status gets a line."""
        if self._sample >= 1 or (self._always_errors and status >= b"4"):
            return True
        return random.random() < self._sample

    def now(self) -> str:
        """Return the present time as this format writes it."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            form = "%d/%b/%Y:%H:%M:%S +0000" if self.is_combined else "%Y-%m-%dT%H:%M:%S"
            self._time = time.strftime(form, time.gmtime(second))
        return self._time if self.is_combined else f"{self._time}.{int((now - second) * 1000):03d}Z"

    def add(self, line: Line) -> None:
        """Have a line written soon."""
        lines = self._lines
        lines.append(line)
        if len(lines) >= _BATCH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_BATCH_SECONDS, self.flush)

    def flush(self) -> None:
        """Give the collected lines to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            data = b"".join(map(_combined, lines)) if self.is_combined else self._encode_json(lines)
            self.writer.write(data, len(lines))

    def tick(self, now: float) -> None:
        """Log dropped lines. Call it a few times a second."""
        if now < self._next_problem_line:
            return
        if problem := self.writer.take_problem():
            dropped = self.writer.dropped
            log.warning("access log %s: %s; %d lines dropped", self._path, problem, dropped - self._told_dropped)
            self._told_dropped = dropped
            self._next_problem_line = now + _PROBLEM_LINE_SECONDS

    def close(self) -> None:
        """Write the collected lines, for _CLOSE_SECONDS at most."""
        self.flush()
        self.writer.close(_CLOSE_SECONDS)


def printable(value: bytes) -> str:
    """Return a client's bytes as text on which no terminal acts, cut if it is long."""
    text = value[:_MAX_VALUE_BYTES].decode("ascii", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _combined(line: Line) -> bytes:
    """Return a line of the combined format, followed by the other fields as name=value."""
    assert isinstance(line, CombinedLine)
    return (
        f"{line.client} - {line.token or '-'} [{line.time}] "
        f'"{line.method} {line.path.translate(_QUOTED)} HTTP/1.1" {line.status} {line.answer_bytes} '
        f'"{line.referer.translate(_QUOTED)}" "{line.agent.translate(_QUOTED)}" '
        f"id={line.request_id} db={quote(line.database or '-', safe='')} records={line.records} bytes={line.bytes} "
        f"queue_ms={line.queue_ms} commit_ms={line.commit_ms} total_ms={line.total_ms} worker={line.worker}\n"
    ).encode("utf-8", "backslashreplace")
