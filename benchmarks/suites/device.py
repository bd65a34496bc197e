"""The speed of the disk alone: a bare loop of `pwritev` and sync, without arcpipe's code."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.results.model import DeviceLimit

SYNCS: Final[dict[str, Callable[[int], None]]] = {"fdatasync": os.fdatasync, "fsync": os.fsync}
_FILE_BYTES: Final = 100 << 20  # the server's segments have this size
_BLOCK: Final = os.urandom(1 << 20)


class BareWAL:
    """Groups written one after the other, in file after file, each group synced."""

    def __init__(
        self,
        paths: Iterable[Path],
        file_bytes: int,
        sync: Callable[[int], None],
        sync_interval_seconds: float = 0.0,
    ) -> None:
        """Prepare the loop.

        Args:
            paths: The files to write, old or new.
            file_bytes: Bytes of a file, after which the next one is written.
            sync: `os.fdatasync` or `os.fsync`.
            sync_interval_seconds: Least time between two syncs; 0 syncs each group.
        """
        self._paths = iter(paths)
        self._file_bytes = file_bytes
        self._sync = sync
        self._interval = sync_interval_seconds
        self._synced = time.perf_counter()
        self._fd = -1
        self._offset = file_bytes

    def write(self, buffers: list[bytes], size: int) -> None:
        """Write one group of `size` bytes, and sync it."""
        if self._offset + size > self._file_bytes:
            self.close()
            self._fd = os.open(next(self._paths), os.O_RDWR | os.O_CREAT)
            self._offset = 0
        os.pwritev(self._fd, buffers, self._offset)
        self._offset += size
        if not self._interval:
            self._sync(self._fd)
        elif time.perf_counter() - self._synced > self._interval:
            self._sync(self._fd)
            self._synced = time.perf_counter()

    def close(self) -> None:
        """Sync and close the present file."""
        if self._fd >= 0:
            self._sync(self._fd)
            os.close(self._fd)
            self._fd = -1


def old_files(directory: Path, count: int, file_bytes: int) -> list[Path]:
    """Make files of which every block was written and synced before."""
    paths = [directory / f"old-{number}" for number in range(count)]
    for path in paths:
        with path.open("wb") as file:
            for start in range(0, file_bytes, len(_BLOCK)):
                file.write(_BLOCK[: file_bytes - start])
            file.flush()
            os.fsync(file.fileno())
    return paths


def device_limit(directory: Path, sync: str, group_bytes: int, writers: int, seconds: float) -> DeviceLimit:
    """Measure the disk that holds `directory`, and leave nothing there.

    Args:
        directory: A directory on the disk.
        sync: "fdatasync" or "fsync".
        group_bytes: Bytes of a group.
        writers: Loops at a time, each in files of its own.
        seconds: Time for writing over, and again for appending.
    """
    file_bytes = max(_FILE_BYTES, group_bytes)
    folder = Path(tempfile.mkdtemp(prefix="device-", dir=directory))
    try:
        old = old_files(folder, writers, file_bytes)
        overwriting = _bytes_per_second(
            [itertools.repeat(path) for path in old], file_bytes, sync, group_bytes, seconds
        )
        new = [(folder / f"new-{writer}-{number}" for number in itertools.count()) for writer in range(writers)]
        appending = _bytes_per_second(new, file_bytes, sync, group_bytes, seconds)
    finally:
        shutil.rmtree(folder)
    return DeviceLimit(sync, writers, group_bytes, overwriting, appending)


def _bytes_per_second(
    paths: Sequence[Iterator[Path]], file_bytes: int, sync: str, group_bytes: int, seconds: float
) -> float:
    """Return the bytes per second of all loops together."""
    rates: list[float] = []

    def loop(own: Iterator[Path]) -> None:
        bare = BareWAL(own, file_bytes, SYNCS[sync])
        buffers = [(_BLOCK * (group_bytes // len(_BLOCK) + 1))[:group_bytes]]
        written = 0
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            bare.write(buffers, group_bytes)
            written += group_bytes
        rates.append(written / elapsed)
        bare.close()

    threads = [threading.Thread(target=loop, args=(own,)) for own in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)
