"""The free pool: retired segments below `free/`, ready to be written over."""

from __future__ import annotations

import os
import re

from arcpipe.disk import Disk
from arcpipe.wal.directory import ACTIVE, WALDirectory

_FREE_NAME = re.compile(r"(\d{20})-.+\.wal\Z")
# A file that a worker has taken, or makes anew, until it is in service.
_UNFINISHED_NAME = re.compile(r"(?:claimed|new)-(\d+)-")


class FreePool:
    """Retired segments below `free/`, named by the last timestamp that they ever held.

    Processes share it without a lock: taking a file is a rename, and only one of two renames finds it. Whatever else is
    in the folder, such as `lost+found` or a file of another name, is left alone.
    """

    def __init__(self, directory: WALDirectory, limit: int, max_size_bytes: int | None = None) -> None:
        """
        Args:
            limit: files that the pool holds at most.
            max_size_bytes: size above which a file is cut: one large entry must not make it large for ever.
        """
        self._directory = directory
        self._limit = limit
        self._max_size_bytes = max_size_bytes

    def take(self, slot: int, below_us: int) -> str | None:
        """Claim a file for `slot` to write over whose last timestamp (µs) lies below that. None if there is none.

        Others are too young: writing over them would mean timestamps that run ahead of the clock.
        """
        for name in self._names():
            match = _FREE_NAME.match(name)
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
            False if there is no place for it, or if one large entry made it grow: then its space is needed more. It is
            not cut here, as a power cut could take the new name back and leave the cut.
        """
        if len(self._names()) >= self._limit or self._is_oversize(path):
            return False
        stem = os.path.basename(path).split(".")[0]
        target = os.path.join(self._directory.free, f"{last_timestamp_us:020d}-{stem}{ACTIVE}")
        self._directory.disk.rename(path, target)
        return True

    def give_back(self) -> None:
        """Remove the files that nobody has taken yet: their space is needed more."""
        for name in self._names():
            if _FREE_NAME.match(name):
                self._directory.disk.unlink(os.path.join(self._directory.free, name))

    def clear(self, slot: int | None = None) -> None:
        """Empty the pool; with a slot, remove only what a worker of that slot left half-made."""
        for name in self._names():
            match = _UNFINISHED_NAME.match(name)
            if slot is None or (match is not None and int(match[1]) == slot):
                self._directory.disk.unlink(os.path.join(self._directory.free, name))

    def _names(self) -> list[str]:
        """List the regular files with a name of ours, those of the pool in the order of their timestamps."""
        with os.scandir(self._directory.free) as entries:
            return sorted(
                entry.name
                for entry in entries
                if (_FREE_NAME.match(entry.name) or _UNFINISHED_NAME.match(entry.name))
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
