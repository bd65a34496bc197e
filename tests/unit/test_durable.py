"""Small files that must survive a crash: what their errors say."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from arcpipe import durable
from arcpipe.client.spool import Spool
from arcpipe.compaction.plan import Plans
from arcpipe.disk import Disk
from tests.support.wal_doubles import FaultyDisk


class Directories(FaultyDisk):
    """Knows which names of directories are durable: those that were there when their parent was synced."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.durable = {str(root)}

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.durable |= {entry.path for entry in os.scandir(path) if entry.is_dir()}


class Full(Disk):
    """Takes names, and no bytes."""

    def write(self, fd: int, buffers: object, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Where one of thousands of files stops the uploads, the log must tell which."""
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        durable.load(Disk(), str(tmp_path), bytes)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path, spare = tmp_path / "file", tmp_path / "spare"
    spare.write_bytes(bytes(9))
    with pytest.raises(OSError, match=str(path)):
        durable.replace(Full(), str(path), b"content")
    with pytest.raises(OSError, match=str(spare)):
        durable.write_over(Full(), str(spare), str(path), b"content")


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_is_durable_however_often_its_maker_failed(nth: int, when: str, tmp_path: Path) -> None:
    """An error, or the end of the process, comes between making a folder and syncing its name."""
    disk = Directories(tmp_path)
    path = tmp_path / "a" / "b" / "c"

    def fault(operation: str, path: str) -> None:
        if len(disk.calls) == nth:
            raise OSError(errno.EIO, "Input/output error", path)

    if when == "before":
        disk.fault = fault
    else:
        disk.fault_after = fault
    with contextlib.suppress(OSError):
        durable.make_folder(disk, str(path))
    durable.make_folder(disk, str(path))
    assert {str(path), str(path.parent), str(path.parent.parent)} <= disk.durable


def test_a_folder_is_made_below_one_that_cannot_be_opened(tmp_path: Path) -> None:
    class Closed(Disk):
        def sync_directory(self, path: str) -> None:
            if path == str(tmp_path.parent):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            super().sync_directory(path)

    durable.make_folder(Closed(), str(tmp_path / "a"))
    assert (tmp_path / "a").is_dir()


def test_the_folders_of_plans_and_of_a_spool_are_durable_before_something_is_in_them(tmp_path: Path) -> None:
    disk = Directories(tmp_path)
    with Plans(tmp_path, disk).lock():
        assert str(tmp_path / "compaction") in disk.durable
    Spool(tmp_path / "clients" / "spool", 1_000_000, "always", disk).close()
    assert {str(tmp_path / "clients"), str(tmp_path / "clients" / "spool")} <= disk.durable
