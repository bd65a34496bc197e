"""The fronts of entries: all before the body. Entries of one sender share it, but for a segment's identity and a key.

A front is made of one entry, and others are compared with it byte for byte. Of an idempotency key it tells the place
and the length: an entry has the front only if its key has this length, and nothing but ASCII. Then msgspec would read
the same database and meta, and these bytes as the key.

This module must not know tables, files or threads.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from arcpipe.codec.arrow.values import Ints, Mask
from arcpipe.codec.entries import Front as Decoded
from arcpipe.codec.entries import decode_front, key_place
from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.codec.literals import Literal
from arcpipe.upload.key_files import Records
from arcpipe.upload.key_record import around_key, make_record, make_records
from arcpipe.upload.outlines import Block
from arcpipe.wal.format import IDENTITY_BYTES, identity_offset

_COLUMN_MARK: Final = bytes((0x94, KIND_COLUMNAR))


class Front:
    """The front of columnar entries, with the identity of any segment, and with any key of one length."""

    __slots__ = ("_bytes", "_literal", "after", "before", "database", "key", "precision", "size")

    def __init__(self, payload: bytes, decoded: Decoded, key: range) -> None:
        """Take the front of an entry that has its key, if any, at `key`."""
        self.database = decoded.database
        self.precision = decoded.meta.precision
        self.size = decoded.body
        self.key = key
        """Where the key is in a payload; empty without one."""
        self.before, self.after = around_key(decoded.database, decoded.meta)
        """What its record names before and after the key."""
        self._bytes = payload[: decoded.body]
        self._literal: Literal | None = None

    def are_in(self, block: Block, numbers: Ints) -> Mask:
        """Tell which entries of a block have the front."""
        if self._literal is None:  # the front of a layout never needs it
            at = identity_offset(self._bytes)
            hidden = range(at, at + IDENTITY_BYTES) if at >= 0 else range(0)
            self._literal = Literal(self._bytes, hidden, self.key)
        return self._literal.are_at(block.words, block.starts[numbers]) & (block.sizes[numbers] >= self.size)

    def record(self, timestamp_us: int, payload: bytes | memoryview) -> bytes | None:
        """Make the record of an entry with the front, as `key_record` does."""
        if not self.key:
            return None
        name = b"".join((self.before, payload[self.key.start : self.key.stop], self.after))
        return make_record(name, timestamp_us, memoryview(payload)[self.size :])

    def records(self, block: Block, numbers: Ints, timestamps_us: npt.NDArray[np.uint64]) -> Records:
        """Make the records of entries with the front and a key. `timestamps_us` are those of all in the block."""
        first, last = len(self.before), len(self.before) + len(self.key)
        names = np.empty((len(numbers), last + len(self.after)), np.uint8)
        names[:, :first] = np.frombuffer(self.before, np.uint8)
        everywhere = np.ndarray((len(block.data) - len(self.key) + 1,), f"V{len(self.key)}", block.data, 0, (1,))
        keys = everywhere[block.starts[numbers] + self.key.start]
        names[:, first:last] = keys.view(np.uint8).reshape(len(numbers), -1)
        names[:, last:] = np.frombuffer(self.after, np.uint8)
        return make_records(
            names,
            timestamps_us[numbers],
            block.data.data,
            block.starts[numbers] + self.size,
            block.sizes[numbers] - self.size,
        )


def front_of(payload: bytes) -> Front | None:
    """Make the front of an entry; None if others cannot share it: it has times of its own, or a key of other signs."""
    if payload[:2] != _COLUMN_MARK:
        return None
    decoded = decode_front(payload)
    if decoded is None or decoded.meta.clock:
        return None
    key = key_place(payload, decoded)
    return None if key is None else Front(payload, decoded, key)
