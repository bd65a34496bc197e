"""How the rows of all tests of clients are compared."""

from __future__ import annotations

import math
from typing import Any

from tests.support.server import Server
from tests.support.values import same


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out NaN, which line protocol does not have."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def as_influxdb_3(row: dict[str, Any]) -> dict[str, Any]:
    """Show a row whose tag was sent as it is, and in which InfluxDB 3 reads two backslashes as one."""
    return {**row, "host": row["host"].replace("\\\\", "\\")}


def assert_rows(server: Server, database: str, measurement: str, expected: list[dict[str, Any]]) -> None:
    """Wait until the lake has these rows, and no others, in their order; it may have columns that are not expected."""
    found = server.wait_for_rows(len(expected), database, measurement)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert same({name: got.get(name) for name in want}, want), f"{got} is not {want}"
