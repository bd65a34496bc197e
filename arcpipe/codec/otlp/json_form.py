"""The JSON form of OTLP -> protobuf, by tables of its messages.

It differs from the JSON of protobuf: trace and span ids are hexadecimal, enums are numbers, and unknown names are
skipped. Names may be lowerCamelCase alone; snake_case is taken, too, because protobuf's parsers take it.

Reference: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable
from typing import Any, Final

from arcpipe.codec.effort import Check
from arcpipe.codec.json_cuts import LargeArray, LargeObject, decode, drain
from arcpipe.errors import BadPayload, PayloadTooLarge
from arcpipe.units import MB

# Values between two calls of `check`: about a millisecond.
_VALUES_BETWEEN_CHECKS: Final = 512
_PARTS_TOGETHER: Final = 8192  # encoded values of a list that are joined at once: less than a millisecond
# Messages within each other: more than any request has, with attributes as deep as they may be.
_MAX_DEPTH: Final = 96
# Bytes of a body in JSON: making it protobuf takes half a second for these.
MAX_JSON_BYTES: Final = 4 * MB
_MAX_JSON_OBJECTS: Final = 200_000  # objects and arrays, by their brackets

# Messages: name in JSON to number and kind. A kind is one of the words of `_WRITERS`, or a message; `*` repeats it.
_VALUE: Final = {
    "stringValue": (1, "string"),
    "boolValue": (2, "bool"),
    "intValue": (3, "int64"),
    "doubleValue": (4, "double"),
    "arrayValue": (5, "ArrayValue"),
    "kvlistValue": (6, "KeyValueList"),
    "bytesValue": (7, "bytes"),
}
_POINT: Final = {"startTimeUnixNano": (2, "fixed64"), "timeUnixNano": (3, "fixed64")}
_HISTOGRAM: Final = _POINT | {"count": (4, "fixed64"), "sum": (5, "double")}
_POINTS: Final = {"aggregationTemporality": (2, "uint")}
MESSAGES: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "logs": {"resourceLogs": (1, "*ResourceLogs")},
    "traces": {"resourceSpans": (1, "*ResourceSpans")},
    "metrics": {"resourceMetrics": (1, "*ResourceMetrics")},
    "ResourceLogs": {"resource": (1, "Resource"), "scopeLogs": (2, "*ScopeLogs"), "schemaUrl": (3, "string")},
    "ResourceSpans": {"resource": (1, "Resource"), "scopeSpans": (2, "*ScopeSpans"), "schemaUrl": (3, "string")},
    "ResourceMetrics": {"resource": (1, "Resource"), "scopeMetrics": (2, "*ScopeMetrics"), "schemaUrl": (3, "string")},
    "ScopeLogs": {"scope": (1, "Scope"), "logRecords": (2, "*LogRecord"), "schemaUrl": (3, "string")},
    "ScopeSpans": {"scope": (1, "Scope"), "spans": (2, "*Span"), "schemaUrl": (3, "string")},
    "ScopeMetrics": {"scope": (1, "Scope"), "metrics": (2, "*Metric"), "schemaUrl": (3, "string")},
    "Resource": {"attributes": (1, "*KeyValue"), "droppedAttributesCount": (2, "uint")},
    "Scope": {
        "name": (1, "string"),
        "version": (2, "string"),
        "attributes": (3, "*KeyValue"),
        "droppedAttributesCount": (4, "uint"),
    },
    "KeyValue": {"key": (1, "string"), "value": (2, "AnyValue")},
    "AnyValue": _VALUE,
    "ArrayValue": {"values": (1, "*AnyValue")},
    "KeyValueList": {"values": (1, "*KeyValue")},
    "LogRecord": {
        "timeUnixNano": (1, "fixed64"),
        "severityNumber": (2, "uint"),
        "severityText": (3, "string"),
        "body": (5, "AnyValue"),
        "attributes": (6, "*KeyValue"),
        "droppedAttributesCount": (7, "uint"),
        "flags": (8, "fixed32"),
        "traceId": (9, "hex"),
        "spanId": (10, "hex"),
        "observedTimeUnixNano": (11, "fixed64"),
        "eventName": (12, "string"),
    },
    "Span": {
        "traceId": (1, "hex"),
        "spanId": (2, "hex"),
        "traceState": (3, "string"),
        "parentSpanId": (4, "hex"),
        "name": (5, "string"),
        "kind": (6, "uint"),
        "startTimeUnixNano": (7, "fixed64"),
        "endTimeUnixNano": (8, "fixed64"),
        "attributes": (9, "*KeyValue"),
        "droppedAttributesCount": (10, "uint"),
        "events": (11, "*Event"),
        "droppedEventsCount": (12, "uint"),
        "links": (13, "*Link"),
        "droppedLinksCount": (14, "uint"),
        "status": (15, "Status"),
        "flags": (16, "fixed32"),
    },
    "Event": {
        "timeUnixNano": (1, "fixed64"),
        "name": (2, "string"),
        "attributes": (3, "*KeyValue"),
        "droppedAttributesCount": (4, "uint"),
    },
    "Link": {
        "traceId": (1, "hex"),
        "spanId": (2, "hex"),
        "traceState": (3, "string"),
        "attributes": (4, "*KeyValue"),
        "droppedAttributesCount": (5, "uint"),
        "flags": (6, "fixed32"),
    },
    "Status": {"message": (2, "string"), "code": (3, "uint")},
    "Metric": {
        "name": (1, "string"),
        "description": (2, "string"),
        "unit": (3, "string"),
        "gauge": (5, "Gauge"),
        "sum": (7, "Sum"),
        "histogram": (9, "Histogram"),
        "exponentialHistogram": (10, "ExponentialHistogram"),
        "summary": (11, "Summary"),
    },
    "Gauge": {"dataPoints": (1, "*NumberDataPoint")},
    "Sum": _POINTS | {"dataPoints": (1, "*NumberDataPoint"), "isMonotonic": (3, "bool")},
    "Histogram": _POINTS | {"dataPoints": (1, "*HistogramDataPoint")},
    "ExponentialHistogram": _POINTS | {"dataPoints": (1, "*ExponentialHistogramDataPoint")},
    "Summary": {"dataPoints": (1, "*SummaryDataPoint")},
    "NumberDataPoint": _POINT
    | {
        "asDouble": (4, "double"),
        "asInt": (6, "sfixed64"),
        "attributes": (7, "*KeyValue"),
        "exemplars": (5, "*Exemplar"),
        "flags": (8, "uint"),
    },
    "HistogramDataPoint": _HISTOGRAM
    | {
        "bucketCounts": (6, "*fixed64"),
        "explicitBounds": (7, "*double"),
        "exemplars": (8, "*Exemplar"),
        "attributes": (9, "*KeyValue"),
        "flags": (10, "uint"),
        "min": (11, "double"),
        "max": (12, "double"),
    },
    "ExponentialHistogramDataPoint": _HISTOGRAM
    | {
        "attributes": (1, "*KeyValue"),
        "scale": (6, "sint"),
        "zeroCount": (7, "fixed64"),
        "positive": (8, "Buckets"),
        "negative": (9, "Buckets"),
        "flags": (10, "uint"),
        "exemplars": (11, "*Exemplar"),
        "min": (12, "double"),
        "max": (13, "double"),
        "zeroThreshold": (14, "double"),
    },
    "Buckets": {"offset": (1, "sint"), "bucketCounts": (2, "*uint")},
    "SummaryDataPoint": _HISTOGRAM
    | {"quantileValues": (6, "*Quantile"), "attributes": (7, "*KeyValue"), "flags": (8, "uint")},
    "Quantile": {"quantile": (1, "double"), "value": (2, "double")},
    "Exemplar": {
        "timeUnixNano": (2, "fixed64"),
        "asDouble": (3, "double"),
        "spanId": (4, "hex"),
        "traceId": (5, "hex"),
        "asInt": (6, "sfixed64"),
        "filteredAttributes": (7, "*KeyValue"),
    },
}
_SNAKE: Final = re.compile(r"(?<!^)(?=[A-Z])")
for _fields in list(MESSAGES.values()):
    _fields.update({_SNAKE.sub("_", name).lower(): field for name, field in list(_fields.items())})


def from_json(body: bytes, signal: str, check: Check) -> bytes:
    """Make a request in JSON the same request in protobuf.

    Raises:
        PayloadTooLarge: it is larger than a body in JSON may be.
        BadPayload: it is no JSON, or a value is of another type; the text says where.
    """
    if len(body) > MAX_JSON_BYTES:
        raise PayloadTooLarge(
            f"a body in JSON has more than {MAX_JSON_BYTES} bytes; send it in parts, or as application/x-protobuf"
        )
    if body.count(b"{") + body.count(b"[") > _MAX_JSON_OBJECTS:
        raise PayloadTooLarge(
            f"a body in JSON has more than {_MAX_JSON_OBJECTS} objects; send it in parts, or as application/x-protobuf"
        )
    value = decode(body, check)
    check()
    return _Writer(check).message(value, signal, signal, 0)


def varint(value: int) -> bytes:
    """Encode an unsigned integer of 64 bits, or a negative one as protobuf does."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


