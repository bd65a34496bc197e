"""Manifests: lists of a table's files, and the list of these lists that a snapshot has.

A commit adds one small manifest. So that a table does not end with a million of them, small ones are merged: when
enough of one size are there, they become one of the next size, as the levels of an LSM tree do. So each entry is
written again a few times in all, and a list has some dozens of manifests at most for each partition spec and size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Final

from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    UNASSIGNED_SEQ,
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
    data_file_with_partition,
    manifest_entry_schema_with_data_file,
    read_manifest_list,
    write_manifest_list,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.typedef import TableVersion

_LEVEL: Final = 32  # manifests of one level that become one of the next; a list is read and written by each commit
_MOST_ENTRIES: Final = 20_000  # of one manifest: some 4 MB, about what others' merges aim at
KEPT_LISTS: Final = 4_000  # manifests of all kept lists together: about 1 KB each


class ManifestLists:
    """The manifest lists of the snapshots that were used last. A list at a location never changes."""

    def __init__(self, most: int = KEPT_LISTS) -> None:
        self._most = most
        self._kept: OrderedDict[str, list[ManifestFile]] = OrderedDict()
        self._count = 0

    def of(self, snapshot: Snapshot | None, files: FileIO) -> list[ManifestFile]:
        """Return the manifests of a snapshot that have live files."""
        if snapshot is None:
            return []
        found = self._kept.get(snapshot.manifest_list)
        if found is None:
            found = list(read_manifest_list(files.new_input(snapshot.manifest_list)))
            self.put(snapshot.manifest_list, found)
        return [manifest for manifest in found if manifest.has_added_files() or manifest.has_existing_files()]

    def put(self, location: str, manifests: list[ManifestFile], instead_of: str = "") -> None:
        self._drop(instead_of)
        self._drop(location)
        self._kept[location] = manifests
        self._count += len(manifests)
        while self._count > self._most and self._kept:
            self._count -= len(self._kept.popitem(last=False)[1])

    def _drop(self, location: str) -> None:
        if (gone := self._kept.pop(location, None)) is not None:
            self._count -= len(gone)


class NewManifests:
    """Writes the manifests and the manifest list of one snapshot of a table."""

    def __init__(self, table: Table, snapshot_id: int, commit_id: str) -> None:
        self._table = table
        self._snapshot_id = snapshot_id
        self._commit_id = commit_id
        self._number = 0
        self._locations = table.location_provider()
        self._compression = table.metadata.properties.get(
            TableProperties.WRITE_AVRO_COMPRESSION, TableProperties.WRITE_AVRO_COMPRESSION_DEFAULT
        )

    def added(self, files: Iterable[DataFile]) -> ManifestFile:
        """Write a manifest of new files, of the table's present partition spec."""
        entries = [
            ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED,
                snapshot_id=self._snapshot_id,
                sequence_number=None,
                file_sequence_number=None,
                data_file=file,
            )
            for file in files
        ]
        return self.write(self._table.metadata.spec(), entries)

    def write(self, spec: PartitionSpec, entries: Iterable[ManifestEntry]) -> ManifestFile:
        """Write a manifest of these entries."""
        location = self._locations.new_metadata_location(f"{self._commit_id}-m{self._number}.avro")
        self._number += 1
        with _Writer(
            spec=spec,
            schema=self._table.metadata.schema(),
            output_file=self._table.io.new_output(location),
            snapshot_id=self._snapshot_id,
            avro_compression=self._compression,  # type: ignore[arg-type]
        ) as writer:
            for entry in entries:
                writer.add_entry(entry)
        return writer.to_manifest_file()

    def write_list(
        self, manifests: Sequence[ManifestFile], parent_id: int | None, sequence_number: int
    ) -> tuple[str, list[ManifestFile]]:
        """Write the manifest list. Returns its location and the manifests as it has them."""
        location = self._locations.new_metadata_location(f"snap-{self._snapshot_id}-0-{self._commit_id}.avro")
        numbered = [_numbered(manifest, sequence_number) for manifest in manifests]
        with write_manifest_list(
            format_version=self._table.metadata.format_version,
            output_file=self._table.io.new_output(location),
            snapshot_id=self._snapshot_id,
            parent_snapshot_id=parent_id,
            sequence_number=sequence_number,
            avro_compression=self._compression,  # type: ignore[arg-type]
        ) as writer:
            writer.add_manifests(numbered)
        return location, numbered

    def merged(self, manifests: Sequence[ManifestFile], least: int = _LEVEL) -> list[ManifestFile]:
        """Merge manifests of data files where `least` or more of one level are there; the others stay as they are."""
        levels: dict[tuple[int, int], list[ManifestFile]] = {}
        kept = []
        for manifest in manifests:
            entries = _entries(manifest)
            if manifest.content != ManifestContent.DATA or entries >= _MOST_ENTRIES:
                kept.append(manifest)
            else:
                levels.setdefault((manifest.partition_spec_id, _level(entries)), []).append(manifest)
        for (spec_id, _), group in levels.items():
            if len(group) < max(least, 2):
                kept += group
                continue
            for part in _bounded(group):
                kept.append(self._merge(spec_id, part) if len(part) > 1 else part[0])
        return kept

    def _merge(self, spec_id: int, group: Sequence[ManifestFile]) -> ManifestFile:
        entries = (
            existing(entry)
            for manifest in group
            for entry in manifest.fetch_manifest_entry(self._table.io, discard_deleted=True)
        )
        return self.write(self._table.metadata.specs()[spec_id], entries)


