"""A rule by which an instance has an issue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from arcpipe.monitoring.snapshot import Snapshot

Severity = Literal["info", "warning", "critical"]

Found = Iterator[tuple[str, str]]
"""A message and a recommendation for each process or thing that has the issue."""


class Rule(NamedTuple):
    """One kind of issue."""

    code: str
    severity: Severity
    find: Callable[[Snapshot], Found]
