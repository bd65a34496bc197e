"""The upkeep of Iceberg tables: what nothing needs goes, nothing else. Readers without a catalogue find the newest."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyiceberg.table import StaticTable

from arcpipe.tables.base import Conflict, Dropped, NewFile, Unavailable
from arcpipe.tables.iceberg import layout, maintain
from arcpipe.tables.iceberg.catalogue import Catalogue
from arcpipe.tables.iceberg.change import Change
from arcpipe.tables.iceberg.file_io import LocalFileIO
from arcpipe.tables.iceberg.manifests import ManifestLists
from tests.support.iceberg import World, sqlite_world
from tests.support.tables import CPU, rows

A = "0123456789ab"


@pytest.fixture
def local(tmp_path: Path) -> World:
    return sqlite_world(tmp_path)


def metadata_files(world: World) -> set[str]:
    return {path.name for path in (world.lake.root / "_iceberg/default/cpu/metadata").iterdir()}


def test_readers_without_a_catalogue_find_the_newest_metadata(local: World) -> None:
    tables = local.open()
    for number in range(3):
        tables.commit(CPU, [local.lake.put(CPU, rows(3 * number), f"b{number}")], A, number + 1)
        folder = local.lake.root / "_iceberg/default/cpu/metadata"
        newest = folder / f"{(folder / 'version-hint.text').read_text()}.metadata.json"
        assert local.load().metadata_location == f"file://{newest}"
        found = pl.scan_iceberg(str(newest), reader_override="native").select("n").collect()["n"].to_list()
        assert sorted(found) == list(range(3 * number + 3))
        assert StaticTable.from_metadata(str(newest)).scan().count() == 3 * number + 3


DUCKDB = Path(__file__).parents[2] / ".tables" / "duckdb" / "bin" / "python"
SCAN = """
import sys, duckdb, duckdb_extensions
for name in ("avro", "iceberg"):
    duckdb_extensions.import_extension(name)
connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
connection.execute("LOAD iceberg")
print(sorted(row[0] for row in connection.execute("SELECT n FROM iceberg_scan(?)", [sys.argv[1]]).fetchall()))
"""


@pytest.mark.skipif(not DUCKDB.exists(), reason="needs DuckDB's extension: make test-tables installs it")
def test_duckdb_scans_the_folder_of_a_table(local: World, tmp_path: Path) -> None:
    tables = local.open()
    tables.commit(CPU, [local.lake.put(CPU, rows(0), "a"), local.lake.put(CPU, rows(3, load=0.5), "b")], A, 1)
    tables.remove(CPU, [next(key for key in tables.files(CPU) if "_a_" in key)])
    folder = local.lake.root / "_iceberg/default/cpu"
    said = subprocess.run(
        [DUCKDB, "-c", SCAN, folder],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout.splitlines()[-1:] == ["[3, 4, 5]"], said.stderr


def test_metadata_of_long_ago_is_deleted_by_commits(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_PREVIOUS_METADATA", 5)
    tables = local.open()
    for number in range(12):
        tables.commit(CPU, [local.lake.put(CPU, rows(number, 1), f"b{number}")], A, number + 1)
    assert len([name for name in metadata_files(local) if name.endswith(".metadata.json")]) == 6
    assert local.numbers() == list(range(12))


def test_expiry_deletes_what_only_expired_snapshots_had(local: World) -> None:
    tables = local.open(history_hours=0)
    for number in range(10):
        tables.commit(CPU, [local.lake.put(CPU, rows(3 * number), f"b{number}")], A, number + 1)
    before = metadata_files(local)
    result = tables.maintain(CPU)
    assert result.merged == 9
    assert result.expired == 10
    table = local.load()
    needed = {table.current_snapshot().manifest_list, *(one.manifest_path for one in manifests(table))}  # type: ignore[union-attr]
    avro = {name for name in metadata_files(local) if name.endswith(".avro")}
    assert avro == {os.path.basename(location) for location in needed}
    assert result.deleted == len([name for name in before if name.endswith(".avro")])
    assert local.numbers() == list(range(30))
    assert tables.maintain(CPU) == (0, 0, 0)


def manifests(table: Any) -> list[Any]:
    return list(table.current_snapshot().manifests(table.io))


def merged(world: World) -> tuple[NewFile, NewFile]:
    """Make a table whose two files were merged, and return what is old and what is new."""
    tables = world.open(history_hours=0)
    old, new = world.lake.put(CPU, rows(0), "a"), world.lake.put(CPU, rows(0), "b")
    tables.commit(CPU, [old], A, 1)
    tables.replace(CPU, [old.key], [new])
    tables.commit(CPU, [world.lake.put(CPU, rows(3), "c")], A, 2)
    return old, new


def notes(world: World) -> list[Path]:
    return list((world.lake.wal_dir / "tables" / "expired").glob("*"))


def test_a_crash_within_the_expiry_leaves_no_file_behind(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else names the file then: it would be called an orphan, and an import would bring its rows twice."""
    old, _ = merged(local)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(maintain, "_delete", die)
        with pytest.raises(KeyboardInterrupt):
            local.open(history_hours=0).maintain(CPU)
    assert old.key in local.lake.objects()
    tables = local.open(history_hours=0)
    assert old.key in tables.former(CPU)
    assert tables.maintain(CPU).deleted > 0
    assert old.key not in local.lake.objects()
    assert local.numbers() == list(range(6))
    assert notes(local) == []


