"""The system calls: a short write is finished or raised, a small file is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpipe import durable
from arcpipe.disk import IOV_MAX, Buffer, Disk
from tests.support.program import ROOT
from tests.support.waiting import wait_until


class Stuttering(Disk):
    """Takes as many bytes as it is told, call by call."""

    def __init__(self, limits: list[int]) -> None:
        self.limits = limits

    def _pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        assert len(buffers) <= IOV_MAX
        limit = self.limits.pop(0) if self.limits else 1 << 30
        return os.pwrite(fd, b"".join(buffers)[:limit], offset)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 40), max_size=30),
    limits=st.lists(st.integers(1, 100), max_size=20),
    offset=st.integers(0, 100),
    many=st.booleans(),
)
def test_a_short_write_is_finished(
    tmp_path: Path, sizes: list[int], limits: list[int], offset: int, many: bool
) -> None:
    buffers = [bytes([65 + index % 26]) * size for index, size in enumerate(sizes)] * (70 if many else 1)
    disk = Stuttering(list(limits))
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    fd = disk.create(str(path))
    disk.write(fd, buffers, offset)
    disk.close(fd)
    whole = b"".join(buffers)
    assert path.read_bytes() == (bytes(offset) + whole if whole else b"")


def test_a_device_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    disk = Stuttering([5, 0])
    fd = disk.create(str(tmp_path / "file"))
    with pytest.raises(OSError, match="took no bytes") as caught:
        disk.write(fd, [b"0123456789"], 0)
    assert caught.value.errno == errno.EIO
    disk.close(fd)


def test_more_vectors_than_one_call_takes_are_several_calls(tmp_path: Path) -> None:
    disk = Disk()
    path = tmp_path / "file"
    fd = disk.create(str(path))
    buffers = [b"%05d" % number for number in range(3 * IOV_MAX + 7)]
    disk.write(fd, buffers, 3)
    disk.close(fd)
    assert path.read_bytes() == bytes(3) + b"".join(buffers)


def test_a_name_that_is_taken_is_not_created_again(tmp_path: Path) -> None:
    disk = Disk()
    disk.close(disk.create(str(tmp_path / "file")))
    with pytest.raises(FileExistsError):
        disk.create(str(tmp_path / "file"))


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.tmp").write_bytes(b"of a crash")
    durable.replace(Disk(), str(path), b"one")
    durable.replace(Disk(), str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_small_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    class Full(Disk):
        def fsync(self, fd: int) -> None:
            raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "file"
    path.write_bytes(b"one")
    with pytest.raises(OSError, match="no space"):
        durable.replace(Full(), str(path), b"two")
    assert path.read_bytes() == b"one"


def test_closing_and_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    disk = Disk()
    fd = disk.create(str(tmp_path / "file"))
    disk.unlink(str(tmp_path / "file"))
    disk.unlink(str(tmp_path / "file"))
    disk.close(fd)
    disk.close(fd)


# It may allocate 256 MB more than it has: as where the kernel promises no memory that a small machine does not have.
_ON_A_SMALL_MACHINE = """
import os, resource, sys
from arcpipe import durable
from arcpipe.disk import Disk
from arcpipe.storage import local_files

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    size = os.path.getsize(path)
    assert durable.load(Disk(), path, len) == size
    assert len(local_files.read(path, 5, 1 << 30)) == max(size - 5, 0)
    assert local_files.read(path, size + 1, 1 << 30) == b""
"""


def test_reading_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    paths = []
    for size in (0, 11, (1 << 20) - 1, 1 << 20, (3 << 20) + 7):
        paths.append(str(tmp_path / str(size)))
        Path(paths[-1]).write_bytes(bytes(size))
    program = [sys.executable, "-c", _ON_A_SMALL_MACHINE, *paths]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pieces_of_a_small_file_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom((2 << 20) + 5)
    path.write_bytes(data)
    assert durable.load(Disk(), str(path), bytes) == data


def test_what_is_not_in_the_page_cache_is_fetched_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    disk = Disk()
    fd = disk.open(str(path))
    disk.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> bytes:
        with contextlib.suppress(BlockingIOError):
            return disk.read_cached(fd, 256, 256)
        return b""

    wait_until(lambda: read() == bytes(range(256)))
    assert disk.read_cached(fd, 256, 256 * 64) == b""
    disk.close(fd)
