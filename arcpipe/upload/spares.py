"""Spare files in `batches/`, so that a full disk does not keep a batch from being written down.

A batch frees the space of its segments, but first needs some for its manifest and its journal. With tables it also
needs some for its commit file and the ledger. The spares hold zeros, so their blocks are allocated. On a full disk they
are overwritten in place and renamed, which allocates nothing.
"""

from __future__ import annotations

import logging
import os
from threading import Lock
from typing import Final, Literal

from arcpipe import durable
from arcpipe.units import KB, MB
from arcpipe.wal.directory import SPARE, WALDirectory

log = logging.getLogger(__name__)

Use = Literal["manifest", "journal", "commit", "ledger"]
# Names and sizes: room for a manifest of 1,000 segments, and for a journal of 6,000 keys.
SPARES: Final[dict[Use, tuple[str, int]]] = {"manifest": (SPARE, 64 * KB), "journal": ("spare-2", MB)}
# With tables as well: room for a commit file of 6,000 keys, or of ten times as many once it is compressed; and for the
# ledger, whose size has a bound.
SPARES_OF_TABLES: Final[dict[Use, tuple[str, int]]] = {"commit": ("spare-3", MB), "ledger": ("spare-4", 64 * KB)}


class Spares:
    """The spare files of one WAL directory."""

    def __init__(self, directory: WALDirectory, with_tables: bool = False) -> None:
        self._directory = directory
        self._sizes = SPARES | SPARES_OF_TABLES if with_tables else SPARES
        self._lock = Lock()  # the next batch is planned while one is handed over in a thread
        self._missing: set[Use] = set(self._sizes)  # missing, or not looked for yet

    def make(self) -> None:
        """Make missing spares while there is space. Cheap if none is missing; the next call retries."""
        with self._lock:
            self._make_missing()

    def _make_missing(self) -> None:
        disk = self._directory.disk
        for use in sorted(self._missing):
            name, size = self._sizes[use]
            path = os.path.join(self._directory.batches, name)
            try:
                if disk.size(path) != size:
                    self._make(path, size)
            except OSError as error:
                disk.unlink(f"{path}.tmp")
                log.debug("cannot make %s: %s", path, error)
            else:
                self._missing.discard(use)

    def _make(self, path: str, size: int) -> None:
        disk = self._directory.disk
        temporary = f"{path}.tmp"
        disk.unlink(temporary)
        fd = disk.create(temporary)
        try:
            disk.write(fd, [bytes(size)], 0)
            disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.rename(temporary, path)
        disk.sync_directory(self._directory.batches)

    def size_of(self, use: Use) -> int:
        """Return the size of a spare in bytes."""
        return self._sizes[use][1]

    def use(self, use: Use, path: str, data: bytes, error: OSError) -> int:
        """Turn a spare into the file `path`, durably and atomically, without allocating anything.

        A manifest is cut to its length; a journal keeps its zeros, for later frames.

        Args:
            error: the full disk's error; raised where the spare is missing or too small.

        Returns:
            The bytes of the file.
        """
        with self._lock:
            return self._use(use, path, data, error)

    def _use(self, use: Use, path: str, data: bytes, error: OSError) -> int:
        disk = self._directory.disk
        name, size = self._sizes[use]
        spare = os.path.join(self._directory.batches, name)
        disk.unlink(f"{path}.tmp")
        if len(data) > size or disk.size(spare) != size:
            raise error
        self._missing.add(use)
        if use == "journal":
            data = data.ljust(size, b"\0")
        durable.write_over(disk, spare, path, data)
        log.warning("the disk of %s is full: %s is written over a spare file", self._directory.path, path)
        return len(data)
