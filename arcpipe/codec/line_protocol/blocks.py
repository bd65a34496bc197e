"""The table of a piece of the body: where its lines and their delimiters are, and which lines are of one shape.

A line that is in no block is odd: it is left to the line reader.
"""

from __future__ import annotations

from itertools import compress
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from arcpipe.codec.effort import Effort
from arcpipe.codec.line_protocol.grammar import Escapes
from arcpipe.codec.line_protocol.hidden import (
    CHARACTER,
    FIRST_STANDIN,
    STANDIN_FOR_EQUALS,
    drop_carriage_returns,
    hide_escapes,
)
from arcpipe.codec.line_protocol.looks import TAG_TYPE, look_at
from arcpipe.codec.line_protocol.shapes import (
    FLOAT,
    HIGH_BYTES,
    Ints,
    LineShape,
    Words,
    find_layout,
    find_shape,
    recall_shape,
    remember_look,
)

Bytes: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]

# Classes of bytes among which the delimiters of a line are found.
_OTHER, _DELIMITER, _QUOTE, _CONTROL, _STANDIN = range(5)
_CLASS: Final = np.zeros(256, np.uint8)
_CLASS[:0x20] = _CONTROL
_CLASS[0xF8:0xFC] = _STANDIN
_CLASS[list(b"\n ,=")] = _DELIMITER
_CLASS[list(b'"')] = _QUOTE

