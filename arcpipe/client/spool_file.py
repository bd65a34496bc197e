r"""The format of a spool file: one batch, written part by part. Pure functions over bytes.

    file    = magic frame*
    magic   = "arcspl1\n"
    frame   = kind (1 byte), records (4), length (4), CRC32 (4) of what is before it and of the payload; payload
    kinds   = "H" the first one: JSON with format, database and precision
              "P" a part: encoded records
              "S" the last one: the number of parts (4) and the bytes of the file before this frame (8)

Numbers are little-endian. A file is only appended to. "S" is written before the batch is sent for the first time. So a
file without it was never sent. A crash may have torn its last frame: that record was never accepted, and is cut off. A
file with it has to be whole: fewer records under a key that a server may know would be another batch.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Final, NamedTuple

from arcpipe.client.encoding import Part, Stream
from arcpipe.errors import DamagedFile, UnknownVersion

MAGIC: Final = b"arcspl1\n"

_FAMILY: Final = b"arcspl"
_FRAME: Final = struct.Struct("<cIII")
_CHECKED: Final = _FRAME.size - 4  # bytes of a frame's head that its checksum covers
_SEAL: Final = struct.Struct("<IQ")
_SEAL_SIZE: Final = _FRAME.size + _SEAL.size


def frame(kind: bytes, payload: bytes, records: int = 0) -> bytes:
    """Make a frame."""
    head = _FRAME.pack(kind, records, len(payload), 0)[:_CHECKED]
    return b"".join((head, struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))), payload))


def start_of_file(stream: Stream) -> bytes:
    """Make the beginning of a file."""
    return MAGIC + frame(b"H", json.dumps(stream._asdict()).encode())


def seal(parts: int, size: int) -> bytes:
    """Make the end of a file that has this number of parts, and this size without its end."""
    return frame(b"S", _SEAL.pack(parts, size))


def is_unbegun(data: bytes) -> bool:
    """Tell whether a crash came before the beginning of a file was written: nothing was accepted into it."""
    return len(data) < len(MAGIC) + _FRAME.size and (data[: len(MAGIC)] == MAGIC[: len(data)])


class Content(NamedTuple):
    """What a file holds."""

    stream: Stream
    parts: list[Part]
    size: int  # bytes of whole frames, without the seal
    is_sealed: bool
    torn: int  # bytes after them that are no whole frame


def read(data: bytes) -> Content:
    """Read a file.

    Raises:
        DamagedFile: its beginning is damaged, or it was sealed and is not whole.
        UnknownVersion: it is of another version.
    """
    if not data.startswith(MAGIC):
        if data.startswith(_FAMILY) and len(data) >= len(MAGIC) and data[len(MAGIC) - 1 : len(MAGIC)] == b"\n":
            raise UnknownVersion(f"version {data[len(_FAMILY) : len(MAGIC) - 1]!r} of the spool is not known")
        raise DamagedFile("it does not begin as a spool file does")
    found = _frame_at(data, len(MAGIC))
    if found is None or found.kind != b"H":
        raise DamagedFile("its first frame is damaged")
    stream = _stream_of(found.payload)
    parts: list[Part] = []
    pos = found.end
    is_sealed = False
    while (found := _frame_at(data, pos)) is not None:
        if found.kind == b"S" and _SEAL.unpack(found.payload) == (len(parts), pos):
            is_sealed = True
            break
        if found.kind != b"P":
            break
        parts.append(Part(found.payload, found.records))
        pos = found.end
    if not is_sealed and _ends_in_seal(data):
        raise DamagedFile(f"it was complete, and is damaged at byte {pos}")
    return Content(stream, parts, pos, is_sealed, 0 if is_sealed else len(data) - pos)


class _Frame(NamedTuple):
    kind: bytes
    records: int
    payload: bytes
    end: int


def _frame_at(data: bytes, pos: int) -> _Frame | None:
    """Read the frame at an offset; None if there is no whole one."""
    if len(data) - pos < _FRAME.size:
        return None
    kind, records, length, checksum = _FRAME.unpack_from(data, pos)
    start = pos + _FRAME.size
    if length > len(data) - start or (kind == b"S" and length != _SEAL.size):
        return None
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(data[pos : pos + _CHECKED])) != checksum:
        return None
    return _Frame(kind, records, payload, start + length)


def _ends_in_seal(data: bytes) -> bool:
    found = _frame_at(data, len(data) - _SEAL_SIZE) if len(data) >= _SEAL_SIZE else None
    return found is not None and found.kind == b"S"


def _stream_of(payload: bytes) -> Stream:
    try:
        found = Stream(**json.loads(payload))
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"its first frame makes no sense: {error}") from None
    if found.format not in ("msgpack", "lines"):
        raise UnknownVersion(f"the format {found.format!r} is not known")
    return found
