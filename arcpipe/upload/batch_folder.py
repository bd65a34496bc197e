"""The folder `batches/`: read what a crash left in it, and decide on batches whose files are damaged.

A manifest that is damaged is known from its journal. Without a journal nothing was ever put: the manifest goes to
quarantine, and its segments are planned again. Where both are damaged they stay, and so do the segments that they may
name, until an operator moves the files away.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from arcpipe import durable, logs
from arcpipe.errors import DamagedFile
from arcpipe.upload.batch import Batch
from arcpipe.upload.journal import Journal
from arcpipe.upload.manifest import (
    BatchFile,
    Decoded,
    complete_lists_in,
    decode_manifest,
    parse_batch_file,
    segments_named_in,
)
from arcpipe.upload.spares import SPARES, SPARES_OF_TABLES, Spares
from arcpipe.wal.directory import SEALED, SegmentFile, WALDirectory

log = logging.getLogger(__name__)

# Seconds by which a segment that a batch names may seem younger than the batch: the batch id has whole seconds.
_SUSPECT_SECONDS: Final = 2.0


class _Files(NamedTuple):
    """The files of one batch."""

    order: tuple[int, int, str]
    names: dict[str, str]  # by the kind of file
    had_no_journal: bool


class _Kept(NamedTuple):
    """A batch whose manifest and journal are both damaged."""

    names: set[str]  # of segments that its files name
    before: float  # seconds since the epoch: older segments may belong to it, too; 0 if `names` is certain
    files: list[str]  # its own, in `batches/`


class BatchFolder:
    """Read and remove the files in `batches/`."""

    def __init__(self, directory: WALDirectory, spares: Spares) -> None:
        self._directory = directory
        self._spares = spares
        self._kept: dict[str, _Kept] = {}

    @property
    def kept(self) -> int:
        """The number of damaged batches that wait for an operator."""
        return len(self._kept)

    @property
    def kept_ids(self) -> frozenset[str]:
        """Return the ids of the damaged batches that wait for an operator."""
        return frozenset(self._kept)

    def load(self) -> dict[str, Batch]:
        """Read the batches that a crash left, oldest first, by id; tidy up after the others.

        What is read is durable when this returns: who wrote it may have died before its sync.

        Raises:
            OSError: a file cannot be read, so nobody knows which segments it names.
            UnknownVersion: another version of arcpipe wrote one.
        """
        self._kept = {}
        files = self._files()
        if files:
            self._directory.disk.sync_directory(self._directory.batches)
        loaded = {batch_id: self._load(batch_id, files[batch_id]) for batch_id in files}
        batches = {batch_id: batch for batch_id, batch in loaded.items() if batch is not None}
        for batch in list(batches.values()):
            replaced = batch.manifest.replaces
            if replaced in files:
                self.remove(files[replaced].names.values())
                batches.pop(replaced, None)
                self._kept.pop(replaced, None)
        return {batch_id: batches[batch_id] for batch_id in files if batch_id in batches}

    def _files(self) -> dict[str, _Files]:
        """List the files of each batch, oldest batch first. Removes unfinished files, and leaves foreign ones."""
        disk, folder = self._directory.disk, self._directory.batches
        found: dict[str, _Files] = {}
        ours = {f"{name}.tmp" for name, _ in (SPARES | SPARES_OF_TABLES).values()}
        for name in disk.names(folder):
            file: BatchFile | None = parse_batch_file(name)
            if name in ours or (file is not None and file.is_temporary):
                disk.unlink(os.path.join(folder, name))
            elif file is not None:
                found.setdefault(file.batch_id, _Files(file.order, {}, file.had_no_journal)).names[file.kind] = name
        return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))

    def _load(self, batch_id: str, files: _Files) -> Batch | None:
        """Read a batch from its files; None if it is damaged, and stays or went to quarantine."""
        disk = self._directory.disk
        kind = ".uploaded.json" if ".uploaded.json" in files.names else ".json"
        path = os.path.join(self._directory.batches, files.names.get(kind, f"{batch_id}.json"))
        journal_path = self.journal_path(batch_id)
        journal = Journal.load(disk, journal_path, self._spares)
        if journal is not None:
            journal.settle()
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
        """Decide on a batch without an intact manifest: it goes to quarantine, or stays for an operator."""
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
        held = sum(self.is_kept(file) for file in self._directory.segments(SEALED))
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

    def is_kept(self, file: SegmentFile) -> bool:
        """Tell whether a segment may belong to a damaged batch, and so waits for an operator."""
        return any(file.filename in kept.names or file.modified <= kept.before for kept in self._kept.values())

    def look_for_decisions(self) -> None:
        """Let go of the segments of damaged batches whose files an operator has moved away."""
        disk, folder = self._directory.disk, self._directory.batches
        for batch_id, kept in list(self._kept.items()):
            if all(disk.size(os.path.join(folder, name)) is None for name in kept.files):
                log.info("batch %s was moved away; its segments are planned again", batch_id)
                del self._kept[batch_id]

    def remove(self, names: Iterable[str]) -> None:
        """Remove files durably."""
        disk, folder = self._directory.disk, self._directory.batches
        for name in sorted(names):  # "….journal" before "….json"
            disk.unlink(os.path.join(folder, name))
        disk.sync_directory(folder)

    def journal_path(self, batch_id: str) -> str:
        """Name the journal of a batch."""
        return os.path.join(self._directory.batches, f"{batch_id}.journal")
