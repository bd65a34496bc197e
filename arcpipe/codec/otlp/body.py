"""A body of OTLP -> rows of tables."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from arcpipe.codec.collected import ARROW_ROWS
from arcpipe.codec.columns import Encoded
from arcpipe.codec.effort import Check, go_on
from arcpipe.codec.otlp.json_form import from_json
from arcpipe.codec.otlp.logs import write_logs
from arcpipe.codec.otlp.metrics import write_metrics
from arcpipe.codec.otlp.request import read_request
from arcpipe.codec.otlp.traces import write_traces

Signal = Literal["logs", "traces", "metrics"]

_WRITERS: Final = {"logs": write_logs, "traces": write_traces, "metrics": write_metrics}


class Outcome(NamedTuple):
    """What of a body can be written, and how many items cannot."""

    encoded: Encoded | None  # None if there is nothing
    refused: int
    reason: str  # why; empty if nothing was refused


_BAD_TIMES: Final = "a time is beyond the year 2262"


def encode(
    body: bytes,
    check: Check = go_on,
    *,
    signal: Signal,
    is_json: bool = False,
    promote: tuple[str, ...] = (),
    arrow_rows: int = ARROW_ROWS,
) -> Outcome:
    """Make a request the body of an entry.

    Args:
        promote: attributes that are columns of their own, too.
        arrow_rows: as in `Collected`.

    Raises:
        BadPayload: it is no request of this signal; the text says where.
    """
    if is_json:
        body = from_json(body, signal, check)
    request = read_request(body, promote, check, arrow_rows)
    refused = _WRITERS[signal](request, promote, check)
    collected = request.collected
    del request  # with its copy of the body
    return Outcome(collected.encoded(), refused, _BAD_TIMES if refused else "")
