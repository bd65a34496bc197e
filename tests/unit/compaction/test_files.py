"""Names of files, and the choice of those that are merged."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from arcpipe.compaction.dedup import DedupRules
from arcpipe.compaction.files import (
    LakeFile,
    Order,
    batch_of,
    choose,
    choose_for_dedup,
    first_unfinished,
    parse_file,
)
from arcpipe.compaction.plan import make_plan
from arcpipe.lake.folders import Folder, parse_folder
from arcpipe.lake.keys import Partition, merged_file_name
from arcpipe.storage import Listed
from arcpipe.units import MB
from tests.support.compaction import HOUR_US, NODE, OTHER_NODE

LARGEST = 256 * MB


def file_of(number: int, size: int = 1000, word: str = "") -> LakeFile:
    return LakeFile(Listed(f"k{number}", size, 0.0), f"b{number}", Order(1, number, 0, 0), "20260101T000000", word)


@pytest.mark.parametrize("layout", ["arc", "hive"])
@pytest.mark.parametrize("names", [("db", "cpu"), ("d_b", "a_b_c"), (".x", "_y"), ("ü/", "m" * 256)])
@pytest.mark.parametrize("random", ["-0a1b2c3d", "-0a1b2c3d.7", ""])
def test_keys_of_the_uploader_are_known_again(layout: Any, names: tuple[str, str], random: str) -> None:
    key = Partition(*names, HOUR_US).key(layout, HOUR_US + 5, f"{NODE}-20260101T000000-3.17{random}", 4)
    folder = parse_folder(key.rpartition("/")[0])
    assert folder is not None
    assert folder.hour_us == HOUR_US
    file = parse_file(Listed(key, 1, 0.0), folder, NODE)
    assert file is not None
    assert file.order == Order(3, 17, 7 if "." in random else 0, 4)
    assert file.batch == f"{NODE}-20260101T000000-3.17{random.partition('.')[0]}"
    assert parse_file(Listed(key, 1, 0.0), folder, OTHER_NODE) is None
    plan = make_plan("file:///lake", folder, [file], NODE, True)
    merged = f"{folder.path}/{merged_file_name(folder.measurement, HOUR_US, plan.merge, 2)}"
    again = parse_file(Listed(merged, 1, 0.0), folder, NODE)
    assert again is not None
    assert (again.order, again.word, again.batch) == (Order(3, 17, 0, 2), "unique", plan.merge)
    assert len(merged.rpartition("/")[2]) < 255


@pytest.mark.parametrize(
    "path",
    [
        "db/cpu/2026/01/01",
        "db/cpu/2026/13/01/00",
        "db/2026/01/01/00",
        "_dead_letter/db/2026/01/01/00",
        ".arcpipe/compaction/2026/01/01/00",
        "db/cpu/year=2026/month=01/01/00",
    ],
)
def test_other_folders_are_no_hours(path: str) -> None:
    assert parse_folder(path) is None


def test_other_names_are_no_files_of_this_node() -> None:
    folder = Folder("db/cpu/2026/01/01/00", "db", "cpu", HOUR_US)
    batch = f"20260101T000000000000_{NODE}-20260101T000000-3.17-0a1b2c3d"
    for name in (f"cpu2_{batch}_0.parquet", f"cpu_{batch}.parquet", f"cpu_{batch}_0.parquet.tmp", "part-0.parquet"):
        assert parse_file(Listed(f"{folder.path}/{name}", 1, 0.0), folder, NODE) is None


@pytest.mark.parametrize("suffix", [".json", ".uploaded.json", ".journal", ".json.tmp"])
def test_files_of_batches_name_their_batch(suffix: str) -> None:
    batch = f"{NODE}-20260101T000000-3.17-0a1b2c3d"
    assert batch_of(batch + suffix) == batch
    assert first_unfinished([batch, f"{NODE}-20260101T000000-12.1", "manifest.spare"]) == ("", Order(3, 17, 0, 0))


@given(st.lists(st.integers(1, 2 * LARGEST), max_size=30))
def test_each_merge_makes_the_largest_file_a_quarter_larger(sizes: list[int]) -> None:
    """So a row is written a bounded number of times, and a bounded number of files is left."""
    files = [file_of(number, size) for number, size in enumerate(sizes)]
    chosen = choose(files, LARGEST)
    assert len(chosen) != 1
    assert all(file.size < LARGEST // 2 for file in chosen)
    if chosen:
        total, largest = sum(max(file.size, MB) for file in chosen), max(max(file.size, MB) for file in chosen)
        assert total >= largest * 1.25
    left = sorted(max(file.size, MB) for file in set(files) - set(chosen) if file.size < LARGEST // 2)
    below = sum(max(file.size, MB) for file in chosen)
    for size in left:
        assert not below or size > 4 * below
        below += size
    assert len(left) <= 5


def test_small_late_files_are_merged_with_what_is_not_much_larger() -> None:
    assert choose([file_of(1, 100 * MB), file_of(2, 10)], LARGEST) == []
    assert choose([file_of(1, 3 * MB), file_of(2, 10)], LARGEST) == [file_of(1, 3 * MB), file_of(2, 10)]
    assert choose([file_of(1, 10)], LARGEST) == []


def test_dedup_takes_all_that_is_older_than_its_last_file() -> None:
    files = [file_of(number) for number in range(1, 6)]
    assert choose_for_dedup(files, files, None) == files
    assert choose_for_dedup(files, files, ("", Order(1, 3, 0, 0))) == files[:2]
    assert choose_for_dedup(files, [files[0], *files[2:]], None) == files[:1]
    assert choose_for_dedup([], [], None) == []
    assert choose_for_dedup([file_of(1, word="unique")], [file_of(1, word="unique")], None) == []
    assert choose_for_dedup([file_of(1, word="merged")], [file_of(1, word="merged")], None) != []


def test_dedup_is_looked_up_by_measurement_then_database() -> None:
    rules = DedupRules({"db": "series_time", "db.raw": "none", "a.b": "series_time", "x.y": "series_time"})
    assert rules.applies("db", "cpu")
    assert not rules.applies("db", "raw")
    assert rules.applies("a.b", "m")
    assert rules.applies("a", "b")
    assert not rules.applies("x", "z")
