"""Plans that a crash left, in a store that somebody else has changed since."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from arcpipe.compaction.compactor import Bounds, Compactor
from arcpipe.compaction.merge import Merge, Stuck
from arcpipe.compaction.plan import Busy, Plans
from arcpipe.compaction.retention import Retention
from arcpipe.errors import DamagedFile, StorageError, UnknownVersion
from arcpipe.storage import Listed, local_files, open_store
from arcpipe.storage.local import LocalStore
from arcpipe.wal.checksum import with_checksum
from tests.support.compaction import HOUR_US, NODE
from tests.support.wal_doubles import FaultyDisk
from tests.unit.compaction.test_merging import Lake, by_number, some_rows


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with a plan that is committed, and of which nothing is visible yet."""
    lake = Lake(tmp_path)
    for number in range(4):
        lake.put(number, some_rows(20, number))

    async def crash(*_: object) -> bool:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Merge, "_publish", crash)
        with pytest.raises(Crash):
            lake.compact()
    return lake


def hidden(lake: Lake) -> list[Path]:
    return list(lake.root.glob(".arcpipe/compaction/*/*"))


def test_a_committed_plan_is_finished(lake: Lake) -> None:
    before = by_number(lake.rows())
    assert len(hidden(lake)) == 1
    assert lake.compact() == []
    assert len(lake.files) == 1
    assert by_number(lake.rows()) == before
    assert hidden(lake) == []


def test_it_starts_over_if_its_output_is_gone(lake: Lake) -> None:
    before = by_number(lake.rows())
    hidden(lake)[0].unlink()
    assert len(lake.compact()) == 1
    assert len(lake.files) == 1
    assert by_number(lake.rows()) == before


def test_an_output_that_is_cut_off_does_not_count(lake: Lake) -> None:
    before = by_number(lake.rows())
    data = hidden(lake)[0].read_bytes()
    hidden(lake)[0].write_bytes(data[:-10])
    assert len(lake.compact()) == 1
    assert by_number(lake.rows()) == before


def test_nothing_is_deleted_if_inputs_are_gone_too(lake: Lake) -> None:
    hidden(lake)[0].unlink()
    lake.files[0].unlink()
    left = lake.files
    for _ in range(2):
        with pytest.raises(Stuck, match="can neither be finished nor undone"):
            lake.compact()
        assert lake.files == left


def test_a_plan_of_files_that_are_all_gone_is_dropped(lake: Lake) -> None:
    hidden(lake)[0].unlink()
    for path in lake.files:
        path.unlink()
    assert lake.compact() == []
    assert not Path(Plans(lake.wal).path).exists()


def test_a_plan_of_another_store_waits(lake: Lake) -> None:
    lake.root = lake.root.parent / "elsewhere"
    with pytest.raises(Stuck, match="is of the store"):
        lake.compact()
    lake.root = lake.root.parent / "lake"
    lake.compact()
    assert len(lake.files) == 1


def test_a_damaged_plan_or_one_of_another_version_waits(lake: Lake) -> None:
    path = Path(Plans(lake.wal).path)
    before, data = lake.files, path.read_bytes()
    path.write_bytes(data.replace(b"committed", b"committeD"))
    with pytest.raises(DamagedFile, match="its checksum does not match"):
        lake.compact()
    body = data[: data.rindex(b',"crc32"')].replace(b'"version":1', b'"version":2') + b"}"
    path.write_bytes(with_checksum(body))
    with pytest.raises(UnknownVersion, match="Nothing is compacted"):
        lake.compact()
    assert lake.files == before
    assert len(hidden(lake)) == 1


def test_only_one_process_at_a_time_has_the_lock(lake: Lake) -> None:
    with Plans(lake.wal).lock(), pytest.raises(Busy, match="is compacting: it holds"):
        lake.compact()
    lake.compact()
    assert len(lake.files) == 1


def test_retention_finishes_the_plan_and_deletes_its_outputs(lake: Lake) -> None:
    async def main() -> int:
        settings = lake.settings()
        store = open_store(settings.storage.url, settings.storage.s3)
        compactor = Compactor(settings, str(lake.wal), NODE, store, bounds=Bounds(settle_seconds=-60))
        retention = Retention(store, compactor)
        try:
            limits = {"db": HOUR_US + 3_600_000_000}
            found = [expired.folder async for expired in retention.find(limits)]
            return sum([len((await retention.delete(folder)).files) for folder in found])
        finally:
            await store.close()

    assert asyncio.run(main()) == 1
    assert lake.files == hidden(lake) == []
    assert Plans(str(lake.wal)).read() is None


@pytest.mark.parametrize("hides", ["outputs", "deletes"])
def test_a_list_that_is_behind_deletes_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch, hides: str) -> None:
    """A list without new objects, or with old ones, is no proof that outputs are gone and inputs are there."""
    before = by_number(lake.rows())
    inputs = lake.files

    async def die(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Merge, "_delete_inputs", die)
        with pytest.raises(Crash):
            lake.compact()
    [output] = set(lake.files) - set(inputs)
    old = LocalStore.list_objects

    async def behind(self: LocalStore, prefix: str, after: str = "") -> AsyncIterator[list[Listed]]:
        """List what there was before the first rename."""
        async for page in old(self, prefix, after):
            yield [one for one in page if one.key != str(output.relative_to(lake.root))]
        if hides == "deletes" and "db/m/".startswith(prefix[:5]):
            yield gone

    gone = [Listed(str(path.relative_to(lake.root)), path.stat().st_size, path.stat().st_mtime) for path in inputs[:2]]
    if hides == "deletes":
        output.rename(lake.directory / "elsewhere")  # somebody removed it, too: nobody may say that inputs are there
        for path in inputs[:2]:
            path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "list_objects", behind)
        with pytest.raises(Stuck if hides == "deletes" else StorageError):
            lake.compact()
    if hides == "deletes":
        (lake.directory / "elsewhere").rename(output)
    lake.compact()
    assert lake.files == [output]
    assert by_number(lake.rows()) == before


def test_a_plan_that_was_read_is_durable_before_it_is_followed(lake: Lake) -> None:
    """Who committed it may have died before its sync. If a power cut undid that, its outputs would be deleted."""
    disk = FaultyDisk()
    plans = Plans(lake.wal, disk)
    plan = plans.read()
    assert plan is not None
    assert ("sync_directory", "compaction") in disk.calls
    with disk.failing("sync_directory"), pytest.raises(OSError, match="Input/output"):
        plans.read()


def test_what_a_killed_merge_made_visible_is_durable_before_its_inputs_go(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renamed its output, and died before the sync: a power cut would take the output, and not bring the inputs."""
    plan = Plans(lake.wal).read()
    assert plan is not None
    [output] = plan.outputs
    (lake.root / output.hidden).rename(lake.root / output.key)
    events: list[str] = []

    def note(name: str) -> None:
        method = getattr(local_files, name)

        def noted(path: str) -> None:
            events.append(f"{name} {os.path.relpath(path, lake.root)}")
            method(path)

        monkeypatch.setattr(local_files, name, noted)

    note("sync_directory")
    note("unlink")
    lake.compact()
    assert len(lake.files) == 1
    first = next(number for number, event in enumerate(events) if event.startswith(f"unlink {plan.folder}/"))
    assert f"sync_directory {plan.folder}" in events[:first]
