"""Bodies of Prometheus remote write and of OTLP, of which only the times are written over, in place.

They are written byte by byte, so that nothing but numpy is needed, and making one takes less than a millisecond.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa

_TIME_BYTES: Final = 6  # of a varint with milliseconds, from 2004 to 2109
_RECORD_INTERVAL_US: Final = 100


class SeriesBody:
    """Remote write 1.0 as vmagent sends it: series of ten labels with one sample each, as a snappy block.

    10,000 series are 2.4 MB, and 500 kB as a block.
    """

    path = "/api/v1/write?db=bench"
    content_type = "application/x-protobuf"
    content_encoding = "snappy"

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` series, with values from `source`."""
        self.records = records
        parts = []
        for number in range(records):
            labels = {
                "__name__": f"node_cpu_seconds_total_{number % 50}",
                "cluster": "production-1",
                "cpu": str(number % 16),
                "dc": "eu-central-1",
                "instance": f"10.0.{number % 40}.{source.randrange(250)}:9100",
                "job": "node-exporter",
                "mode": source.choice(["idle", "user", "system", "iowait"]),
                "namespace": "monitoring",
                "pod": f"node-exporter-{source.randrange(10_000):05}",
                "team": "infrastructure",
            }
            sample = b"\x09" + struct.pack("<d", source.random() * 1e6) + b"\x10" + bytes(_TIME_BYTES)
            pairs = (sized(1, sized(1, name.encode()) + sized(2, text.encode())) for name, text in labels.items())
            parts.append(sized(1, b"".join(pairs) + sized(2, sample)))
        self._content = np.frombuffer(bytearray(b"".join(parts)), np.uint8)
        ends = np.cumsum([len(part) for part in parts])
        self._places = ends[:, np.newaxis] - _TIME_BYTES + np.arange(_TIME_BYTES)
        self._ages_us = np.arange(records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        times_ms = (now_us - self._ages_us) // 1000
        digits = times_ms[:, np.newaxis] >> 7 * np.arange(_TIME_BYTES) & 0x7F
        digits[:, :-1] |= 0x80
        self._content[self._places] = digits
        packed: bytes = pa.Codec("snappy").compress(self._content.tobytes(), asbytes=True)
        return packed


class _ItemsBody:
    """A request of OTLP with one resource and one scope."""

    content_type = "application/x-protobuf"
    content_encoding = ""

    def __init__(self, items: list[tuple[bytes, list[int]]], wrap: Callable[[bytes], bytes]) -> None:
        """Make a request of items: each with the places of its times, which are fixed64.

        Args:
            wrap: makes the content of a scope of the items' bytes.
        """
        self.records = len(items)
        resource = sized(1, b"".join(sized(1, _attribute(name, text)) for name, text in _RESOURCE.items()))
        inner = wrap(b"".join(item for item, _ in items))
        front = b"\x0a" + varint(len(resource) + len(sized(2, inner))) + resource
        content = front + sized(2, inner)
        start = len(content) - sum(len(item) for item, _ in items)
        places = []
        for item, times in items:
            places.append([start + at for at in times])
            start += len(item)
        self._content = np.frombuffer(bytearray(content), np.uint8)
        self._places = np.array(places)[:, :, np.newaxis] + np.arange(8)
        self._ages_us = np.arange(self.records, dtype=np.int64)[::-1] * _RECORD_INTERVAL_US

    def at(self, now_us: int) -> bytes:
        """Return the body with its last record at `now_us`."""
        times = ((now_us - self._ages_us) * 1000).astype("<u8")
        self._content[self._places] = times.view(np.uint8).reshape(-1, 1, 8)
        return self._content.tobytes()


class LogsBody(_ItemsBody):
    """Log records with a line of 80 bytes, a trace and five attributes; 1000 of them are 290 kB."""

    path = "/v1/logs?db=bench"

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` log records, with values from `source`."""
        items = []
        for number in range(records):
            line = (
                f"request {number} took {source.random() * 100:.2f} ms for user {source.randrange(10_000)} at /api/cart"
            )
            rest = b"\x10\x09" + sized(3, b"INFO") + sized(5, sized(1, line.encode())) + _attributes(6, source, 5)
            rest += sized(9, source.randbytes(16)) + sized(10, source.randbytes(8))
            items.append(_item(b"\x09" + bytes(8) + b"\x59" + bytes(8), rest, [1, 10]))
        super().__init__(items, lambda content: sized(1, sized(1, b"bench")) + content)


class SpansBody(_ItemsBody):
    """Spans with seven attributes; 1000 of them are 330 kB."""

    path = "/v1/traces?db=bench"

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` spans, with values from `source`."""
        items = []
        for number in range(records):
            rest = sized(1, source.randbytes(16)) + sized(2, source.randbytes(8)) + sized(4, source.randbytes(8))
            rest += sized(5, f"GET /api/{number % 20}".encode()) + b"\x30\x02" + _attributes(9, source, 7)
            rest += sized(15, b"\x18\x01")
            items.append(_item(b"\x39" + bytes(8) + b"\x41" + bytes(8), rest, [1, 10]))
        super().__init__(items, lambda content: sized(1, sized(1, b"bench")) + content)


class PointsBody(_ItemsBody):
    """Points of one gauge, with four attributes; 1000 of them are 160 kB."""

    path = "/v1/metrics?db=bench"

    def __init__(self, records: int, source: random.Random) -> None:
        """Make a body of `records` points, with values from `source`."""
        items = []
        for _ in range(records):
            value = b"\x21" + struct.pack("<d", source.random() * 100)
            items.append(_item(b"\x19" + bytes(8), value + _attributes(7, source, 4), [1], tag=1))
        super().__init__(
            items,
            lambda content: (
                sized(1, sized(1, b"bench"))
                + sized(2, sized(1, b"http.server.duration") + sized(3, b"ms") + sized(5, content))
            ),
        )


_RESOURCE: Final = {
    "service.name": "shop",
    "service.version": "1.2.3",
    "host.name": "web-17.eu-central-1.example",
    "k8s.namespace.name": "production",
    "k8s.pod.name": "shop-5d9c7b6f4-x2x7q",
}


def _item(front: bytes, rest: bytes, times: list[int], tag: int = 2) -> tuple[bytes, list[int]]:
    """Make an item whose content begins with `front`; return it with the places of its times."""
    content = front + rest
    head = bytes([tag << 3 | 2]) + varint(len(content))
    return head + content, [len(head) + at for at in times]


def _attributes(number: int, source: random.Random, count: int) -> bytes:
    return b"".join(
        sized(number, _attribute(f"http.attribute.{at}", f"value-{source.randrange(1000)}")) for at in range(count)
    )


def _attribute(name: str, text: str) -> bytes:
    return sized(1, name.encode()) + sized(2, sized(1, text.encode()))


def sized(number: int, content: bytes) -> bytes:
    """Encode a field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Encode an unsigned integer."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