def test_a_file_that_cannot_be_deleted_is_tried_again(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = merged(local)
    delete = LocalFileIO.delete

    def refuse(self: LocalFileIO, location: Any) -> None:
        if str(location).endswith(old.key):
            raise OSError("it is busy")
        delete(self, location)

    tables = local.open(history_hours=0)
    with monkeypatch.context() as patched:
        patched.setattr(LocalFileIO, "delete", refuse)
        tables.maintain(CPU)
        tables.maintain(CPU)
    assert old.key in local.lake.objects()
    tables.maintain(CPU)
    assert old.key not in local.lake.objects()
    assert notes(local) == []


def test_nothing_is_deleted_for_an_expiry_that_was_not_committed(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = merged(local)

    def fail(self: Change) -> None:
        raise Unavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Change, "attempt", fail)
        with pytest.raises(Unavailable):
            local.open(history_hours=0).maintain(CPU)
    assert local.open().maintain(CPU).deleted == 0
    assert old.key in local.lake.objects()
    assert notes(local) == []


def test_a_noted_file_that_is_in_the_table_again_stays(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = merged(local)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(maintain, "_delete", die)
        with pytest.raises(KeyboardInterrupt):
            local.open(history_hours=0).maintain(CPU)
    tables = local.open()
    tables.replace(CPU, [new.key], [old])  # a person
    tables.maintain(CPU)
    assert local.numbers() == list(range(6))
    assert notes(local) == []


def test_snapshots_within_the_history_stay_readable(local: World) -> None:
    tables = local.open()
    first = tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1)
    old = local.lake.put(CPU, rows(3), "b")
    tables.commit(CPU, [old], A, 2)
    tables.remove(CPU, [old.key])
    assert tables.maintain(CPU).expired == 0
    assert old.key in local.lake.objects()
    table = local.load()
    counts = [table.scan(snapshot_id=one.snapshot_id).count() for one in table.metadata.snapshots]
    assert counts == [3, 6, 3]
    assert table.metadata.snapshots[0].snapshot_id == first.snapshot


def test_a_clock_that_is_ahead_does_not_make_history_endless(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "_MOST_SNAPSHOTS", 4)
    tables = local.open()
    with monkeypatch.context() as ahead:
        then = time.time_ns() + 10**18  # thirty years
        ahead.setattr(time, "time_ns", lambda: then)
        tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1)
    for number in range(1, 8):
        tables.commit(CPU, [local.lake.put(CPU, rows(3 * number), f"b{number}")], A, number + 1)
    assert tables.maintain(CPU).expired == 5  # the merge of manifests is a snapshot, too
    assert len(local.load().metadata.snapshots) == 4
    assert local.numbers() == list(range(24))


