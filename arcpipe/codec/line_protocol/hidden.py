"""Bytes of a piece that are no delimiters and no content: they are hidden while its delimiters are searched."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from arcpipe.codec.effort import Effort
from arcpipe.codec.line_protocol.grammar import Escapes

# Characters that may be escaped, and the bytes that replace them while delimiters are searched. No valid UTF-8 has
# these bytes.
_STANDINS: Final = {ord("\\"): b"\xf8", ord(","): b"\xf9", ord(" "): b"\xfa", ord("="): b"\xfb"}
FIRST_STANDIN: Final = 0xF8
"""The least of these bytes."""
STANDIN_FOR_EQUALS: Final = 0xFB
CHARACTER: Final[npt.NDArray[np.uint8]] = np.arange(256, dtype=np.uint8)
"""The character that each of them stands for."""
for _character, _standin in _STANDINS.items():
    CHARACTER[ord(_standin)] = _character

_PARTS_BETWEEN_CHECKS: Final = 2047  # a mask: `check` is called once per 2048 parts of a text with escapes, or 0.5 ms
_NEWLINE: Final = ord("\n")
_CARRIAGE_RETURN: Final = ord("\r")


def drop_carriage_returns(piece: bytes) -> bytes:
    """Drop each carriage return that is right before a newline: no value of a line that is not odd ends with it.

    A string that goes on after a newline keeps its own, because its lines are odd.
    """
    text = np.frombuffer(piece, np.uint8)
    kept = text != _CARRIAGE_RETURN
    kept[:-1] |= text[1:] != _NEWLINE
    kept[-1] = True
    dropped: bytes = text[kept].tobytes()
    return dropped


def hide_escapes(piece: bytes, escapes: Escapes, effort: Effort) -> bytes:
    """Replace each escape in the piece by one byte; a backslash that escapes nothing stays."""
    in_pairs = escapes == "v3"
    first, *others = piece.split(b"\\")
    parts = [first]
    following = iter(others)
    for number, part in enumerate(following):
        if not number & _PARTS_BETWEEN_CHECKS:
            effort.check()
        if part:
            standin = _STANDINS.get(part[0])
            parts += (b"\\", part) if standin is None else (standin, part[1:])
        elif in_pairs:  # between two backslashes, or after the last
            last = next(following, None)
            parts += (b"\\",) if last is None else (_STANDINS[ord("\\")], last)
        else:
            parts.append(b"\\")
    return b"".join(parts)
