"""A `Disk` that does what it is told and writes down what that was.

Knows nothing of logs: what the operations mean for a power cut is `power_cut`'s business.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from arcpipe.disk import Buffer, Disk


class Create(NamedTuple):
    path: str
    file: int


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    file: int


class Rename(NamedTuple):
    source: str
    target: str


class Unlink(NamedTuple):
    path: str


class MakeDirectory(NamedTuple):
    path: str


class SyncDirectory(NamedTuple):
    path: str


class Note(NamedTuple):
    """No operation: something that the world outside learned at this moment."""

    kind: str
    value: Any


Operation = Create | Write | Truncate | Sync | Rename | Unlink | MakeDirectory | SyncDirectory | Note

# Files by path, directories as None; paths are relative to the recorder's base.
Image = dict[str, bytes | None]


class RecordingDisk(Disk):
    """Performs and records every operation below `base`, one at a time, in the order in which they took effect.

    Files are known by a number that stays when their names change. `before` is called ahead of each operation, in
    its thread: a schedule may hold it there.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.log: list[Operation] = []
        self.initial: Image = read_image(base)
        self.initial_files: dict[str, int] = {}
        self.before: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._file_of_path: dict[str, int] = {}
        self._file_of_fd: dict[int, int] = {}
        self._files = 0
        for path, content in self.initial.items():
            if content is not None:
                self.initial_files[path] = self._file_of_path[path] = self._new_file()

    def note(self, kind: str, value: Any) -> None:
        with self._lock:
            self.log.append(Note(kind, value))

    def close_all(self) -> None:
        """Closes what a killed writer left open."""
        for fd in list(self._file_of_fd):
            self.close(fd)

    def create(self, path: str) -> int:
        self.before()
        with self._lock:
            fd = super().create(path)
            file = self._new_file()
            self._file_of_path[self._relative(path)] = self._file_of_fd[fd] = file
            self.log.append(Create(self._relative(path), file))
            return fd

    def open(self, path: str) -> int:
        with self._lock:
            fd = super().open(path)
            self._file_of_fd[fd] = self._file_of_path[self._relative(path)]
            return fd

    def open_for_reading(self, path: str) -> int:
        with self._lock:
            fd = super().open_for_reading(path)
            self._file_of_fd[fd] = self._file_of_path.get(self._relative(path), -1)
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            if self._file_of_fd.pop(fd, None) is not None:
                super().close(fd)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        self.before()
        with self._lock:
            super().write(fd, buffers, offset)
            self.log.append(Write(self._file_of_fd[fd], offset, b"".join(buffers)))

    def fdatasync(self, fd: int) -> None:
        self.before()
        with self._lock:
            super().fdatasync(fd)
            self.log.append(Sync(self._file_of_fd[fd]))

    def fsync(self, fd: int) -> None:
        self.before()
        with self._lock:
            super().fsync(fd)
            self.log.append(Sync(self._file_of_fd[fd]))

    def truncate(self, fd: int, size: int) -> None:
        self.before()
        with self._lock:
            super().truncate(fd, size)
            self.log.append(Truncate(self._file_of_fd[fd], size))

    def rename(self, source: str, target: str) -> None:
        self.before()
        with self._lock:
            super().rename(source, target)
            names = self._relative(source), self._relative(target)
            self._file_of_path[names[1]] = self._file_of_path.pop(names[0])
            self.log.append(Rename(*names))

    def unlink(self, path: str) -> None:
        self.before()
        with self._lock:
            existed = os.path.exists(path)
            super().unlink(path)
            if existed:
                del self._file_of_path[self._relative(path)]
                self.log.append(Unlink(self._relative(path)))

    def make_directory(self, path: str) -> None:
        self.before()
        with self._lock:
            missing = []
            parent = path
            while not os.path.isdir(parent):
                missing.append(self._relative(parent))
                parent = os.path.dirname(parent)
            super().make_directory(path)
            self.log += map(MakeDirectory, reversed(missing))

    def sync_directory(self, path: str) -> None:
        self.before()
        with self._lock:
            super().sync_directory(path)
            self.log.append(SyncDirectory(self._relative(path)))

    def _new_file(self) -> int:
        self._files += 1
        return self._files

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.base)


def read_image(base: str) -> Image:
    """All files and directories below `base`."""
    image: Image = {}
    for folder, folders, files in os.walk(base):
        for name in folders:
            image[os.path.relpath(os.path.join(folder, name), base)] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                image[os.path.relpath(path, base)] = file.read()
    return image


def write_image(image: Image, base: str) -> None:
    """Makes `base`, which is empty, hold exactly this."""
    for path in sorted(image):  # a directory comes before what is in it
        content = image[path]
        target = os.path.join(base, path)
        if content is None:
            os.mkdir(target)
        else:
            with open(target, "wb") as file:
                file.write(content)
