"""The bytes of a segment: headers, entries, envelopes. Packs and unpacks; opens no file.

The reference is the docstring of `arcpipe.wal`.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgspec
from isal import isal_zlib

MAGIC: Final = b"ARCW"
VERSION: Final = 1
CHECKSUM_CRC32: Final = 1

_FILE_HEADER: Final = struct.Struct(">4sHB")
FILE_HEADER: Final = _FILE_HEADER.pack(MAGIC, VERSION, CHECKSUM_CRC32)
FILE_HEADER_SIZE: Final = _FILE_HEADER.size

ENTRY_HEADER: Final = struct.Struct(">IQI")
ENTRY_HEADER_SIZE: Final = ENTRY_HEADER.size

KIND_START: Final = 0
KIND_COLUMNAR: Final = 1
KIND_BATCH: Final = 2
KIND_END: Final = 255

# The first bytes of an envelope: fixarray of four, then the kind.
ENVELOPE_START: Final = b"\x94\x00"
ENVELOPE_END: Final = b"\x94\xcc\xff"
ENVELOPE_MARK: Final = 0x94

# More than any request body may be; a length above it is damage.
MAX_PAYLOAD_BYTES: Final = 1 << 31

crc32 = isal_zlib.crc32


class Prefix(NamedTuple):
    """The constant front of an envelope: everything before its body, and the CRC32 so far."""

    data: bytes
    crc: int


class StartMeta(msgspec.Struct, frozen=True):
    """Meta of a segment-start entry: whose segment this is and where its present life begins."""

    node: str = ""
    slot: int = 0
    seq: int = 0
    created: int = 0  # µs since the epoch: no entry of this life is older
    version: str = ""


class EndMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Meta of a segment-end entry. `bytes` is the offset of that entry; `records` is None if not known."""

    entries: int = 0
    records: int | None = None
    bytes: int = 0
    recovered: bool = False


class Envelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A payload in four parts; the body stays encoded."""

    kind: int
    database: str
    meta: msgspec.Raw
    body: msgspec.Raw


_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
_decode_start = msgspec.msgpack.Decoder(StartMeta).decode
_decode_end = msgspec.msgpack.Decoder(EndMeta).decode
# What msgspec raises for bytes that are not what was asked for.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def envelope_prefix(kind: int, database: str, meta: dict[str, Any] | None = None) -> Prefix:
    """The front of an envelope `[kind, database, meta, ` whose body follows as it came."""
    data = b"\x94" + _encode(kind) + _encode(database) + _encode(meta or {})
    return Prefix(data, crc32(data))


def entry_head(prefix: Prefix, body: bytes | memoryview, timestamp_us: int) -> bytes:
    """Entry header and envelope front: what goes before `body` on disk. The CRC is chained over both."""
    data, crc = prefix
    return ENTRY_HEADER.pack(len(data) + len(body), timestamp_us, crc32(body, crc)) + data


def pack_entry(prefix: Prefix, body: bytes | memoryview, timestamp_us: int) -> bytes:
    """A whole entry in one piece."""
    return entry_head(prefix, body, timestamp_us) + bytes(body)


def pack_start(meta: StartMeta) -> bytes:
    """The segment-start entry; its timestamp is `created`."""
    return pack_entry(envelope_prefix(KIND_START, "", msgspec.to_builtins(meta)), b"\xc0", meta.created)


def pack_end(meta: EndMeta, timestamp_us: int) -> bytes:
    """The segment-end entry."""
    return pack_entry(envelope_prefix(KIND_END, "", msgspec.to_builtins(meta)), b"\xc0", timestamp_us)


# Room that a writer keeps free for the segment-end entry.
END_ENTRY_BYTES: Final = 256


def unpack_start(payload: bytes | memoryview) -> StartMeta | None:
    """The meta of a segment-start payload, or None if it is something else."""
    try:
        envelope = _decode_envelope(payload)
        return _decode_start(envelope.meta) if envelope.kind == KIND_START else None
    except _UNDECODABLE:
        return None


def unpack_end(payload: bytes | memoryview) -> EndMeta | None:
    """The meta of a segment-end payload, or None if it is something else."""
    try:
        envelope = _decode_envelope(payload)
        return _decode_end(envelope.meta) if envelope.kind == KIND_END else None
    except _UNDECODABLE:
        return None


def file_header_error(header: bytes | memoryview) -> str | None:
    """What is wrong with the first bytes of a file, or None: it is a log that this program reads."""
    if len(header) < FILE_HEADER_SIZE:
        return f"only {len(header)} bytes, the file header alone has {FILE_HEADER_SIZE}"
    magic, version, checksum = _FILE_HEADER.unpack_from(header)
    if magic != MAGIC:
        return f"magic is {magic!r}, not {MAGIC!r}"
    if version != VERSION:
        return f"format version {version}, this program reads {VERSION}"
    if checksum != CHECKSUM_CRC32:
        return f"checksum type {checksum}, this program reads {CHECKSUM_CRC32} (CRC32)"
    return None