class _Writer:
    def __init__(self, check: Check) -> None:
        self._check = check
        self._values = 0

    def message(self, value: Any, name: str, where: str, depth: int) -> bytes:
        """Encode one message, without its tag."""
        if not isinstance(value, (dict, LargeObject)):
            raise BadPayload(f"{where} is no object")
        if depth > _MAX_DEPTH:
            raise BadPayload(f"{where[:80]}… is nested too deep")
        known = MESSAGES[name]
        whole = bytearray()
        parts: list[bytes] = []
        seen: set[int] = set()
        for key, content in value.items():
            field = known.get(key)
            if field is None or content is None:
                drain(content)
                continue
            number, kind = field
            place = f"{where}.{key}"
            if number in seen:
                raise BadPayload(f"{place} is there twice")
            seen.add(number)
            if kind[0] != "*":
                parts.append(self._field(number, kind, content, place, depth))
            elif isinstance(content, (list, LargeArray)):
                for at, one in enumerate(content):
                    parts.append(self._field(number, kind[1:], one, f"{place}[{at}]", depth))
                    if len(parts) == _PARTS_TOGETHER:
                        whole += b"".join(parts)
                        parts.clear()
            else:
                raise BadPayload(f"{place} is no array")
        if not whole:
            return b"".join(parts)
        whole += b"".join(parts)
        return bytes(whole)

    def _field(self, number: int, kind: str, value: Any, where: str, depth: int) -> bytes:
        self._values += 1
        if not self._values % _VALUES_BETWEEN_CHECKS:
            self._check()
        if kind in MESSAGES:
            content = self.message(value, kind, where, depth + 1)
            return b"".join((varint(number << 3 | 2), varint(len(content)), content))
        wire, write = _WRITERS[kind]
        try:
            content = write(value)
        except (ValueError, TypeError, OverflowError, struct.error, binascii.Error):
            raise BadPayload(f"{where} is no {_WORDS.get(kind, kind)}") from None
        return varint(number << 3 | wire) + content


