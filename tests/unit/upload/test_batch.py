"""Manifests and journals: whatever becomes of these files, every row is in the store once, or waits in its segment."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe import native
from arcpipe.counters import Counters, Uploader
from arcpipe.disk import Disk
from arcpipe.errors import StorageError
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.storage import Blob
from arcpipe.storage.base import read_exactly
from arcpipe.tables.commit_file import CommitFiles
from arcpipe.tables.fitting import Move
from arcpipe.tables.learned import Learned
from arcpipe.upload import segments
from arcpipe.upload.batches import Batches
from arcpipe.upload.collect import BatchTables
from arcpipe.upload.conversion_jobs import ConversionJobs, TableOutput
from arcpipe.upload.journal import Converted, Journal, KeyRecord, SegmentRecord, Uploaded
from arcpipe.upload.leftovers import StoreLeftovers
from arcpipe.upload.manifest import Manifest, encode_manifest, parse_batch_file
from arcpipe.upload.retry import Backoff, Retry
from arcpipe.upload.shipment import Shipment
from arcpipe.wal.checksum import with_checksum
from arcpipe.wal.directory import SEALED, NodeIdentity, WALDirectory
from arcpipe.wal.stretch import Stretch
from tests.support import uploader as harness
from tests.support.directories import batch_files
from tests.support.kernel import kernel_of_checkout
from tests.support.uploader import MemoryStore, SnapshotDisk, State, Stuck, fill, ids_in, ids_left, run, sealed, stopped

IDS = range(24)
LATER = range(100, 108)


class Crash(BaseException):
    """Ends an uploader where it stands."""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    """Every state that an uploader leaves behind it on its way through one batch of two segments."""
    base = tmp_path_factory.mktemp("states")
    wal = base / "wal"
    fill(wal, 1, IDS[:12])
    fill(wal, 2, IDS[12:])
    store = MemoryStore()
    disk = SnapshotDisk(wal, base, store)
    store.before_put = lambda key: disk.keep()
    run(wal, store, disk=disk)
    assert sorted(ids_in(store).elements()) == [*IDS]
    return disk.states


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """A directory with two segments."""
    fill(tmp_path / "wal", 1, IDS[:12])
    fill(tmp_path / "wal", 2, IDS[12:])
    return tmp_path / "wal"


def manifest_of(wal: Path) -> Path:
    (path,) = (wal / "batches").glob("*.json")
    return path


def is_converted(wal: Path) -> bool:
    """Whether a journal says that all keys are known."""
    return any(b'"is":"converted"' in path.read_bytes() for path in (wal / "batches").glob("*.journal"))


def crash_at_put(wal: Path, store: MemoryStore, number: int) -> None:
    """An uploader that dies before its put of this number, from 1, with all keys in its journal."""
    puts = 0

    def count(key: str) -> None:
        nonlocal puts
        puts += 1
        if puts == number:
            raise Crash

    store.before_put, store.may_put = count, lambda: is_converted(wal)
    with pytest.raises(Crash):
        run(wal, store)
    store.before_put, store.may_put = lambda key: None, lambda: True


def assert_once(store: MemoryStore, ids: range = IDS) -> None:
    assert sorted(ids_in(store).elements()) == [*ids]


# Every state, and every state with damage


@pytest.mark.slow
def test_from_every_state_each_row_is_there_once_and_nothing_is_left(states: list[State], tmp_path: Path) -> None:
    assert len(states) > 20
    for number, state in enumerate(states):
        wal, store = tmp_path / str(number), MemoryStore(state.objects)
        shutil.copytree(state.wal, wal)
        outcome = run(wal, store, boot=2)
        assert_once(store)
        assert batch_files(wal) == []
        assert sealed(wal) == []
        assert stopped(outcome.block) == (0, 0, 0, 0)
        assert store.listed == []


@pytest.mark.parametrize("installs", [True, False])
def test_a_redo_after_the_kernel_came_or_went_makes_the_same_objects(
    installs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uploader dies before a put, and the next one has a native kernel where it had none, or the reverse."""
    kernel = kernel_of_checkout()
    before, after = (None, kernel) if installs else (kernel, None)
    ids = range(6_400)
    wal, store = tmp_path / "wal", MemoryStore()
    fill(wal, 1, ids[:3_200], rows=400)
    fill(wal, 2, ids[3_200:], rows=400)
    monkeypatch.setattr(native, "KERNEL", before)
    crash_at_put(wal, store, 2)
    put = dict(store.objects)  # others are put at the same time
    assert 0 < len(put) < 4
    monkeypatch.setattr(native, "KERNEL", after)
    run(wal, store, boot=2)
    assert_once(store, ids)
    assert put.items() <= store.objects.items(), "what was put is put again, byte for byte"
    assert len(store.objects) == 4
    assert batch_files(wal) == sealed(wal) == []


@st.composite
def damages(draw: st.DrawFn) -> tuple[int, list[tuple[str, str, float]]]:
    """A state, and what becomes of its files: kind of file, "flip" or "cut", and where."""
    where = st.floats(0, 1, exclude_max=True)
    kinds = draw(st.sampled_from([(".json",), (".journal",), (".json", ".journal")]))
    return draw(st.integers(0, 999)), [(kind, draw(st.sampled_from(["flip", "cut"])), draw(where)) for kind in kinds]


