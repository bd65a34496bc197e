"""Checksums of rows that do not depend on their order: a sum for each column, and one for whole rows.

Each value has a hash of 64 bits. A column's sum adds those of its values: it finds values that changed, were lost or
came twice. The sum of rows adds a hash over each row's hashes: it finds values that got into another row. A column
that a file lacks is a column of nulls. Bits count, not numbers: 0.0 and -0.0 differ, and so do two kinds of NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes: TypeAlias = npt.NDArray[np.uint64]

_M1: Final = np.uint64(0x9E3779B97F4A7C15)
_M2: Final = np.uint64(0xD6E8FEB86659FD93)
_NULL: Final = np.uint64(0x2545F4914F6CDD1D)
_32: Final = np.uint64(32)
_SLICE_ROWS: Final = 65_536  # so that a column's hashes stay in the cache of a core
_PIECE_BYTES: Final = 1 << 20  # of texts at a time: each byte takes 24 bytes of memory
_LONG_BYTES: Final = 4_096  # longer values are hashed one by one


class Checksums:
    """The number of rows, a sum for each column, and the sum of whole rows."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with no rows.

        Args:
            names: the columns of all tables together.
        """
        self.rows = 0
        self.columns = dict.fromkeys(names, 0)
        self.whole = 0

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table, whose columns are among those of this object."""
        missing = [name for name in self.columns if name not in table.schema.names]
        hashed = {name: _Column(table.column(name)) for name in self.columns if name not in missing}
        for start in range(0, len(table), _SLICE_ROWS):
            length = min(_SLICE_ROWS, len(table) - start)
            row = np.zeros(length, np.uint64)
            for number, name in enumerate(self.columns):
                column = hashed.get(name)
                hashes = np.full(length, _NULL) if column is None else column.hashes(start, length)
                self.columns[name] = (self.columns[name] + int(hashes.sum())) % (1 << 64)
                row += hashes * np.uint64((2 * number + 1) * 0xA0761D6478BD642F % (1 << 64) | 1)
            self.whole = (self.whole + int(_mix(row).sum())) % (1 << 64)
        self.rows += len(table)

    def without(self, other: Checksums) -> Checksums:
        """Return the sums of these rows without those of `other`, which are among them."""
        left = Checksums(list(self.columns))
        left.rows = self.rows - other.rows
        left.columns = {name: (value - other.columns[name]) % (1 << 64) for name, value in self.columns.items()}
        left.whole = (self.whole - other.whole) % (1 << 64)
        return left

    def difference(self, other: Checksums) -> str:
        """Say what differs; empty if nothing does."""
        if self.rows != other.rows:
            return f"{other.rows} rows in place of {self.rows}"
        wrong = [name for name, value in self.columns.items() if other.columns.get(name) != value]
        if wrong:
            return f"other values in column {', '.join(map(repr, wrong[:5]))}"
        return "" if self.whole == other.whole else "values that are in other rows"


class _Column:
    """A column whose values are hashed slice by slice. The dictionary of a text column is hashed once."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._texts: list[Hashes] | None = None
        if pa.types.is_dictionary(column.type):
            self._texts = [_hash_values(chunk.dictionary) for chunk in column.chunks]
        self._column = column
        self._starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])

    def hashes(self, start: int, length: int) -> Hashes:
        found = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for number in range(first, len(self._column.chunks)):
            begin = max(start - int(self._starts[number]), 0)
            end = min(start + length, int(self._starts[number + 1])) - int(self._starts[number])
            if end <= begin:
                break
            piece = self._column.chunk(number).slice(begin, end - begin)
            found.append(_hash_values(piece) if self._texts is None else _gather(piece, self._texts[number]))
        return found[0] if len(found) == 1 else np.concatenate(found)


def _gather(array: Any, texts: Hashes) -> Hashes:
    if not len(texts):
        return np.full(len(array), _NULL)
    indices = array.indices.fill_null(0) if array.null_count else array.indices
    return _with_nulls(texts.take(indices.to_numpy()), array)


def _hash_values(array: Any) -> Hashes:
    """Hash the values of an array of any type that files have."""
    type_ = array.type
    if not len(array):
        return np.zeros(0, np.uint64)
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return _with_nulls(_hash_texts(array), array)
    if pa.types.is_boolean(type_):
        return _with_nulls(_mix(pc.fill_null(array, False).cast(pa.uint8()).to_numpy().astype(np.uint64)), array)
    if pa.types.is_decimal128(type_):
        words = np.frombuffer(array.buffers()[1], np.uint64, 2 * len(array), 16 * array.offset).reshape(-1, 2)
        return _with_nulls(_mix(_mix(words[:, 0]) + words[:, 1]), array)
    width = type_.bit_width // 8
    bits = np.frombuffer(array.buffers()[1], f"u{width}", len(array), width * array.offset)
    return _with_nulls(_mix(bits.astype(np.uint64, copy=False)), array)


def _with_nulls(hashes: Hashes, array: Any) -> Hashes:
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return hashes


def _mix(bits: Hashes) -> Hashes:
    """Spread the bits of each number over all 64 (two rounds of multiply and xor-shift)."""
    mixed = (bits + _M1) * _M2
    mixed ^= mixed >> _32
    mixed *= _M1
    mixed ^= mixed >> _32
    return mixed


_weights: Hashes = _mix(np.arange(_LONG_BYTES + 1, dtype=np.uint64)) | np.uint64(1)


def _hash_texts(array: Any) -> Hashes:
    """Hash texts or binary values: the sum of their bytes, each times a number of its place."""
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset).astype(np.int64)
    raw = array.buffers()[2]
    data = np.frombuffer(raw, np.uint8) if raw is not None else np.zeros(0, np.uint8)
    hashes = np.empty(len(array), np.uint64)
    at = 0
    while at < len(array):
        end = int(np.searchsorted(offsets, offsets[at] + _PIECE_BYTES, side="right")) - 1
        end = max(at + 1, min(end, len(array)))
        hashes[at:end] = _hash_piece(data, offsets[at : end + 1])
        at = end
    return hashes


def _hash_piece(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Hashes:
    starts, sizes = offsets[:-1], np.diff(offsets)
    if sizes.max(initial=0) > _LONG_BYTES:
        return np.array(
            [
                int.from_bytes(hashlib.blake2b(data[start : start + size].tobytes(), digest_size=8).digest(), "little")
                if size > _LONG_BYTES
                else int(_hash_piece(data, np.array([start, start + size]))[0])
                for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
            ],
            np.uint64,
        )
    total = int(offsets[-1] - offsets[0])
    places = np.arange(total) - np.repeat(starts - offsets[0], sizes)
    products = (data[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)) * _weights[places]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(products, dtype=np.uint64)])
    ends = offsets - offsets[0]
    return _mix(sums[ends[1:]] - sums[ends[:-1]] + sizes.astype(np.uint64) * _M2)
