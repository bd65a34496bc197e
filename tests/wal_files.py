"""Log files packed by hand, byte by byte as the format's page says: nothing here uses arcpipe's own packing."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack

HEADER = b"ARCW\x00\x01\x01"
# µs since the epoch, of the first second of a day in October 2025.
DAY = 1_760_054_400_000_000
NAME = "worker-1-20251010_000000-000001"


def entry(payload: bytes, timestamp: int) -> bytes:
    """An entry header and its payload."""
    return struct.pack(">IQI", len(payload), timestamp, zlib.crc32(payload)) + payload


def envelope(kind: int, database: str, meta: dict[str, Any], body: Any) -> bytes:
    packed: bytes = msgpack.packb([kind, database, meta, body])
    return packed


def start(created: int = DAY, slot: int = 1, seq: int = 1) -> bytes:
    meta = {"node": "0123456789ab", "slot": slot, "seq": seq, "created": created, "version": "0.1.0"}
    return entry(envelope(0, "", meta, None), created)


def end(entries: int, offset: int, timestamp: int) -> bytes:
    return entry(envelope(255, "", {"entries": entries, "records": entries, "bytes": offset}, None), timestamp)


def columnar(number: int, size: int = 0) -> bytes:
    """A payload of one record: its number, and a filler that makes it at least `size` bytes."""
    body = {"m": "cpu", "columns": {"time": [DAY + number], "number": [number], "filler": [b"f" * size]}}
    return envelope(1, "default", {}, body)


def segment(payloads: list[bytes], created: int = DAY, closed: bool = False) -> tuple[bytes, list[int]]:
    """A whole file whose entries follow `created` by a microsecond each, and the entries' offsets."""
    content = HEADER + start(created)
    offsets = []
    for number, payload in enumerate(payloads, 1):
        offsets.append(len(content))
        content += entry(payload, created + number)
    if closed:
        content += end(len(payloads), len(content), created + len(payloads) + 1)
    return content, offsets


def written_over(former: bytes, present: bytes) -> bytes:
    """A file that held `former` when `present` was written from its beginning."""
    return present + former[len(present) :]
