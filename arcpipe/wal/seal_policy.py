"""Decide when a segment is sealed although it has room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arcpipe.clock import steady_us_at
from arcpipe.wal.options import WALOptions
from arcpipe.wal.segment import Segment

# While a sealed segment of the slot waits for its upload, the next one is sealed at this many times
# `flush.max_age_seconds`, but not before _WAITING_SECONDS. With the default of 5 s, an outage of an hour makes 120
# small segments instead of 720.
_WAITING_FACTOR: Final = 6
_WAITING_SECONDS: Final = 10.0


def is_due(
    segment: Segment, now: float, options: WALOptions, is_waiting: Callable[[], bool], collect_us: int = 0
) -> bool:
    """Tell whether a segment is due to be sealed by its age or records, or because a batch collects it.

    Args:
        now: monotonic seconds.
        is_waiting: tells whether an earlier segment of the slot waits to be sealed or uploaded.
        collect_us: µs of the steady clock; segments whose first entry is not later join a batch that is being planned.
    """
    if not segment.entries:
        return False
    age = now - segment.started_at
    if age >= options.max_age_seconds or steady_us_at(segment.started_at) <= collect_us:
        return True
    if segment.records < options.flush_max_records and age < options.flush_max_age_seconds:
        return False
    # Seal small segments only while the uploader keeps up, so that load and outages make few large ones. But a segment
    # that cannot be uploaded, or waits for an operator, must not delay the others for ever.
    if age >= max(_WAITING_FACTOR * options.flush_max_age_seconds, _WAITING_SECONDS):
        return True
    return not is_waiting()
