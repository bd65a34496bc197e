"""Table formats: what is uploaded becomes part of an Iceberg or a Delta table, exactly once.

    with closing(open_format(settings.tables, settings.storage, settings.wal.dir)) as tables:
        tables.check()
        tables.commit(("default", "cpu"), files, node, seq)

`base` has the protocol, and what a marker is. `iceberg/` and `delta/` are its two forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.errors import ConfigError
from arcpipe.tables.base import (
    Column,
    Committed,
    Conflict,
    Dropped,
    Maintained,
    NewFile,
    Older,
    Refused,
    TableError,
    TableFormat,
    TableName,
    Unavailable,
)

__all__ = [
    "Column",
    "Committed",
    "Conflict",
    "Dropped",
    "Maintained",
    "NewFile",
    "Older",
    "Refused",
    "TableError",
    "TableFormat",
    "TableName",
    "Unavailable",
    "open_format",
]


def open_format(tables: Tables, storage: Storage, wal_dir: str) -> TableFormat:
    """Open the tables that the settings ask for. Does no I/O; the caller closes it.

    The format's library is imported here: call it in the process that commits, after the fork.

    Args:
        wal_dir: `wal.dir`, which has the folder `tables` for what this node alone knows.

    Raises:
        ConfigError: the library is not installed, or the settings do not fit together.
    """
    match tables.format:
        case "iceberg":
            with _library("iceberg"):
                from arcpipe.tables.iceberg import open_iceberg
            return open_iceberg(tables, storage, wal_dir)
        case "delta":
            with _library("delta"):
                from arcpipe.tables.delta import open_delta
            return open_delta(tables, storage)
        case "none":
            raise ConfigError('tables.format is "none": there are no tables')


@contextmanager
def _library(extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f'tables.format = "{extra}" needs a library that is not installed ({error}): '
            f"install it with `pip install 'arcpipe[{extra}]'`"
        ) from error
