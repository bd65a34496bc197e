"""What `schemathesis` has to know of arcpipe: how a MessagePack body is made. Loaded by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import msgpack
import schemathesis


@schemathesis.serializer("application/msgpack")
def pack(_context: Any, value: Any) -> bytes:
    """The bytes of a value; of one that MessagePack cannot hold, bytes that are none."""
    try:
        return bytes(msgpack.packb(value))
    except (TypeError, ValueError, OverflowError):
        return b"\xc1"
