"""The handover: an uploaded batch becomes a commit file, from which the committer adds its objects to tables.

    objects put -> strays removed -> journal says "uploaded" -> HANDOVER -> segments retired -> batch forgotten

A batch may end again after a crash at any line. It is handed over once: the folder `tables/` is asked for its batch id
before a number is issued, and a commit file stays there until its batch is forgotten (`tables.commit_file`).

Where the disk is full, ledger and commit file are written over spare files: the segments that are retired after it are
what makes space.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from arcpipe import durable
from arcpipe.errors import ArcpipeError, DamagedFile, is_full
from arcpipe.storage import ObjectStore
from arcpipe.tables.commit_file import (
    VERSION,
    CommitFile,
    CommitFileName,
    CommitFiles,
    DataFile,
    by_table,
    encode,
)
from arcpipe.tables.ledger import Ledger
from arcpipe.upload.batch import Batch
from arcpipe.upload.journal import KeyRecord
from arcpipe.upload.spares import Spares, Use
from arcpipe.wal.directory import NodeIdentity, WALDirectory

log = logging.getLogger(__name__)

SUFFIX: Final = ".parquet"
"""The end of the keys that tables hold: dead letters have another."""


class TablesBehind(ArcpipeError):
    """So much is handed over and not committed that no more may follow."""


class Handover:
    """Writes the commit files of one WAL directory. One thread at a time may call it."""

    def __init__(self, directory: WALDirectory, node: NodeIdentity, spares: Spares, most_bytes: int) -> None:
        """Make ready; nothing is read.

        Args:
            most_bytes: of objects that are handed over and not committed; a batch that finds more has to wait.
        """
        self._files = CommitFiles(directory.path, directory.disk)
        self._disk = directory.disk
        self._node = node
        self._spares = spares
        self._most_bytes = most_bytes
        self._ledger: Ledger | None = None
        self._sizes: dict[str, int] = {}  # bytes of the objects of each commit file, by its name
        self._issued = "", 0  # a batch id, and the number that was issued for it, while its file is not written

    def hand_over(self, batch_id: str, store: str, files: Mapping[str, DataFile]) -> bool:
        """Write the commit file of a batch durably, unless it has one.

        Args:
            store: the URL of the store that has the objects.
            files: by key; what is no Parquet file is left out.

        Returns:
            True if it was written.

        Raises:
            TablesBehind: too much waits.
            OSError: it may be there or not; the next call finds out.
            DamagedFile, UnknownVersion: the ledger cannot be used, so no number may be issued.
        """
        files = {key: file for key, file in files.items() if key.endswith(SUFFIX)}
        if not files:
            return False
        if self._ledger is None:
            self._files.make()
            self._files.tidy()
            self._ledger = Ledger.load(self._files.folder, self._disk)
        names = self._files.names()
        earlier = [name for name in names if name.batch_id == batch_id]
        if earlier:
            self._files.sync()
            files = self._without(files, earlier)
            if not files:
                return False
        self._require_room(names)
        self._spares.make()
        seq = self._issue(self._ledger, batch_id)
        content = CommitFile(VERSION, seq, self._node.node, batch_id, store, by_table(files.items()))
        name = f"{seq:020}-{batch_id}.json"
        self._write("commit", self._files.path(name), encode(content), lambda: encode(content, compressed=True))
        self._issued = "", 0
        self._sizes[name] = content.bytes
        return True

    def _issue(self, ledger: Ledger, batch_id: str) -> int:
        """Issue a number for a batch; after a write that failed it is the same: the spare for the ledger is used up."""
        if self._issued[0] != batch_id:
            seq = ledger.issue(self._node, lambda path, data: self._write("ledger", path, data, None))
            self._issued = batch_id, seq
        return self._issued[1]

    def _without(self, files: Mapping[str, DataFile], earlier: list[CommitFileName]) -> dict[str, DataFile]:
        """Leave out what earlier commit files of the batch have.

        They have it all, unless the batch was planned anew without segments that were missing, and these came back.
        """
        left = dict(files)
        for name in earlier:
            try:
                content = self._files.read(name)
            except DamagedFile as error:
                log.error("%s; its batch was handed over, and is not again", error)
                return {}
            for table in content.tables if content is not None else ():
                for key in table.keys():  # noqa: SIM118 (it is no mapping)
                    left.pop(key, None)
        return left

    def _require_room(self, names: list[CommitFileName]) -> None:
        self._sizes = {name.filename: self._size(name) for name in names}
        waiting = sum(self._sizes.values())
        if waiting >= self._most_bytes:
            raise TablesBehind(
                f"{len(names)} batches with {waiting / 1e6:.0f} MB wait for their commit to tables, and "
                f"tables.max_uncommitted_mb allows {self._most_bytes / 1e6:.0f} MB: see why the committer cannot commit"
            )

    def _size(self, name: CommitFileName) -> int:
        known = self._sizes.get(name.filename)
        if known is not None:
            return known
        try:
            content = self._files.read(name)
        except (ArcpipeError, OSError):  # the committer complains of it; its bytes are unknown
            return 0
        return content.bytes if content is not None else 0

    def _write(self, use: Use, path: str, data: bytes, smaller: Callable[[], bytes] | None) -> None:
        try:
            durable.replace(self._disk, path, data)
        except OSError as error:
            if not is_full(error):
                raise
            if smaller is not None and len(data) > self._spares.size_of(use):
                data = smaller()
            self._spares.use(use, path, data, error)


def files_of(records: Iterable[KeyRecord]) -> dict[str, DataFile]:
    """Return the files of a batch by their keys, from the records of its journal."""
    return {
        record.key: DataFile(
            record.key,
            record.rows,
            record.bytes,
            -1 if record.min_us is None else record.min_us,
            -1 if record.max_us is None else record.max_us,
        )
        for record in records
    }


async def files_to_hand_over(batch: Batch, store: ObjectStore) -> dict[str, DataFile]:
    """Return the files of a batch that an earlier process uploaded, by key.

    A journal that was cut short by a full disk or by damage does not have them all, and a batch of version 1 has none:
    then the store is listed. What earlier tries left was removed before the batch was uploaded.

    Raises:
        StorageError: the list is incomplete.
    """
    journal = batch.journal
    if journal.converted is not None and not batch.has_unlisted_keys and not journal.damage:
        strays = set(journal.converted.strays)
        return files_of(record for key, record in journal.keys.items() if key not in strays)
    log.warning(
        "the journal of batch %s does not name all of its objects: looking for them in %s", batch.batch_id, store.url
    )
    own = re.compile(rf".+_{re.escape(batch.batch_id)}(\.\d+)?_\d+\.parquet")
    found: dict[str, DataFile] = {}
    async for page in store.list_objects(""):  # a store may have millions of objects
        for key in (one.key for one in page):
            if key[0] not in "._" and key.count("/") >= 2 and own.fullmatch(key):
                found[key] = DataFile(key, -1, -1, -1, -1)
    return found
