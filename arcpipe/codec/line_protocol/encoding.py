"""Blocks of lines -> columnar maps: numbers are cast, and texts gathered, of all blocks at once."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import array_header
from arcpipe.codec.line_protocol.blocks import Block, LineTable
from arcpipe.codec.line_protocol.grammar import Unit
from arcpipe.codec.line_protocol.shapes import BOOL, FLOAT, INTEGER, TEXT, UNSIGNED, Ints

_X: Final = ord("x")
_INFINITE: Final = (float("inf"), float("-inf"))


NUMBER_BYTES: Final = 9
"""Bytes of a number in MessagePack."""


class BadNumbers(Exception):
    """Some values are no numbers of their type."""


class UnusualLines(Exception):
    """Some values of a block are not of its types; `args[0]` are their lines."""


def encode_blocks(table: LineTable, blocks: list[Block], unit: Unit | None = None) -> list[tuple[bytes, int]]:
    """Make each block a columnar map, with the number of its rows.

    Raises UnusualLines if a number cannot be cast, or a timestamp is out of the range of `unit`.
    """
    blocks = [block for block in blocks if len(block.lines)]
    columns: list[list[bytes | memoryview]] = [[b""] * len(block.shape.types) for block in blocks]
    cells: list[list[tuple[int, int]]] = [[] for _ in range(6)]  # by type: block and column
    for number, block in enumerate(blocks):
        for column, type_ in enumerate(block.shape.types):
            cells[type_].append((number, column))
    for type_ in (FLOAT, INTEGER, UNSIGNED):
        if cells[type_]:
            numbers = _cast(table, blocks, cells[type_], type_)
            if type_ == INTEGER and unit is not None:
                _check_times(blocks, cells[INTEGER], numbers, unit)
            view = pack_numbers(numbers, type_).data
            at = 0
            for number, column in cells[type_]:
                end = at + 9 * len(blocks[number].lines)
                columns[number][column] = view[at:end]
                at = end
    if cells[TEXT]:
        texts, ends = _gather_texts(table, *_places(blocks, cells[TEXT]))
        at = row = 0
        for number, column in cells[TEXT]:
            row += len(blocks[number].lines)
            end = int(ends[row - 1])
            columns[number][column] = texts[at:end]
            at = end
    for number, column in cells[BOOL]:
        first = table.text[blocks[number].starts[column]] | 0x20
        columns[number][column] = (0xC2 + (first == ord("t")).view(np.uint8)).tobytes()
    maps = []
    for block, values in zip(blocks, columns, strict=True):
        header = array_header(len(block.lines))
        parts: list[bytes | memoryview] = [block.shape.head]
        for name, column_values in zip(block.shape.columns, values, strict=True):
            parts += (name, header, column_values)
        parts.append(block.shape.tail)
        maps.append((b"".join(parts), len(block.lines)))
    return maps


def pack_numbers(numbers: npt.NDArray[Any], type_: int) -> npt.NDArray[np.uint8]:
    """Pack each number in `NUMBER_BYTES` of MessagePack, one after the other."""
    marker, dtype, _ = _NUMBERS[type_]
    packed = np.empty(len(numbers), [("marker", "u1"), ("value", dtype)])
    packed["marker"] = marker
    packed["value"] = numbers
    return packed.view(np.uint8)


def _check_times(blocks: list[Block], cells: list[tuple[int, int]], numbers: npt.NDArray[np.int64], unit: Unit) -> None:
    """Raise UnusualLines if timestamps among the integers of some columns are out of the range of `unit`."""
    at = 0
    odd: list[Ints] = []
    for number, column in cells:
        block = blocks[number]
        end = at + len(block.lines)
        if column == 0 and block.shape.timed:
            times = numbers[at:end]
            if np.maximum.reduce(times) > unit.high or np.minimum.reduce(times) < unit.low:
                odd.append(block.lines[(times < unit.low) | (times > unit.high)])
        at = end
    if odd:
        raise UnusualLines(np.concatenate(odd))


def _places(blocks: list[Block], cells: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Find where the values of these columns begin and end, column after column."""
    if len(cells) == 1:
        number, column = cells[0]
        return blocks[number].starts[column], blocks[number].ends[column]
    starts = np.concatenate([blocks[number].starts[column] for number, column in cells])
    return starts, np.concatenate([blocks[number].ends[column] for number, column in cells])


