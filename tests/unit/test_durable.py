"""Small files that must survive a crash: what their errors say."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from arcpipe import durable
from arcpipe.disk import Disk


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
