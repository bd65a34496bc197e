"""Compaction on disks that become full at its worst moments: no file changes, and it works once there is space."""

from __future__ import annotations

import asyncio
import errno
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcpipe.compaction.compactor import Compactor, NoSpace
from arcpipe.compaction.merge import Outcome
from arcpipe.compaction.rewrite import RewriteBounds
from arcpipe.config.settings import WAL, Settings, Storage
from arcpipe.errors import StorageError
from arcpipe.storage.local import LocalStore
from tests.crash.small_disks import SmallDisk, small_disk
from tests.support.compaction import NODE, file_bytes, key_of, make_wal, put, table_of
from tests.support.lake import lake_files, lake_rows

FILES = 4
ROWS = 2_000
DISK_MB = 32


class WatchedStore(LocalStore):
    """Calls a function before it reads a key."""

    before_read: Callable[[str], None] = staticmethod(lambda key: None)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        self.before_read(key)
        return await super().read(key, offset, length)


class Lake:
    """A lake of random rows, which no codec makes small."""

    def __init__(self, root: Path, wal: Path, scratch: Path) -> None:
        self.root = root
        self.settings = Settings(wal=WAL(dir=str(wal), min_free_mb=1), storage=Storage(url=f"file://{root}"))
        chance = random.Random(1)
        for number in range(FILES):
            rows = [
                {
                    "time": chance.randrange(3_600_000_000),
                    "host": f"h{n % 50}",
                    "n": number * ROWS + n,
                    "v": chance.random(),
                }
                for n in range(ROWS)
            ]
            put(root, key_of(number), file_bytes(table_of(rows), scratch))

    def compact(self, before_read: Callable[[str], None] = lambda key: None) -> list[Outcome]:
        """Merge all that is worth it, with rows sorted on disk."""

        async def main() -> list[Outcome]:
            store = WatchedStore(str(self.root))
            store.before_read = before_read
            bounds = RewriteBounds(sort_bytes=50_000, collected_bytes=20_000)
            compactor = Compactor(self.settings, self.settings.wal.dir, NODE, store, rewrite_bounds=bounds)
            try:
                await compactor.finish()
                found = [work async for work in compactor.find()]
                outcomes = [await compactor.compact(work.folder) for work in found]
            finally:
                await store.close()
            return [outcome for outcome in outcomes if outcome is not None]

        return asyncio.run(main())

    def numbers(self) -> list[int]:
        return sorted(row["n"] for row in lake_rows(self.root))

    def is_untouched(self) -> bool:
        return len(lake_files(self.root)) == FILES and self.numbers() == list(range(FILES * ROWS))

    def hidden(self) -> list[Path]:
        return list(self.root.glob(".arcpipe/compaction/*/*"))


def filling(disk: SmallDisk, pattern: str) -> Callable[[str], None]:
    """Fill a disk before the first read of such a key."""
    filled: list[str] = []

    def before_read(key: str) -> None:
        if not filled and re.search(pattern, key):
            filled.append(key)
            disk.fill()

    return before_read


def is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("moment", [r"/m_2026", r"\.new$"], ids=["sorting", "committing"])
def test_a_wal_disk_that_becomes_full_changes_no_file(kind: str, moment: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kind, DISK_MB) as disk:
        lake = Lake(tmp_path / "lake", make_wal(disk.path), tmp_path)
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the next line looks at it)
            lake.compact(filling(disk, moment))
        assert is_full(caught.value)
        assert lake.is_untouched()
        with pytest.raises(NoSpace, match=r"free space there; the files stay as they are"):
            lake.compact()  # what was begun is undone on the full disk, too
        assert lake.hidden() == []
        assert lake.is_untouched()
        disk.free()
        [outcome] = lake.compact()
        assert outcome.rows == FILES * ROWS
        assert len(lake_files(lake.root)) == 1
        assert lake.numbers() == list(range(FILES * ROWS))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_store_that_becomes_full_changes_no_file(kind: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kind, DISK_MB) as disk:
        lake = Lake(disk.path / "lake", make_wal(tmp_path), tmp_path)
        with pytest.raises(StorageError, match="No space left") as caught:
            lake.compact(filling(disk, "/m_2026"))
        assert caught.value.kind == "no_space"
        assert lake.hidden() == []
        assert lake.is_untouched()
        with pytest.raises(NoSpace):
            lake.compact()
        disk.free()
        assert len(lake.compact()) == 1
        assert lake.numbers() == list(range(FILES * ROWS))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_committed_merge_is_finished_on_full_disks(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    """It makes space: inputs go."""
    with small_disk(tmp_path / "disk", kind, DISK_MB) as disk:
        lake = Lake(disk.path / "lake", make_wal(disk.path), tmp_path)

        async def full(*_: object) -> None:
            raise StorageError("the disk is full", "no_space")

        with monkeypatch.context() as patched:
            patched.setattr(WatchedStore, "move", full)
            with pytest.raises(StorageError):
                lake.compact()
        assert len(lake.hidden()) == 1
        disk.fill()
        disk.fill()
        assert lake.compact() == []
        assert len(lake_files(lake.root)) == 1
        assert lake.numbers() == list(range(FILES * ROWS))
