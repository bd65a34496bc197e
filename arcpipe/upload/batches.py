"""Batches: sealed segments that are uploaded together, written down durably before any work is done.

    batches/{id}.json             the manifest (upload.manifest): written once, atomically, before any work
    batches/{id}.journal          the journal (upload.journal): with the first record that has to be durable
    batches/{id}.uploaded.json    the manifest's name once every object is durable

A batch goes `planned` -> `uploaded` -> removed. After a crash in `planned`, the batch is done again
from the same segments, and overwrites the same objects with the same rows. After a crash in `uploaded`, only its
segments are retired. At the end the journal is removed, then the manifest. A crash between them, or a disk that keeps
one of the two removals, leaves a file that says `uploaded`. Every step may be done again; none is ever skipped.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from arcpipe import durable
from arcpipe.counters import Uploader
from arcpipe.errors import is_full
from arcpipe.lake.keys import Hidden, Layout
from arcpipe.units import MB
from arcpipe.upload.batch import Batch
from arcpipe.upload.batch_folder import BatchFolder
from arcpipe.upload.handover import Handover
from arcpipe.upload.journal import Converted, Journal, Record, Uploaded
from arcpipe.upload.manifest import VERSION, Manifest, encode_manifest
from arcpipe.upload.segments import keeps_original
from arcpipe.upload.spares import Spares
from arcpipe.upload.table_schema import TableSchema
from arcpipe.wal.directory import SEALED, NodeIdentity, SegmentFile, WALDirectory
from arcpipe.wal.findings import Finding
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport
from arcpipe.wal.recovery import archive


class Batches:
    """The batches of one WAL directory."""

    def __init__(
        self,
        directory: WALDirectory,
        node: NodeIdentity,
        block: memoryview,
        store: str,
        layout: Layout,
        batch_bytes: int = 512 * MB,
        uncommitted_bytes: int = 0,
        hidden: Hidden = "._",
    ) -> None:
        """Begin with what is in the directory.

        Args:
            block: the uploader's counters, whose batch number outlives this process.
            batch_bytes: the most that segments of one batch have together, unless it is one segment.
            uncommitted_bytes: the most that is handed over and not committed; 0 without tables.
            hidden: how names become components of keys, in new batches.
        """
        self.set_aside: set[str] = set()
        """Segments that are not to be planned for now."""
        self._directory = directory
        self._node = node
        self._block = block
        self._store = store
        self._layout = layout
        self._hidden = hidden
        self._batch_bytes = batch_bytes
        self._spares = Spares(directory, with_tables=uncommitted_bytes > 0)
        self.handover = Handover(directory, node, self._spares, uncommitted_bytes) if uncommitted_bytes else None
        """Makes uploaded batches a part of tables; None without tables."""
        self._folder = BatchFolder(directory, self._spares)
        self._planned: Batch | None = None  # chosen, but not known to be on disk
        self._replacing: dict[str, Batch] = {}  # by the old one's id: new plans that may be on disk or not
        self._alive: dict[str, Batch] = {}

    def unfinished(self) -> list[Batch]:
        """Read the batches that a crash left, oldest first; tidy up after the others.

        Raises:
            OSError: a file cannot be read, so nobody knows which segments it names. Nothing may be planned.
            UnknownVersion: another version of arcpipe wrote one.
        """
        self._planned = None
        self._alive = self._folder.load()
        self._block[Uploader.DAMAGED_MANIFESTS] = self._folder.kept
        sizes = {file.filename: file.size for file in self._directory.segments(SEALED)}
        for batch in self._alive.values():
            batch.is_left_over = True
            batch.size = sum(sizes.get(name, 0) for name in batch.segments)
        self._count()
        self._spares.make()
        return list(self._alive.values())

    @property
    def kept(self) -> frozenset[str]:
        """Return the ids of damaged batches that wait for an operator."""
        return self._folder.kept_ids

    @property
    def has_kept(self) -> bool:
        """Whether segments wait for an operator."""
        return self._folder.kept > 0

    # Planning

    def plan(
        self, is_due: Callable[[Sequence[SegmentFile]], bool] = lambda waiting: True, may_use_spares: bool = True
    ) -> Batch | None:
        """Plan the next batch and write it down durably; None if none is due.

        Args:
            is_due: tells whether sealed segments that are in no batch become one now.
            may_use_spares: whether a full disk is no failure. False while an older batch may need the spare files.

        Raises:
            OSError: it may be there or not. The next call writes the same one: two would upload the same rows.
        """
        if self._folder.kept:
            self._folder.look_for_decisions()
            self._block[Uploader.DAMAGED_MANIFESTS] = self._folder.kept
        if self._planned is None:
            self._planned = self._choose(is_due)
        batch = self._planned
        if batch is not None:
            self._spares.make()
            self._write(batch, may_shrink=True, may_use_spares=may_use_spares)
            self._planned = None
        return batch

    def _choose(self, is_due: Callable[[Sequence[SegmentFile]], bool]) -> Batch | None:
        waiting = self._waiting()
        if not waiting or not is_due(waiting):
            return None
        chosen: list[str] = []
        size = 0
        for file in self._waiting():  # more may have been sealed for this batch
            if chosen and size + file.size > self._batch_bytes:
                break
            chosen.append(file.filename)
            size += file.size
        if not chosen:
            return None
        batch = self._make(chosen)
        batch.size = size
        return batch

    def _waiting(self) -> list[SegmentFile]:
        """List the sealed segments that are in no batch, and may be, oldest first."""
        reserved = self.set_aside.union(*(batch.segments for batch in self._alive.values()))
        files = self._directory.segments(SEALED)
        return [file for file in files if file.filename not in reserved and not self._folder.is_kept(file)]

    def _make(self, segments: list[str], old: Batch | None = None) -> Batch:
        self._block[Uploader.BATCH_SEQ] += 1
        started = datetime.fromtimestamp(time.time(), UTC).strftime("%Y%m%dT%H%M%S")
        number = f"{self._node.boot}.{self._block[Uploader.BATCH_SEQ]}"
        # The random part: two nodes with copies of one node.json may plan in the same second.
        batch_id = f"{self._node.node}-{started}-{number}-{secrets.token_hex(4)}"
        layout = self._layout if old is None else old.manifest.layout
        hidden = self._hidden if old is None else old.manifest.hidden
        replaces = "" if old is None else old.batch_id
        manifest = Manifest(VERSION, batch_id, segments, self._store, layout, replaces, hidden)
        journal = Journal(self._directory.disk, self._folder.journal_path(batch_id), manifest, self._spares)
        return Batch(manifest, journal, os.path.join(self._directory.batches, f"{batch_id}.json"))

    def replace_again(self, old: Batch) -> Batch | None:
        """Finish a `replace` that failed: the new plan may be on disk, so the old one must not be done any more.

        Returns:
            The new batch, durably written down; None if there was no such failure.

        Raises:
            OSError: as `replace`.
        """
        new = self._replacing.get(old.batch_id)
        return None if new is None else self.replace(old, new.segments, new.manifest.skip)

    def replace(self, old: Batch, segments: list[str], skip: Iterable[str] = ()) -> Batch | None:
        """Plan these segments anew, instead of a batch that cannot be done as it was planned.

        Args:
            skip: folders of keys whose rows are in the store.

        Returns:
            The new batch, durably written down; None if there are no segments.

        Raises:
            OSError: it may be there or not. The next call for this batch writes it again.
        """
        new = None
        if segments:
            skip = sorted({*old.manifest.skip, *skip})
            new = self._replacing.get(old.batch_id)
            if new is None:
                new = self._replacing[old.batch_id] = self._make(segments, old)
                new.size = old.size
            new.segments, new.manifest.segments, new.manifest.skip = segments, list(segments), skip
            if skip:  # a damaged manifest must not forget it
                new.journal.begin()
            self._write(new, may_shrink=False)
        self._forget(old)
        self._replacing.pop(old.batch_id, None)
        return new

    def _write(self, batch: Batch, may_shrink: bool, may_use_spares: bool = True) -> None:
        """Write a manifest. Where the disk is full, it takes a spare file, and as many segments as fit in."""
        disk = self._directory.disk
        try:
            durable.replace(disk, batch.path, encode_manifest(batch.manifest))
        except OSError as error:
            if not is_full(error) or not may_use_spares:
                raise
            while may_shrink and len(encode_manifest(batch.manifest)) > self._spares.size_of("manifest"):
                del batch.manifest.segments[len(batch.segments) // 2 :]
                batch.segments = list(batch.manifest.segments)
            self._spares.use("manifest", batch.path, encode_manifest(batch.manifest), error)
        self._alive[batch.batch_id] = batch
        self._count()

    def _count(self) -> None:
        self._block[Uploader.BATCHED_SEGMENTS] = sum(len(batch.segments) for batch in self._alive.values())
        self._block[Uploader.BATCHED_BYTES] = sum(batch.size for batch in self._alive.values())

    # The end of a batch

    def mark_uploaded(
        self,
        batch: Batch,
        reports: dict[str, ScanReport],
        schema: list[TableSchema],
        used: Sequence[tuple[str, str]] = (),
        strays: Sequence[str] = (),
        findings: Sequence[Finding] = (),
    ) -> None:
        """Note that every object of the batch is durable: from here on nothing is put again.

        Segments that a crash left or that are damaged are kept for a while, for an operator to look at.
        """
        records: list[Record] = []
        if not batch.journal.uploaded:
            archived = [name for name, report in reports.items() if keeps_original(report)]
            records = [Converted(archived, schema, list(used), list(strays), list(findings)), Uploaded()]
        self.finish(batch, records)

    def finish(self, batch: Batch, records: Sequence[Record] = ()) -> None:
        """Append the last records of a batch, and rename its manifest to say that it is uploaded."""
        batch.journal.append(records)
        if not batch.is_named_uploaded:
            target = f"{batch.path.removesuffix('.json')}.uploaded.json"
            with contextlib.suppress(FileNotFoundError):  # an earlier try renamed or removed it
                self._directory.disk.rename(batch.path, target)
            self._directory.disk.sync_directory(self._directory.batches)
            batch.path = target

    def retire(
        self,
        batch: Batch,
        pool: FreePool | None,
        last_timestamps: dict[str, int],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Retire the batch's segments, then remove its files. May be done again after a crash at any point.

        Args:
            last_timestamps: the last timestamp, in µs, of each segment that may be written over, by name.
            then: called when the segments are gone and the files of the batch are not. On a full disk that is the first
                moment at which anything can be written.
        """
        assert batch.state == "uploaded"
        self.finish(batch)
        disk = self._directory.disk
        archived = batch.converted.archive
        for name in batch.segments:
            path = os.path.join(self._directory.path, name)
            if disk.size(path) is None:  # retired before the crash
                continue
            if name in archived:
                archive(self._directory, path)
            elif pool is None or name not in last_timestamps or not pool.put(path, last_timestamps[name]):
                disk.unlink(path)
        self._directory.sync()
        then()
        self._forget(batch)

    def _forget(self, batch: Batch) -> None:
        """Remove a batch's files: the journal first, because after a crash in between a manifest alone is enough."""
        batch.journal.remove()
        self._folder.remove([f"{batch.batch_id}.json", f"{batch.batch_id}.uploaded.json"])
        self._alive.pop(batch.batch_id, None)
        self._count()
