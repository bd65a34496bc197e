"""Line protocol, by column: many lines of few shapes at the cost of a few numpy calls per column, not per value.

One pass finds every delimiter of a piece of the body (and those inside of quoted strings, which are dropped). Lines are
then sorted into blocks: the first line of a block is its template, and every line in it is proven to have the same
delimiters and, by comparing words of eight bytes, the same measurement and keys in the same places, and values that
look like those of the same types. So a block is a matrix of places in the text. Numbers are cast by Arrow from there,
all of one type in all blocks at once; text gets its MessagePack header written over the delimiter in front of it and is
gathered, header and all.

Whatever is unusual about a line (escapes in strings, control characters, quotes elsewhere, numbers that do not cast)
leaves it to the line reader, which alone knows errors. So this path takes less than the grammar and never decides that
a line is bad.

This module must not know errors, or how the line reader works.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arcpipe.codec.columns import (
    MAX_COLUMNS,
    TIME,
    Maps,
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    map_header,
    pack_str,
)
from arcpipe.codec.effort import Effort
from arcpipe.errors import BadPayload

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Words: TypeAlias = npt.NDArray[np.uint64]


class Reader(Protocol):
    """What takes the lines that are left over, in order."""

    def read(self, pos: int, stop: int) -> int:
        """Read the line that begins at `pos` in the body and ends before `stop`: the offset behind what was read."""


# Types of values as their first and last bytes suggest: `_TYPE[_FIRST[first] + _LAST[last]]`.
_NONE, _FLOAT, _INTEGER, _UNSIGNED, _TEXT, _BOOL = range(6)


_FIRST: Final = np.zeros(256, np.uint8)
_FIRST[list(b"0123456789.-")], _FIRST[list(b'"')], _FIRST[list(b"tTfF")] = 5, 10, 15
_LAST: Final = np.zeros(256, np.uint8)
_LAST[list(b"0123456789.")], _LAST[list(b"i")], _LAST[list(b"u")], _LAST[list(b'"')] = 1, 2, 3, 4
_TYPE: Final = np.zeros(20, np.uint8)
_TYPE[[6, 7, 8, 14]] = _FLOAT, _INTEGER, _UNSIGNED, _TEXT
_TYPE[15:20] = _BOOL
_TAG_TYPE: Final = np.array([_TEXT, _NONE], np.uint8)  # by whether it is empty

_EQUALS: Final = ord("=")

# What a byte that is looked at is.
_OTHER, _DELIMITER, _QUOTE, _CONTROL, _STANDIN = range(5)
_CLASS: Final = np.zeros(256, np.uint8)
_CLASS[:0x20] = _CONTROL
_CLASS[0xF8:0xFC] = _STANDIN
_CLASS[list(b"\n ,=")] = _DELIMITER
_CLASS[list(b'"')] = _QUOTE

# The delimiters of a line, in order: measurement, tags, fields, time.
_STRUCTURE: Final = re.compile(rb"((?:,=)*+) =(?:,=)*+( ?+)\n").fullmatch


class _Layout(NamedTuple):
    """What the delimiters of a line are in front of and behind.

    `before` are the places of those in front of values, `behind` of those behind them: of the time, if there is one, of
    tags, of fields. `fields` is the first value of a field.
    """

    timed: bool
    fields: int
    before: Ints
    behind: Ints


def _make_layout(separators: bytes) -> _Layout | None:
    """None if these are not the delimiters of a line."""
    found = _STRUCTURE(separators)
    if found is None:
        return None
    timed = found[2] == b" "
    before = [len(separators) - 2] * timed + [at for at, char in enumerate(separators) if char == _EQUALS]
    return _Layout(timed, timed + len(found[1]) // 2, np.array(before), np.array(before) + 1)


# Clients send the same shapes over and over. What is remembered of them is bounded: 2 MB of layouts, 25 MB of shapes.
_remember_layout: Final = lru_cache(maxsize=256)(_make_layout)
_MAX_SEPARATORS: Final = 1024


def _find_layout(separators: bytes) -> _Layout | None:
    return (_remember_layout if len(separators) <= _MAX_SEPARATORS else _make_layout)(separators)


_LOW_BYTES: Final[Words] = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
_HIGH_BYTES: Final[Words] = np.array([((1 << 64) - 1) ^ ((1 << 8 * (8 - count)) - 1) for count in range(9)], np.uint64)

_BOOLS: Final[Words] = np.array(
    [
        int.from_bytes(text, "little")
        for text in (b"t", b"T", b"true", b"True", b"TRUE", b"f", b"F", b"false", b"False", b"FALSE")
    ],
    np.uint64,
)

# Characters that may be escaped, and bytes that stand for the escaped ones while delimiters are looked for: such bytes
# are in no valid UTF-8.
_STANDINS: Final = {ord("\\"): b"\xf8", ord(","): b"\xf9", ord(" "): b"\xfa", ord("="): b"\xfb"}
_FIRST_STANDIN: Final = 0xF8
_STANDIN_FOR_EQUALS: Final = 0xFB
_CHARACTER: Final = np.arange(256, dtype=np.uint8)
for _character, _standin in _STANDINS.items():
    _CHARACTER[ord(_standin)] = _character

# The text of a piece is copied, with room in front for words of its longest possible key, and behind.
_FRONT: Final = 512
_BEHIND: Final = 16

# Smaller blocks cost more than reading their lines one by one.
_MIN_LINES: Final = 8
# Parts, less one, of a text with escapes after which others are given way to: they take 0.5 ms.
_PARTS_BETWEEN_CHECKS: Final = 2047
# A block takes about as long as this many shapes of the line reader.
_BLOCK_SHAPES: Final = 4
# Lines that look alike, but are not, are tried as blocks of their own so many times.
_MAX_SPLITS: Final = 8
# Longer lines are left to the line reader, so that three bytes are enough for the header of any text.
_MAX_LINE_BYTES: Final = 0xFFFF
_INLINE_BYTES: Final = 12  # https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout
# Lines with more delimiters are not expected to be all alike.
_MAX_UNIFORM: Final = 1024
_NEWLINE: Final = ord("\n")
_X: Final = ord("x")
_INFINITE: Final = (float("inf"), float("-inf"))
_ZERO: Final[Ints] = np.zeros(1, np.int64)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, odd: spreads what it multiplies


class _Odd(Exception):
    """`args[0]` are lines of a piece that turned out not to be of the block's types."""