# By type: the marker of its values, their bytes, and the Arrow type that they are cast to.
_NUMBERS: Final = {
    FLOAT: (0xCB, ">f8", pa.float64()),
    INTEGER: (0xD3, ">i8", pa.int64()),
    UNSIGNED: (0xCF, ">u8", pa.uint64()),
}


def _cast(table: LineTable, blocks: list[Block], cells: list[tuple[int, int]], type_: int) -> npt.NDArray[Any]:
    """Cast the numbers of some columns, column after column. Raises UnusualLines."""
    try:
        return cast_numbers(table, *_places(blocks, cells), type_)
    except BadNumbers:
        raise UnusualLines(_not_numbers(table, blocks, cells, type_)) from None


def cast_numbers(table: LineTable, starts: Ints, ends: Ints, type_: int) -> npt.NDArray[Any]:
    """Cast the numbers at these places. Raises BadNumbers.

    Arrow takes a few spellings that the grammar does not; of these only hexadecimal integers begin and end as numbers
    do here. It rounds floats correctly, and makes too large ones infinite. It skips nulls: their offsets do not matter.
    """
    if type_ != FLOAT and ((table.text[starts + 1] | 0x20) == _X).any():
        raise BadNumbers
    count = len(starts)
    # An array in which each number is followed by a null, which reaches to the next number, wherever that is.
    offsets = np.empty(2 * count + 1, np.int32)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, ends, len(table.text)
    validity = pa.py_buffer(b"\x55" * (count // 4 + 1))
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(table.text)]
    _, dtype, arrow_type = _NUMBERS[type_]
    try:
        cast = pc.cast(pa.Array.from_buffers(pa.string(), 2 * count, buffers, count), arrow_type)
    except pa.ArrowInvalid:
        raise BadNumbers from None
    numbers: npt.NDArray[Any] = np.frombuffer(cast.buffers()[1], dtype[1:], 2 * count)[::2]
    if type_ == FLOAT and not np.isfinite(numbers).all():
        raise BadNumbers
    return numbers


_SPELLINGS: Final = {
    FLOAT: re.compile(rb"-?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?").fullmatch,
    INTEGER: re.compile(rb"-?[0-9]{1,18}").fullmatch,
    UNSIGNED: re.compile(rb"[0-9]{1,19}").fullmatch,
}


def _not_numbers(table: LineTable, blocks: list[Block], cells: list[tuple[int, int]], type_: int) -> Ints:
    """Find the lines with a value that may be no number of this type; if there are none, return all. Slow, and rare."""
    is_spelled = _SPELLINGS[type_]
    text = table.text.tobytes()
    odd: set[int] = set()
    for number, column in cells:
        block = blocks[number]
        for line, start, end in zip(
            block.lines.tolist(), block.starts[column].tolist(), block.ends[column].tolist(), strict=True
        ):
            value = text[start:end]
            if not is_spelled(value) or (type_ == FLOAT and float(value) in _INFINITE):
                odd.add(line)
    return np.array(sorted(odd)) if odd else np.concatenate([blocks[number].lines for number, _ in cells])


def _gather_texts(table: LineTable, starts: Ints, ends: Ints) -> tuple[memoryview, Ints]:
    """Make texts MessagePack strings, one after the other; return these, and where each ends."""
    text = table.text
    sizes = ends - starts
    headers = np.ones(len(starts), np.int64)
    longest = int(sizes.max())
    if longest < 32:
        text[starts - 1] = sizes | 0xA0
    else:
        short, middle, long = sizes < 32, (sizes >= 32) & (sizes < 256), sizes >= 256
        text[starts[short] - 1] = sizes[short] | 0xA0
        text[starts[middle] - 2] = 0xD9
        text[starts[middle] - 1] = sizes[middle]
        text[starts[long] - 3] = 0xDA
        text[starts[long] - 2] = sizes[long] >> 8
        text[starts[long] - 1] = sizes[long] & 0xFF
        headers += middle
        headers += 2 * long
    sizes += headers
    stops = np.cumsum(sizes)
    gathered = text[np.repeat(ends - stops, sizes) + np.arange(int(stops[-1]))]
    return gathered.data, stops
