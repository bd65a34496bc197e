"""Iceberg tables."""

from __future__ import annotations

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables.base import TableFormat


def open_iceberg(tables: Tables, storage: Storage, wal_dir: str) -> TableFormat:
    """Open the Iceberg tables of a store and its catalogue. Does no I/O; the caller closes it."""
    raise NotImplementedError
