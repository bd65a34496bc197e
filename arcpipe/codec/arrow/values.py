"""The values of a column, found but not decoded yet: their places, and their classes, which their first bytes tell."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from arcpipe.codec.messagepack.layout import SIZE

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

# Classes of values, as their first bytes tell. The numeric ones are in the order of `_DTYPE`.
NIL, BOOL, FIXINT, U8, U16, U32, U64, I8, I16, I32, I64, F32, F64 = range(13)
STR, STR8, STR16, STR32, BIN8, BIN16, BIN32, FIXEXT4, FIXEXT8, EXT8, OTHER = range(13, 24)
CLASSES: Final = 24

INTEGERS: Final = range(FIXINT, I64 + 1)
FLOATS: Final = range(F32, F64 + 1)
STRINGS: Final = range(STR, STR32 + 1)
BINARIES: Final = range(BIN8, BIN32 + 1)
EXTENSIONS: Final = range(FIXEXT4, EXT8 + 1)

_DTYPE: Final = {
    FIXINT: "i1",
    **dict(zip(range(U8, F64 + 1), ("u1", ">u2", ">u4", ">u8", "i1", ">i2", ">i4", ">i8", ">f4", ">f8"), strict=True)),
}

CLASS_OF: Final[Bytes] = np.full(256, OTHER, np.uint8)
CLASS_OF[:0x80] = CLASS_OF[0xE0:] = FIXINT
CLASS_OF[0xA0:0xC0] = STR
CLASS_OF[0xC0], CLASS_OF[0xC2:0xC4], CLASS_OF[0xC4:0xC7], CLASS_OF[0xC7] = NIL, BOOL, (BIN8, BIN16, BIN32), EXT8
CLASS_OF[0xCA:0xCC], CLASS_OF[0xCC:0xD0], CLASS_OF[0xD0:0xD4] = FLOATS, range(U8, I8), range(I8, F32)
CLASS_OF[0xD6:0xD8], CLASS_OF[0xD9:0xDC] = (FIXEXT4, FIXEXT8), (STR8, STR16, STR32)

VALUE_SIZE: Final[Ints] = np.array(SIZE, np.int64)
"""Bytes of a value by its first byte; 0 where that alone does not tell. An empty array or map is one byte."""
VALUE_SIZE[[0x80, 0x90]] = 1

MAX_INT64: Final = (1 << 63) - 1

COUNT_ROWS: Final = 1 << 18
"""Values per step where a step makes a copy of them: bounds the memory that this takes."""


Natural = Literal["i64", "u64", "f64", "bool", "str", "bytes", "time"]
"""The words of types that values have by themselves."""


class Values:
    """The values of a column, found but not yet decoded. `find_values` makes them."""

    __slots__ = ("_classes", "_starts", "_width", "ascii", "count", "data", "present", "repeat")

    def __init__(
        self,
        data: Bytes,
        count: int,
        starts: Ints | None = None,
        width: int = 0,
        *,
        classes: Bytes | None = None,
        ascii_only: bool = False,
    ) -> None:
        """Take the values of a column.

        Args:
            starts: the offset of each value. Without it, all have `width` bytes, and one class unless `width` is 1.
            classes: the class of each value, if known.
            ascii_only: all texts are ASCII.
        """
        self.data = data
        self.count = count
        self.repeat: npt.NDArray[np.int32] | None = None
        """The index of each row's value, if only distinct chunks were kept; else None."""
        self.ascii = ascii_only
        self._width = width
        self._starts = starts
        self._classes = classes
        if classes is None and starts is not None:
            self._classes = CLASS_OF.take(data.take(starts))
        elif width == 1 and count > 1:
            self._classes = CLASS_OF.take(data)
        if self._classes is not None and count and (self._classes == self._classes[0]).all():
            self.present = [int(self._classes[0])]
        elif self._classes is not None:
            self.present = [class_ for class_, number in enumerate(class_counts(self._classes)) if number]
        else:
            self.present = [int(CLASS_OF[data[0]])] if count else []

    @property
    def starts(self) -> Ints:
        if self._starts is None:
            self._starts = np.arange(self.count, dtype=np.int64) * self._width
        return self._starts

    @property
    def classes(self) -> Bytes:
        if self._classes is None:
            self._classes = np.full(self.count, self.present[0] if self.present else NIL, np.uint8)
        return self._classes

    def offset(self, row: int) -> int:
        """Return the offset of a row's value; for the row after the last one, the end of the data."""
        if self._width:
            return row * self._width
        return int(self.starts[row]) if row < self.count else len(self.data)

    def element(self, row: int) -> bytes:
        """Return the encoded value of a row."""
        if self.repeat is not None:
            row = int(self.repeat[row])
        return self.data[self.offset(row) : self.offset(row + 1)].tobytes()

    def sizes(self, rows: Ints) -> Ints:
        """Return the sizes of the encoded values of these rows, in bytes."""
        if self.repeat is not None:
            rows = self.repeat[rows].astype(np.int64)
        if self._width:
            return np.full(len(rows), self._width, np.int64)
        ends = np.append(self.starts[1:], len(self.data))
        sizes: Ints = ends[rows] - self.starts[rows]
        return sizes

    def not_nil(self) -> Ints:
        """Return the rows that hold a value."""
        if NIL not in self.present:
            return np.arange(self.count)
        return np.flatnonzero(self.classes != NIL)

    def rows_of(self, class_: int) -> Ints | None:
        """Return the rows whose values are of a class, or None for all rows."""
        return None if self.present == [class_] else np.flatnonzero(self.classes == class_)

    def gather(self, dtype: str, offset: int, rows: Ints | None) -> npt.NDArray[Any]:
        """Read the numbers that stand `offset` bytes after the start of each value of these rows (None: of all)."""
        if rows is None and self._width:
            return np.ndarray((self.count,), dtype, self.data, offset, (self._width,))
        if rows is not None and self._width:
            at = rows * self._width
        else:
            at = self.starts if rows is None else self.starts[rows]
        # One number at each byte of the data, aligned or not.
        everywhere = np.ndarray((len(self.data) - np.dtype(dtype).itemsize + 1,), dtype, self.data, 0, (1,))
        return everywhere[at + offset if offset else at]

    def numbers(self, class_: int, rows: Ints | None) -> npt.NDArray[Any]:
        """Return the integers or floats of a class, in the byte order of the machine."""
        values = self.gather(_DTYPE[class_], int(class_ != FIXINT), rows)
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def class_counts(classes: Bytes) -> list[int]:
    """Count the values of each class; by parts, because counting makes eight bytes of each one."""
    counts = np.zeros(CLASSES, np.int64)
    for start in range(0, len(classes), COUNT_ROWS):
        counts += np.bincount(classes[start : start + COUNT_ROWS], minlength=CLASSES)
    return list(map(int, counts))


NONE: Final[Ints] = np.zeros(0, np.int64)


def odd_rows(values: Values, valid: Mask) -> Ints:
    """Return the rows that hold a value and are not valid."""
    return np.flatnonzero(~valid & (values.classes != NIL))


def widened(floats: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return floats as float64, without the warning of numpy for a NaN that signals."""
    with np.errstate(invalid="ignore"):
        return floats.astype(np.float64, copy=False)
