"""Objects with the same rows, of which a table has one: files that were rewritten. One file, `tables/twins.json`.

    add(…)        durable before the copy is put: no crash leaves an object that nobody knows
    …             the table gets one of them, in the commit that sets the marker
    settle(…)     durable before the others are deleted: whichever the table has is the source from then on
    forget(…)     once their commit file is gone

A file that was rewritten stays under its own key until the table has its copy. What a marker covers is in the table, or
was: so after it the table is asked which of the objects it has, and no answer to a commit has to be believed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.wal import checked_json

VERSION: Final = 1
FILENAME: Final = "twins.json"


class Twin(msgspec.Struct, frozen=True, array_like=True):
    """An object of a commit file, and its copies."""

    seq: int
    node: str
    folder: str
    key: str  # as the commit file has it
    copies: list[str]  # in the order in which they were made
    source: str  # the one of them that is known to be there

    @property
    def objects(self) -> list[str]:
        return [self.key, *self.copies]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    twins: list[Twin]


class Twins:
    """The content of the file. One process writes it: the one that may commit."""

    def __init__(self, path: str, disk: Disk, twins: Iterable[Twin] = ()) -> None:
        self._path = path
        self._disk = disk
        self._twins = {twin.key: twin for twin in twins}

    @classmethod
    def load(cls, folder: str | os.PathLike[str], disk: Disk) -> Twins:
        """Load the file in `tables/`; empty if there is none.

        Raises:
            OSError: it cannot be read.
            DamagedFile: its content is damaged.
            UnknownVersion: another version of arcpipe wrote it.
        """
        path = os.path.join(folder, FILENAME)
        content = durable.load(disk, path, lambda data: _decode(data, path))
        return cls(path, disk, content.twins if content is not None else ())

    def __iter__(self) -> Iterator[Twin]:
        return iter(list(self._twins.values()))

    def source(self, key: str) -> str:
        """Return the object that has the rows of this key of a commit file, and is there."""
        twin = self._twins.get(key)
        return key if twin is None else twin.source

    def objects(self, key: str) -> list[str]:
        """Return a key of a commit file, and its copies."""
        twin = self._twins.get(key)
        return [key] if twin is None else twin.objects

    def covered(self, node: str, folder: str, marker: int) -> list[Twin]:
        """Return those of a table that a marker covers."""
        return [twin for twin in self if (twin.node, twin.folder) == (node, folder) and twin.seq <= marker]

    def add(self, seq: int, node: str, folder: str, key: str, copy: str) -> None:
        """Note durably that a copy is about to be put.

        Raises:
            OSError: it is noted or not.
        """
        twin = self._twins.get(key) or Twin(seq, node, folder, key, [], key)
        if copy not in twin.copies:
            self._write({**self._twins, key: msgspec.structs.replace(twin, copies=[*twin.copies, copy])})

    def settle(self, sources: dict[str, str]) -> None:
        """Note durably which objects the tables have, by the keys of the commit files."""
        changed = {
            key: msgspec.structs.replace(twin, source=sources[key])
            for key, twin in self._twins.items()
            if sources.get(key, twin.source) != twin.source
        }
        if changed:
            self._write(self._twins | changed)

    def forget(self, keys: Collection[str]) -> None:
        """Forget objects of which one is left, and whose commit files are gone."""
        left = {key: twin for key, twin in self._twins.items() if key not in keys}
        if len(left) < len(self._twins):
            self._write(left)

    def _write(self, twins: dict[str, Twin]) -> None:
        if twins:
            durable.replace(self._disk, self._path, checked_json.encode(_Content(VERSION, list(twins.values()))))
        else:
            self._disk.unlink(self._path)
            self._disk.sync_directory(os.path.dirname(self._path))
        self._twins = twins


def _decode(data: bytes, path: str) -> _Content:
    consequence = "Nothing is committed to tables until that version runs again"
    return checked_json.decode(data, _Content, VERSION, path, consequence)
