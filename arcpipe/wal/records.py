"""Records of Python programs, as `WALWriter.append` takes them, become columnar maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def maps_by_database(records: Iterable[Mapping[str, Any]], database: str) -> dict[str, list[dict[str, Any]]]:
    """Make each record a columnar map; return the maps by database.

    Args:
        records: each with `measurement`, optionally `time` and `_database`; all other keys are fields.
        database: the database of records without `_database`.

    Raises:
        ValueError: a record without a measurement or without a field, or no record at all.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        fields = dict(record)
        target = str(fields.pop("_database", database))
        measurement = fields.pop("measurement", None)
        if not isinstance(measurement, str) or not measurement or not fields.keys() - {"time"}:
            raise ValueError(f"a record needs a 'measurement' and a field: {dict(record)!r}")
        columns = {name: [value] for name, value in fields.items()}
        found.setdefault(target, []).append({"m": measurement, "columns": columns})
    if not found:
        raise ValueError("there are no records to write")
    return found
