"""Bad records, and the outcome of a body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from arcpipe.codec.columns import Encoded
from arcpipe.codec.effort import Effort
from arcpipe.codec.line_protocol.bad_lines import MAX_ERRORS, LineError, printable


class Place(NamedTuple):
    """Where a bad record is, and what it is."""

    line: int  # counted from 1; in a JSON array the place of the record
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

    def add_one(self, reason: str, place: Place) -> None:
        """Report one bad record. Raises BadPayload as `add` does."""
        self.add({0: reason}, lambda _: place)

    def add(self, bad: Mapping[int, str], place_of: Callable[[int], Place]) -> None:
        """Report the bad records of a chunk.

        Args:
            bad: the reason of each by its index. Nothing of them is written.
            place_of: returns the place of an index; places are in the order of the indices.

        Raises:
            BadPayload: the body has too many for its size.
        """
        for index in sorted(bad):
            self._effort.add_bad_line()
            if len(self.errors) < MAX_ERRORS:
                line, text = place_of(index)
                self.errors.append(LineError(line, bad[index], printable(text)))
            else:
                self.more_errors += 1
