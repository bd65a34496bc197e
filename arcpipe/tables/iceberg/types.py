"""Iceberg's types for those of files, and which of a table's types a file's column can be read as."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    StringType,
    TimestamptzType,
)

from arcpipe.lake.file_schema import TIME_TYPE
from arcpipe.tables.schema import word_of

_TYPES: Final[dict[pa.DataType, IcebergType]] = {
    pa.int16(): IntegerType(),  # time_ns
    pa.int32(): IntegerType(),
    pa.int64(): LongType(),
    pa.float32(): FloatType(),
    pa.float64(): DoubleType(),
    pa.bool_(): BooleanType(),
    pa.string(): StringType(),
    pa.binary(): BinaryType(),
    TIME_TYPE: TimestamptzType(),
}
_WORDS: Final = {str(iceberg): word_of(arrow) for arrow, iceberg in reversed(_TYPES.items())} | {"int": "i32"}


def iceberg_type(type_: pa.DataType) -> IcebergType | None:
    """Return the type of a new column; None for what Iceberg has not: unsigned integers, times without a zone, …."""
    if pa.types.is_decimal128(type_):
        return DecimalType(type_.precision, type_.scale)
    return _TYPES.get(type_)


def word(type_: IcebergType) -> str:
    """Return arcpipe's word for a table's type, or Iceberg's own text for others."""
    if isinstance(type_, DecimalType):
        return word_of(pa.decimal128(type_.precision, type_.scale))
    return _WORDS.get(str(type_)) or str(type_)


def fits(table: IcebergType, file: pa.DataType) -> bool:
    """Tell whether readers can read a file's column as the table's type: the same, or one that Iceberg widens."""
    own = iceberg_type(file)
    if own == table:
        return True
    match own, table:
        case (IntegerType(), LongType()) | (FloatType(), DoubleType()):
            return True
        case DecimalType() as narrow, DecimalType() as wide:
            return narrow.scale == wide.scale and narrow.precision <= wide.precision
    return False
