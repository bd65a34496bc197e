"""Merges on a local store: what is merged, into what, and what stays as it is."""

from __future__ import annotations

import asyncio
import pickle
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.compaction.compactor import Compactor, Work
from arcpipe.compaction.merge import Outcome
from arcpipe.compaction.process import CompactionProcess
from arcpipe.compaction.rewrite import Rewrite, RewriteBounds
from arcpipe.config.settings import WAL, Compaction, Parquet, Settings, Storage, StorageS3
from arcpipe.counters import Compaction as Compacted
from arcpipe.counters import Counters
from arcpipe.lake.file_schema import ROLE
from arcpipe.lake.folders import parse_folder
from arcpipe.lake.input_file import InputFile
from arcpipe.lake.keys import Hidden
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.storage import open_store
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE, file_bytes, key_of, make_wal, put, table_of
from tests.support.lake import lake_files, lake_rows

Rows = list[dict[str, Any]]


class Lake:
    """A local lake and its compactor."""

    def __init__(self, directory: Path, **compaction: Any) -> None:
        self.root = directory / "lake"
        self.directory = directory
        self.wal = make_wal(directory)
        self.parquet: dict[str, Any] = {}
        self.compaction = compaction
        self.bounds: RewriteBounds | None = None
        self.odd: dict[str, str] = {}
        self.ahead_seconds = 0.0  # of the compactor's clock

    def put(
        self, number: int, rows: Rows, age_seconds: float = 3600.0, tags: tuple[str, ...] = ("host",), **key: Any
    ) -> Path:
        names = key.get("database", "db"), key.get("measurement", "m")
        data = file_bytes(table_of(rows, tags), self.directory, *names)
        return put(self.root, key_of(number, **key), data, age_seconds)

    def settings(self) -> Settings:
        return Settings(
            wal=WAL(dir=str(self.wal), min_free_mb=0),
            storage=Storage(url=f"file://{self.root}"),
            parquet=Parquet(**self.parquet),
            compaction=Compaction(**self.compaction),
        )

    def compact(self) -> list[Outcome]:
        """Merge all that is worth it."""

        async def main() -> list[Outcome]:
            settings = self.settings()
            store = open_store(settings.storage.url, settings.storage.s3)
            compactor = Compactor(
                settings,
                str(self.wal),
                NODE,
                store,
                now=lambda: time.time() + self.ahead_seconds,
                rewrite_bounds=self.bounds,
            )
            try:
                await compactor.finish()
                found = [work async for work in compactor.find()]
                outcomes = [await compactor.compact(work.folder) for work in found]
                self.odd = compactor.odd
            finally:
                await store.close()
            return [outcome for outcome in outcomes if outcome is not None]

        return asyncio.run(main())

    @property
    def files(self) -> list[Path]:
        return lake_files(self.root)

    def rows(self) -> Rows:
        return lake_rows(self.root)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def some_rows(count: int, seed: int, hosts: int = 5) -> Rows:
    pick = random.Random(seed)
    return [
        {
            "time": pick.randrange(3_600_000_000),
            "host": f"h{pick.randrange(hosts)}",
            "n": seed * 1_000_000 + n,
            "v": pick.random(),
        }
        for n in range(count)
    ]


def by_number(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: row["n"])


def test_a_look_remembers_no_files(lake: Lake) -> None:
    """A look through a lake of years finds millions of them, before the first merge."""

    def found() -> tuple[int, Work]:
        async def find() -> list[Work]:
            store = open_store(lake.settings().storage.url, StorageS3())
            try:
                return [work async for work in Compactor(lake.settings(), str(lake.wal), NODE, store).find()]
            finally:
                await store.close()

        [work] = asyncio.run(find())
        return len(pickle.dumps(work)), work

    data = file_bytes(table_of(some_rows(1, 0)), lake.directory, "db", "m")
    for number in range(3):
        put(lake.root, key_of(number), data, 3600.0)
    few, work = found()
    assert (work.files, work.size) == (3, 3 * len(data))
    for number in range(3, 100):
        put(lake.root, key_of(number), data, 3600.0)
    many, work = found()
    assert work.files == 100
    assert many < few + 20


