"""Bodies of remote write that are costly to encode, by kind: `SERIES`."""

from __future__ import annotations

from functools import partial
from typing import Final

import pyarrow as pa

from arcpipe.codec.content_encoding import decode
from arcpipe.codec.remote_write import body as remote_write
from arcpipe.codec.remote_write.body import Version
from arcpipe.codec.remote_write.tables import Layout
from benchmarks.load.telemetry import sized, varint
from benchmarks.worst.telemetry import MESSAGE_BYTES, Case, filled, pair

_NAME: Final = sized(1, pair(b"__name__", b"up"))
_SAMPLE: Final = sized(2, b"\x09" + bytes(8) + b"\x10\x80\xd0\x95\xff\xbc\x31")


def _series(content: bytes, version: Version = 1, layout: Layout = Layout()) -> Case:  # noqa: B008
    return (
        partial(remote_write.encode, version=version, layout=layout),
        lambda size: filled(sized(1 if version == 1 else 5, content), size),
    )


def _large_series(piece: bytes, version: Version = 1, front: bytes = _NAME + _SAMPLE, symbols: bytes = b"") -> Case:
    number = 1 if version == 1 else 5
    return (
        partial(remote_write.encode, version=version),
        lambda size: symbols + filled(sized(number, front + filled(piece, min(size, MESSAGE_BYTES))), size),
    )


def _own_metrics(size: int) -> bytes:
    count = 4000 + size // 300
    own = b"".join(sized(1, sized(1, pair(b"__name__", b"m%x" % number)) + _SAMPLE) for number in range(count))
    rest = sized(1, _NAME + _SAMPLE)
    return own + filled(rest, max(100, size - len(own)))


_SYMBOLS: Final = b"".join(sized(4, text) for text in (b"", b"__name__", b"up", b"a", b"b"))
_HISTOGRAM: Final = b"\x08\x0a\x19" + bytes(8) + sized(11, b"\x08\x02\x10\x02") + sized(12, b"\x02\x02")
_MANY_BUCKETS: Final = b"\x08\x0a" + sized(11, b"\x08\x02\x10\xc0\x84\x3d") + sized(12, b"\x02" * 1_000_000)

SERIES: Final[dict[str, Case]] = {
    "series": _series(_NAME + b"".join(sized(1, pair(b"l%d" % at, b"value")) for at in range(9)) + _SAMPLE),
    "series of nothing": _series(b""),
    "series of a name": _series(_NAME),
    "series of one sample without labels": _series(_SAMPLE),
    "series of bad labels": _series(sized(1, pair(b"", b"x")) + _SAMPLE),
    "series of a label twice": _series(_NAME + sized(1, pair(b"a", b"b")) * 2 + _SAMPLE),
    "series of labels out of order": _series(
        _NAME + b"".join(sized(1, pair(b"l%02d" % (99 - at), b"value")) for at in range(60)) + _SAMPLE
    ),
    "series of escapes": _series(_NAME + sized(1, pair(b"a", bytes(range(1, 32)) + b'"\\')) + _SAMPLE),
    "series of bad UTF-8": _series(_NAME + sized(1, pair(b"a", b"\xff")) + _SAMPLE),
    "series of umlauts": _series(_NAME + sized(1, pair(b"a", "ü".encode() * 50)) + _SAMPLE),
    "a series of many samples": _large_series(_SAMPLE),
    "a series of many empty samples": _large_series(b"\x12\x00"),
    "a series of many labels": _large_series(sized(1, pair(b"a", b"b"))),
    "a series of many empty labels": _large_series(b"\x0a\x00"),
    "a series of many histograms": _large_series(sized(4, _HISTOGRAM)),
    "a series of many empty histograms": _large_series(b"\x22\x00"),
    "a series of many exemplars": _large_series(sized(3, sized(1, pair(b"a", b"b")) + b"\x11" + bytes(8))),
    "a series of many empty exemplars": _large_series(b"\x1a\x00"),
    "a series of a long label": _large_series(b"", front=_NAME + sized(1, pair(b"a", b"x" * 7_000_000)) + _SAMPLE),
    "a series of a long label of quotes": _large_series(
        b"", front=_NAME + sized(1, pair(b"a", b'"' * 7_000_000)) + _SAMPLE
    ),
    "a long label of many samples": _large_series(_SAMPLE, front=_NAME + sized(1, pair(b"a", b"x" * 500))),
    "histograms": _series(_NAME + sized(4, _HISTOGRAM)),
    "histograms of many buckets": _series(_NAME + sized(4, _MANY_BUCKETS)),
    "histograms of many spans": _series(_NAME + sized(4, b"\x08\x0a" + sized(11, b"") * 300_000)),
    "metadata": (remote_write.encode, partial(filled, sized(3, b"\x08\x01" + sized(2, b"up") + sized(4, b"help")))),
    "metadata of nothing": (remote_write.encode, partial(filled, b"\x1a\x00")),
    "a table of each metric": (partial(remote_write.encode, layout=Layout(per_metric=True)), _own_metrics),
    "series of version 2": (
        partial(remote_write.encode, version=2),
        lambda size: _SYMBOLS + filled(sized(5, sized(1, b"\x01\x02\x03\x04") + _SAMPLE), size),
    ),
    "series of version 2 of nothing": (partial(remote_write.encode, version=2), partial(filled, b"\x2a\x00")),
    "symbols of nothing": (partial(remote_write.encode, version=2), partial(filled, b"\x22\x00")),
    "symbols": (partial(remote_write.encode, version=2), partial(filled, sized(4, b"abcdefghijklm"))),
    "symbols of control characters": (
        partial(remote_write.encode, version=2),
        partial(filled, sized(4, bytes(range(1, 32)) * 4)),
    ),
    "a symbol": (partial(remote_write.encode, version=2), lambda size: sized(4, b"x" * size)),
    "series of many references": _large_series(b"", 2, sized(1, b"\x03\x04" * 1_000_000) + _SAMPLE, _SYMBOLS),
    "series of single references": _large_series(b"\x08\x03\x08\x04", 2, _SAMPLE, _SYMBOLS),
    "series of bad references": (
        partial(remote_write.encode, version=2),
        lambda size: _SYMBOLS + filled(sized(5, sized(1, b"\x7f\x7f") + _SAMPLE), size),
    ),
    "series of odd references": (
        partial(remote_write.encode, version=2),
        lambda size: _SYMBOLS + filled(sized(5, sized(1, b"\x01") + _SAMPLE), size),
    ),
    "metadata of version 2": (
        partial(remote_write.encode, version=2),
        lambda size: _SYMBOLS + filled(sized(5, sized(1, b"\x01\x02") + sized(5, b"\x08\x01\x18\x04")), size),
    ),
    "metadata of version 2 of their own": (
        partial(remote_write.encode, version=2),
        lambda size: b"".join(
            [_SYMBOLS]
            + [sized(4, b"m%06x" % number) for number in range(size // 30)]
            + [
                sized(5, sized(1, b"\x01" + varint(number + 5)) + sized(5, b"\x08\x01\x18\x04"))
                for number in range(size // 30)
            ]
        ),
    ),
    "snappy of zeros": (
        lambda data: decode("snappy", data, 101_000_000),
        lambda size: pa.Codec("snappy").compress(bytes(size), asbytes=True),
    ),
}