class _Shape:
    """What all lines with the same delimiters, keys and types share: where what is, and how its columns are called."""

    __slots__ = (
        "back",
        "bools",
        "columns",
        "drop",
        "head",
        "masks",
        "skip",
        "slots",
        "tail",
        "texts",
        "timed",
        "types",
        "words",
    )

    def __init__(self, separators: bytes, keys: Sequence[bytes], types: Sequence[int], timed: bool) -> None:
        """`keys` are the measurement and all keys; `types` those of the values behind them, tags being text.

        Raises BadPayload if a name is not allowed or there twice.
        """
        measurement, *names = [key.decode() for key in keys]
        check_measurement(measurement)
        found = _STRUCTURE(separators)
        assert found is not None
        count = len(found[1]) // 2
        tags, fields = names[:count], names[count:]
        for name in names:
            check_column_name(name)
        if len(set(tags)) < len(tags) or len(set(fields)) < len(fields) or TIME in names or len(names) >= MAX_COLUMNS:
            raise BadPayload("unusual names")
        columns = [*tags, *field_column_names(tags, fields)]
        self.head = b"".join(
            (
                map_header(2 + bool(tags) + (_UNSIGNED in types)),
                b"\xa1m",
                pack_str(measurement),
                b"\xa7columns",
                map_header(len(columns) + timed),
            )
        )
        self.columns = [pack_str(name) for name in columns]
        self.types = list(types)
        if timed:
            self.columns.insert(0, pack_str(TIME))
            self.types.insert(0, _INTEGER)
        tail = []
        if tags:
            tail += [b"\xa4tags", array_header(len(tags)), *map(pack_str, tags)]
        unsigned = [name for name, type_ in zip(columns, types, strict=True) if type_ == _UNSIGNED]
        if unsigned:
            tail += [b"\xa5types", map_header(len(unsigned))]
            for name in unsigned:
                tail += [pack_str(name), pack_str("u64")]
        self.tail = b"".join(tail)
        self.texts = sum(type_ == _TEXT for type_ in types[count:])

        # The words that prove the keys: each key with the delimiter in front of it, from behind, eight bytes at a time.
        slots, back, masks, words = [], [], [], []
        for slot, key in zip((0, *(at for at, char in enumerate(separators) if char == ord("="))), keys, strict=True):
            text = separators[slot - 1 : slot or None] + key  # in front of the measurement is the line end
            for end in range(len(text), 0, -8):
                piece = text[max(end - 8, 0) : end]
                slots.append(slot)
                back.append(len(text) - end + 8)
                masks.append(_HIGH_BYTES[len(piece)])
                words.append(int.from_bytes(piece.rjust(8, b"\0"), "little"))
        self.slots = np.array(slots)
        self.back = np.array(back)[:, None]
        self.masks = np.array(masks, np.uint64)[:, None]
        self.words = np.array(words, np.uint64)[:, None]
        self.timed = timed
        self.bools = [at for at, type_ in enumerate(self.types) if type_ == _BOOL]
        # What of a value is not its content: quotes, and the suffixes of integers.
        quotes = [0] * (timed + count) + [type_ == _TEXT for type_ in types[count:]]
        suffixes = [0] * timed + [type_ in (_INTEGER, _UNSIGNED) for type_ in types]
        self.skip = np.array(quotes, np.int64)[:, None]
        self.drop = self.skip + np.array(suffixes, np.int64)[:, None]


