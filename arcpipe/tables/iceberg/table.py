"""Iceberg tables: `tables.base.TableFormat` over a catalogue."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from pyiceberg.manifest import DataFile, ManifestContent
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import IcebergType

from arcpipe.config.settings import Storage
from arcpipe.config.settings_tables import Tables
from arcpipe.tables import schema
from arcpipe.tables.base import (
    Column,
    Committed,
    Dropped,
    Maintained,
    NewFile,
    Refused,
    TableName,
    Unavailable,
    UnreadableTables,
    is_outside,
)
from arcpipe.tables.iceberg import layout, names
from arcpipe.tables.iceberg.catalogue import Catalogue, store_uri
from arcpipe.tables.iceberg.change import Change
from arcpipe.tables.iceberg.data_files import Layout, data_file
from arcpipe.tables.iceberg.errors import translated
from arcpipe.tables.iceberg.expiry_notes import ExpiryNotes
from arcpipe.tables.iceberg.maintain import Upkeep, files_of_snapshots
from arcpipe.tables.iceberg.manifests import KEPT_LISTS, ManifestLists
from arcpipe.tables.iceberg.types import fits, iceberg_type, word
from arcpipe.tables.iceberg.version_hint import write_hint
from arcpipe.tables.problems import Problems
from arcpipe.tables.schema import Wanted, shown, word_of

log = logging.getLogger(__name__)


class IcebergTables:
    """The tables of one catalogue, whose files are in one store."""

    name = "iceberg"
    at_once = 1

    def __init__(self, tables: Tables, storage: Storage, wal_dir: str, kept: float = 1.0) -> None:
        """Open the tables. Does no I/O.

        Args:
            wal_dir: `wal.dir`; the SQLite catalogue is in its folder `tables`, and so are notes of expired files.
            kept: the part of the bounds of what is kept in memory.
        """
        self._options = tables.iceberg
        self._history_hours = tables.history_hours
        self._store = store_uri(storage) + "/"
        self._catalogue = Catalogue(tables.iceberg, storage, wal_dir, kept)
        self._lists = ManifestLists(int(KEPT_LISTS * kept))
        self._notes = ExpiryNotes(os.path.join(wal_dir, "tables"))

    def check(self) -> None:
        self._catalogue.check()

    def close(self) -> None:
        self._catalogue.close()

    # Commits.

    def committed(self, table: TableName, node: str) -> int | None:
        loaded = self._catalogue.load(table)
        if loaded is None:
            return None
        layout.require_usable(table, loaded)
        return layout.markers(loaded).get(node)

    def left_behind(self, table: TableName, node: str) -> int | None:
        return self._catalogue.marker_left_behind(table, f"{layout.MARKER}{node}")

    def commit(self, table: TableName, files: Sequence[NewFile], node: str, seq: int) -> Committed:
        columns = schema.wanted(table, files)
        loaded = self._catalogue.load(table)
        created = loaded is None
        if loaded is None:
            loaded = self._create(table, columns)
        layout.require_usable(table, loaded)
        marker = layout.markers(loaded).get(node)
        if marker is not None and marker >= seq:
            return Committed(marker, loaded.metadata.current_snapshot_id or 0, 0)
        change = Change(self._catalogue, loaded, self._lists)
        described = self._described(table, files, loaded, self._fit(table, columns, files, loaded, change))
        with translated(f"cannot stage a commit to {shown(table)}"):
            if described:
                change.append(described)
        change.set_properties({f"{layout.MARKER}{node}": str(seq)})
        if not layout.is_ours(loaded):
            log.info("%s is somebody else's, and fits: arcpipe appends to it from now on", shown(table))
            change.set_properties({names.DATABASE: table[0], names.MEASUREMENT: table[1]})
        self._attempt(change)
        return Committed(seq, change.snapshot_id, len(described), created)

    def _create(self, table: TableName, columns: Sequence[Wanted]) -> Table:
        made = layout.new_schema(
            [(column.name, type_) for column, type_ in schema.added(table, {}, columns, iceberg_type)]
        )
        if not any(field.name == "time" for field in made.fields):
            raise Refused(f"{shown(table)} cannot be made: its files have no column 'time'")
        return self._catalogue.create(
            table,
            made,
            layout.new_spec(made, self._options.partition),
            layout.new_order(made),
            layout.new_properties(table, self._history_hours),
        )

    def _fit(
        self,
        table: TableName,
        columns: Sequence[Wanted],
        files: Sequence[NewFile],
        loaded: Table,
        change: Change,
        *,
        adds: bool = True,
    ) -> _Fitted:
        """Hold the files' columns against the table's, and stage what is missing there.

        Args:
            adds: whether columns are added that the table has not. Those of merged files were dropped from it.
        """
        types = {field.field_id: field.field_type for field in loaded.metadata.schema().fields}
        mapped = _mapped(loaded, types)
        ids = {field.name: field.field_id for field in loaded.metadata.schema().fields} | mapped
        for column in columns:
            if column.name in ids and not fits(types[ids[column.name]], column.type):
                own = word(types[ids[column.name]])
                raise schema.differing(table, column.name, own, word_of(column.type), column.key)
        self._require_one_each(table, files, loaded, ids)
        self._require_values(table, files, loaded, ids)
        if not adds:
            columns = [column for column in columns if column.name in ids]
        new = dict[str, IcebergType]()
        dropped = _dropped(loaded)
        for column, type_ in schema.added(table, ids, columns, iceberg_type):
            earlier = dropped.get(column.name, type_)
            if not fits(earlier, column.type):
                raise schema.differing(table, column.name, word(earlier), word_of(column.type), column.key)
            new[column.name] = earlier
        new_ids = change.add_columns(list(new.items()))
        types |= {new_ids[name]: type_ for name, type_ in new.items()}
        ids |= new_ids
        unmapped = {column.name: ids[column.name] for column in columns if mapped.get(column.name) != ids[column.name]}
        if unmapped:
            change.map_names(unmapped)
        return _Fitted(ids, types)

    @staticmethod
    def _require_one_each(table: TableName, files: Sequence[NewFile], loaded: Table, ids: Mapping[str, int]) -> None:
        """Check that no file has a column under two names, the present one and a former: readers would see one."""
        names = {field.field_id: field.name for field in loaded.metadata.schema().fields}
        if not any(id_ in names and names[id_] != name for name, id_ in ids.items()):
            return
        for file in files:
            found: dict[int, str] = {}
            for name in file.metadata.schema.to_arrow_schema().names:
                if name not in ids or (other := found.setdefault(ids[name], name)) == name:
                    continue
                present = names[ids[name]]
                raise Refused(
                    f"{shown(table)}: the columns {other!r} and {name!r} of {file.key} are one column of the table, "
                    f"which was renamed to {present!r}",
                    column=other if name == present else name,
                    key=file.key,
                )

    @staticmethod
    def _require_values(table: TableName, files: Sequence[NewFile], loaded: Table, ids: Mapping[str, int]) -> None:
        """Check that files have a value for what the table requires; arcpipe's own tables require nothing."""
        required = {field.field_id: field.name for field in loaded.metadata.schema().fields if field.required}
        if not required:
            return
        for file in files:
            has = {ids.get(name) for name in file.metadata.schema.to_arrow_schema().names if not _has_null(file, name)}
            if lacking := sorted(name for id_, name in required.items() if id_ not in has):
                raise Refused(
                    f"{shown(table)} requires a value in the column {lacking[0]!r}, which {file.key} has not in "
                    "every row: make the column optional in the table",
                    column=lacking[0],
                    key=file.key,
                )

    def _described(self, table: TableName, files: Sequence[NewFile], loaded: Table, fitted: _Fitted) -> list[DataFile]:
        of_table = Layout(table, fitted.ids, fitted.types, loaded.metadata.spec(), layout.sort_order_id(loaded))
        return [data_file(of_table, file, self._store + file.key) for file in files]

    def _attempt(self, change: Change) -> None:
        answer = change.attempt()
        if self._catalogue.is_sqlite:
            try:
                write_hint(answer.metadata_location)
            except OSError as error:  # the commit is there, and the next one writes the hint again
                log.warning("cannot write version-hint.text of %s: %s", ".".join(change.loaded.name()), error)

    # What is there.

    def all_tables(self, unreadable: UnreadableTables | None = None) -> list[TableName]:
        found = []
        problems = Problems()
        for namespace, name in self._catalogue.names():
            with problems.of_one_table():
                try:
                    loaded = self._catalogue.load_named(namespace, name)
                except (Unavailable, Refused) as error:
                    if unreadable is not None:
                        unreadable[self._catalogue.table_of(namespace, name)] = error
                    raise
                if loaded is not None and layout.is_ours(loaded):
                    properties = loaded.metadata.properties
                    found.append((properties.get(names.DATABASE, ""), properties[names.MEASUREMENT]))
        if unreadable is None:
            problems.raise_first()
        return sorted(found)

    def columns(self, table: TableName) -> list[Column]:
        loaded = self._catalogue.load(table)
        if loaded is None:
            return []
        fields = {field.field_id: field for field in loaded.metadata.schema().fields}
        names = {field.name for field in fields.values()}
        former = [
            Column(name, word(fields[id_].field_type), fields[id_].name)
            for name, id_ in _mapped(loaded, fields).items()
            if name not in names
        ]
        dropped = [Column(name, word(type_), is_dropped=True) for name, type_ in _dropped(loaded).items()]
        return [*(Column(field.name, word(field.field_type)) for field in fields.values()), *former, *dropped]

    def markers(self, table: TableName) -> dict[str, int]:
        loaded = self._catalogue.load(table)
        return {} if loaded is None else layout.markers(loaded)

    def files(self, table: TableName) -> Iterator[str]:
        loaded = self._loaded(table)
        with translated(f"cannot list the files of {shown(table)}"):
            for manifest in self._lists.of(loaded.metadata.current_snapshot(), loaded.io):
                if manifest.content == ManifestContent.DATA:
                    for entry in manifest.fetch_manifest_entry(loaded.io, discard_deleted=True):
                        yield self._key(entry.data_file.file_path)

    def former(self, table: TableName) -> set[str]:
        loaded = self._catalogue.load(table, all_snapshots=True)
        if loaded is None:
            return set()
        present = loaded.metadata.current_snapshot_id
        with translated(f"cannot read the snapshots of {shown(table)}"):
            earlier = [one for one in loaded.metadata.snapshots if one.snapshot_id != present]
            found = files_of_snapshots(earlier, loaded.io)
            for _, note in self._notes.of(str(loaded.metadata.table_uuid)):
                found.update(note.files)
        return {self._key(location) for location in found} - set(self.files(table))

    def _key(self, location: str) -> str:
        """Return the key in the store; the location itself of a file elsewhere, such as one that Spark wrote."""
        key = location.removeprefix(self._store)
        return location if key == location or key.startswith("_") else key

    def _location(self, key: str) -> str:
        return key if is_outside(key) else self._store + key

    def _loaded(self, table: TableName, *, all_snapshots: bool = False) -> Table:
        loaded = self._catalogue.load(table, all_snapshots=all_snapshots)
        if loaded is None:
            raise Dropped(f"there is no {shown(table)} in the catalogue {self._catalogue.place}")
        return loaded

    # Compaction, retention, upkeep.

    def replace(self, table: TableName, old: Sequence[str], new: Sequence[NewFile]) -> None:
        columns = schema.wanted(table, new)
        loaded = self._loaded(table)
        layout.require_usable(table, loaded)
        self._require_no_deletes(table, loaded)
        change = Change(self._catalogue, loaded, self._lists)
        fitted = self._fit(table, columns, new, loaded, change, adds=False)
        described = self._described(table, new, loaded, fitted)
        with translated(f"cannot stage a replacement in {shown(table)}"):
            change.replace({self._location(key) for key in old}, described, Operation.REPLACE)
        self._attempt(change)

    def _require_no_deletes(self, table: TableName, loaded: Table) -> None:
        """Refuse to merge files of which an engine has deleted rows in files of their own: they would come back."""
        with translated(f"cannot read the manifests of {shown(table)}"):
            manifests = self._lists.of(loaded.metadata.current_snapshot(), loaded.io)
        if any(manifest.content == ManifestContent.DELETES for manifest in manifests):
            raise Refused(
                f"{shown(table)} has delete files of another engine, so its files are not merged here: have that "
                "engine rewrite them (Spark: rewrite_data_files and rewrite_position_delete_files)"
            )

    def remove(self, table: TableName, keys: Sequence[str]) -> None:
        wanted = {self._location(key) for key in keys}
        loaded = self._loaded(table)
        present = wanted & {self._location(key) for key in self.files(table)}
        if not present:
            return
        change = Change(self._catalogue, loaded, self._lists)
        with translated(f"cannot stage a removal from {shown(table)}"):
            change.replace(present, [], Operation.DELETE)
        self._attempt(change)

    def maintain(self, table: TableName) -> Maintained:
        loaded = self._loaded(table, all_snapshots=True)
        if not layout.is_ours(loaded):
            raise Dropped(f"{shown(table)} is not arcpipe's any more")
        upkeep = Upkeep(self._catalogue, self._lists, self._notes, self._history_hours)
        settled = upkeep.settle(table, loaded)
        merged = upkeep.merge(table, loaded, self._attempt)
        done = upkeep.expire(table, self._loaded(table, all_snapshots=True), self._attempt, merged)
        return done._replace(deleted=done.deleted + settled)


