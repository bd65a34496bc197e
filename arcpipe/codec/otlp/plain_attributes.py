"""Attributes that are texts: they become JSON objects where they stand, and each object is copied once.

Protobuf has four bytes between a name and its text (the tags and lengths of the value, and of the text in it), and four
between a text and the next name. JSON takes as many: `": "` and `", "`. So nothing has to move. This holds where the
attributes of a message stand one after the other, and all their lengths take one byte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from arcpipe.codec.json_texts import bytes_of, is_bare, offsets_of
from arcpipe.codec.protobuf.buffer import Buffer, Ints
from arcpipe.codec.protobuf.fields import Mask
from arcpipe.codec.protobuf.pairs import Pairs
from arcpipe.codec.protobuf.scan import Spans
from arcpipe.errors import BadPayload

_TEXT: Final = 0x0A  # tag of a text in its value
_SHORT: Final = 0x80  # lengths below it take one byte
_QUOTE, _BACKSLASH, _SPACE = b'"\\ '
_NO_TEXTS: Final = pa.array([], pa.string())


def plain_objects(buffer: Buffer, spans: Spans, pairs: Pairs) -> tuple[pa.Array, Mask]:
    """Make the attributes of each message a JSON object, where they are plain texts that need no escapes.

    Args:
        spans: the places of the attributes.
        pairs: their names and values, in the same order.

    Returns:
        The objects, and the messages that they are of. The bytes of the body are as they came.
    """
    done = _are_plain(buffer, spans, pairs)
    rows = np.flatnonzero(done)
    if not len(rows):
        return _NO_TEXTS, done
    lasts = np.cumsum(pairs.counts)[rows] - 1
    firsts = lasts - pairs.counts[rows] + 1
    own = done[pairs.owner]
    between = own.copy()
    between[lasts] = False
    _write(buffer, pairs.name_end[own], b'": "')
    _write(buffer, pairs.value_end[between], b'", "')
    starts, ends = pairs.name_start[firsts] - 2, pairs.value_end[lasts] + 2
    _write(buffer, starts, b'{"')
    _write(buffer, ends - 2, b'"}')
    try:
        texts = buffer.gather_texts(starts, ends, "an attribute")
    except BadPayload:  # the general way tells it
        texts = None
    buffer.restore(int(starts.min()), int(ends.max()))
    if texts is None:
        return _NO_TEXTS, np.zeros(len(done), np.bool_)
    escaped = _need_escapes(texts, pairs.counts[rows])
    if escaped is None:
        return texts, done
    done[rows[escaped]] = False
    return texts.filter(pa.array(~escaped)), done


def _are_plain(buffer: Buffer, spans: Spans, pairs: Pairs) -> Mask:
    """Tell which messages have nothing but attributes whose values are texts, one after the other."""
    text = buffer.text
    value = pairs.value_start
    size = text[value + 1]
    usual = (pairs.name_start == spans.start + 2) & (value == pairs.name_end + 2) & (pairs.value_end == spans.end)
    usual &= (text[value] == _TEXT) & (size < _SHORT) & (value + size + 2 == spans.end)
    usual[1:] &= (spans.start[1:] == spans.end[:-1] + 2) | (spans.owner[1:] != spans.owner[:-1])
    plain: Mask = pairs.counts > 0
    plain[spans.owner[~usual]] = False
    return plain


def _write(buffer: Buffer, places: Ints, what: bytes) -> None:
    for step, byte in enumerate(what):
        buffer.text[step:][places] = byte


def _need_escapes(texts: pa.Array, counts: Ints) -> Mask | None:
    """Tell which objects have a text that has to be escaped; None if there are none.

    Args:
        counts: of the members of each object.
    """
    data = bytes_of(texts)
    if is_bare(data, 4 * int(counts.sum())):
        return None
    quotes = data == _QUOTE
    odd = (data == _BACKSLASH) | (data < _SPACE)
    begins = offsets_of(texts)[:-1] - offsets_of(texts)[0]
    found: Mask = (np.add.reduceat(quotes, begins, dtype=np.int64) != 4 * counts) | np.logical_or.reduceat(odd, begins)
    return found
