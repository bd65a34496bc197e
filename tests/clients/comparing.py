"""What all tests of clients share: how rows are compared, and how known failures are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest

from tests.support.server import Server
from tests.support.values import same

BACKSLASHES: Final = "backslashes are read by the rule of InfluxDB 3 on every path: two of them are one"
"""The reason of failures: clients of InfluxDB 1 and 2 do not double the backslashes of a tag."""


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out NaN, which line protocol does not have."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def with_failures(clients: Iterable[str], sets: Iterable[str], failures: Mapping[tuple[str, str], str]) -> list[Any]:
    """Combine each client with each set of records, marked where the test is expected to fail today."""
    return [
        pytest.param(
            client,
            name,
            marks=[pytest.mark.xfail(strict=True, reason=reason)] if (reason := failures.get((client, name))) else [],
        )
        for client in clients
        for name in sets
    ]


def assert_rows(server: Server, database: str, measurement: str, expected: list[dict[str, Any]]) -> None:
    """Wait until the lake has these rows, and no others, in their order; it may have columns that are not expected."""
    found = server.wait_for_rows(len(expected), database, measurement)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert same({name: got.get(name) for name in want}, want), f"{got} is not {want}"
