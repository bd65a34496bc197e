"""The settings and bounds that all files of a batch share."""

from __future__ import annotations

from typing import NamedTuple

from arcpipe.config.settings import Parquet
from arcpipe.lake.keys import Hidden, Layout
from arcpipe.lake.open_files import OPEN_FILES, OpenFiles
from arcpipe.lake.parquet_file import HUGE_BYTES
from arcpipe.lake.spool import SpoolMemory
from arcpipe.units import MB
from arcpipe.upload.table_schema import ColumnRules


class FileSettings(NamedTuple):
    """Settings and bounds that all files of a batch share."""

    batch_id: str
    layout: Layout
    parquet: Parquet
    memory: SpoolMemory
    open_files: OpenFiles = OPEN_FILES
    huge_bytes: int = HUGE_BYTES
    columns: ColumnRules = ColumnRules()
    hidden: Hidden = "._"

    @property
    def max_bytes(self) -> int:
        return self.parquet.max_file_mb * MB
