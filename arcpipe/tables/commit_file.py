"""Commit files: what the uploader hands to the committer, one file for a batch whose objects are all durable.

    {wal.dir}/tables/{seq:020}-{batch_id}.json

The name has the batch id, so that a redo finds the file of its batch without reading any. The content is JSON with a
checksum, or the same compressed, where a full disk has room for no more. It names objects by folder of their table:

    {"version":1, "seq":…, "node":"…", "batch_id":"…", "store":"s3://…", "tables":[
      {"folder":"default/cpu", "files":[["2026/11/29/06/cpu_….parquet", rows, bytes, min_us, max_us], …]}, …],
     "crc32":"…"}

A file is there from the moment at which the uploader wrote it until every one of its tables has it, and its batch is
forgotten. So a batch that is ended a second time, after a crash, finds its file and makes no second one.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgspec

from arcpipe import durable, lock_file
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError
from arcpipe.wal import checked_json

VERSION: Final = 1
FOLDER: Final = "tables"
"""The folder in the WAL directory."""

_NAME: Final = re.compile(r"(\d{20})-(.+)\.json\Z")
_COMPRESSED: Final = b"\x78"  # the first byte of a zlib stream
_MOST_BYTES: Final = 1 << 30  # of a file that is decompressed: a larger one is damaged


class DataFile(msgspec.Struct, frozen=True, array_like=True):
    """An object of a batch: the rest of its key below the folder of its table. Unknown numbers are -1."""

    name: str
    rows: int
    bytes: int
    min_us: int  # µs since the epoch: its rows' least and greatest time
    max_us: int


class TableFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The objects of one table, by its folder in the store: two components of their keys."""

    folder: str
    files: list[DataFile]

    def keys(self) -> list[str]:
        return [f"{self.folder}/{file.name}" for file in self.files]


class CommitFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a commit file."""

    version: int
    seq: int
    node: str  # whose marker says whether a table has it
    batch_id: str
    store: str  # the URL of the store
    tables: list[TableFiles]

    @property
    def bytes(self) -> int:
        """The bytes of its objects."""
        return sum(max(file.bytes, 0) for table in self.tables for file in table.files)


class CommitFileName(NamedTuple):
    """What the name of a commit file says."""

    filename: str
    seq: int
    batch_id: str


class Busy(ArcpipeError):
    """Another process of this node commits to tables."""


def parse_name(name: str) -> CommitFileName | None:
    """Parse a file's name; None for other files."""
    match = _NAME.match(name)
    return None if match is None else CommitFileName(name, int(match[1]), match[2])


def by_table(files: Iterable[tuple[str, DataFile]]) -> list[TableFiles]:
    """Group files, each with its key, by the folder of their table; the names in them become relative to it."""
    found: dict[str, list[DataFile]] = {}
    for key, file in files:
        database, measurement, name = key.split("/", 2)
        found.setdefault(f"{database}/{measurement}", []).append(msgspec.structs.replace(file, name=name))
    return [TableFiles(folder, found[folder]) for folder in sorted(found)]


def encode(content: CommitFile, compressed: bool = False) -> bytes:
    """Encode with a checksum."""
    data = checked_json.encode(content)
    return zlib.compress(data, 6) if compressed else data


def decode(data: bytes, path: str) -> CommitFile:
    """Decode a commit file.

    Raises:
        ValueError: it is damaged.
        UnknownVersion: it is intact, and has a version or field that this program does not know.
    """
    if data.startswith(_COMPRESSED):
        data = _decompress(data)
    consequence = "No table gets it, or what was handed over after it, until that version has run again"
    return checked_json.decode(data, CommitFile, VERSION, path, consequence)


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not stream.eof:
        raise ValueError("its end is missing")
    return found


class CommitFiles:
    """The folder `tables/` of a WAL directory: the commit files in it, and who may commit them."""

    def __init__(self, wal_dir: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self.folder = os.path.join(wal_dir, FOLDER)
        self.disk = disk or Disk()

    def make(self) -> None:
        """Make the folder durably, if it is missing."""
        durable.make_folder(self.disk, self.folder)

    def path(self, filename: str) -> str:
        """Return the path of a file in the folder."""
        return os.path.join(self.folder, filename)

    def names(self) -> list[CommitFileName]:
        """List the commit files, oldest first; none if the folder is not there.

        Raises:
            OSError: the folder cannot be listed.
        """
        try:
            names = self.disk.names(self.folder)
        except FileNotFoundError:
            return []
        return sorted(found for found in map(parse_name, names) if found is not None)

    def tidy(self) -> None:
        """Remove files that never got their names. For the uploader alone, which writes them."""
        try:
            names = self.disk.names(self.folder)
        except FileNotFoundError:
            return
        for name in names:
            if name.endswith(".json.tmp"):
                self.disk.unlink(self.path(name))

    def read(self, name: CommitFileName) -> CommitFile | None:
        """Read a commit file; None if it is gone.

        Raises:
            OSError: it cannot be read.
            DamagedFile: its content is damaged.
            UnknownVersion: another version of arcpipe wrote it.
        """
        path = self.path(name.filename)
        return durable.load(self.disk, path, lambda data: _checked(decode(data, path), name))

    def sync(self) -> None:
        """Make the names in the folder durable.

        Whoever acts on a file calls this first: if its name vanished in a power cut after its objects were committed,
        its batch would be handed over, and committed, once more.
        """
        self.disk.sync_directory(self.folder)

    def remove(self, names: Iterable[CommitFileName]) -> None:
        """Remove commit files durably."""
        removed = False
        for name in names:
            self.disk.unlink(self.path(name.filename))
            removed = True
        if removed:
            self.sync()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to commit for this node. The kernel gives it back when the process is gone.

        Raises:
            Busy: another process holds it.
        """
        self.make()
        path = self.path("LOCK")
        try:
            fd = lock_file.take(path)
        except lock_file.Held as owner:
            raise Busy(f"process {owner} commits to tables: it holds {path}") from None
        try:
            yield
        finally:
            os.close(fd)


def _checked(content: CommitFile, name: CommitFileName) -> CommitFile:
    if (content.seq, content.batch_id) != (name.seq, name.batch_id):
        raise ValueError(f"it is of {content.seq}-{content.batch_id}, and has another name")
    return content
