"""Rows that wait on disk, one unlinked file for each range of tags and time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from arcpipe.compaction.sorting import Splitters
from arcpipe.compaction.tables import compacted, taken, together

_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_LEAST_ROWS: Final = 8_192  # on average, of the pieces that are written as they are
_SMALL: Final = 0.1  # of the bytes of a text column: a dictionary that is written as it is


class SpillFile:
    """Tables of one form, in the order in which they were added. Raises OSError where the disk is full."""

    def __init__(self, directory: str | os.PathLike[str], form: pa.Schema) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by close)
        self._form = form
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._sink: pa.NativeFile | None = None
        self.nbytes = 0  # in memory
        self.rows = 0

    @property
    def _path(self) -> str:
        return f"/proc/self/fd/{self._file.fileno()}"

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            self._sink = pa.OSFile(self._path, "wb")
            self._writer = pa.ipc.new_stream(self._sink, self._form, options=_OPTIONS)
        self.nbytes += table.nbytes
        self.rows += len(table)
        self._writer.write_table(table)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the tables; may be done again. No more are added."""
        self._finish()
        if self.nbytes:
            with pa.OSFile(self._path, "rb") as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def close(self) -> None:
        """Drop the file."""
        try:
            self._finish()
        finally:
            self._file.close()


class Ranges:
    """The spill files of all ranges. Small pieces are collected first, up to `most_bytes` of all ranges together."""

    def __init__(
        self, directory: str | os.PathLike[str], form: pa.Schema, splitters: Splitters, most_bytes: int
    ) -> None:
        self._splitters = splitters
        self._most_bytes = most_bytes
        self._collected: list[list[pa.Table]] = [[] for _ in range(splitters.parts)]
        self._bytes = 0
        self.files = [SpillFile(directory, form) for _ in range(splitters.parts)]

    def add(self, table: pa.Table) -> None:
        """Give each row to its range. The rows of a range keep their order."""
        parts = self._splitters.parts_of(table)
        index = np.argsort(parts, kind="stable")
        sorted_table = taken(table, index)
        ends = np.searchsorted(parts[index], np.arange(self._splitters.parts), side="right").tolist()
        start = 0
        for part, end in enumerate(ends):
            if end > start:
                self._collected[part].append(sorted_table.slice(start, end - start))
            start = end
        self._bytes += table.nbytes
        if self._bytes > self._most_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        for collected, file in zip(self._collected, self.files, strict=True):
            if collected:
                # Without the dictionaries of all ranges: or each would be as large as all of them together.
                file.add(compacted(together(collected, _LEAST_ROWS), _SMALL))
        self._bytes = 0

    def close(self) -> None:
        for file in self.files:
            file.close()