def test_a_branch_or_a_tag_of_somebody_keeps_its_snapshots(local: World) -> None:
    tables = local.open(history_hours=0)
    first = tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1).snapshot
    local.load().manage_snapshots().create_tag(first, "audit").commit()
    removed = [f"default/cpu/{key.partition('default/cpu/')[2]}" for key in tables.files(CPU)]
    tables.commit(CPU, [local.lake.put(CPU, rows(3), "b")], A, 2)
    tables.remove(CPU, removed)
    tables.maintain(CPU)
    assert local.load().scan(snapshot_id=first).count() == 3
    assert local.numbers() == [3, 4, 5]


def orphan(world: World, name: str, age_seconds: float) -> Path:
    path = world.lake.root / "_iceberg/default/cpu/metadata" / name
    path.write_bytes(b"of a commit that failed")
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def test_leftovers_of_failed_commits_go_when_they_are_old(local: World) -> None:
    tables = local.open()
    tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1)
    day = 86_400.0
    old = [orphan(local, name, 4 * day) for name in ("abc-m0.avro", "snap-1-0-abc.avro", "00009-abc.metadata.json")]
    kept = [orphan(local, "def-m0.avro", 2 * day), orphan(local, "somebody-elses.txt", 4 * day)]
    local.lake.age(0)
    for path in old:
        os.utime(path, (time.time() - 4 * day,) * 2)
    assert tables.maintain(CPU).deleted == 3
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)
    local.lake.age(10 * day)  # what the table needs stays, however old it is
    assert tables.maintain(CPU).deleted == 1  # the young one is old now
    assert local.numbers() == [0, 1, 2]


@pytest.mark.parametrize("days_ahead", [0, 10])
def test_what_is_staged_is_not_deleted(local: World, monkeypatch: pytest.MonkeyPatch, days_ahead: int) -> None:
    """Somebody maintains the table between the staging and the attempt of a commit, perhaps by a clock that is ahead.

    The files have times of the store's clock, which is right.
    """
    ahead = days_ahead * 86_400
    times, times_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: times() + ahead)
    monkeypatch.setattr(time, "time_ns", lambda: times_ns() + ahead * 10**9)
    tables = local.open(history_hours=0)
    tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1)
    attempt = Change.attempt
    waiting = [True]

    def late(self: Change) -> Any:
        if waiting:
            waiting.pop()
            local.open(history_hours=0).maintain(CPU)
        return attempt(self)

    monkeypatch.setattr(Change, "attempt", late)
    tables.commit(CPU, [local.lake.put(CPU, rows(3), "b")], A, 2)
    assert local.numbers() == list(range(6))


def test_a_process_that_stood_still_does_not_commit_what_it_staged(
    local: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = local.open()
    tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1)
    loaded = Catalogue(local.options, local.lake.storage, str(local.lake.wal_dir)).load(CPU)
    assert loaded is not None
    change = Change(Catalogue(local.options, local.lake.storage, str(local.lake.wal_dir)), loaded, ManifestLists())
    change.set_properties({"a": "b"})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 7_200)
    with pytest.raises(Conflict, match="staged too long ago"):
        change.attempt()


def test_upkeep_of_no_table_says_so(local: World) -> None:
    with pytest.raises(Dropped, match="there is no table 'cpu' of database 'default'"):
        local.open().maintain(CPU)


def test_a_clock_that_steps_back_stops_no_commit(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = local.open()
    tables.commit(CPU, [local.lake.put(CPU, rows(0), "a")], A, 1)
    then = time.time_ns() - 3_600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: then)
    tables.commit(CPU, [local.lake.put(CPU, rows(3), "b")], A, 2)
    times = [one.timestamp_ms for one in local.load().metadata.snapshots]
    assert times == sorted(times)
    assert local.numbers() == list(range(6))
