"""Layouts and shapes of lines. A layout follows from a line's delimiters alone, a shape also from its keys and types.

Clients send the same shapes over and over, so both are remembered, within bounds. These caches, and the one in `rows`,
are the only state of the package, shared by all threads of the process; they change no result.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from arcpipe.codec.columns import (
    MAX_COLUMNS,
    TIME,
    array_header,
    check_column_name,
    check_measurement,
    field_column_names,
    map_header,
    pack_str,
)
from arcpipe.errors import BadPayload

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]

# Types of values; NONE where there is no value.
NONE, FLOAT, INTEGER, UNSIGNED, TEXT, BOOL = range(6)

_EQUALS: Final = ord("=")

# The delimiters of a line, in order: measurement, tags, fields, time.
_STRUCTURE: Final = re.compile(rb"((?:,=)*+) =(?:,=)*+( ?+)\n").fullmatch


class LineLayout(NamedTuple):
    """The values of a line by its delimiters: first the time, if there is one, then tags, then fields."""

    timed: bool  # there is a time
    fields: int  # the index of the first field among the values
    before: Ints  # by value: the index of the delimiter before it
    after: Ints  # by value: the index of the delimiter after it
    slots: tuple[int, ...]  # by value with a key: the index of the delimiter before it


def _make_layout(separators: bytes) -> LineLayout | None:
    found = _STRUCTURE(separators)
    if found is None:
        return None
    timed = found[2] == b" "
    slots = [at for at, char in enumerate(separators) if char == _EQUALS]
    before = np.array([len(separators) - 2] * timed + slots)
    return LineLayout(timed, timed + len(found[1]) // 2, before, before + 1, tuple(slots))


_remember_layout: Final = lru_cache(maxsize=256)(_make_layout)  # 2 MB at most
_MAX_SEPARATORS: Final = 1024  # delimiters of a remembered layout: larger ones are rare


def find_layout(separators: bytes) -> LineLayout | None:
    """Return the layout of a line with these delimiters; None if no line has them."""
    return (_remember_layout if len(separators) <= _MAX_SEPARATORS else _make_layout)(separators)


HIGH_BYTES: Final[Words] = np.array([((1 << 64) - 1) ^ ((1 << 8 * (8 - count)) - 1) for count in range(9)], np.uint64)
"""Masks that keep the last bytes of a little-endian word, by the number of these bytes."""


class LineShape:
    """Lines with the same delimiters, keys and types: a proof of their keys, and their columnar map without values.

    Attributes:
        slots, back, masks, words: the proof. The eight bytes at `back` bytes before delimiter number `slots` are
            `words`, where `masks` keeps the bytes that are compared.
        head, tail: the columnar map before its columns and after them.
        separators: the delimiters.
        before: by column: the number of the delimiter before its value.
        fields: the number of the first column that is a field.
        looks: by column: the type that its values seem to have.
        size: bytes of delimiters, keys and types.
        columns, types: of each column: its name, encoded, and the type of its values.
        texts: the number of fields that are strings.
        bools: the columns that are booleans.
        skip, drop: by column: the bytes at the start and at the end of a value that are not its content (quotes, and
            the suffixes of integers).
    """

    __slots__ = (
        "back",
        "before",
        "bools",
        "columns",
        "drop",
        "fields",
        "head",
        "looks",
        "masks",
        "separators",
        "size",
        "skip",
        "slots",
        "tail",
        "texts",
        "timed",
        "types",
        "words",
    )

    def __init__(self, separators: bytes, keys: Sequence[bytes], types: Sequence[int], timed: bool) -> None:
        """Derive everything from the template line.

        Args:
            keys: the measurement and all keys.
            types: those of the values after the keys; tags are text.

        Raises:
            BadPayload: a name is not allowed or there twice.
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
                map_header(2 + bool(tags) + (UNSIGNED in types)),
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
            self.types.insert(0, INTEGER)
        tail = []
        if tags:
            tail += [b"\xa4tags", array_header(len(tags)), *map(pack_str, tags)]
        unsigned = [name for name, type_ in zip(columns, types, strict=True) if type_ == UNSIGNED]
        if unsigned:
            tail += [b"\xa5types", map_header(len(unsigned))]
            for name in unsigned:
                tail += [pack_str(name), pack_str("u64")]
        self.tail = b"".join(tail)
        self.texts = sum(type_ == TEXT for type_ in types[count:])

        self._prove_keys(separators, keys)
        self.separators = separators
        self.size = len(separators) + len(types) + sum(map(len, keys))
        layout = find_layout(separators)
        assert layout is not None
        self.before = layout.before[:, None]
        self.fields = layout.fields
        self.looks = np.array([FLOAT] * timed + list(types), np.uint8)[:, None]
        self.timed = timed
        self.bools = [at for at, type_ in enumerate(self.types) if type_ == BOOL]
        quotes = [0] * (timed + count) + [type_ == TEXT for type_ in types[count:]]
        suffixes = [0] * timed + [type_ in (INTEGER, UNSIGNED) for type_ in types]
        self.skip = np.array(quotes, np.int64)[:, None]
        self.drop = self.skip + np.array(suffixes, np.int64)[:, None]

    def _prove_keys(self, separators: bytes, keys: Sequence[bytes]) -> None:
        """Cut each key, with the delimiter before it, into words of eight bytes, from its end to its start."""
        slots, back, masks, words = [], [], [], []
        for slot, key in zip((0, *(at for at, char in enumerate(separators) if char == _EQUALS)), keys, strict=True):
            text = separators[slot - 1 : slot or None] + key  # the delimiter before the measurement is a newline
            for end in range(len(text), 0, -8):
                piece = text[max(end - 8, 0) : end]
                slots.append(slot)
                back.append(len(text) - end + 8)
                masks.append(HIGH_BYTES[len(piece)])
                words.append(int.from_bytes(piece.rjust(8, b"\0"), "little"))
        self.slots = np.array(slots)[:, None]
        self.back = np.array(back)[:, None]
        self.masks = np.array(masks, np.uint64)[:, None]
        self.words = np.array(words, np.uint64)[:, None]


