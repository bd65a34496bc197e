"""Prove that a footer may be looked at.

pyarrow reads a footer, and then ends the process at the first look at a column chunk if some of its numbers do not fit:
the exception of C++ is not caught in `row_group(…).column(…)` and in what it returns. So the bytes are read here first.

This module must not know the columns of arcpipe's files.
"""

from __future__ import annotations

from typing import IO, Any, Final, NamedTuple

from arcpipe.codec.thrift import Binary, CompactReader

_MAGIC: Final = b"PAR1"
_END_BYTES: Final = 8  # the size of the footer, and the magic

# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROW_GROUPS, _COLUMNS, _SORTING, _META = 4, 1, 4, 3
_TYPE, _CODEC, _STATISTICS, _SIZE_STATISTICS = 1, 4, 12, 16
# Fields of Statistics that have values, of SizeStatistics, and of SortingColumn.
_VALUES: Final = (1, 2, 5, 6)
_TEXT_BYTES, _REPETITIONS, _DEFINITIONS = 1, 2, 3
_COLUMN_INDEX: Final = 1

_TYPES: Final = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 0}
_CODECS: Final = 8


class _Leaf(NamedTuple):
    """A column as the schema has it."""

    type: str
    width: int  # bytes of each value; 0 for texts
    repetitions: int  # levels
    definitions: int


def check_file(file: IO[bytes] | Any, metadata: Any) -> None:
    """Check the footer of an open Parquet file, whose place in it changes; as `check_footer`."""
    end = file.seek(0, 2)
    file.seek(max(end - _END_BYTES, 0))
    size = int.from_bytes(file.read(4), "little")
    file.seek(max(end - _END_BYTES - size, 0))
    check_footer(bytes(file.read(size + _END_BYTES)), metadata)


def check_footer(tail: bytes, metadata: Any) -> None:
    """Check the end of a file, which has its footer.

    Args:
        metadata: pyarrow.parquet.FileMetaData, as pyarrow has read the same bytes.

    Raises:
        ValueError: a column chunk of it must not be looked at, because that would end the process.
    """
    size = int.from_bytes(tail[-_END_BYTES:-4], "little")
    if not tail.endswith(_MAGIC) or size > len(tail) - _END_BYTES:
        raise ValueError("the footer of the Parquet file is damaged")
    leaves = [_leaf(metadata.schema.column(number)) for number in range(len(metadata.schema.names))]
    reader = CompactReader(memoryview(tail)[len(tail) - _END_BYTES - size : len(tail) - _END_BYTES])
    try:
        groups = 0
        for group in reader.items_of(_ROW_GROUPS):
            groups += 1
            _check_group(group, leaves)
    except (ValueError, IndexError):
        raise ValueError("the footer of the Parquet file is damaged") from None
    if groups != metadata.num_row_groups:
        raise ValueError("the footer of the Parquet file is damaged")


def _leaf(column: Any) -> _Leaf:
    type_ = column.physical_type
    return _Leaf(type_, _WIDTHS.get(type_, column.length), column.max_repetition_level, column.max_definition_level)


def _check_group(group: dict[int, object], leaves: list[_Leaf]) -> None:
    found = group.get(_COLUMNS)
    if not isinstance(found, list) or len(found) != len(leaves):
        raise ValueError
    for chunk, leaf in zip(found, leaves, strict=True):
        _check_chunk(_struct(_struct(chunk).get(_META)), leaf)
    for one in _list(group.get(_SORTING, [])):
        index = _struct(one).get(_COLUMN_INDEX)
        if not isinstance(index, int) or not 0 <= index < len(leaves):
            raise ValueError


def _check_chunk(meta: dict[int, object], leaf: _Leaf) -> None:
    type_, codec = meta.get(_TYPE), meta.get(_CODEC)
    if not isinstance(type_, int) or not 0 <= type_ < len(_TYPES) or _TYPES[type_] != leaf.type:
        raise ValueError
    if not isinstance(codec, int) or not 0 <= codec < _CODECS:
        raise ValueError
    statistics = _struct(meta.get(_STATISTICS, {}))
    for value in map(statistics.get, _VALUES):
        if isinstance(value, Binary) and value.size < leaf.width:
            raise ValueError
    sizes = _struct(meta.get(_SIZE_STATISTICS, {}))
    if sizes.get(_TEXT_BYTES) is not None and leaf.type != "BYTE_ARRAY":
        raise ValueError
    for field, levels in ((_REPETITIONS, leaf.repetitions), (_DEFINITIONS, leaf.definitions)):
        histogram = _list(sizes.get(field, []))
        if histogram and (len(histogram) != levels + 1 or not all(isinstance(count, int) for count in histogram)):
            raise ValueError


def _struct(value: object) -> dict[int, object]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError
    return value
