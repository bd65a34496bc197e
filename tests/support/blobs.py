"""Blobs for the tests of stores."""

from __future__ import annotations

import os
from pathlib import Path


class FileBlob:
    """A blob in a file, as an uploader that spools has it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        return self._path.stat().st_size

    def read_at(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)
