"""Bytes of a body that are something else in the WAL."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Patch(NamedTuple):
    """Bytes of a body that are something else in the WAL."""

    start: int
    end: int
    new: bytes


Patches: TypeAlias = tuple[Patch, ...]


def patched(data: bytes, start: int, end: int, patches: Patches) -> bytes:
    """Return the bytes from `start` to `end` with all patches, which are in order."""
    view = memoryview(data)
    parts: list[bytes | memoryview] = []
    for patch in patches:
        parts += (view[start : patch.start], patch.new)
        start = patch.end
    return b"".join((*parts, view[start:end]))