LOW_BYTES: Final[Words] = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""Masks that keep the first bytes of a little-endian word, by the number of these bytes."""

# The spellings of booleans as words.
_BOOLS: Final[Words] = np.array(
    [
        int.from_bytes(text, "little")
        for text in (b"t", b"T", b"true", b"True", b"TRUE", b"f", b"F", b"false", b"False", b"FALSE")
    ],
    np.uint64,
)

# Bytes around the copy of a piece: room for the words of the longest possible key, and for a word at its end.
_ROOM_BEFORE: Final = 512
_ROOM_AFTER: Final = 16

MIN_LINES: Final = 8
"""Lines from which on a block pays, however short they are: a smaller one costs more than reading them one by one."""
_FEWEST_LINES: Final = 3  # lines of the smallest block of longer lines
_MIN_COST: Final = 100  # delimiters, and four for each line, from which on a block of fewer than MIN_LINES pays
_BLOCK_SHAPES: Final = 4  # shapes that a block counts as: the line reader takes as long for these
_MAX_SPLITS: Final = 8  # blocks made of lines that only look alike, before the other lines are odd
_MAX_LINE_BYTES: Final = 0xFFFF  # longer lines are odd: the header of any text has at most three bytes
_MAX_UNIFORM: Final = 1024  # delimiters of a line up to which the piece is tested for lines that are all alike
_NEWLINE: Final = ord("\n")

_ZERO: Final[Ints] = np.zeros(1, np.int64)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, odd: spreads what it multiplies


class Block(NamedTuple):
    """Lines of one shape. `starts` and `ends` are the places of each value, by column and then by line."""

    shape: LineShape
    lines: Ints
    starts: Ints
    ends: Ints

    def without(self, gone: Mask) -> Block:
        kept = ~gone[self.lines]
        return Block(self.shape, self.lines[kept], self.starts[:, kept], self.ends[:, kept])


def _separators_of_all(kinds: Bytes) -> bytes | None:
    """Return the kinds of a line, if all lines have the same ones and these are delimiters of a line."""
    line, newline, _ = kinds[:_MAX_UNIFORM].tobytes().partition(b"\n")
    width = len(line) + 1
    if not newline or len(kinds) % width or find_layout(line + newline) is None:
        return None
    return line + newline if (kinds.reshape(-1, width) == kinds[:width]).all() else None


class LineTable:
    """The lines of a piece and their delimiters, by their places, which count from the start of `text`."""

    __slots__ = (
        "_piece",
        "_separators",
        "_skipped",
        "begins",
        "ends",
        "first",
        "kinds",
        "last",
        "odd",
        "places",
        "quotes",
        "single",
        "text",
        "words",
    )

    def __init__(self, piece: bytes, escapes: Escapes, effort: Effort) -> None:
        self._piece = piece
        if b"\r" in piece:
            piece = drop_carriage_returns(piece)
        escaped = b"\\" in piece
        if escaped:
            piece = hide_escapes(piece, escapes, effort)
        ending = b"" if piece.endswith(b"\n") else b"\n"
        padded = bytearray(b"".join((b"\n".rjust(_ROOM_BEFORE, b"\0"), piece, ending, bytes(_ROOM_AFTER))))
        self.text: Bytes = np.frombuffer(padded, np.uint8)
        """A copy of the piece; the headers of texts are written into it at the end."""
        self.words: Words = np.ndarray((len(padded) - 7,), "<u8", padded, 0, (1,))
        """The eight bytes at every place, aligned or not."""
        seen = self.text[_ROOM_BEFORE - 1 : -_ROOM_AFTER]
        mask = seen <= ord(",")
        mask |= seen == ord("=")
        if escaped:
            mask |= seen >= FIRST_STANDIN
        effort.check()
        places = np.flatnonzero(mask)
        places += _ROOM_BEFORE - 1
        kinds = self.text[places]
        self.quotes: Ints | None = None
        self._separators = _separators_of_all(kinds[1:])
        """The delimiters of each line, if all lines have the same ones."""
        if self._separators:
            width = len(self._separators)
            newlines = np.arange(0, len(kinds), width)
            self.begins, self.ends = places[:-1:width] + 1, places[width::width]
            self.odd = self.ends - self.begins > _MAX_LINE_BYTES
        else:
            places, kinds, newlines = self._find_lines(piece, places, kinds, effort)
        self.places, self.kinds = places, kinds
        self.first, self.last = newlines[:-1] + 1, newlines[1:]
        self.single: Mask = np.zeros(len(self.odd), np.bool_)
        """Lines that are odd because few others are like them."""
        starts = self.text[self.begins]
        self._skipped: Mask = (starts == _NEWLINE) | (starts == ord("#"))
        self.odd[self._skipped] = False

    def _find_lines(self, piece: bytes, places: Ints, kinds: Bytes, effort: Effort) -> tuple[Ints, Bytes, Ints]:
        """Find the lines, and drop all bytes but delimiters: (places left, their kinds, indices of newlines)."""
        newlines = np.flatnonzero(kinds == _NEWLINE)
        self.begins, self.ends = places[newlines[:-1]] + 1, places[newlines[1:]]
        self.odd = self.ends - self.begins > _MAX_LINE_BYTES
        classes = _CLASS.take(kinds)
        keep = classes == _DELIMITER
        if keep.all():
            return places, kinds, newlines
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
        if self.quotes is not None and b"\\" in piece:  # it may escape a quote
            lines = np.searchsorted(self.ends, np.flatnonzero(self.text == ord("\\")))
            self.odd[lines[self.quotes[lines] > 0]] = True
        return places, kinds, newlines

    def _find_strings(self, quotes: Mask, newlines: Ints) -> Mask:
        """Mark what is between the quotes of a line; a line with an odd number of quotes is odd."""
        before: Ints = np.cumsum(quotes)
        at_newlines = before[newlines]
        self.quotes = np.diff(at_newlines)
        unbalanced = (self.quotes & 1).astype(np.bool_)
        if unbalanced.any():
            self.odd |= unbalanced
            before[1:] -= np.repeat(at_newlines[:-1], np.diff(newlines))
        return (before & 1).astype(np.bool_)

    def _unescape(self, standins: Ints, first_delimiters: Ints) -> None:
        """Put the escaped characters back in the places of their stand-ins; none of them is a delimiter now.

        In strings other characters are escaped, and in measurements not `=`: such lines are odd.
        """
        lines = np.searchsorted(self.ends, standins)
        if self.quotes is not None:
            self.odd[lines[self.quotes[lines] > 0]] = True
        found = self.text[standins]
        in_measurement = standins < first_delimiters[lines]
        self.odd[lines[in_measurement & (found == STANDIN_FOR_EQUALS)]] = True
        self.text[standins] = CHARACTER.take(found)

    def find_line_ends(self) -> Ints:
        """Find where the lines end in the piece itself, each after its newline."""
        ends = np.flatnonzero(np.frombuffer(self._piece, np.uint8) == _NEWLINE) + 1
        return ends if len(ends) == len(self.odd) else np.append(ends, len(self._piece))

    def blocks(self, effort: Effort) -> list[Block]:
        """Sort the lines into blocks by shape; those in no block are odd from now on."""
        blocks: list[Block] = []
        lines = np.flatnonzero(~(self.odd | self._skipped))
        if not len(lines):
            return blocks
        if self._separators and len(lines) == len(self.odd):
            places = np.ascontiguousarray(self.places[1:].reshape(len(lines), len(self._separators)).T)
            lines, _ = self._take_block(lines, places, self._separators, blocks, MIN_LINES)
            if not len(lines):
                return blocks
        for look, bucket in self._buckets(lines, effort):
            is_few = len(bucket) < MIN_LINES
            effort.add_shape(1 if is_few else _BLOCK_SHAPES)
            shape = recall_shape(look)
            if shape is not None and self._take_known(bucket, shape, blocks):
                continue
            before = len(blocks)
            self._take_blocks(bucket, blocks)
            if len(blocks) > before:
                remember_look(look, blocks[before].shape)
            elif is_few:
                effort.take_back(1)
        return blocks

    def _buckets(self, lines: Ints, effort: Effort) -> list[tuple[int, Ints]]:
        """Bucket lines that are probably of one shape: the same number of delimiters, measurement and first key.

        Returns the lines of each bucket, after what they have in common.
        """
        first, last = self.first[lines], self.last[lines]
        begins = self.begins[lines]
        place = self.places[first]
        name = self.words[place - 8] & HIGH_BYTES[np.minimum(place - begins + 1, 8)]
        place = self.places[np.minimum(first + 1, last)]
        key = self.words[place - 8] & HIGH_BYTES[np.minimum(place - begins + 1, 8)]
        widths = (last - first).astype(np.uint64)
        looks = (name * _MIX ^ key) * _MIX ^ widths
        heads = np.flatnonzero(looks[1:] != looks[:-1]) + 1
        heads = np.concatenate((_ZERO, heads))
        effort.check()
        head_looks = looks[heads].tolist()
        numbers = {look: number for number, look in enumerate(dict.fromkeys(head_looks))}
        bucket_of = list(map(numbers.__getitem__, head_looks))
        if len(numbers) == 1 and len(lines) >= MIN_LINES:
            return [(head_looks[0], lines)]
        buckets = np.repeat(
            np.array(bucket_of, np.uint16 if len(numbers) < 1 << 16 else np.int64), np.diff(heads, append=len(lines))
        )
        effort.check()
        sizes = np.bincount(buckets)
        names = list(numbers)
        few = sizes < MIN_LINES
        few &= (sizes < _FEWEST_LINES) | (np.bincount(buckets, widths) + 4 * sizes < _MIN_COST)
        if few.any():  # all at once: there may be as many as lines
            odd = few[buckets]
            self._leave(lines[odd])
            lines, buckets, sizes = lines[~odd], buckets[~odd], sizes[~few]
            names = list(compress(names, (~few).tolist()))
            if not len(lines):
                return []
        order = lines[np.argsort(buckets, kind="stable")]
        stops = np.cumsum(sizes).tolist()
        return [(name, order[start:stop]) for name, start, stop in zip(names, (0, *stops), stops, strict=False)]

    def _take_known(self, lines: Ints, shape: LineShape, blocks: list[Block]) -> bool:
        """Make a block of lines if all of them are of this shape; tell whether they are."""
        separators = shape.separators
        first = self.first[lines]
        if int(first[-1]) + len(separators) > len(self.kinds):
            return False
        found: npt.NDArray[Any] = np.ndarray(
            (len(self.kinds) - len(separators) + 1,), f"V{len(separators)}", self.kinds, 0, (1,)
        )
        if found[first].tobytes() != separators * len(lines):
            return False
        places = self.places[shape.slots + first]
        places -= shape.back
        words = self.words[places]
        words &= shape.masks
        if (words != shape.words).any():
            return False
        at = shape.before + first
        starts = self.places[at]
        at += 1
        ends = self.places[at]
        starts += 1
        types = look_at(self.text, starts, ends)
        tags = slice(shape.timed, shape.fields)
        types[tags] = TAG_TYPE.take(ends[tags] == starts[tags])
        if (types != shape.looks).any():
            return False
        if self.quotes is not None and (self.quotes[lines] != 2 * shape.texts).any():
            return False
        starts += shape.skip
        ends -= shape.drop
        if not all(self._are_bools(starts[column], ends[column]).all() for column in shape.bools):
            return False
        blocks.append(Block(shape, lines, starts, ends))
        return True

    def _are_bools(self, starts: Ints, ends: Ints) -> Mask:
        words = self.words[starts] & LOW_BYTES[np.minimum(ends - starts, 8)]
        return np.isin(words, _BOOLS)

    def _take_blocks(self, lines: Ints, blocks: list[Block]) -> None:
        """Make blocks of lines that look alike."""
        least = min(MIN_LINES, len(lines))
        first = self.first[lines]
        width = int(self.last[lines[0]] - first[0]) + 1
        at = first + np.arange(width)[:, None]
        kinds = self.kinds[at]
        alike = kinds == kinds[:, :1]
        places = self.places[at]
        separators = kinds[:, 0].tobytes()
        if not alike.all():
            same: Mask = alike.all(axis=0)
            self._leave(lines[~same])
            lines, places = lines[same], places[:, same]
        for _ in range(_MAX_SPLITS):
            if len(lines) < least:
                break
            lines, places = self._take_block(lines, places, separators, blocks, least)
        self._leave(lines)

    def _leave(self, lines: Ints) -> None:
        self.odd[lines] = True
        self.single[lines] = True

    def _take_block(
        self, lines: Ints, places: Ints, separators: bytes, blocks: list[Block], least: int
    ) -> tuple[Ints, Ints]:
        """Make a block of the lines that are like the first: the other lines, and the places of their delimiters.

        `places` are by delimiter and then by line; all lines have these `separators`.
        """
        layout = find_layout(separators)
        if layout is None:
            self.odd[lines] = True
            return lines[:0], places[:, :0]
        timed, fields = layout.timed, layout.fields
        text = self.text
        starts = places[layout.before] + 1
        ends = places[layout.after]
        types = look_at(text, starts, ends)
        if fields > timed:
            types[timed:fields] = TAG_TYPE.take(ends[timed:fields] == starts[timed:fields])
        template = types[:, 0]
        line = text[self.begins[lines[0]] : self.ends[lines[0]]].tobytes()
        front = (places[:, 0] - self.begins[lines[0]]).tolist()
        keys = [line[: front[0]]]
        keys += [line[front[at - 1] + 1 : front[at]] for at in layout.before[timed:].tolist()]
        shape = None
        if template.all() and (not timed or template[0] == FLOAT):
            shape = find_shape(separators, tuple(keys), template[timed:].tobytes(), timed)
        if shape is None:
            self.odd[lines[0]] = True
            return lines[1:], places[:, 1:]
        same: Mask = (types == template[:, None]).all(axis=0)
        words = self.words[places[shape.slots[:, 0]] - shape.back]
        words &= shape.masks
        same &= (words == shape.words).all(axis=0)
        if self.quotes is not None:
            same &= self.quotes[lines] == 2 * shape.texts
        starts += shape.skip
        ends -= shape.drop
        for column in shape.bools:
            same &= self._are_bools(starts[column], ends[column])
        if same.all():
            blocks.append(Block(shape, lines, starts, ends))
            return lines[:0], places[:, :0]
        if np.count_nonzero(same) >= least:
            blocks.append(Block(shape, lines[same], starts[:, same], ends[:, same]))
        else:
            self._leave(lines[same])
            if not same[0]:
                self.odd[lines[0]] = same[0] = True
        return lines[~same], places[:, ~same]