def damage_file(path: Path, how: str, where: float) -> None:
    content = bytearray(path.read_bytes())
    at = int(where * len(content) * 8)
    if how == "cut":
        del content[at // 8 :]
    elif content:
        content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def make_later(wal: Path, slot: int) -> None:
    """Make the segments of a slot a minute younger than they are: batches name whole seconds."""
    for path in wal.glob(f"worker-{slot}-*"):
        os.utime(path, (time.time() + 60,) * 2)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages())
def test_no_flipped_bit_and_no_truncation_loses_or_doubles_a_row(
    states: list[State], damage: tuple[int, list[tuple[str, str, float]]]
) -> None:
    number, mutations = damage
    state = states[number % len(states)]
    with tempfile.TemporaryDirectory() as folder:
        wal, store = Path(folder, "wal"), MemoryStore(state.objects)
        shutil.copytree(state.wal, wal)
        for kind, how, where in mutations:
            for path in (wal / "batches").glob(f"*{kind}"):
                damage_file(path, how, where)
        run(wal, store, boot=2)
        found = ids_in(store)
        assert max(found.values(), default=1) == 1, "rows are there twice"
        assert found.keys() | ids_left(wal) == set(IDS)
        assert len(store.listed) <= 4
        # Whatever waits for an operator, what comes later does not.
        fill(wal, 3, LATER)
        make_later(wal, 3)
        run(wal, store, boot=3)
        assert all(ids_in(store)[identity] == 1 for identity in LATER)


# Outcomes by kind


def test_a_damaged_manifest_without_a_journal_is_planned_again(wal: Path) -> None:
    """A damaged manifest without a journal goes to quarantine and is planned again."""
    store = MemoryStore()
    crash_at_plan(wal, store)
    path = manifest_of(wal)
    damage_file(path, "flip", 0.5)
    outcome = run(wal, store, boot=2)
    assert_once(store)
    assert os.listdir(wal / "quarantine") == [path.name]
    assert stopped(outcome.block) == (0, 0, 0, 0)


def crash_at_plan(wal: Path, store: MemoryStore) -> None:
    """An uploader that dies when its manifest is durable."""
    directory = WALDirectory(wal)
    directory.make()
    block = Counters(1).uploader
    assert Batches(directory, NodeIdentity(harness.NODE, 1), block, store.url, "arc").plan() is not None


def test_a_damaged_manifest_is_known_from_its_journal(wal: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 2)
    manifest_of(wal).write_bytes(b"\xff")
    run(wal, store, boot=2)
    assert_once(store)
    assert "its copy in the journal is used" in caplog.text
    assert os.listdir(wal / "quarantine") == []


def test_both_damaged_wait_for_an_operator_while_others_go_on(wal: Path) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 2)
    before = dict(store.objects)
    files = [wal / "batches" / name for name in batch_files(wal)]
    for path in files:
        path.write_bytes(path.read_bytes()[20:])
    fill(wal, 3, LATER)
    outcome = run(wal, store, boot=2)
    assert stopped(outcome.block) == (0, 0, 1, 0)
    assert ids_in(MemoryStore({key: store.objects[key] for key in store.objects if key not in before})).keys() == {
        *LATER
    }
    assert len(sealed(wal)) == 2
    assert [path.exists() for path in files] == [True, True]
    # The operator deletes what the batch has put, and moves its files away.
    store.objects = {key: content for key, content in store.objects.items() if key not in before}
    for path in files:
        path.unlink()
    run(wal, store, boot=3)
    assert sorted(ids_in(store).elements()) == [*IDS, *LATER]


