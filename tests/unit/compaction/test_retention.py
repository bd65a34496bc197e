"""Which hours retention deletes, and which files of them stay."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.compaction.compactor import Compactor
from arcpipe.compaction.plan import Busy
from arcpipe.compaction.process import CompactionProcess
from arcpipe.compaction.retention import Expired, Retention, limit_us
from arcpipe.config.settings import WAL, Settings, Storage
from arcpipe.config.settings import Retention as RetentionSettings
from arcpipe.counters import Compaction, Counters
from arcpipe.errors import StorageError
from arcpipe.storage import open_store
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE, key_of, make_wal, put
from tests.support.lake import lake_files

HOUR = 3_600_000_000
DAY = 24 * HOUR
NEWEST = HOUR_US + 100 * DAY


class Lake:
    """A local lake with retention."""

    def __init__(self, directory: Path, **days: int) -> None:
        self.root = directory / "lake"
        self.wal = make_wal(directory)
        self.now = (NEWEST + HOUR) / 1e6
        self.settings = Settings(
            wal=WAL(dir=str(self.wal), min_free_mb=0),
            storage=Storage(url=f"file://{self.root}"),
            retention=RetentionSettings(days=days),
        )
        self.counters = Counters(1)

    def put(self, days_old: float, number: int = 1, **key: Any) -> Path:
        """Make a file of an hour that ended so many days before the newest one."""
        hour_us = NEWEST - int(days_old * 24) * HOUR
        path = put(self.root, key_of(number, hour_us=hour_us, **key), b"1234")
        then = self.now - 3600
        os.utime(path, (then, then))
        return path

    def run(self, work: Callable[[Compactor, Any], Any]) -> Any:
        async def main() -> Any:
            store = open_store(self.settings.storage.url, self.settings.storage.s3)
            compactor = Compactor(self.settings, str(self.wal), NODE, store, now=lambda: self.now)
            try:
                return await work(compactor, store)
            finally:
                await store.close()

        return asyncio.run(main())

    def expire(self, delete: bool = True, all_nodes: bool = False) -> list[Expired]:
        async def work(compactor: Compactor, store: Any) -> list[Expired]:
            retention = Retention(store, compactor, all_nodes=all_nodes, now=lambda: self.now)
            limits = await retention.limits(self.settings.retention.days)
            found = [expired async for expired in retention.find(limits)]
            return [await retention.delete(expired.folder) for expired in found] if delete else found

        result: list[Expired] = self.run(work)
        return result

    def look(self) -> None:
        """Let the process take a look."""

        async def work(compactor: Compactor, store: Any) -> None:
            await CompactionProcess(self.settings, compactor, self.counters, store, lambda: self.now).look()

        self.run(work)

    @property
    def files(self) -> set[Path]:
        return set(lake_files(self.root))


@given(
    st.integers(0, 4000).map(lambda hours: HOUR_US + hours * HOUR),
    st.integers(-5 * DAY, 400 * DAY),
    st.integers(1, 100),
)
def test_no_hour_is_expired_too_early_by_either_clock(newest: int, ahead: int, days: int) -> None:
    now = newest + ahead
    limit = limit_us(now, newest, days)
    assert limit <= now - days * DAY
    assert limit <= newest + HOUR + DAY - days * DAY
    assert limit in (now - days * DAY, newest + HOUR + DAY - days * DAY)


@given(st.dictionaries(st.integers(0, 20 * 24), st.integers(1, 3), max_size=6), st.integers(1, 15))
def test_hours_older_than_the_setting_go_and_all_others_stay(ages: dict[int, int], days: int) -> None:
    """`ages`: hours before the newest one, and their number of files."""
    with tempfile.TemporaryDirectory() as directory:
        lake = Lake(Path(directory), db=days)
        lake.put(0)
        for age, count in ages.items():
            for number in range(count):
                lake.put(age / 24 + 0.0001, number + 2)
        before = {age: count + (age == 0) for age, count in ({0: 0} | ages).items()}
        gone = {age for age in before if age * HOUR >= days * DAY}
        announced = lake.expire(delete=False)
        assert len(lake.files) == sum(before.values())
        deleted = lake.expire()
        assert deleted == announced
        assert {(NEWEST - one.folder.hour_us) // HOUR for one in deleted} == gone
        assert len(lake.files) == sum(count for age, count in before.items() if age not in gone)
        assert lake.expire() == []


def test_the_age_is_that_of_the_hour_and_not_of_the_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    kept, late = lake.put(0), lake.put(8)
    os.utime(kept, (0, 0))
    lake.expire()
    assert lake.files == {kept}
    assert not late.exists()


def test_files_that_are_not_this_nodes_and_final_stay(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    lake.put(0)
    own, other, fresh = lake.put(9), lake.put(9, node=OTHER_NODE), lake.put(9, 3)
    os.utime(fresh, (lake.now, lake.now))
    unfinished = lake.put(9, 4)
    batch = unfinished.name.split("_")[2]
    (lake.wal / "batches" / f"{batch}.json").touch()
    foreign = own.parent / "notes.txt"
    foreign.touch()
    table = own.parent / "other.parquet"
    table.touch()
    below = own.parent / "sub" / own.name
    below.parent.mkdir()
    below.touch()
    [expired] = lake.expire()
    assert ([file.listed.key.rpartition("/")[2] for file in expired.files], expired.others) == ([own.name], 5)
    assert all(path.exists() for path in (other, fresh, unfinished, foreign, table, below))


def test_files_of_nodes_that_are_gone_are_deleted_on_request(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    lake.put(0)
    other = lake.put(9, node=OTHER_NODE)
    [expired] = lake.expire()
    assert (expired.files, expired.others) == ([], 1)
    assert other.exists()
    lake.expire(all_nodes=True)
    assert not other.exists()


def test_databases_without_a_setting_and_hidden_folders_stay(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    lake.put(0)
    stay = {lake.put(50, database="other"), lake.put(50, database="db.raw")}
    for name in (".arcpipe/db", "_db", ".db"):
        path = lake.root / name / "m/2020/01/01/00" / f"m_20200101T000000000000_{NODE}-20260101T000000-1.1-ab_0.parquet"
        path.parent.mkdir(parents=True)
        path.touch()
        stay.add(path)
    lake.expire()
    assert all(path.exists() for path in stay)


def test_a_lake_that_nobody_writes_to_is_kept_from_a_clock_ahead(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    kept = [lake.put(days) for days in (0, 1, 5)]
    lake.put(8)
    lake.now += 365 * 86400
    lake.expire()
    assert lake.files == set(kept)


def test_an_hour_in_the_future_does_not_hide_that_the_clock_is_ahead(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    kept = {lake.put(days) for days in (0, 5, -3650)}
    lake.now += 365 * 86400
    lake.expire()
    assert lake.files == kept


def test_folders_of_both_ways_to_encode_names_expire(tmp_path: Path) -> None:
    lake = Lake(tmp_path, **{"my db": 7})
    for days_old in (0, 10):
        for hidden in ("._", "._~"):
            lake.put(days_old, database="my db", hidden=hidden)
    assert {one.folder.database for one in lake.expire()} == {"my%20db", "my~20db"}
    assert len(lake.files) == 2


def test_an_empty_lake_has_nothing_to_expire(tmp_path: Path) -> None:
    assert Lake(tmp_path, db=7).expire() == []


def test_nothing_is_deleted_while_a_merge_is_under_way(tmp_path: Path) -> None:
    lake = Lake(tmp_path, db=7)
    kept = {lake.put(0), lake.put(9)}

    async def work(compactor: Compactor, store: Any) -> None:
        [expired] = [one async for one in Retention(store, compactor).find({"db": NEWEST - 7 * DAY})]
        with Compactor(lake.settings, str(lake.wal), NODE, store).plans.lock(), pytest.raises(Busy):
            await Retention(store, compactor).delete(expired.folder)

    lake.run(work)
    assert lake.files == kept


def test_the_process_announces_waits_a_day_and_deletes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lake = Lake(tmp_path, db=7)
    kept = {lake.put(0), lake.put(1)}
    gone = {lake.put(9), lake.put(9, 2), lake.put(10)}
    start = lake.now
    for hour in range(24):
        lake.now = start + hour * 3600
        lake.look()
        assert lake.files == kept | gone
    assert lake.counters.compaction[Compaction.RETENTION_FROM] == int(start) + 86400
    assert "retention is new here. Too old by now: 'db': 3 files of 2 hours, 0.0 MB." in caplog.text
    lake.now = start + 86400
    lake.look()
    assert lake.files == kept
    block = lake.counters.compaction
    assert (block[Compaction.EXPIRED_HOURS], block[Compaction.EXPIRED_FILES]) == (2, 3)
    assert (block[Compaction.EXPIRED_BYTES], block[Compaction.RETENTION_FROM]) == (12, 0)
    assert "retention: deleted 3 files of 2 hours, 0.0 MB, from database 'db'" in caplog.text
    assert block[Compaction.MERGES] == 0  # compaction is off


def test_the_process_deletes_nothing_after_a_jump_of_the_clock(tmp_path: Path) -> None:
    """Also where clients send no times, so that the newest hour jumps with the clock."""
    lake = Lake(tmp_path, db=7)
    kept = {lake.put(0), lake.put(1)}
    lake.look()
    lake.now += 86400
    lake.look()
    lake.now += 365 * 86400
    kept.add(lake.put(-366))
    for _ in range(24):
        lake.look()
        lake.now += 3500
    assert lake.files == kept


def test_a_store_that_cannot_be_listed_deletes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake = Lake(tmp_path, db=7)
    kept = {lake.put(0), lake.put(9)}
    lake.look()
    lake.now += 86400

    async def fail(folder: str) -> list[str]:
        raise StorageError("no answer")

    async def work(compactor: Compactor, store: Any) -> None:
        store.list_folders = fail
        await CompactionProcess(lake.settings, compactor, lake.counters, store, lambda: lake.now).look()

    lake.run(work)
    lake.run(work)
    assert lake.files == kept
    assert lake.counters.compaction[Compaction.FAILURES] == lake.counters.compaction[Compaction.FAILED_LOOKS] == 2
    assert "retention failed, and is tried again later: no answer" in caplog.text
    lake.look()
    assert len(lake.files) == 1
    assert lake.counters.compaction[Compaction.FAILED_LOOKS] == 0


@pytest.mark.parametrize("deleted", range(4))
def test_deletes_that_a_crash_cut_off_are_done_by_the_next_look(tmp_path: Path, deleted: int) -> None:
    lake = Lake(tmp_path, db=7)
    kept = {lake.put(0)}
    for number in range(3):
        lake.put(9, number + 2)
    lake.look()
    lake.now += 86400

    class Crash(BaseException):
        pass

    async def work(compactor: Compactor, store: Any) -> None:
        whole = store.delete_all

        async def crash(keys: list[str]) -> None:
            await whole(keys[:deleted])
            if keys:
                raise Crash

        store.delete_all = crash
        await CompactionProcess(lake.settings, compactor, lake.counters, store, lambda: lake.now).look()

    with pytest.raises(Crash):
        lake.run(work)
    assert len(lake.files) == 4 - deleted
    lake.look()
    assert lake.files == kept


def test_directories_that_retention_has_emptied_are_removed_later(tmp_path: Path) -> None:
    """Not at once: an uploader may be about to write a late record there."""
    lake = Lake(tmp_path, db=7)
    kept = lake.put(0)
    lake.put(9)
    other = lake.put(9, 2, measurement="others", node=OTHER_NODE)
    lake.look()
    lake.now += 86400
    young = lake.put(300).parent
    for path in young.iterdir():
        path.unlink()
    folders = [path for path in lake.root.glob("db/**/*") if path.is_dir()]

    def age(seconds: float, paths: list[Path]) -> None:
        for path in paths:
            os.utime(path, (lake.now - seconds, lake.now - seconds))

    lake.look()
    assert lake.files == {kept, other}
    assert all(path.is_dir() for path in folders)
    age(3600, folders)
    age(10, [young])
    lake.look()
    assert [path for path in folders if path.is_dir()] == [
        path for path in folders if any(one.is_relative_to(path) for one in (kept, other, young))
    ]
    age(3600, [path for path in folders if path.is_dir()])
    lake.look()
    assert {path for path in lake.root.glob("db/**/*") if path.is_dir()} == {*kept.parents, *other.parents} & {*folders}
    assert lake.files == {kept, other}