@pytest.mark.parametrize("layout", ["arc", "hive"])
def test_small_files_of_a_closed_hour_become_one(lake: Lake, layout: Any) -> None:
    for number in range(5):
        lake.put(number, some_rows(50, number), layout=layout)
    before = by_number(lake.rows())
    (outcome,) = lake.compact()
    (file,) = lake.files
    assert by_number(lake.rows()) == before
    assert (outcome.rows, outcome.superseded, len(outcome.plan.inputs)) == (250, 0, 5)
    table = pq.read_table(file, partitioning=None)
    order = list(zip(table["host"].to_pylist(), table["time"].to_pylist(), strict=True))
    assert order == sorted(order)
    assert pq.ParquetFile(file).schema_arrow.field("host").metadata[ROLE] == b"tag"
    assert lake.compact() == []


def test_the_hour_that_is_not_closed_and_young_files_wait(lake: Lake) -> None:
    for number in range(3):
        lake.put(number, some_rows(5, number), age_seconds=10)
        lake.put(number, some_rows(5, number), hour_us=HOUR_US + 10**15)
    assert lake.compact() == []
    assert len(lake.files) == 6


def test_files_of_an_unfinished_batch_stay_as_they_are(lake: Lake) -> None:
    """After a crash the uploader puts them again under the same keys."""
    paths = [lake.put(number, some_rows(5, number)) for number in range(4)]
    batch = paths[3].name.split("_")[2]
    manifest = lake.wal / "batches" / f"{batch}.json"
    manifest.write_text("{}")
    lake.compact()
    assert paths[3].exists()
    assert len(lake.files) == 2
    manifest.unlink()
    assert lake.compact() == []  # what was made just now may not be merged yet
    lake.ahead_seconds = 600
    lake.compact()
    assert len(lake.files) == 1


def test_files_of_others_stay_as_they_are(lake: Lake) -> None:
    rows = some_rows(5, 1)
    foreign = [
        lake.put(7, rows, node=OTHER_NODE),
        put(lake.root, str(Path(key_of(1)).with_name("mine.parquet")), b"not mine"),
        put(lake.root, str(Path(key_of(1)).with_name("_SUCCESS")), b""),
        put(lake.root, "notes/2026.parquet", b"?"),
    ]
    for number in range(3):
        lake.put(number, some_rows(5, number))
    before = [path.read_bytes() for path in foreign]
    assert len(lake.compact()) == 1
    assert [path.read_bytes() for path in foreign] == before


def test_a_damaged_file_stays_and_the_others_are_merged(lake: Lake) -> None:
    for number in range(4):
        lake.put(number, some_rows(50, number))
    damaged = put(lake.root, key_of(9), b"PAR1 no footer PAR1")
    cut = lake.put(10, some_rows(500, 10))
    data = bytearray(cut.read_bytes())
    data[100:300] = bytes(200)
    put(lake.root, key_of(10), bytes(data))
    (outcome,) = lake.compact()
    assert len(outcome.plan.inputs) in (4, 5)  # a page whose bytes are wrong may still decode
    assert damaged.exists()
    assert str(damaged.relative_to(lake.root)) in lake.odd


def test_columns_are_united_and_types_that_differ_are_left(lake: Lake) -> None:
    lake.put(1, [{"time": 1, "host": "a", "n": 1, "v": 1.5}])
    lake.put(2, [{"time": 2, "n": 2, "w": True}])
    lake.put(3, [{"time": 3, "host": "b", "n": 3, "note": "x"}])
    odd = lake.put(4, [{"time": 4, "host": "a", "n": 4, "v": "text"}])
    lake.compact()
    assert odd.exists()
    (merged,) = set(lake.files) - {odd}
    assert set(pq.read_schema(merged).names) == {"time", "host", "n", "v", "w", "note"}
    assert len(pq.read_table(merged, partitioning=None)) == 3


