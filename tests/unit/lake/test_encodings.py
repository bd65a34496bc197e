"""Encodings of numbers: DELTA_BINARY_PACKED only where each reader understands the differences."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fastparquet  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpipe.config.settings import Parquet
from arcpipe.lake.encodings import far_columns
from tests.unit.upload.test_parquet import HOUR_US, Written, table

MOST_BITS = 28
"""Of the differences of a block, less the least of them: fastparquet 2026.9 reads no more."""
STAMP = pa.timestamp("us", "UTC")


def bits(values: list[int]) -> int:
    differences = [after - before for before, after in itertools.pairwise(values)]
    return (max(differences) - min(differences)).bit_length() if differences else 0


near = st.integers(0, 2**27 + 2)
numbers = st.lists(st.one_of(st.none(), near, st.integers(-(2**62), 2**62)), min_size=1, max_size=20) | st.lists(
    st.one_of(st.none(), near), min_size=1, max_size=20
)


def column(values: list[int | None], cut: int, type_: pa.DataType) -> pa.Table:
    chunks = pa.chunked_array([pa.array(values[:cut], type_), pa.array(values[cut:], type_)])
    return pa.table({"v": chunks})


@given(numbers, st.integers(0, 20), st.sampled_from([pa.int64(), STAMP, pa.uint64()]))
def test_numbers_that_are_not_far_have_small_differences(
    values: list[int | None], cut: int, type_: pa.DataType
) -> None:
    if type_ == pa.uint64():
        values = [None if value is None else value + 2**62 for value in values]
    present = [value for value in values if value is not None]
    is_far = "v" in far_columns(Parquet(), column(values, cut, type_))
    assert is_far == (len(present) > 0 and max(present) - min(present) >= 2**27)
    assert is_far or bits(present) <= MOST_BITS


@given(
    st.lists(st.one_of(st.integers(0, 10), st.integers(2**26, 2**29)), min_size=1, max_size=20),
    st.integers(0, 20),
    st.booleans(),
    st.booleans(),
)
def test_times_that_are_not_far_have_small_gaps(gaps: list[int], cut: int, many: bool, sliced: bool) -> None:
    times = (HOUR_US + np.cumsum([0, *gaps, *[1] * 5_000 * many])).tolist()
    made = column(times, cut, STAMP).rename_columns(["time"])
    if sliced:
        made, times = made.slice(1), times[1:]
    greatest = max(np.diff(times), default=0)
    if "time" in far_columns(Parquet(), made):
        assert greatest >= (2**27 if many else 2**28)
    else:
        assert greatest < 2**28


def test_small_encodings_and_single_rows_have_no_far_columns() -> None:
    far = table(HOUR_US, 2, v=[0, 2**60])
    assert far_columns(Parquet(), far) == {"v"}
    assert far_columns(Parquet(encodings="small"), far) == frozenset()
    assert far_columns(Parquet(), far.slice(1)) == frozenset()
    assert far_columns(Parquet(), table(HOUR_US, 2, v=pa.array([None, None], pa.int64()))) == frozenset()


def encodings_of(written: Written) -> list[dict[str, bool]]:
    """Tell of each file in its order which of its columns are DELTA_BINARY_PACKED."""
    found = []
    for _, data in sorted(written.files.items()):
        group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
        found.append({column.path_in_schema: "DELTA_BINARY_PACKED" in column.encodings for column in columns})
    return found


def test_numbers_that_are_far_for_the_first_time_begin_a_file(tmp_path: Path) -> None:
    near, far = [1, 2, 3], [0, 2**60, -(2**60)]
    written = Written(tmp_path)
    tables = [(near, near), (far, near), (near, far), (near, near), (far, far)]
    for number, (a, b) in enumerate(tables):
        written.writers.append(HOUR_US, table(HOUR_US + 3 * number, 3, a=a, b=b), HOUR_US + 3 * number)
    written.writers.close()
    assert [(found["time"], found["a"], found["b"]) for found in encodings_of(written)] == [
        (True, True, True),
        (True, False, True),
        (True, False, False),
    ]
    read = [pq.read_table(pa.BufferReader(data)) for _, data in sorted(written.files.items())]
    assert [value for part in read for value in part["a"].to_pylist()] == [value for a, _ in tables for value in a]
    assert [value for part in read for value in part["b"].to_pylist()] == [value for _, b in tables for value in b]


@pytest.mark.parametrize("spread", range(20, 64))
def test_fastparquet_reads_numbers_of_any_spread(tmp_path: Path, spread: int) -> None:
    random = np.random.default_rng(spread)
    values = random.integers(-(2 ** (spread - 1)), 2 ** (spread - 1), 1_000)
    values[::50], values[1::50] = -(2 ** (spread - 1)), 2 ** (spread - 1) - 1
    times = np.unique(random.integers(0, min(2**spread, 3_600_000_000), 1_000 if spread < 30 else 30))
    given: dict[str, Any] = {"v": values[: len(times)], "created": pa.array(values[: len(times)] // 2**12, STAMP)}
    made = table(HOUR_US, len(times), **given)
    made = made.set_column(0, made.schema.field(0), pa.array(times + HOUR_US, STAMP))
    written = Written(tmp_path)
    written.writers.append(HOUR_US, made, HOUR_US)
    written.writers.close()
    (data,) = written.files.values()
    (tmp_path / "file.parquet").write_bytes(data)
    frame = fastparquet.ParquetFile(str(tmp_path / "file.parquet")).to_pandas()
    assert frame["v"].tolist() == given["v"].tolist()
    assert (frame["time"].astype("int64") == made["time"].cast(pa.int64()).to_numpy()).all()
    assert (frame["created"].astype("int64") == given["created"].cast(pa.int64()).to_numpy()).all()
