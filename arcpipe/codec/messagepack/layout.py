"""The layout of MessagePack: the kind and size of a value by its first byte.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md. All other tables by first byte derive from `LAYOUT`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

INTEGER, MAP, ARRAY, STRING, NIL, INVALID, BOOLEAN, BINARY, EXTENSION, FLOAT = range(10)
KIND_NAMES: Final = (
    *("an integer", "a map", "an array", "a string", "nil"),
    *("an invalid byte", "a boolean", "binary", "an extension", "a float"),
)
"""The name of each kind in error texts."""


class Layout(NamedTuple):
    """The part after a first byte: a big-endian length, then the content that it counts."""

    kind: int
    length_bytes: int = 0
    """Bytes of the length; 0 where the first byte tells it."""
    length: int = 0
    """Where the first byte tells it: bytes of content (with the code of an extension), items, or pairs of a map."""


def _layout(marker: int) -> Layout:
    if marker <= 0x7F or marker >= 0xE0:
        return Layout(INTEGER)
    if marker <= 0x8F:
        return Layout(MAP, 0, marker & 15)
    if marker <= 0x9F:
        return Layout(ARRAY, 0, marker & 15)
    if marker <= 0xBF:
        return Layout(STRING, 0, marker & 31)
    return {
        0xC0: Layout(NIL),
        0xC1: Layout(INVALID),
        0xC2: Layout(BOOLEAN),
        0xC3: Layout(BOOLEAN),
        **{0xC4 + i: Layout(BINARY, 1 << i) for i in range(3)},
        **{0xC7 + i: Layout(EXTENSION, 1 << i) for i in range(3)},
        0xCA: Layout(FLOAT, 0, 4),
        0xCB: Layout(FLOAT, 0, 8),
        **{0xCC + i: Layout(INTEGER, 0, 1 << i) for i in range(4)},  # unsigned
        **{0xD0 + i: Layout(INTEGER, 0, 1 << i) for i in range(4)},
        **{0xD4 + i: Layout(EXTENSION, 0, 1 + (1 << i)) for i in range(5)},
        **{0xD9 + i: Layout(STRING, 1 << i) for i in range(3)},
        **{0xDC + i: Layout(ARRAY, 2 << i) for i in range(2)},
        **{0xDE + i: Layout(MAP, 2 << i) for i in range(2)},
    }[marker]


LAYOUT: Final = tuple(map(_layout, range(256)))
KIND: Final = tuple(layout.kind for layout in LAYOUT)
"""The kind of a value by its first byte."""
SIZE: Final = tuple(
    0 if layout.length_bytes or layout.kind in (MAP, ARRAY, INVALID) else 1 + layout.length for layout in LAYOUT
)
"""Bytes of a whole value by its first byte, where that alone tells; else 0, as of all arrays and maps."""