def _integer(low: int, high: int, value: Any) -> int:
    """Read an integer, which may be a string because JavaScript has none of 64 bits."""
    if isinstance(value, str) and _DIGITS(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise ValueError
    return value


def _unsigned(value: Any) -> int:
    return _integer(0, (1 << 64) - 1, value)


def _signed(value: Any) -> int:
    return _integer(-(1 << 63), (1 << 63) - 1, value)


# Numbers that are strings. Python takes more: spaces, underscores, digits of other scripts.
_DIGITS: Final = re.compile(r"-?[0-9]{1,20}").fullmatch
_NUMBER: Final = re.compile(r"-?[0-9]{1,400}(?:\.[0-9]{0,400})?(?:[eE][-+]?[0-9]{1,9})?").fullmatch
_NOT_FINITE: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def _double(value: Any) -> bytes:
    if isinstance(value, str):
        value = _NOT_FINITE[value] if value in _NOT_FINITE else _finite(value)
    if type(value) not in (int, float):
        raise ValueError
    return struct.pack("<d", value)


def _finite(text: str) -> float:
    """Read a number of JSON. Python's `float` takes more, and makes infinities of what is too large."""
    number = float(text) if _NUMBER(text) else math.inf
    if not math.isfinite(number):
        raise ValueError
    return number


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError
    return _sized(value.encode())


def _sized(content: bytes) -> bytes:
    return varint(len(content)) + content


def _boolean(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise ValueError
    return b"\x01" if value else b"\x00"


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError
    text = value.replace("-", "+").replace("_", "/").rstrip("=")
    return _sized(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))


def _zigzag(value: Any) -> bytes:
    number = _signed(value)
    return varint(number << 1 ^ number >> 63)


# By kind: the wire type, and what makes the bytes.
_WRITERS: Final[dict[str, tuple[int, Callable[[Any], bytes]]]] = {
    "string": (2, _text),
    "bytes": (2, _base64),
    "hex": (2, lambda value: _sized(binascii.unhexlify(value))),
    "bool": (0, _boolean),
    "uint": (0, lambda value: varint(_unsigned(value))),
    "int64": (0, lambda value: varint(_signed(value))),
    "sint": (0, _zigzag),
    "fixed64": (1, lambda value: struct.pack("<Q", _unsigned(value))),
    "sfixed64": (1, lambda value: struct.pack("<q", _signed(value))),
    "fixed32": (5, lambda value: struct.pack("<I", _unsigned(value))),
    "double": (1, _double),
}
_WORDS: Final = {
    "hex": "hexadecimal text",
    "bytes": "Base64 text",
    "bool": "boolean",
    "double": "number",
    **dict.fromkeys(("uint", "int64", "sint", "fixed64", "sfixed64", "fixed32"), "integer in range"),
}
