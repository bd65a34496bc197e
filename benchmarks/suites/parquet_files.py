"""Count the records in Parquet files by their footers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

# Share of a core for looking for new Parquet files, of which there may be tens of thousands.
_LOOKING_SHARE: Final = 0.05


class ParquetFiles:
    """Counts rows in the footers of the Parquet files below a directory, each file once."""

    def __init__(self, root: Path) -> None:
        """Begin with no file below `root`."""
        self._root = root
        self._seen: set[str] = set()
        self._next_look = 0.0
        self.records = 0

    def update(self) -> int:
        """Look for new files, less often if that takes long; return the rows of all files seen."""
        started = time.perf_counter()
        if started >= self._next_look:
            self._look()
            now = time.perf_counter()
            self._next_look = now + (now - started) / _LOOKING_SHARE
        return self.records

    def _look(self) -> None:
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = os.path.join(folder, name)
                if name.endswith(".parquet") and path not in self._seen:
                    self._seen.add(path)
                    self.records += pq.read_metadata(path).num_rows
