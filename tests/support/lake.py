"""The Parquet files of a store on disk, as DuckDB reads them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import duckdb


def lake_files(path: Path, database: str = "*", measurement: str = "*") -> list[Path]:
    """List the Parquet files of a store on disk, without dead letters and checkpoints of Delta tables."""
    found = path.glob(f"{database}/{measurement}/**/*.parquet")
    return sorted(file for file in found if file.parent.name != "_delta_log")


@functools.cache
def shared_database() -> duckdb.DuckDBPyConnection:
    """Make the one database: that takes ten times as long as to read a small lake. It caches no file."""
    return duckdb.connect(config={"threads": 1, "enable_external_file_cache": False})


def lake_rows(path: Path, database: str = "*", measurement: str = "*") -> list[dict[str, Any]]:
    """Read every row with DuckDB, ordered by time; `time` in µs since the epoch."""
    files = lake_files(path, database, measurement)
    if not files:
        return []
    with shared_database().cursor() as connection:
        cursor = connection.execute(
            "SELECT * REPLACE (epoch_us(time) AS time) "
            "FROM read_parquet(?, union_by_name = true, hive_partitioning = false) ORDER BY time",
            [[str(file) for file in files]],
        )
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def lake_types(path: Path, database: str = "*", measurement: str = "*") -> dict[str, str]:
    """Return DuckDB's type of each column."""
    with shared_database().cursor() as connection:
        described = connection.execute(
            "DESCRIBE SELECT * FROM read_parquet(?, union_by_name = true, hive_partitioning = false)",
            [[str(file) for file in lake_files(path, database, measurement)]],
        ).fetchall()
    return {row[0]: row[1] for row in described}


def numbers(path: Path) -> list[int]:
    """Return the column `n` of all rows, sorted: the tests number their records in it."""
    return sorted(row["n"] for row in lake_rows(path))
