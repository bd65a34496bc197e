"""How the rows of a reader are compared with those of the model: each value, and its type."""

from __future__ import annotations

import math
import struct
from array import array
from typing import Any

from tests.readers.model import Row


def assert_same_rows(found: list[Row], expected: list[Row]) -> None:
    """Compare rows by time: NaN is NaN, -0.0 is not 0.0, 1 is neither 1.0 nor True."""
    assert len(found) == len(expected)
    assert sorted(found[0]) == sorted(expected[0])
    found, expected = sorted(found, key=_time), sorted(expected, key=_time)
    for name in expected[0]:
        left, right = [row[name] for row in found], [row[name] for row in expected]
        if not _is_same(left, right):
            for number, (one, other) in enumerate(zip(left, right, strict=True)):
                assert _exact(one) == _exact(other), f"{name} of row {number}"


def _is_same(left: list[Any], right: list[Any]) -> bool:
    """Tell quickly whether columns are equal to the bit; of NaNs, it says so only of those with the same bits."""
    if list(map(type, left)) != list(map(type, right)):
        return False
    if float not in set(map(type, left)):
        return left == right
    if not {float, type(None)} >= set(map(type, left)):
        return False
    return _bits(left) == _bits(right)


def _bits(values: list[float | None]) -> bytes:
    return array("d", [0.0 if value is None else value for value in values]).tobytes()


def _time(row: Row) -> Any:
    return row["time"]


def _exact(value: Any) -> tuple[type, Any]:
    """Make values that differ compare as different."""
    if not isinstance(value, float):
        return type(value), value
    return float, "nan" if math.isnan(value) else struct.pack(">d", value)
