"""The columns that the kinds of data points have of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.effort import Check
from arcpipe.codec.json_texts import arrays, doubles, numbers
from arcpipe.codec.otlp.ids import hex_texts
from arcpipe.codec.otlp.rows import Rows
from arcpipe.codec.otlp.traces import lists
from arcpipe.codec.otlp.values import Attributes, require_few
from arcpipe.codec.protobuf.buffer import Ints, Words
from arcpipe.codec.protobuf.fields import Level, Mask, packed_fixed64, packed_varints
from arcpipe.codec.protobuf.scan import FIXED64, LENGTH_DELIMITED, scan


def write_number(table: Rows, level: Level, _check: Check) -> None:
    """Write the value of points of gauges and sums: a double or an integer."""
    bits, is_integer, missing = _either(level, 4, 6)
    table.numbers("Value", bits, is_integer, missing)


def write_histogram(table: Rows, level: Level, _check: Check) -> None:
    """Write points of histograms with explicit bounds."""
    _write_totals(table, level, (4, 5, 11, 12))
    owner, places = packed_fixed64(level.buffer, level.fields, 6)
    table.texts("BucketCounts", _numbers_of(owner, numbers(level.buffer.fixed64(places)), level.count))
    owner, places = packed_fixed64(level.buffer, level.fields, 7)
    table.texts("ExplicitBounds", _numbers_of(owner, doubles(level.buffer.doubles(places)), level.count))


def write_exponential_histogram(table: Rows, level: Level, check: Check) -> None:
    """Write points of exponential histograms."""
    _write_totals(table, level, (4, 5, 12, 13))
    table.integers("Scale", level.zigzag(6))
    table.integers("ZeroCount", level.fixed64(7))
    table.doubles("ZeroThreshold", level.doubles(14))
    for name, number in (("Positive", 8), ("Negative", 9)):
        spans = level.message(number, "the buckets of a histogram")
        inner = Level(level.buffer, scan(level.buffer, spans.start, spans.end, check), len(spans.owner))
        offsets = np.zeros(level.count, np.int64)
        offsets[spans.owner] = inner.zigzag(1)
        owner, counts = packed_varints(level.buffer, inner.fields, 2)
        table.integers(f"{name}Offset", offsets)
        table.texts(f"{name}BucketCounts", _numbers_of(spans.owner[owner], numbers(counts), level.count))


def write_summary(table: Rows, level: Level, check: Check) -> None:
    """Write points of summaries."""
    table.integers("Count", level.fixed64(4))
    table.doubles("Sum", level.doubles(5))
    spans = level.fields.of(6, LENGTH_DELIMITED)
    require_few(len(spans.owner))
    inner = Level(level.buffer, scan(level.buffer, spans.start, spans.end, check), len(spans.owner))
    texts = pc.binary_join_element_wise(
        '{"quantile":', doubles(inner.doubles(1)), ',"value":', doubles(inner.doubles(2)), "}", ""
    )
    table.texts("ValueAtQuantiles", arrays(texts, np.bincount(spans.owner, minlength=level.count)))


def exemplars(level: Level, number: int, check: Check) -> pa.Array:
    """Make the exemplars of each point a JSON array; null for a point without any."""
    spans = level.fields.of(number, LENGTH_DELIMITED)
    if not len(spans.owner):
        return pa.nulls(level.count, pa.string())
    require_few(len(spans.owner))
    buffer = level.buffer
    inner = Level(buffer, scan(buffer, spans.start, spans.end, check), len(spans.owner))
    bits, is_integer, missing = _either(inner, 3, 6)
    values = pc.if_else(pa.array(is_integer), numbers(bits.view(np.int64)), doubles(bits.view(np.float64)))
    texts = pc.binary_join_element_wise(
        '{"time":',
        numbers(inner.fixed64(2)),
        ',"value":',
        pc.if_else(pa.array(missing), "null", values),
        ',"trace_id":"',
        hex_texts(buffer, *inner.spans(5), 16),
        '","span_id":"',
        hex_texts(buffer, *inner.spans(4), 8),
        '","attributes":',
        Attributes(buffer, inner.fields.of(7, LENGTH_DELIMITED), inner.count, check).json(),
        "}",
        "",
    )
    return lists(texts, spans.owner, level.count)


def _write_totals(table: Rows, level: Level, numbers_of_fields: tuple[int, int, int, int]) -> None:
    """Write count, sum, least and greatest value of a histogram; the last three may be missing."""
    count, *optional = numbers_of_fields
    table.integers("Count", level.fixed64(count))
    for name, number in zip(("Sum", "Min", "Max"), optional, strict=True):
        table.doubles(name, level.doubles(number), ~level.has(number, FIXED64))


def _either(level: Level, double: int, integer: int) -> tuple[Words, Mask, Mask]:
    """Read a value that is a double or an integer: its bits, whether it is an integer, and whether there is none.

    Of several, the last one counts.
    """
    fields = level.fields
    found = np.flatnonzero(((fields.number == double) | (fields.number == integer)) & (fields.wire == FIXED64))
    owner = fields.owner[found]
    bits = np.zeros(level.count, np.uint64)
    is_integer = np.zeros(level.count, np.bool_)
    missing = np.ones(level.count, np.bool_)
    bits[owner] = level.buffer.fixed64(fields.start[found])
    is_integer[owner] = fields.number[found] == integer
    missing[owner] = False
    return bits, is_integer, missing


def _numbers_of(owner: Ints, texts: pa.Array, count: int) -> pa.Array:
    """Make the numbers of each point a JSON array."""
    counts: npt.NDArray[Any] = np.bincount(owner, minlength=count)
    return arrays(texts, counts)
