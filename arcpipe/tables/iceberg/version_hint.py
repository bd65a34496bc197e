"""`version-hint.text`: lets readers without a catalogue find a table's newest metadata, as DuckDB's `iceberg_scan`.

It names the version without its ending: for `00012-….metadata.json` it has `00012-…`. It is written after the commit,
so it may lag behind, after a power cut by more than one; what it names was committed.
"""

from __future__ import annotations

import os
from typing import Final

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.tables.iceberg.file_io import path_of

HINT: Final = "version-hint.text"
SUFFIX: Final = ".metadata.json"


def write_hint(metadata_location: str) -> None:
    """Let the hint of a local table name this metadata.

    Raises:
        OSError: it cannot be written.
    """
    folder, name = os.path.split(path_of(metadata_location))
    hint = name.removesuffix(SUFFIX).encode()
    durable.replace(Disk(), os.path.join(folder, HINT), hint, sync_directory=False)
