"""The plan: what is merged, and how far it is. One file, `compaction/plan.json` in the WAL directory.

It is replaced as a whole and durably at each step, so after a crash it is of one step or of the next. The lock is held
by whoever may read or write it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

import msgspec

from arcpipe import durable, lock_file
from arcpipe.compaction.files import LakeFile
from arcpipe.disk import Disk
from arcpipe.errors import ArcpipeError
from arcpipe.lake.folders import Folder
from arcpipe.wal.checked_json import decode, encode

VERSION: Final = 1
HIDDEN_FOLDER: Final = ".arcpipe/compaction"
"""The folder of outputs that are not visible yet. Their names end in none that a reader looks for."""

MERGED: Final = "merged"
UNIQUE: Final = "unique"
"""The words in the names of merges, without `dedup` and with it."""

State = Literal["planned", "committed"]


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that is merged."""

    key: str
    size: int
    etag: str


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that a merge makes."""

    hidden: str
    key: str
    size: int
    rows: int


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One merge."""

    version: int
    state: State
    store: str  # the URL of the store
    merge: str  # the id of the merge, which its files have in their names
    folder: str
    dedup: bool
    inputs: list[Input]
    outputs: list[Output] = []  # once they are committed
    in_table: bool = False  # whether the inputs are files of a table

    @property
    def input_bytes(self) -> int:
        return sum(one.size for one in self.inputs)

    @property
    def output_bytes(self) -> int:
        return sum(one.size for one in self.outputs)


def make_plan(
    store: str, folder: Folder, files: Sequence[LakeFile], node: str, dedup: bool, in_table: bool = False
) -> Plan:
    """Plan to merge these files, which are in their order. The same files make the same names."""
    inputs = [Input(file.listed.key, file.listed.size, file.listed.etag) for file in files]
    last = files[-1]
    word = UNIQUE if dedup else MERGED
    merge = f"{node}-{last.time}-{last.order.boot}.{last.order.number}-{word}{digest_of(files, dedup)}"
    return Plan(VERSION, "planned", store, merge, folder.path, dedup, inputs, in_table=in_table)


def digest_of(files: Sequence[LakeFile], dedup: bool) -> str:
    """Return the hash of a merge's inputs, which are in their order, as its name has it."""
    inputs = ((file.listed.key, file.listed.size, file.listed.etag) for file in files)
    return hashlib.sha256(msgspec.json.encode([dedup, *inputs])).hexdigest()[:16]


def hidden_folder(node: str) -> str:
    """Return the key of the folder, with a slash, that only this node uses."""
    return f"{HIDDEN_FOLDER}/{node}/"


class Busy(ArcpipeError):
    """Another process of this node is compacting."""


class Plans:
    """The folder `compaction/` of a WAL directory: the plan, and who may follow it."""

    def __init__(self, wal_dir: str | os.PathLike[str], disk: Disk | None = None) -> None:
        self.folder = os.path.join(wal_dir, "compaction")
        self.path = os.path.join(self.folder, "plan.json")
        self._disk = disk or Disk()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to merge files of this node.

        Raises:
            Busy: another process holds it.
        """
        durable.make_folder(self._disk, self.folder)
        path = os.path.join(self.folder, "LOCK")
        try:
            fd = lock_file.take(path)
        except lock_file.Held as owner:
            raise Busy(f"process {owner} is compacting: it holds {path}") from None
        try:
            yield
        finally:
            os.close(fd)

    def read(self) -> Plan | None:
        """Return the plan that is not finished, if there is one.

        It is durable then: who wrote it may have died before its sync, and the lake is about to change as it says.

        Raises:
            OSError: it cannot be read, or is durable or not.
            DamagedFile: its content is damaged.
            UnknownVersion: another version of arcpipe wrote it.
        """
        plan = durable.load(self._disk, self.path, self._decode)
        if plan is not None:
            self._disk.sync_directory(self.folder)
        return plan

    def write(self, plan: Plan) -> None:
        """Write the plan durably. After an OSError it is the former one or this one."""
        durable.replace(self._disk, self.path, encode(plan))

    def remove(self) -> None:
        """Remove the plan durably: its merge is finished or undone."""
        self._disk.unlink(self.path)
        self._disk.sync_directory(self.folder)

    def _decode(self, data: bytes) -> Plan:
        return decode(data, Plan, VERSION, self.path, "Nothing is compacted until that version has run again")
