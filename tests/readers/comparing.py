"""How the rows of a reader are compared with those of the model: each value, and its type."""

from __future__ import annotations

import math
import struct
from typing import Any

from tests.readers.model import Row


def assert_same_rows(found: list[Row], expected: list[Row]) -> None:
    """Compare rows by time: NaN is NaN, -0.0 is not 0.0, 1 is neither 1.0 nor True."""
    assert len(found) == len(expected)
    assert sorted(found[0]) == sorted(expected[0])
    found, expected = sorted(found, key=_time), sorted(expected, key=_time)
    for name in expected[0]:
        left, right = [row[name] for row in found], [row[name] for row in expected]
        if left != right or list(map(type, left)) != list(map(type, right)) or float in set(map(type, left)):
            for number, (one, other) in enumerate(zip(left, right, strict=True)):
                assert _exact(one) == _exact(other), f"{name} of row {number}"


def _time(row: Row) -> Any:
    return row["time"]


def _exact(value: Any) -> tuple[type, Any]:
    """Make values that differ compare as different."""
    if not isinstance(value, float):
        return type(value), value
    return float, "nan" if math.isnan(value) else struct.pack(">d", value)
