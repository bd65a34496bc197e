"""What may be on a disk after a power cut: the model, and the enumeration of its states.

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

A crash between two operations leaves the states of the former; one in the middle of a write or sync leaves a state
that the model has for the moment behind the write or before the sync. So the moments after each operation are all.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator
from typing import NamedTuple

from tests.crash.recording import (
    Create,
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

SECTOR = 512

# As many variants of one file, or of the names, are enumerated in full; beyond, they are chosen.
_ALL_UP_TO = 64
_CHOSEN = 48
# Combinations of the variants of all files and names at one moment.
_COMBINATIONS = 96

NameOperation = Create | Rename | Unlink | MakeDirectory


class State(NamedTuple):
    """A disk that a power cut may leave, and where in the recording it struck: behind `after` operations."""

    image: Image
    after: int


class _Unsynced:
    """A change of names on its way to the disk."""

    def __init__(self, operation: NameOperation) -> None:
        self.operation = operation
        self.names = list(operation[:2]) if isinstance(operation, Rename) else [operation[0]]
        self.directories = {os.path.dirname(name) for name in self.names}

    def needs(self, earlier: _Unsynced) -> bool:
        return any(name == other or name.startswith(other + "/") for name in self.names for other in earlier.names)


class _File:
    """A file's content as of the last sync, and as it was after each operation since."""

    def __init__(self, content: bytes) -> None:
        self.versions = [content]

    def write(self, offset: int, data: bytes) -> None:
        content = self.versions[-1].ljust(offset, b"\x00")
        self.versions.append(content[:offset] + data + content[offset + len(data) :])

    def truncate(self, size: int) -> None:
        self.versions.append(self.versions[-1][:size].ljust(size, b"\x00"))

    def sync(self) -> None:
        self.versions = self.versions[-1:]

    def variants(self, rng: random.Random) -> list[bytes]:
        """Contents that may be on disk: nothing of what is not synced first, all of it second."""
        versions = self.versions
        if len(versions) == 1:
            return versions
        longest = max(map(len, versions))
        sizes = list(dict.fromkeys(map(len, [versions[0], *reversed(versions)])))
        sectors = []  # per sector, the contents that it may have
        for begin in range(0, longest, SECTOR):
            contents = (version[begin : begin + SECTOR].ljust(SECTOR, b"\x00") for version in versions)
            sectors.append(list(dict.fromkeys(contents)))
        # Every open sector has its oldest content first, its newest last.
        widths = [len(contents) for contents in sectors if len(contents) > 1]
        if math.prod(widths) * len(sizes) <= _ALL_UP_TO:
            choices = list(itertools.product(sizes, *map(range, widths)))
        else:
            choices = [(size, *pattern) for size, pattern in itertools.product(sizes[:2], _patterns(widths, rng))]
            choices = choices[:2] + rng.sample(choices[2:], min(_CHOSEN, len(choices) - 2))
        found = [versions[0], versions[-1]]
        for size, *chosen in choices:
            picks = iter(chosen)
            content = b"".join(options[next(picks)] if len(options) > 1 else options[0] for options in sectors)
            found.append(content[:size])
        return list(dict.fromkeys(found))


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
        """What the directories may say: nothing of what is not synced first, all of it second."""
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

    def states(self, rng: random.Random, limit: int) -> Iterator[Image]:
        """Images that a power cut may leave now: the one that lost all and the one that lost nothing among them."""
        name_variants = self.name_variants(rng)
        open_files = [number for number, file in self.files.items() if len(file.versions) > 1]
        contents = [self.files[number].variants(rng) for number in open_files]
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
        """How many there are to choose from."""
        rng = random.Random(0)
        files = (len(file.variants(rng)) for file in self.files.values() if len(file.versions) > 1)
        return min(_COMBINATIONS, len(self.name_variants(rng)) * math.prod(files))


def _change(names: dict[str, int | None], operation: NameOperation) -> None:
    if isinstance(operation, Create):
        names[operation.path] = operation.file
    elif isinstance(operation, MakeDirectory):
        names[operation.path] = None
    elif isinstance(operation, Unlink):
        del names[operation.path]
    else:
        names[operation.target] = names.pop(operation.source)


def states_after_power_cuts(disk: RecordingDisk, rng: random.Random, limit: int) -> Iterator[State]:
    """Different states that a power cut during the recording may leave, in the order of the recording; about `limit`.

    Each moment has its share, the extremes first, and the more of the others the more there are. Two moments that
    leave the same image count as two states only if a note lies between them.
    """
    counts = []
    model = Model(disk)
    for operation in disk.log:
        model.apply(operation)
        counts.append(0 if isinstance(operation, Note) else model.count_states())
    share = min(1.0, limit / max(1, sum(counts)))
    model = Model(disk)
    seen: set[int] = set()
    for position, operation in enumerate(disk.log):
        if isinstance(operation, Note):
            seen.clear()
            continue
        model.apply(operation)
        # Notes that follow directly belong to this moment: the world may have learned of it.
        after = position + 1
        while after < len(disk.log) and isinstance(disk.log[after], Note):
            after += 1
        wanted = counts[position] * share
        for image in model.states(rng, max(2, math.ceil(wanted))):
            fingerprint = hash(frozenset(image.items()))
            if fingerprint not in seen:
                seen.add(fingerprint)
                if wanted >= 2 or rng.random() < wanted / 2:
                    yield State(image, after)
