"""Gather rows by the native kernel, where it is installed: those of flat values, whatever their shapes.

It takes all rows of a piece or none, so that rows which are not usual make no more shapes than they do in Python.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from arcpipe.codec.effort import Effort
from arcpipe.codec.messagepack.layout import INTEGER, KIND
from arcpipe.codec.messagepack.patches import Patch, patched
from arcpipe.codec.messagepack.times import BadTime, TimeRule, settle, stay
from arcpipe.native import KERNEL

# None without the kernel.
_GATHER: Final = None if KERNEL is None else KERNEL.gather_rows


class Gathered(NamedTuple):
    """A piece of an array."""

    maps: list[tuple[bytes, int]]
    """Columnar maps in MessagePack, one for each shape, with the number of rows."""
    rows: int
    end: int
    """The offset after them."""


def gather_piece(data: bytes, start: int, count: int, rule: TimeRule, effort: Effort) -> Gathered | None:
    """Gather `count` rows, of which the first begins at `start`, or 128 KB of them if these are fewer.

    Returns:
        None without the kernel, or if Python has to look at one of the rows.

    Raises:
        PayloadTooLarge: the body has too many shapes for its size.
    """
    found = _GATHER(data, start, count) if _GATHER is not None else None
    if found is None:
        return None
    rows, end, shapes = found
    maps: list[tuple[bytes, int]] = []
    for columnar, records, times, times_end, width in shapes:
        try:
            settled = _settled(columnar, records, times, times_end, width, rule, effort) if times else columnar
        except BadTime:
            effort.take_back(len(maps))
            return None
        effort.add_shape()
        maps.append((settled, records))
    return Gathered(maps, rows, end)


def _settled(columnar: bytes, records: int, start: int, end: int, width: int, rule: TimeRule, effort: Effort) -> bytes:
    """Return a map with times that the WAL knows, of those from `start` to `end`. Raises BadTime."""
    each_has_a_unit = rule.as_arc and KIND[columnar[start]] == INTEGER
    if width and not each_has_a_unit and stay(columnar, start, width, records, rule):
        return columnar
    new = settle(columnar, start, end, records, rule, effort.check, each=True)
    return columnar if new is None else patched(columnar, 0, len(columnar), (Patch(start, end, new),))
