"""Checksums of small JSON files: even a flipped bit within a name is found.

    data = with_checksum(b'{"version":2,"name":"x"}')      # …,"crc32":"0a1b2c3d"}
    holds = checksum_holds(data)                            # True, False, or None where there is none

The checksum is the last field and covers all bytes before it. Later versions must keep it there: a reader has to tell
a newer file, which it leaves alone, from a damaged one.
"""

from __future__ import annotations

from typing import Final

from arcpipe.wal.format import crc32

_FIELD: Final = b',"crc32":"'
_TAIL_BYTES: Final = len(_FIELD) + 8 + len(b'"}')


def with_checksum(data: bytes) -> bytes:
    """Add the checksum to a JSON object that has at least one field and no space at its end."""
    return b'%b%b%08x"}' % (data[:-1], _FIELD, crc32(data[:-1]))


def checksum_holds(data: bytes) -> bool | None:
    """Tell if the bytes are as `with_checksum` made them; None if they have no checksum at all."""
    if b'"crc32"' not in data:
        return None
    body = data[:-_TAIL_BYTES]
    return data[-_TAIL_BYTES:] == b'%b%08x"}' % (_FIELD, crc32(body))
