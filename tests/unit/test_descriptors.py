"""Descriptors that are kept for the WAL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

_PROGRAM = """
import errno, os, resource, sys
from arcpipe import descriptors
from arcpipe.disk import Disk

directory = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
if sys.argv[2] == "reserve":
    descriptors.keep_reserve()
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
print(len(taken) < 200 - 64)
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
