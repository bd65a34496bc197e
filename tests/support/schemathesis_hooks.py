"""Teach `schemathesis` how to make bodies of MessagePack, NDJSON and CSV. Loaded by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import schemathesis


@schemathesis.serializer("application/msgpack")
def pack(_context: Any, value: Any) -> bytes:
    """Pack a value; one that MessagePack cannot hold becomes the invalid byte 0xc1."""
    try:
        return bytes(msgpack.packb(value))
    except (TypeError, ValueError, OverflowError):
        return b"\xc1"


@schemathesis.serializer(
    *("application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet")
)
def encode(_context: Any, value: Any) -> bytes:
    """Encode a text; any other value as JSON."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace")


@schemathesis.serializer("application/x-protobuf")
def pack_protobuf(_context: Any, value: Any) -> bytes:
    """Send a text as a snappy block without an end, or another value as no block at all."""
    return str(value).encode("utf-8", "replace")
