"""What waits for its commit: commit files, read a part at a time, and grouped by table.

With a thousand batches of a thousand tables not all of it fits into memory, so a round takes them in chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from arcpipe.errors import ArcpipeError
from arcpipe.lake.keys import decode_component
from arcpipe.tables.base import TableName
from arcpipe.tables.commit_file import CommitFile, CommitFileName, CommitFiles, DataFile


class Part(NamedTuple):
    """The files of one table in one commit file."""

    name: CommitFileName
    node: str
    folder: str
    files: list[DataFile]

    @property
    def seq(self) -> int:
        return self.name.seq

    def keyed(self) -> Iterator[tuple[str, DataFile]]:
        """Yield each file with its key."""
        for file in self.files:
            yield f"{self.folder}/{file.name}", file


class Blocked(ArcpipeError):
    """A commit file cannot be read now. What was handed over later has to wait for it: markers only grow."""


class Chunk:
    """Some commit files, oldest first."""

    def __init__(self) -> None:
        self.names: list[CommitFileName] = []
        self.parts: dict[tuple[str, str], list[Part]] = {}  # by node and folder, oldest first
        self.sizes: dict[CommitFileName, int] = {}  # bytes of the objects of each commit file
        self.files = 0

    def add(self, name: CommitFileName, content: CommitFile) -> None:
        """Add the next commit file."""
        self.names.append(name)
        self.sizes[name] = content.bytes
        for table in content.tables:
            part = Part(name, content.node, table.folder, table.files)
            self.parts.setdefault((content.node, table.folder), []).append(part)
            self.files += len(table.files)


def chunks(files: CommitFiles, names: Sequence[CommitFileName], most_files: int) -> Iterator[Chunk]:
    """Read commit files, oldest first, in chunks of about as many data files.

    Raises:
        Blocked: one cannot be read now. Those before it were yielded.
        DamagedFile, UnknownVersion: one cannot be used. Those before it were yielded.
    """
    chunk = Chunk()
    for name in names:
        try:
            content = files.read(name)
        except OSError as error:
            if chunk.names:
                yield chunk
            raise Blocked(f"{files.path(name.filename)} cannot be read: {error}") from error
        except ArcpipeError:
            if chunk.names:
                yield chunk
            raise
        if content is None:  # done by another process meanwhile
            continue
        chunk.add(name, content)
        if chunk.files >= most_files:
            yield chunk
            chunk = Chunk()
    if chunk.names:
        yield chunk


def some(parts: Sequence[Part], most_files: int) -> list[Part]:
    """Take parts for one commit: the first one, and more while they have no more files together."""
    chosen: list[Part] = []
    count = 0
    for part in parts:
        if chosen and count + len(part.files) > most_files:
            break
        chosen.append(part)
        count += len(part.files)
    return chosen


def in_order(found: list[list[Part]]) -> list[list[Part]]:
    """Put the parts of one table in the order of their numbers: a marker says that everything up to it is there.

    Args:
        found: by node and folder. A table has two folders if its names were encoded in two ways.
    """
    if len(found) == 1:
        return found
    parts = sorted(itertools.chain.from_iterable(found), key=lambda part: part.seq)
    return [list(run) for _, run in itertools.groupby(parts, key=lambda part: (part.node, part.folder))]


def table_of(folder: str) -> TableName | None:
    """Return the table of a folder in the store; None if a name was cut, and only a file's footer has it."""
    database, measurement = map(decode_component, folder.split("/"))
    return None if database is None or measurement is None else (database, measurement)
