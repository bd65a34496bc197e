"""The record of an entry with an idempotency key, as `key_files` keeps it: its hash, and what is known of the entry.

The hash covers all that the key belongs to: database, token, and the number of the entry in its request. None of them
has a zero byte. What a client sends again is compared by size and CRC32 of the entry's body.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from arcpipe import native
from arcpipe.codec.arrow.values import Ints
from arcpipe.codec.entries import decode_front
from arcpipe.codec.envelope import Envelope, Meta, decode_raw_envelope
from arcpipe.units import KB
from arcpipe.upload.key_files import RECORD, Records
from arcpipe.wal.format import crc32
from arcpipe.wal.stretch import checksums

HASH_BYTES: Final = 16
_FACTS: Final = Struct("<III")
_MAX_SECOND: Final = (1 << 32) - 1
_FRONT_FIRST: Final = 8 * KB  # bytes of a payload from which on its front costs less than a walk through its body


def key_record(timestamp_us: int, payload: bytes | memoryview, envelope: Envelope | None) -> bytes | None:
    """Make the record of an entry; None if it has no key.

    Args:
        envelope: of the payload; None if only the slow road can read it.
    """
    body: memoryview
    if envelope is not None and envelope.meta.key is None:
        return None
    if envelope is not None and len(payload) < _FRONT_FIRST:
        database, meta = envelope.database, envelope.meta
        body = memoryview(decode_raw_envelope(payload).body)
    else:
        front = decode_front(payload)
        if front is None:
            return None
        database, meta, start = front
        body = memoryview(payload)[start:]
    if meta.key is None:
        return None
    before, after = around_key(database, meta)
    return make_record(before + meta.key.encode() + after, timestamp_us, body)


def around_key(database: str, meta: Meta) -> tuple[bytes, bytes]:
    """Return what is hashed before a key, and after it."""
    return f"{database}\0{meta.by}\0".encode(), f"\0{meta.part}".encode()


def make_record(name: bytes, timestamp_us: int, body: bytes | memoryview) -> bytes:
    """Make a record of what is hashed, and of the entry."""
    second = min(timestamp_us // 1_000_000, _MAX_SECOND)
    return blake2b(name, digest_size=HASH_BYTES).digest() + _FACTS.pack(second, len(body), crc32(body))


def make_records(
    names: npt.NDArray[np.uint8], timestamps_us: npt.NDArray[np.uint64], data: memoryview, starts: Ints, sizes: Ints
) -> Records:
    """Make the records of many entries at once.

    Args:
        names: what is hashed of each, a row for each.
        starts: where each body begins in `data`.
        sizes: the bytes of each body.
    """
    seconds = np.minimum(timestamps_us // 1_000_000, _MAX_SECOND).astype(np.uint32)
    if native.KERNEL is not None:
        return np.frombuffer(native.KERNEL.key_records(names, data, seconds, starts, sizes), RECORD)
    records = np.empty(len(names), RECORD)
    hashes = [
        blake2b(name, digest_size=HASH_BYTES).digest() for name in names.view(f"V{names.shape[1]}").ravel().tolist()
    ]
    halves = np.frombuffer(b"".join(hashes), "<u8")
    records["high"], records["low"] = halves[::2], halves[1::2]
    records["second"], records["size"] = seconds, sizes
    records["crc"] = checksums(data, starts, sizes)
    return records


def unpack_facts(record: bytes) -> tuple[int, int, int]:
    """Return second, size and CRC32 of a record."""
    second, size, crc = _FACTS.unpack_from(record, HASH_BYTES)
    return second, size, crc
