"""What the tests of the log share."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe.wal.directory import WALDirectory
from tests.support.wal_doubles import FaultyDisk


@pytest.fixture
def disk() -> FaultyDisk:
    """The real disk, which notes what is asked of it and fails where a test says so."""
    return FaultyDisk()


@pytest.fixture
def directory(tmp_path: Path, disk: FaultyDisk) -> WALDirectory:
    """An empty log directory on it. What was called to make it is forgotten."""
    made = WALDirectory(tmp_path / "wal", disk)
    made.make()
    disk.calls.clear()
    return made
