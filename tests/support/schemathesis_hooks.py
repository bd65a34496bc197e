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
