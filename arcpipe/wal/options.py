"""The settings of a WAL writer."""

from __future__ import annotations

from typing import Literal

import msgspec

from arcpipe.units import MB

SyncMode = Literal["fsync", "fdatasync", "async", "off"]


class WALOptions(msgspec.Struct, frozen=True):
    """Settings `wal.*` and `flush.*` that a writer needs."""

    sync_mode: SyncMode = "fdatasync"
    async_interval_seconds: float = 1.0
    max_size_bytes: int = 100 * MB
    max_age_seconds: float = 3600.0
    flush_max_records: int = 1_000_000
    flush_max_age_seconds: float = 5.0
    recycle: bool = True
    free_segments: int = 6
