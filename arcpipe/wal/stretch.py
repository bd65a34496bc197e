"""Verify many small entries at once: stretches of them, which a walk takes where it can.

An entry of 150 bytes costs half of what it costs by itself. Where an entry does not look ordinary, the stretch
ends before it, and the walk judges it as it judges any other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from arcpipe.codec.literals import Literal, words_of
from arcpipe.units import KB
from arcpipe.wal.format import ENTRY_HEADER_SIZE, crc32
from arcpipe.wal.timestamps import LATEST_US

MOST_BYTES: Final = 2 * KB
"""Bytes of the largest payload in a stretch: the checksums of larger ones cost more than everything else."""
LEAST_ENTRIES: Final = 16
"""Entries from which on a stretch is worth its fixed cost."""

_BYTES: Final = 256 * KB  # of a stretch: its bytes are read twice, and should stay in the cache
_SAME_SIZE: Final = 64  # payloads for each size from which on a copy costs less than views
_FRONTS: Final = 8  # that are compared with
_LENGTH: Final = struct.Struct(">I")

Places: TypeAlias = npt.NDArray[np.int64]


class Stretch(NamedTuple):
    """Verified entries that follow one another in a file, in their order."""

    offset: int  # of `data` in the file
    data: memoryview  # valid as long as it is referenced
    starts: Places  # of the payloads in `data`; their headers go before them
    ends: Places
    timestamps: npt.NDArray[np.uint64]  # µs since the epoch

    @property
    def offsets(self) -> Places:
        """The offset of each entry in the file."""
        return self.starts + (self.offset - ENTRY_HEADER_SIZE)

    def cut(self, start: int, stop: int) -> Stretch:
        """Return the entries from number `start` up to `stop`."""
        return self._replace(
            starts=self.starts[start:stop], ends=self.ends[start:stop], timestamps=self.timestamps[start:stop]
        )


class StretchFinder:
    """Finds stretches in one file."""

    __slots__ = ("_fronts", "_literals")

    def __init__(self) -> None:
        self._fronts: list[bytes] = []
        self._literals: list[Literal] = []

    def find(self, window: memoryview, base: int, offset: int, fronts: dict[bytes, Any], before: int) -> Stretch | None:
        """Find the ordinary small entries of a window from an offset on; None if they are few.

        Args:
            base: the offset of the window in the file; `offset` is one in the file, too.
            fronts: the bytes that the payload of an ordinary entry begins with; the newest ones count.
            before: the timestamp of the entry before.
        """
        if not 0 <= offset - base < len(window):
            return None
        newest = list(islice(reversed(fronts), _FRONTS))
        if newest != self._fronts:
            self._fronts, self._literals = newest, list(map(Literal, newest))
        return _stretch(window, base, offset - base, self._literals, before)


def _stretch(window: memoryview, base: int, position: int, fronts: Sequence[Literal], before: int) -> Stretch | None:
    """Do as `find`, from a position in the window on."""
    # An entry that ends here or before has the next entry's header in the window, too.
    limit = min(len(window) - ENTRY_HEADER_SIZE - max(front.size for front in fronts), position + _BYTES)
    headers = []
    length_at = _LENGTH.unpack_from
    at = position
    while at <= limit:
        headers.append(at)
        length = length_at(window, at)[0]
        if length > MOST_BYTES:
            break
        at += ENTRY_HEADER_SIZE + length
    if len(headers) <= LEAST_ENTRIES:
        return None
    places = np.array(headers, np.int64)
    starts, ends = places[:-1] + ENTRY_HEADER_SIZE, places[1:]
    timestamps = _numbers(window, ">u8", places + 4).astype(np.uint64)
    words, sizes = words_of(window), ends - starts
    good = np.zeros(len(starts), np.bool_)
    for front in fronts:
        good |= front.are_at(words, starts) & (sizes > front.size)
        if good.all():
            break
    good &= (timestamps[:-1] < timestamps[1:]) & (timestamps[1:] <= LATEST_US)
    good[0] &= before < timestamps[0]
    count = _first_false(good)
    found = checksums(window, starts[:count], sizes[:count])
    count = _first_false(found == _numbers(window, ">u4", places[:count] + 12))
    if count < LEAST_ENTRIES:
        return None
    return Stretch(base, window, starts[:count], ends[:count], timestamps[:count])


def checksums(window: memoryview, starts: Places, sizes: Places) -> npt.NDArray[np.uint32]:
    """Compute the CRC32 of each of these payloads. Those of one size are copied in one call, where that pays."""
    different = np.flatnonzero(np.bincount(sizes)).tolist() if len(sizes) else []
    if len(different) * _SAME_SIZE > len(sizes):
        payloads = map(window.__getitem__, map(slice, starts.tolist(), (starts + sizes).tolist()))
        return np.fromiter(map(crc32, payloads), np.uint32, len(sizes))
    found = np.empty(len(sizes), np.uint32)
    for size in different:
        which = np.flatnonzero(sizes == size)
        copies = _numbers(window, f"V{size}", starts[which]).tolist()
        found[which] = np.fromiter(map(crc32, copies), np.uint32, len(copies))
    return found


def _numbers(window: memoryview, dtype: str, places: Places) -> npt.NDArray[Any]:
    """Read a number, or as many bytes, at each of these places."""
    everywhere: npt.NDArray[Any] = np.ndarray((len(window) - np.dtype(dtype).itemsize + 1,), dtype, window, 0, (1,))
    numbers: npt.NDArray[Any] = everywhere[places]
    return numbers


def _first_false(good: npt.NDArray[np.bool_]) -> int:
    return len(good) if good.all() else int(np.argmin(good))
