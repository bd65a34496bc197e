"""A small lake as an uploader of this or another node makes it, and a compactor that works on it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from arcpipe.config.settings import Parquet
from arcpipe.lake.file_schema import ROLE, TIME_TYPE, file_metadata, file_order
from arcpipe.lake.keys import Hidden, Layout, Partition
from arcpipe.lake.parquet_file import ParquetFile, Special
from arcpipe.lake.spool import SpoolMemory

HOUR_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z, a closed hour."""
NODE = "0123456789ab"
OTHER_NODE = "ba9876543210"

_TYPES: dict[type, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def table_of(rows: Sequence[dict[str, Any]], tags: Sequence[str] = ("host",), **types: pa.DataType) -> pa.Table:
    """Make a table as the uploader does: sorted by time, stable. `time` is in µs since the hour."""
    rows = sorted(rows, key=lambda row: row["time"])
    names = dict.fromkeys(name for row in rows for name in row)
    fields = []
    for name in names:
        value = next((row[name] for row in rows if row.get(name) is not None), None)
        type_ = TIME_TYPE if name == "time" else types.get(name, _TYPES.get(type(value), pa.float64()))
        role = b"time" if name in ("time", "time_ns") else b"tag" if name in tags else b"field"
        fields.append(pa.field(name, type_, metadata={ROLE: role}))
    fields.sort(key=file_order)
    columns = []
    for field in fields:
        values: list[Any] = [row.get(field.name) for row in rows]
        if field.name == "time":
            columns.append(pa.array([HOUR_US + value for value in values], pa.int64()).cast(TIME_TYPE))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=pa.schema(fields))


def file_bytes(
    table: pa.Table, directory: Path, database: str = "db", measurement: str = "m", batch: str = "b", **parquet: Any
) -> bytes:
    """Write a table as the uploader writes it."""
    schema = table.schema.with_metadata(file_metadata(database, measurement, batch))
    memory = SpoolMemory(directory, 1 << 30, 1 << 30)
    file = ParquetFile(Parquet(**parquet), memory, schema, table["time"][0].value, table, Special(), False)
    file.append(table)
    spool = file.finish()
    data = bytes(spool.read_at(0, spool.size))
    spool.close()
    return data


def key_of(  # noqa: PLR0913 (what a key is made of)
    number: int,
    *,
    node: str = NODE,
    boot: int = 1,
    file: int = 0,
    layout: Layout = "arc",
    database: str = "db",
    measurement: str = "m",
    hour_us: int = HOUR_US,
    hidden: Hidden = "._",
) -> str:
    """Name a file of batch `number`."""
    batch = f"{node}-20260101T0000{number % 60:02}-{boot}.{number}-{number:08x}"
    return Partition(database, measurement, hour_us).key(layout, hour_us, batch, file, hidden)


def put(root: Path, key: str, data: bytes, age_seconds: float = 3600.0) -> Path:
    """Make an object of a local store, as old as it has to be."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def make_wal(directory: Path, node: str = NODE) -> Path:
    """Make a WAL directory in which nothing waits."""
    wal = directory / "wal"
    for folder in ("batches", "spool", "quarantine", "free"):
        (wal / folder).mkdir(parents=True, exist_ok=True)
    (wal / "node.json").write_text(json.dumps({"node": node, "boot": 1}))
    return wal
