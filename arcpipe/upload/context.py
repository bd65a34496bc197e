"""Settings and state that all tries of an uploader share."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import msgspec

from arcpipe.config.settings import Parquet, Settings
from arcpipe.lake.spool import SpoolMemory
from arcpipe.storage import ObjectStore
from arcpipe.upload.key_window import KeyWindow
from arcpipe.upload.retry import Retry
from arcpipe.upload.schema import SchemaRegistry
from arcpipe.wal.directory import WALDirectory

# Largest file on a full disk, in MB by the number of tries: a finished one has to wait in memory.
_FULL_DISK_FILE_MB: Final = (8, 2, 1)


class Context(NamedTuple):
    """Settings and state that all tries of an uploader share."""

    settings: Settings
    directory: WALDirectory
    block: memoryview
    store: ObjectStore
    registry: SchemaRegistry
    keys: KeyWindow
    retry: Retry
    slots: asyncio.Semaphore  # bounds the requests to the store that run at once
    spool: SpoolMemory  # bounds the finished bytes in memory

    def parquet(self, full_disk: int = 0) -> Parquet:
        """Return the settings of files: smaller ones where `full_disk` tries found the disk full."""
        parquet = self.settings.parquet
        if not full_disk:
            return parquet
        most = _FULL_DISK_FILE_MB[min(full_disk, len(_FULL_DISK_FILE_MB)) - 1]
        return msgspec.structs.replace(parquet, max_file_mb=min(parquet.max_file_mb, most))
