"""Integers of any size, as values that MessagePack has."""

from __future__ import annotations

from typing import Any


def fitting(value: Any) -> Any:
    """Make integers of more than 64 bits text, so that no digit is lost; also within lists and dictionaries."""
    kind = type(value)
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if kind is list:
        return [fitting(item) for item in value]
    if kind is dict:
        return {name: fitting(item) for name, item in value.items()}
    return value
