"""Batches: which completed segments are shipped together, written down durably before any work is done.

A manifest goes `planned` -> `uploaded` -> removed. A crash in `planned` redoes the batch from the same segments and
overwrites the same objects with the same rows; a crash in `uploaded` only finishes retiring the segments. Every step
may be done again; none is ever skipped.
"""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from arcpipe import durable
from arcpipe.counters import Uploader
from arcpipe.upload.parquet import Layout
from arcpipe.upload.schema import TableSchema
from arcpipe.wal.directory import SEALED, Node, SegmentFile, WALDirectory
from arcpipe.wal.pool import FreePool
from arcpipe.wal.reader import ScanReport
from arcpipe.wal.recovery import archive

log = logging.getLogger(__name__)

# Segments of all workers are put together up to this size: files neither tiny, nor a redo that takes long.
BATCH_TARGET_BYTES: Final = 512 << 20


class Manifest(msgspec.Struct):
    """A batch as it is written down. Segment names are file names in the log directory, in the order of reading."""

    batch_id: str
    state: Literal["planned", "uploaded"]
    segments: list[str]
    store: str  # the store's URL when the batch was planned
    layout: Layout  # of the object keys, which must not change between two tries
    archive: list[str] = []  # segments to keep as `.recovered`: known once they were read
    schema: list[TableSchema] = []  # what the batch changes in the schema registry: known once it is converted


class Batches:
    """The manifests of one log directory."""

    def __init__(self, directory: WALDirectory, node: Node, block: memoryview, store: str, layout: Layout) -> None:
        """Args: block: the uploader's counters, whose batch number outlives this process."""
        self._directory = directory
        self._node = node
        self._block = block
        self._store = store
        self._layout = layout
        self._planned: Manifest | None = None  # chosen, but not known to be on disk

    def unfinished(self) -> list[Manifest]:
        """Manifests that a crash left, oldest first. One that cannot be read never ordered anything: it is removed.

        (Manifests are renamed into place whole and synced; only a damaged disk makes an unreadable one, and then
        its segments are simply planned again: under a new batch id, so the log says so.)
        """
        found = []
        for name in sorted(os.listdir(self._directory.batches)):
            path = os.path.join(self._directory.batches, name)
            if not name.endswith(".json"):  # never renamed into place
                self._directory.disk.unlink(path)
                continue
            try:
                with open(path, "rb") as file:
                    found.append(msgspec.json.decode(file.read(), type=Manifest))
            except msgspec.DecodeError as error:
                log.error(
                    "manifest %s is damaged (%s): its segments are shipped again under a new batch id, "
                    "objects of batch %s may hold the same rows",
                    name,
                    error,
                    name.removesuffix(".json"),
                )
                self._directory.disk.unlink(path)
        return found

    def plan(self) -> Manifest | None:
        """The next batch, durably written down; None if no completed segment waits.

        Raises:
            OSError: it may be there or not. The next call writes the same one: two would ship the same rows.
        """
        if self._planned is None:
            self._planned = self._choose()
        manifest = self._planned
        if manifest is not None:
            self._write(manifest)
            self._planned = None
        return manifest

    def _choose(self) -> Manifest | None:
        chosen: list[SegmentFile] = []
        size = 0
        for file in self._directory.segments(SEALED):
            if chosen and size + file.size > BATCH_TARGET_BYTES:
                break
            chosen.append(file)
            size += file.size
        if not chosen:
            return None
        self._block[Uploader.BATCH_SEQ] += 1
        started = datetime.fromtimestamp(time.time(), UTC).strftime("%Y%m%dT%H%M%S")
        batch_id = f"{self._node.node}-{started}-{self._node.boot}.{self._block[Uploader.BATCH_SEQ]}"
        names = [file.filename for file in chosen]
        return Manifest(batch_id, "planned", names, self._store, self._layout)

    def mark_uploaded(self, manifest: Manifest, reports: dict[str, ScanReport], schema: list[TableSchema]) -> None:
        """Every object of the batch is durable; from here on nothing is uploaded again.

        What a crash left and what is damaged is kept for a while, for somebody who wants to look at it.
        """
        manifest.state = "uploaded"
        manifest.archive = [
            name
            for name, report in reports.items()
            if report.damage or (report.end is not None and report.end.recovered)
        ]
        manifest.schema = schema
        self._write(manifest)

    def retire(self, manifest: Manifest, pool: FreePool | None, last_timestamps: dict[str, int]) -> None:
        """Lets the batch's segments go, then the manifest. May be done again after a crash at any point.

        Args:
            last_timestamps: µs by segment name, of the segments that may be written over.
        """
        assert manifest.state == "uploaded"
        for name in manifest.segments:
            path = os.path.join(self._directory.path, name)
            if not os.path.exists(path):  # retired before the crash
                continue
            if name in manifest.archive:
                archive(self._directory, path)
            elif pool is None or name not in last_timestamps or not pool.put(path, last_timestamps[name]):
                self._directory.disk.unlink(path)
        self._directory.sync()
        self._directory.disk.unlink(self._path(manifest))
        self._directory.disk.sync_directory(self._directory.batches)

    def _write(self, manifest: Manifest) -> None:
        durable.replace(self._directory.disk, self._path(manifest), msgspec.json.encode(manifest))

    def _path(self, manifest: Manifest) -> str:
        return os.path.join(self._directory.batches, f"{manifest.batch_id}.json")