_shapes: Final[dict[tuple[bytes, ...], LineShape | None]] = {}
"""Shapes seen before, by separators, types and keys; None for a shape with an unusual name."""
_MAX_SHAPES: Final = 256  # remembered shapes: they take 25 MB at most
_MAX_SHAPE_BYTES: Final = 2048  # separators, types and keys of a remembered shape: larger ones are rare


def find_shape(separators: bytes, keys: tuple[bytes, ...], types: bytes, timed: bool) -> LineShape | None:
    """Return the shape of a template line, as `LineShape` takes it; None if it has an unusual name."""
    identity = (separators, types, *keys)
    try:
        return _shapes[identity]
    except KeyError:
        pass
    shape: LineShape | None
    try:
        shape = LineShape(separators, keys, types, timed)
    except BadPayload:
        shape = None
    if sum(map(len, identity)) <= _MAX_SHAPE_BYTES:  # as `LineShape.size`
        if len(_shapes) >= _MAX_SHAPES:
            _shapes.clear()
            _looks.clear()
        _shapes[identity] = shape
    return shape


_looks: Final[dict[int, LineShape]] = {}
"""Shapes seen before, by the look of their lines, which may be that of others, too."""


def recall_shape(look: int) -> LineShape | None:
    """Return the shape that lines of this look had lately, if they had any."""
    return _looks.get(look)


def remember_look(look: int, shape: LineShape) -> None:
    """Remember the shape of lines of this look."""
    if shape.size <= _MAX_SHAPE_BYTES:
        if len(_looks) >= _MAX_SHAPES:
            _looks.clear()
        _looks[look] = shape
