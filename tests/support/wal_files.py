"""WAL files packed by hand, byte by byte as the format's page says: nothing here uses arcpipe's own packing."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack

HEADER = b"ARCW\x00\x01\x01"
# µs since the epoch, of the first second of a day in October 2025.
DAY = 1_760_054_400_000_000
# µs since the epoch: two days before, when Arc wrote its last file.
ARC_DAY = 1_759_932_330_000_000
NAME = "worker-1-20251010_000000-000001"
# Slot 1, segment 1, and a random number; another segment's, that of another slot; another of the same slot and number.
IDENTITY = bytes.fromhex("0001 000000000001 a0a1a2a3a4a5a6a7")
OTHER = bytes.fromhex("0002 000000000009 b0b1b2b3b4b5b6b7")
TWIN = bytes.fromhex("0001 000000000001 c0c1c2c3c4c5c6c7")


def entry(payload: bytes, timestamp: int) -> bytes:
    """An entry header and its payload."""
    return struct.pack(">IQI", len(payload), timestamp, zlib.crc32(payload)) + payload


def arc_file(*payloads: bytes) -> bytes:
    """A file as Arc's own versions left it: a header, and payloads without an envelope."""
    return HEADER + b"".join(entry(payload, ARC_DAY + number) for number, payload in enumerate(payloads))


def envelope(kind: int, database: str, meta: dict[str, Any], body: Any) -> bytes:
    packed: bytes = msgpack.packb([kind, database, meta, body])
    return packed


def named(identity: bytes, meta: dict[str, Any]) -> dict[str, Any]:
    """The meta of an entry that says which segment it is in; no identity leaves it as it is."""
    return {"in": identity, **meta} if identity else meta


def start(
    created: int = DAY, slot: int = 1, seq: int = 1, identity: bytes = b"", replaces: list[int] | None = None
) -> bytes:
    meta: dict[str, Any] = {"node": "0123456789ab", "slot": slot, "seq": seq, "created": created, "version": "0.1.0"}
    if replaces is not None:
        meta["replaces"] = replaces
    return entry(envelope(0, "", named(identity, meta), None), created)


def end(entries: int, offset: int, timestamp: int, identity: bytes = b"") -> bytes:
    meta = {"entries": entries, "records": entries, "bytes": offset}
    return entry(envelope(255, "", named(identity, meta), None), timestamp)


def columnar(number: int, size: int = 0, identity: bytes = b"", database: str = "default", value: bytes = b"") -> bytes:
    """A payload of one record: its number, and a filler that makes it at least `size` bytes."""
    filler = value or b"f" * size
    body = {"m": "cpu", "columns": {"time": [DAY + number], "number": [number], "filler": [filler]}}
    return envelope(1, database, named(identity, {}), body)


def segment(
    payloads: list[bytes], created: int = DAY, closed: bool = False, identity: bytes = b"", gap: int = 1
) -> tuple[bytes, list[int]]:
    """A whole file whose entries follow `created` by `gap` microseconds each, and the entries' offsets."""
    content = HEADER + start(created, identity=identity)
    offsets = []
    for number, payload in enumerate(payloads, 1):
        offsets.append(len(content))
        content += entry(payload, created + number * gap)
    if closed:
        content += end(len(payloads), len(content), created + len(payloads) * gap + 1, identity)
    return content, offsets


def written_over(former: bytes, present: bytes) -> bytes:
    """A file that held `former` when `present` was written from its beginning."""
    return present + former[len(present) :]
