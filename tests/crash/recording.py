"""The disk of the crash tests: files in memory, which does what it is told, writes down what that was, and fails.

It stands behind the system calls (`system_calls`), so whatever arcpipe does below `base` is performed, recorded and
may fail here, by which way ever it is done. Knows nothing of logs: what the operations mean for a power cut is
`power_cut`'s business.

The page cache is the content that reads see; what a sync brought to the disk is kept apart from it. A sync that fails
leaves its pages clean, as Linux does: each is dropped from the cache, and then reads show what is on the disk, or it
stays there, perhaps without being on the disk; and the next sync succeeds without having written any of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

SECTOR = 512

_bases = itertools.count(1)


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


class FailedSync(NamedTuple):
    """A sync that failed: nothing of the file is dirty any more, and its reads show `content`."""

    file: int
    content: bytes


class Evicted(NamedTuple):
    """Clean pages left the page cache: reads show `content`, which is that of the disk."""

    file: int
    content: bytes


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


Operation = (
    Create | Write | Truncate | Sync | FailedSync | Evicted | Rename | Unlink | MakeDirectory | SyncDirectory | Note
)

# Files by path, directories as None; paths are relative to the disk's base.
Image = dict[str, bytes | None]

CHANGES = frozenset(
    {"create", "write", "fdatasync", "fsync", "truncate", "rename", "unlink", "make_directory", "sync_directory"}
)
READS = frozenset({"open", "read", "list", "stat"})


class Fault:
    """Operations that fail: of these kinds, from the one after the first `skip` on, `times` of them.

    Attributes:
        how: "before" anything happened; "after" it took effect; "short": the first write takes a part of its bytes.
        path: only where a path holds this text.
        sectors: only reads that touch one of these sectors of their file.
        struck: how often it has.
    """

    def __init__(
        self,
        kinds: frozenset[str],
        skip: int = 0,
        times: float = 1,
        how: Literal["before", "after", "short"] = "before",
        error: int = errno.EIO,
        path: str = "",
        sectors: range | None = None,
    ) -> None:
        self.kinds = kinds
        self.skip = skip
        self.times = times
        self.how = how
        self.error = error
        self.path = path
        self.sectors = sectors
        self.struck = 0

    def __repr__(self) -> str:
        what = "any change" if self.kinds == CHANGES else ", ".join(sorted(self.kinds))
        where = f" of {self.path}" if self.path else ""
        sectors = f" in sectors {self.sectors.start} to {self.sectors.stop - 1}" if self.sectors is not None else ""
        return (
            f"<{errno.errorcode[self.error]} {self.how} {what}{where}{sectors}, {self.times} times after {self.skip}>"
        )

    def strikes(self, kind: str, path: str, offset: int, length: int) -> bool:
        if kind not in self.kinds or self.path not in path or self.struck >= self.times:
            return False
        if self.sectors is not None:
            last = (offset + max(length, 1) - 1) // SECTOR
            if last < self.sectors.start or offset // SECTOR >= self.sectors.stop:
                return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.struck += 1
        return True

    def raise_it(self, path: str) -> None:
        raise OSError(self.error, os.strerror(self.error), path)


class File:
    """One file, whatever its names are."""

    __slots__ = ("content", "dirty", "links", "number", "on_disk", "size_changed")

    def __init__(self, number: int, content: bytes = b"") -> None:
        self.number = number
        self.content = bytearray(content)  # as reads see it
        self.on_disk = bytes(content)  # as the last sync left it, and the oldest of what failed ones left
        self.dirty: set[int] = set()  # sectors
        self.size_changed = False
        self.links = 1

    def touch(self, begin: int, end: int) -> None:
        self.dirty.update(range(begin // SECTOR, -(-end // SECTOR)))

    def reach_disk(self) -> None:
        """The dirty pages, and nothing else."""
        size = len(self.content)
        if not self.size_changed:  # or it did before a sync that failed
            size = min(size, max(len(self.on_disk), (max(self.dirty, default=-1) + 1) * SECTOR))
        disk = bytearray(self.on_disk[:size].ljust(size, b"\x00"))
        for sector in self.dirty:
            begin = sector * SECTOR
            disk[begin : begin + SECTOR] = self.content[begin : min(begin + SECTOR, size)]
        self.on_disk = bytes(disk)
        self.dirty.clear()
        self.size_changed = False

    def evict(self, sectors: set[int]) -> None:
        for sector in sectors:
            begin = sector * SECTOR
            end = min(begin + SECTOR, len(self.content))
            if begin < end:
                self.content[begin:end] = self.on_disk[begin:end].ljust(end - begin, b"\x00")


class Doing:
    """Around one operation of a disk: a class, as a generator would take a twentieth of a crash test's time."""

    __slots__ = ("_disk", "_fault", "_kind", "_length", "_offset", "_path", "_short")

    def __init__(self, disk: RecordingDisk, kind: str, path: str, offset: int, length: int) -> None:
        self._disk = disk
        self._kind = kind
        self._path = path
        self._offset = offset
        self._length = length

    def __enter__(self) -> Fault | None:
        disk = self._disk
        if self._kind in CHANGES:
            disk.before()
        disk.lock.acquire()
        try:
            self._fault, self._short = disk.begin(self._kind, self._path, self._offset, self._length)
        except BaseException:
            disk.lock.release()
            raise
        return self._fault if self._short else None

    def __exit__(self, error: object, *_: object) -> None:
        self._disk.lock.release()
        if self._fault is not None and not self._short and error is None:
            self._fault.raise_it(self._path)


