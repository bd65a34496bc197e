"""Small JSON files with a version and a checksum: one way to write and to read them.

    data = encode(plan)
    plan = decode(data, Plan, 1, path, "Nothing is compacted until that version has run again")

The type is a struct with a field `version`, and forbids unknown fields: what a later version wrote is left alone.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from arcpipe.errors import UnknownVersion
from arcpipe.wal.checksum import checksum_holds, with_checksum

T = TypeVar("T", bound=msgspec.Struct)


def encode(content: msgspec.Struct) -> bytes:
    """Encode a struct as JSON with a checksum."""
    return with_checksum(msgspec.json.encode(content))


def decode(data: bytes, type_: type[T], version: int, path: str, consequence: str) -> T:
    """Decode the content of a file.

    Args:
        version: the one that this program knows.
        consequence: what happens until the right version runs; the end of the text, without a full stop.

    Raises:
        ValueError: it is damaged.
        UnknownVersion: it is intact, and has a version or field that this program does not know.
    """
    if checksum_holds(data) is not True:
        raise ValueError("its checksum does not match")
    content: dict[str, Any] = msgspec.json.decode(data)
    content.pop("crc32", None)
    try:
        if content.get("version") != version:
            raise msgspec.ValidationError(f"version {content.get('version')!r}")
        return msgspec.convert(content, type_)
    except msgspec.ValidationError as error:
        raise UnknownVersion(
            f"{path} is of another version of arcpipe ({error}; this one knows version {version}). {consequence}"
        ) from error
