"""The encodings of a file's columns: of those that the settings allow, the ones that the first table's values suit.

This module must not know files or keys.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.columns import TIME
from arcpipe.config.settings import Codec, Parquet
from arcpipe.lake.file_schema import TIME_TYPE
from arcpipe.units import KB

# Types with a better encoding than the plain one, where they are no dictionary. Spark up to 4.0 reads only these.
_COMMON: Final = dict.fromkeys((TIME_TYPE, pa.int64(), pa.uint64(), pa.int16()), "DELTA_BINARY_PACKED")
_ENCODINGS: Final = {"common": _COMMON, "small": {**_COMMON, pa.string(): "DELTA_LENGTH_BYTE_ARRAY"}}

_UINT64: Final = pa.uint64().id
_NUMBER_IDS: Final = frozenset({TIME_TYPE.id, pa.int64().id, _UINT64})  # types of 64 bits; 16 bits are never far apart

# Range of a column's numbers, and half a gap between times, from which they are plain. Below it the differences of a
# block of DELTA_BINARY_PACKED have at most 28 bits. fastparquet 2026.9 reads other values where they have 29 bits, and
# crashes where they have 57. zstd makes plain numbers that are so far apart as small.
_FAR: Final = 1 << 27
_MANY_TIMES: Final = 4_096  # that are probed at some places, which costs as much for a million

# zstd level of columns that are split into one stream for each byte of a float. The lower bytes of precise floats are
# noise. A fast level skips their streams, and still makes the other streams smaller than level 1 makes the whole.
_SPLIT_LEVEL: Final = -3
# Sample size for the decision on such columns. Smaller tables than _SPLIT_ROWS are not sampled: the sample must stay a
# small part of the table.
_SPLIT_SAMPLE: Final = 8_192
_SPLIT_ROWS: Final = 4 * _SPLIT_SAMPLE


# Bytes of the only table of a file up to which zstd gives way to snappy. zstd makes a context for each column, a third
# of what such a file costs, and makes it a few hundred bytes smaller at most.
_TINY_BYTES: Final = 3 * KB


class Encodings(NamedTuple):
    """Arguments of a `ParquetWriter`."""

    codec: Codec  # the compression
    by_column: dict[str, str]  # of columns that are neither plain nor dictionaries
    levels: int | dict[str, int] | None  # of the compression


def choose(
    parquet: Parquet,
    schema: pa.Schema,
    first: pa.Table,
    dictionaries: set[str],
    far: frozenset[str],
    *,
    is_only: bool = False,
) -> Encodings:
    """Choose the encodings of a file.

    Args:
        schema: the columns as readers see them.
        first: the first table that will be appended.
        far: the columns of `far_columns`.
        is_only: no further table will be appended.
    """
    codec, level = parquet.compression, parquet.codec_level
    if is_only and codec == "zstd" and first.nbytes <= _TINY_BYTES:
        codec, level = "snappy", None
    may_split = parquet.encodings == "small" and parquet.compression == "zstd"
    split = _columns_to_split(first, level) if may_split and level is not None else set()
    encodings = _ENCODINGS[parquet.encodings]
    by_column = {
        field.name: encodings[field.type]
        for field in schema
        if field.type in encodings and field.name not in dictionaries and field.name not in far
    }
    return Encodings(
        codec,
        by_column | dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        {name: _SPLIT_LEVEL if name in split else level for name in {*schema.names, *first.schema.names}}
        if split and level is not None
        else level,
    )


def far_columns(parquet: Parquet, table: pa.Table, *, by_time: bool = True) -> frozenset[str]:
    """Find the columns whose numbers are too far apart for DELTA_BINARY_PACKED in the hands of every common reader.

    Args:
        by_time: the rows are sorted by time alone.
    """
    if parquet.encodings != "common" or len(table) < 2:
        return frozenset()
    far = []
    for number, name in enumerate(table.schema.names):
        column = table.column(number)  # one by one: a table makes lists of columns and types slowly
        if column.type.id in _NUMBER_IDS and (_has_gap(column) if by_time and name == TIME else _is_wide(column)):
            far.append(name)
    return frozenset(far)


def _is_wide(column: pa.ChunkedArray) -> bool:
    """Tell whether the values have a range of `_FAR` or more."""
    ends: list[int] = []
    for number in range(column.num_chunks):
        chunk = column.chunk(number)
        if chunk.null_count and (column.num_chunks > 1 or _range(_numbers(chunk)) >= _FAR):
            chunk = chunk.drop_null()  # the values of nulls are any
        if len(chunk):
            values = _numbers(chunk)
            ends += int(values.min()), int(values.max())
    return bool(ends) and max(ends) - min(ends) >= _FAR


def _range(values: np.ndarray) -> int:
    return int(values.max()) - int(values.min())


def _has_gap(times: pa.ChunkedArray) -> bool:
    """Tell whether sorted times, none of them null, have a gap of twice `_FAR`; of many, one above `_FAR` may do."""
    chunks = [_numbers(times.chunk(number)) for number in range(times.num_chunks)]
    values = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    if len(values) < _MANY_TIMES:
        return int((values[1:] - values[:-1]).max()) >= 2 * _FAR
    places = np.searchsorted(values, np.arange(values[0], values[-1], _FAR))
    return bool((places[1:] == places[:-1]).any())  # a stretch without a time


def _numbers(chunk: pa.Array) -> np.ndarray:
    """Return the values; those of nulls are any."""
    type_ = np.uint64 if chunk.type.id == _UINT64 else np.int64
    return np.frombuffer(chunk.buffers()[1], type_, len(chunk), chunk.offset * 8)


def _columns_to_split(table: pa.Table, level: int) -> set[str]:
    """Find the float columns that byte stream split at its level makes smaller than zstd's `level` of the whole."""
    if len(table) < _SPLIT_ROWS:
        return set()
    whole, split = pa.Codec("zstd", level), pa.Codec("zstd", _SPLIT_LEVEL)
    chosen = set()
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if column.type == pa.float64():
            sample = column.slice((len(table) - _SPLIT_SAMPLE) // 2, _SPLIT_SAMPLE).drop_null().to_numpy()
            streams = np.ascontiguousarray(sample.view(np.uint8).reshape(-1, 8).T)
            if len(split.compress(streams)) < len(whole.compress(sample)):
                chosen.add(name)
    return chosen