class _Fitted(NamedTuple):
    """The columns of a table as it will be: ids by the names of files, types by id."""

    ids: dict[str, int]
    types: dict[int, IcebergType]


def _mapped(loaded: Table, known: Collection[int]) -> dict[str, int]:
    """Return the ids of columns, of those that are known, by the names that files without ids may have for them."""
    mapping = loaded.metadata.name_mapping()
    if mapping is None:
        return {}
    return {
        name: id_ for field in mapping for name in field.names if (id_ := field.field_id) is not None and id_ in known
    }


def _dropped(loaded: Table) -> dict[str, IcebergType]:
    """Return the types of columns that a person dropped, by the names that files may have for them.

    These files have no field ids. A column of that name that is added anew has their values, so it needs their type.
    """
    mapping = loaded.metadata.name_mapping()
    present = {field.field_id for field in loaded.metadata.schema().fields}
    names = {field.field_id: field.names for field in mapping or () if field.field_id not in present}
    if not names:
        return {}
    types = {field.field_id: field.field_type for one in loaded.metadata.schemas for field in one.fields}
    taken = {field.name for field in loaded.metadata.schema().fields}
    return {name: types[id_] for id_, some in names.items() if id_ in types for name in some if name not in taken}


def _has_null(file: NewFile, name: str) -> bool:
    """Tell whether a column may have a null, by the footer."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            if chunk.path_in_schema == name:
                told = chunk.statistics
                if told is None or not told.has_null_count or told.null_count:
                    return True
    return False
