"""The handover of an uploaded batch: once, on a full disk, too, and never above the bound."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from arcpipe.errors import DamagedFile
from arcpipe.tables.commit_file import CommitFiles, DataFile
from arcpipe.tables.ledger import Ledger
from arcpipe.units import KB, MB
from arcpipe.upload.batch import Batch
from arcpipe.upload.handover import Handover, TablesBehind, files_of, files_to_hand_over
from arcpipe.upload.journal import Converted, Journal, KeyRecord, Unlisted, Uploaded
from arcpipe.upload.manifest import Manifest
from arcpipe.upload.spares import Spares
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from tests.support.compaction import NODE, key_of
from tests.support.uploader import MemoryStore
from tests.support.wal_doubles import FaultyDisk

BATCH = key_of(1).split("_")[-2]


@pytest.fixture
def handover(directory: WALDirectory) -> Handover:
    return make(directory)


def make(directory: WALDirectory, most_bytes: int = 1 << 40) -> Handover:
    spares = Spares(directory, with_tables=True)
    spares.make()
    return Handover(directory, NodeIdentity(NODE, 1), spares, most_bytes)


def files(*numbers: int, size: int = 100) -> dict[str, DataFile]:
    keys = [key_of(1, file=number) for number in numbers]
    return {key: DataFile(key, 1, size, 0, 0) for key in keys}


def keys_in(directory: WALDirectory) -> list[list[str]]:
    """The keys in each commit file."""
    found = CommitFiles(directory.path)
    contents = [found.read(name) for name in found.names()]
    return [[key for table in content.tables for key in table.keys()] for content in contents if content]  # noqa: SIM118


def test_a_batch_is_handed_over_once(directory: WALDirectory, handover: Handover) -> None:
    assert handover.hand_over(BATCH, "file:///lake", files(0, 1))
    assert not handover.hand_over(BATCH, "file:///lake", files(0, 1))
    assert not make(directory).hand_over(BATCH, "file:///lake", files(0, 1))  # of the next process
    assert keys_in(directory) == [list(files(0, 1))]


def test_what_an_earlier_commit_file_lacks_gets_its_own(directory: WALDirectory, handover: Handover) -> None:
    """The batch was planned anew without segments that were gone, and they came back."""
    handover.hand_over(BATCH, "file:///lake", files(0))
    assert handover.hand_over(BATCH, "file:///lake", files(0, 1))
    assert keys_in(directory) == [list(files(0)), list(files(1))]


def test_a_damaged_commit_file_still_says_that_its_batch_was_handed_over(
    directory: WALDirectory, handover: Handover
) -> None:
    handover.hand_over(BATCH, "file:///lake", files(0))
    [name] = CommitFiles(directory.path).names()
    Path(directory.path, "tables", name.filename).write_bytes(b"{")
    assert not make(directory).hand_over(BATCH, "file:///lake", files(0))


def test_dead_letters_are_in_no_table(directory: WALDirectory, handover: Handover) -> None:
    key = "_dead_letter/db/worker-1_x_0-0.msgpack"
    assert not handover.hand_over(BATCH, "file:///lake", {key: DataFile(key, 0, 10, -1, -1)})
    assert keys_in(directory) == []


def test_the_ledger_knows_a_number_before_any_file_has_it(
    directory: WALDirectory, disk: FaultyDisk, handover: Handover
) -> None:
    def fail(operation: str, path: str) -> None:
        if operation == "create" and BATCH in path:
            raise OSError(errno.EIO, "cannot write", path)

    disk.fault = fail
    with pytest.raises(OSError, match="cannot write"):
        handover.hand_over(BATCH, "file:///lake", files(0))
    issued = Ledger.load(os.path.join(directory.path, "tables"), disk).last
    disk.fault = lambda operation, path: None
    assert handover.hand_over(BATCH, "file:///lake", files(0))
    assert [name.seq for name in CommitFiles(directory.path).names()] == [issued]


def no_space(operation: str, path: str) -> None:
    if operation in ("create", "write") and not path.endswith(("spare-3", "spare-4")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def test_on_a_full_disk_it_takes_the_spare_files(directory: WALDirectory, disk: FaultyDisk, handover: Handover) -> None:
    disk.fault = no_space
    assert handover.hand_over(BATCH, "file:///lake", files(0))
    assert keys_in(directory) == [list(files(0))]
    with pytest.raises(OSError, match="No space"):  # until segments were retired
        handover.hand_over("other-20260101T000000-1.2-ab", "file:///lake", files(1))
    disk.fault = lambda operation, path: None
    assert handover.hand_over("other-20260101T000000-1.2-ab", "file:///lake", files(1))
    assert [Path(directory.batches, f"spare-{number}").stat().st_size for number in (3, 4)] == [MB, 64 * KB]


def test_on_a_full_disk_a_commit_file_of_many_keys_is_compressed(
    directory: WALDirectory, disk: FaultyDisk, handover: Handover
) -> None:
    many = files(*range(15_000))
    disk.fault = no_space
    assert handover.hand_over(BATCH, "file:///lake", many)
    [name] = CommitFiles(directory.path).names()
    assert Path(directory.path, "tables", name.filename).stat().st_size < MB
    assert len(keys_in(directory)[0]) == 15_000


def test_above_the_bound_a_batch_has_to_wait(directory: WALDirectory) -> None:
    first = make(directory, most_bytes=150)
    assert first.hand_over("a-20260101T000000-1.1-ab", "file:///lake", files(0))
    assert first.hand_over("b-20260101T000000-1.2-ab", "file:///lake", files(1))
    for handover in (first, make(directory, most_bytes=150)):  # of this process, and of the next one
        with pytest.raises(TablesBehind, match=r"2 batches with 0 MB wait"):
            handover.hand_over(BATCH, "file:///lake", files(2))
    CommitFiles(directory.path).remove(CommitFiles(directory.path).names()[:1])
    assert first.hand_over(BATCH, "file:///lake", files(2))


def test_a_ledger_that_is_damaged_hands_nothing_over(directory: WALDirectory, handover: Handover) -> None:
    CommitFiles(directory.path).make()
    Path(directory.path, "tables", "ledger.json").write_bytes(b"{}")
    with pytest.raises(DamagedFile):
        handover.hand_over(BATCH, "file:///lake", files(0))
    assert keys_in(directory) == []


# The files of a batch that an earlier process uploaded


def batch_with(directory: WALDirectory, *records: object, version: int = 2) -> Batch:
    manifest = Manifest(version, BATCH, [], "memory://", "arc")
    journal = Journal(directory.disk, os.path.join(directory.batches, f"{BATCH}.journal"), manifest)
    journal.append(list(records))  # type: ignore[arg-type]
    return Batch(manifest, journal, os.path.join(directory.batches, f"{BATCH}.uploaded.json"))


def test_the_journal_names_the_files_of_an_uploaded_batch(directory: WALDirectory) -> None:
    kept, stray = (KeyRecord(key, 1, 100, 0, 0) for key in files(0, 1))
    batch = batch_with(directory, kept, stray, Converted(strays=[stray.key]), Uploaded())
    store = MemoryStore()
    assert asyncio.run(files_to_hand_over(batch, store)) == files_of([kept])
    assert store.listed == []


@pytest.mark.parametrize("version", [1, 2])
def test_the_store_names_the_files_where_the_journal_does_not(directory: WALDirectory, version: int) -> None:
    """A full disk had no room for keys, or the batch is of an early version, which has no journal."""
    isolated = key_of(1).replace(BATCH, f"{BATCH}.0")
    objects = dict.fromkeys([key_of(1), isolated, key_of(2), key_of(1) + ".tmp", f"_dead_letter/db/{BATCH}_1"], b"")
    batch = batch_with(directory, Unlisted(), Converted(), Uploaded(), version=version)
    found = asyncio.run(files_to_hand_over(batch, MemoryStore(objects)))
    assert sorted(found) == sorted([key_of(1), isolated])
