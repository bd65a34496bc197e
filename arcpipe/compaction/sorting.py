"""Sort rows by tags and time, in bounded memory.

`order` sorts a table that fits in memory. `Splitters` cut a set of rows that does not fit into ranges of tags and time,
each of which does: rows go to the file of their range, and each file is sorted on its own.

Sorting is stable: of equal points, the one that came last stays last. Nulls come first.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import TIME
from arcpipe.compaction.tables import taken
from arcpipe.lake.file_schema import ROLE, TIME_NS

Ints: TypeAlias = npt.NDArray[np.int64]

_MOST: Final = 1 << 62  # bound of combined keys
_FEW_SERIES: Final = 1 << 16  # what numpy sorts by their digits
_FEW_CODES: Final = 1 << 16  # combinations of places whose range is looked up


class SortColumns(NamedTuple):
    """The columns by which a table is sorted."""

    tags: list[str]
    has_ns: bool  # whether there are digits below µs

    @classmethod
    def of(cls, schema: pa.Schema) -> SortColumns:
        tags = sorted(field.name for field in schema if (field.metadata or {}).get(ROLE) == b"tag")
        return cls(tags, TIME_NS in schema.names)

    @property
    def names(self) -> list[str]:
        return [*self.tags, TIME, *([TIME_NS] if self.has_ns else [])]


class Sorted(NamedTuple):
    """The order of a table's rows: the number of each, and those that are the same point as their successor."""

    rows: Ints
    superseded: npt.NDArray[np.bool_] | None


def order(table: pa.Table, columns: SortColumns, dedup: bool) -> Sorted:
    """Sort a table that has all columns of `columns`.

    Args:
        dedup: find rows whose successor in the order has the same tags and time.
    """
    series, bound = _series(table, columns.tags)
    times = table.column(TIME).cast(pa.int64()).to_numpy()
    if columns.has_ns:
        times = (times - _least(times)) * 1_000 + pc.fill_null(table.column(TIME_NS), 0).to_numpy()
    index = _by_series(series, times, bound) if bound <= _FEW_SERIES else _by_key(series, times, bound)
    if not dedup:
        return Sorted(index, None)
    same = np.ones(len(index), np.bool_)
    same[-1:] = False
    for values in (series[index], times[index]):
        same[:-1] &= values[1:] == values[:-1]
    return Sorted(index, same)


def _least(times: Ints) -> int:
    return int(times.min()) if len(times) else 0


def _by_series(series: Ints, times: Ints, bound: int) -> Ints:
    """Order rows by few series and time: most series have their rows in the order of time already."""
    index: Ints = np.argsort(series.astype(np.uint16), kind="stable")  # for 16 bits, a radix sort
    grouped, moments = series[index], times[index]
    late = (moments[1:] < moments[:-1]) & (grouped[1:] == grouped[:-1])
    if late.any():
        is_mixed = np.zeros(bound, np.bool_)
        is_mixed[grouped[1:][late]] = True
        places = np.flatnonzero(is_mixed[grouped])
        index[places] = index[places][_by_key(grouped[places], moments[places], bound)]
    return index


def _by_key(series: Ints, times: Ints, bound: int) -> Ints:
    """Order rows by series below `bound`, and time."""
    low = _least(times)
    span = int(times.max(initial=low)) - low + 1
    if bound * span < _MOST:
        return _stable(series * span + (times - low), bound * span)
    return np.lexsort((times, series))


def _stable(key: Ints, bound: int) -> Ints:
    """Return the stable order of non-negative keys below `bound`."""
    rows = len(key)
    if rows < 2 or bool((key[1:] >= key[:-1]).all()):
        return np.arange(rows)
    bits = (rows - 1).bit_length()
    if bound << bits < 1 << 63:  # with the row's number the keys are unique: a fast sort without indices does
        packed = (key << bits) | np.arange(rows)
        packed.sort()
        index: Ints = packed & ((1 << bits) - 1)
        return index
    return np.argsort(key, kind="stable")


def _series(table: pa.Table, tags: Sequence[str]) -> tuple[Ints, int]:
    """Number the rows by their tags, in the order of the tags; return also the bound of the numbers."""
    series = np.zeros(len(table), np.int64)
    bound = 1
    for name in tags:
        codes, count = _ranks(table.column(name))
        if bound * count >= _MOST >> 24:
            distinct, series = np.unique(series, return_inverse=True)
            bound = len(distinct)
        series = series * count + codes
        bound *= count
    if bound > len(table) > 0:  # fewer series than combinations leave more room for the time
        distinct, series = np.unique(series, return_inverse=True)
        bound = len(distinct)
    return series, max(bound, 1)


