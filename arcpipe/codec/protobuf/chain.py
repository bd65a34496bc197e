"""Find many fields that stand one after the other, of one tag, without a step in Python for each.

A field tells where the next one begins, so they can only be read in order. But what looks like the beginning of a field
is found by a few comparisons of all bytes. If the first place is the beginning of a field, and each leads to the next
one, then these are the fields: that is the proof, whatever the bytes between them are.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from arcpipe.codec.protobuf.buffer import Buffer, Ints
from arcpipe.units import MB

# Bytes that are compared in one call, and fewer of which are left to a loop.
_MOST_BYTES: Final = MB // 2
_LEAST_BYTES: Final = 32_768
# Times that places which lead nowhere are dropped. Others lead to those, but seldom more than once.
_ROUNDS: Final = 3
_LONG: Final = 0x80  # a byte of a varint that is not the last one
_HEAD_BYTES: Final = 3  # a tag, and a length of two bytes


def chain(buffer: Buffer, at: int, stop: int) -> Ints | None:
    """Find where fields like that at `at` begin: with its tag, a length of two bytes, and the same first byte in them.

    Returns:
        The places of some fields from `at` on, one after the other; None if they are no such fields, or too few bytes.
    """
    stop = min(stop, at + _MOST_BYTES)
    text = buffer.text
    if stop - at < _LEAST_BYTES or text[at] >= _LONG or text[at + 1] < _LONG or text[at + 2] >= _LONG:
        return None
    size = stop - at - _HEAD_BYTES
    window = text[at : at + size + _HEAD_BYTES]
    found = window[:size] == window[0]
    found &= window[3 : size + 3] == window[3]
    places = np.flatnonzero(found)
    low, high = window[1:][places], window[2:][places]
    usual = (low >= _LONG) & (high < _LONG)
    places, low, high = places[usual], low[usual], high[usual]
    follow = places + (low & np.uint8(0x7F)) + (high.astype(np.int64) << 7) + _HEAD_BYTES
    for _ in range(_ROUNDS):
        if (follow[:-1] == places[1:]).all():
            break
        there = np.zeros(size, np.bool_)
        there[places] = True
        leads = follow >= size
        leads[~leads] = there[follow[~leads]]
        places, follow = places[leads], follow[leads]
        if not len(places) or places[0]:
            return None
    breaks = np.flatnonzero(follow[:-1] != places[1:])
    last = int(breaks[0]) if len(breaks) else len(places) - 1
    # Content that looks like fields would make a loop over few of them cost as much as the whole window.
    return places[: last + 1] + at if follow[last] > size // 2 else None
