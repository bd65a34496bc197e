"""Descriptors: how many connections they are for, and those that are kept for the WAL."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from arcpipe.descriptors import LEAST, RESERVED, Room, needed, room
from arcpipe.wal.directory import SEALED, WALDirectory
from arcpipe.wal.pool import FreePool
from arcpipe.wal.writer import WALWriter
from tests.support.program import ROOT

_PROGRAM = """
import errno, os, resource, sys
from arcpipe import descriptors
from arcpipe.disk import Disk

directory = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
reserved = descriptors.room_here(1000).reserved
if sys.argv[2] == "reserve":
    descriptors.keep_reserve(reserved)
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
print(len(taken) < 200 - reserved)
disk = Disk()
try:
    fds = [disk.create(f"{directory}/a"), disk.open(f"{directory}/a"), disk.open_directory(directory)]
    disk.sync_directory(directory)
    print(len(fds))
except OSError as error:
    print(errno.errorcode[error.errno])
try:
    os.open("/dev/null", os.O_RDONLY)
except OSError as error:
    print(errno.errorcode[error.errno])
"""

_WRITER = """
import os, resource, sys, time
from arcpipe import descriptors
from arcpipe.wal.writer import WALOptions, WALWriter

resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
descriptors.keep_reserve(descriptors.RESERVED)
writer = WALWriter(sys.argv[1], 1, WALOptions(max_size_bytes=1000, flush_max_age_seconds=0.001))
try:
    while True:
        os.open("/dev/null", os.O_RDONLY)
except OSError:
    pass
for number in range(5):
    writer.append([{"measurement": "m", "number": number, "filler": "x" * 400}])
time.sleep(0.01)
writer.tick()
print(writer.stats.failures, writer.stats.last_error or "no error")
writer.close()
"""


def run(directory: Path, what: str, program: str = _PROGRAM) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory), what], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_files_of_the_wal_are_opened_when_all_other_descriptors_are_in_use(tmp_path: Path) -> None:
    assert run(tmp_path, "reserve") == ["True", "3", "EMFILE"]


def test_segments_rotate_when_all_other_descriptors_are_in_use(tmp_path: Path) -> None:
    """It lists the pool for a file to write over, and the segments that wait."""
    shipped = WALWriter(str(tmp_path), 1)
    shipped.append([{"measurement": "m", "number": 0}])
    shipped.close()
    directory = WALDirectory(tmp_path)
    for file in directory.segments(SEALED):
        assert FreePool(directory, 4).put(file.path, 1)
    assert run(tmp_path, "reserve", _WRITER) == ["0", "no", "error"]
    assert len(directory.segments(SEALED)) > 3
    assert os.listdir(directory.free) == []


def test_a_process_without_a_reserve_has_all_descriptors_for_everything(tmp_path: Path) -> None:
    assert run(tmp_path, "nothing") == ["False", "EMFILE", "EMFILE"]


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"),
    [
        (10_000, needed(10_000), Room(10_000, RESERVED, 256, 256)),
        (10_000, resource.RLIM_INFINITY, Room(10_000, RESERVED, 256, 256)),
        (3, needed(3), Room(3, RESERVED, 3, 256)),
        (10_000, 4096, Room(3584, RESERVED, 256, 256)),
        (10_000, 1024, Room(512, RESERVED, 256, 256)),
        (10_000, 600, Room(300, RESERVED, 18, 18)),
        (10_000, 256, Room(128, RESERVED, 8, 8)),
        (10_000, LEAST, Room(16, 24, 3, 3)),
        (5, LEAST, Room(5, 29, 3, 3)),
        (100, 612, Room(100, RESERVED, 100, 256)),
        (100, 600, Room(100, RESERVED, 31, 31)),
    ],
)
def test_few_descriptors_are_shared_out_to_what_needs_them(wanted: int, limit: int, expected: Room) -> None:
    assert room(wanted, limit) == expected
