"""The compaction process: what it counts of looks that fail, which health judges."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from arcpipe.compaction import process
from arcpipe.compaction.compactor import Compactor
from arcpipe.compaction.process import CompactionProcess
from arcpipe.config.settings import WAL, Compaction, Settings, Storage
from arcpipe.counters import Compaction as Compacted
from arcpipe.counters import Counters
from arcpipe.storage import open_store
from tests.support.compaction import NODE, make_wal


def test_looks_that_fail_as_a_whole_are_counted_until_one_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is merged or deleted meanwhile, and the process has a heartbeat all the time."""
    monkeypatch.setattr(process, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(process, "_RETRY_SECONDS", 0.001)
    settings = Settings(
        wal=WAL(dir=str(make_wal(tmp_path)), min_free_mb=0),
        storage=Storage(url=f"file://{tmp_path / 'lake'}"),
        compaction=Compaction(enabled=True),
    )
    counters = Counters(1)
    block = counters.compaction
    told: list[int] = []

    async def main() -> None:
        store = open_store(settings.storage.url, settings.storage.s3)
        compactor = Compactor(settings, settings.wal.dir, NODE, store)
        compacting = CompactionProcess(settings, compactor, counters, store)
        finish = compactor.finish

        async def fail_at_first() -> None:
            told.append(block[Compacted.FAILED_LOOKS])
            if len(told) <= 3:
                raise OSError("the store is not there")
            await finish()
            compacting.stop()

        monkeypatch.setattr(compactor, "finish", fail_at_first)
        await compacting.serve()
        await store.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert told == [0, 1, 2, 3]
    assert block[Compacted.FAILED_LOOKS] == 0
    assert block[Compacted.FAILURES] == 3
