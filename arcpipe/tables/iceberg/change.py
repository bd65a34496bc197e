"""One change of a table: what is staged on exactly the metadata that was loaded, and one attempt to commit it.

    change = Change(catalogue, loaded, lists)
    change.set_properties({"arcpipe.node.4f1c": "42"})
    change.add_columns(columns)
    change.append(data_files)
    change.attempt()            # Conflict if the table is not as it was loaded

The requirements of the attempt are the table's identity, its newest snapshot and, if columns are added, its schema. A
marker only ever changes together with a snapshot, so a commit that requires the snapshot requires the marker, too.

What a failed attempt wrote stays: an answer that was lost looks like a failure, and then the table refers to it.
`cleaning` removes what no table can ever refer to.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.name_mapping import MappedField, NameMapping
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import (
    AddSchemaUpdate,
    AddSnapshotUpdate,
    AssertCurrentSchemaId,
    AssertDefaultSpecId,
    AssertLastAssignedFieldId,
    AssertRefSnapshotId,
    AssertTableUUID,
    RemoveSnapshotsUpdate,
    SetCurrentSchemaUpdate,
    SetPropertiesUpdate,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
)
from pyiceberg.types import IcebergType, NestedField

from arcpipe.tables.base import Conflict
from arcpipe.tables.iceberg.catalogue import Catalogue
from arcpipe.tables.iceberg.manifests import ManifestLists, NewManifests, deleted, existing

# Seconds from staging to the attempt. `cleaning` removes files that were staged long before; a process that was stopped
# in between, and goes on, must not commit them.
_MOST_SECONDS: Final = 3_600.0


class Change:
    """A change that is being staged."""

    def __init__(self, catalogue: Catalogue, loaded: Table, lists: ManifestLists) -> None:
        self.loaded = loaded
        self._catalogue = catalogue
        self._lists = lists
        self._metadata = loaded.metadata
        self._began = time.monotonic()
        self._updates: list[TableUpdate] = []
        self._requirements: list[TableRequirement] = [
            AssertTableUUID(uuid=self._metadata.table_uuid),
            AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=self._metadata.current_snapshot_id),
        ]
        self._properties: dict[str, str] = {}
        self._schema_id = self._metadata.current_schema_id
        self._list: tuple[str, list[ManifestFile]] | None = None
        self.snapshot_id = self._metadata.current_snapshot_id or 0

    def set_properties(self, properties: Mapping[str, str]) -> None:
        self._properties |= properties

    def add_columns(self, columns: Sequence[tuple[str, IcebergType]]) -> dict[str, int]:
        """Add columns at the end of the table's. Returns their ids."""
        schema, last = self._metadata.schema(), self._metadata.last_column_id
        fields = [
            NestedField(last + number, name, type_, required=False) for number, (name, type_) in enumerate(columns, 1)
        ]
        if fields:
            self._schema_id = max(one.schema_id for one in self._metadata.schemas) + 1
            new = Schema(
                *schema.fields, *fields, schema_id=self._schema_id, identifier_field_ids=schema.identifier_field_ids
            )
            self._updates += [AddSchemaUpdate(schema_=new), SetCurrentSchemaUpdate(schema_id=-1)]
            self._requirements += [
                AssertCurrentSchemaId(current_schema_id=schema.schema_id),
                AssertLastAssignedFieldId(last_assigned_field_id=last),
            ]
        return {field.name: field.field_id for field in fields}

    def map_names(self, ids: Mapping[str, int]) -> None:
        """Have files without field ids read by these names, besides those that are mapped already."""
        mapped = self._metadata.name_mapping()
        known = list(mapped) if mapped is not None else []
        # A name belongs to one column: one that a person dropped gives its name to the new one.
        kept = [_without(field, ids) for field in known]
        new = [MappedField(field_id=id_, names=[name]) for name, id_ in ids.items()]
        mapping = NameMapping([*(field for field in kept if field.names), *new])
        self.set_properties({TableProperties.DEFAULT_NAME_MAPPING: mapping.model_dump_json()})

    # Snapshots.

    def append(self, files: Sequence[DataFile]) -> None:
        """Add files."""
        new = self._new_manifests()
        self._requirements.append(AssertDefaultSpecId(default_spec_id=self._metadata.default_spec_id))
        before = self._lists.of(self._metadata.current_snapshot(), self.loaded.io)
        self._stage(new, Operation.APPEND, [new.added(files), *new.merged(before)], added=files)

    def replace(self, removed: set[str], added: Sequence[DataFile], operation: Operation) -> None:
        """Take files, by their locations, out of the table, and add others.

        Raises:
            Conflict: one of them is not in the table.
        """
        new = self._new_manifests()
        missing = set(removed)
        manifests: list[ManifestFile] = []
        gone: dict[int, list[ManifestEntry]] = {}
        for manifest in self._lists.of(self._metadata.current_snapshot(), self.loaded.io):
            entries = self._entries(manifest)
            out = [entry for entry in entries if entry.data_file.file_path in removed]
            if not out:
                manifests.append(manifest)
                continue
            missing -= {entry.data_file.file_path for entry in out}
            gone.setdefault(manifest.partition_spec_id, []).extend(out)
            if rest := [existing(entry) for entry in entries if entry.data_file.file_path not in removed]:
                manifests.append(new.write(self._metadata.specs()[manifest.partition_spec_id], rest))
        if missing:
            name = ".".join(self.loaded.name())
            raise Conflict(f"{name}: {len(missing)} files are not in the table any more, such as {min(missing)}")
        removals = [
            new.write(self._metadata.specs()[spec_id], [deleted(entry, self.snapshot_id) for entry in entries])
            for spec_id, entries in gone.items()
        ]
        additions = [new.added(added)] if added else []
        out_files = [entry.data_file for entries in gone.values() for entry in entries]
        self._stage(new, operation, [*additions, *removals, *manifests], added=added, removed=out_files)

    def merge_manifests(self, least: int) -> int:
        """Merge small manifests. Returns by how many they become fewer; at 0 nothing is staged."""
        before = self._lists.of(self._metadata.current_snapshot(), self.loaded.io)
        new = self._new_manifests()
        merged = new.merged(before, least)
        if len(merged) < len(before):
            self._stage(new, Operation.REPLACE, merged)
        return len(before) - len(merged)

    def expire(self, snapshot_ids: Sequence[int]) -> None:
        """Forget snapshots."""
        self._updates.append(RemoveSnapshotsUpdate(snapshot_ids=list(snapshot_ids)))

    def _entries(self, manifest: ManifestFile) -> list[ManifestEntry]:
        if manifest.content != ManifestContent.DATA:
            return []
        return manifest.fetch_manifest_entry(self.loaded.io, discard_deleted=True)

    def _new_manifests(self) -> NewManifests:
        self.snapshot_id = self._metadata.new_snapshot_id()
        return NewManifests(self.loaded, self.snapshot_id, str(uuid.uuid4()))

    def _stage(
        self,
        new: NewManifests,
        operation: Operation,
        manifests: Sequence[ManifestFile],
        *,
        added: Iterable[DataFile] = (),
        removed: Iterable[DataFile] = (),
    ) -> None:
        parent = self._metadata.current_snapshot()
        parent_id = parent.snapshot_id if parent is not None else None
        number = self._metadata.next_sequence_number()
        self._list = new.write_list(manifests, parent_id, number)
        snapshot = Snapshot(
            snapshot_id=self.snapshot_id,
            parent_snapshot_id=parent_id,
            sequence_number=number,
            # Another node's clock may be ahead, and a snapshot must not be older than the one before.
            timestamp_ms=max(time.time_ns() // 1_000_000, self._metadata.last_updated_ms),
            manifest_list=self._list[0],
            summary=_summary(operation, parent, list(added), list(removed)),
            schema_id=self._schema_id,
        )
        self._updates += [
            AddSnapshotUpdate(snapshot=snapshot),
            SetSnapshotRefUpdate(ref_name=MAIN_BRANCH, type=SnapshotRefType.BRANCH, snapshot_id=self.snapshot_id),
        ]

    # The commit.

    def attempt(self) -> Any:
        """Try once.

        Raises:
            Conflict: somebody else changed the table since it was loaded.
            Unavailable: nothing happened, or all of it.
        """
        if time.monotonic() - self._began > _MOST_SECONDS:
            raise Conflict(
                f"{'.'.join(self.loaded.name())}: staged too long ago, as this process was stopped meanwhile"
            )
        updates = [SetPropertiesUpdate(updates=self._properties)] if self._properties else []
        answer = self._catalogue.commit(self.loaded, self._requirements, [*self._updates, *updates])
        if self._list is not None:
            parent = self._metadata.current_snapshot()
            self._lists.put(*self._list, instead_of=parent.manifest_list if parent is not None else "")
        return answer


def _without(field: MappedField, names: Mapping[str, int]) -> MappedField:
    return MappedField(
        field_id=field.field_id, names=[name for name in field.names if name not in names], fields=field.fields
    )


def _summary(
    operation: Operation, parent: Snapshot | None, added: Sequence[DataFile], removed: Sequence[DataFile]
) -> Summary:
    """Sum a snapshot up in the words of Iceberg's specification; a total that the parent does not tell is not told."""
    found = {
        "added-data-files": len(added),
        "added-records": sum(file.record_count for file in added),
        "added-files-size": sum(file.file_size_in_bytes for file in added),
        "deleted-data-files": len(removed),
        "deleted-records": sum(file.record_count for file in removed),
        "removed-files-size": sum(file.file_size_in_bytes for file in removed),
        "changed-partition-count": len({(file.spec_id, str(file.partition)) for file in (*added, *removed)}),
    }
    texts = {key: str(value) for key, value in found.items() if value}
    before: Mapping[str, str] = {}
    if parent is not None and parent.summary is not None:
        before = parent.summary.additional_properties
    for total, plus, minus in (
        ("total-data-files", "added-data-files", "deleted-data-files"),
        ("total-records", "added-records", "deleted-records"),
        ("total-files-size", "added-files-size", "removed-files-size"),
    ):
        known = "0" if parent is None else before.get(total, "")
        if known.isdecimal():
            texts[total] = str(max(int(known) + found[plus] - found[minus], 0))
    for total in ("total-delete-files", "total-position-deletes", "total-equality-deletes"):
        known = "0" if parent is None else before.get(total, "")
        if known:
            texts[total] = known
    return Summary(operation, **texts)