@pytest.mark.parametrize("first", [1, 26])
def test_of_two_types_of_a_column_the_rarer_one_is_left(lake: Lake, first: int) -> None:
    """An operator has changed the type within the hour: one look merges most of its files."""
    of_type = {True: "text", False: 1.5}
    paths = [lake.put(n, [{"time": n, "n": n, "v": of_type[n >= first]}]) for n in range(30)]
    lake.compact()
    rare = paths[:first] if first < 15 else paths[first:]
    assert [path for path in paths if path.exists()] == rare
    assert sorted(lake.odd) == sorted(str(path.relative_to(lake.root)) for path in rare)
    assert sorted(row["n"] for row in lake.rows()) == list(range(30))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_fit_in_memory_is_sorted_by_ranges(lake: Lake, seed: int) -> None:
    lake.bounds = RewriteBounds(sort_bytes=100_000, collected_bytes=30_000)
    lake.parquet = {"row_group_rows": 7_000}
    for number in range(8):
        lake.put(number, some_rows(5_000, number * 10 + seed, hosts=(1, 50, 3_000)[seed]))
    before = by_number(lake.rows())
    lake.compact()
    (file,) = lake.files
    assert by_number(lake.rows()) == before
    table = pq.read_table(file, partitioning=None)
    order = list(zip(table["host"].to_pylist(), table["time"].to_pylist(), strict=True))
    assert order == sorted(order)
    assert pq.ParquetFile(file).metadata.num_row_groups == 6


