"""Read the tables of a server on a local lake as others do: two readers each, which have to agree."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from deltalake import DeltaTable

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import TablesIceberg
from tests.support.iceberg import World
from tests.support.tables import Lake


def numbers_in(
    format_name: str, lake: Path, wal: Path, measurement: str = "cpu", database: str = "default"
) -> list[int]:
    """Return the values of the column `n` of a table, sorted; empty without a table."""
    if format_name == "delta":
        return _in_delta(lake / database / measurement)
    world = iceberg_of(lake, wal)
    table = database, measurement
    if not (wal / "tables" / "iceberg.db").exists() or not world.catalogue().table_exists(world.identifier(table)):
        return []
    return world.numbers(table)


def iceberg_of(lake: Path, wal: Path) -> World:
    """Return the tables of a server whose catalogue is SQLite's."""
    uri = f"sqlite:///{wal}/tables/iceberg.db"
    return World(Lake(Storage(url=f"file://{lake}"), wal, None), TablesIceberg(), {"uri": uri})


def _in_delta(root: Path) -> list[int]:
    if not list(root.glob("_delta_log/*.json")):
        return []
    table = DeltaTable(str(root))
    first = sorted(table.to_pyarrow_table(columns=["n"])["n"].to_pylist())
    second = sorted(pl.scan_delta(str(root), version=table.version()).select("n").collect()["n"].to_list())
    assert first == second
    return first
