"""Labels of version 1 in the form that all senders give them: found, proven and made JSON in one pass.

    labels = read_usual(buffer, starts, ends, promote, check)

The usual form is: the labels stand first in their series, each has a name and then a value, lengths take one byte, the
metric's name is the first, and names go up. Names that go up are no name twice, so nothing is left to prove.

All series are read in step, as in `protobuf.scan`: the first label of each, then the second, and so on. A label of
protobuf has four bytes before its name and two before its value; JSON needs as many, `","` and `":"`, once the name has
moved by one byte. So each object is made where it stands, and copied once. Reading eight bytes at a place costs six
times as much as reading one; that is why single bytes are read and written here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from arcpipe.codec.effort import Check
from arcpipe.codec.json_texts import bytes_of, is_bare
from arcpipe.codec.protobuf.buffer import LOW_BYTES, Buffer, Ints, Words
from arcpipe.codec.protobuf.fields import Mask
from arcpipe.codec.protobuf.scan import Fields, scan
from arcpipe.codec.remote_write.labels import METRIC_NAME
from arcpipe.errors import BadPayload

_NAME, _VALUE = 0x0A, 0x12  # tags of the fields of a label; that of a series' labels is the same as that of a name
_SHORT: Final = 0x80  # lengths below it take one byte
_MOST_LABELS: Final = 128  # of a series; each is a step
_METRIC: Final = np.uint64(int.from_bytes(METRIC_NAME, "little"))
_QUOTE, _COMMA, _COLON, _OPEN, _CLOSE = b'",:{}'


class UsualLabels(NamedTuple):
    """A value per series, and the fields after the labels."""

    metric: pa.Array
    labels: pa.Array
    promoted: tuple[pa.Array, ...]
    rest: Fields


class _Unusual(Exception):
    """Some series is not of the usual form."""


def read_usual(buffer: Buffer, starts: Ints, ends: Ints, promote: tuple[str, ...], check: Check) -> UsualLabels | None:
    """Read the labels of some series, which stand one after the other.

    Returns:
        None if a series is not of the usual form; then the bytes are as they came.
    """
    try:
        return _Reader(buffer, starts, ends, tuple(name.encode() for name in promote)).read(check)
    except _Unusual:
        buffer.restore(int(starts[0]), int(ends[-1]) + len('"}'))
        return None


class _Reader:
    """The labels of some series. `place` is where the next label of each series that has more begins."""

    def __init__(self, buffer: Buffer, starts: Ints, ends: Ints, promote: tuple[bytes, ...]) -> None:
        self._buffer = buffer
        text = buffer.text
        self._bytes = (text, text[1:], text[2:], text[3:])  # the first four at each place
        self._starts = starts
        self._ends = ends
        self._rows = np.arange(len(starts))
        self._place, self._stop = starts, ends
        self._after = starts.copy()  # where the labels end
        self._opens = starts.copy()  # where the JSON begins
        self._members = 0
        self._promote = promote
        self._promoted: list[list[tuple[Ints, Ints, Ints]]] = [[] for _ in promote]  # series and place of each value

    def read(self, check: Check) -> UsualLabels:
        """Read all of them. Raises _Unusual."""
        metric = self._read_metric()
        names: tuple[Ints, Ints, Words] | None = None
        for _ in range(_MOST_LABELS):
            names = self._keep_going(names)
            if not len(self._place):
                break
            names = self._step(names)
            check()
        else:
            raise _Unusual
        rest = scan(self._buffer, self._after, self._ends, check)
        if (rest.number == 1).any():
            raise _Unusual
        metric = self._texts(*metric)
        promoted = tuple(self._gather(found) for found in self._promoted)
        check()
        return UsualLabels(metric, self._json(), promoted, rest)

    def _find(self) -> tuple[Ints, Ints, Ints]:
        """Find the label at each place: where its name begins and ends, and where its value ends. Raises _Unusual."""
        text, second, third, fourth = self._bytes
        place = self._place
        size, name_size = second[place], fourth[place]
        end = place + size
        end += 2
        name = place + 4
        name_end = name + name_size
        usual = (text[place] == _NAME) & (size < _SHORT) & (third[place] == _NAME) & (name_size > 0)
        usual &= name_size < _SHORT
        if not (usual & (name_end + 2 <= end) & (end <= self._stop)).all():
            raise _Unusual
        value_size = second[name_end]
        usual = (text[name_end] == _VALUE) & (value_size < _SHORT) & (name_end + value_size + 2 == end)
        if not usual.all():
            raise _Unusual
        return name, name_end, end

    def _read_metric(self) -> tuple[Ints, Ints]:
        """Read the first label of each series, which is the metric's name: the place of its value."""
        name, name_end, end = self._find()
        if not (name_end - name == len(METRIC_NAME)).all() or not (self._buffer.words[name] == _METRIC).all():
            raise _Unusual
        for found, promoted in zip(self._promoted, self._promote, strict=True):
            if promoted == METRIC_NAME:
                found.append((self._rows, name_end + 2, end))
        self._place = end
        self._opens = end.copy()
        return name_end + 2, end

    def _keep_going(self, names: tuple[Ints, Ints, Words] | None) -> tuple[Ints, Ints, Words] | None:
        """Leave out the series that have no more labels."""
        going: Mask = (self._bytes[0][self._place] == _NAME) & (self._place < self._stop)
        if going.all():
            return names
        self._after[self._rows[~going]] = self._place[~going]
        self._rows, self._place, self._stop = self._rows[going], self._place[going], self._stop[going]
        return names and (names[0][going], names[1][going], names[2][going])

    def _step(self, before: tuple[Ints, Ints, Words] | None) -> tuple[Ints, Ints, Words]:
        """Read a label of each series, and make it a member of the JSON object."""
        name, name_end, end = self._find()
        place, size = self._place, name_end - name
        word = self._buffer.words[name]
        first = (word & LOW_BYTES[np.minimum(size, 8)]).byteswap()
        if before is None:
            self._check_first(first, size)
        else:
            self._check_order(before, (name, name_end, first))
        for found, promoted in zip(self._promoted, self._promote, strict=True):
            same = np.flatnonzero(self._are(promoted, name, size))
            if len(same):
                found.append((self._rows[same], name_end[same] + 2, end[same]))
        names = name.copy(), name_end.copy(), first  # of bytes that are overwritten below; kept for `_check_order`
        text, second, third, _ = self._bytes
        if before is None:
            second[place] = _OPEN
            self._opens[self._rows] = place + 1
        else:
            text[place] = _QUOTE
            second[place] = _COMMA
        third[place] = _QUOTE
        self._move(name, size, word)
        text[name_end - 1] = _QUOTE
        text[name_end] = _COLON
        second[name_end] = _QUOTE
        self._members += len(place)
        self._place = end
        return names

    def _move(self, name: Ints, size: Ints, word: Words) -> None:
        """Move each name by one byte towards the front."""
        words = self._buffer.words
        while True:
            kept = ~LOW_BYTES[np.minimum(size, 8)]
            at = name - 1
            words[at] = (word & ~kept) | (words[at] & kept)
            more = np.flatnonzero(size > 8)
            if not len(more):
                return
            name, size = name[more] + 8, size[more] - 8
            word = words[name]

    def _check_first(self, first: Words, size: Ints) -> None:
        """Check that no second label is called as the metric's."""
        if ((first == _METRIC.byteswap()) & (size == len(METRIC_NAME))).any():
            raise _Unusual

    def _check_order(self, before: tuple[Ints, Ints, Words], after: tuple[Ints, Ints, Words]) -> None:
        """Check that each name comes after the one before it, of which the bytes have moved."""
        up = before[2] < after[2]
        if up.all():
            return
        if (before[2] > after[2]).any():
            raise _Unusual
        for row in np.flatnonzero(~up).tolist():
            left, right = (
                self._buffer.slice(int(names[0][row]) - moved, int(names[1][row]) - moved)
                for names, moved in ((before, 1), (after, 0))
            )
            if left >= right:
                raise _Unusual

    def _are(self, wanted: bytes, name: Ints, size: Ints) -> Mask:
        same: Mask = size == len(wanted)
        for at, byte in enumerate(wanted):
            if not same.any():
                break
            same &= self._bytes[0][name + at] == byte
        return same

    def _texts(self, starts: Ints, ends: Ints) -> pa.Array:
        try:
            return self._buffer.gather_texts(starts, ends, "a label's value")
        except BadPayload:
            raise _Unusual from None

    def _gather(self, found: list[tuple[Ints, Ints, Ints]]) -> pa.Array:
        """Gather the values of a promoted label; null for a series without it."""
        if not found:
            return pa.nulls(len(self._starts), pa.string())
        rows, starts, ends = (np.concatenate(parts) for parts in zip(*found, strict=True))
        index = np.full(len(self._starts), -1)
        index[rows] = np.arange(len(rows))
        return self._texts(starts, ends).take(pa.array(index, mask=index < 0))

    def _json(self) -> pa.Array:
        """Close the objects, and copy them."""
        text, second, _, _ = self._bytes
        text[self._after] = np.where(self._opens == self._after, np.uint8(_OPEN), np.uint8(_QUOTE))
        second[self._after] = _CLOSE
        texts = self._texts(self._opens, self._after + 2)
        if not is_bare(bytes_of(texts), 4 * self._members):
            raise _Unusual
        return texts