_shapes: Final[dict[tuple[bytes, ...], _Shape | None]] = {}
"""Shapes seen before by separators, types and keys; None if no line of that shape is taken here."""
_MAX_SHAPES: Final = 256
_MAX_SHAPE_BYTES: Final = 2048


def _find_shape(separators: bytes, keys: tuple[bytes, ...], types: bytes, timed: bool) -> _Shape | None:
    identity = (separators, types, *keys)
    try:
        return _shapes[identity]
    except KeyError:
        pass
    shape: _Shape | None
    try:
        shape = _Shape(separators, keys, types, timed)
    except BadPayload:
        shape = None
    if sum(map(len, identity)) <= _MAX_SHAPE_BYTES:
        if len(_shapes) >= _MAX_SHAPES:
            _shapes.clear()
        _shapes[identity] = shape
    return shape


class _Block(NamedTuple):
    """Lines of one shape. `starts` and `ends` are the places of each value, by column and then by line."""

    shape: _Shape
    lines: Ints
    starts: Ints
    ends: Ints

    def without(self, gone: Mask) -> _Block:
        kept = ~gone[self.lines]
        return _Block(self.shape, self.lines[kept], self.starts[:, kept], self.ends[:, kept])


def read_piece(body: bytes, start: int, end: int, reader: Reader, effort: Effort, maps: Maps) -> int:
    """Read the lines from `start` to `end`, which is behind a newline or at the end of the body.

    Adds the columnar maps of those that are not left to `reader` to `maps`. Gives the offset behind what was read,
    which is behind `end` if the reader found that a string goes on there.
    """
    piece = body[start:end]
    if not piece.isascii():
        try:
            piece.decode()
        except UnicodeDecodeError:
            return reader.read(start, end)
    table = _Table(piece, effort)
    effort.check()
    blocks = table.blocks(effort)
    while True:
        effort.check()
        try:
            encoded = _encode(table, blocks)
            break
        except _Odd as odd:
            table.odd[odd.args[0]] = True
            blocks = [block.without(table.odd) for block in blocks]
    pos, swallowed = _read_odd(table, start, end, reader)
    if swallowed is not None:
        blocks = [block.without(swallowed) for block in blocks]
        encoded = _encode(table, blocks)
    for columnar, records in encoded:
        maps.add(columnar, records)
    return pos


def _read_odd(table: _Table, start: int, end: int, reader: Reader) -> tuple[int, Mask | None]:
    """Have the odd lines read: the offset behind what was read, and which other lines are part of them."""
    lines = np.flatnonzero(table.odd)
    if not len(lines):
        return end, None
    swallowed: Mask | None = None
    pos = start
    ends = table.find_line_ends()
    ends += start
    for line in lines.tolist():
        line_start = int(ends[line - 1]) if line else start
        if line_start < pos:
            continue
        line_end = int(ends[line])
        pos = reader.read(line_start, line_end)
        if pos > line_end:
            if swallowed is None:
                swallowed = np.zeros(len(table.odd), np.bool_)
            swallowed[line + 1 : int(np.searchsorted(ends, pos, side="right"))] = True
    return max(pos, end), swallowed