@pytest.mark.parametrize("fits", [True, False])
def test_inputs_are_decoded_once_whether_they_fit_or_not(
    lake: Lake, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs that do not fit, a sample of the columns of the order comes before that."""
    lake.bounds = RewriteBounds(sort_bytes=10**8 if fits else 30_000, collected_bytes=10_000)
    for number in range(8):
        lake.put(number, some_rows(500, number))
    read: list[tuple[str, tuple[str, ...] | None]] = []
    tables = InputFile.tables

    def noted(self: InputFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
        read.append((self.key, None if columns is None else tuple(columns)))
        return tables(self, columns)

    monkeypatch.setattr(InputFile, "tables", noted)
    (outcome,) = lake.compact()
    inputs = [one.key for one in outcome.plan.inputs]
    whole = sorted(key for key, columns in read if columns is None and not key.endswith(".new"))
    assert whole == sorted(inputs)
    assert {columns for _, columns in read if columns is not None} == (set() if fits else {("host", "time")})


def test_the_memory_of_rows_is_estimated_from_their_footer(tmp_path: Path) -> None:
    pick = random.Random(1)
    rows = [{**row, "note": "x" * pick.randrange(100), "b": row["n"] % 2 == 0} for row in some_rows(20_000, 1)]
    memory = SpoolMemory(tmp_path, 1 << 30, 1 << 30)
    spool = Spool(memory)
    spool.write(file_bytes(table_of(rows), tmp_path))
    spool.flush()
    folder = parse_folder(key_of(1).rpartition("/")[0])
    assert folder is not None
    file = InputFile(key_of(1), spool, folder)
    whole = sum(table.nbytes for table in file.tables())
    assert 0.8 < file.nbytes / whole < 1.2
    file.close()
    spool.close()


@pytest.mark.slow
@pytest.mark.parametrize("fits", [True, False])
def test_of_equal_points_the_last_one_stays(lake: Lake, fits: bool) -> None:
    if not fits:
        lake.bounds = RewriteBounds(sort_bytes=5_000, collected_bytes=1_000)
    lake.compaction = {"dedup": {"db.m": "series_time"}}
    pick = random.Random(1)
    last: dict[tuple[str | None, int], int] = {}
    n = 0
    for number in [3, 1, 2]:
        rows = []
        for _ in range(300):
            n += 1
            rows.append({"time": pick.randrange(20), "host": pick.choice(["a", "b", None]), "n": number * 1000 + n})
        lake.put(number, rows)
    for row in sorted(lake.rows(), key=lambda row: row["n"]):
        last[row["host"], row["time"]] = row["n"]
    (outcome,) = lake.compact()
    assert {(row["host"], row["time"]): row["n"] for row in lake.rows()} == last
    assert len(lake.rows()) == len(last) == 900 - outcome.superseded
    assert lake.compact() == []
    lake.ahead_seconds = 600
    # A late file counts after all others, and the whole hour is merged again.
    lake.put(4, [{"time": 3, "host": "a", "n": 1}])
    assert len(lake.compact()) == 1
    last["a", HOUR_US + 3] = 1
    assert {(row["host"], row["time"]): row["n"] for row in lake.rows()} == last


@pytest.mark.parametrize("field_in", [1, 2])
@pytest.mark.parametrize("fits", [True, False])
def test_what_some_sender_called_a_tag_tells_points_apart(lake: Lake, field_in: int, fits: bool) -> None:
    """Another node, or this one before it lost its registry, may know the column as a field."""
    if not fits:
        lake.bounds = RewriteBounds(sort_bytes=500, collected_bytes=100)
    lake.compaction = {"dedup": {"db": "series_time"}}
    places = [(at, host) for at in (1, 2) for host in "abc"]
    rows: Rows = [{"time": at, "host": host, "n": n} for n, (at, host) in enumerate(places)]
    lake.put(3 - field_in, rows)
    lake.put(field_in, [row | {"n": 10 + row["n"]} for row in rows if row["host"] == "b"], tags=())
    lake.compact()
    newer = 10 if field_in == 2 else 0
    wanted = [
        row | {"n": row["n"] + (newer if row["host"] == "b" else 0), "time": HOUR_US + row["time"]} for row in rows
    ]
    assert by_number(lake.rows()) == by_number(wanted)
    [file] = lake.files
    assert pq.read_schema(file).field("host").metadata[ROLE] == b"tag"


def test_all_rows_of_one_point_need_no_memory(lake: Lake) -> None:
    lake.bounds = RewriteBounds(sort_bytes=5_000, collected_bytes=1_000)
    lake.compaction = {"dedup": {"db": "series_time"}}
    for number in range(3):
        lake.put(number, [{"time": 5, "host": "a", "n": number * 1000 + n} for n in range(1000)])
    lake.compact()
    assert [row["n"] for row in lake.rows()] == [2999]


def test_digits_below_microseconds_are_part_of_a_point(lake: Lake) -> None:
    lake.compaction = {"dedup": {"db": "series_time"}}
    for number, ns in enumerate([1, 2, 1]):
        table = table_of([{"time": 5, "time_ns": ns, "host": "a", "n": number}], time_ns=pa.int16())
        put(lake.root, key_of(number), file_bytes(table, lake.directory))
    lake.compact()
    assert sorted((row["time_ns"], row["n"]) for row in lake.rows()) == [(1, 2), (2, 1)]


def test_a_merge_that_wrote_other_values_keeps_the_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from arcpipe.compaction import merge, outputs, tables

    right: Callable[[pa.Table], pa.Table] = tables.compacted

    def wrong(table: pa.Table) -> pa.Table:
        column = table.column("n")
        return right(
            table.set_column(
                table.schema.get_field_index("n"), table.schema.field("n"), pa.array(column.to_pylist()[::-1])
            )
        )

    monkeypatch.setattr(outputs, "compacted", wrong)
    for number in range(3):
        lake.put(number, some_rows(5, number))
    before = {path: path.read_bytes() for path in lake.files}
    with pytest.raises(merge.Mismatch, match="values that are in other rows"):
        lake.compact()
    assert {path: path.read_bytes() for path in lake.files} == before
    assert not list(lake.root.glob(".arcpipe/**/*.new"))
    assert not (lake.wal / "compaction" / "plan.json").exists()


def test_dedup_waits_for_a_batch_that_is_not_over(lake: Lake) -> None:
    """Else a merge of later files would take the place of the last one, with the older points that it holds."""
    lake.compaction = {"dedup": {"db": "series_time"}}
    paths = [
        lake.put(number, [{"time": time, "host": "a", "n": number} for time in times])
        for number, times in ((1, (1, 2)), (2, (1,)), (3, (3,)))
    ]
    batch = paths[1].name.split("_")[2]
    manifest = lake.wal / "batches" / f"{batch}.json"
    manifest.write_text("{}")
    lake.compact()
    assert paths[1].exists()
    assert paths[2].exists()
    manifest.unlink()
    lake.ahead_seconds = 600
    lake.compact()
    assert [(row["time"] - HOUR_US, row["n"]) for row in lake.rows()] == [(1, 2), (2, 1), (3, 3)]


@pytest.mark.slow
def test_tags_that_have_another_value_in_each_row_are_sorted_on_disk(lake: Lake) -> None:
    """Dictionaries do not go along with rows that do not use them: ranges would never become small enough."""
    lake.bounds = RewriteBounds(sort_bytes=50_000, collected_bytes=20_000)
    pick = random.Random(1)
    for number in range(4):
        rows = [{"time": pick.randrange(3_600_000_000), "host": f"{pick.random()}", "n": n} for n in range(1_000)]
        lake.put(number, rows)
    before = sorted((row["host"], row["time"]) for row in lake.rows())
    (outcome,) = lake.compact()
    assert outcome.rows == 4_000
    (file,) = lake.files
    table = pq.read_table(file, partitioning=None)
    assert list(zip(table["host"].to_pylist(), table["time"].cast(pa.int64()).to_pylist(), strict=True)) == before


@pytest.mark.parametrize("hidden", ["._", "._~"])
def test_folders_of_both_ways_to_encode_names_are_merged(lake: Lake, hidden: Hidden) -> None:
    lake.compaction = {"dedup": {"my db.c p": "series_time"}}
    for number in (1, 2, 3, 4):
        names: dict[str, Any] = {"database": "my db", "measurement": "c p", "hidden": hidden}
        lake.put(number, [{"time": 5, "host": "a", "v": float(number)}], **names)
    [outcome] = lake.compact()
    assert lake.odd == {}
    assert [row["v"] for row in lake.rows()] == [4.0]
    assert outcome.superseded == 3


def test_a_bug_in_the_merge_of_one_folder_holds_up_no_other(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        lake.put(number, some_rows(20, number), measurement="a")
        lake.put(number, some_rows(20, number), measurement="b")
    before = by_number(lake.rows())
    original = Rewrite.run

    def fail(self: Rewrite, inputs: Any, sizes: Any, on_file: Any) -> Any:
        with next(iter(inputs())) as file:
            if file.measurement == "a":
                raise ZeroDivisionError("a bug")
        return original(self, inputs, sizes, on_file)

    monkeypatch.setattr(Rewrite, "run", fail)
    counters = Counters(1)

    async def look() -> None:
        settings = lake.settings()
        store = open_store(settings.storage.url, settings.storage.s3)
        compactor = Compactor(settings, str(lake.wal), NODE, store)
        await CompactionProcess(settings, compactor, counters, store).look()
        await store.close()

    lake.compaction["enabled"] = True
    asyncio.run(look())
    assert [len(lake_files(lake.root / "db" / name)) for name in "ab"] == [3, 1]
    assert by_number(lake.rows()) == before
    assert counters.compaction[Compacted.FAILURES] == counters.compaction[Compacted.LOOKS] == 1
    assert "ZeroDivisionError: a bug" in caplog.text
