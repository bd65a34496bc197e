"""Messages of a name and a value, as labels and attributes are: `{string name = 1; string or message value = 2}`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from arcpipe.codec.protobuf.buffer import LOW_BYTES, Buffer, Ints
from arcpipe.codec.protobuf.fields import Level, Mask
from arcpipe.codec.protobuf.scan import Spans, scan

# Tags of the two fields: a number and a wire type each.
_FIRST, _SECOND = 0x0A, 0x12
_SHORT: Final = 0x80  # lengths below it take one byte


class Pairs(NamedTuple):
    """All messages of a repeated field, message after message: the place of each name and value."""

    counts: Ints
    owner: Ints
    name_start: Ints
    name_end: Ints
    value_start: Ints
    value_end: Ints

    def chosen(self, chosen: Mask) -> Pairs:
        """Return some of them, of the same messages."""
        return Pairs(
            np.bincount(self.owner[chosen], minlength=len(self.counts)), *(column[chosen] for column in self[1:])
        )


def is_named(buffer: Buffer, pairs: Pairs, name: bytes) -> Mask:
    """Tell which of them have a name."""
    same: Mask = pairs.name_end - pairs.name_start == len(name)
    at = np.flatnonzero(same)
    for step in range(0, len(name), 8):
        part = name[step : step + 8]
        words = buffer.words[pairs.name_start[at] + step] & LOW_BYTES[len(part)]
        at = at[words == np.uint64(int.from_bytes(part, "little"))]
    same = np.zeros(len(pairs.owner), np.bool_)
    same[at] = True
    return same


def read_pairs(buffer: Buffer, spans: Spans, count: int, check: Callable[[], None]) -> Pairs:
    """Find name and value of each."""
    owner, start, end = spans
    text = buffer.text
    name_size = text[start + 1].astype(np.int64)
    name_end = start + 2 + name_size
    # Clipped, because a length that is wrong points anywhere.
    second = np.minimum(name_end, buffer.end)
    usual = (text[start] == _FIRST) & (name_size < _SHORT) & (text[second] == _SECOND)
    value_size = text[second + 1].astype(np.int64)
    value_start = second + 2
    usual &= (value_size < _SHORT) & (value_start + value_size == end)
    check()
    pairs = Pairs(np.bincount(owner, minlength=count), owner, start + 2, name_end, value_start, end)
    if usual.all():
        return pairs
    odd = np.flatnonzero(~usual)
    level = Level(buffer, scan(buffer, start[odd], end[odd], check), len(odd))
    names, values = level.spans(1), level.spans(2)
    pairs.name_start[odd], pairs.name_end[odd] = names
    value_end = end.copy()
    pairs.value_start[odd], value_end[odd] = values
    return pairs._replace(value_end=value_end)