class _Writer(ManifestWriterV2):
    """pyiceberg's writer, which would make the schema of an entry twice for each manifest, at 2 ms each."""

    def _with_partition(self, format_version: TableVersion) -> Schema:
        partition = self._spec.partition_type(self._schema)
        key = (format_version, str(partition))
        if key not in _entry_schemas:
            data_file = data_file_with_partition(partition_type=partition, format_version=format_version)
            _entry_schemas[key] = manifest_entry_schema_with_data_file(format_version, data_file)
        return _entry_schemas[key]


# There are a few forms of partitions: by day, by hour, and what others make.
_entry_schemas: dict[tuple[TableVersion, str], Schema] = {}


def existing(entry: ManifestEntry) -> ManifestEntry:
    """Return the entry as a later snapshot has it."""
    return _with_status(entry, ManifestEntryStatus.EXISTING, entry.snapshot_id)


def deleted(entry: ManifestEntry, snapshot_id: int) -> ManifestEntry:
    """Return the entry as the snapshot has it that takes the file out of the table."""
    return _with_status(entry, ManifestEntryStatus.DELETED, snapshot_id)


def _with_status(entry: ManifestEntry, status: ManifestEntryStatus, snapshot_id: int | None) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )


def _numbered(manifest: ManifestFile, sequence_number: int) -> ManifestFile:
    """Give a new manifest its sequence number, as the writer of the list does, so that it is known without reading."""
    if manifest.sequence_number != UNASSIGNED_SEQ and manifest.min_sequence_number != UNASSIGNED_SEQ:
        return manifest
    numbered = copy(manifest)
    numbered._data = list(manifest._data)
    if numbered.sequence_number == UNASSIGNED_SEQ:
        numbered.sequence_number = sequence_number
    if numbered.min_sequence_number == UNASSIGNED_SEQ:
        numbered.min_sequence_number = sequence_number
    return numbered


def _entries(manifest: ManifestFile) -> int:
    return (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)


def _level(entries: int) -> int:
    """Return the level of a manifest: 0 for fewer than 32 entries, 1 for fewer than 1024, ….."""
    return (max(entries, 1).bit_length() - 1) // (_LEVEL.bit_length() - 1)


def _bounded(group: Sequence[ManifestFile]) -> list[list[ManifestFile]]:
    """Split a group, so that none has more than the most entries."""
    parts: list[list[ManifestFile]] = [[]]
    count = 0
    for manifest in group:
        if parts[-1] and count + _entries(manifest) > _MOST_ENTRIES:
            parts.append([])
            count = 0
        parts[-1].append(manifest)
        count += _entries(manifest)
    return parts
