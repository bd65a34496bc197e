"""The states of a disk after a power cut: the model, and their enumeration.

The model is that of POSIX and of the file systems that people use, taken at their worst:

- **Data.** A write is durable when a sync (`fsync` or `fdatasync`) of its file returned after it. Until then each of
  the 512-byte sectors that it touched is on disk or not, independently of all others and of the order in which they
  were written; a sector that is not has the content of any earlier moment since the last sync: what stood there
  before, where a file is written over, zeros where it grew. A sector is never torn itself.
- **Size.** A file's size (appending, truncating) is as of any moment since its last sync, whatever data is there.
- **Names.** Creating, renaming and removing are atomic, and durable when every directory concerned was synced after.
  Until then each of them is kept or lost, and nothing orders two that concern different names: not those in one
  directory, nor those in two. A later one on the same name, or inside a directory that was made before, is not kept
  without the earlier, and not durable before it.
- **Nothing** orders data, sizes and names among each other.
- **A sync that fails** leaves the file's sectors clean, and each of them on disk or not, for good: the next sync
  succeeds without them. Only what is written anew is brought to the disk by a later sync.
- **A kill** takes nothing but memory: what is read afterwards comes from the page cache, and where clean pages left
  it from the disk.

A crash between two operations leaves the states of the former; one in the middle of a write or sync leaves a state
that the model has for the moment after the write or before the sync. So the moments after each operation are all.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tests.crash.recording import (
    SECTOR,
    Create,
    Evicted,
    FailedSync,
    Image,
    MakeDirectory,
    Note,
    RecordingDisk,
    Rename,
    Sync,
    SyncDirectory,
    Truncate,
    Unlink,
    Write,
)

# As many variants of one file, or of the names, are enumerated in full; beyond, they are chosen.
_ALL_UP_TO = 64
_CHOSEN = 48
# Combinations of the variants of all files and names at one moment.
_COMBINATIONS = 96

NameOperation = Create | Rename | Unlink | MakeDirectory


class State(NamedTuple):
    """A state that a crash may leave, and its place in the recording: after `after` operations."""

    image: Image
    after: int
    kind: str = "power cut"  # or "kill"
    # Sectors that were being written and may be torn or unreadable instead, by path.
    open_sectors: Mapping[str, list[int]] = MappingProxyType({})


class _Unsynced:
    """A change of names on its way to the disk."""

    def __init__(self, operation: NameOperation) -> None:
        self.operation = operation
        self.names = list(operation[:2]) if isinstance(operation, Rename) else [operation[0]]
        self.directories = {os.path.dirname(name) for name in self.names}

    def needs(self, earlier: _Unsynced) -> bool:
        return any(name == other or name.startswith(other + "/") for name in self.names for other in earlier.names)


class _File:
    """A file's content as of the last sync, and as it was after each operation since.

    Sectors whose sync failed are `doubtful`: the disk has one of several contents of each, until it is written anew and
    synced. So is the size, if it changed before the sync that failed.
    """

    def __init__(self, content: bytes) -> None:
        self.versions = [content]
        self.doubtful: dict[int, tuple[bytes, ...]] = {}
        self.sizes: tuple[int, ...] = ()  # doubtful ones
        self._anew: set[int] = set()  # sectors written since the last sync
        self._is_resized = False
        self._written_to = 0  # since the last sync

    def write(self, offset: int, data: bytes) -> None:
        before = self.versions[-1]
        content = before.ljust(offset, b"\x00")
        self.versions.append(content[:offset] + data + content[offset + len(data) :])
        self._change(min(offset, len(before)), offset + len(data))
        self._written_to = max(self._written_to, offset + len(data))
        self._is_resized |= len(self.versions[-1]) != len(before)

    def truncate(self, size: int) -> None:
        before = self.versions[-1]
        self.versions.append(before[:size].ljust(size, b"\x00"))
        self._change(min(size, len(before)), max(size, len(before)))
        self._is_resized = True

    def sync(self) -> None:
        self.versions = self.versions[-1:]
        if self.doubtful or self.sizes:
            self.doubtful = {at: contents for at, contents in self.doubtful.items() if at not in self._anew}
            # What is written back anew makes the file reach at least as far.
            self.sizes = () if self._is_resized else tuple(size for size in self.sizes if size >= self._written_to)
        self._forget_changes()

    def fail_sync(self, content: bytes) -> None:
        """`content` is what reads show now: where it is not the newest, the page was dropped."""
        newest = self.versions[-1]
        for at, contents in self._sectors():
            shown = _sector(content, at)
            if shown == _sector(newest, at):
                if len(contents) > 1:
                    self.doubtful[at] = tuple(contents)
            else:
                self.doubtful.pop(at, None)
        self.sizes = tuple(dict.fromkeys((*self.sizes, *map(len, self.versions))))
        self.versions = [content]
        self._forget_changes()

    def evict(self, content: bytes) -> None:
        """Clean pages show what is on the disk: what differs from what they showed is certain now."""
        before = self.versions[-1]
        for at in [at for at in self.doubtful if _sector(content, at) != _sector(before, at)]:
            del self.doubtful[at]
            begin, shown = at * SECTOR, content[at * SECTOR : (at + 1) * SECTOR]
            self.versions = [
                version[:begin] + shown[: len(version) - begin] + version[begin + SECTOR :]
                if len(version) > begin
                else version
                for version in self.versions
            ]

    def is_open(self) -> bool:
        return len(self.versions) > 1 or bool(self.doubtful) or len(set(self.sizes)) > 1

    def count_variants(self) -> int:
        """About how many `variants` finds, without making any."""
        if not self.is_open():
            return 1
        widths = math.prod(len(contents) for _, contents in self._sectors())
        return min(_CHOSEN, widths * len({*map(len, self.versions), *self.sizes}))

    def open_sectors(self) -> list[int]:
        return [at for at, contents in self._sectors() if len(contents) > 1]

    def variants(self, rng: random.Random, stale: Sequence[bytes] = ()) -> list[bytes]:
        """Contents that may be on disk: nothing of what is not synced first, all of it second.

        Args:
            stale: what else stood where this file grew: the contents of other files, or stale contents of this one.
        """
        if not self.is_open():
            return self.versions
        versions = self.versions
        sizes = list(dict.fromkeys(map(len, [versions[0], *reversed(versions)])))
        sizes += [size for size in self.sizes if size not in sizes]
        sectors = [contents for _, contents in self._sectors()]  # per sector, the contents that it may have
        for at in range(-(-len(versions[0]) // SECTOR), len(sectors)):
            if stale and len(sectors[at]) > 1:
                sectors[at].insert(1, _sector(rng.choice(stale), at))
        # Every open sector has its oldest content first, its newest last.
        open_sectors = [at for at, contents in enumerate(sectors) if len(contents) > 1]
        widths = [len(sectors[at]) for at in open_sectors]
        if math.prod(widths) * len(sizes) <= _ALL_UP_TO:
            choices = list(itertools.product(sizes, *map(range, widths)))
        else:
            choices = [(size, *pattern) for size, pattern in itertools.product(sizes[:2], _patterns(widths, rng))]
            choices = choices[:2] + rng.sample(choices[2:], min(_CHOSEN, len(choices) - 2))
        found = [versions[0], versions[-1]]
        parts = [contents[0] for contents in sectors]
        for size, *chosen in choices:
            for at, index in zip(open_sectors, chosen, strict=True):
                parts[at] = sectors[at][index]
            content = b"".join(parts)
            found.append(content[:size].ljust(size, b"\x00"))
        return list(dict.fromkeys(found))

    def evicted(self) -> bytes:
        """The contents that reads show once the clean pages have left the cache, if the failed sync wrote nothing."""
        content = bytearray(self.versions[-1])
        for at, contents in self.doubtful.items():
            if at not in self._anew:
                begin = at * SECTOR
                end = min(begin + SECTOR, len(content))
                content[begin:end] = contents[0][: max(0, end - begin)]
        return bytes(content)

    def _sectors(self) -> list[tuple[int, list[bytes]]]:
        found = []
        longest = max(map(len, self.versions))
        for at in range(-(-longest // SECTOR)):
            contents = dict.fromkeys(self.doubtful.get(at, ()))
            contents.update(dict.fromkeys(_sector(version, at) for version in self.versions))
            found.append((at, list(contents)))
        return found

    def _change(self, begin: int, end: int) -> None:
        self._anew.update(range(begin // SECTOR, -(-end // SECTOR)))

    def _forget_changes(self) -> None:
        self._anew = set()
        self._is_resized = False
        self._written_to = 0


def _sector(content: bytes, at: int) -> bytes:
    return content[at * SECTOR : (at + 1) * SECTOR].ljust(SECTOR, b"\x00")


def _patterns(widths: list[int], rng: random.Random) -> list[tuple[int, ...]]:
    """Choices for many sectors: lost or kept alone, from the front, from the back, and at random."""
    count = len(widths)
    new = [width - 1 for width in widths]
    patterns = [tuple([0] * count), tuple(new)]
    for index in range(count):
        alone = [0] * count
        alone[index] = new[index]
        lost = list(new)
        lost[index] = 0
        patterns += [tuple(alone), tuple(lost), tuple(new[:index] + [0] * (count - index))]
        patterns.append(tuple([0] * index + new[index:]))
    patterns += [tuple(rng.randrange(width) for width in widths) for _ in range(16)]
    return patterns


class Model:
    """A disk in the course of a recording."""

    def __init__(self, disk: RecordingDisk) -> None:
        self.names: dict[str, int | None] = {
            path: None if content is None else disk.initial_files[path] for path, content in disk.initial.items()
        }
        self.files = {
            disk.initial_files[path]: _File(content) for path, content in disk.initial.items() if content is not None
        }
        self.unsynced: list[_Unsynced] = []

    def apply(self, operation: object) -> None:
        if isinstance(operation, Write):
            self.files[operation.file].write(operation.offset, operation.data)
        elif isinstance(operation, Truncate):
            self.files[operation.file].truncate(operation.size)
        elif isinstance(operation, Sync):
            self.files[operation.file].sync()
        elif isinstance(operation, FailedSync):
            self.files[operation.file].fail_sync(operation.content)
        elif isinstance(operation, Evicted):
            self.files[operation.file].evict(operation.content)
        elif isinstance(operation, SyncDirectory):
            self._sync_directory(operation.path)
        elif isinstance(operation, Create | Rename | Unlink | MakeDirectory):
            if isinstance(operation, Create):
                self.files[operation.file] = _File(b"")
            self.unsynced.append(_Unsynced(operation))

    def _sync_directory(self, path: str) -> None:
        folder = "" if path == "." else path
        for change in self.unsynced:
            change.directories.discard(folder)
        waiting: list[_Unsynced] = []
        for change in self.unsynced:
            if change.directories or any(map(change.needs, waiting)):
                waiting.append(change)
            else:
                _change(self.names, change.operation)
        self.unsynced = waiting

    def name_variants(self, rng: random.Random) -> list[dict[str, int | None]]:
        """The directories as they may be: first without the unsynced changes, then with all of them."""
        count = len(self.unsynced)
        needed = [
            sum(1 << i for i in range(index) if change.needs(self.unsynced[i]))
            for index, change in enumerate(self.unsynced)
        ]

        def possible(kept: int) -> bool:
            return all(not kept >> index & 1 or needed[index] & ~kept == 0 for index in range(count))

        everything = (1 << count) - 1
        if count <= 6:
            subsets = [0, everything, *filter(possible, range(1, everything))]
        else:
            subsets = [0, everything]
            for _ in range(_CHOSEN):
                kept = rng.getrandbits(count)
                for index in range(count):
                    if kept >> index & 1 and needed[index] & ~kept:
                        kept &= ~(1 << index)
                subsets.append(kept)
        variants = []
        for kept in dict.fromkeys(subsets):
            names = dict(self.names)
            for index, change in enumerate(self.unsynced):
                if kept >> index & 1:
                    _change(names, change.operation)
            variants.append(names)
        return variants

    def states(self, rng: random.Random, limit: int, stale: bool = False) -> Iterator[Image]:
        """Images that a power cut may leave now: the one that lost all and the one that lost nothing among them."""
        name_variants = self.name_variants(rng)
        linked = {number for names in name_variants for number in names.values()}
        open_files = [number for number, file in self.files.items() if number in linked and file.is_open()]
        dead = [file.versions[-1] for number, file in self.files.items() if number not in linked] if stale else []
        contents = [self.files[number].variants(rng, dead) for number in open_files]
        widths = [len(name_variants), *map(len, contents)]
        if math.prod(widths) <= limit:
            choices: Iterator[tuple[int, ...]] = itertools.product(*map(range, widths))
        else:
            extremes = [tuple([0] * len(widths)), tuple(min(1, width - 1) for width in widths)]
            drawn = [tuple(rng.randrange(width) for width in widths) for _ in range(limit - 2)]
            choices = iter(dict.fromkeys(extremes + drawn))
        for names_index, *content_indices in choices:
            chosen = {
                number: contents[position][index]
                for position, (number, index) in enumerate(zip(open_files, content_indices, strict=True))
            }
            yield {
                path: None if number is None else chosen.get(number, self.files[number].versions[0])
                for path, number in name_variants[names_index].items()
            }

    def count_states(self) -> int:
        """Count the choices."""
        linked = {*self.names.values(), *(change.operation[-1] for change in self.unsynced)}
        files = (file.count_variants() for number, file in self.files.items() if number in linked)
        return min(_COMBINATIONS, min(_CHOSEN, 1 << len(self.unsynced)) * math.prod(files))

    def as_running(self) -> dict[str, int | None]:
        """The names that the machine shows while it runs."""
        names = dict(self.names)
        for change in self.unsynced:
            _change(names, change.operation)
        return names

    def states_after_kill(self) -> list[Image]:
        """The states for a program that starts while the machine goes on: the page cache, and a smaller one."""
        names = self.as_running()
        images: list[Image] = []
        for content in (lambda file: file.versions[-1], _File.evicted):
            image = {path: None if number is None else content(self.files[number]) for path, number in names.items()}
            if image not in images:
                images.append(image)
        return images

    def open_sectors(self, image: Image) -> dict[str, list[int]]:
        """By path, what was on its way to the disk."""
        return {
            path: sectors
            for path, number in self.as_running().items()
            if number is not None
            and path in image
            and ".wal" in path
            and (sectors := self.files[number].open_sectors())
        }


def _change(names: dict[str, int | None], operation: NameOperation) -> None:
    if isinstance(operation, Create):
        names[operation.path] = operation.file
    elif isinstance(operation, MakeDirectory):
        names[operation.path] = None
    elif isinstance(operation, Unlink):
        del names[operation.path]
    else:
        names[operation.target] = names.pop(operation.source)


def states_after_power_cuts(
    disk: RecordingDisk,
    rng: random.Random,
    limit: int,
    since: int = 0,
    until: float = math.inf,
    stale: bool = False,
    sectors: bool = False,
) -> Iterator[State]:
    """Different states that a power cut during the recording may leave, in the order of the recording; about `limit`.

    Each moment has its share, the extremes first, and the more of the others the more there are. Two moments that
    leave the same image count as two states only if a note lies between them.

    Args:
        since, until: only cuts after more operations than the former, and not more than the latter.
        stale: where a file grew, what is not synced may also show what stood there before: a removed file's content.
        sectors: say for each state which sectors were on their way to the disk.
    """
    counts = []
    model = Model(disk)
    for position, operation in enumerate(disk.log):
        model.apply(operation)
        counts.append(0 if isinstance(operation, Note) or not since <= position < until else model.count_states())
    left = sum(counts)
    seen: set[int] = set()
    for model, position, after in moments(disk):
        if not since <= position < until:
            continue
        if any(isinstance(operation, Note) for operation in disk.log[position:after]):
            seen.clear()
        # What one moment did not use is there for those that follow.
        wanted = counts[position] * min(1.0, limit / max(1, left))
        left -= counts[position]
        for image in model.states(rng, max(2, math.ceil(wanted)), stale):
            fingerprint = hash(frozenset(image.items()))
            if fingerprint not in seen:
                seen.add(fingerprint)
                if wanted >= 2 or rng.random() < wanted / 2:
                    limit -= 1
                    known = after if rng.random() < 0.5 else before_sent(disk, position + 1, after)
                    yield State(image, known, open_sectors=model.open_sectors(image) if sectors else {})


def states_after_kills(disk: RecordingDisk, since: int = 0) -> Iterator[State]:
    """Yield the states that the program finds after it was killed while the machine goes on.

    There are one or two after each operation, and as many for a kill before it got the next bytes of a client.
    """
    for model, position, after in moments(disk):
        if position >= since:
            for image in model.states_after_kill():
                yield State(image, after, "kill")
                before = before_sent(disk, position + 1, after)
                if before < after:
                    yield State(image, before, "kill")


def before_sent(disk: RecordingDisk, begin: int, end: int) -> int:
    """Where a client sent something first, between two places of the recording; `end` if none did."""
    notes = enumerate(disk.log[begin:end], begin)
    return next((at for at, note in notes if isinstance(note, Note) and note.kind == "sent"), end)


def moments(disk: RecordingDisk) -> Iterator[tuple[Model, int, int]]:
    """Yield the model after each operation, the operation's position, and the end of the notes that follow directly.

    The world may have learned of those notes.
    """
    model = Model(disk)
    for position, operation in enumerate(disk.log):
        if isinstance(operation, Note):
            continue
        model.apply(operation)
        after = position + 1
        while after < len(disk.log) and isinstance(disk.log[after], Note):
            after += 1
        yield model, position, after
