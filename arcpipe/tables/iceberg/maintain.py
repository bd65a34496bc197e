"""The upkeep of a table: manifests are merged, snapshots expire, and what nothing refers to is deleted.

pyiceberg's own expiry deletes no files. Here two rules say what may be deleted, after the expiry was committed. A note
of the data files is durable before (`expiry_notes`), so that a crash leaves none behind:

1. What an expired snapshot referred to and no snapshot that is left does: its manifest list, manifests and data files.
   A file that waits for its first commit was in no snapshot, so it is never one of these.
2. Metadata files of the table's folder that nothing refers to, when they are older than a bound, by the store's clock,
   and than the table's newest snapshot. They are of commits that failed or whose answer was lost. A commit that is
   under way requires the newest snapshot that it saw, so none that is older can still succeed.

Others may do the same at once: a file that is gone already is no error.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pyarrow import fs
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from arcpipe.tables.base import Maintained, TableName
from arcpipe.tables.iceberg.catalogue import Catalogue
from arcpipe.tables.iceberg.change import Change
from arcpipe.tables.iceberg.errors import reason, translated
from arcpipe.tables.iceberg.expiry_notes import ExpiryNotes
from arcpipe.tables.iceberg.file_io import ListsFolders, path_of
from arcpipe.tables.iceberg.manifests import ManifestLists
from arcpipe.tables.schema import shown

log = logging.getLogger(__name__)

# Snapshots that stay, however young: after a commit by a clock that is years ahead none would ever be old.
_MOST_SNAPSHOTS: Final = 5_000
_LEAST_MERGED: Final = 8  # manifests of one level that upkeep merges; commits merge 32
_ORPHAN_SECONDS: Final = 3 * 86_400  # age of a metadata file that nothing refers to, as Iceberg's own actions have it
_SLACK_SECONDS: Final = 7_200  # by which the store's clock, ours and other nodes' may differ, and a commit may last
_METADATA: Final = re.compile(r"snap-.*\.avro|.*-m\d+\.avro|.*\.metadata\.json")

Attempt = Callable[[Change], None]


class Upkeep:
    """The upkeep of tables of one catalogue."""

    def __init__(self, catalogue: Catalogue, lists: ManifestLists, notes: ExpiryNotes, history_hours: int) -> None:
        self._catalogue = catalogue
        self._lists = lists
        self._notes = notes
        self._history_ms = history_hours * 3_600_000

    def merge(self, table: TableName, loaded: Table, attempt: Attempt) -> int:
        """Merge small manifests. Returns by how many they became fewer."""
        change = Change(self._catalogue, loaded, self._lists)
        with translated(f"cannot merge the manifests of {shown(table)}"):
            fewer = change.merge_manifests(_LEAST_MERGED)
        if fewer:
            attempt(change)
        return fewer

    def settle(self, table: TableName, loaded: Table) -> int:
        """Delete what an earlier expiry left behind. Returns how many files were deleted."""
        count = 0
        there = {one.snapshot_id for one in loaded.metadata.snapshots}
        with translated(f"cannot delete files of {shown(table)}"):
            for path, note in self._notes.of(str(loaded.metadata.table_uuid)):
                if there.isdisjoint(note.snapshots):  # else it was not committed
                    needed = files_of_snapshots(loaded.metadata.snapshots, loaded.io)
                    deleted, is_over = _delete(loaded.io, sorted(set(note.files) - needed))
                    count += deleted
                    if not is_over:
                        continue
                self._notes.remove(path)
        return count

    def expire(self, table: TableName, loaded: Table, attempt: Attempt, merged: int) -> Maintained:
        """Expire snapshots, then delete what nothing refers to."""
        old = self._too_old(loaded)
        left = [one for one in loaded.metadata.snapshots if one not in old]
        doomed: set[str] = set()
        with translated(f"cannot read the snapshots of {shown(table)}"):
            if old:
                doomed = self._only_in(loaded.io, old, left)
            kept = self._metadata_of(loaded, left)
        note = ""
        if old:
            expired = [one.snapshot_id for one in old]
            # Metadata that nothing refers to is found by its names.
            if files := [one for one in doomed if not _METADATA.fullmatch(one.rpartition("/")[2])]:
                with translated(f"cannot note the expired files of {shown(table)}"):
                    note = self._notes.add(str(loaded.metadata.table_uuid), expired, files)
            change = Change(self._catalogue, loaded, self._lists)
            change.expire(expired)
            attempt(change)
        with translated(f"cannot delete files of {shown(table)}"):
            doomed |= self._orphans(loaded, kept) - {one.metadata_file for one in loaded.metadata.metadata_log}
            deleted, is_over = _delete(loaded.io, sorted(doomed))
            if note and is_over:
                self._notes.remove(note)
        return Maintained(merged, len(old), deleted)

    def _too_old(self, loaded: Table) -> list[Snapshot]:
        """Return the snapshots that are older than the history, and that no branch or tag needs."""
        needed = {ref.snapshot_id for ref in loaded.metadata.refs.values()}
        for name, ref in loaded.metadata.refs.items():
            if name != "main":  # somebody's own branch keeps all of its history
                needed |= _ancestors(loaded, ref.snapshot_id)
        bound = loaded.metadata.last_updated_ms - self._history_ms
        bound = min(bound, time.time_ns() // 1_000_000 - self._history_ms)
        by_number = sorted(loaded.metadata.snapshots, key=lambda one: one.sequence_number or 0)
        too_many = {one.snapshot_id for one in by_number[:-_MOST_SNAPSHOTS]}
        return [
            one
            for one in loaded.metadata.snapshots
            if (one.timestamp_ms < bound or one.snapshot_id in too_many) and one.snapshot_id not in needed
        ]

    def _only_in(self, files: FileIO, old: Sequence[Snapshot], left: Sequence[Snapshot]) -> set[str]:
        """Return what the old snapshots refer to, and those that are left do not."""
        of_left = {manifest.manifest_path: manifest for one in left for manifest in _manifests(one, files)}
        of_old = {manifest.manifest_path: manifest for one in old for manifest in _manifests(one, files)}
        gone = {path: manifest for path, manifest in of_old.items() if path not in of_left}
        doomed = {one.manifest_list for one in old} | set(gone)
        # Data files go only where some snapshot took files out of the table: most tables only grow.
        if any(manifest.deleted_files_count != 0 for manifest in (*gone.values(), *of_left.values())):
            listed = _data_files(gone.values(), files)
            if listed:
                doomed |= listed - _data_files(of_left.values(), files)
        return doomed

    def _metadata_of(self, loaded: Table, left: Iterable[Snapshot]) -> set[str]:
        """Return the metadata files that the table refers to."""
        found = {loaded.metadata_location, *(one.metadata_file for one in loaded.metadata.metadata_log)}
        for one in left:
            found.add(one.manifest_list)
            found |= {manifest.manifest_path for manifest in _manifests(one, loaded.io)}
        return found

    def _orphans(self, loaded: Table, kept: set[str]) -> set[str]:
        """Return the metadata files that nothing refers to, and that no commit can refer to any more."""
        now = time.time()
        newest = loaded.metadata.current_snapshot()
        if newest is None:
            return set()
        bound = min(now - _ORPHAN_SECONDS, newest.timestamp_ms / 1000 - _SLACK_SECONDS)
        folder = f"{loaded.metadata.location.rstrip('/')}/metadata"
        found = {
            f"{folder}/{name}": modified
            for name, modified in _listed(loaded.io, folder)
            if modified < bound and _METADATA.fullmatch(name) and f"{folder}/{name}" not in kept
        }
        if not found:
            return set()
        # Our clock, by which snapshots have their times, may be days ahead. The times of files are the store's.
        bound = _store_now(loaded.io, folder) - _ORPHAN_SECONDS
        return {location for location, modified in found.items() if modified < bound}


def _ancestors(loaded: Table, snapshot_id: int | None) -> set[int]:
    parents = {one.snapshot_id: one.parent_snapshot_id for one in loaded.metadata.snapshots}
    found: set[int] = set()
    while snapshot_id is not None and snapshot_id in parents and snapshot_id not in found:
        found.add(snapshot_id)
        snapshot_id = parents[snapshot_id]
    return found


def _manifests(snapshot: Snapshot, files: FileIO) -> list[ManifestFile]:
    return list(snapshot.manifests(files))


def files_of_snapshots(snapshots: Iterable[Snapshot], files: FileIO) -> set[str]:
    """Return the files that snapshots refer to."""
    manifests = {manifest.manifest_path: manifest for one in snapshots for manifest in _manifests(one, files)}
    return _data_files(manifests.values(), files)


def _data_files(manifests: Iterable[ManifestFile], files: FileIO) -> set[str]:
    """Return the files that manifests list, those of deletes among them."""
    return {
        entry.data_file.file_path
        for manifest in manifests
        for entry in manifest.fetch_manifest_entry(files, discard_deleted=manifest.content == ManifestContent.DATA)
    }


def _listed(files: FileIO, folder: str) -> list[tuple[str, float]]:
    """List a folder's files with the times of their last change."""
    if isinstance(files, ListsFolders):
        return files.listed(folder)
    if isinstance(files, PyArrowFileIO):
        scheme, netloc, path = files.parse_location(folder)
        system = files.fs_by_scheme(scheme, netloc)
    else:
        system, path = fs.LocalFileSystem(), path_of(folder)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return [(one.base_name, one.mtime.timestamp()) for one in found if one.type == fs.FileType.File and one.mtime]


def _store_now(files: FileIO, folder: str) -> float:
    """Return the time of the clock that gives files theirs, in seconds since the epoch. Writes one to find out."""
    name = f".arcpipe-clock-{uuid.uuid4().hex}"
    with files.new_output(f"{folder}/{name}").create() as stream:
        stream.write(b"arcpipe looks what time it is\n")
    try:
        return dict(_listed(files, folder)).get(name, 0.0)  # of a list that does not show it, nothing is old
    finally:
        files.delete(f"{folder}/{name}")


def _delete(files: FileIO, locations: Sequence[str]) -> tuple[int, bool]:
    """Delete files; returns how many were there, and whether none is left. Those are for the next upkeep."""
    deleted = 0
    is_over = True
    for location in locations:
        try:
            files.delete(location)
            deleted += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            is_over = False
            log.warning("cannot delete %s, which no table needs; it is tried again: %s", location, reason(error))
    return deleted, is_over
