"""NDJSON -> columnar maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from arcpipe.codec.effort import Effort, go_on
from arcpipe.codec.messagepack.times import RULE, TimeRule
from arcpipe.codec.records.gather import BadRows, Gatherer
from arcpipe.codec.records.report import Place, Records, Report
from arcpipe.codec.records.roles import Roles
from arcpipe.errors import BadPayload
from arcpipe.units import KB, MB

CHUNK_BYTES: Final = 256 * KB
"""Bytes of records that are decoded in one call, which takes some milliseconds: no other thread runs meanwhile."""

MAX_RECORD_BYTES: Final = MB
"""Bytes of one record: it is decoded in one call."""

ROWS_BETWEEN_CHECKS: Final = 0xFF
"""Records that are decoded one by one between two calls of `check`, as a mask: less than a millisecond."""

BOM: Final = b"\xef\xbb\xbf"

_LINES: Final = msgspec.json.Decoder(dict[str, Any])
# Exceptions of a decoder for bad input; ValueError for integers of more than 4300 digits.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


def encode(body: bytes, check: Callable[[], None] = go_on, *, roles: Roles, rule: TimeRule = RULE) -> Records:
    """Make the records of a body columnar maps.

    Args:
        check: as in `arcpipe.codec.effort`.
        rule: how times are read.

    Raises:
        PayloadTooLarge: the body has too many shapes for its size.
        BadPayload: the body has too many bad lines for its size.
    """
    effort = Effort(len(body), check)
    gatherer = Gatherer(roles, rule, effort)
    report = Report(effort)
    pos = len(BOM) if body.startswith(BOM) else 0
    line = 1
    while pos < len(body):
        check()
        end = len(body) if len(body) - pos <= CHUNK_BYTES else body.rfind(b"\n", pos, pos + CHUNK_BYTES) + 1
        end = end or body.find(b"\n", pos) + 1 or len(body)
        if end - pos > MAX_RECORD_BYTES:
            report.add_one(f"more than {MAX_RECORD_BYTES} bytes", Place(line, body[pos : pos + KB]))
            line += 1
        else:
            line += _read_chunk(body[pos:end], line, gatherer, report)
        pos = end
    return Records(gatherer.maps.encoded(), report.errors, report.more_errors)


def _read_chunk(chunk: bytes, line: int, gatherer: Gatherer, report: Report) -> int:
    """Read whole lines, of which the first one is number `line`; return their number."""
    if b"\r" in chunk:
        chunk = chunk.replace(b"\r\n", b"\n")
    count = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
    if chunk.isspace():  # one by one, 100 MB of blank lines take half a minute
        return count
    rows = _read_lines(chunk, count)
    if rows is not None:
        bad = gatherer.add(rows) if rows else {}
        if bad:
            lines = chunk.split(b"\n")
            report.add(bad, lambda row: Place(line + row, lines[row]))
        return count
    _read_line_by_line(chunk, line, gatherer, report)
    return count


def _read_lines(chunk: bytes, count: int) -> list[dict[str, Any]] | None:
    """Decode all lines in one call; None unless each one surely is one record.

    No string of JSON holds a newline, so a newline between braces is one between records.
    """
    if chunk.count(b"}\n{") != count - 1:
        return None
    try:
        rows: list[dict[str, Any]] = _LINES.decode_lines(chunk)
    except UNDECODABLE:
        return None
    return rows if len(rows) == count else None


def _read_line_by_line(chunk: bytes, line: int, gatherer: Gatherer, report: Report) -> None:
    rows: list[dict[str, Any]] = []
    indices: list[int] = []
    bad: BadRows = {}
    lines = chunk.split(b"\n")
    for index, text in enumerate(lines):
        if not text or text.isspace():
            continue
        if not index & ROWS_BETWEEN_CHECKS:
            report.check()
        try:
            rows.append(decode_record(text))
            indices.append(index)
        except BadPayload as error:
            bad[index] = str(error)
    if rows:
        bad.update({indices[row]: reason for row, reason in gatherer.add(rows).items()})
    report.add(bad, lambda index: Place(line + index, lines[index]))


def decode_record(text: bytes) -> dict[str, Any]:
    """Decode one JSON object.

    Raises:
        BadPayload: it is none.
    """
    try:
        return _LINES.decode(text)
    except UNDECODABLE as error:
        raise BadPayload(f"not a JSON object: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not valid UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deep"
    reason = str(error).removeprefix("JSON is malformed: ").partition(" - at `")[0]
    if not isinstance(error, msgspec.MsgspecError):
        return "a number has too many digits"
    return reason[:1].lower() + reason[1:]
