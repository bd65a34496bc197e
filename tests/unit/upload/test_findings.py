"""Damage and losses that the uploader meets are noted once each, durably, before their batch is forgotten."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from arcpipe.counters import Uploader
from arcpipe.disk import Disk
from arcpipe.upload.journal import Converted, Journal
from arcpipe.upload.manifest import VERSION, Manifest
from arcpipe.wal import findings
from arcpipe.wal.directory import ACTIVE, WALDirectory
from arcpipe.wal.recovery import recover_at_start
from tests.support.directories import batch_files
from tests.support.uploader import MemoryStore, Stuck, fill, ids_in, run, sealed


class Crash(BaseException):
    """Ends an uploader where it stands."""


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """A directory with a good segment and one with a damaged entry."""
    fill(tmp_path / "wal", 1, range(12))
    fill(tmp_path / "wal", 2, range(12, 24))
    damage(tmp_path / "wal" / sealed(tmp_path / "wal")[1])
    return tmp_path / "wal"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\xa2m1") + 1] ^= 0xFF
    path.write_bytes(content)


def counts(wal: Path) -> dict[str, int]:
    record = findings.load(WALDirectory(wal))
    return record.counts if record is not None else {}


def test_damage_is_noted_once_however_many_read_the_segment(wal: Path) -> None:
    name = sealed(wal)[1]
    active = wal / name.removesuffix(".sealed")
    os.rename(wal / name, active)
    directory = WALDirectory(wal)
    directory.make()
    recover_at_start(directory)
    assert directory.segments(ACTIVE) == []
    assert counts(wal) == {"damaged_entries": 1}
    store = MemoryStore()

    def fail(key: str) -> None:
        raise OSError(errno.EIO, "the store is away")

    store.before_put = fail
    with pytest.raises(Stuck):
        run(wal, store)
    store.before_put = lambda key: None
    outcome = run(wal, store, boot=2)
    assert outcome.block[Uploader.DAMAGED] == 1
    assert counts(wal) == {"damaged_entries": 1}
    assert len(ids_in(store)) == 20


def test_damage_is_known_while_the_store_is_away(wal: Path) -> None:
    store = MemoryStore()

    def fail(key: str) -> None:
        raise OSError(errno.EIO, "the store is away")

    store.before_put = fail
    with pytest.raises(Stuck):
        run(wal, store)
    assert counts(wal) == {"damaged_entries": 1}


def test_a_batch_is_not_forgotten_before_its_findings_are_noted(wal: Path) -> None:
    path = wal / "findings.json"
    path.mkdir()  # it cannot be read
    store = MemoryStore()
    with pytest.raises(Stuck):
        run(wal, store)
    assert len(ids_in(store)) == 20
    assert sealed(wal) == []  # what the disk needs most is done
    assert len(batch_files(wal)) > 0
    path.rmdir()
    assert counts(wal) == {}
    run(wal, store, boot=2)  # which reads no segment of that batch again
    assert counts(wal) == {"damaged_entries": 1}
    assert batch_files(wal) == []


def test_a_full_disk_keeps_no_segment_for_the_sake_of_its_findings(wal: Path) -> None:
    class NoRoomForFindings(Disk):
        def create(self, path: str) -> int:
            if "findings.json" in path and sealed(wal):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return super().create(path)

    store = MemoryStore()
    run(wal, store, disk=NoRoomForFindings())
    assert sealed(wal) == []
    assert counts(wal) == {"damaged_entries": 1}


def test_a_segment_that_is_gone_is_noted(wal: Path) -> None:
    store = MemoryStore()

    def crash(key: str) -> None:
        raise Crash

    store.before_put = crash
    with pytest.raises(Crash):
        run(wal, store)
    store.before_put = lambda key: None
    gone = sealed(wal)[0]
    os.unlink(wal / gone)
    outcome = run(wal, store, boot=2)
    assert outcome.block[Uploader.LOST_SEGMENTS] == 1
    record = findings.load(WALDirectory(wal))
    assert record is not None
    assert record.counts["lost_segments"] == 1
    assert [noted.subject for noted in record.latest if noted.code == "lost_segments"] == [gone.partition(".")[0]]


def test_a_journal_of_an_older_version_has_no_findings(tmp_path: Path) -> None:
    journal = Journal(Disk(), str(tmp_path / "x.journal"), Manifest(VERSION, "x", ["a"], "memory://", "arc"))
    journal.append([Converted(archive=["a"])])
    assert b"findings" not in (tmp_path / "x.journal").read_bytes()
    loaded = Journal.load(Disk(), str(tmp_path / "x.journal"))
    assert loaded is not None
    assert loaded.converted == Converted(archive=["a"])
