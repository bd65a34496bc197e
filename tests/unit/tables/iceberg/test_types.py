"""Types of files against types of tables."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.types import (
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
)

from arcpipe.tables.iceberg.types import fits, iceberg_type, word

ARROW = st.sampled_from(
    [
        pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.binary(),
        pa.timestamp("us", tz="UTC"), pa.decimal128(20, 0), pa.decimal128(38, 3), pa.decimal128(9, 2),
    ]
)  # fmt: skip


@given(ARROW)
def test_a_table_reads_back_every_value_of_a_file(type_: pa.DataType) -> None:
    """Iceberg's own reading of the type holds all of the file's values."""
    chosen = iceberg_type(type_)
    assert chosen is not None
    assert fits(chosen, type_)
    back = schema_to_pyarrow(Schema(NestedField(1, "a", chosen))).field(0).type
    wider = {pa.int16(): pa.int32(), pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    assert back in (type_, wider.get(type_))


@given(ARROW, ARROW)
def test_a_type_fits_itself_and_what_is_wider(file: pa.DataType, other: pa.DataType) -> None:
    table = iceberg_type(other)
    assert table is not None
    if fits(table, file) and file != other:
        wider = {
            ("int16", "int32"), ("int16", "int64"), ("int32", "int16"), ("int32", "int64"), ("float", "double"),
            ("decimal128(20, 0)", "decimal128(38, 0)"),
        }  # fmt: skip
        assert (str(file), str(other)) in wider


@pytest.mark.parametrize(
    "type_",
    [pa.uint64(), pa.uint8(), pa.timestamp("us"), pa.timestamp("ns", tz="UTC"), pa.list_(pa.int64()), pa.date32()],
)
def test_types_that_arcpipe_does_not_write_have_none(type_: pa.DataType) -> None:
    assert iceberg_type(type_) is None
    assert not fits(LongType(), type_)


@pytest.mark.parametrize(
    ("table", "file", "expected"),
    [
        (LongType(), pa.int16(), True),
        (IntegerType(), pa.int64(), False),
        (DoubleType(), pa.float32(), True),
        (FloatType(), pa.float64(), False),
        (DoubleType(), pa.int64(), False),
        (DecimalType(38, 0), pa.decimal128(20, 0), True),
        (DecimalType(20, 2), pa.decimal128(20, 0), False),
        (DecimalType(18, 0), pa.decimal128(20, 0), False),
        (TimestampType(), pa.timestamp("us", tz="UTC"), False),
        (StringType(), pa.binary(), False),
    ],
)
def test_a_table_of_somebody_else_fits_if_iceberg_widens(table: IcebergType, file: pa.DataType, expected: bool) -> None:
    assert fits(table, file) is expected


def test_types_have_arcpipes_words() -> None:
    types = [LongType(), DoubleType(), StringType(), TimestamptzType(), IntegerType(), DecimalType(20, 0)]
    assert [word(type_) for type_ in types] == ["i64", "f64", "str", "time", "i32", "decimal128(20, 0)"]
