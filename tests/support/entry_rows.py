"""The rows of a request's entry, in whichever form the WAL holds them. It reads them without arcpipe's own readers."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa

from arcpipe.codec.columns import Encoded

ARROW = 2


def rows_of(encoded: Encoded | None) -> dict[str, list[dict[str, Any]]]:
    """The rows of an encoded body, by table. Times are integers; a stream leaves columns without values out."""
    found: dict[str, list[dict[str, Any]]] = {}
    if encoded is None:
        return found
    content = msgspec.msgpack.decode(encoded.body)
    for one in [content] if encoded.batch in (0, ARROW) else content:
        rows = _of_stream(one["arrow"], one["rows"]) if encoded.batch == ARROW else _of_map(one["columns"])
        found.setdefault(one["m"], []).extend(rows)
    assert sum(map(len, found.values())) == encoded.records
    return found


def _of_map(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _of_stream(stream: bytes, rows: int) -> list[dict[str, Any]]:
    table = pa.ipc.open_stream(stream).read_all()
    table.validate(full=True)
    assert len(table) == rows
    if "time" in table.column_names:
        table = table.set_column(0, "time", table["time"].cast(pa.int64()))
    found: list[dict[str, Any]] = table.to_pylist()
    return found