def test_both_damaged_and_their_names_too_hold_all_that_may_be_theirs(wal: Path) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 2)
    for name in batch_files(wal):
        (wal / "batches" / name).write_bytes(b"")
    before = dict(store.objects)
    outcome = run(wal, store, boot=2)
    assert stopped(outcome.block) == (0, 0, 1, 0)
    assert store.objects == before
    assert len(sealed(wal)) == 2


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version": 3}, "version 3"),
        ({"layout": "spiral"}, "spiral"),
        ({"deadline": 5}, "deadline"),
    ],
)
def test_a_manifest_with_an_unknown_word_stops_the_uploads_and_stays(
    change: dict[str, object], found: str, wal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    crash_at_plan(wal, store)
    path = manifest_of(wal)
    content = json.loads(path.read_bytes()) | change
    del content["crc32"]
    path.write_bytes(with_checksum(json.dumps(content).encode()))
    assert_stops(wal, store, path, found, caplog)


def test_a_batch_of_an_older_version_keeps_its_keys(tmp_path: Path) -> None:
    """It left a leading underscore as it is; a redo under other keys would store rows twice."""
    wal, store = tmp_path / "wal", MemoryStore()
    fill(wal, 1, IDS, database="_db")
    crash_at_plan(wal, store)
    path = manifest_of(wal)
    content = json.loads(path.read_bytes())
    assert content.pop("hidden") == "._"
    del content["crc32"]
    path.write_bytes(with_checksum(json.dumps(content).encode()))
    crash_at_put(wal, store, 2)
    assert 0 < len(store.objects) < 4
    run(wal, store, boot=2)
    assert_once(store)
    assert {key.partition("/")[0] for key in store.objects} == {"_db"}
    fill(wal, 1, LATER, database="_db")
    run(wal, store, boot=3)
    assert sorted(ids_in(store)) == [*IDS, *LATER]
    assert {key.partition("/")[0] for key in store.objects} == {"_db", "%5Fdb"}


@pytest.mark.parametrize(
    ("change", "found"),
    [({"state": "committed"}, "state 'committed'"), ({"layout": "spiral"}, "spiral"), ({"tables": []}, "tables")],
)
def test_so_does_one_of_the_first_version(
    change: dict[str, object], found: str, wal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_version_1(wal, **change)
    assert_stops(wal, MemoryStore(), path, found, caplog)


def write_version_1(wal: Path, **change: object) -> Path:
    batch_id = f"{harness.NODE}-20260101T000000-1.1"
    content = {"batch_id": batch_id, "state": "planned", "segments": sealed(wal), "store": "memory://", "layout": "arc"}
    path = wal / "batches" / f"{batch_id}.json"
    path.write_text(json.dumps(content | {"archive": [], "schema": []} | change))
    return path


def assert_stops(wal: Path, store: MemoryStore, path: Path, found: str, caplog: pytest.LogCaptureFixture) -> None:
    before = path.read_bytes()
    with pytest.raises(Stuck):
        run(wal, store, boot=2)
    assert store.objects == {}
    assert path.read_bytes() == before
    assert len(sealed(wal)) == 2
    assert f"{path} is of another version of arcpipe" in caplog.text
    assert found in caplog.text


def test_a_planned_batch_of_the_first_version_is_finished(wal: Path) -> None:
    """A planned batch of the first version is finished and its strays are found by listing."""
    path = write_version_1(wal)
    stray = f"db/m0/2026/01/01/00/m0_20260101T000000000000_{path.stem}_7.parquet"
    store = MemoryStore({stray: b"of the first try"})
    run(wal, store, boot=2)
    assert_once(store)
    assert stray not in store.objects
    assert all(path.stem in key for key in store.objects)
    assert batch_files(wal) == []


def test_an_uploaded_batch_of_the_first_version_only_lets_its_segments_go(wal: Path) -> None:
    write_version_1(wal, state="uploaded", archive=sealed(wal)[:1])
    store = MemoryStore()
    run(wal, store, boot=2)
    assert store.objects == {}
    assert sealed(wal) == []
    assert len([*wal.glob("*.recovered")]) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", [r".json", r".journal"])
def test_a_file_that_cannot_be_read_is_tried_again(name: str, number: int, wal: Path) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 2)

    class Failing(Disk):
        left = 2

        def open_for_reading(self, path: str) -> int:
            if path.endswith(name) and "batches" in path and self.left:
                self.left -= 1
                raise OSError(number, "the disk says no", path)
            return super().open_for_reading(path)

    outcome = run(wal, store, disk=Failing(), boot=2)
    assert len(outcome.sleeps) == 2
    assert_once(store)


def test_names_that_are_not_ours_stay(wal: Path) -> None:
    strangers = ["lost+found", "notes.json", "x.tmp", "README"]
    for name in strangers:
        target = wal / "batches" / name
        target.mkdir() if name == "lost+found" else target.write_text("{")
    store = MemoryStore()
    run(wal, store)
    assert_once(store)
    assert batch_files(wal) == sorted(strangers)
    assert WALDirectory(wal).highest_seq(1) >= 0


def test_ids_of_two_nodes_with_one_identity_differ(tmp_path: Path) -> None:
    stores = MemoryStore(), MemoryStore()
    for number, store in enumerate(stores):
        fill(tmp_path / f"wal{number}", 1, IDS)
        run(tmp_path / f"wal{number}", store)
    assert not stores[0].objects.keys() & stores[1].objects.keys()


# A redo that finds less


def lose(wal: Path, number: int) -> str:
    name = sealed(wal)[number]
    (wal / name).unlink()
    return name


def test_a_segment_that_vanished_before_anything_was_put_is_left_out(wal: Path) -> None:
    store = MemoryStore()
    crash_at_plan(wal, store)
    lose(wal, 0)
    outcome = run(wal, store, boot=2)
    assert_once(store, IDS[12:])
    assert stopped(outcome.block) == (1, 0, 0, 0)
    assert batch_files(wal) == []


def test_a_redo_without_a_segment_overwrites_nothing(wal: Path) -> None:
    """Half of the objects are there; the others' rows go under a new id, and those that are whole do not."""
    store = MemoryStore()
    crash_at_put(wal, store, 3)
    before = dict(store.objects)
    assert before
    name = lose(wal, 0)
    outcome = run(wal, store, boot=2)
    assert before.items() <= store.objects.items()
    found = ids_in(store)
    assert max(found.values()) == 1
    assert found.keys() >= {*IDS[12:]}
    assert stopped(outcome.block) == (1, 0, 0, 0)
    assert batch_files(wal) == []
    assert name not in sealed(wal)


def handed_over(wal: Path) -> list[str]:
    """The keys in all commit files, sorted."""
    files = CommitFiles(wal)
    contents = [files.read(name) for name in files.names()]
    tables = [table for content in contents if content is not None for table in content.tables]
    return sorted(f"{table.folder}/{file.name}" for table in tables for file in table.files)


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_redo_without_a_segment_leaves_out_is_handed_over_too(wal: Path, times: int) -> None:
    """The partitions that are whole in the store keep their old id; each file is handed over once, under either id."""
    store = MemoryStore()
    crash_at_put(wal, store, 3)
    lose(wal, 0)
    if times == 2:  # the first redo hands over, and dies when it has planned anew
        with mock.patch.object(Batches, "replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            run(wal, store, boot=2, tables_format="iceberg")
    outcome = run(wal, store, boot=3, tables_format="iceberg")
    assert outcome.block[Uploader.HANDED_OVER] == 1
    names = [name.batch_id for name in CommitFiles(wal).names()]
    assert len(names) == len(set(names)) == 2
    assert handed_over(wal) == sorted(key for key in store.objects if key.endswith(".parquet"))
    assert batch_files(wal) == []


def test_each_object_of_a_batch_is_handed_over_once(wal: Path) -> None:
    store = MemoryStore()
    run(wal, store, tables_format="delta")
    assert handed_over(wal) == sorted(key for key in store.objects if key.endswith(".parquet"))
    assert run(wal, store, tables_format="delta").block[Uploader.HANDED_OVER] == 0


def test_a_redo_before_all_keys_are_known_overwrites_nothing_either(wal: Path) -> None:
    """Which partitions are whole is not known then: their rows may be there under both ids, but none is lost."""
    store = MemoryStore()
    crash_at_put(wal, store, 3)
    (path,) = (wal / "batches").glob("*.journal")
    written = Journal.load(Disk(), str(path))
    assert written is not None
    assert written.manifest is not None
    path.unlink()
    before_all = Journal(Disk(), str(path), written.manifest)
    before_all.append([*written.segments.values(), *written.keys.values()])
    before_all.close()
    before = dict(store.objects)
    lose(wal, 0)
    outcome = run(wal, store, boot=2)
    assert before.items() <= store.objects.items()
    assert ids_in(store).keys() >= {*IDS[12:]}
    assert stopped(outcome.block) == (1, 0, 0, 0)
    assert batch_files(wal) == []


def with_all_objects(states: list[State], tmp_path: Path) -> tuple[Path, MemoryStore, Journal]:
    """A crash just before the batch was marked as uploaded, with all of its objects, and without a segment."""
    for state in states:
        for path in (state.wal / "batches").glob("*.journal"):
            journal = Journal.load(Disk(), str(path))
            if journal is not None and journal.converted is not None and not journal.uploaded:
                shutil.copytree(state.wal, tmp_path / "wal")
                wal = tmp_path / "wal"
                lose(wal, 1)
                journal.path = str(wal / "batches" / path.name)
                return wal, MemoryStore(states[-1].objects), journal
    raise AssertionError("no crash leaves such a batch")


def test_a_batch_with_all_objects_needs_no_segment(states: list[State], tmp_path: Path) -> None:
    """A batch whose objects are all there is uploaded even without its segment."""
    wal, store, _ = with_all_objects(states, tmp_path)
    before = dict(store.objects)
    outcome = run(wal, store, boot=2)
    assert store.objects == before
    assert_once(store)
    assert batch_files(wal) == []
    assert stopped(outcome.block) == (0, 0, 0, 0)


def test_a_batch_with_all_objects_removes_those_of_earlier_tries(states: list[State], tmp_path: Path) -> None:
    """The crash came before they were removed: their rows must not stay there twice."""
    wal, store, journal = with_all_objects(states, tmp_path)
    before = dict(store.objects)
    key = min(journal.keys)
    stray = f"{key.removesuffix('_0.parquet')}_1.parquet"
    store.objects[stray] = store.objects[key]
    journal.append([msgspec.structs.replace(journal.keys[key], key=stray)])
    journal.append([Converted(strays=[stray])])
    journal.close()
    run(wal, store, boot=2)
    assert store.objects == before
    assert_once(store)
    assert batch_files(wal) == []


def test_a_segment_that_lost_entries_since_overwrites_nothing(wal: Path) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 3)
    before = dict(store.objects)
    path = wal / sealed(wal)[1]
    content = bytearray(path.read_bytes())
    content[content.index(b"\xa2m1") + 1] ^= 0xFF
    path.write_bytes(content)
    outcome = run(wal, store, boot=2)
    assert before.items() <= store.objects.items()
    assert max(ids_in(store).values()) == 1
    assert outcome.block[Uploader.LOST_SEGMENTS] == 1


def test_a_store_that_cannot_say_what_it_has_leaves_the_batch_waiting(wal: Path) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 3)
    before = dict(store.objects)
    lose(wal, 0)

    async def refuse(key: str) -> bool:
        raise StorageError("not allowed", "credentials")

    store.exists = refuse  # type: ignore[method-assign]
    fill(wal, 3, LATER)
    run(wal, store, boot=2)
    assert {key: store.objects[key] for key in before} == before
    assert ids_in(store).keys() >= {*LATER}
    assert len([name for name in batch_files(wal) if name.endswith(".json")]) == 1


