"""Delta tables: the log of each table is written here, and its checkpoints by deltalake.

- Pure: `paths` (where a table is, and how its log names files), `columns` (of files against those of the table),
  `stats` (of a file, from its footer), `state` (what a commit needs; which tables are refused), `actions` (its lines).
- `log` reads commits, and adds one by a conditional put. `checkpoint` reads checkpoints, `checkpoints` makes them.
- `files` has the files of a version, `maintain` the upkeep, and `tables` is the `TableFormat`.
"""

from __future__ import annotations

import importlib.util

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables.base import TableFormat
from arcpipe.tables.delta.tables import DeltaTables


def open_delta(tables: Tables, storage: Storage) -> TableFormat:
    """Open the Delta tables of a store. Does no I/O; the caller closes it.

    Raises:
        ImportError: deltalake is not installed. It is imported later, at the first checkpoint.
    """
    if importlib.util.find_spec("deltalake") is None:
        raise ImportError("No module named 'deltalake'")
    return DeltaTables(tables, storage)
