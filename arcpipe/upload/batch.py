"""Batches: which sealed segments are uploaded together, written down durably before any work is done.

    batches/{id}.json             the manifest (upload.manifest): written once, atomically, before any work
    batches/{id}.journal          the journal (upload.journal): with the first record that has to be durable
    batches/{id}.uploaded.json    the manifest's name once every object is durable

A batch goes `planned` -> `uploaded` -> removed. A crash in `planned` redoes it from the same segments and overwrites
the same objects with the same rows; a crash in `uploaded` only finishes retiring the segments. At the end the journal
goes, then the manifest; a crash between them, or a disk that keeps one of the two removals, leaves what says
`uploaded`. Every step may be done again; none is ever skipped.

A manifest that is damaged is known from its journal. Without a journal nothing was ever put: it goes to quarantine, and
its segments are planned again. Where both are damaged they stay, and so do the segments that they may name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from arcpipe import durable, logs
from arcpipe.counters import Uploader
from arcpipe.errors import DamagedFile
from arcpipe.upload.journal import Converted, Journal, Record, Uploaded
from arcpipe.upload.keys import Layout
from arcpipe.upload.manifest import (
    VERSION,
    BatchFile,
    Decoded,
    Manifest,
    complete_lists_in,
    decode_manifest,
    encode_manifest,
    parse_batch_file,
    segments_named_in,
)
from arcpipe.upload.retry import is_full
from arcpipe.upload.schema import TableSchema
from arcpipe.upload.segments import keeps_original
from arcpipe.upload.spares import SPARES, Spares
from arcpipe.wal.directory import SEALED, Node, SegmentFile, WALDirectory
from arcpipe.wal.findings import Finding
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport
from arcpipe.wal.recovery import archive

log = logging.getLogger(__name__)

# Segments of all workers are put together up to this size: files neither tiny, nor a redo that takes long.
BATCH_TARGET_BYTES: Final = 512 << 20

# Seconds by which a segment that a batch names may seem younger than the batch: its id has whole seconds.
_SUSPECT_SECONDS: Final = 2.0


class Batch:
    """A batch on its way: its manifest, its journal, and how far it got."""

    def __init__(self, manifest: Manifest, journal: Journal, path: str, old: Decoded | None = None) -> None:
        self.manifest = manifest
        self.journal = journal
        self.path = path  # of the manifest
        self.segments = list(manifest.segments)
        self.tries = 0  # of this process
        self.is_left_over = False  # a former process may have tried it
        self._old = old

    @property
    def batch_id(self) -> str:
        return self.manifest.batch_id

    @property
    def state(self) -> Literal["planned", "uploaded"]:
        return "uploaded" if self.journal.uploaded or self.is_named_uploaded or self._was_uploaded else "planned"

    @property
    def has_unlisted_keys(self) -> bool:
        """Whether objects may have been put whose keys the journal does not have."""
        return self.manifest.version == 1 or not self.journal.is_complete

    @property
    def is_named_uploaded(self) -> bool:
        return self.path.endswith(".uploaded.json")

    @property
    def _was_uploaded(self) -> bool:
        return self._old is not None and self._old.uploaded

    @property
    def converted(self) -> Converted:
        """What is known since the conversion. Nothing, if damage took it: then every segment is kept."""
        if self._old is not None and self._old.uploaded:
            return Converted(self._old.archive, self._old.schema)
        return self.journal.converted or Converted(archive=self.segments if self.state == "uploaded" else [])


class _Files(NamedTuple):
    """What is there of a batch, by the kind of file: names."""

    order: tuple[int, int, str]
    names: dict[str, str]
    had_no_journal: bool


class _Kept(NamedTuple):
    """A batch whose manifest and journal are both damaged."""

    names: set[str]
    before: float  # seconds since the epoch: older segments may be among its own, too; 0 if the names are certain
    files: list[str]  # its own, in `batches/`


class Batches:
    """The batches of one WAL directory."""

    def __init__(self, directory: WALDirectory, node: Node, block: memoryview, store: str, layout: Layout) -> None:
        """Args: block: the uploader's counters, whose batch number outlives this process."""
        self._directory = directory
        self._node = node
        self._block = block
        self._store = store
        self._layout = layout
        self._spares = Spares(directory)
        self._planned: Batch | None = None  # chosen, but not known to be on disk
        self._replacing: dict[str, Batch] = {}  # by the old one's id: new plans that may be on disk or not
        self._alive: dict[str, Batch] = {}
        self._kept: dict[str, _Kept] = {}
        self.set_aside: set[str] = set()
        """Segments that are not to be planned for now."""

    # What a former process left

    def unfinished(self) -> list[Batch]:
        """Batches that a crash left, oldest first; tidies up after the others.

        Raises:
            OSError: a file cannot be read, so nobody knows which segments it names. Nothing may be planned.
            UnknownVersion: another version of arcpipe wrote one.
        """
        self._planned = None
        self._kept = {}
        files = self._files()
        loaded = {batch_id: self._load(batch_id, files[batch_id]) for batch_id in files}
        batches = {batch_id: batch for batch_id, batch in loaded.items() if batch is not None}
        for batch in list(batches.values()):
            replaced = batch.manifest.replaces
            if replaced in files:
                self._remove_files(files[replaced].names.values())
                batches.pop(replaced, None)
                self._kept.pop(replaced, None)
        self._block[Uploader.DAMAGED_MANIFESTS] = len(self._kept)
        self._alive = {batch_id: batches[batch_id] for batch_id in files if batch_id in batches}
        for batch in self._alive.values():
            batch.is_left_over = True
        self._spares.make()
        return list(self._alive.values())

    def _files(self) -> dict[str, _Files]:
        """The files of each batch, oldest batch first. What never got its name is removed, what is not ours stays."""
        disk, folder = self._directory.disk, self._directory.batches
        found: dict[str, _Files] = {}
        ours = {f"{name}.tmp" for name, _ in SPARES.values()}
        for name in disk.names(folder):
            file: BatchFile | None = parse_batch_file(name)
            if name in ours or (file is not None and file.is_temporary):
                disk.unlink(os.path.join(folder, name))
            elif file is not None:
                found.setdefault(file.batch_id, _Files(file.order, {}, file.had_no_journal)).names[file.kind] = name
        return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))

    def _load(self, batch_id: str, files: _Files) -> Batch | None:
        """A batch from its files; None for one that is kept aside, or whose manifest went to quarantine."""
        disk = self._directory.disk
        kind = ".uploaded.json" if ".uploaded.json" in files.names else ".json"
        path = os.path.join(self._directory.batches, files.names.get(kind, f"{batch_id}.json"))
        journal_path = self._journal_path(batch_id)
        journal = Journal.load(disk, journal_path, self._spares)
        decoded: Decoded | None = None
        damage = ""
        try:
            decoded = durable.load(disk, path, lambda data: decode_manifest(data, path))
        except DamagedFile as error:
            damage = str(error)
        if decoded is not None:
            if journal is None:
                journal = Journal(disk, journal_path, decoded.manifest, self._spares)
            elif journal.damage:
                log.error("journal %s is damaged: %s; batch %s goes on", journal_path, journal.damage, batch_id)
            if journal.manifest is None:
                journal.manifest = decoded.manifest
            return Batch(decoded.manifest, journal, path, decoded if decoded.manifest.version == 1 else None)
        if journal is not None and journal.manifest is not None:
            if damage:
                log.error("%s; its copy in the journal is used", damage)
            return Batch(journal.manifest, journal, path)
        self._give_up(batch_id, files, damage, can_plan_again=journal is None and kind == ".json")
        return None

    def _give_up(self, batch_id: str, files: _Files, damage: str, can_plan_again: bool) -> None:
        """Decide over a batch of which no intact manifest is left."""
        contents = self._contents(files)
        names = set().union(*map(segments_named_in, contents))
        waiting = {file.filename for file in self._directory.segments(SEALED)}
        if can_plan_again and not files.had_no_journal:
            where = self._directory.quarantine
            log.error("%s; nothing of it was put: it is moved to %s", damage, where, extra=logs.EACH)
            self._quarantine(files)
            return
        lists = [segments for content in contents for segments in complete_lists_in(content)]
        is_certain = any(
            len(set(each)) == len(each) and waiting.issuperset(each) and names == set(each) for each in lists
        )
        started = datetime.strptime(files.order[2], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
        before = 0.0 if is_certain else started + _SUSPECT_SECONDS
        self._kept[batch_id] = kept = _Kept(names, before, list(files.names.values()))
        held = sum(self._is_kept(file) for file in self._directory.segments(SEALED))
        if not held:
            log.error(
                "batch %s is damaged, but none of its segments is left; moved to quarantine", batch_id, extra=logs.EACH
            )
            del self._kept[batch_id]
            self._quarantine(files)
            return
        log.error(
            "manifest and journal of batch %s are damaged: it stays, and %d segments wait for an operator; "
            "they name %s",
            *(batch_id, held, ", ".join(sorted(kept.names)) or "none"),
            extra=logs.EACH,
        )

    def _contents(self, files: _Files) -> list[bytes]:
        disk = self._directory.disk
        contents = []
        for name in files.names.values():
            content = durable.load(disk, os.path.join(self._directory.batches, name), lambda data: data)
            contents.append(content or b"")
        return contents

    def _quarantine(self, files: _Files) -> None:
        for name in files.names.values():
            source = os.path.join(self._directory.batches, name)
            durable.move(self._directory.disk, source, os.path.join(self._directory.quarantine, name))

    def _is_kept(self, file: SegmentFile) -> bool:
        return any(file.filename in kept.names or file.modified <= kept.before for kept in self._kept.values())

    @property
    def has_kept(self) -> bool:
        """Whether segments wait for an operator."""
        return bool(self._kept)

    def _look_for_decisions(self) -> None:
        """Let go of the segments of damaged batches whose files an operator has moved away."""
        disk, folder = self._directory.disk, self._directory.batches
        for batch_id, kept in list(self._kept.items()):
            if all(disk.size(os.path.join(folder, name)) is None for name in kept.files):
                log.info("batch %s was moved away; its segments are planned again", batch_id)
                del self._kept[batch_id]
        self._block[Uploader.DAMAGED_MANIFESTS] = len(self._kept)

    # Planning

    def plan(self) -> Batch | None:
        """The next batch, durably written down; None if no sealed segment waits.

        Raises:
            OSError: it may be there or not. The next call writes the same one: two would upload the same rows.
        """
        if self._kept:
            self._look_for_decisions()
        if self._planned is None:
            self._planned = self._choose()
        batch = self._planned
        if batch is not None:
            self._spares.make()
            self._write(batch, may_shrink=True)
            self._planned = None
        return batch

    def _choose(self) -> Batch | None:
        reserved = self.set_aside.union(*(batch.segments for batch in self._alive.values()))
        chosen: list[str] = []
        size = 0
        for file in self._directory.segments(SEALED):
            if file.filename in reserved or self._is_kept(file):
                continue
            if chosen and size + file.size > BATCH_TARGET_BYTES:
                break
            chosen.append(file.filename)
            size += file.size
        return self._make(chosen) if chosen else None

    def _make(self, segments: list[str], old: Batch | None = None) -> Batch:
        self._block[Uploader.BATCH_SEQ] += 1
        started = datetime.fromtimestamp(time.time(), UTC).strftime("%Y%m%dT%H%M%S")
        number = f"{self._node.boot}.{self._block[Uploader.BATCH_SEQ]}"
        # The random part: two nodes with copies of one node.json may plan in the same second.
        batch_id = f"{self._node.node}-{started}-{number}-{secrets.token_hex(4)}"
        layout = self._layout if old is None else old.manifest.layout
        replaces = "" if old is None else old.batch_id
        manifest = Manifest(VERSION, batch_id, segments, self._store, layout, replaces)
        journal = Journal(self._directory.disk, self._journal_path(batch_id), manifest, self._spares)
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
        """A new plan for these segments instead of a batch that cannot be done as it was planned.

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
            new.segments, new.manifest.segments, new.manifest.skip = segments, list(segments), skip
            if skip:  # a damaged manifest must not forget it
                new.journal.begin()
            self._write(new, may_shrink=False)
        self._forget(old)
        self._replacing.pop(old.batch_id, None)
        return new

    def _write(self, batch: Batch, may_shrink: bool) -> None:
        """Write a manifest; over a spare file where the disk is full, with as many segments as go in."""
        disk = self._directory.disk
        try:
            durable.replace(disk, batch.path, encode_manifest(batch.manifest))
        except OSError as error:
            if not is_full(error):
                raise
            while may_shrink and len(encode_manifest(batch.manifest)) > self._spares.size_of("manifest"):
                del batch.manifest.segments[len(batch.segments) // 2 :]
                batch.segments = list(batch.manifest.segments)
            self._spares.use("manifest", batch.path, encode_manifest(batch.manifest), error)
        self._alive[batch.batch_id] = batch

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
        """Every object of the batch is durable; from here on nothing is put again.

        What a crash left and what is damaged is kept for a while, for somebody who wants to look at it.
        """
        records: list[Record] = []
        if not batch.journal.uploaded:
            archived = [name for name, report in reports.items() if keeps_original(report)]
            records = [Converted(archived, schema, list(used), list(strays), list(findings)), Uploaded()]
        self.finish(batch, records)

    def finish(self, batch: Batch, records: Sequence[Record] = ()) -> None:
        """Append the last records of a batch, and say by the manifest's name, too, that it is uploaded."""
        batch.journal.append(records)
        if not batch.is_named_uploaded:
            target = f"{batch.path.removesuffix('.json')}.uploaded.json"
            with contextlib.suppress(FileNotFoundError):  # renamed by a try that failed later, or removed
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
        """Lets the batch's segments go, then its files. May be done again after a crash at any point.

        Args:
            last_timestamps: µs by segment name, of the segments that may be written over.
            then: called when the segments are gone and the batch can still be told; on a full disk that is the first
                moment in which anything can be written.
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
        """Remove a batch's files: the journal first, as a manifest alone says all that a crash in between needs."""
        batch.journal.remove()
        self._remove_files([f"{batch.batch_id}.json", f"{batch.batch_id}.uploaded.json"])
        self._alive.pop(batch.batch_id, None)

    def _remove_files(self, names: Iterable[str]) -> None:
        disk, folder = self._directory.disk, self._directory.batches
        for name in sorted(names):  # "….journal" before "….json"
            disk.unlink(os.path.join(folder, name))
        disk.sync_directory(folder)

    def _journal_path(self, batch_id: str) -> str:
        return os.path.join(self._directory.batches, f"{batch_id}.journal")
