"""Reading in another process, for readers that end theirs when they meet a file that they do not understand."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.readers.adapters import READERS
from tests.readers.model import Row


def _read(name: str, folder: Path) -> list[Row]:
    return READERS[name].read(folder)


class Isolated:
    """A process that reads, and a new one after each that ended."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def read(self, name: str, folder: Path) -> list[Row]:
        """Read a folder by the name of the reader; BrokenProcessPool if that ended the process."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(_read, name, folder).result()
        except BrokenProcessPool:
            self.close()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
