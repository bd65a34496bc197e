"""Parquet files become streams with the same values, and what they become is bounded before it exists."""

from __future__ import annotations

import datetime
import io
import random
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arcpipe.codec.arrow_ipc import parquet
from arcpipe.codec.arrow_ipc.check import check_stream
from arcpipe.codec.arrow_ipc.parquet import parquet_stream
from arcpipe.codec.arrow_ipc.parquet_pages import DATA_PAGE, DICTIONARY_PAGE, pages
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload, PayloadTooLarge

MAX_BYTES = 10_000_000
TABLE = pa.table(
    {
        "time": pa.array(np.arange(5_000) + 1_700_000_000_000_000, pa.timestamp("us", "UTC")),
        "s": [f"text {number % 40}" if number % 9 else None for number in range(5_000)],
        "b": [b"\xff%d" % number for number in range(5_000)],
        "f": np.arange(5_000) / 3,
        "n": [None if number % 7 else number for number in range(5_000)],
        "day": [datetime.date(2026, 1, 1)] * 5_000,
        "l": [[number, None] for number in range(5_000)],
        "st": [{"a": "x", "b": number} for number in range(5_000)],
    }
)


def file_of(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def rows(body: bytes, max_bytes: int = MAX_BYTES) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.ipc.open_stream(parquet_stream(body, max_bytes)).read_all().to_pylist()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "gzip", "use_dictionary": False},
        {"compression": "none", "row_group_size": 700, "data_page_size": 1000},
        {"version": "1.0", "coerce_timestamps": "ms", "allow_truncated_timestamps": True},
        {"use_dictionary": False, "column_encoding": {"n": "DELTA_BINARY_PACKED", "f": "BYTE_STREAM_SPLIT"}},
        {"use_dictionary": False, "column_encoding": {"s": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
    ids=str,
)
def test_every_value_is_kept(options: dict[str, Any]) -> None:
    table = TABLE
    if "coerce_timestamps" in options:
        table = table.set_column(0, "time", table["time"].cast(pa.timestamp("ms", "UTC"), safe=False))
    body = file_of(table, **options)
    assert rows(body) == table.to_pylist()
    assert check_stream(parquet_stream(body, MAX_BYTES), MAX_BYTES, roles=Roles("m")).rows == 5_000


def test_files_of_other_writers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "duckdb.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT i AS n, 'x' || i AS s, i / 3 AS f FROM range(2000) t(i)) TO '{path}'")
    assert rows(path.read_bytes()) == [{"n": n, "s": f"x{n}", "f": n / 3} for n in range(2_000)]


def test_times_in_int96_may_be_of_any_year() -> None:
    """Spark writes 9999-12-31 for what never ends. In nanoseconds, it would become a day of 1816."""
    moments = [datetime.datetime(year, 12, 31, 23, 59, 59, 123_456) for year in (1, 1600, 1969, 2026, 9999)]
    body = file_of(pa.table({"at": pa.array(moments, pa.timestamp("us"))}), use_deprecated_int96_timestamps=True)
    assert [row["at"] for row in rows(body)] == moments


def test_page_headers_tell_what_a_chunk_becomes() -> None:
    body = file_of(TABLE.select(["s"]), compression="zstd")
    chunk = pq.read_metadata(io.BytesIO(body)).row_group(0).column(0)
    start = chunk.dictionary_page_offset
    found = list(pages(memoryview(body)[start : start + chunk.total_compressed_size]))
    assert [page.kind for page in found] == [DICTIONARY_PAGE, DATA_PAGE]
    assert found[1].values == 5_000
    assert 0 < sum(page.bytes for page in found) < chunk.total_uncompressed_size  # which counts headers, too


# Hostile files


def test_a_run_of_equal_values_does_not_become_any_number_of_rows() -> None:
    body = file_of(pa.table({"f": np.zeros(20_000_000)}))
    assert len(body) < 100_000
    with pytest.raises(PayloadTooLarge, match="once it is decoded"):
        rows(body)