def _hide_escapes(piece: bytes, effort: Effort) -> bytes:
    """The piece with one byte for each escape; a backslash that escapes nothing stays."""
    first, *others = piece.split(b"\\")
    parts = [first]
    following = iter(others)
    for number, part in enumerate(following):
        if not number & _PARTS_BETWEEN_CHECKS:
            effort.check()
        if part:
            standin = _STANDINS.get(part[0])
            parts += (b"\\", part) if standin is None else (standin, part[1:])
        else:  # between two backslashes, or behind the last
            last = next(following, None)
            parts += (b"\\",) if last is None else (_STANDINS[ord("\\")], last)
    return b"".join(parts)


def _separators_of_all(kinds: Bytes) -> bytes | None:
    """The kinds of a line, if all lines have the same ones, and these are delimiters of a line."""
    line, newline, _ = kinds[:_MAX_UNIFORM].tobytes().partition(b"\n")
    width = len(line) + 1
    if not newline or len(kinds) % width or _find_layout(line + newline) is None:
        return None
    return line + newline if (kinds.reshape(-1, width) == kinds[:width]).all() else None


class _Table:
    """Where the lines of a piece and their delimiters are. Places count from the front of `text`."""

    __slots__ = (
        "_first",
        "_kinds",
        "_last",
        "_piece",
        "_places",
        "_quotes",
        "_separators",
        "_skipped",
        "begins",
        "ends",
        "odd",
        "text",
        "words",
    )

    def __init__(self, piece: bytes, effort: Effort) -> None:
        self._piece = piece
        escapes = b"\\" in piece
        if escapes:
            piece = _hide_escapes(piece, effort)
        ending = b"" if piece.endswith(b"\n") else b"\n"
        padded = bytearray(b"".join((b"\n".rjust(_FRONT, b"\0"), piece, ending, bytes(_BEHIND))))
        self.text: Bytes = np.frombuffer(padded, np.uint8)
        """The piece, which headers of texts are written into when all else is done."""
        self.words: Words = np.ndarray((len(padded) - 7,), "<u8", padded, 0, (1,))
        """The eight bytes at every place, aligned or not."""
        seen = self.text[_FRONT - 1 : -_BEHIND]
        mask = seen <= ord(",")
        mask |= seen == ord("=")
        if escapes:
            mask |= seen >= _FIRST_STANDIN
        effort.check()
        places = np.flatnonzero(mask)
        places += _FRONT - 1
        kinds = self.text[places]
        self._quotes: Ints | None = None
        self._separators = _separators_of_all(kinds[1:])
        """The delimiters of each line, if all lines have the same ones."""
        if self._separators:
            width = len(self._separators)
            newlines = np.arange(0, len(kinds), width)
            self.begins, self.ends = places[:-1:width] + 1, places[width::width]
            self.odd = self.ends - self.begins > _MAX_LINE_BYTES
        else:
            newlines = np.flatnonzero(kinds == _NEWLINE)
            self.begins, self.ends = places[newlines[:-1]] + 1, places[newlines[1:]]
            self.odd = self.ends - self.begins > _MAX_LINE_BYTES
            classes = _CLASS.take(kinds)
            keep = classes == _DELIMITER
            if not keep.all():
                self.odd[np.searchsorted(newlines, np.flatnonzero(classes == _CONTROL)) - 1] = True
                quotes = classes == _QUOTE
                if quotes.any():
                    keep &= ~self._find_strings(quotes, newlines)
                keep[newlines] = True
                standins = places[np.flatnonzero(classes == _STANDIN)]
                kept = np.flatnonzero(keep)
                places, kinds = places[kept], kinds[kept]
                newlines = np.flatnonzero(kinds == _NEWLINE)
                effort.check()
                if len(standins):
                    self._unescape(standins, places[newlines[:-1] + 1])
                if self._quotes is not None and b"\\" in piece:  # it may escape a quote
                    lines = np.searchsorted(self.ends, np.flatnonzero(self.text == ord("\\")))
                    self.odd[lines[self._quotes[lines] > 0]] = True
        self._places, self._kinds = places, kinds
        self._first, self._last = newlines[:-1] + 1, newlines[1:]
        starts = self.text[self.begins]
        self._skipped: Mask = (starts == _NEWLINE) | (starts == ord("#"))
        self.odd[self._skipped] = False

    def _find_strings(self, quotes: Mask, newlines: Ints) -> Mask:
        """What stands between quotes of a line; lines with an odd number of quotes are odd."""
        before: Ints = np.cumsum(quotes)
        at_newlines = before[newlines]
        self._quotes = np.diff(at_newlines)
        unbalanced = (self._quotes & 1).astype(np.bool_)
        if unbalanced.any():
            self.odd |= unbalanced
            before[1:] -= np.repeat(at_newlines[:-1], np.diff(newlines))
        return (before & 1).astype(np.bool_)

    def _unescape(self, standins: Ints, first_delimiters: Ints) -> None:
        """Put the characters themselves in the places of what stands for them; they have become no delimiters.

        In strings other characters are escaped, and in measurements not `=`: such lines are odd.
        """
        lines = np.searchsorted(self.ends, standins)
        if self._quotes is not None:
            self.odd[lines[self._quotes[lines] > 0]] = True
        found = self.text[standins]
        in_measurement = standins < first_delimiters[lines]
        self.odd[lines[in_measurement & (found == _STANDIN_FOR_EQUALS)]] = True
        self.text[standins] = _CHARACTER.take(found)

    def find_line_ends(self) -> Ints:
        """Where the lines end in the piece itself, each behind its newline."""
        ends = np.flatnonzero(np.frombuffer(self._piece, np.uint8) == _NEWLINE) + 1
        return ends if len(ends) == len(self.odd) else np.append(ends, len(self._piece))

    def blocks(self, effort: Effort) -> list[_Block]:
        """The lines by shape; those that are in none are odd from now on."""
        blocks: list[_Block] = []
        lines = np.flatnonzero(~(self.odd | self._skipped))
        if not len(lines):
            return blocks
        if self._separators and len(lines) == len(self.odd):
            places = np.ascontiguousarray(self._places[1:].reshape(len(lines), len(self._separators)).T)
            lines, _ = self._take_block(lines, places, self._separators, blocks)
            if not len(lines):
                return blocks
        for bucket in self._buckets(lines, effort):
            if len(bucket) >= _MIN_LINES:
                effort.add_shape(_BLOCK_SHAPES)
            self._take_blocks(bucket, blocks)
        return blocks

    def _buckets(self, lines: Ints, effort: Effort) -> list[Ints]:
        """Lines that are probably of one shape: of as many delimiters, of one measurement and first key."""
        first, last = self._first[lines], self._last[lines]
        begins = self.begins[lines]
        place = self._places[first]
        name = self.words[place - 8] & _HIGH_BYTES[np.minimum(place - begins + 1, 8)]
        place = self._places[np.minimum(first + 1, last)]
        key = self.words[place - 8] & _HIGH_BYTES[np.minimum(place - begins + 1, 8)]
        widths = (last - first).astype(np.uint64)
        looks = (name * _MIX ^ key) * _MIX ^ widths
        heads = np.flatnonzero(looks[1:] != looks[:-1]) + 1
        heads = np.concatenate((_ZERO, heads))
        effort.check()
        head_looks = looks[heads].tolist()
        numbers = {look: number for number, look in enumerate(dict.fromkeys(head_looks))}
        bucket_of = list(map(numbers.__getitem__, head_looks))
        if len(numbers) == 1:
            return [lines]
        buckets = np.repeat(
            np.array(bucket_of, np.uint16 if len(numbers) < 1 << 16 else np.int64), np.diff(heads, append=len(lines))
        )
        effort.check()
        sizes = np.bincount(buckets)
        few = sizes < _MIN_LINES
        if few.any():  # all at once: there may be as many as lines
            odd = few[buckets]
            self.odd[lines[odd]] = True
            lines, buckets, sizes = lines[~odd], buckets[~odd], sizes[~few]
            if not len(lines):
                return []
        order = lines[np.argsort(buckets, kind="stable")]
        return np.split(order, np.cumsum(sizes)[:-1])

    def _take_blocks(self, lines: Ints, blocks: list[_Block]) -> None:
        """Make blocks of lines that look alike."""
        if len(lines) < _MIN_LINES:
            self.odd[lines] = True
            return
        first = self._first[lines]
        width = int(self._last[lines[0]] - first[0]) + 1
        at = first + np.arange(width)[:, None]
        kinds = self._kinds[at]
        alike = kinds == kinds[:, :1]
        places = self._places[at]
        separators = kinds[:, 0].tobytes()
        if not alike.all():
            same: Mask = alike.all(axis=0)
            self.odd[lines[~same]] = True
            lines, places = lines[same], places[:, same]
        for _ in range(_MAX_SPLITS):
            if len(lines) < _MIN_LINES:
                break
            lines, places = self._take_block(lines, places, separators, blocks)
        self.odd[lines] = True

    def _take_block(self, lines: Ints, places: Ints, separators: bytes, blocks: list[_Block]) -> tuple[Ints, Ints]:
        """Make a block of the lines that are like the first: the other lines, and the places of their delimiters.

        `places` are by delimiter and then by line; all lines have these `separators`.
        """
        layout = _find_layout(separators)
        if layout is None:
            self.odd[lines] = True
            return lines[:0], places[:, :0]
        timed, fields = layout.timed, layout.fields
        text = self.text
        starts = places[layout.before] + 1
        ends = places[layout.behind]
        types = _TYPE.take(_FIRST.take(text[starts]) + _LAST.take(text[ends - 1]))
        if fields > timed:
            types[timed:fields] = _TAG_TYPE.take(ends[timed:fields] == starts[timed:fields])
        template = types[:, 0]
        line = text[self.begins[lines[0]] : self.ends[lines[0]]].tobytes()
        front = (places[:, 0] - self.begins[lines[0]]).tolist()
        keys = [line[: front[0]]]
        keys += [line[front[at - 1] + 1 : front[at]] for at in layout.before[timed:].tolist()]
        shape = None
        if template.all() and (not timed or template[0] == _FLOAT):
            shape = _find_shape(separators, tuple(keys), template[timed:].tobytes(), timed)
        if shape is None:
            self.odd[lines[0]] = True
            return lines[1:], places[:, 1:]
        same: Mask = (types == template[:, None]).all(axis=0)
        words = self.words[places[shape.slots] - shape.back]
        words &= shape.masks
        same &= (words == shape.words).all(axis=0)
        if self._quotes is not None:
            same &= self._quotes[lines] == 2 * shape.texts
        starts += shape.skip
        ends -= shape.drop
        for at in shape.bools:
            word = self.words[starts[at]] & _LOW_BYTES[np.minimum(ends[at] - starts[at], 8)]
            same &= np.isin(word, _BOOLS)
        if same.all():
            blocks.append(_Block(shape, lines, starts, ends))
            return lines[:0], places[:, :0]
        if np.count_nonzero(same) >= _MIN_LINES:
            blocks.append(_Block(shape, lines[same], starts[:, same], ends[:, same]))
        else:
            self.odd[lines[same]] = True
            if not same[0]:
                self.odd[lines[0]] = same[0] = True
        return lines[~same], places[:, ~same]


