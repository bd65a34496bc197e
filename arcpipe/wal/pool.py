"""The free pool: retired segments below `free/`, ready to be written over."""

from __future__ import annotations

import os
import re

from arcpipe.disk import Disk
from arcpipe.wal.directory import ACTIVE, WALDirectory

FREE_NAME = re.compile(r"(\d{20})-.+\.wal\Z")
# A file that a worker has taken or is making, until it is in service.
_UNFINISHED_NAME = re.compile(r"(?:claimed|new)-(\d+)-")


class FreePool:
    """Retired segments below `free/`, named by the highest timestamp that they ever held.

    Processes share it without a lock: a file is taken by a rename, and only one of two renames succeeds. Other things
    in the folder, such as `lost+found` or a file of another name, are left alone.
    """

    def __init__(self, directory: WALDirectory, limit: int, max_size_bytes: int | None = None) -> None:
        """Open the pool of a directory.

        Args:
            limit: the most files that the pool holds.
            max_size_bytes: larger files are cut to this size: one large entry must not make a file large for ever.
        """
        self._directory = directory
        self._limit = limit
        self._max_size_bytes = max_size_bytes

    def take(self, slot: int, below_us: int) -> str | None:
        """Claim a file for `slot` to write over; None if there is none.

        Args:
            below_us: take only files whose last timestamp is below this. With others, the timestamps of the new
                entries would have to run ahead of the clock.

        Raises:
            OSError: the file cannot be cut to size; it is removed.
        """
        for name in self._names():
            match = FREE_NAME.match(name)
            if match is None:
                continue
            if int(match[1]) >= below_us:  # and so are all that follow
                return None
            claimed = os.path.join(self._directory.free, f"claimed-{slot}-{name}")
            try:
                self._directory.disk.rename(os.path.join(self._directory.free, name), claimed)
            except FileNotFoundError:  # another worker was quicker
                continue
            try:
                self._cut_to_size(claimed)
            except OSError:
                self._directory.disk.unlink(claimed)
                raise
            return claimed
        return None

    def put(self, path: str, last_timestamp_us: int) -> bool:
        """Move an uploaded segment into the pool.

        Returns:
            False if the pool is full, or if one large entry made the file grow: then the caller removes it. It is not
            cut here, because a power cut could undo the rename and keep the cut.
        """
        if len(self._names()) >= self._limit or self._is_oversize(path):
            return False
        stem = os.path.basename(path).split(".")[0]
        target = os.path.join(self._directory.free, f"{last_timestamp_us:020d}-{stem}{ACTIVE}")
        self._directory.disk.rename(path, target)
        return True

    def give_back(self) -> None:
        """Remove the files that nobody has taken yet, to free their space."""
        for name in self._names():
            if FREE_NAME.match(name):
                self._directory.disk.unlink(os.path.join(self._directory.free, name))

    def clear(self, slot: int | None = None) -> None:
        """Empty the pool; with a slot, remove only the unfinished files of that slot's worker."""
        for name in self._names():
            match = _UNFINISHED_NAME.match(name)
            if slot is None or (match is not None and int(match[1]) == slot):
                self._directory.disk.unlink(os.path.join(self._directory.free, name))

    def _names(self) -> list[str]:
        """List the pool's regular files in the order of their timestamps, and the unfinished ones."""
        with self._directory.disk.scan(self._directory.free) as entries:
            return sorted(
                entry.name
                for entry in entries
                if (FREE_NAME.match(entry.name) or _UNFINISHED_NAME.match(entry.name))
                and entry.is_file(follow_symlinks=False)
            )

    def _is_oversize(self, path: str) -> bool:
        return self._max_size_bytes is not None and (self._directory.disk.size(path) or 0) > self._max_size_bytes

    def _cut_to_size(self, path: str) -> None:
        if self._max_size_bytes is None or not self._is_oversize(path):
            return
        disk: Disk = self._directory.disk
        fd = disk.open(path)
        try:
            disk.truncate(fd, self._max_size_bytes)
        finally:
            disk.close(fd)
