"""Whether a WAL directory would do, without a trace in it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from arcpipe.errors import WALError
from arcpipe.wal.directory import NodeIdentity, WALDirectory
from arcpipe.wal.probe import probe
from tests.crash.small_disks import small_disk


def contents(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


@pytest.mark.parametrize("there", ["all of it", "a folder less", "nothing"])
def test_one_that_would_do_stays_as_it_is(tmp_path: Path, there: str) -> None:
    directory = WALDirectory(tmp_path / "a" / "wal")
    if there != "nothing":
        directory.make()
    if there == "a folder less":
        os.rmdir(directory.spool)
    before = contents(tmp_path)
    probe(directory, may_free_space=False)
    assert directory.lock_holder() == ""
    assert contents(tmp_path) == before


def test_file_systems_without_nameless_files_are_tried_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As overlays of old kernels and some network file systems are."""
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, **others: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real(path, flags, mode, **others)

    monkeypatch.setattr(os, "open", refuse)
    probe(WALDirectory(tmp_path), may_free_space=False)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("may_free_space", [True, False])
def test_a_full_disk_is_no_obstacle_where_the_start_makes_space(tmp_path: Path, may_free_space: bool) -> None:
    with small_disk(tmp_path / "disk", "tmpfs", 8) as disk:
        directory = WALDirectory(disk.path / "wal")
        directory.make()
        retired = Path(directory.free, "0-worker-1-20261122_090000-000001.wal")
        retired.write_bytes(bytes(1 << 20))
        disk.fill()
        if may_free_space:
            probe(directory, may_free_space)
        else:
            with pytest.raises(OSError, match="No space left on device"):
                probe(directory, may_free_space)
        retired.unlink()
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            probe(directory, may_free_space)


def test_a_full_disk_with_its_spare_file_is_enough_for_a_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "tmpfs", 8) as disk:
        directory = WALDirectory(disk.path / "wal")
        directory.make()
        first = directory.next_boot()
        spare = Path(directory.batches, "spare-1")
        spare.write_bytes(bytes(64 << 10))
        for boot in (2, 3):
            disk.fill()
            probe(directory, may_free_space=True)
            directory.lock()
            directory.unlock()
            assert directory.next_boot() == NodeIdentity(first.node, boot)
            assert spare.read_bytes() == bytes(64 << 10), "the uploader needs it for its manifest"
        assert sorted(path.name for path in Path(directory.path).iterdir() if path.is_file()) == ["LOCK", "node.json"]
        spare.unlink()
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            directory.next_boot()


def test_who_has_the_lock_is_told(tmp_path: Path) -> None:
    """Who has the lock is told, and the lock of this process is no obstacle."""
    running, other = WALDirectory(tmp_path), WALDirectory(tmp_path)
    running.make()
    running.lock()
    assert other.lock_holder() == str(os.getpid())
    assert other.lock_holder(running.lock_fds) == ""
    other.refuse_another(running.lock_fds)
    os.unlink(tmp_path / "LOCK")
    assert other.lock_holder() == "unknown"  # the directory itself is locked
    assert not (tmp_path / "LOCK").exists()
    running.unlock()
    assert other.lock_holder() == ""
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing of it is left
    os.close(fd)


def test_another_directory_than_the_one_in_use_is_refused(tmp_path: Path) -> None:
    """Another directory than the one in use is refused under any name but its own."""
    running = WALDirectory(tmp_path / "wal")
    running.make()
    running.lock()
    (tmp_path / "link").symlink_to(tmp_path / "wal")
    WALDirectory(tmp_path / "link").refuse_another(running.lock_fds)
    for name in ("elsewhere", "."):
        with pytest.raises(WALError, match=f"is another directory than {tmp_path}/wal, which is in use"):
            WALDirectory(tmp_path / name).refuse_another(running.lock_fds)
    running.unlock()
