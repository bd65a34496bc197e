"""The bytes of a segment: headers, entries, and the fronts of their envelopes. Packs and unpacks; opens no file.

The reference is the docstring of `arcpipe.wal`.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from isal import isal_zlib

from arcpipe.codec.envelope import ENVELOPE_MARK, KIND_END, KIND_START

MAGIC: Final = b"ARCW"
VERSION: Final = 1
CHECKSUM_CRC32: Final = 1

_FILE_HEADER: Final = struct.Struct(">4sHB")
FILE_HEADER: Final = _FILE_HEADER.pack(MAGIC, VERSION, CHECKSUM_CRC32)
FILE_HEADER_SIZE: Final = _FILE_HEADER.size

ENTRY_HEADER: Final = struct.Struct(">IQI")
ENTRY_HEADER_SIZE: Final = ENTRY_HEADER.size

MAX_PAYLOAD_BYTES: Final = 1 << 31
"""Bytes that no request body may have; a length above it is damage."""

crc32 = isal_zlib.crc32


# An entry's meta begins with this key, whose value names the segment that the entry is in: `make_identity`.
IDENTITY_KEY: Final = "in"
IDENTITY_BYTES: Final = 16
_IDENTITY_FRONT: Final = b"\xa2in\xc4\x10"  # the key, and the header of 16 bytes of binary


def make_identity(slot: int, seq: int) -> bytes:
    """A new segment's identity: slot (2 bytes), sequence number (6) and a random number (8) that nobody can guess."""
    return (slot & 0xFFFF).to_bytes(2, "big") + (seq & 0xFFFF_FFFF_FFFF).to_bytes(6, "big") + secrets.token_bytes(8)


def is_identity_of(identity: bytes, slot: int, seq: int) -> bool:
    """Whether an identity may be that of a segment of this slot and number."""
    expected = (slot & 0xFFFF).to_bytes(2, "big") + (seq & 0xFFFF_FFFF_FFFF).to_bytes(6, "big")
    return len(identity) == IDENTITY_BYTES and identity.startswith(expected)


class Prefix:
    """The front of an envelope: everything before its body, with the identity of one segment at a time.

    `data` are the bytes and `crc` their CRC32. One thread at a time may use an instance.
    """

    __slots__ = ("_before", "_behind", "crc", "data", "identity")

    def __init__(self, kind: int, database: str, meta: Mapping[str, Any]) -> None:
        self._before = b"\x94" + _encode(kind) + _encode(database)
        self._behind = meta
        self.bind(b"")

    def bind(self, identity: bytes) -> None:
        """Name another segment; no bytes name none, as programs before this rule wrote it."""
        meta = {IDENTITY_KEY: identity, **self._behind} if identity else self._behind
        self.identity = identity
        self.data = self._before + _encode(meta)
        self.crc = crc32(self.data)


class StartMeta(msgspec.Struct, frozen=True, omit_defaults=True, rename={"identity": IDENTITY_KEY}):
    """Meta of a segment-start entry: whose segment this is and where its present life begins."""

    node: str = ""
    slot: int = 0
    seq: int = 0
    created: int = 0  # µs since the epoch: no entry of this life is older
    version: str = ""
    identity: bytes = b""  # of this segment; empty in files from before this rule, whose entries name no segment
    replaces: tuple[int, int] | None = None  # (seq, offset): holds again what that segment held at and after it


class EndMeta(msgspec.Struct, frozen=True, omit_defaults=True, rename={"identity": IDENTITY_KEY, "offset": "bytes"}):
    """Meta of a segment-end entry. `offset` is that of the entry itself; `records` is None if not known."""

    entries: int = 0
    records: int | None = None
    offset: int = 0
    recovered: bool = False
    identity: bytes = b""


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


def envelope_prefix(kind: int, database: str, meta: Mapping[str, Any] | None = None, identity: bytes = b"") -> Prefix:
    """The front of an envelope `[kind, database, meta, ` whose body follows as it came."""
    prefix = Prefix(kind, database, meta or {})
    if identity:
        prefix.bind(identity)
    return prefix


def entry_head(prefix: Prefix, body: bytes | memoryview, timestamp_us: int) -> bytes:
    """Entry header and envelope front: what goes before `body` on disk. The CRC is chained over both."""
    data = prefix.data
    return ENTRY_HEADER.pack(len(data) + len(body), timestamp_us, crc32(body, prefix.crc)) + data