# Segments that cannot be read


class Unreadable:
    """Makes the scans of a segment fail a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self.left = times
        original = segments.open_scan

        def open_scan(directory: WALDirectory, wanted: str) -> object:
            if wanted == name and self.left:
                self.left -= 1
                raise OSError(errno.EIO, "Input/output error", wanted)
            return original(directory, wanted)

        monkeypatch.setattr(segments, "open_scan", open_scan)


def test_an_unreadable_segment_is_set_aside_while_others_go_on(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = sealed(wal)[0]
    Unreadable(monkeypatch, name, 99)
    store = MemoryStore()
    outcome = run(wal, store)
    assert_once(store, IDS[12:])
    assert stopped(outcome.block) == (0, 1, 0, 0)
    assert sealed(wal) == [name]
    assert batch_files(wal) == []
    monkeypatch.undo()
    run(wal, store, boot=2)
    assert_once(store)


def test_a_batch_of_which_something_was_put_waits_as_a_whole(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    crash_at_put(wal, store, 3)
    before = dict(store.objects)
    Unreadable(monkeypatch, sealed(wal)[0], 99)
    fill(wal, 3, LATER)
    outcome = run(wal, store, boot=2)
    assert {key: store.objects[key] for key in before} == before
    assert ids_in(store).keys() >= {*LATER}
    assert stopped(outcome.block) == (0, 1, 0, 0)
    monkeypatch.undo()
    run(wal, store, boot=3)
    assert sorted(ids_in(store).elements()) == [*IDS, *LATER]
    assert batch_files(wal) == []


def test_finished_bytes_that_cannot_be_read_back_are_made_anew(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait in a file. Its disk gives the same error for ever, and another file may be in another place."""
    original = Spool.read_at
    bad: list[Spool] = []

    def read_at(self: Spool, offset: int, length: int) -> bytes | memoryview:
        if not bad:
            bad.append(self)
        if self is bad[0]:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, offset, length)

    class Reading(MemoryStore):
        async def put(self, key: str, blob: Blob) -> None:
            self.objects[key] = bytes(read_exactly(blob, 0, blob.size))

    monkeypatch.setattr(Spool, "read_at", read_at)
    monkeypatch.setattr(SpoolMemory, "take", lambda self, size: False)
    monkeypatch.setattr(Backoff, "is_due", True)
    store = Reading()
    run(wal, store)
    assert bad
    assert_once(store)
    assert batch_files(wal) == sealed(wal) == []