def _ranks(column: pa.ChunkedArray) -> tuple[Ints, int]:
    """Number the values by their order, null first; return also the bound of the numbers."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        if array.num_chunks == 0:
            return np.zeros(0, np.int64), 1
        array = array.chunk(0)
    dictionary = array.dictionary
    # A dictionary may hold a value twice, if a file had it so.
    positions = pc.sort_indices(dictionary)
    values = dictionary.take(positions)
    differs = np.ones(len(values), np.int64)
    if len(values) > 1:
        unequal = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
        differs[1:] = pc.fill_null(unequal, True).to_numpy(zero_copy_only=False)
    ranks = np.zeros(len(values) + 1, np.int64)
    ranks[positions.to_numpy()] = np.cumsum(differs)
    indices = pc.fill_null(array.indices.cast(pa.int64()), len(values)).to_numpy(zero_copy_only=False)
    return ranks[indices], int(differs.sum()) + 1


class Splitters:
    """Points of tags and time that cut rows into ranges."""

    def __init__(self, sample: pa.Table, columns: SortColumns, parts: int) -> None:
        """Choose the points.

        Args:
            sample: some of the rows, with the columns of `columns`.
            parts: wanted number of ranges; there may be fewer.
        """
        tags = list(columns.tags)
        for number, name in enumerate(tags):  # floats have no order that `bisect` knows
            if not _is_ordered(sample.column(name).type):
                tags = tags[:number]
                break
        self._names = [*tags, TIME] if len(tags) == len(columns.tags) else tags
        index = order(sample, columns, False).rows
        picked = index[np.linspace(0, len(index) - 1, parts + 1).astype(np.int64)[1:-1]] if len(index) else index
        points = taken(sample, picked)
        self._values: list[list[Any]] = []
        codes = np.zeros(len(points), np.int64)
        bound = 1
        for number, name in enumerate(self._names):
            column = points.column(name)
            column = column.cast(pa.int64()) if name == TIME else column
            values = sorted({value for value in column.to_pylist() if value is not None})
            size = 2 * len(values) + 2
            if bound * size >= _MOST:  # the rest of the columns does not count
                del self._names[number:]
                break
            bound *= size
            self._values.append(values)
            codes = codes * size + self._codes(number, column)
        self._points = np.unique(codes)
        self._ranges: npt.NDArray[np.uint16] | None = None  # of each code
        if bound <= _FEW_CODES:
            self._ranges = np.searchsorted(self._points, np.arange(bound), side="right").astype(np.uint16)

    @property
    def parts(self) -> int:
        """The number of ranges."""
        return len(self._points) + 1

    def parts_of(self, table: pa.Table) -> npt.NDArray[np.uint16]:
        """Return the number of the range of each row."""
        codes = np.zeros(len(table), np.int64)
        for number, name in enumerate(self._names):
            column = table.column(name)
            size = 2 * len(self._values[number]) + 2
            codes = codes * size + self._codes(number, column.cast(pa.int64()) if name == TIME else column)
        if self._ranges is not None:
            return self._ranges.take(codes, mode="clip")
        return np.searchsorted(self._points, codes, side="right").astype(np.uint16)

    def _codes(self, number: int, column: pa.ChunkedArray) -> Ints:
        """Return the place of each value among those of the points: even if it equals one, 0 for null."""
        values = self._values[number]
        if self._names[number] == TIME:
            return _places_of_times(column.to_numpy(), np.array(values, np.int64))
        codes = []
        for chunk in column.chunks:
            array = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            of_value = [
                0 if value is None else 1 + bisect.bisect_left(values, value) + bisect.bisect_right(values, value)
                for value in array.dictionary.to_pylist()
            ]
            table = np.array([*of_value, 0], np.int64)
            indices = array.indices.fill_null(len(of_value)) if array.null_count else array.indices
            codes.append(table.take(indices.to_numpy(), mode="clip"))
        return codes[0] if len(codes) == 1 else np.concatenate([np.zeros(0, np.int64), *codes])


def _places_of_times(times: Ints, points: Ints) -> Ints:
    """Return the place of each time among sorted points, as `Splitters` counts them."""
    if len(times):
        ends = np.array([times.min(), times.max()])
        least, greatest = (1 + np.searchsorted(points, ends) + np.searchsorted(points, ends, side="right")).tolist()
        if least == greatest:  # so it is for most files: each has a minute or two of the hour
            return np.full(len(times), least)
    left = np.searchsorted(points, times)
    places: Ints = 1 + left + np.searchsorted(points, times, side="right")
    return places


def _is_ordered(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_integer(type_) or pa.types.is_boolean(type_))
