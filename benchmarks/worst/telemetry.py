"""Bodies of OTLP that are costly to encode, by kind: `TELEMETRY`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from arcpipe.codec.otlp import body as otlp
from arcpipe.codec.otlp.body import Signal
from benchmarks.load.telemetry import sized

Case = tuple[Callable[[bytes], Any], Callable[[int], bytes]]
"""An encoder of bodies, and a function that makes a body of about a number of bytes."""

MESSAGE_BYTES: Final = 8_000_000
"""Bytes of one message that is large: no larger one is taken."""

_TIME: Final = struct.pack("<Q", 1_700_000_000_000_000_000)


def filled(piece: bytes, size: int) -> bytes:
    """Repeat a piece up to about a number of bytes."""
    return piece * max(1, size // (len(piece) or size))


def _text(text: bytes) -> bytes:
    """Make a value of an attribute."""
    return sized(1, text)


def pair(name: bytes, value: bytes) -> bytes:
    """Make a message of a name and a value."""
    return sized(1, name) + sized(2, value)


def _any(build: Callable[[int], bytes], wrap: Callable[[bytes], bytes], size: int) -> bytes:
    """Return messages of one value each, as large as they may be, which `build` makes."""
    each = min(size, MESSAGE_BYTES)
    return filled(wrap(build(each)), size)


# OTLP


def _request(items: bytes, resource: bytes = b"") -> bytes:
    """Make a request of the items of one scope."""
    return sized(1, sized(1, resource) + sized(2, items))


def _log(content: bytes) -> bytes:
    return sized(2, b"\x09" + _TIME + content)


def _otlp(build: Callable[[int], bytes], signal: Signal = "logs", *, is_json: bool = False) -> Case:
    return partial(otlp.encode, signal=signal, is_json=is_json, promote=("a",)), build


def _logs(content: bytes) -> Case:
    """Make a case of equal log records."""
    return _otlp(lambda size: _request(filled(_log(content), size)))


def _large_logs(build: Callable[[int], bytes]) -> Case:
    """Make a case of log records whose body is one large value."""
    return _otlp(lambda size: _request(_any(build, lambda value: _log(sized(5, value)), size)))


def _large_attributes(piece: bytes) -> Case:
    """Make a case of log records with as many equal attributes as fit."""
    return _otlp(lambda size: _request(_any(partial(filled, sized(6, piece)), _log, size)))


def _deep(value: bytes, depth: int) -> bytes:
    for _ in range(depth):
        value = sized(5, sized(1, value))
    return value


def _list_of(value: bytes) -> Callable[[int], bytes]:
    return lambda size: sized(5, filled(sized(1, value), size))


def _map_of(pair: bytes) -> Callable[[int], bytes]:
    return lambda size: sized(6, filled(sized(1, pair), size))


def _trees(size: int) -> bytes:
    """Return lists within lists: four in each, down to the bottom."""
    value = b"\x18\x01"
    while len(value) < size // 5 and len(value) < MESSAGE_BYTES // 5:
        value = sized(5, sized(1, value) * 4)
    return value


def _points(field: int, point: bytes, rest: bytes = b"") -> Callable[[int], bytes]:
    """Return a builder of one metric after the other, whose points are equal."""

    def build(size: int) -> bytes:
        points = filled(sized(1, b"\x19" + _TIME + point), min(size, MESSAGE_BYTES))
        return _request(filled(sized(2, sized(1, b"m") + sized(field, points + rest)), size))

    return build


def _span(content: bytes) -> bytes:
    return sized(2, b"\x39" + _TIME + content)


_PACKED_BYTES: Final = 1_000_000

_OTLP: Final[dict[str, Case]] = {
    "OTLP logs": _logs(sized(5, _text(b"a line of the log")) + sized(6, pair(b"host", _text(b"a"))) * 5),
    "OTLP logs of nothing": _otlp(lambda size: _request(filled(b"\x12\x00", size))),
    "OTLP logs of small integers": _logs(sized(5, b"\x18\x01")),
    "OTLP logs of doubles": _logs(sized(6, pair(b"a", b"\x21" + struct.pack("<d", 0.1)))),
    "OTLP logs of whole doubles": _logs(sized(6, pair(b"a", b"\x21" + struct.pack("<d", 3e15)))),
    "OTLP logs of NaN": _logs(sized(6, pair(b"a", b"\x21" + struct.pack("<d", float("nan"))))),
    "OTLP logs of bytes": _logs(sized(6, pair(b"a", sized(7, b"x")))),
    "OTLP logs of ten kinds of values": _logs(
        b"".join(
            sized(6, pair(b"a", value))
            for value in (b"", _text(b"a"), b"\x10\x01", b"\x18\x01", b"\x21" + bytes(8), sized(5, b""), sized(6, b""))
        )
        + sized(6, pair(b"a", sized(7, b"abc")))
    ),
    "OTLP logs nested 30 deep": _logs(sized(6, pair(b"a", _deep(b"\x18\x01", 30)))),
    "OTLP logs of maps nested 2 deep": _logs(sized(5, sized(6, sized(1, pair(b"a", sized(6, b"")))))),
    "OTLP logs of long tags": _logs(b"\x82\x80\x80\x80\x08\x00" * 10),
    "OTLP logs of unknown fields": _logs(b"\xa0\x06\x01" * 40),
    "OTLP logs of bad UTF-8": _logs(sized(5, _text(b"\xff"))),
    "OTLP logs of bad times": _otlp(lambda size: _request(filled(_log(b"") + sized(2, b"\x09" + b"\xff" * 8), size))),
    "OTLP: one text": _large_logs(lambda size: _text(b"x" * size)),
    "OTLP: one text of quotes": _large_logs(lambda size: _text(b'"' * size)),
    "OTLP: one text of umlauts": _large_logs(lambda size: _text("ü".encode() * (size // 2))),
    "OTLP: one text of control characters": _large_logs(lambda size: _text(filled(bytes(range(32)), size))),
    "OTLP: one attribute of control characters": _otlp(
        lambda size: _request(
            _any(lambda each: pair(b"a", _text(filled(bytes(range(32)), each))), lambda one: _log(sized(6, one)), size)
        )
    ),
    "OTLP: one value of bytes": _large_logs(lambda size: sized(7, b"x" * size)),
    "OTLP: a list of integers": _large_logs(_list_of(b"\x18\x01")),
    "OTLP: a list of nothing": _large_logs(_list_of(b"")),
    "OTLP: a list of texts": _large_logs(_list_of(_text(b"abcdefgh"))),
    "OTLP: a list of doubles": _large_logs(_list_of(b"\x21" + struct.pack("<d", 0.1))),
    "OTLP: a list of bytes": _large_logs(_list_of(sized(7, b"x"))),
    "OTLP: a list of lists": _large_logs(_list_of(sized(5, b""))),
    "OTLP: a tree of lists": _large_logs(_trees),
    "OTLP: a map": _large_logs(_map_of(pair(b"a", _text(b"b")))),
    "OTLP: a map of nothing": _large_logs(_map_of(b"")),
    "OTLP: many attributes": _large_attributes(pair(b"a", _text(b"b"))),
    "OTLP: many attributes of nothing": _large_attributes(b""),
    "OTLP: many attributes of two values": _large_attributes(pair(b"a", _text(b"b") * 2)),
    "OTLP: many attributes of the service": _large_attributes(pair(b"service.name", _text(b"b"))),
    "OTLP: many attributes of a resource": _otlp(
        lambda size: _request(_log(b""), filled(sized(1, pair(b"a", _text(b"b"))), size))
    ),
    "OTLP: a long attribute of a resource": _otlp(
        lambda size: _request(filled(_log(b""), size), sized(1, pair(b"service.name", _text(b"x" * 500))))
    ),
    "OTLP: resources of nothing": _otlp(lambda size: filled(b"\x0a\x00", size)),
    "OTLP: resources of one attribute": _otlp(
        lambda size: filled(sized(1, sized(1, sized(1, pair(b"a", _text(b"b"))))), size)
    ),
    "OTLP: 60,000 resources": _otlp(
        lambda size: filled(sized(1, sized(1, sized(1, pair(b"service.name", _text(b"b"))))), min(size, 1_600_000))
    ),
    "OTLP: 60,000 scopes": _otlp(lambda size: sized(1, filled(sized(2, sized(1, sized(1, b"a"))), min(size, 480_000)))),
    "OTLP: scopes of one log": _otlp(lambda size: sized(1, filled(sized(2, _log(b"")), size))),
    "OTLP: unknown fields": _otlp(lambda size: filled(b"\xa0\x06\x01", size)),
    "OTLP: an unknown message": _otlp(lambda size: sized(100, bytes(size))),
    "OTLP: events": _otlp(
        lambda size: _request(
            _any(
                partial(filled, sized(11, b"\x09" + _TIME + sized(2, b"event") + sized(3, pair(b"a", _text(b"b"))))),
                _span,
                size,
            )
        ),
        "traces",
    ),
    "OTLP: events of nothing": _otlp(lambda size: _request(_any(partial(filled, b"\x5a\x00"), _span, size)), "traces"),
    "OTLP: links of nothing": _otlp(lambda size: _request(_any(partial(filled, b"\x6a\x00"), _span, size)), "traces"),
    "OTLP spans": _otlp(
        lambda size: _request(
            filled(_span(sized(1, bytes(16)) + sized(2, bytes(8)) + sized(5, b"GET /") + sized(15, b"\x18\x01")), size)
        ),
        "traces",
    ),
    "OTLP spans of nothing": _otlp(lambda size: _request(filled(b"\x12\x00", size)), "traces"),
    "OTLP points": _otlp(_points(5, b"\x21" + bytes(8) + sized(7, pair(b"a", _text(b"b")))), "metrics"),
    "OTLP metrics of nothing": _otlp(lambda size: _request(filled(b"\x12\x00", size)), "metrics"),
    "OTLP metrics of one point": _otlp(
        lambda size: _request(filled(sized(2, sized(1, b"m") + sized(5, sized(1, b"\x19" + _TIME))), size)), "metrics"
    ),
    "OTLP metrics of all kinds": _otlp(
        lambda size: _request(
            filled(b"".join(sized(2, sized(kind, sized(1, b"\x19" + _TIME))) for kind in (5, 7, 9, 10, 11)), size)
        ),
        "metrics",
    ),
    "OTLP histograms": _otlp(
        _points(9, sized(6, bytes(8) * 12) + sized(7, struct.pack("<d", 0.1) * 11) + sized(9, pair(b"a", _text(b"b")))),
        "metrics",
    ),
    "OTLP: a histogram of many buckets": _otlp(
        _points(9, sized(6, bytes(_PACKED_BYTES)) + sized(7, struct.pack("<d", 0.1) * (_PACKED_BYTES // 8))), "metrics"
    ),
    "OTLP: an exponential histogram of many buckets": _otlp(
        _points(10, sized(8, sized(2, b"\x01" * _PACKED_BYTES)) + sized(9, sized(2, b"\x01" * _PACKED_BYTES))),
        "metrics",
    ),
    "OTLP: an exponential histogram of single buckets": _otlp(
        _points(10, sized(8, b"\x10\x01" * (_PACKED_BYTES // 2))), "metrics"
    ),
    "OTLP: a summary of many quantiles": _otlp(_points(11, sized(6, b"") * 500_000), "metrics"),
    "OTLP: many exemplars": _otlp(_points(5, sized(5, b"") * 500_000), "metrics"),
    "OTLP: exemplars with attributes": _otlp(
        _points(5, sized(5, sized(7, pair(b"a", _text(b"b")))) * 100_000), "metrics"
    ),
}

# OTLP in JSON


def _json_logs(record: bytes, front: bytes = b"", back: bytes = b"") -> Case:
    return _otlp(
        lambda size: (
            b'{"resourceLogs":[{"scopeLogs":[{"logRecords":['
            + front
            + b",".join([record] * max(1, min(size, 4_190_000) // (len(record) + 1)))
            + back
            + b"]}]}]}"
        ),
        is_json=True,
    )


def _json_text(filling: bytes) -> Case:
    return _otlp(
        lambda size: (
            b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"'
            + filled(filling, min(size, 4_190_000))
            + b'"}}]}]}]}'
        ),
        is_json=True,
    )


def _json_own(size: int) -> bytes:
    records = b",".join(b'{"%x":1,"body":{"stringValue":"a"}}' % number for number in range(min(size, 4_190_000) // 38))
    return b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[' + records + b"]}]}]}"


_JSON: Final[dict[str, Case]] = {
    "OTLP JSON": _json_logs(
        b'{"timeUnixNano":"1700000000000000000","body":{"stringValue":"a line"},'
        b'"attributes":[{"key":"a","value":{"stringValue":"b"}}]}'
    ),
    "OTLP JSON of their own fields": _otlp(_json_own, is_json=True),
    "OTLP JSON of nothing": _json_logs(b"{}"),
    "OTLP JSON of unknown numbers": _json_logs(b'{"x":[' + b"1," * 1000 + b"1]}"),
    "OTLP JSON of unknown texts": _json_logs(b'{"x":[' + b'"",' * 1000 + b'""]}'),
    "OTLP JSON of unknown keys": _json_logs(
        b"{" + b",".join(b'"%x":null' % number for number in range(300_000)) + b"}"
    ),
    "OTLP JSON nested 90 deep": _json_logs(
        b'{"body":' + b'{"arrayValue":{"values":[' * 30 + b"{}" + b"]}}" * 30 + b"}"
    ),
    "OTLP JSON of unknown nests": _json_logs(b'{"x":' + b"[" * 500 + b"]" * 500 + b"}"),
    "OTLP JSON of a value of many nulls": _json_logs(b'{"attributes":[' + b"null," * 1000 + b"null]}"),
    "OTLP JSON of one text": _json_text(b"x"),
    "OTLP JSON of escapes": _json_text(b"\\u0001"),
    "OTLP JSON of umlauts": _json_text("ü".encode()),
    "OTLP JSON of large integers": _json_logs(b'{"x":' + b"1" * 4000 + b"}"),
    "OTLP JSON of one number": _otlp(lambda size: b'{"x":0.' + b"1" * min(size, 4_190_000) + b"}", is_json=True),
    "OTLP JSON of zeros": _otlp(lambda size: b'{"x":1' + b"0" * min(size, 4_190_000) + b".5}", is_json=True),
    "OTLP JSON of Base64": _json_logs(b'{"body":{"bytesValue":"' + b"eHh4" * 100_000 + b'"}}'),
    "OTLP JSON of buckets": _otlp(
        lambda size: (
            b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"bucketCounts":['
            + b"1," * (min(size, 4_190_000) // 2)
            + b"1]}]}}]}]}]}"
        ),
        "metrics",
        is_json=True,
    ),
    "OTLP JSON larger than it may be": _otlp(lambda size: b'{"x":"' + b"x" * size + b'"}', is_json=True),
}

TELEMETRY: Final[dict[str, Case]] = _OTLP | _JSON
