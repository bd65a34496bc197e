"""A rule by which an instance has an issue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from arcpipe.monitoring.snapshot import Snapshot

Severity = Literal["info", "warning", "critical"]

Found = Iterator[tuple[str, str]]
"""A message and a recommendation for each process or thing that has the issue."""

FAILED_STARTS: Final = 3
"""Starts in a row that failed or were followed by an early end, from which on a process counts as one that is not
there. The issue "restarts" reports one or two."""


class Rule(NamedTuple):
    """One kind of issue."""

    code: str
    severity: Severity
    find: Callable[[Snapshot], Found]