# A bug


@pytest.mark.parametrize("method", ["add", "_write"])
def test_an_entry_that_a_bug_refuses_is_a_dead_letter(method: str, wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided once: an uploader that dies over it and one after it make the same objects."""
    owner = BatchTables if method == "add" else ConversionJobs
    original = getattr(owner, method)

    def fail(self: BatchTables | ConversionJobs, *arguments: Any, **more: object) -> None:
        if method == "add" and b"\x05" in bytes(arguments[1])[-6:]:
            raise ZeroDivisionError("a bug")
        if method == "_write":
            for part in arguments[1]:
                if 5 in part.table.column("id").to_pylist():
                    raise ZeroDivisionError("a bug")
        original(self, *arguments, **more)

    monkeypatch.setattr(owner, method, fail)
    store = MemoryStore()

    def die(key: str) -> None:
        if re.search(r"\.2_\d+\.parquet", key):  # of the third part
            raise Crash

    store.before_put = die
    with pytest.raises(Crash):
        run(wal, store)
    store.before_put = lambda key: None
    outcome = run(wal, store, boot=2)
    assert_once(store)
    letters = [key for key in store.objects if key.startswith("_dead_letter/db/")]
    assert len(letters) == 1
    assert outcome.block[Uploader.DEAD_LETTERS] == 1
    assert batch_files(wal) == []
    assert sealed(wal) == []


@pytest.mark.parametrize("crashes", [False, True])
def test_rows_that_the_parquet_writer_refuses_are_a_dead_letter(
    crashes: bool, wal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be joined with others by then: the batch is done again, carefully, and a redo makes the same objects."""
    original = pq.ParquetWriter.write_table

    def refuse(writer: pq.ParquetWriter, table: pa.Table, *arguments: Any, **more: Any) -> None:
        if 5 in table.column("id").to_pylist():
            raise pa.ArrowNotImplementedError("no fives")
        original(writer, table, *arguments, **more)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", refuse)
    store = MemoryStore()
    if crashes:
        letters_put = 0

        def die(key: str) -> None:
            nonlocal letters_put
            letters_put += key.startswith("_dead_letter/")
            if letters_put:
                raise Crash

        store.before_put = die
        with pytest.raises(Crash):
            run(wal, store)
        store.before_put = lambda key: None
    outcome = run(wal, store, boot=2)
    assert_once(store)
    (letter,) = [key for key in store.objects if key.startswith("_dead_letter/db/")]
    assert msgspec.msgpack.decode(store.objects[letter])[3]["columns"]["id"] == [4, 5, 6, 7]
    assert outcome.block[Uploader.DEAD_LETTERS] == 1
    assert batch_files(wal) == []
    assert sealed(wal) == []


def test_a_refusal_that_care_does_not_find_takes_the_batch_apart(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer refuses rows as such, and their trial is no help."""
    original = ConversionJobs._write

    def refuse(self: ConversionJobs, output: TableOutput, converted: Any, *arguments: Any, **more: Any) -> None:
        if any(5 in part.table.column("id").to_pylist() for part in converted):
            output.writers.abort()
            self.refused[output.name] = "no fives"
        else:
            original(self, output, converted, *arguments, **more)

    monkeypatch.setattr(ConversionJobs, "_write", refuse)
    store = MemoryStore()
    run(wal, store)
    assert_once(store)
    assert len([key for key in store.objects if key.startswith("_dead_letter/db/")]) == 1
    assert sealed(wal) == []


@pytest.fixture
def no_fives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that one entry meets, as soon as it is read."""
    add, add_stretch = BatchTables.add, BatchTables.add_stretch

    def refuse(payload: Any) -> None:
        if 5 in msgspec.msgpack.decode(payload)[3]["columns"]["id"]:
            raise RuntimeError("no fives")

    def add_or_fail(self: BatchTables, timestamp_us: int, payload: Any, origin: int) -> None:
        refuse(payload)
        add(self, timestamp_us, payload, origin)

    def add_stretch_or_fail(self: BatchTables, stretch: Stretch, origins: Any) -> None:
        for start, end in zip(stretch.starts, stretch.ends, strict=True):
            refuse(stretch.data[start:end])
        add_stretch(self, stretch, origins)

    monkeypatch.setattr(BatchTables, "add", add_or_fail)
    monkeypatch.setattr(BatchTables, "add_stretch", add_stretch_or_fail)


@pytest.mark.usefixtures("no_fives")
def test_a_batch_is_taken_apart_although_a_file_of_it_is_no_segment(wal: Path) -> None:
    """The bug ends each try before that file is read, and so before it is moved to quarantine."""
    name = "worker-9-20990101_000000-000001.wal.sealed"
    (wal / name).write_bytes(b"no segment at all")
    store = MemoryStore()
    run(wal, store)
    assert_once(store)
    (letter,) = [key for key in store.objects if key.startswith("_dead_letter/db/")]
    assert msgspec.msgpack.decode(store.objects[letter])[3]["columns"]["id"] == [4, 5, 6, 7]
    assert sealed(wal) == batch_files(wal) == []
    assert os.listdir(wal / "quarantine") == [name]


def test_a_bug_that_is_not_of_the_conversion_changes_nothing(wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Shipment.convert
    tries = 0

    async def fail(self: Shipment) -> None:
        nonlocal tries
        tries += 1
        if tries < 6:
            raise ZeroDivisionError("a bug")
        await original(self)

    monkeypatch.setattr(Shipment, "convert", fail)
    store = MemoryStore()
    outcome = run(wal, store)
    assert_once(store)
    assert outcome.block[Uploader.DEAD_LETTERS] == 0


# The journal by itself


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    manifest = Manifest(2, "id", ["worker-1-20260101_000000-000001.wal.sealed"], "file:///x", "arc")
    return Journal(Disk(), str(tmp_path / "id.journal"), manifest)


def reload(journal: Journal) -> Journal:
    journal.close()
    again = Journal.load(Disk(), journal.path)
    assert again is not None
    return again


KEYS = [KeyRecord(f"k{number}", number, 100, 5) for number in range(9)]


def test_a_journal_says_what_was_appended(journal: Journal) -> None:
    journal.append([SegmentRecord("s", 3, 90, False), KEYS[0]])
    journal.append([KEYS[1], SegmentRecord("s", 7, 200, True), Converted(["s"], [], [], ["k0"])])
    journal.append([Uploaded()])
    again = reload(journal)
    assert again.manifest == journal.manifest
    assert again.keys == {"k0": KEYS[0], "k1": KEYS[1]}
    assert again.segments == {"s": SegmentRecord("s", 7, 200, True)}
    assert again.converted == Converted(["s"], [], [], ["k0"])
    assert again.uploaded
    assert again.is_complete
    assert not again.damage


def test_what_is_known_is_not_appended_again(journal: Journal) -> None:
    journal.append([*KEYS, Converted()])
    size = os.path.getsize(journal.path)
    journal.append([*KEYS, Converted()])
    assert os.path.getsize(journal.path) == size
    journal.append([KeyRecord("k0", 99, 100, 5)])
    assert reload(journal).converted is None, "a key of another try makes it void"


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 100])
def test_a_torn_end_is_written_over(journal: Journal, padding: int) -> None:
    journal.append(KEYS[:1])
    size = os.path.getsize(journal.path)
    journal.append(KEYS[1:6])
    journal.close()
    path = Path(journal.path)
    for end in range(size, path.stat().st_size):
        torn = Path(f"{path}.{end}")
        torn.write_bytes(path.read_bytes()[:end] + bytes(padding))
        again = Journal.load(Disk(), str(torn))
        assert again is not None
        assert (set(again.keys), again.damage) == ({"k0"}, "")
        again.append(KEYS[7:8])
        again.append(KEYS[8:])
        assert (set(reload(again).keys), reload(again).damage) == ({"k0", "k7", "k8"}, "")


def test_damage_in_the_middle_is_told(journal: Journal) -> None:
    journal.append(KEYS[:1])
    start = os.path.getsize(journal.path)
    journal.append(KEYS[1:2])
    stop = os.path.getsize(journal.path)
    journal.append(KEYS[2:3])
    journal.close()
    content = Path(journal.path).read_bytes()
    for at in range(start, stop - 1):  # without its newline the next one is damaged, too: no later one tells
        for damaged in (content[at] ^ 1, 0):
            Path(journal.path).write_bytes(content[:at] + bytes([damaged]) + content[at + 1 :])
            again = reload(journal)
            assert again.damage
            assert not again.is_complete
            assert {"k0", "k2"} <= set(again.keys)
    Path(journal.path).write_bytes(content[:start] + bytes(stop - start) + content[stop:])
    assert reload(journal).damage


def test_an_append_that_failed_is_written_over(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(KEYS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "fdatasync", raise_io_error)
        with pytest.raises(OSError, match="Input"):
            journal.append(KEYS[1:5])
    assert set(journal.keys) == {"k0"}
    journal.append(KEYS[6:7])
    assert (set(reload(journal).keys), reload(journal).damage) == ({"k0", "k6"}, "")


def raise_io_error(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_record_of_another_version_stops(journal: Journal) -> None:
    from arcpipe.errors import UnknownVersion
    from arcpipe.wal.format import crc32

    journal.append(KEYS[:1])
    content = b'[1,[{"is":"committed"}]]'
    with open(journal.path, "ab") as file:
        file.write(b"%08x %b\n" % (crc32(content), content))
    with pytest.raises(UnknownVersion, match="committed"):
        reload(journal)


def test_names_of_batch_files() -> None:
    batch_id = f"{harness.NODE}-20260101T000000-3.17-0a1b2c3d"
    for kind in (".json", ".uploaded.json", ".journal"):
        file = parse_batch_file(batch_id + kind)
        assert file is not None
        assert (file.batch_id, file.order, file.kind) == (batch_id, (3, 17, "20260101T000000"), kind)
        assert not file.had_no_journal
    for name in ("spare-1", "lost+found", "notes.json", "x.journal", f"{batch_id}.txt"):
        assert parse_batch_file(name) is None
    # Of the same boot, the second one after the clock was set back; then of the next boot, after it was again.
    names = [f"{harness.NODE}-{at}-0a1b2c3d.json" for at in ("20260102T000000-3.9", "20260101T000000-3.10")]
    names.append(f"{harness.NODE}-20251231T000000-4.1-0a1b2c3d.json")
    files = [file for name in reversed(names) if (file := parse_batch_file(name)) is not None]
    assert [f"{file.batch_id}.json" for file in sorted(files, key=lambda file: file.order)] == names


def test_any_flipped_bit_of_a_manifest_is_damage() -> None:
    from arcpipe.upload.manifest import decode_manifest

    data = encode_manifest(Manifest(2, "id", ["worker-1-20260101_000000-000001.wal.sealed"], "file:///x", "arc"))
    decode_manifest(data, "x")
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises((ValueError, msgspec.MsgspecError)):
            decode_manifest(bytes(flipped), "x")


# A full disk


class FullDisk(Disk):
    """Allocates nothing: files that are there can be written over, and no further."""

    def write(self, fd: int, buffers: object, offset: int) -> None:
        length = sum(map(len, buffers))  # type: ignore[call-overload]
        if offset + length > os.fstat(fd).st_size:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(fd, buffers, offset)  # type: ignore[arg-type]


def test_a_full_disk_takes_the_manifest_and_the_journal_over_spare_files(wal: Path) -> None:
    (wal / "more").mkdir()
    run(wal, MemoryStore(), batches=0)
    store = MemoryStore()
    spared = WALDirectory(wal)
    Batches(spared, NodeIdentity(harness.NODE, 1), Counters(1).uploader, store.url, "arc").unfinished()
    assert sorted(path.stat().st_size for path in (wal / "batches").iterdir()) == [64 << 10, 1 << 20]
    names: Iterator[str] = iter(())

    class NoRegistry(FullDisk):
        def write(self, fd: int, buffers: object, offset: int) -> None:
            if b'"tables":' in bytes(buffers[0])[:40]:  # type: ignore[index]
                Disk.write(self, fd, buffers, offset)  # type: ignore[arg-type]
                return
            super().write(fd, buffers, offset)

    outcome = run(wal, store, disk=NoRegistry())
    assert_once(store)
    assert batch_files(wal) == []
    assert sealed(wal) == []
    assert outcome.sleeps == []
    assert os.listdir(wal / "batches") == [*names], "they are made again as soon as there is space"
    fill(wal, 3, LATER)
    run(wal, store, boot=2)
    assert len(os.listdir(wal / "batches")) == 2


def test_a_full_disk_does_not_wait_for_the_types_of_tables(wal: Path) -> None:
    """They are saved once there is space: the upload is what makes it."""
    directory = WALDirectory(wal)
    run(wal, MemoryStore())
    assert (wal / "schema.json").exists()
    tables = CommitFiles(directory.path)
    tables.make()
    Learned.load(tables.folder, directory.disk).add(("db", "m0"), [Move("id", "id", "i64", "f64", "id_i64", True)])
    fill(wal, 3, LATER)
    registry = (wal / "schema.json").read_bytes()
    store = MemoryStore()

    class Full(FullDisk):
        """It is full as long as the segments are there."""

        def write(self, fd: int, buffers: object, offset: int) -> None:
            write = super().write if sealed(wal) else Disk().write
            write(fd, buffers, offset)  # type: ignore[arg-type]

    outcome = run(wal, store, disk=Full(), boot=2)
    assert sorted(ids_in(store).elements()) == [*LATER]
    assert batch_files(wal) == sealed(wal) == []
    assert outcome.sleeps == []
    assert (wal / "schema.json").read_bytes() != registry


@pytest.mark.parametrize("part", ["", ".0", ".12"])
def test_objects_of_unknown_keys_that_a_redo_does_not_make_are_removed(part: str, tmp_path: Path) -> None:
    """Also those of a batch that was taken apart, whose parts have numbers."""
    directory = WALDirectory(tmp_path / "wal")
    directory.make()
    fill(tmp_path / "wal", 1, IDS)
    batches = Batches(directory, NodeIdentity(harness.NODE, 1), Counters(1).uploader, "x", "arc")
    batch = batches.plan()
    assert batch is not None
    batch.is_left_over, batch.journal.is_complete = True, False
    made, stray, other = (f"d/m/2026/11/30/14/m_x_{batch.batch_id}{end}" for end in (f"{part}_0", f"{part}_1", "9_0"))
    store = MemoryStore(dict.fromkeys((made, stray, other), b""))
    context: Any = SimpleNamespace(store=store, retry=Retry(Counters(1).uploader))
    leftovers = StoreLeftovers(context, batch, asyncio.Semaphore(4))
    asyncio.run(leftovers.remove([made]))
    assert store.objects.keys() == {made, other}


@pytest.mark.parametrize(
    ("kind", "times", "stays"),
    [("timeout", 9, False), ("credentials", 3, False), ("other", 3, False), ("credentials", 99, True)],
)
def test_a_list_that_fails_for_a_moment_leaves_no_object_behind(
    kind: str, times: int, stays: bool, tmp_path: Path
) -> None:
    """The rows of what stays are there twice. A store that never gives the list must not stop the uploads."""
    directory = WALDirectory(tmp_path / "wal")
    directory.make()
    fill(tmp_path / "wal", 1, IDS)
    batch = Batches(directory, NodeIdentity(harness.NODE, 1), Counters(1).uploader, "x", "arc").plan()
    assert batch is not None
    batch.is_left_over, batch.journal.is_complete = True, False
    made, stray = (f"d/m/2026/11/30/14/m_x_{batch.batch_id}_{number}" for number in range(2))

    class Failing(MemoryStore):
        async def list_keys(self, prefix: str) -> list[str]:
            keys = await super().list_keys(prefix)
            if len(self.listed) <= times:
                raise StorageError("cannot list it", kind)
            return keys

    async def no_sleep(_: float) -> None:
        pass

    store = Failing(dict.fromkeys((made, stray), b""))
    context: Any = SimpleNamespace(store=store, retry=Retry(Counters(1).uploader, sleep=no_sleep))
    asyncio.run(StoreLeftovers(context, batch, asyncio.Semaphore(4)).remove([made]))
    assert (stray in store.objects) == stays


def test_a_journal_that_a_spare_file_cannot_hold_goes_on_without_keys(tmp_path: Path) -> None:
    directory = WALDirectory(tmp_path / "wal")
    directory.make()
    block = Counters(1).uploader
    batches = Batches(directory, NodeIdentity(harness.NODE, 1), block, "x", "arc")
    batches.unfinished()
    fill(tmp_path / "wal", 1, IDS)
    batch = batches.plan()
    assert batch is not None
    directory.disk = FullDisk()
    batch.journal._disk = directory.disk
    batch.journal.append([KEYS[0]])
    for number in range(20):
        batch.journal.append([KeyRecord(f"{'long' * 100}-{number}-{at}", 1, 1) for at in range(200)])
    batch.journal.append([Converted(), Uploaded()])
    again = reload(batch.journal)
    assert again.uploaded
    assert not again.is_complete
    assert again.has_keys
    assert len(again.keys) < 4000
    assert [file.filename for file in directory.segments(SEALED)]


def test_that_keys_are_not_listed_is_durable_before_they_are_put(journal: Journal) -> None:
    """Also where the disk has no room even for that, at first: an append that raised is called again."""
    journal.append([KEYS[0]])
    journal._disk = FullDisk()
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            journal.append([KEYS[1]])
    journal._disk = Disk()
    journal.append([KEYS[1]])
    again = reload(journal)
    assert set(again.keys) == {"k0", "k1"} or not again.is_complete
