"""Bad lines, and the report of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from arcpipe.codec.line_protocol.grammar import BadLine, count_characters, count_newlines

MAX_ERRORS: Final = 100
"""Bad lines that are reported one by one; further ones are only counted."""

MAX_TEXT: Final = 256
"""Characters of a bad line that its report has."""

_PRINTED_BYTES: Final = 4 * MAX_TEXT + 4  # more than `MAX_TEXT` characters of UTF-8 take


class LineError(NamedTuple):
    """A line of which nothing was written."""

    line: int  # counted from 1; a point with a newline in a string has the number of its first line
    reason: str  # says what is wrong; columns in it count characters from 1
    text: str  # the line, printable, at most `MAX_TEXT` characters


class BadLineReport:
    """Collect the bad lines of a body, which must come in order."""

    __slots__ = ("_at", "_body", "_line", "errors", "more_errors")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._line = 1
        self.errors: list[LineError] = []
        self.more_errors = 0

    def add(self, start: int, end: int, error: BadLine) -> None:
        """Report the line from `start` to `end`."""
        if len(self.errors) == MAX_ERRORS:
            self.more_errors += 1
            return
        self._line += count_newlines(self._body, self._at, start)
        self._at = start
        reason, at = error.args
        if at is not None:
            later_lines = count_newlines(self._body, start, at)
            line_start = (
                self._body.rfind(b"\n", start, at) + 1 if later_lines else self._body.rfind(b"\n", 0, start) + 1
            )
            column = count_characters(self._body, line_start, at) + 1
            reason = f"{reason} at column {column}"
            if later_lines:
                reason = f"{reason} of line {self._line + later_lines}"
        self.errors.append(
            LineError(self._line, reason, printable(self._body[start : min(end, start + _PRINTED_BYTES)]))
        )


def printable(line: bytes) -> str:
    """Make a line fit for an error: at most `MAX_TEXT` characters, none of which a terminal obeys."""
    text = line[:_PRINTED_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")
    if not text.isprintable():
        text = "".join([char if char.isprintable() else _escape_char(char) for char in text[: MAX_TEXT + 1]])
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _escape_char(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