# From places to MessagePack


def _encode(table: _Table, blocks: list[_Block]) -> list[tuple[bytes, int]]:
    """The columnar maps of blocks, with the number of their rows. Raises `_Odd` if numbers of some lines are none."""
    blocks = [block for block in blocks if len(block.lines)]
    columns: list[list[bytes | memoryview]] = [[b""] * len(block.shape.types) for block in blocks]
    cells: list[list[tuple[int, int]]] = [[] for _ in range(6)]  # by type: block and column
    for number, block in enumerate(blocks):
        for column, type_ in enumerate(block.shape.types):
            cells[type_].append((number, column))
    for type_ in (_FLOAT, _INTEGER, _UNSIGNED):
        if cells[type_]:
            numbers = _cast(table, blocks, cells[type_], type_)
            marker, dtype, _ = _NUMBERS[type_]
            packed = np.empty(len(numbers), [("marker", "u1"), ("value", dtype)])
            packed["marker"] = marker
            packed["value"] = numbers
            view = packed.view(np.uint8).data
            at = 0
            for number, column in cells[type_]:
                end = at + 9 * len(blocks[number].lines)
                columns[number][column] = view[at:end]
                at = end
    if cells[_TEXT]:
        texts, ends = _gather_texts(table, *_places(blocks, cells[_TEXT]))
        at = row = 0
        for number, column in cells[_TEXT]:
            row += len(blocks[number].lines)
            end = int(ends[row - 1])
            columns[number][column] = texts[at:end]
            at = end
    for number, column in cells[_BOOL]:
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


