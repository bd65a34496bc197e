"""The units of timestamps, and the one that a number was probably meant in."""

from __future__ import annotations

from typing import Final

UNIT_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
"""Nanoseconds in each unit, by its word in an envelope, from the shortest to the longest."""

MIN_NS: Final = -(1 << 63)
MAX_NS: Final = (1 << 63) - 1


def range_of(unit: str) -> tuple[int, int]:
    """Return the least and the greatest number of a unit that has 64 bits in nanoseconds."""
    return -(-MIN_NS // UNIT_NS[unit]), MAX_NS // UNIT_NS[unit]


def fitting_unit(time: int) -> str:
    """Return the longest unit in whose range this number is: no other one makes a time of this century of it."""
    for unit in reversed(UNIT_NS):
        low, high = range_of(unit)
        if low <= time <= high:
            return unit
    return "ns"
