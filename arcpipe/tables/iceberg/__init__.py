"""Iceberg tables, by pyiceberg, but for its retry, which may commit twice, and its expiry, which deletes no files.

- `catalogue` finds tables and tries commits: SQLite or PostgreSQL (`sql_catalogue`), REST, Glue.
- `change` stages one change and attempts it: `manifests`, `data_files`, `types`.
- `layout` says how new tables are made, and which others are taken.
- `spread` lets several threads commit, to different tables of a remote catalogue.
- `maintain` merges, expires and deletes.
"""

from __future__ import annotations

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables.base import AT_ONCE, TableFormat
from arcpipe.tables.iceberg.spread import SpreadTables
from arcpipe.tables.iceberg.table import IcebergTables


def open_iceberg(tables: Tables, storage: Storage, wal_dir: str) -> TableFormat:
    """Open the Iceberg tables of a store and its catalogue. Does no I/O; the caller closes it."""
    if tables.iceberg.catalog == "sqlite":  # a local disk, where commits do not wait for anybody
        return IcebergTables(tables, storage, wal_dir)
    return SpreadTables(lambda: IcebergTables(tables, storage, wal_dir, kept=1 / AT_ONCE))