def _places(blocks: list[_Block], cells: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Where the values of these columns begin and end, one column behind the other."""
    if len(cells) == 1:
        number, column = cells[0]
        return blocks[number].starts[column], blocks[number].ends[column]
    starts = np.concatenate([blocks[number].starts[column] for number, column in cells])
    return starts, np.concatenate([blocks[number].ends[column] for number, column in cells])


# By type: the marker of its values, their bytes, and the Arrow type that they are cast to.
_NUMBERS: Final = {
    _FLOAT: (0xCB, ">f8", pa.float64()),
    _INTEGER: (0xD3, ">i8", pa.int64()),
    _UNSIGNED: (0xCF, ">u8", pa.uint64()),
}


def _cast(table: _Table, blocks: list[_Block], cells: list[tuple[int, int]], type_: int) -> npt.NDArray[Any]:
    """The numbers of some columns, one behind the other.

    Arrow takes a few spellings that the grammar does not: none begins and ends as numbers do here, but hexadecimal
    integers. It rounds floats correctly, and makes those too large for one infinite.
    """
    starts, ends = _places(blocks, cells)
    if type_ != _FLOAT and ((table.text[starts + 1] | 0x20) == _X).any():
        raise _Odd(_not_numbers(table, blocks, cells, type_))
    sizes = ends - starts
    views = np.empty((len(starts), 2), np.uint64)
    unsigned = starts.astype(np.uint64)
    if sizes.min() > _INLINE_BYTES:
        views[:, 0] = sizes
        views[:, 1] = unsigned << 32
    else:
        short = np.minimum(sizes, _INLINE_BYTES)
        views[:, 0] = sizes
        views[:, 0] |= (table.words[starts] & _LOW_BYTES[np.minimum(short, 4)]) << 32
        views[:, 1] = table.words[starts + 4] & _LOW_BYTES[np.maximum(short - 4, 0)]
        long = sizes > _INLINE_BYTES
        np.copyto(views[:, 1], unsigned << 32, where=long)
    array = pa.Array.from_buffers(pa.string_view(), len(starts), [None, pa.py_buffer(views), pa.py_buffer(table.text)])
    try:
        cast = pc.cast(array, _NUMBERS[type_][2])
    except pa.ArrowInvalid:
        raise _Odd(_not_numbers(table, blocks, cells, type_)) from None
    numbers: npt.NDArray[Any] = cast.to_numpy()
    if type_ == _FLOAT and not np.isfinite(numbers).all():
        raise _Odd(_not_numbers(table, blocks, cells, type_))
    return numbers


_SPELLINGS: Final = {
    _FLOAT: re.compile(rb"-?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?").fullmatch,
    _INTEGER: re.compile(rb"-?[0-9]{1,18}").fullmatch,
    _UNSIGNED: re.compile(rb"[0-9]{1,19}").fullmatch,
}


def _not_numbers(table: _Table, blocks: list[_Block], cells: list[tuple[int, int]], type_: int) -> Ints:
    """The lines of which some value may be no number of this type; if that is none, all of them. Slow, and rare."""
    is_spelled = _SPELLINGS[type_]
    text = table.text.tobytes()
    odd: set[int] = set()
    for number, column in cells:
        block = blocks[number]
        for line, start, end in zip(
            block.lines.tolist(), block.starts[column].tolist(), block.ends[column].tolist(), strict=True
        ):
            value = text[start:end]
            if not is_spelled(value) or (type_ == _FLOAT and float(value) in _INFINITE):
                odd.add(line)
    return np.array(sorted(odd)) if odd else np.concatenate([blocks[number].lines for number, _ in cells])


def _gather_texts(table: _Table, starts: Ints, ends: Ints) -> tuple[memoryview, Ints]:
    """Texts as MessagePack strings, one behind the other, and where each ends."""
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
    behind = np.cumsum(sizes)
    gathered = text[np.repeat(ends - behind, sizes) + np.arange(int(behind[-1]))]
    return gathered.data, behind
