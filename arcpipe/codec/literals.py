"""Compare bytes at many places at once, by words of eight."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]
"""The eight bytes at each place of some data."""

_WORD: Final = 8
_ALL: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def words_of(data: bytes | memoryview) -> Words:
    """View data of at least eight bytes as words, one at each place that has eight bytes."""
    words: Words = np.ndarray((len(data) - _WORD + 1,), "<u8", data, 0, (1,))
    return words


class Literal:
    """Bytes to compare with. The words of data have to reach seven bytes beyond the bytes that are compared."""

    __slots__ = ("_words", "size")

    def __init__(self, data: bytes, hidden: range = range(0), ascii_: range = range(0)) -> None:
        """Take bytes; those in `hidden` may be any, and those in `ascii_` any of ASCII."""
        self.size = len(data)
        self._words = []
        for at in range(0, len(data), _WORD):
            part = data[at : at + _WORD]
            places = range(at, at + len(part))
            mask = bytes(0 if place in hidden else 0x80 if place in ascii_ else 0xFF for place in places)
            wanted = bytes(byte & keep for byte, keep in zip(part, mask, strict=True))
            if any(mask):
                self._words.append((at, _word(mask), _word(wanted)))

    def are_at(self, words: Words, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell at which places the bytes are."""
        found: npt.NDArray[np.bool_] = np.ones(len(places), np.bool_)
        for offset, mask, wanted in self._words:
            here = words[places + offset]
            if mask != _ALL:
                here &= mask
            found &= here == wanted
        return found


def _word(data: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(data, "little"))
