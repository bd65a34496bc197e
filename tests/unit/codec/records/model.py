"""A slow reader of JSON and CSV: the standard library decides what a body has, record by record."""

from __future__ import annotations

from typing import Any

import msgspec

from arcpipe.codec.records.report import Records

Row = dict[str, Any]


def rows_of(records: Records) -> list[tuple[str, Row]]:
    """Return the measurement and the values of each row, without nulls."""
    encoded = records.encoded
    if encoded is None:
        return []
    maps = msgspec.msgpack.decode(encoded.body)
    rows = []
    for columnar in maps if encoded.batch else [maps]:
        names = list(columnar["columns"])
        for values in zip(*columnar["columns"].values(), strict=True):
            row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            rows.append((columnar["m"], row))
    assert len(rows) == encoded.records
    return rows


def expected_row(record: Row) -> Row:
    """Return what is kept of a record whose fields have no roles."""
    return {name: _kept(value) for name, value in record.items() if value is not None}


def _kept(value: Any) -> Any:
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if type(value) is list:
        return [_kept(item) for item in value]
    if type(value) is dict:
        return {name: _kept(item) for name, item in value.items()}
    return value
