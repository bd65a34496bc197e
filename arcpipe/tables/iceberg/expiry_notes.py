"""Data files that an expiry is about to make nobody's: `tables/expired/{table's uuid}-….json` in the WAL directory.

    path = notes.add(uuid, snapshots, files)      # durable before the snapshots are forgotten
    …                                             # the expiry is committed, the files are deleted
    notes.remove(path)

Once their snapshots are forgotten, nothing else tells these files from those that wait for a table. After a crash, or
where a file could not be deleted, the next upkeep reads the note, and deletes what no snapshot needs.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection, Iterator
from functools import partial
from typing import Final

import msgspec

from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.errors import DamagedFile, UnknownVersion
from arcpipe.wal import checked_json

log = logging.getLogger(__name__)

VERSION: Final = 1
FOLDER: Final = "expired"


class Expiry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The snapshots of one expiry, and the files that no other snapshot has."""

    version: int
    snapshots: list[int]
    files: list[str]  # locations


class ExpiryNotes:
    """The notes of one WAL directory. Several processes may use them, each with notes of its own."""

    def __init__(self, folder: str, disk: Disk | None = None) -> None:
        """Make ready; nothing is read.

        Args:
            folder: `tables/` of the WAL directory.
        """
        self._folder = os.path.join(folder, FOLDER)
        self._disk = disk or Disk()

    def add(self, uuid: str, snapshots: Collection[int], files: Collection[str]) -> str:
        """Write a note durably; return its path. Raises OSError: it is there or not."""
        durable.make_folder(self._disk, self._folder)
        path = os.path.join(self._folder, f"{uuid}-{secrets.token_hex(8)}.json")
        content = Expiry(VERSION, sorted(snapshots), sorted(files))
        durable.replace(self._disk, path, checked_json.encode(content))
        return path

    def of(self, uuid: str) -> Iterator[tuple[str, Expiry]]:
        """Yield the notes of a table, each with its path. One that is damaged, or of a later version, is passed over.

        Raises:
            OSError: they cannot be read.
        """
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            if not name.startswith(f"{uuid}-") or not name.endswith(".json"):
                continue
            path = os.path.join(self._folder, name)
            try:
                found = durable.load(self._disk, path, partial(_decode, path=path))
            except (DamagedFile, UnknownVersion) as error:
                log.warning("%s; the files that it names stay in the store", error)
                continue
            if found is not None:
                yield path, found

    def remove(self, path: str) -> None:
        """Remove a note. A power cut may bring it back, which does no harm."""
        self._disk.unlink(path)


def _decode(data: bytes, path: str) -> Expiry:
    consequence = "Its files stay in the store until that version runs again"
    return checked_json.decode(data, Expiry, VERSION, path, consequence)