def test_rows_of_a_file_that_packs_tight_are_compressed_again() -> None:
    """A file of some kilobytes would be megabytes in the WAL; the bound is that of the decoded rows all the same."""
    table = pa.table({"f": np.zeros(1_000_000), "s": ["a"] * 1_000_000})
    body = file_of(table)
    stream = parquet_stream(body, 20_000_000)
    assert len(stream) < 500_000
    assert pa.ipc.open_stream(stream).read_all().equals(table.set_column(1, "s", table["s"].dictionary_encode()))
    checked = check_stream(stream, 20_000_000, roles=Roles("m"))
    assert checked.rows == 1_000_000
    assert 12_000_000 <= checked.bytes < 20_000_000
    usual = parquet_stream(file_of(TABLE, compression="none", use_dictionary=False), MAX_BYTES)
    assert pa.ipc.open_stream(usual).read_all().equals(TABLE)
    assert len(usual) > TABLE.nbytes


def test_pages_that_become_too_large_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = file_of(pa.table({"f": np.zeros(2_000_000)}), compression="zstd", use_dictionary=False)
    assert len(body) < 100_000
    monkeypatch.setattr(parquet, "_write", None)  # it is not reached
    with pytest.raises(PayloadTooLarge, match="once it is decompressed"):
        rows(body)


@pytest.mark.parametrize("column", [np.zeros(1_000_000), ["x" * 100_000] * 80, [["x" * 1_000] * 80] * 100])
def test_the_memory_of_pages_is_told_before_it_is_taken(column: Any) -> None:
    """By it the thread that reads it knows that it must not interrupt others."""
    is_plain = isinstance(column, np.ndarray)
    body = file_of(pa.table({"c": column}), compression="zstd", use_dictionary=not is_plain)
    taken: list[int] = []
    parquet_stream(body, MAX_BYTES, lambda _seconds=0.0, taken_bytes=0, /: taken.append(taken_bytes))
    assert 100_000 <= max(taken) < 20_000_000
    assert taken.index(max(taken)) < len(taken) - 1


@pytest.mark.parametrize("type_", [pa.string(), pa.binary()])
def test_a_long_text_that_repeats_stays_in_its_dictionary(type_: pa.DataType) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300_000, np.int32)), pa.array(["x" * 500_000]).cast(type_))
    body = file_of(pa.table({"s": texts}))
    stream = parquet_stream(body, MAX_BYTES)
    with pytest.raises(PayloadTooLarge, match="without its dictionaries"):
        check_stream(stream, MAX_BYTES, roles=Roles("m"))


@pytest.mark.slow
def test_a_long_text_within_lists_is_refused() -> None:
    body = file_of(pa.table({"l": [["x" * 50_000]] * 10_000}))
    with pytest.raises(PayloadTooLarge, match="the nested column 'l"):
        rows(body)


def test_an_encoding_that_repeats_long_texts_is_refused() -> None:
    table = pa.table({"s": ["x" * 1_000] * 10})
    with pytest.raises(BadPayload, match="column 's' has the encoding DELTA_BYTE_ARRAY"):
        rows(file_of(table, use_dictionary=False, column_encoding={"s": "DELTA_BYTE_ARRAY"}))


def test_long_values_of_fixed_size_are_refused() -> None:
    with pytest.raises(BadPayload, match="has values of 2000 bytes each"):
        rows(file_of(pa.table({"b": pa.array([bytes(2_000)], pa.binary(2_000))})))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"PAR1", "cannot be read"),
        (b"no file", "does not begin and end with PAR1"),
        (file_of(TABLE)[:-1], "does not begin and end with PAR1"),
        (b"PAR1" + file_of(TABLE)[-400:], "cannot be read|footer of the Parquet file is damaged"),
    ],
)
def test_what_is_no_file_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        rows(body)


@pytest.mark.slow
def test_damage_anywhere_is_refused_or_harmless() -> None:
    source = random.Random(1)
    files = [file_of(TABLE.slice(0, 50)), file_of(TABLE.slice(0, 50), compression="zstd", data_page_version="2.0")]
    for _ in range(1_500):
        damaged = bytearray(source.choice(files))
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(4, len(damaged) - 4)] = source.randrange(256)
        try:
            stream = parquet_stream(bytes(damaged), MAX_BYTES)
            check_stream(stream, MAX_BYTES, roles=Roles("m"))
        except (BadPayload, PayloadTooLarge):
            pass
