"""Files of idempotency keys: what they hold, how they are written, and what of a damaged one is still good.

`idempotency/` in the WAL directory has two kinds, with one format:

    {batch id}.claims     the keys of a batch that is under way: frames are appended as its entries are read
    {first:016d}.keys     the keys of batches that are uploaded; `first` counts the keys before them

A file is a header and frames, all numbers little-endian:

    header    one line of JSON with a checksum (`wal.checksum`): version, batch, and horizon (the number of the first
              key that the batch may look at)
    frame     24 bytes, <4sIQII: magic "KEYS", number of records, clock, CRC32 of the records, CRC32 of all before it
    record    28 bytes: the key's hash (16), and of its entry the second of its timestamp (4), and bytes (4) and CRC32
              (4) of its body

`clock` is the latest second of all entries with keys up to this frame, of this batch and of those before.

A crash may leave the last frame of `.claims` torn: nothing depends on it, and it is written over. Anything else that is
not a frame is damage. The frames after it are found by their magic.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from arcpipe.errors import UnknownVersion
from arcpipe.wal.checksum import checksum_holds, with_checksum
from arcpipe.wal.format import crc32

CLAIMS: Final = ".claims"
KEYS: Final = ".keys"

_VERSION: Final = 1
_MAGIC: Final = b"KEYS"
_FRAME: Final = struct.Struct("<4sIQII")
_CHECKED: Final = 20  # bytes of a frame's header that its own CRC32 covers

RECORD: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("second", "<u4"), ("size", "<u4"), ("crc", "<u4")])
"""A key: its hash in two halves, and what is known of its first entry."""

REST: Final = np.dtype([("low", "<u8"), ("second", "<u4"), ("size", "<u4"), ("crc", "<u4")])
"""The same without the upper half."""

Records: TypeAlias = npt.NDArray[Any]
Words: TypeAlias = npt.NDArray[np.uint64]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a file."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    batch: str
    horizon: int


class KeyFile(NamedTuple):
    """The content of a file, as far as it is intact."""

    header: Header
    records: Records
    clock: int  # seconds since the epoch
    end: int  # bytes up to the end of the last intact frame
    damage: str  # empty if there is none


def encode_header(header: Header) -> bytes:
    """Encode a header, with its line end."""
    return with_checksum(msgspec.json.encode(header)) + b"\n"


def encode_frame(records: Records, clock: int) -> bytes:
    """Encode records, at least one, as a frame."""
    content = records.tobytes()
    front = _FRAME.pack(_MAGIC, len(records), clock, crc32(content), 0)[:_CHECKED]
    return front + struct.pack("<I", crc32(front)) + content


def encode(header: Header, records: Records, clock: int) -> bytes:
    """Encode a whole file."""
    return encode_header(header) + (encode_frame(records, clock) if len(records) else b"")


def new_header(batch: str, horizon: int) -> Header:
    """Make a header of this version."""
    return Header(_VERSION, batch, horizon)


def decode(data: bytes, may_be_torn: bool) -> KeyFile:
    """Decode a file.

    Args:
        may_be_torn: whether it may end anywhere.

    Raises:
        ValueError: its header is damaged.
        UnknownVersion: another version of arcpipe wrote it.
    """
    line, _, _ = data.partition(b"\n")
    if not checksum_holds(line):
        raise ValueError("the checksum of its header does not match")
    content = msgspec.json.decode(line)
    content.pop("crc32", None)
    if content.get("version") != _VERSION:
        raise UnknownVersion(f"it has version {content.get('version')!r}, and this arcpipe knows version {_VERSION}")
    header = msgspec.convert(content, Header)
    parts: list[Records] = []
    clock = 0
    damage = ""
    at = end = len(line) + 1
    while at < len(data):
        frame = _frame_at(data, at)
        if frame is None:
            found = _next_frame(data, at + 1)
            if found < 0:
                break
            damage = damage or f"{found - at} bytes at offset {at} are no frame"
            at = found
            continue
        parts.append(frame[0])
        clock = max(clock, frame[1])
        at = end = at + _FRAME.size + frame[0].nbytes
    if end < len(data) and not may_be_torn and not damage:
        damage = f"{len(data) - end} bytes at offset {end} are no frame"
    records = np.concatenate(parts) if parts else np.empty(0, RECORD)
    return KeyFile(header, records, clock, end, damage)


def _frame_at(data: bytes, at: int) -> tuple[Records, int] | None:
    """Return records and clock of the intact frame at an offset; None without one."""
    if at + _FRAME.size > len(data):
        return None
    magic, count, clock, crc, own = _FRAME.unpack_from(data, at)
    start = at + _FRAME.size
    end = start + count * RECORD.itemsize
    if magic != _MAGIC or not count or end > len(data) or crc32(data[at : at + _CHECKED]) != own:
        return None
    if crc32(memoryview(data)[start:end]) != crc:
        return None
    return np.frombuffer(data, RECORD, count, start), clock


def _next_frame(data: bytes, at: int) -> int:
    """Find the next intact frame from an offset on; -1 without one."""
    while (at := data.find(_MAGIC, at)) >= 0:
        if _frame_at(data, at) is not None:
            return at
        at += 1
    return -1
