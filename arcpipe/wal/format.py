"""The bytes of a segment: headers, entries, and the fronts of their envelopes. Packs and unpacks; opens no file.

The reference is the docstring of `arcpipe.wal`.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from isal import isal_zlib

from arcpipe.codec.envelope import ENVELOPE_MARK, KIND_END, KIND_START, decode_raw_envelope
from arcpipe.native import KERNEL

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
# The keys of a meta that tell a client's retry: `codec.envelope.Meta` reads them.
_TOKEN_ITEM: Final = b"\xa2by"
_PART_ITEM: Final = b"\xa4part"
_KEY_ITEM: Final = b"\xa3key"
_IDENTITY_FRONT: Final = b"\xa2in\xc4\x10"  # the key, and the header of 16 bytes of binary


def make_identity(slot: int, seq: int) -> bytes:
    """Make a new segment's identity: slot (2 bytes), sequence number (6) and a random number (8)."""
    return (slot & 0xFFFF).to_bytes(2, "big") + (seq & 0xFFFF_FFFF_FFFF).to_bytes(6, "big") + secrets.token_bytes(8)


def is_identity_of(identity: bytes, slot: int, seq: int) -> bool:
    """Tell if an identity may be that of a segment of this slot and number."""
    expected = (slot & 0xFFFF).to_bytes(2, "big") + (seq & 0xFFFF_FFFF_FFFF).to_bytes(6, "big")
    return len(identity) == IDENTITY_BYTES and identity.startswith(expected)


class Prefix:
    """An envelope up to its body: kind, database and meta, with the identity of one segment at a time.

    `data` are the bytes and `crc` their CRC32. One thread at a time may use an instance.
    """

    __slots__ = ("_head", "_meta", "crc", "data", "database", "identity", "keyed")

    def __init__(self, kind: int, database: str, meta: Mapping[str, Any]) -> None:
        self.database = database
        self.keyed: KeyedPrefix | None = None  # the last one that was made of it, for whoever makes them
        self._head = b"\x94" + _encode(kind) + _encode(database)
        self._meta = meta
        self.bind(b"")

    def bind(self, identity: bytes) -> None:
        """Make this the prefix of another segment's entries. Empty bytes make it one without an identity."""
        meta = {IDENTITY_KEY: identity, **self._meta} if identity else self._meta
        self.identity = identity
        self.data = self._head + _encode(meta)
        self.crc = crc32(self.data)

    def longer(self, items: bytes, count: int) -> bytes:
        """Return the prefix with further items of its meta."""
        at = len(self._head)
        assert self.data[at] + count <= 0x8F, f"BUG: a meta of more than 15 items: {self.data[at:]!r}"
        return self._head + bytes([self.data[at] + count]) + self.data[at + 1 :] + items


class KeyedPrefix:
    """A prefix whose meta ends with an idempotency key of one length, without the key itself.

    The key's characters follow as the front of an entry. A client's keys mostly have one length, so its entries share a
    prefix. One thread at a time may use an instance, and the prefix that it is made of.
    """

    __slots__ = ("_count", "_items", "_plain", "crc", "data", "identity", "key_bytes", "owner", "token")

    def __init__(self, plain: Prefix, token: str | None, key_bytes: int, part: int = 0) -> None:
        """Make a prefix from one of entries without a key.

        Args:
            token: the id of the sender's token, to which the key belongs; None without one.
            key_bytes: the length of the key, which has 1 to 128 visible characters of ASCII.
            part: the number of the entry among those of its request.
        """
        items, self._count = b"", 1
        if token is not None:
            items += _TOKEN_ITEM + _encode(token)
            self._count += 1
        if part:
            items += _PART_ITEM + _encode(part)
            self._count += 1
        length = bytes([0xA0 | key_bytes]) if key_bytes < 32 else bytes([0xD9, key_bytes])
        self._items = items + _KEY_ITEM + length
        self._plain = plain
        self.token = token
        self.key_bytes = key_bytes
        # What the key belongs to. No two owners with their keys are the same bytes, because 0xFF is in no name.
        self.owner = b"%b\xff%b\xff" % (plain.database.encode(), (token or "").encode())
        self.bind(plain.identity)

    def bind(self, identity: bytes) -> None:
        """Make this the prefix of another segment's entries."""
        plain = self._plain
        if plain.identity is not identity:
            plain.bind(identity)
        self.identity = identity
        self.data = plain.longer(self._items, self._count)
        self.crc = crc32(self.data)


AnyPrefix: TypeAlias = Prefix | KeyedPrefix


class StartMeta(msgspec.Struct, frozen=True, omit_defaults=True, rename={"identity": IDENTITY_KEY}):
    """Meta of a segment-start entry: node, slot and number of the segment, and when it was made."""

    node: str = ""
    slot: int = 0
    seq: int = 0
    created: int = 0  # µs since the epoch: older entries in the file are stale
    version: str = ""
    identity: bytes = b""  # of this segment; empty in files without identities
    replaces: tuple[int, int] | None = None  # (seq, offset): holds again what that segment held at and after it


class EndMeta(msgspec.Struct, frozen=True, omit_defaults=True, rename={"identity": IDENTITY_KEY, "offset": "bytes"}):
    """Meta of a segment-end entry. `offset` is the offset of this entry; `records` is None if unknown."""

    entries: int = 0
    records: int | None = None
    offset: int = 0
    recovered: bool = False
    identity: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode_start = msgspec.msgpack.Decoder(StartMeta).decode
