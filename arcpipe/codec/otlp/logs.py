"""Log records -> the table `otel_logs`."""

from __future__ import annotations

from typing import Final

import numpy as np

from arcpipe.codec.columns import TIME
from arcpipe.codec.effort import Check
from arcpipe.codec.otlp.ids import hex_texts
from arcpipe.codec.otlp.request import Request, promoted_of
from arcpipe.codec.otlp.rows import MOST_NS, Rows
from arcpipe.codec.otlp.values import AnyValues, Attributes
from arcpipe.codec.protobuf.fields import Level
from arcpipe.codec.protobuf.pieces import pieces
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, Spans, scan

TABLE: Final = "otel_logs"


def write_logs(request: Request, promote: tuple[str, ...], check: Check) -> int:
    """Write the log records of a request; return how many were refused because of their time."""
    refused = 0
    for piece in pieces(request.buffer, request.items):
        refused += _write(request, piece, promote, check)
        check()
    return refused


def _write(request: Request, records: Spans, promote: tuple[str, ...], check: Check) -> int:
    buffer = request.buffer
    level = Level(buffer, scan(buffer, records.start, records.end, check), len(records.owner))
    times, observed = level.fixed64(1), level.fixed64(11)
    good = (times <= MOST_NS) & (observed <= MOST_NS)
    if not good.all():
        rows = np.flatnonzero(good)
        kept = Spans(records.owner[rows], records.start[rows], records.end[rows])
        if len(rows):
            _write(request, kept, promote, check)
        return level.count - len(rows)
    table = Rows(level.count, request.collected)
    table.time(TIME, np.where(times > 0, times, observed))
    table.time("ObservedTimestamp", observed)
    table.texts("TraceId", hex_texts(buffer, *level.spans(9), 16))
    table.texts("SpanId", hex_texts(buffer, *level.spans(10), 8))
    table.integers("TraceFlags", level.fixed32(8))
    table.texts("SeverityText", buffer.gather_texts(*level.spans(3), "a severity"))
    table.integers("SeverityNumber", level.integers(2))
    check()
    body = level.spans(5)
    table.texts("Body", AnyValues(buffer, *body, check).texts())
    check()
    attributes = Attributes(buffer, level.fields.of(6, LENGTH_DELIMITED), level.count, check)
    table.texts("LogAttributes", attributes.json())
    table.texts("EventName", buffer.gather_texts(*level.spans(12), "an event's name"))
    table.integers("DroppedAttributesCount", level.integers(7))
    check()
    table.origin(request, records.owner, promoted_of(buffer, attributes, promote), promote)
    table.add_to(TABLE, ("ServiceName",))
    return 0
