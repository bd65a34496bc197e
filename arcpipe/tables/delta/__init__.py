"""Delta tables."""

from __future__ import annotations

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables.base import TableFormat


def open_delta(tables: Tables, storage: Storage) -> TableFormat:
    """Open the Delta tables of a store. Does no I/O; the caller closes it."""
    raise NotImplementedError
