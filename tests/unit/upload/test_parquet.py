"""Files that are easy to query: names, encodings, sizes; and bytes that wait in memory or in a file."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from arcpipe.config.settings import Parquet
from arcpipe.lake.file_schema import ROLE
from arcpipe.lake.keys import Partition, encode_name
from arcpipe.lake.open_files import OPEN_FILES, OpenFiles, Quota, open_file_cost, row_group_cost
from arcpipe.lake.parquet_file import Rows
from arcpipe.lake.spool import Spool, SpoolMemory
from arcpipe.units import MB
from arcpipe.upload.file_settings import FileSettings
from arcpipe.upload.parquet import PartitionWriters

HOUR_US = 1_700_000_000_000_000 // 3_600_000_000 * 3_600_000_000


def table(start_us: int, rows: int, **columns: Any) -> pa.Table:
    arrays = {"time": pa.array(np.arange(rows) + start_us, pa.timestamp("us", "UTC"))} | {
        name: pa.array(values) for name, values in columns.items()
    }
    fields = [
        pa.field(name, array.type, metadata={ROLE: b"time" if name == "time" else b"field"})
        for name, array in arrays.items()
    ]
    return pa.table(list(arrays.values()), schema=pa.schema(fields))


class Written:
    """Writers of one measurement and the files that they finished."""

    def __init__(self, directory: Path, open_files: OpenFiles = OPEN_FILES, **parquet: Any) -> None:
        self.files: dict[str, bytes] = {}
        self.memory = SpoolMemory(directory, total_bytes=4 * MB, each_bytes=MB)
        self.writers = PartitionWriters(
            FileSettings("batch", "arc", Parquet(**parquet), self.memory, open_files), "db", "m", self._take
        )

    def _take(self, key: str, blob: Spool, rows: Rows) -> None:
        data = bytes(blob.read_at(0, blob.size))
        assert pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows == rows.total
        self.files[key] = data
        blob.close()

    def file(self) -> pq.ParquetFile:
        (data,) = self.files.values()
        return pq.ParquetFile(pa.BufferReader(data))


# Names


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("cpu", "cpu"),
        ("Az09_-.x", "Az09_-.x"),
        (".hidden", "%2Ehidden"),
        ("..", "%2E."),
        ("a/b c", "a%2Fb%20c"),
        ("ü", "%C3%BC"),
        ("a~b%", "a%7Eb%25"),
        ("", "%"),
    ],
)
def test_names_are_percent_encoded(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded


def test_long_names_are_cut_and_told_apart_by_a_hash() -> None:
    first, second = encode_name("x" * 200 + "1"), encode_name("x" * 200 + "2")
    assert first != second
    assert first.startswith("x" * 100 + "~")
    assert len(first) == 117


def test_a_key_names_the_partition_the_first_time_the_batch_and_the_number() -> None:
    partition = Partition("d b", "a/b", HOUR_US)
    assert (
        partition.key("arc", HOUR_US + 1_000_002, "batch", 3)
        == "d%20b/a%2Fb/2023/11/14/22/a%2Fb_20231114T220001000002_batch_3.parquet"
    )
    assert partition.key("hive", HOUR_US, "batch", 0).startswith("d%20b/a%2Fb/year=2023/month=11/day=14/hour=22/")


@pytest.mark.parametrize(
    ("hour_us", "middle"),
    [(-62_135_596_800_000_000, "/0001/01/01/00/m_00010101T000000"), (253_402_297_200_000_000, "/9999/12/31/23/")],
)
def test_the_first_and_the_last_hour_have_keys(hour_us: int, middle: str) -> None:
    assert middle in Partition("db", "m", hour_us).key("arc", hour_us, "batch", 0)


# Files


def test_files_are_made_for_queries(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for group in range(3):
        start = HOUR_US + group * 10_000
        strings = pa.DictionaryArray.from_arrays(np.arange(10_000, dtype=np.int32) % 7, [f"host-{n}" for n in range(7)])
        written.writers.append(
            HOUR_US,
            table(
                start,
                10_000,
                f=np.random.default_rng(1).random(10_000),
                n=range(10_000),
                s=strings,
                u=[f"text {n}" for n in range(10_000)],
            ),
            start,
        )
    written.writers.close()
    file = written.file()
    metadata = file.metadata
    assert metadata.num_row_groups == 3
    first = {metadata.row_group(0).column(n).path_in_schema: metadata.row_group(0).column(n) for n in range(5)}
    assert {column.compression for column in first.values()} == {"ZSTD"}
    assert "DELTA_BINARY_PACKED" in first["time"].encodings
    assert "DELTA_BINARY_PACKED" in first["n"].encodings
    assert "RLE_DICTIONARY" in first["s"].encodings
    assert "RLE_DICTIONARY" not in first["f"].encodings
    assert set(first["u"].encodings) == {"PLAIN", "RLE"}
    assert all(column.is_stats_set and column.has_offset_index for column in first.values())
    assert (first["s"].statistics.min, first["s"].statistics.max) == ("host-0", "host-6")
    assert metadata.row_group(0).sorting_columns == (pq.SortingColumn(0),)
    assert file.schema_arrow.field("s").type == pa.string()
    assert file.schema_arrow.field("time").type == pa.timestamp("us", tz="UTC")
    assert file.schema_arrow.field("time").metadata[ROLE] == b"time"
    assert file.schema_arrow.metadata[b"arcpipe.batch"] == b"batch"
    assert file.read().column("s").to_pylist() == [f"host-{n % 7}" for n in range(10_000)] * 3
    (tmp_path / "file.parquet").write_bytes(next(iter(written.files.values())))
    counted = duckdb.execute(f"select count(distinct s), count(distinct u), sum(n) from '{tmp_path / 'file.parquet'}'")
    assert counted.fetchall() == [(7, 10_000, 3 * sum(range(10_000)))]


def test_only_floats_of_full_precision_are_split_into_byte_streams(tmp_path: Path) -> None:
    """Floats of full precision are split into streams of bytes and others are not."""
    random = np.random.default_rng(1)
    rows = 50_000
    values = {
        "constant": np.ones(rows),
        "noise": random.random(rows),
        "rounded": np.round(np.cumsum(random.normal(size=rows)) + 50, 1),
        "sparse": pa.array(random.random(rows), mask=random.random(rows) < 0.9),
        "twice": np.repeat(random.random(rows // 2), 2),
    }
    written = Written(tmp_path, encodings="small")
    given = table(HOUR_US, rows, **values)
    written.writers.append(HOUR_US, given, HOUR_US)
    written.writers.close()
    group = written.file().metadata.row_group(0)
    split = {column.path_in_schema for column in map(group.column, range(6)) if "BYTE_STREAM_SPLIT" in column.encodings}
    assert split == {"noise", "sparse"}
    assert all(group.column(n).compression == "ZSTD" and group.column(n).is_stats_set for n in range(6))
    assert written.file().read().equals(given)
    (tmp_path / "file.parquet").write_bytes(next(iter(written.files.values())))
    ((total,),) = duckdb.execute(f"select sum(noise) from '{tmp_path / 'file.parquet'}'").fetchall()
    assert total == pytest.approx(values["noise"].sum())


ALL_READERS_KNOW = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "DELTA_BINARY_PACKED", "BIT_PACKED"}


@pytest.mark.parametrize("rows", [10, 5_000, 50_000])
def test_every_common_reader_knows_the_encodings(tmp_path: Path, rows: int) -> None:
    """Spark before 4.1 reads neither BYTE_STREAM_SPLIT nor, in its vectorized reader, DELTA_LENGTH_BYTE_ARRAY."""
    random = np.random.default_rng(1)
    columns = {
        "f": random.random(rows),
        "i": random.integers(-(2**62), 2**62, rows),
        "u": pa.array(np.arange(rows), pa.uint64()),
        "b": random.random(rows) < 0.5,
        "few": [f"host-{n % 7}" for n in range(rows)],
        "many": [f"text {n}" for n in range(rows)],
        "raw": [b"%d" % n for n in range(rows)],
        "stamp": pa.array(np.arange(rows), pa.timestamp("us", "UTC")),
        "wide": pa.array([2**64 - 1 - n for n in range(rows)], pa.decimal128(20)),
    }
    given = table(HOUR_US, rows, **columns)
    for number, encodings in enumerate(("common", "small")):
        written = Written(tmp_path / str(number), encodings=encodings)
        written.writers.append(HOUR_US, given, HOUR_US)
        written.writers.close()
        group = written.file().metadata.row_group(0)
        used = {encoding for n in range(group.num_columns) for encoding in group.column(n).encodings}
        others = {"DELTA_LENGTH_BYTE_ARRAY"} if rows > 4_096 else set()  # fewer texts are always a dictionary
        others |= {"BYTE_STREAM_SPLIT"} if rows > 32_768 else set()
        assert used - ALL_READERS_KNOW == (set() if encodings == "common" else others)
        assert written.file().read().equals(given)


def test_a_time_filter_skips_row_groups(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for group in range(5):
        written.writers.append(HOUR_US, table(HOUR_US + group * 1_000, 1_000, n=range(1_000)), HOUR_US + group * 1_000)
    written.writers.close()
    (tmp_path / "file.parquet").write_bytes(next(iter(written.files.values())))
    (fragment,) = ds.dataset(tmp_path / "file.parquet").get_fragments()
    wanted = ds.field("time") >= pa.scalar(HOUR_US + 4_000, pa.timestamp("us", "UTC"))
    assert len(fragment.row_groups) == 5
    assert len(fragment.subset(wanted).row_groups) == 1


def test_a_file_that_lacks_a_later_column_is_finished(tmp_path: Path) -> None:
    """A file that lacks a later column is finished, and one that has more goes on."""
    written = Written(tmp_path)
    for columns in ({"a": [1]}, {"b": [2]}, {"a": [3]}, {"a": [1.5]}, {"b": [4]}):
        written.writers.append(HOUR_US, table(HOUR_US, 1, **columns), HOUR_US)
    written.writers.close()
    read = [pq.read_table(pa.BufferReader(data)).drop_columns("time") for _, data in sorted(written.files.items())]
    assert [part.to_pylist() for part in read] == [
        [{"a": 1}],
        [{"a": None, "b": 2}, {"a": 3, "b": None}],
        [{"a": 1.5, "b": None}, {"a": None, "b": 4}],
    ]


def test_a_file_of_many_columns_is_finished_in_time(
    tmp_path: Path,
) -> None:
    """A file of many columns is finished before its row groups fill the memory."""
    written = Written(tmp_path, OpenFiles(file_cost=open_file_cost(2) + 3 * row_group_cost(2) + 100))
    for group in range(5):
        written.writers.append(HOUR_US, table(HOUR_US + group, 1, n=[group]), HOUR_US + group)
    written.writers.close()
    read = [pq.ParquetFile(pa.BufferReader(data)) for _, data in sorted(written.files.items())]
    assert [file.metadata.num_row_groups for file in read] == [3, 2]
    assert [row["n"] for file in read for row in file.read().to_pylist()] == list(range(5))


def test_the_hours_written_longest_ago_are_finished_first(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for hour in (0, 1, 2, 0):
        written.writers.append(HOUR_US + hour * 3_600_000_000, table(HOUR_US, 1), HOUR_US)
    written.writers.limit(Quota(1, MB))
    assert sorted(key.split("/")[5] for key in written.files) == ["00", "23"]
    written.writers.append(HOUR_US + 3_600_000_000, table(HOUR_US, 1), HOUR_US)
    written.writers.close()
    assert sorted(key.rpartition("_")[2] for key in written.files) == ["0.parquet"] * 3 + ["1.parquet"]


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "lz4", "none"])
def test_every_compression_can_be_written(tmp_path: Path, compression: Any) -> None:
    written = Written(tmp_path, compression=compression)
    written.writers.append(HOUR_US, table(HOUR_US, 1_000, a=["x"] * 1_000), HOUR_US)
    written.writers.close()
    assert written.file().read().num_rows == 1_000


def codecs(written: Written) -> set[str]:
    group = written.file().metadata.row_group(0)
    return {group.column(number).compression for number in range(group.num_columns)}


@pytest.mark.parametrize(
    ("compression", "rows", "expected"),
    [("zstd", 150, "SNAPPY"), ("zstd", 250, "ZSTD"), ("gzip", 150, "GZIP"), ("none", 150, "UNCOMPRESSED")],
)
def test_a_file_of_few_bytes_is_snappy_instead_of_zstd(
    tmp_path: Path, compression: Any, rows: int, expected: str
) -> None:
    written = Written(tmp_path, compression=compression)
    given = table(HOUR_US, rows, n=range(rows))
    written.writers.append(HOUR_US, given, HOUR_US, last=True)
    assert codecs(written) == {expected}
    assert written.file().read().equals(given)
    (tmp_path / "file.parquet").write_bytes(next(iter(written.files.values())))
    assert duckdb.execute(f"select sum(n) from '{tmp_path / 'file.parquet'}'").fetchall() == [(sum(range(rows)),)]


def test_a_file_that_may_grow_is_zstd_from_its_first_rows(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.writers.append(HOUR_US, table(HOUR_US, 1), HOUR_US)
    written.writers.close()
    assert codecs(written) == {"ZSTD"}


def test_files_that_are_let_go_of_are_closed_and_not_handed_out(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for hour in (0, 1):
        written.writers.append(HOUR_US + hour, table(HOUR_US, 300_000, n=range(300_000)), HOUR_US)
    written.writers.abort()
    written.writers.close()
    assert written.files == {}
    assert written.memory.take(4 * MB)


def test_long_texts_and_bytes_are_written_in_small_pages(tmp_path: Path) -> None:
    written = Written(tmp_path)
    texts = [f"{n:04}" * 500 for n in range(4_000)]
    written.writers.append(HOUR_US, table(HOUR_US, 4_000, a=texts), HOUR_US)
    written.writers.close()
    assert written.file().read().column("a").to_pylist() == texts


# Where bytes wait


def test_a_spool_gives_back_what_was_written_from_memory_and_from_a_file(tmp_path: Path) -> None:
    memory = SpoolMemory(tmp_path, total_bytes=1_000, each_bytes=600)
    pieces = [os.urandom(100) for _ in range(12)]
    for count, in_memory in ((6, True), (7, False), (12, False)):
        spool = Spool(memory)
        for piece in pieces[:count]:
            spool.write(piece)
        spool.flush()
        data = b"".join(pieces[:count])
        assert spool.size == spool.tell() == len(data)
        for offset, length in ((0, len(data)), (50, 100), (len(data) - 5, 100), (len(data), 1), (3, 0)):
            assert bytes(spool.read_at(offset, length)) == data[offset : offset + length]
        assert list(tmp_path.iterdir()) == []
        assert memory.take(401) is not in_memory
        spool.close()
        spool.close()
        memory.give_back(0 if in_memory else 401)
        assert memory.take(1_000)
        memory.give_back(1_000)


def test_spools_go_to_files_when_all_together_are_too_many(tmp_path: Path) -> None:
    memory = SpoolMemory(tmp_path, total_bytes=1_000, each_bytes=600)
    spools = [Spool(memory) for _ in range(3)]
    for spool in spools:
        spool.write(b"x" * 500)
        spool.flush()
    assert [bytes(spool.read_at(0, 1_000)) for spool in spools] == [b"x" * 500] * 3
    for spool in spools:
        spool.close()
    assert memory.take(1_000)


def test_a_full_disk_is_an_error_and_not_a_short_file(tmp_path: Path) -> None:
    memory = SpoolMemory(tmp_path / "missing", total_bytes=10, each_bytes=10)
    with pytest.raises(OSError, match="missing"):
        Spool(memory).write(b"x" * 11)


# What open files cost


class _MallocInfo(ctypes.Structure):
    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]  # of struct mallinfo2


def allocated_bytes() -> int:
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return int(info.field_7 + info.field_4 + pa.total_allocated_bytes())  # uordblks, hblkhd


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc tells what is allocated")
@pytest.mark.parametrize(
    ("columns", "groups", "name_bytes", "text_bytes"),
    [(1, 1, 8, 0), (1_000, 1, 8, 0), (1_000, 6, 8, 0), (1_000, 4, 256, 0), (200, 6, 8, 1_000), (200, 4, 8, 4_000)],
)
def test_an_open_file_costs_the_memory_that_is_counted_for_it(
    tmp_path: Path, columns: int, groups: int, name_bytes: int, text_bytes: int
) -> None:
    text = "x" * text_bytes
    names = [f"{number:0{name_bytes}}" for number in range(columns)]
    given = table(HOUR_US, 5, **{name: [text] * 5 if text else range(5) for name in names})
    before = Written(tmp_path)  # what is made once and stays is not counted
    before.writers.append(HOUR_US, given, HOUR_US)
    before.writers.close()
    settings = FileSettings("batch", "arc", Parquet(), SpoolMemory(tmp_path, 0, 0))
    files = [PartitionWriters(settings, "db", "m", lambda key, spool, rows: spool.close()) for _ in range(3)]
    allocated = allocated_bytes()
    for writers in files:
        for _ in range(groups):
            writers.append(HOUR_US, given, HOUR_US)
    allocated = allocated_bytes() - allocated
    counted = sum(writers.cost for writers in files)
    assert 0.5 * counted < allocated < 1.15 * counted
    for writers in files:
        writers.abort()


@pytest.mark.slow
def test_open_files_stay_within_their_quota_whatever_comes(tmp_path: Path) -> None:
    written = Written(tmp_path)
    quota = Quota(4, 4 * open_file_cost(10))
    written.writers.limit(quota)
    rng = np.random.default_rng(1)
    rows = 0
    for step in range(300):
        if step == 200:
            quota = Quota(2, 2 * open_file_cost(10))
            written.writers.limit(quota)
            assert written.writers.cost <= quota.cost
        hour = HOUR_US + int(rng.integers(8)) * 3_600_000_000
        columns = {f"c{number}": [step] for number in range(500 if step % 50 == 0 else 9)}
        written.writers.append(hour, table(hour, 1, **columns), hour)
        rows += 1
        assert written.writers.cost <= quota.cost
    written.writers.close()
    assert written.writers.cost == 0
    assert sum(pq.read_metadata(pa.BufferReader(data)).num_rows for data in written.files.values()) == rows


def test_a_row_group_that_costs_more_than_all_is_a_file_of_its_own(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.writers.limit(Quota(4, open_file_cost(10)))
    for _ in range(3):
        written.writers.append(HOUR_US, table(HOUR_US, 1, **{f"c{number}": [1] for number in range(100)}), HOUR_US)
        assert written.writers.cost == 0
    assert len(written.files) == 3


def test_values_of_wide_tables_have_statistics_only_while_they_are_short(tmp_path: Path) -> None:
    """4,096 columns of 4 kB would cost 80 MB in statistics."""
    written = Written(tmp_path)
    columns = {f"c{number}": ["x" * (3_000 if number % 2 else 10)] for number in range(400)}
    written.writers.append(HOUR_US, table(HOUR_US, 1, **columns), HOUR_US)
    cost = written.writers.cost
    written.writers.close()
    group = written.file().metadata.row_group(0)
    with_statistics = {group.column(n).path_in_schema for n in range(401) if group.column(n).is_stats_set}
    assert with_statistics == {"time", *(f"c{number}" for number in range(0, 400, 2))}
    assert cost < 2 * (open_file_cost(401) + row_group_cost(401))