_decode_end = msgspec.msgpack.Decoder(EndMeta).decode
# The errors that msgspec raises for bytes of another shape.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def envelope_prefix(kind: int, database: str, meta: Mapping[str, Any] | None = None, identity: bytes = b"") -> Prefix:
    """Make the prefix `[kind, database, meta, ` of an envelope; its body follows as it came."""
    prefix = Prefix(kind, database, meta or {})
    if identity:
        prefix.bind(identity)
    return prefix


def entry_head(prefix: AnyPrefix, body: bytes | memoryview, timestamp_us: int, front: bytes = b"") -> bytes:
    """Pack what goes before `body` on disk: entry header, prefix and `front`. The CRC32 covers all after the header.

    Args:
        front: the bytes between prefix and body: the key for a `KeyedPrefix`, then the first ones of the body.
    """
    data, crc = prefix.data, prefix.crc
    if front:
        data, crc = data + front, crc32(front, crc)
    return ENTRY_HEADER.pack(len(data) + len(body), timestamp_us, crc32(body, crc)) + data


def pack_entry(prefix: AnyPrefix, body: bytes | memoryview, timestamp_us: int, front: bytes = b"") -> bytes:
    """Pack a whole entry in one piece."""
    return entry_head(prefix, body, timestamp_us, front) + bytes(body)


def join_by_python(data: bytes, crc: int, front: bytes, body: bytes | memoryview, timestamp_us: int) -> bytes:
    """Pack a small entry whose prefix is these bytes with this CRC32."""
    if front:
        data, crc = data + front, crc32(front, crc)
    return ENTRY_HEADER.pack(len(data) + len(body), timestamp_us, crc32(body, crc)) + data + body


join_entry = join_by_python if KERNEL is None else KERNEL.join_entry
"""What a worker has: `join_by_python`, or that of the native kernel, which does the same."""


def pack_start(meta: StartMeta) -> bytes:
    """Pack the segment-start entry; its timestamp is `created`."""
    return _pack_marker(KIND_START, meta, meta.created)


def pack_end(meta: EndMeta, timestamp_us: int) -> bytes:
    """Pack the segment-end entry."""
    return _pack_marker(KIND_END, meta, timestamp_us)


def _pack_marker(kind: int, meta: StartMeta | EndMeta, timestamp_us: int) -> bytes:
    fields = msgspec.to_builtins(meta, builtin_types=(bytes,))
    identity = fields.pop(IDENTITY_KEY, b"")
    return pack_entry(envelope_prefix(kind, "", fields, identity), b"\xc0", timestamp_us)


def identity_offset(payload: bytes | bytearray | memoryview) -> int:
    """Find the offset of the identity in a payload; -1 for an envelope without one, and for other payloads."""
    at = _meta_offset(payload)
    if at < 0:
        return -1
    at += 3 if payload[at] == 0xDE else 1  # after the header of the map
    if bytes(payload[at : at + 5]) != _IDENTITY_FRONT or len(payload) < at + 5 + IDENTITY_BYTES:
        return -1
    return at + 5


def identity_of(payload: bytes | bytearray | memoryview) -> bytes:
    """Read the identity in a payload; empty bytes without one."""
    at = identity_offset(payload)
    return b"" if at < 0 else bytes(payload[at : at + IDENTITY_BYTES])


def with_identity(payload: bytes | memoryview, identity: bytes) -> bytes | None:
    """Put another identity into an envelope; None for other payloads, which cannot have one."""
    at = identity_offset(payload)
    if at >= 0:
        return b"".join((payload[:at], identity, payload[at + IDENTITY_BYTES :]))
    at = _meta_offset(payload)
    if at < 0 or payload[at] & 0xF0 != 0x80 or payload[at] == 0x8F:
        return None
    return b"".join((payload[:at], bytes([payload[at] + 1]), _IDENTITY_FRONT, identity, payload[at + 1 :]))


def _meta_offset(payload: bytes | bytearray | memoryview) -> int:
    """Find the offset of an envelope's meta; -1 if the payload does not begin as an envelope."""
    at = _database_end(payload)
    return at if at < len(payload) else -1


def _database_end(payload: bytes | bytearray | memoryview) -> int:
    """Find the end of an envelope's database from its first six bytes; -1 if they do not begin an envelope."""
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
    """Make the bytes to search for: they stand in every payload whose identity begins with `known`."""
    return _IDENTITY_FRONT + known


def envelopes_before(front: bytes) -> Iterator[int]:
    """Yield the offsets in `front` where an envelope may begin whose meta begins right after `front`."""
    at = front.find(ENVELOPE_MARK)
    while at >= 0:
        if _database_end(front[at : at + 6] + b"\x80\x00\x00") == len(front) - at:
            yield at
        at = front.find(ENVELOPE_MARK, at + 1)


END_ENTRY_BYTES: Final = 256
"""Room that a writer keeps free for the segment-end entry."""


def unpack_start(payload: bytes | memoryview) -> StartMeta | None:
    """Unpack the meta of a segment-start payload; None for other payloads."""
    try:
        envelope = decode_raw_envelope(payload)
        return _decode_start(envelope.meta) if envelope.kind == KIND_START else None
    except _UNDECODABLE:
        return None


def unpack_end(payload: bytes | memoryview) -> EndMeta | None:
    """Unpack the meta of a segment-end payload; None for other payloads."""
    try:
        envelope = decode_raw_envelope(payload)
        return _decode_end(envelope.meta) if envelope.kind == KIND_END else None
    except _UNDECODABLE:
        return None


def file_header_error(header: bytes | memoryview) -> str | None:
    """Explain why a file with these first bytes cannot be read as a WAL; None if it can."""
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
    """Tell if a file with these first bytes is a WAL file of another format version."""
    return len(header) >= FILE_HEADER_SIZE and header[:4] == MAGIC and _FILE_HEADER.unpack_from(header)[1] != VERSION
