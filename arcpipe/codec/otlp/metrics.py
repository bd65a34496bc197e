"""Data points of metrics -> a table for each of the five kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.columns import TIME
from arcpipe.codec.effort import Check
from arcpipe.codec.otlp import points
from arcpipe.codec.otlp.request import Request, promoted_of
from arcpipe.codec.otlp.rows import MOST_NS, Rows
from arcpipe.codec.otlp.values import Attributes
from arcpipe.codec.protobuf.buffer import Ints
from arcpipe.codec.protobuf.fields import Level, Mask
from arcpipe.codec.protobuf.pieces import pieces
from arcpipe.codec.protobuf.scan import LENGTH_DELIMITED, Spans, scan

_TAGS: Final = ("ServiceName", "MetricName", "Attributes", "ResourceAttributes", "ScopeName")


class Kind(NamedTuple):
    """A kind of data: where it is in the message, and its table."""

    field: int  # of `Metric`
    attributes: int  # field of its points
    flags: int
    exemplars: int  # 0: it has none
    table: str
    write: Callable[[Rows, Level, Check], None]


KINDS: Final = (
    Kind(5, 7, 8, 5, "otel_metrics_gauge", points.write_number),
    Kind(7, 7, 8, 5, "otel_metrics_sum", points.write_number),
    Kind(9, 9, 10, 8, "otel_metrics_histogram", points.write_histogram),
    Kind(10, 1, 10, 11, "otel_metrics_exponential_histogram", points.write_exponential_histogram),
    Kind(11, 7, 8, 0, "otel_metrics_summary", points.write_summary),
)
_SUM: Final = 7
_SUMMARY: Final = 11


class _Metrics(NamedTuple):
    """A value for each metric."""

    scope: Ints
    name: pa.Array
    description: pa.Array
    unit: pa.Array


class _Data(NamedTuple):
    """A value for each message of data: `Gauge`, `Sum` and so on."""

    metric: Ints
    temporality: Ints
    monotonic: Mask


def write_metrics(request: Request, promote: tuple[str, ...], check: Check) -> int:
    """Write the data points of a request; return how many were refused because of their time."""
    refused = 0
    for piece in pieces(request.buffer, request.items):
        refused += _write_piece(request, piece, promote, check)
    return refused


def _write_piece(request: Request, items: Spans, promote: tuple[str, ...], check: Check) -> int:
    buffer = request.buffer
    level = Level(buffer, scan(buffer, items.start, items.end, check), len(items.owner))
    metrics = _Metrics(
        items.owner,
        buffer.gather_texts(*level.spans(1), "a metric's name"),
        buffer.gather_texts(*level.spans(2), "a metric's description"),
        buffer.gather_texts(*level.spans(3), "a metric's unit"),
    )
    refused = 0
    for kind in KINDS:
        spans = level.message(kind.field, "the data of a metric")
        if not len(spans.owner):
            continue
        inner = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
        data = _Data(spans.owner, inner.integers(2), inner.booleans(3))
        for piece in pieces(buffer, inner.fields.of(1, LENGTH_DELIMITED)):
            refused += _write(request, metrics, kind, data, piece, promote, check)
            check()
    return refused


def _write(
    request: Request,
    metrics: _Metrics,
    kind: Kind,
    data: _Data,
    spans: Spans,
    promote: tuple[str, ...],
    check: Check,
) -> int:
    buffer = request.buffer
    level = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
    starts, times = level.fixed64(2), level.fixed64(3)
    good = (starts <= MOST_NS) & (times <= MOST_NS)
    if not good.all():
        rows = np.flatnonzero(good)
        if len(rows):
            kept = Spans(spans.owner[rows], spans.start[rows], spans.end[rows])
            _write(request, metrics, kind, data, kept, promote, check)
        return level.count - len(rows)
    table = Rows(level.count, request.collected)
    table.time(TIME, times)
    metric = data.metric[spans.owner]
    table.taken("MetricName", metrics.name, metric)
    table.taken("MetricDescription", metrics.description, metric)
    table.taken("MetricUnit", metrics.unit, metric)
    attributes = Attributes(buffer, level.fields.of(kind.attributes, LENGTH_DELIMITED), level.count, check)
    table.texts("Attributes", attributes.json())
    check()
    table.time("StartTimeUnix", starts)
    table.integers("Flags", level.integers(kind.flags))
    kind.write(table, level, check)
    if kind.field not in (5, _SUMMARY):
        table.integers("AggregationTemporality", data.temporality[spans.owner])
    if kind.field == _SUM:
        table.booleans("IsMonotonic", data.monotonic[spans.owner])
    if kind.exemplars:
        table.texts("Exemplars", points.exemplars(level, kind.exemplars, check))
    check()
    table.origin(request, metrics.scope[metric], promoted_of(buffer, attributes, promote), promote)
    table.add_to(kind.table, _TAGS)
    return 0
