"""Recover a WAL directory by hand, without a server: read its records, and archive its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from arcpipe.disk import Disk
from arcpipe.errors import BadPayload, NotAWAL
from arcpipe.wal.directory import ACTIVE, SEALED, SegmentFile, WALDirectory
from arcpipe.wal.reader import SegmentScan, records_of
from arcpipe.wal.recovery import archive, remove_recovered

log = logging.getLogger(__name__)


class WALRecovery:
    """Recovery by hand, without a server.

    recovery = WALRecovery("data/wal")
    recovery.recover(lambda batch: print(len(batch), "records"))
    recovery.cleanup_old_wals(max_age_seconds=86400)
    """

    def __init__(self, directory: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self._directory = WALDirectory(directory, disk)

    def recover(self, callback: Callable[[list[dict[str, Any]]], None]) -> int:
        """Call back with each batch (a list of record dicts) of every active or sealed segment, oldest first.

        A file that was read to its end is renamed to `….wal.recovered`, damaged or not. A file that cannot be read
        whole gives no batch, keeps its name and is logged. The directory is locked meanwhile.

        Returns:
            The number of batches.

        Raises:
            InstanceLocked: a server is using the directory.
            OSError: a file could be read once, but not a second time; it keeps its name.
            Exception: the callback raised it; the present file stays as it was.
        """
        self._directory.lock(0.0)
        try:
            return sum(self._recover_file(file, callback) for file in self._files())
        finally:
            self._directory.unlock()

    def cleanup_old_wals(self, max_age_seconds: float = 86400) -> int:
        """Remove `….wal.recovered` files older than this, and return their number."""
        return remove_recovered(self._directory, max_age_seconds)[0]

    def _files(self) -> Iterable[SegmentFile]:
        return sorted(
            [*self._directory.segments(ACTIVE), *self._directory.segments(SEALED)], key=lambda file: file.name
        )

    def _recover_file(self, file: SegmentFile, callback: Callable[[list[dict[str, Any]]], None]) -> int:
        try:
            for _ in SegmentScan(file.path, disk=self._directory.disk):
                pass  # a file that cannot be read whole is not begun: the next call would give its batches twice
            scan = SegmentScan(file.path, disk=self._directory.disk)
        except NotAWAL as error:
            log.error("%s; left where it is", error)
            return 0
        except OSError as error:
            log.error("WAL file %s cannot be read: %s; left where it is", file.filename, error)
            return 0
        batches = 0
        for entry in scan:
            try:
                batch = records_of(entry)
            except BadPayload as error:
                log.error("%s: entry at offset %d holds no records: %s", file.filename, entry.offset, error)
                continue
            callback(batch)
            batches += 1
        for damage in scan.report.damage:
            log.error("WAL file %s: %s at offset %d", file.filename, damage.reason, damage.offset)
        archive(self._directory, file.path)
        self._directory.disk.sync_directory(self._directory.path)
        return batches