def pack_entry(prefix: Prefix, body: bytes | memoryview, timestamp_us: int) -> bytes:
    """A whole entry in one piece."""
    return entry_head(prefix, body, timestamp_us) + bytes(body)


def pack_start(meta: StartMeta) -> bytes:
    """The segment-start entry; its timestamp is `created`."""
    return _pack_marker(KIND_START, meta, meta.created)


def pack_end(meta: EndMeta, timestamp_us: int) -> bytes:
    """The segment-end entry."""
    return _pack_marker(KIND_END, meta, timestamp_us)


def _pack_marker(kind: int, meta: StartMeta | EndMeta, timestamp_us: int) -> bytes:
    fields = msgspec.to_builtins(meta, builtin_types=(bytes,))
    identity = fields.pop(IDENTITY_KEY, b"")
    return pack_entry(envelope_prefix(kind, "", fields, identity), b"\xc0", timestamp_us)


def identity_offset(payload: bytes | bytearray | memoryview) -> int:
    """Where in a payload the identity of its segment stands; -1 if it is an envelope without one, or no envelope."""
    at = _meta_offset(payload)
    if at < 0:
        return -1
    at += 3 if payload[at] == 0xDE else 1  # behind the header of the map
    if bytes(payload[at : at + 5]) != _IDENTITY_FRONT or len(payload) < at + 5 + IDENTITY_BYTES:
        return -1
    return at + 5


def identity_of(payload: bytes | bytearray | memoryview) -> bytes:
    """The identity of the segment that a payload says it is in; no bytes if it says none."""
    at = identity_offset(payload)
    return b"" if at < 0 else bytes(payload[at : at + IDENTITY_BYTES])


def with_identity(payload: bytes | memoryview, identity: bytes) -> bytes | None:
    """An envelope as an entry of another segment; None if the payload is no envelope and so cannot name one."""
    at = identity_offset(payload)
    if at >= 0:
        return b"".join((payload[:at], identity, payload[at + IDENTITY_BYTES :]))
    at = _meta_offset(payload)
    if at < 0 or payload[at] & 0xF0 != 0x80 or payload[at] == 0x8F:
        return None
    return b"".join((payload[:at], bytes([payload[at] + 1]), _IDENTITY_FRONT, identity, payload[at + 1 :]))


def _meta_offset(payload: bytes | bytearray | memoryview) -> int:
    """Where the meta of an envelope begins; -1 if the payload does not begin as one."""
    at = _behind_database(payload)
    return at if at < len(payload) else -1


def _behind_database(payload: bytes | bytearray | memoryview) -> int:
    """Where kind and database of an envelope end, as its first six bytes tell it; -1 if they are of no envelope."""
    if len(payload) < 5 or payload[0] != ENVELOPE_MARK:
        return -1
    at = 2 if payload[1] < 0x80 else 3 if payload[1] == 0xCC else -1
    if at < 0:
        return -1
    marker = payload[at]
    if marker & 0xE0 == 0xA0:
        at += 1 + (marker & 0x1F)
    elif marker == 0xD9:
        at += 2 + payload[at + 1]
    elif marker == 0xDA and at + 2 < len(payload):
        at += 3 + (payload[at + 1] << 8 | payload[at + 2])
    else:
        return -1
    return at


def identity_pattern(known: bytes = b"") -> bytes:
    """The bytes that stand in every payload whose identity begins with these."""
    return _IDENTITY_FRONT + known


def envelopes_before(front: bytes) -> Iterator[int]:
    """Where in `front` an envelope may begin whose meta begins right behind these bytes."""
    at = front.find(ENVELOPE_MARK)
    while at >= 0:
        if _behind_database(front[at : at + 6] + b"\x80\x00\x00") == len(front) - at:
            yield at
        at = front.find(ENVELOPE_MARK, at + 1)


END_ENTRY_BYTES: Final = 256
"""Room that a writer keeps free for the segment-end entry."""


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


def is_of_another_version(header: bytes | memoryview) -> bool:
    """Whether the first bytes of a file are those of a log that another version of this program wrote."""
    return len(header) >= FILE_HEADER_SIZE and header[:4] == MAGIC and _FILE_HEADER.unpack_from(header)[1] != VERSION
