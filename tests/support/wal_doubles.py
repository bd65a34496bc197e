"""Doubles of the clock and the disk, for tests that must hold them. Everything else is the real thing."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from arcpipe.disk import Buffer, Disk


class Clock:
    """Stands in for the module `time`: moves a little with each look, and as the test says."""

    def __init__(self) -> None:
        self.now_us = 1_760_000_000_000_000
        self.monotonic_us = 1_000_000
        self.perf_counter = time.perf_counter
        self.sleep = time.sleep

    def time(self) -> float:
        return self.now_us / 1e6

    def time_ns(self) -> int:
        self.now_us += 7
        return self.now_us * 1000

    def monotonic(self) -> float:
        self.monotonic_us += 7
        return self.monotonic_us / 1e6

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += int(seconds * 1e6)
        self.monotonic_us += int(seconds * 1e6)


class FaultyDisk(Disk):
    """The real disk, except where `fault` and `fault_after` say otherwise.

    They are asked before and after each operation, with its name and the path that its file was opened with. Raising in
    the former is a failure before anything happened, in the latter one of something that did happen. `calls` are the
    operations in order.
    """

    def __init__(self) -> None:
        self.fault: Callable[[str, str], object] = lambda operation, path: None
        self.fault_after: Callable[[str, str], object] = lambda operation, path: None
        self.calls: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def _doing(self, operation: str, path: str) -> Iterator[None]:
        with self._lock:
            self.calls.append((operation, os.path.basename(path)))
        self.fault(operation, path)
        yield
        self.fault_after(operation, path)

    def _opened(self, fd: int, path: str) -> int:
        self._paths[fd] = path
        return fd

    def create(self, path: str) -> int:
        with self._doing("create", path):
            fd = super().create(path)
        return self._opened(fd, path)

    def open(self, path: str) -> int:
        with self._doing("open", path):
            fd = super().open(path)
        return self._opened(fd, path)

    def _pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._doing("write", self._paths.get(fd, "")):
            return super()._pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        with self._doing("fdatasync", self._paths.get(fd, "")):
            super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        with self._doing("fsync", self._paths.get(fd, "")):
            super().fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        with self._doing("truncate", self._paths.get(fd, "")):
            super().truncate(fd, size)

    def rename(self, source: str, target: str) -> None:
        with self._doing("rename", source):
            super().rename(source, target)

    def unlink(self, path: str) -> None:
        with self._doing("unlink", path):
            super().unlink(path)

    def make_directory(self, path: str, mode: int = 0o750) -> None:
        with self._doing("make_directory", path):
            super().make_directory(path, mode)

    def sync_directory(self, path: str) -> None:
        with self._doing("sync_directory", path):
            super().sync_directory(path)

    def count(self, operation: str) -> int:
        return sum(1 for called, _ in self.calls if called == operation)

    @contextmanager
    def failing(self, *operations: str, error: int = errno.EIO) -> Iterator[None]:
        """These operations fail as long as this lasts; all of them if none is named."""

        def fault(operation: str, path: str) -> None:
            if not operations or operation in operations:
                raise OSError(error, os.strerror(error), path)

        before, self.fault = self.fault, fault
        try:
            yield
        finally:
            self.fault = before


class HeldDisk(FaultyDisk):
    """A disk whose syncs of files wait until the test lets them go on."""

    def __init__(self) -> None:
        super().__init__()
        self.held = threading.Event()  # set while one waits
        self.go_on = threading.Event()
        self.go_on.set()

    def hold(self) -> None:
        self.held.clear()
        self.go_on.clear()

    def fdatasync(self, fd: int) -> None:
        if not self.go_on.is_set():
            self.held.set()
            assert self.go_on.wait(60)
        super().fdatasync(fd)


class WatchedLock:
    """Stands in for a lock, and tells that a thread waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.somebody_waits = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.somebody_waits.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class BadBlocks(FaultyDisk):
    """A disk that cannot read some bytes: of every file, or of those whose path holds `where`.

    Args:
        times: as often as this, then it can; None is for good.
    """

    def __init__(self, begin: int = 0, end: int = 1 << 62, where: str = "", times: int | None = None) -> None:
        super().__init__()
        self.begin, self.end, self.where, self.times = begin, end, where, times
        self.failed = 0

    def open_for_reading(self, path: str) -> int:
        return self._opened(super().open_for_reading(path), path)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._check(fd, length, offset)
        return super().read(fd, length, offset)

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        self._check(fd, len(buffer), offset)
        return super().read_into(fd, buffer, offset)

    def _check(self, fd: int, length: int, offset: int) -> None:
        is_bad = offset < self.end and offset + length > self.begin and self.where in self._paths.get(fd, "")
        if is_bad and (self.times is None or self.failed < self.times):
            self.failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
