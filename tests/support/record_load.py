"""The load of `Load` in the formats of `/api/v1/ingest/`, in turn: NDJSON, CSV, Arrow, Parquet."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.http import request_bytes
from tests.support.load import Load

TYPES = (
    *("application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"),
)


class RecordLoad(Load):
    """Sends its numbered records as files and texts of other programs."""

    def _request(self, number: int) -> bytes:
        first = number * self.RECORDS
        start = 1_767_225_600 + number % 2 * self.HOUR
        columns: dict[str, list[Any]] = {
            "time": [start + index for index in range(self.RECORDS)],
            "id": list(range(first, first + self.RECORDS)),
            "value": [identity / 4 for identity in range(first, first + self.RECORDS)],
            "host": [f"host-{index % 7}" for index in range(self.RECORDS)],
            "pad": ["x" * 380] * self.RECORDS,
        }
        kind = number % len(TYPES)
        path = f"/api/v1/ingest/m{number % 3 % 2}?types=value:f64" if kind < 2 else f"/api/v1/ingest/m{number % 3 % 2}"
        headers = {"x-arc-database": self.DATABASES[number % 5 % 2], "Content-Type": TYPES[kind]}
        return request_bytes("POST", path, _encode(kind, columns), headers)


def _encode(kind: int, columns: dict[str, list[Any]]) -> bytes:
    if kind == 0:
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return "\n".join(map(json.dumps, rows)).encode()
    if kind == 1:
        lines = [",".join(columns), *(",".join(map(str, values)) for values in zip(*columns.values(), strict=True))]
        return "\n".join(lines).encode()
    table = pa.table(columns)
    table = table.set_column(0, "time", table["time"].cast(pa.timestamp("s")))
    sink = pa.BufferOutputStream()
    if kind == 2:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, sink)
    written: bytes = sink.getvalue().to_pybytes()
    return written
