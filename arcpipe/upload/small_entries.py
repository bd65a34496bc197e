"""The small entries of a batch, block by block. A batch that is done again has the same blocks, however it is read.

This module must not know shapes, tables, files or threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcpipe.codec.arrow.values import Ints
from arcpipe.upload.outlines import PADDING, Block
from arcpipe.wal.stretch import Stretch


class Small(NamedTuple):
    """A block of small entries, with the timestamp (µs) and the origin of each."""

    block: Block
    timestamps_us: npt.NDArray[np.uint64]
    origins: Ints

    def __len__(self) -> int:
        return len(self.origins)

    def entry(self, number: int) -> tuple[int, bytes, int]:
        """Return timestamp, payload and origin of an entry."""
        return int(self.timestamps_us[number]), self.block.payload(number), int(self.origins[number])


class SmallEntries:
    """Collects small entries until they are a block."""

    __slots__ = ("_block_bytes", "_block_entries", "_bytes", "_data", "_entries", "_lone", "_parts", "_size")

    def __init__(self, block_entries: int, block_bytes: int) -> None:
        """Bound a block: it ends with the entry that reaches one of the bounds."""
        self._block_entries = block_entries
        self._block_bytes = block_bytes
        self._clear()

    def _clear(self) -> None:
        self._data: list[bytes | memoryview] = []  # one after the other, the data of the block
        self._size = 0  # of that, in bytes
        self._parts: list[tuple[Ints, Ints, npt.NDArray[np.uint64], Ints]] = []
        self._lone: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        self._entries = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._entries

    @property
    def is_block(self) -> bool:
        return self._entries >= self._block_entries or self._bytes >= self._block_bytes

    def add(self, timestamp_us: int, payload: bytes | memoryview, origin: int) -> None:
        """Take an entry."""
        starts, sizes, timestamps, origins = self._lone
        starts.append(self._size)
        sizes.append(len(payload))
        timestamps.append(timestamp_us)
        origins.append(origin)
        self._data.append(payload)
        self._size += len(payload)
        self._bytes += len(payload)
        self._entries += 1

    def add_stretch(self, stretch: Stretch, origins: Ints) -> int:
        """Take entries, but none after the end of a block. Returns their number."""
        sizes = stretch.ends - stretch.starts
        till_full = int(np.searchsorted(np.cumsum(sizes), self._block_bytes - self._bytes)) + 1
        count = min(len(sizes), self._block_entries - self._entries, till_full)
        first, last = int(stretch.starts[0]), int(stretch.ends[count - 1])
        self._end_lone()
        self._parts.append(
            (stretch.starts[:count] + (self._size - first), sizes[:count], stretch.timestamps[:count], origins[:count])
        )
        self._data.append(stretch.data[first:last])
        self._size += last - first
        self._bytes += int(sizes[:count].sum())
        self._entries += count
        return count

    def take(self) -> Small:
        """Take the entries as a block, and begin the next."""
        self._end_lone()
        data = b"".join((*self._data, bytes(PADDING)))
        starts, sizes, timestamps, origins = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        self._clear()
        return Small(Block(data, starts, sizes), timestamps, origins)

    def _end_lone(self) -> None:
        """Make the entries that came alone a part."""
        starts, sizes, timestamps, origins = self._lone
        if starts:
            self._parts.append(
                (
                    np.array(starts, np.int64),
                    np.array(sizes, np.int64),
                    np.array(timestamps, np.uint64),
                    np.array(origins, np.int64),
                )
            )
            self._lone = ([], [], [], [])
