"""Records of Python programs, as `WALWriter.append` takes them, become columnar maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

IDEMPOTENCY_KEY: Final = "_idempotency_key"
"""In a record that was read from the WAL: the idempotency key of its request. It is no field."""


def maps_by_database(records: Iterable[Mapping[str, Any]], database: str) -> dict[str, list[dict[str, Any]]]:
    """Make each record a columnar map; return the maps by database.

    Args:
        records: each with `measurement`, optionally `time`, `_database` and `_idempotency_key`, which is not used; all
            other keys are fields.
        database: the database of records without `_database`.

    Raises:
        ValueError: a record without a measurement or without a field, or no record at all.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        fields = dict(record)
        target = str(fields.pop("_database", database))
        fields.pop(IDEMPOTENCY_KEY, None)
        measurement = fields.pop("measurement", None)
        if not isinstance(measurement, str) or not measurement or not fields.keys() - {"time"}:
            raise ValueError(f"a record needs a 'measurement' and a field: {dict(record)!r}")
        columns = {name: [value] for name, value in fields.items()}
        found.setdefault(target, []).append({"m": measurement, "columns": columns})
    if not found:
        raise ValueError("there are no records to write")
    return found