class RecordingDisk:
    """Everything below `base`, one operation at a time, recorded in the order in which they took effect.

    `before` is called ahead of each change, in its thread: a schedule may hold it there. Files are known by a number
    that stays when their names change.
    """

    def __init__(self, image: Mapping[str, bytes | None] | None = None, seed: int | str = 0) -> None:
        self.base = f"/disk-{next(_bases)}"
        self.initial: Image = dict(image or {})
        self.initial_files: dict[str, int] = {}
        self.log: list[Operation] = []
        self.faults: list[Fault] = []
        self.bad: dict[str, set[int]] = {}  # unreadable sectors by the path that their file has or had
        self.before: Callable[[], None] = lambda: None
        self.calls = dict.fromkeys(CHANGES | READS, 0)
        self.entries: dict[str, File | None] = {}
        self._rng = random.Random(seed)
        self.lock = threading.RLock()  # of one operation at a time
        self._files = 0
        for path, content in self.initial.items():
            self.entries[path] = None if content is None else self._new_file(content)
            if content is not None:
                self.initial_files[path] = self._files

    @classmethod
    def killed(cls, first: RecordingDisk, after: int) -> RecordingDisk:
        """The disk of a program that was killed after some operations, for the next one to go on with.

        The machine goes on, too: what was not synced is as little durable as before, and the recording tells it.
        """
        disk = cls(first.initial)
        files = {file.number: file for file in disk.entries.values() if file is not None}
        for operation in first.log[:after]:
            match operation:
                case Create(path, number):
                    files[number] = disk.create(path)
                    assert files[number].number == number, "BUG: files were made in another order"
                case Write(number, offset, data):
                    disk.write(files[number], offset, data)
                case Truncate(number, size):
                    disk.truncate(files[number], size)
                case Sync(number):
                    disk.sync(files[number])
                case FailedSync(number, content) | Evicted(number, content):
                    files[number].content[:] = content
                    if isinstance(operation, FailedSync):
                        files[number].dirty.clear()
                        files[number].size_changed = False
                    disk.log.append(operation)
                case Rename(source, target):
                    disk.rename(source, target)
                case Unlink(path):
                    disk.unlink(path)
                case MakeDirectory(path):
                    disk.make_directory(path)
                case SyncDirectory() | Note():
                    disk.log.append(operation)
        return disk

    def note(self, kind: str, value: Any) -> None:
        with self.lock:
            self.log.append(Note(kind, value))

    def image(self) -> Image:
        """All files and directories, as reads see them."""
        return {path: None if file is None else bytes(file.content) for path, file in self.entries.items()}

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.base)

    def doing(self, kind: str, path: str, offset: int = 0, length: int = 0) -> Doing:
        """Around an operation: raises what fails before it or after it. Gives a fault that only cuts it short."""
        return Doing(self, kind, path, offset, length)

    # What takes effect

    def create(self, path: str) -> File:
        file = self.entries[path] = self._new_file()
        self.log.append(Create(path, file.number))
        return file

    def write(self, file: File, offset: int, data: bytes) -> None:
        size = len(file.content)
        if offset > size:
            file.content += bytes(offset - size)
        file.content[offset : offset + len(data)] = data
        file.touch(min(offset, size), offset + len(data))
        file.size_changed |= len(file.content) != size
        self.log.append(Write(file.number, offset, data))

    def truncate(self, file: File, size: int) -> None:
        before = len(file.content)
        del file.content[size:]
        file.content += bytes(size - len(file.content))
        file.touch(min(before, size), max(min(before, size) + 1, size))
        file.dirty = {sector for sector in file.dirty if sector * SECTOR < size}
        file.size_changed = True
        self.log.append(Truncate(file.number, size))

    def sync(self, file: File) -> None:
        file.reach_disk()
        self.log.append(Sync(file.number))

    def rename(self, source: str, target: str) -> None:
        replaced = self.entries.get(target)
        if replaced is not None:
            replaced.links -= 1
        self.entries[target] = self.entries.pop(source)
        if source in self.bad:
            self.bad[target] = self.bad.pop(source)
        self.log.append(Rename(source, target))

    def unlink(self, path: str) -> None:
        file = self.entries.pop(path)
        if file is not None:
            file.links -= 1
        self.bad.pop(path, None)
        self.log.append(Unlink(path))

    def make_directory(self, path: str) -> None:
        self.entries[path] = None
        self.log.append(MakeDirectory(path))

    def sync_directory(self, path: str) -> None:
        self.log.append(SyncDirectory(path))

    def evict(self) -> None:
        """Memory is short: what is clean leaves the page cache, and reads show what the disk has."""
        with self.lock:
            for file in self.entries.values():
                if file is None:
                    continue
                before = bytes(file.content)
                file.evict(set(range(-(-len(before) // SECTOR))) - file.dirty)
                if file.content != before:
                    self.log.append(Evicted(file.number, bytes(file.content)))

    def begin(self, kind: str, path: str, offset: int, length: int) -> tuple[Fault | None, bool]:
        """Count an operation; raise what fails before it. The fault that strikes it, and whether that cuts it short."""
        self.calls[kind] += 1
        fault = None
        if self.faults:
            fault = next((fault for fault in self.faults if fault.strikes(kind, path, offset, length)), None)
        short = False
        if fault is not None:
            self.log.append(Note("fault", (kind, path)))
            short = fault.how == "short" and kind == "write" and fault.struck == 1 and length > 1
            if not short and (fault.how != "after" or kind in READS):
                if kind in ("fdatasync", "fsync"):
                    self._fail_sync(path)
                fault.raise_it(path)
        if self.bad and kind == "read" and self._is_bad(path, offset, length):
            raise OSError(errno.EIO, "a sector of the disk cannot be read", path)
        return fault, short

    def _fail_sync(self, path: str) -> None:
        file = self.entries.get(path)
        if file is None:  # it has no name any more, so nothing can find what it holds
            return
        kept = self._rng.choice((0.0, 1.0, 0.5))
        file.evict({sector for sector in sorted(file.dirty) if self._rng.random() >= kept})
        file.dirty.clear()
        file.size_changed = False
        self.log.append(FailedSync(file.number, bytes(file.content)))

    def _is_bad(self, path: str, offset: int, length: int) -> bool:
        bad = self.bad.get(path)
        if not bad:
            return False
        file = self.entries.get(path)
        end = min(offset + length, len(file.content) if file is not None else 0)
        return any(sector in bad for sector in range(offset // SECTOR, -(-end // SECTOR)))

    def _new_file(self, content: bytes = b"") -> File:
        self._files += 1
        return File(self._files, content)
