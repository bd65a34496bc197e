"""Bad records, and the outcome of a body."""

from __future__ import annotations

from typing import NamedTuple

from arcpipe.codec.columns import Encoded
from arcpipe.codec.effort import Effort
from arcpipe.codec.line_protocol.bad_lines import MAX_ERRORS, LineError, printable


class BadRecord(NamedTuple):
    """A record of which nothing is written."""

    line: int  # counted from 1; in a JSON array the place of the record
    reason: str
    text: bytes  # the record, or its beginning


class Records(NamedTuple):
    """The good records of a body, and its bad ones."""

    encoded: Encoded | None  # None if there is no good record
    errors: list[LineError]  # the first `MAX_ERRORS` bad records, in order
    more_errors: int  # the number of other bad records


class Report:
    """Collect the bad records of a body, chunk by chunk."""

    __slots__ = ("_effort", "errors", "more_errors")

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self.errors: list[LineError] = []
        self.more_errors = 0

    def check(self) -> None:
        """Let others run, as in `arcpipe.codec.effort`."""
        self._effort.check()

    def add(self, bad: list[BadRecord]) -> None:
        """Report the bad records of a chunk.

        Raises:
            BadPayload: the body has too many for its size.
        """
        for line, reason, text in sorted(bad):
            self._effort.add_bad_line()
            if len(self.errors) < MAX_ERRORS:
                self.errors.append(LineError(line, reason, printable(text)))
            else:
                self.more_errors += 1
