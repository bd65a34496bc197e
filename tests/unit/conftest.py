"""Fixtures for tests of the WAL."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcpipe.wal.directory import WALDirectory
from tests.support.wal_doubles import FaultyDisk


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
