"""Descriptors: how many connections they are for, and those that are kept for the WAL."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from arcpipe.descriptors import LEAST, RESERVED, Room, needed, room
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


def run(directory: Path, what: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(directory), what], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_files_of_the_wal_are_opened_when_all_other_descriptors_are_in_use(tmp_path: Path) -> None:
    assert run(tmp_path, "reserve") == ["True", "3", "EMFILE"]


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
