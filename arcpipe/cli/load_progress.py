"""What `arcpipe load` shows: a bar in a terminal, lines elsewhere, or one JSON object per file.

Refused records and errors go to stderr; the rest to stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from arcpipe.load.chunks import BadRecord
    from arcpipe.load.formats import Reader
    from arcpipe.load.loader import Result
    from arcpipe.load.source import Source

_SECONDS_BETWEEN_LINES: Final = 10.0
_SECONDS_BETWEEN_WAITS: Final = 5.0
_RATED_RECORDS: Final = 1000  # the rate of fewer records says nothing
_MAX_REASON: Final = 300  # characters of a line that is told


class Shown:
    """Output as lines; the other forms are made of it."""

    def __init__(self, is_dry_run: bool) -> None:
        self._is_dry_run = is_dry_run
        self._last_line = time.monotonic()
        self._last_wait = float("-inf")
        self._results: list[Result] = []
        self._told = 0
        self._told_halves = False

    def says(self, text: str) -> None:
        """Tell something that is no result."""
        print(text, file=sys.stderr, flush=True)

    def begins(self, file: str, source: Source) -> None:
        """Begin a file."""
        self._told = 0
        self._last_line = time.monotonic()

    def progressed(self, result: Result, reader: Reader) -> None:
        """Tell where it is, once in a while."""
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            share = reader.source.read_bytes / max(reader.source.size, 1)
            self._line(f"{result.file}: {result.records:,} records, {share:.0%}")

    def was_refused(self, result: Result, bad: BadRecord) -> None:
        """Tell of a record that is not written, unless it is one of too many."""
        from arcpipe.load.loader import MAX_BAD

        self._told += 1
        if self._told <= MAX_BAD:
            text = f": {bad.text}" if bad.text else ""
            self.says(f"{result.file}: {bad.place}: {bad.reason}{text}"[: 2 * _MAX_REASON])
        elif self._told == MAX_BAD + 1:
            self.says(f"{result.file}: further refused records are only counted")

    def was_too_large(self, result: Result, reason: str) -> None:
        """Tell once what a later load depends on, as a server with another limit knows other keys."""
        if not self._told_halves:
            self._told_halves = True
            self.says(
                f"{result.file}: {reason}, so smaller requests are sent. Load it again only while the server has this "
                "limit, such as server.max_body_mb: under a higher one, records would be stored twice"
            )

    def waits(self, reason: str, seconds: float) -> None:
        """Tell that the server takes nothing at this moment."""
        now = time.monotonic()
        if now - self._last_wait >= _SECONDS_BETWEEN_WAITS:
            self._last_wait = now
            self.says(f"waiting: {reason}; trying again in {seconds:.1f} s")

    def fails(self, file: str, reason: str) -> None:
        """Tell that a file is not loaded to its end."""
        self.says(reason if reason.startswith(file) else f"{file}: {reason}")

    def ended(self, result: Result) -> None:
        """Tell the result of a file."""
        self._results.append(result)
        self._line(self._text(result.file, result))

    def sums_up(self, failed: int) -> None:
        """Tell the result of all files, if there are several."""
        if len(self._results) + failed > 1:
            lost = f", {failed} files are not loaded" if failed else ""
            self._line(self._text(f"{len(self._results)} files", _sum(self._results)) + lost)

    def _line(self, text: str) -> None:
        print(text, flush=True)

    def _text(self, name: str, result: Result) -> str:
        done = "are good" if self._is_dry_run else "written"
        text = f"{name}: {result.records:,} records {done} in {result.seconds:.1f} s"
        if result.seconds > 0.1 and result.records >= _RATED_RECORDS:
            text += f" ({result.records / result.seconds:,.0f}/s)"
        if result.replayed:
            text += f", {result.replayed:,} of them by an earlier load"
        if result.refused:
            text += f", {result.refused:,} refused"
        if result.may_be_doubled:
            text += f", {result.may_be_doubled:,} requests may be at two nodes"
        return text


def _sum(results: list[Result]) -> Result:
    from arcpipe.load.loader import Result

    total = Result("", "")
    for result in results:
        for name in ("records", "replayed", "refused", "chunks", "bytes", "seconds", "may_be_doubled"):
            setattr(total, name, getattr(total, name) + getattr(result, name))
    return total


class _JSON(Shown):
    def _line(self, text: str) -> None:
        pass

    def ended(self, result: Result) -> None:
        self._row(asdict(result) | {"bad": [bad._asdict() for bad in result.bad]})

    def fails(self, file: str, reason: str) -> None:
        self._row({"file": file, "error": reason})

    def was_refused(self, result: Result, bad: BadRecord) -> None:
        pass  # it is in the result

    def _row(self, row: dict[str, Any]) -> None:
        from arcpipe.cli.output import print_json

        print_json([row])


class _Terminal(Shown):
    def __init__(self, is_dry_run: bool, bar: Progress) -> None:
        super().__init__(is_dry_run)
        self._bar = bar
        self._task: TaskID | None = None

    def says(self, text: str) -> None:
        self._line(text)

    def begins(self, file: str, source: Source) -> None:
        super().begins(file, source)
        self._end_task()
        self._task = self._bar.add_task(file, total=max(source.size, 1), speed="")

    def progressed(self, result: Result, reader: Reader) -> None:
        if self._task is not None:
            speed = f"{result.records / max(result.seconds, 0.001):,.0f} records/s"
            self._bar.update(self._task, completed=reader.source.read_bytes, speed=speed)

    def ended(self, result: Result) -> None:
        self._end_task()
        super().ended(result)

    def _end_task(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown(as_json: bool, is_dry_run: bool) -> Iterator[Shown]:
    """Return the output that fits: JSON, a terminal's or lines."""
    if as_json or not sys.stdout.isatty():
        yield _JSON(is_dry_run) if as_json else Shown(is_dry_run)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        yield _Terminal(is_dry_run, bar)
