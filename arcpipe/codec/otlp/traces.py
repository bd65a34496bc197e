"""Spans -> the table `otel_traces`."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import TIME
from arcpipe.codec.effort import Check
from arcpipe.codec.json_texts import arrays, numbers, quoted
from arcpipe.codec.otlp.ids import hex_texts
from arcpipe.codec.otlp.request import Request, promoted_of
from arcpipe.codec.otlp.rows import MOST_NS, Rows
from arcpipe.codec.otlp.values import Attributes, require_few
from arcpipe.codec.protobuf.buffer import Buffer, Ints
from arcpipe.codec.protobuf.fields import Level
from arcpipe.codec.protobuf.pieces import pieces
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, Spans, scan

TABLE: Final = "otel_traces"
_KINDS: Final = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")
_STATUSES: Final = ("Unset", "Ok", "Error")


def write_traces(request: Request, promote: tuple[str, ...], check: Check) -> int:
    """Write the spans of a request; return how many were refused because of their time."""
    refused = 0
    for piece in pieces(request.buffer, request.items):
        refused += _write(request, piece, promote, check)
        check()
    return refused


def _write(request: Request, spans: Spans, promote: tuple[str, ...], check: Check) -> int:
    buffer = request.buffer
    level = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
    starts, ends = level.fixed64(7), level.fixed64(8)
    good = (starts <= MOST_NS) & (ends <= MOST_NS)
    if not good.all():
        rows = np.flatnonzero(good)
        if len(rows):
            _write(request, Spans(spans.owner[rows], spans.start[rows], spans.end[rows]), promote, check)
        return level.count - len(rows)
    table = Rows(level.count, request.collected)
    table.time(TIME, starts)
    table.texts("TraceId", hex_texts(buffer, *level.spans(1), 16))
    table.texts("SpanId", hex_texts(buffer, *level.spans(2), 8))
    table.texts("ParentSpanId", hex_texts(buffer, *level.spans(4), 8))
    table.texts("TraceState", buffer.gather_texts(*level.spans(3), "a trace state"))
    table.texts("SpanName", buffer.gather_texts(*level.spans(5), "a span's name"))
    table.texts("SpanKind", words(_KINDS, level.integers(6)))
    table.integers("Duration", (ends - starts).view(np.int64), (ends == 0) | (starts == 0))
    table.integers("TraceFlags", level.fixed32(16))
    status = level.message(15, "a status")
    inner = Level(buffer, scan(buffer, status.start, status.end, check), len(status.owner))
    codes = np.zeros(level.count, np.int64)
    codes[status.owner] = inner.integers(3)
    table.texts("StatusCode", words(_STATUSES, codes))
    message_starts, message_ends = level.nowhere()
    message_starts[status.owner], message_ends[status.owner] = inner.spans(2)
    table.texts("StatusMessage", buffer.gather_texts(message_starts, message_ends, "a status"))
    check()
    attributes = Attributes(buffer, level.fields.of(9, LENGTH_DELIMITED), level.count, check)
    table.texts("SpanAttributes", attributes.json())
    check()
    table.texts("Events", _events(buffer, level.fields.of(11, LENGTH_DELIMITED), level.count, check))
    table.texts("Links", _links(buffer, level.fields.of(13, LENGTH_DELIMITED), level.count, check))
    for name, number in (("DroppedAttributesCount", 10), ("DroppedEventsCount", 12), ("DroppedLinksCount", 14)):
        table.integers(name, level.integers(number))
    check()
    table.origin(request, spans.owner, promoted_of(buffer, attributes, promote), promote)
    table.add_to(TABLE, ("ServiceName",))
    return 0


def _events(buffer: Buffer, spans: Spans, count: int, check: Check) -> pa.Array:
    """Make the events of each span a JSON array; null for a span without any."""
    if not len(spans.owner):
        return pa.nulls(count, pa.string())
    require_few(len(spans.owner))
    level = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
    texts = pc.binary_join_element_wise(
        '{"time":',
        numbers(level.fixed64(1)),
        ',"name":',
        quoted(buffer.gather_texts(*level.spans(2), "an event's name")),
        ',"attributes":',
        Attributes(buffer, level.fields.of(3, LENGTH_DELIMITED), level.count, check).json(),
        "}",
        "",
    )
    return lists(texts, spans.owner, count)


def _links(buffer: Buffer, spans: Spans, count: int, check: Check) -> pa.Array:
    """Make the links of each span a JSON array; null for a span without any."""
    if not len(spans.owner):
        return pa.nulls(count, pa.string())
    require_few(len(spans.owner))
    level = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
    texts = pc.binary_join_element_wise(
        '{"trace_id":"',
        hex_texts(buffer, *level.spans(1), 16),
        '","span_id":"',
        hex_texts(buffer, *level.spans(2), 8),
        '","trace_state":',
        quoted(buffer.gather_texts(*level.spans(3), "a trace state")),
        ',"attributes":',
        Attributes(buffer, level.fields.of(4, LENGTH_DELIMITED), level.count, check).json(),
        "}",
        "",
    )
    return lists(texts, spans.owner, count)


def lists(texts: pa.Array, owner: Ints, count: int) -> pa.Array:
    """Join JSON texts into an array for each owner; null for one without any."""
    counts = np.bincount(owner, minlength=count)
    return pc.if_else(pa.array(counts > 0), arrays(texts, counts), pa.scalar(None, pa.string()))


def words(known: tuple[str, ...], values: Ints) -> pa.Array:
    """Return the words of an enum; an unknown value is the first of them."""
    at = np.where((values >= 0) & (values < len(known)), values, 0)
    return pa.array(known, pa.string()).take(pa.array(at))
