"""A JSON array of objects, one object, or objects one per line -> columnar maps.

A large array is cut at the commas between its records, which numpy finds: one call that decodes it all would keep other
threads from running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from arcpipe.codec.effort import Effort, go_on
from arcpipe.codec.json_cuts import drop_escaped
from arcpipe.codec.messagepack.times import RULE, TimeRule
from arcpipe.codec.records import json_lines
from arcpipe.codec.records.gather import BadRows, Gatherer
from arcpipe.codec.records.json_lines import (
    BOM,
    CHUNK_BYTES,
    MAX_RECORD_BYTES,
    ROWS_BETWEEN_CHECKS,
    UNDECODABLE,
    decode_record,
)
from arcpipe.codec.records.report import Place, Records, Report
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload
from arcpipe.units import KB

# Bytes in which commas are looked for at a time: less than a millisecond.
_WINDOW_BYTES: Final = 64 * KB
_BLANKS: Final = b" \t\r\n"
_QUOTE, _COMMA = b'",'

_DEPTH: Final = np.zeros(256, np.int8)
_DEPTH[list(b"[{")] = 1
_DEPTH[list(b"]}")] = -1

_ARRAY: Final = msgspec.json.Decoder(list[dict[str, Any]])


def encode(body: bytes, check: Callable[[], None] = go_on, *, roles: Roles, rule: TimeRule = RULE) -> Records:
    """Make the records of a body columnar maps; as `json_lines.encode`.

    Raises:
        PayloadTooLarge: the body has too many shapes for its size.
        BadPayload: it is neither an array nor an object, the array does not end, or it has too many bad records.
    """
    start = _skip_blanks(body, len(BOM) if body.startswith(BOM) else 0, len(body), check)
    if start == len(body):
        return Records(None, [], 0)
    effort = Effort(len(body), check)
    gatherer = Gatherer(roles, rule, effort)
    report = Report(effort)
    if body.startswith(b"[", start):
        _read_array(body, start, gatherer, report, check)
    elif body.startswith(b"{", start):
        if len(body) - start > MAX_RECORD_BYTES or not _read_one(body[start:], gatherer, report):
            return json_lines.encode(body, check, roles=roles, rule=rule)
    else:
        raise BadPayload("the body is neither a JSON array nor an object")
    return Records(gatherer.maps.encoded(), report.errors, report.more_errors)


def _skip_blanks(body: bytes, pos: int, end: int, check: Callable[[], None]) -> int:
    """Return the index of the first byte that is not blank, or `end`. There may be 100 MB of blanks."""
    while pos < end:
        window = body[pos : min(pos + _WINDOW_BYTES, end)]
        rest = window.lstrip(_BLANKS)
        if rest:
            return pos + len(window) - len(rest)
        pos += len(window)
        check()
    return end


def _skip_blanks_back(body: bytes, start: int, pos: int, check: Callable[[], None]) -> int:
    """Return the index after the last byte before `pos` that is not blank, or `start`."""
    while pos > start:
        window = body[max(pos - _WINDOW_BYTES, start) : pos]
        rest = window.rstrip(_BLANKS)
        if rest:
            return pos - len(window) + len(rest)
        pos -= len(window)
        check()
    return start


def _read_one(text: bytes, gatherer: Gatherer, report: Report) -> bool:
    """Read a body that is one object; False if it is something else."""
    try:
        row = decode_record(text)
    except BadPayload:
        return False
    bad = gatherer.add([row])
    report.add(bad, lambda _: Place(1, text))
    return True


def _read_array(body: bytes, start: int, gatherer: Gatherer, report: Report, check: Callable[[], None]) -> None:
    if len(body) - start <= CHUNK_BYTES:
        try:
            rows = _ARRAY.decode(body[start:])
        except UNDECODABLE:
            pass
        else:
            bad = gatherer.add(rows) if rows else {}
            report.add(bad, lambda row: Place(row + 1, _shown(rows[row])))
            return
    number = 1
    for piece in _pieces(body, start + 1, check):
        number += _read_piece(body, piece, number, gatherer, report, check)


def _shown(row: dict[str, Any]) -> bytes:
    """Return the text of a record: for one that is nested too deep to be written, its names."""
    try:
        return msgspec.json.encode(row)
    except RecursionError:
        return msgspec.json.encode(dict.fromkeys(row))


class _Piece(NamedTuple):
    """Some records of an array."""

    start: int
    end: int  # without the comma after them
    commas: list[int]  # the offsets of those between them


def _read_piece(
    body: bytes, piece: _Piece, number: int, gatherer: Gatherer, report: Report, check: Callable[[], None]
) -> int:
    """Read a piece, whose first record is number `number`; return the number of its records."""
    count = len(piece.commas) + 1
    if piece.end - piece.start <= CHUNK_BYTES:
        try:
            rows = _ARRAY.decode(b"[%b]" % body[piece.start : piece.end])
        except UNDECODABLE:
            rows = []
        if len(rows) == count:
            bad = gatherer.add(rows)
            if bad:
                texts = _texts(body, piece, check)
                report.add(bad, lambda row: Place(number + row, texts[row]))
            return count
    _read_one_by_one(_texts(body, piece, check), number, gatherer, report)
    return count


def _read_one_by_one(texts: list[bytes], number: int, gatherer: Gatherer, report: Report) -> None:
    rows: list[dict[str, Any]] = []
    indices: list[int] = []
    bad: BadRows = {}
    for index, text in enumerate(texts):
        if not index & ROWS_BETWEEN_CHECKS:
            report.check()
        try:
            if len(text) > MAX_RECORD_BYTES:
                raise BadPayload(f"more than {MAX_RECORD_BYTES} bytes")
            rows.append(decode_record(text))
            indices.append(index)
        except BadPayload as error:
            bad[index] = str(error)
    if rows:
        bad.update({indices[row]: reason for row, reason in gatherer.add(rows).items()})
    report.add(bad, lambda index: Place(number + index, texts[index][:KB]))


def _texts(body: bytes, piece: _Piece, check: Callable[[], None]) -> list[bytes]:
    """Return the texts of the records, without blanks around them; those that are too long as far as that shows."""
    borders = [piece.start - 1, *piece.commas, piece.end]
    texts = []
    for left, right in pairwise(borders):
        if right - left <= MAX_RECORD_BYTES:
            texts.append(body[left + 1 : right].strip())
            continue
        start = _skip_blanks(body, left + 1, right, check)
        end = _skip_blanks_back(body, start, right, check)
        texts.append(body[start : min(end, start + MAX_RECORD_BYTES + 1)])
    return texts


def _pieces(body: bytes, start: int, check: Callable[[], None]) -> Iterator[_Piece]:
    """Cut the array whose content begins at `start` into pieces of whole records.

    Raises:
        BadPayload: the array does not end, or something follows it.
    """
    finder = _Finder(body, start)
    pos = start
    commas: list[int] = []
    while finder.end < 0:
        check()
        if finder.pos == len(body):
            raise BadPayload("the JSON array does not end")
        commas += finder.advance()
        if finder.end < 0 and commas and finder.pos - pos >= CHUNK_BYTES - _WINDOW_BYTES:
            yield _Piece(pos, commas[-1], commas[:-1])
            pos = commas[-1] + 1
            commas = []
    after = _skip_blanks(body, finder.end + 1, len(body), check)
    if after < len(body):
        raise BadPayload(f"the JSON array ends at byte {finder.end}, and something follows it")
    if commas or pos > start or _skip_blanks(body, pos, finder.end, check) < finder.end:
        yield _Piece(pos, finder.end, commas)


class _Finder:
    """Find the commas between the records of an array, window by window. `end` is that of the array, once found."""

    __slots__ = ("_backslashes", "_body", "_depth", "_in_string", "end", "pos")

    def __init__(self, body: bytes, pos: int) -> None:
        self._body = body
        self.pos = pos
        self.end = -1
        self._depth = 1
        self._in_string = 0
        self._backslashes = 0  # right before `pos`

    def advance(self) -> list[int]:
        """Look at the next window; return the offsets of its commas."""
        count = min(_WINDOW_BYTES, len(self._body) - self.pos)
        window = np.frombuffer(self._body, np.uint8, count, self.pos)
        quotes = window == _QUOTE
        self._backslashes = drop_escaped(window, quotes, self._backslashes)
        parity = np.cumsum(quotes, dtype=np.int32)
        parity += self._in_string
        outside = (parity & 1) == 0
        steps = _DEPTH.take(window)
        steps *= outside
        depth = np.cumsum(steps, dtype=np.int32)
        depth += self._depth
        ended = np.flatnonzero(depth == 0)
        start = self.pos
        at = np.flatnonzero((window == _COMMA) & (depth == 1) & outside)
        if len(ended):
            self.end = start + int(ended[0])
            at = at[at < ended[0]]
        self._in_string = int(parity[-1]) & 1
        self._depth = int(depth[-1])
        self.pos += count
        found: list[int] = (at + start).tolist()
        return found
