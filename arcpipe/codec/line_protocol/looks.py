"""The types that values seem to have: a look at their first and last bytes."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from arcpipe.codec.line_protocol.shapes import BOOL, FLOAT, INTEGER, NONE, TEXT, UNSIGNED, Ints

# The type of a value as its first and last bytes suggest it: `_TYPE[_FIRST[first] + _LAST[last]]`.
_FIRST: Final = np.zeros(256, np.uint8)
_FIRST[list(b"0123456789.-")], _FIRST[list(b'"')], _FIRST[list(b"tTfF")] = 5, 10, 15
_LAST: Final = np.zeros(256, np.uint8)
_LAST[list(b"0123456789.")], _LAST[list(b"i")], _LAST[list(b"u")], _LAST[list(b'"')] = 1, 2, 3, 4
_TYPE: Final = np.zeros(20, np.uint8)
_TYPE[[6, 7, 8, 14]] = FLOAT, INTEGER, UNSIGNED, TEXT
_TYPE[15:20] = BOOL
TAG_TYPE: Final = np.array([TEXT, NONE], np.uint8)
"""The type of a tag by whether it is empty."""


def look_at(text: npt.NDArray[np.uint8], starts: Ints, ends: Ints) -> npt.NDArray[np.uint8]:
    """Tell the types that values seem to have; NONE of those that are empty."""
    looks: npt.NDArray[np.uint8] = _TYPE.take(_FIRST.take(text[starts]) + _LAST.take(text[ends - 1]))
    return looks
