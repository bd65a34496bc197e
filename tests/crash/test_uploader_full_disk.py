"""The uploader on a disk that is full to the last byte: the backlog is uploaded, and space comes back."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import msgspec
import pytest

from arcpipe.codec.envelope import KIND_COLUMNAR
from arcpipe.disk import Disk
from arcpipe.storage.local import LocalStore
from arcpipe.wal.format import envelope_prefix
from arcpipe.wal.writer import Group, WALOptions, WALWriter
from tests.crash.small_disks import MEGABYTE, SmallDisk, small_disk
from tests.support.directories import batch_files
from tests.support.uploader import MemoryStore, ids_in, run, sealed, stopped

HOURS = 4


def fill_segments(wal: Path, megabytes: int) -> set[int]:
    """Sealed segments of data that cannot be compressed, over some hours. Returns the ids."""
    chance = random.Random(1)
    writer = WALWriter(str(wal), 1, WALOptions(max_size_bytes=8 * MEGABYTE))
    ids: set[int] = set()
    for number in range(megabytes * 4):
        rows = range(number * 50, number * 50 + 50)
        columns = {
            "time": [1_767_225_600 + number % HOURS * 3600 + at for at in range(50)],
            "id": [*rows],
            "pad": [chance.randbytes(5_000) for _ in rows],
        }
        group = Group()
        body = msgspec.msgpack.encode({"m": "m", "columns": columns})
        group.add(envelope_prefix(KIND_COLUMNAR, "db"), body, 50, writer.next_timestamp())
        writer.commit(group)
        ids.update(rows)
    writer.close()
    return ids


class FillingDisk(Disk):
    """Takes whatever becomes free, before the uploader gets it."""

    def __init__(self, disk: SmallDisk) -> None:
        self._disk = disk

    def create(self, path: str) -> int:
        self._disk.fill()
        return super().create(path)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("megabytes", [1, 60])
def test_a_backlog_is_uploaded_although_the_disk_has_no_byte_left(kind: str, megabytes: int, tmp_path: Path) -> None:
    """60 MB in files of 4 hours are more than may wait in memory: smaller files are made."""
    with small_disk(tmp_path / "disk", kind, 96) as disk:
        wal = disk.path / "wal"
        run(wal, MemoryStore())  # makes the spare files
        ids = fill_segments(wal, megabytes)
        disk.fill()
        disk.fill()
        store = MemoryStore()
        outcome = run(wal, store)
        found = ids_in(store)
        assert found.keys() == ids
        assert max(found.values()) == 1
        assert batch_files(wal) == []
        assert sealed(wal) == []
        assert stopped(outcome.block) == (0, 0, 0, 0)
        assert shutil.disk_usage(disk.path).free >= megabytes * MEGABYTE // 2
        run(wal, store)
        assert sorted(os.listdir(wal / "batches")) == ["spare-1", "spare-2"]


def test_a_store_on_the_same_disk_gets_the_space_of_segments_that_are_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "tmpfs", 64) as disk:
        wal = disk.path / "wal"
        run(wal, MemoryStore())
        fill_segments(wal, 8)
        for number in range(2):
            name = f"{number:020}-worker-1-20260101_000000-{number:06}.wal"
            (wal / "free" / name).write_bytes(bytes(8 * MEGABYTE))
        disk.fill()
        run(wal, LocalStore(disk.path / "lake"))
        assert sealed(wal) == batch_files(wal) == []


def test_a_disk_that_others_keep_full_is_no_end_either(tmp_path: Path) -> None:
    """Only the registry has to wait for space, after the segments went."""
    with small_disk(tmp_path / "disk", "tmpfs", 32) as disk:
        wal = disk.path / "wal"
        run(wal, MemoryStore())
        (wal / "schema.json").write_text('{"version":1,"tables":[["db","m",{"id":["i64"],"pad":["bytes"]}]]}')
        ids = fill_segments(wal, 1)
        store = MemoryStore()
        run(wal, store, disk=FillingDisk(disk))
        assert ids_in(store).keys() == ids
        assert sealed(wal) == []
        assert batch_files(wal) == []
