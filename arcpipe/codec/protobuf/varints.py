"""Varints of many places at once."""

from __future__ import annotations

import numpy as np

from arcpipe.codec.protobuf.buffer import LOW_BYTES, Buffer, Ints, Words

_HIGH_BITS = np.uint64(0x8080808080808080)
_ONE = np.uint64(1)

MAX_VARINT_BYTES = 10


def varint_sizes(buffer: Buffer, places: Ints) -> Ints:
    """Return the bytes of the varint at each place; 11 for one that has more than ten."""
    last = ~buffer.words[places] & _HIGH_BITS  # the bit of each byte that may be the last
    sizes = ((np.bitwise_count(last - _ONE & ~last) >> np.uint8(3)) + np.uint8(1)).astype(np.int64)
    long = np.flatnonzero(last == 0)
    if len(long):
        at = places[long]
        ninth, tenth = buffer.text[at + 8] < 0x80, buffer.text[at + 9] < 0x80
        sizes[long] = np.where(ninth, 9, np.where(tenth, MAX_VARINT_BYTES, MAX_VARINT_BYTES + 1))
    return sizes


def read_varints(buffer: Buffer, starts: Ints, ends: Ints) -> Words:
    """Read varints whose bytes are known; the bits above 64 are dropped."""
    sizes = ends - starts
    word: Words = buffer.words[starts] & LOW_BYTES[np.minimum(sizes, 8)]
    word &= np.uint64(0x7F7F7F7F7F7F7F7F)
    word = (word & np.uint64(0x007F007F007F007F)) | (word & np.uint64(0x7F007F007F007F00)) >> np.uint64(1)
    word = (word & np.uint64(0x00003FFF00003FFF)) | (word & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2)
    word = (word & np.uint64(0x000000000FFFFFFF)) | (word & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4)
    long = np.flatnonzero(sizes > 8)
    if len(long):
        at = starts[long]
        word[long] |= (buffer.text[at + 8] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(56)
        longest = long[sizes[long] > 9]
        word[longest] |= buffer.text[starts[longest] + 9].astype(np.uint64) << np.uint64(63)
    return word


def zigzag(values: Words) -> Ints:
    """Decode sint32 and sint64."""
    decoded: Ints = (values >> _ONE).view(np.int64) ^ -(values & _ONE).view(np.int64)
    return decoded
