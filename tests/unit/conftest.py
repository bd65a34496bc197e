"""Fixtures for tests of the WAL, and directories that may be in memory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from arcpipe.wal.directory import WALDirectory
from tests.support.wal_doubles import FaultyDisk

_MEMORY: Final = Path("/dev/shm")
_MEMORY_BYTES: Final = 4 << 30
"""What has to be free there: a container often has no more than 64 MB."""


@pytest.fixture(scope="session")
def memory() -> Iterator[Path | None]:
    """Make a directory in memory with ARCPIPE_TEST_IN_MEMORY, where there is room; None otherwise."""
    if os.environ.get("ARCPIPE_TEST_IN_MEMORY") in (None, "", "0") or not _MEMORY.is_dir():
        yield None
        return
    there = os.statvfs(_MEMORY)
    if there.f_bavail * there.f_frsize < _MEMORY_BYTES:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="arcpipe-unit-", dir=_MEMORY))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tmp_path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, memory: Path | None
) -> Iterator[Path]:
    """Make the test's directory: in memory where there is one, for all tests but those marked `on_disk`.

    Thousands of tests wait for a disk that they do not look at.
    """
    name = re.sub(r"\W", "_", request.node.name)[:30]
    if memory is None or request.node.get_closest_marker("on_disk") is not None:
        yield tmp_path_factory.mktemp(name)
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def disk() -> FaultyDisk:
    """Make the real disk, which notes its operations and fails where a test says so."""
    return FaultyDisk()


@pytest.fixture
def directory(tmp_path: Path, disk: FaultyDisk) -> WALDirectory:
    """Make an empty WAL directory on the disk, and forget the calls for that."""
    made = WALDirectory(tmp_path / "wal", disk)
    made.make()
    disk.calls.clear()
    return made
