"""What a manifest says of a file is true of every value in it."""

from __future__ import annotations

import io
import math
import struct
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionSpec
from pyiceberg.types import DecimalType

from arcpipe.tables.base import NewFile, Refused
from arcpipe.tables.iceberg.data_files import Layout, data_file
from arcpipe.tables.iceberg.layout import new_schema, new_spec
from arcpipe.tables.iceberg.types import iceberg_type
from tests.support.compaction import HOUR_US, file_bytes, table_of

TABLE = ("db", "m")


def described(
    table: pa.Table, directory: Path, spec: PartitionSpec | None = None, **parquet: Any
) -> tuple[DataFile, Layout]:
    return described_bytes(file_bytes(table, directory, **parquet), table.schema, spec)


def described_bytes(data: bytes, arrow: pa.Schema, spec: PartitionSpec | None = None) -> tuple[DataFile, Layout]:
    types = [(field.name, iceberg_type(field.type)) for field in arrow]
    schema = new_schema([(name, type_) for name, type_ in types if type_ is not None])
    layout = Layout(
        TABLE,
        {field.name: field.field_id for field in schema.fields},
        {field.field_id: field.field_type for field in schema.fields},
        new_spec(schema, "day") if spec is None else spec,
        1,
    )
    metadata = pq.read_metadata(io.BytesIO(data))
    return data_file(layout, NewFile("k", len(data), metadata.num_rows, metadata), "file:///k"), layout


VALUES = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | st.floats(),
        "s": st.none() | st.text(max_size=40),
        "b": st.none() | st.binary(max_size=40),
        "ok": st.none() | st.booleans(),
        "big": st.none() | st.integers(-(10**19), 10**20 - 1).map(Decimal),
    }
)
TYPES = {
    "n": pa.int64(), "x": pa.float64(), "s": pa.string(), "b": pa.binary(), "ok": pa.bool_(),
    "big": pa.decimal128(20, 0),
}  # fmt: skip


def bounds(layout: Layout, file: DataFile, name: str) -> tuple[Any, Any]:
    id_ = layout.ids[name]
    type_: Any = layout.types[id_]
    return tuple(
        from_bytes(type_, each[id_]) if id_ in each else None for each in (file.lower_bounds, file.upper_bounds)
    )  # type: ignore[return-value]


@given(st.lists(VALUES, min_size=1, max_size=30))
def test_bounds_and_counts_hold_for_every_value(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    directory = tmp_path_factory.getbasetemp()
    table = table_of([{"time": number} | row for number, row in enumerate(rows)], **TYPES)
    file, layout = described(table, directory)
    assert file.record_count == len(rows)
    for name in TYPES:
        id_ = layout.ids[name]
        present = [row[name] for row in rows if row[name] is not None]
        assert file.value_counts[id_] == len(rows)
        assert file.null_value_counts.get(id_, len(rows) - len(present)) == len(rows) - len(present)
        low, high = bounds(layout, file, name)
        known = [value for value in present if not (isinstance(value, float) and math.isnan(value))]
        if name == "s":
            low, high = (each.encode() if each is not None else None for each in (low, high))
            known = [value.encode() for value in known]
        if not known:
            assert low is None or name == "x"
        for value in known:
            assert low is None or low <= value
            assert high is None or value <= high
        if name in ("n", "ok") and known:
            assert (low, high) == (min(known), max(known))


def test_partition_is_the_day_of_all_rows(tmp_path: Path) -> None:
    file, _ = described(table_of([{"time": 0}, {"time": 3_599_999_999}]), tmp_path)
    assert file.partition[0] == (datetime(2026, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days
    assert file.sort_order_id == 1


def test_a_file_of_two_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="in more than one partition"):
        described(table_of([{"time": 0}, {"time": 86_400_000_000}]), tmp_path)
    file, _ = described(table_of([{"time": 0}, {"time": 86_400_000_000}]), tmp_path, UNPARTITIONED_PARTITION_SPEC)
    assert len(file.partition) == 0


def test_times_before_1970_are_in_the_day_before(tmp_path: Path) -> None:
    file, _ = described(table_of([{"time": -1 - HOUR_US}]), tmp_path)
    assert file.partition[0] == -1


def test_a_file_without_statistics_of_time_is_refused() -> None:
    sink = io.BytesIO()
    table = table_of([{"time": 0}])
    pq.write_table(table, sink, write_statistics=False)
    with pytest.raises(Refused, match="does not say its times"):
        described_bytes(sink.getvalue(), table.schema)


def test_row_groups_are_joined(tmp_path: Path) -> None:
    sink = io.BytesIO()
    table = table_of([{"time": number, "n": number if number < 50 else None} for number in range(100)])
    pq.write_table(table, sink, row_group_size=10)
    file, layout = described_bytes(sink.getvalue(), table.schema)
    assert len(file.split_offsets or []) == 10
    assert bounds(layout, file, "n") == (0, 49)
    assert file.null_value_counts[layout.ids["n"]] == 50
    assert file.sort_order_id is None  # the footer does not say so


def test_only_the_first_hundred_columns_have_bounds(tmp_path: Path) -> None:
    file, _ = described(table_of([{"time": 0} | {f"c{number:03}": number for number in range(150)}]), tmp_path)
    assert len(file.lower_bounds) == len(file.value_counts) == 100
    assert len(file.column_sizes) == 151


@given(st.integers(-(10**20) + 1, 10**20 - 1))
def test_decimals_have_the_fewest_bytes(unscaled: int) -> None:
    from arcpipe.tables.iceberg.data_files import _decimal

    encoded = _decimal(unscaled)
    assert from_bytes(DecimalType(20, 0), encoded) == Decimal(unscaled)
    shorter = encoded[1:]
    assert not shorter or int.from_bytes(shorter, "big", signed=True) != unscaled
    assert struct.calcsize(f"{len(encoded)}s") <= 9
