"""Native histograms as JSON text: what the message holds, by its field names. One at a time: they are few and large."""

from __future__ import annotations

import math
import struct
from typing import Any, Final, NamedTuple

import orjson

from arcpipe.codec.effort import Check
from arcpipe.codec.protobuf.buffer import Buffer
from arcpipe.codec.protobuf.scan import FIXED64, LENGTH_DELIMITED, VARINT, scan_alone
from arcpipe.errors import BadPayload
from arcpipe.units import KB

_VARINTS: Final = {1: "count", 4: "schema", 6: "zero_count", 14: "reset_hint", 15: "timestamp", 17: "start"}
_DOUBLES: Final = {2: "count", 3: "sum", 5: "zero_threshold", 7: "zero_count"}
_SPANS: Final = {8: "negative_spans", 11: "positive_spans"}
_DELTAS: Final = {9: "negative_deltas", 12: "positive_deltas"}
_FLOATS: Final = {10: "negative_counts", 13: "positive_counts", 16: "custom_values"}
_RESET_HINTS: Final = ("UNKNOWN", "YES", "NO", "GAUGE")
_NOT_IN_JSON: Final = ("sum", "timestamp", "start")
MAX_HISTOGRAM_BYTES: Final = 128 * KB
"""Bytes of one histogram: those of ten thousand buckets as doubles, and more."""
_SPANS_BETWEEN_CHECKS: Final = 256  # about a millisecond
_double = struct.Struct("<d")


class Histogram(NamedTuple):
    """A native histogram. `text` is JSON with all but sum and time."""

    time: int
    started: int
    observations: int | float
    total: float
    text: str


def read_histogram(buffer: Buffer, start: int, end: int, check: Check) -> Histogram:
    """Read one histogram.

    Raises:
        BadPayload: it is malformed, or too large.
    """
    if end - start > MAX_HISTOGRAM_BYTES:
        raise BadPayload(
            f"the native histogram at byte {buffer.offset(start)} has more than {MAX_HISTOGRAM_BYTES} bytes"
        )
    spans = 0
    found: dict[str, Any] = {"count": 0, "schema": 0, "zero_threshold": 0.0, "zero_count": 0, "timestamp": 0}
    total = 0.0
    for number, wire, at, stop in scan_alone(buffer, start, end, check):
        if wire == VARINT and number in _VARINTS:
            value = _varint(buffer, at, stop)
            found[_VARINTS[number]] = _zigzag(value) if number == 4 else value
        elif wire == FIXED64 and number == 3:
            (total,) = _double.unpack(buffer.slice(at, stop))
        elif wire == FIXED64 and number in _DOUBLES:
            (found[_DOUBLES[number]],) = _double.unpack(buffer.slice(at, stop))
        elif wire == LENGTH_DELIMITED and number in _SPANS:
            spans += 1
            if not spans % _SPANS_BETWEEN_CHECKS:
                check()
            found.setdefault(_SPANS[number], []).append(_span(buffer, at, stop, check))
        elif number in _DELTAS and wire in (VARINT, LENGTH_DELIMITED):
            found.setdefault(_DELTAS[number], []).extend(map(_zigzag, _varints(buffer, at, stop)))
        elif number in _FLOATS and wire in (FIXED64, LENGTH_DELIMITED):
            if (stop - at) % 8:
                raise BadPayload(f"malformed protobuf at byte {buffer.offset(at)}: packed doubles of {stop - at} bytes")
            found.setdefault(_FLOATS[number], []).extend(map(_json_double, _doubles(buffer, at, stop)))
    hint = found.pop("reset_hint", 0)
    if hint < len(_RESET_HINTS):
        found["reset_hint"] = _RESET_HINTS[hint]
    text = orjson.dumps(
        {
            name: _json_double(value) if isinstance(value, float) else value
            for name, value in found.items()
            if name not in _NOT_IN_JSON
        }
    )
    return Histogram(_signed(found["timestamp"]), _signed(found.get("start", 0)), found["count"], total, text.decode())


def _span(buffer: Buffer, start: int, end: int, check: Check) -> list[int]:
    offset = length = 0
    for number, wire, at, stop in scan_alone(buffer, start, end, check):
        if wire == VARINT and number == 1:
            offset = _zigzag(_varint(buffer, at, stop))
        elif wire == VARINT and number == 2:
            length = _varint(buffer, at, stop)
    return [offset, length]


def _doubles(buffer: Buffer, start: int, end: int) -> list[float]:
    return [value for (value,) in _double.iter_unpack(buffer.slice(start, end))]


def _varints(buffer: Buffer, start: int, end: int) -> list[int]:
    values = []
    value = shift = 0
    for byte in buffer.slice(start, end):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value & 0xFFFF_FFFF_FFFF_FFFF)
            value = shift = 0
        elif shift >= 70:
            raise BadPayload(f"malformed protobuf at byte {buffer.offset(start)}: a varint has more than ten bytes")
    if shift:
        raise BadPayload(f"malformed protobuf at byte {buffer.offset(start)}: a packed field ends within a varint")
    return values


def _varint(buffer: Buffer, start: int, end: int) -> int:
    return _varints(buffer, start, end)[0]


def _zigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _json_double(value: float) -> float | str:
    """Return a double as JSON can tell it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
