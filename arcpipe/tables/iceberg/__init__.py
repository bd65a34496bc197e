"""Iceberg tables, by pyiceberg, but for its retry, which may commit twice, and its expiry, which deletes no files.

- `catalogue` finds tables and tries commits: SQLite or PostgreSQL (`sql_catalogue`), REST, Glue.
- `change` stages one change and attempts it: `manifests`, `data_files`, `types`.
- `layout` says how new tables are made, and which others are taken.
- `maintain` merges, expires and deletes.
"""

from __future__ import annotations

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables.base import TableFormat
from arcpipe.tables.iceberg.table import IcebergTables


def open_iceberg(tables: Tables, storage: Storage, wal_dir: str) -> TableFormat:
    """Open the Iceberg tables of a store and its catalogue. Does no I/O; the caller closes it."""
    return IcebergTables(tables, storage, wal_dir)
