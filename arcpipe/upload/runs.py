"""Find runs in a block of small entries: entries of one shape, which are taken together without decoding each.

Fronts and outlines are learned from the entries themselves. A block with the same blocks before it has the same runs.
This module must not know tables, files or threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arcpipe.codec.arrow.arrays import take
from arcpipe.codec.arrow.times import MAX_TIME_US
from arcpipe.codec.arrow.values import Ints
from arcpipe.upload.encoded_column import EncodedColumn, Sizes
from arcpipe.upload.fronts import Front, front_of
from arcpipe.upload.outlines import Block, Outline, Places, outline_of
from arcpipe.upload.staging import EntryShape, GroupKey, Piece, group_key

# Fronts and outlines that are kept. Looking for one in a block costs up to 1% of decoding the block.
_MOST_KNOWN: Final = 64
# New ones that are tried in a block, and those of them that may be for nothing.
_MOST_NEW: Final = 8
_MOST_FAILED: Final = 2
LEAST_ENTRIES: Final = 16
"""Entries of a block, or of a front, that are worth a search."""


class Run(NamedTuple):
    """Entries of one shape in a block, in their order."""

    key: GroupKey
    shape: EntryShape
    numbers: Ints  # of the entries in the block
    sizes: Ints  # bytes of each payload
    rows: Sizes
    starts: list[Ints]  # of each column's values in the block
    ends: list[Ints]
    block: Block

    def piece(self, timestamps_us: npt.NDArray[np.uint64], origins: Ints) -> Piece:
        """Copy the values together, given the timestamps and origins of all entries of the block."""
        return Piece(
            self.shape,
            self.rows,
            np.minimum(timestamps_us[self.numbers], MAX_TIME_US).astype(np.int64),
            origins[self.numbers],
            np.zeros(len(self.numbers), np.uint64),
            [_gather(self.block, *places) for places in zip(self.starts, self.ends, strict=True)],
        )


class RunFinder:
    """Finds the runs of one block after the other."""

    def __init__(self) -> None:
        self._fronts: list[Front] = []  # those used last come first
        self._outlines: list[Outline] = []

    def fronts(self, block: Block) -> list[tuple[Front, Ints]]:
        """Return the fronts in a block, each with the numbers of the entries that have it, ascending."""
        return list(self._by_front(block))

    def find(self, block: Block, fronted: Iterable[tuple[Front, Ints]]) -> tuple[list[Run], list[int]]:
        """Return the runs of a block, and the numbers of the entries that are in none.

        Args:
            fronted: as from `fronts`, perhaps with fewer entries: the others are in no run.
        """
        owners: list[tuple[str, str | None]] = []  # database and precision
        owner = np.full(len(block.sizes), -1, np.int64)
        bodies = np.zeros(len(block.sizes), np.int64)
        for front, numbers in fronted:
            if (front.database, front.precision) not in owners:
                owners.append((front.database, front.precision))
            owner[numbers] = owners.index((front.database, front.precision))
            bodies[numbers] = block.starts[numbers] + front.size
        found: dict[GroupKey, list[tuple[Outline, Places]]] = {}
        is_left = np.ones(len(owner), np.bool_)
        for outline, places in self._by_outline(block, np.flatnonzero(owner >= 0), bodies):
            is_left[places.numbers] = False
            for number, part in _by_owner(places, owner):
                found.setdefault(group_key(*owners[number], outline.columns), []).append((outline, part))
        runs = [_run(key, block, owners[owner[parts[0][1].numbers[0]]], parts) for key, parts in found.items()]
        return runs, np.flatnonzero(is_left).tolist()

    def _by_front(self, block: Block) -> Iterator[tuple[Front, Ints]]:
        """Yield fronts and the numbers of the entries that have them."""
        left = np.arange(len(block.sizes))
        used = []
        failed = 0
        for front in [*self._fronts, *([None] * _MOST_NEW)]:
            if len(left) < LEAST_ENTRIES or failed == _MOST_FAILED:
                break
            front = front or front_of(block.payload(int(left[0])))
            has = front.are_in(block, left) if front is not None else left == left[0]
            numbers = left[has]
            if front is not None and len(numbers) >= LEAST_ENTRIES:
                used.append(front)
                left = left[~has]
                yield front, numbers
            elif front not in self._fronts:
                left = left[~has]
                failed += 1
        self._fronts = [*used, *(front for front in self._fronts if front not in used)][:_MOST_KNOWN]

    def _by_outline(self, block: Block, left: Ints, bodies: Ints) -> Iterator[tuple[Outline, Places]]:
        """Yield outlines and the places of the values of entries that have them."""
        used = []
        failed = 0
        for outline in [*self._outlines, *([None] * _MOST_NEW)]:
            if not len(left) or failed == _MOST_FAILED:
                break
            is_new = outline is None
            number = int(left[0])
            outline = outline or outline_of(block.payload(number), int(bodies[number] - block.starts[number]))
            may_be = left == number if outline is None else outline.may_be_at(block.words, bodies[left])
            candidates = left[may_be]
            if outline is not None and len(candidates) >= outline.least:
                places = outline.find(block, candidates, bodies[candidates])
                if len(places.numbers) >= outline.least:
                    used.append(outline)
                    left = np.setdiff1d(left, places.numbers, assume_unique=True)
                    yield outline, places
                    continue
            if is_new:
                left = left[1:]
                failed += 1
        self._outlines = [*used, *(outline for outline in self._outlines if outline not in used)][:_MOST_KNOWN]


def _by_owner(places: Places, owner: Ints) -> Iterator[tuple[int, Places]]:
    """Divide entries of one outline by database and precision."""
    owners = owner[places.numbers]
    if (owners == owners[0]).all():
        yield int(owners[0]), places
        return
    for number in np.unique(owners).tolist():
        yield number, places.chosen(owners == number)


def _run(key: GroupKey, block: Block, owner: tuple[str, str | None], parts: list[tuple[Outline, Places]]) -> Run:
    """Put the entries of one group in their order."""
    shape = EntryShape(*owner, parts[0][0].columns)
    numbers = np.concatenate([places.numbers for _, places in parts])
    rows = np.concatenate([np.full(len(places.numbers), outline.rows, np.uint32) for outline, places in parts])
    starts = [np.concatenate(each) for each in zip(*(places.starts for _, places in parts), strict=True)]
    ends = [np.concatenate(each) for each in zip(*(places.ends for _, places in parts), strict=True)]
    if len(parts) > 1:
        order = np.argsort(numbers)
        numbers, rows = numbers[order], rows[order]
        starts, ends = [each[order] for each in starts], [each[order] for each in ends]
    return Run(key, shape, numbers, block.sizes[numbers], rows, starts, ends, block)


def _gather(block: Block, starts: Ints, ends: Ints) -> EncodedColumn:
    """Copy values that follow one another in the block, with bytes between them, together."""
    sizes = ends - starts
    width = int(sizes[0])
    if (sizes == width).all():
        everywhere = np.ndarray((len(block.data) - width + 1,), f"V{width}", block.data, 0, (1,))
        return EncodedColumn(everywhere[starts].view(np.uint8), np.full(len(sizes), width, np.uint32))
    offsets = np.empty(2 * len(sizes) + 1, np.int32)
    offsets[:-1:2], offsets[1::2], offsets[-1] = starts, ends, ends[-1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block.data)]
    both = pa.Array.from_buffers(pa.binary(), 2 * len(sizes), buffers)
    taken = take(both, pa.array(np.arange(0, 2 * len(sizes), 2, dtype=np.int32)))
    data = np.frombuffer(taken.buffers()[2], np.uint8)[: int(sizes.sum())]
    return EncodedColumn(data, sizes.astype(np.uint32))
