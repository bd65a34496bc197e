"""The record of an entry with an idempotency key, as `key_files` keeps it: its hash, and what is known of the entry."""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final

from arcpipe.codec.entries import decode_front
from arcpipe.codec.envelope import Envelope, decode_raw_envelope
from arcpipe.wal.format import crc32

HASH_BYTES: Final = 16
_FACTS: Final = Struct("<III")
_MAX_SECOND: Final = (1 << 32) - 1


def key_record(timestamp_us: int, payload: bytes | memoryview, envelope: Envelope | None) -> bytes | None:
    """Make the record of an entry; None if it has no key.

    The hash covers all that the key belongs to: database, token, and the number of the entry in its request. None of
    them has a zero byte. What a client sends again is compared by size and CRC32 of the entry's body.

    Args:
        envelope: of the payload; None if only the slow road can read it.
    """
    body: memoryview
    if envelope is None:
        front = decode_front(payload)
        if front is None:
            return None
        database, meta, start = front
        body = memoryview(payload)[start:]
    else:
        database, meta = envelope.database, envelope.meta
        body = memoryview(decode_raw_envelope(payload).body)
    if meta.key is None:
        return None
    name = f"{database}\0{meta.by}\0{meta.key}\0{meta.part}".encode()
    second = min(timestamp_us // 1_000_000, _MAX_SECOND)
    return blake2b(name, digest_size=HASH_BYTES).digest() + _FACTS.pack(second, len(body), crc32(body))


def unpack_facts(record: bytes) -> tuple[int, int, int]:
    """Return second, size and CRC32 of a record."""
    second, size, crc = _FACTS.unpack_from(record, HASH_BYTES)
    return second, size, crc
