"""Delta tables: the log of each table is written here, and its checkpoints by deltalake.

paths        where a table is, and how its log names files          pure
columns      the columns of files against those of the table         pure
stats        the statistics of a file, from its footer               pure
state        what a commit needs of a table; which ones are refused  pure
actions      the lines of a commit                                   pure
log          reading and adding commits: one conditional put
checkpoint   reading checkpoints; checkpoints: making them
files        the files of a version
maintain     the upkeep
tables       TableFormat
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
