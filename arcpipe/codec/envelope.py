"""The envelope of a WAL entry's payload: `[kind, database, meta, body]`, in MessagePack.

`arcpipe.wal` has the reference. This module imports little, as all that read or write the WAL need it.
"""

from __future__ import annotations

from typing import Final

import msgspec

KIND_START: Final = 0  # of a segment; the body is nil
KIND_COLUMNAR: Final = 1  # the body is a columnar map
KIND_BATCH: Final = 2  # the body is an array of columnar maps
KIND_ARROW: Final = 3  # the body is an Arrow IPC stream, in a map
KIND_END: Final = 255  # of a segment; the body is nil

ARROW_KIND: Final = b"\x03"

ENVELOPE_MARK: Final = 0x94  # the first byte: fixarray of four
ENVELOPE_START: Final = b"\x94\x00"  # the first bytes of an envelope of KIND_START
ENVELOPE_END: Final = b"\x94\xcc\xff"  # and of KIND_END
ENVELOPE_REACH: Final = 1 + 2 + 3 + 0xFFFF  # bytes, at most, before the meta: mark, kind and database


class ColumnMap(msgspec.Struct, gc=False, omit_defaults=True):
    """One measurement's columns: each value of `columns` is a whole MessagePack array, a view into the payload."""

    m: str
    columns: dict[str, msgspec.Raw]
    tags: tuple[str, ...] | None = None
    types: dict[str, str] | None = None


class ArrowBody(msgspec.Struct, gc=False):
    """One measurement's rows as an Arrow IPC stream, which was checked when it came."""

    m: str
    rows: int
    arrow: memoryview  # the stream, a view into the payload
    bytes: int = 0  # of the stream, decompressed
    tags: tuple[str, ...] | None = None  # the columns that are tags
    time: str | None = None  # the column of the times; None: `time`


_MAX_US: Final = (1 << 64) - 1  # of a timestamp


class Meta(msgspec.Struct, gc=False):
    """The part of an envelope's meta that conversion uses."""

    precision: str | None = None
    clock: int = 0  # µs to be added to the entry's timestamp for the time of day, where that was set back
    key: str | None = None  # the idempotency key of the request
    by: str = ""  # the id of the token that sent it; empty without one
    part: int = 0  # the number of the entry among those of its request

    def time_of(self, timestamp_us: int) -> int:
        """Tell when the entry of a timestamp was taken, in µs since the epoch."""
        return min(max(timestamp_us + self.clock, 0), _MAX_US) if self.clock else timestamp_us


class Envelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """`[kind, database, meta, body]`; the body of segment start and end is nil."""

    kind: int
    database: str
    meta: Meta
    body: ColumnMap | list[ColumnMap] | None


class RawEnvelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The four parts of any envelope; meta and body stay encoded."""

    kind: int
    database: str
    meta: msgspec.Raw
    body: msgspec.Raw


decode_envelope: Final = msgspec.msgpack.Decoder(Envelope).decode
"""Decode an envelope, or raise an exception of any kind; `entries.decode_entry` then tells what the payload is."""

decode_raw_envelope: Final = msgspec.msgpack.Decoder(RawEnvelope).decode
"""Decode the parts of an envelope; raises what msgspec raises for other payloads."""


class _ArrowEnvelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    kind: int
    database: str
    meta: Meta
    body: ArrowBody


_decode_arrow: Final = msgspec.msgpack.Decoder(_ArrowEnvelope).decode


def decode_arrow(payload: bytes | memoryview) -> tuple[str, Meta, ArrowBody] | None:
    """Decode an envelope of KIND_ARROW: its database, meta and body. None for any other payload."""
    if payload[1:2] != ARROW_KIND:
        return None
    try:
        envelope = _decode_arrow(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return envelope.database, envelope.meta, envelope.body


def arrow_front(body: ArrowBody, size_bytes: int) -> bytes:
    """Encode the body of an envelope of KIND_ARROW up to the stream, which has `size_bytes`."""
    fields: dict[str, object] = {"m": body.m, "rows": body.rows, "bytes": body.bytes}
    if body.tags:
        fields["tags"] = body.tags
    if body.time is not None:
        fields["time"] = body.time
    parts = [bytes([0x80 | len(fields) + 1])]
    for name, value in fields.items():
        parts += (msgspec.msgpack.encode(name), msgspec.msgpack.encode(value))
    parts.append(b"\xa5arrow\xc6" + size_bytes.to_bytes(4, "big"))
    return b"".join(parts)


def encode_entry(database: str, precision: str | None, columns: ColumnMap) -> bytes:
    """Make a columnar map the payload of an entry."""
    meta = {} if precision is None else {"precision": precision}
    return msgspec.msgpack.encode((KIND_COLUMNAR, database, meta, columns))
