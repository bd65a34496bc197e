"""The grammar of line protocol as expressions, and the errors of lines that break it.

While an expression runs, no other thread of the process does. So none passes more than some `WINDOW` bytes in one call.
Strings, whitespace and the rest of a bad line may be longer, and are passed window by window; no other part of a line
may be longer. `arcpipe.codec.line_protocol` describes the grammar itself.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

from arcpipe.codec.columns import quote
from arcpipe.codec.time_units import MAX_NS, MIN_NS, UNIT_NS, fitting_unit, range_of
from arcpipe.units import KB

WINDOW: Final = 128 * KB
"""Bytes below which names, tags, numbers and timestamps must stay: an expression passes them within 10 ms."""

# Bytes of a string, or of the rest of a bad line, per step: nothing but escapes take 3 ms.
_SLICE: Final = 64 * KB
# Bytes per step in which newlines are counted: nothing but newlines take 1 ms.
_COUNTED: Final = 256 * KB


class BadLine(Exception):
    """A line is bad. `args` are the reason, and its offset in the body, or None where an offset says nothing."""


class BadText(Exception):
    """Some text in the line is not valid UTF-8."""


# Everything is possessive: no expression ever goes back, so each is linear in what it passes, and none but that of
# strings passes a newline. A string ends at the next quote without a backslash, and no quote after `=` has one; so no
# two strings that are tried reach over one another, and all of them together are linear in the body.

_TEXT = rb'(?:[^"\\]++|\\(?s:.))*+'
_STRING = rb'"(' + _TEXT + rb')"'
_AFTER = rb"(?=[, \t\r\n]|\Z)"
FLOAT, INTEGER, UNSIGNED, TEXT, TRUE, FALSE = range(2, 8)  # groups of a field, by which its type is known
_VALUE = (
    rb"(?:(-?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)"
    rb"|(-?+[0-9]++)i|([0-9]++)u|" + _STRING + rb"|(t(?:rue)?+|T(?:rue|RUE)?+)|(f(?:alse)?+|F(?:alse|ALSE)?+))" + _AFTER
)
TAIL: Final = re.compile(rb"(?: [ \t]*+(-?+[0-9]++))?+[ \t\r]*+(?:\n|\Z)").match
# Everything between points: blank lines, comments, and the whitespace before a point.
BETWEEN: Final = re.compile(rb"(?:[ \t\r]*+(?:#[^\n]*+)?+\n)*+[ \t]*+(?:[ \t\r]*+(?:#[^\n]*+)?+\Z)?+").match

DIGITS: Final = re.compile(rb"-?+[0-9]++").match
BLANKS: Final = re.compile(rb"[ \t]*+").match
SPACES: Final = re.compile(rb"[ \t\r]*+").match
_IS_INTEGER: Final = re.compile(rb"-?[0-9]++\Z").match
_TOKEN: Final = re.compile(rb"[^, \t\r\n]*+").match
_OPEN_STRING: Final = re.compile(rb'"' + _TEXT + rb'("?+)').match

# The rest of a bad line: to the end of its measurement and tags; and from there to the newline outside of strings.
# Within a slice, the second one ends also at a string that does not end there.
_INSIDE: Final = re.compile(_TEXT).match
_REST: Final = re.compile(rb'(?:[^"\n]++|(?<==)' + _STRING + _AFTER + rb'|")*+').match
_REST_OF_SLICE: Final = re.compile(
    rb'(?:[^"\n]++|(?<!=)"|(?<==)' + _STRING + rb'(?=[, \t\r\n])|(?<==)"(?=' + _TEXT + rb'"(?s:.)))*+'
).match
_NEWLINE: Final = ord("\n")
AFTER_STRING: Final = (b",", b" ", b"\t", b"\r", b"\n", b"")


_Match: TypeAlias = Callable[..., "re.Match[bytes] | None"]
_Unescape: TypeAlias = Callable[[bytes], bytes]

Escapes: TypeAlias = Literal["v1", "v3"]
"""Whose escapes a body has: those of InfluxDB 1 and 2, or those of InfluxDB 3."""


class Escaping(NamedTuple):
    """The expressions that depend on what a backslash means, and what becomes of escapes in names and tag values."""

    measurement: _Match
    name: _Match
    tag_value: _Match
    tag: _Match
    line_start: _Match  # measurement and tags up to the first field, in one step
    plain_tags: Callable[[bytes], list[tuple[bytes, bytes]]]  # those in it, which need no look ahead any more
    field: _Match
    open_field: _Match  # with a string that is still open where the text ends
    series: _Match  # the rest of a bad line's measurement and tags
    unescaped_measurement: _Unescape
    unescaped_tag: _Unescape  # key or value
    unescaped_field: _Unescape


def _escaping(
    measurement: bytes,
    key: bytes,
    value: bytes,
    series: bytes,
    unescaped_measurement: _Unescape,
    unescaped_tag: _Unescape,
    unescaped_field: _Unescape,
) -> Escaping:
    return Escaping(
        re.compile(measurement).match,
        re.compile(key).match,
        re.compile(value).match,
        re.compile(rb",(" + key + rb")=(" + value + rb")(?=[, ])").match,
        re.compile(rb"(" + measurement + rb")((?:," + key + rb"=" + value + rb"(?=[, ]))*+) [ \t]*+").match,
        re.compile(rb",(" + key + rb")=(" + value + rb")").findall,
        re.compile(rb"(" + key + rb")=" + _VALUE).match,
        re.compile(key + rb'="' + _TEXT + rb"\\?+\Z").match,
        re.compile(series).match,
        unescaped_measurement,
        unescaped_tag,
        unescaped_field,
    )


def _v1_tag(text: bytes) -> bytes:
    return text.replace(b"\\,", b",").replace(b"\\=", b"=").replace(b"\\ ", b" ")


def _v1_name(text: bytes) -> bytes:
    """Of a measurement or a field key."""
    return _v1_tag(text).replace(b'\\"', b'"')


def _v3_measurement(text: bytes) -> bytes:
    return b"\\".join([part.replace(b"\\,", b",").replace(b"\\ ", b" ") for part in text.split(b"\\\\")])


def _v3_key(text: bytes) -> bytes:
    return b"\\".join([_v1_tag(part) for part in text.split(b"\\\\")])


# Of InfluxDB 1 and 2: what comes after a backslash is no delimiter, whatever is before the backslash.
# Of InfluxDB 3: backslashes are read from the left, in pairs with what comes after them. `=` may stand in tag values.
ESCAPINGS: Final[dict[Escapes, Escaping]] = {
    "v1": _escaping(
        rb"(?:[^\\, \n]++|\\++[, ]?+)++",
        rb"(?:[^\\,= \n]++|\\++[,= ]?+)++",
        rb"(?:[^\\,= \n]++|\\++[,= ]?+)++",
        rb"(?:[^ \n]++|(?<=\\) )*+",
        _v1_name,
        _v1_tag,
        _v1_name,
    ),
    "v3": _escaping(
        rb"(?:[^\\, \n]++|\\[^\n]?+)++",
        rb"(?:[^\\,= \n]++|\\[^\n]?+)++",
        rb"(?:[^\\, \n]++|\\[^\n]?+)++",
        rb"(?:[^\\ \n]++|\\[^\n])*+",
        _v3_measurement,
        _v3_key,
        _v3_key,
    ),
}


def end_of(found: re.Match[bytes] | None) -> int:
    """Return the end of a match, of an expression that always matches."""
    assert found is not None
    return found.end()


def unescaped_text(text: bytes) -> bytes:
    """Drop the escapes of a string."""
    return b"\\".join([part.replace(b'\\"', b'"') for part in text.split(b"\\\\")])


# Parts that may be longer than a window


def pass_spaces(body: bytes, pos: int, spaces: Callable[[bytes, int, int], re.Match[bytes] | None]) -> int:
    """Pass all whitespace that `spaces` (BLANKS or SPACES) takes: the offset after it."""
    while True:
        end = end_of(spaces(body, pos, pos + WINDOW))
        if end < pos + WINDOW:
            return end
        pos = end


def slices_of_text(body: bytes, pos: int) -> Iterator[tuple[int, int]]:
    """Yield slices of a string's content from `pos` to its closing quote or the end of the body.

    No slice ends within an escape.
    """
    size = len(body)
    while True:
        limit = min(pos + _SLICE, size)
        quote = body.find(b'"', pos, limit)
        end = limit if quote < 0 else quote
        if body.find(b"\\", pos, end) >= 0:
            end = end_of(_INSIDE(body, pos, limit))
        if end == pos:  # at the quote; or at a backslash that is the last byte, or at the end of the body
            return
        yield pos, end
        pos = end


def skip_line(body: bytes, start: int, pos: int, escaping: Escaping, check: Callable[[], None]) -> int:
    """Find the end of the line that begins at `start` and is bad at `pos`: a newline, or the end of the body."""
    end = body.find(b"\n", start, start + _SLICE)
    if pos <= end and body.find(b'"', start, end) < 0:
        return end
    return _skip_rest(body, max(pos, _skip_series(body, start, escaping.series, check)), check)


def _skip_series(body: bytes, pos: int, series: _Match, check: Callable[[], None]) -> int:
    """Find the first space or newline that is not escaped."""
    while True:
        end = end_of(series(body, pos, pos + _SLICE))
        char = body[end : end + 1]
        if char == b"\\" and body[end + 1 : end + 2] in (b"\n", b""):  # it escapes nothing
            return end + 1
        if not char or (char in b" \n" and end < pos + _SLICE):
            return end
        pos = end
        check()


def _skip_rest(body: bytes, pos: int, check: Callable[[], None]) -> int:
    """Find the first newline outside of strings."""
    size = len(body)
    while True:
        limit = pos + _SLICE
        if limit >= size:
            return end_of(_REST(body, pos))
        pos = end_of(_REST_OF_SLICE(body, pos, limit))
        check()
        if pos == limit:
            continue
        if body[pos] == _NEWLINE:
            return pos
        # a string that does not end in the slice
        end = pos + 1
        for _, stop in slices_of_text(body, pos + 1):
            end = stop
            check()
        is_whole = body[end : end + 1] == b'"' and body[end + 1 : end + 2] in AFTER_STRING
        pos = end + 1 if is_whole else pos + 1


def count_newlines(body: bytes, start: int, end: int) -> int:
    """Count the newlines from `start` to `end`."""
    count = 0
    for at in range(start, end, _COUNTED):
        count += body.count(b"\n", at, min(end, at + _COUNTED))
    return count


def count_characters(body: bytes, start: int, end: int) -> int:
    """Count the characters of UTF-8; invalid bytes count as Python replaces them."""
    if end - start <= _SLICE:
        return len(body[start:end].decode("utf-8", "replace"))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count = 0
    for at in range(start, end, _SLICE):
        stop = min(end, at + _SLICE)
        count += len(decoder.decode(body[at:stop], stop == end))
    return count


def find_bad_utf8(body: bytes, start: int, end: int, check: Callable[[], None]) -> int:
    """Find the first byte from `start` to `end` that is not valid UTF-8; -1 if there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(start, end, _SLICE):
        check()
        stop = min(end, at + _SLICE)
        before = len(decoder.getstate()[0])  # bytes of a character that was cut
        try:
            decoder.decode(body[at:stop], stop == end)
        except UnicodeDecodeError as error:
            return at - before + error.start
    return -1


def after_token(body: bytes, pos: int, limit: int, escaping: Escaping) -> int:
    """Pass the text at `pos` up to a comma, space or newline that is not escaped: the offset after it."""
    found = escaping.measurement(body, pos, limit)
    return pos if found is None else found.end()


def after_value(body: bytes, pos: int, limit: int) -> int:
    """Pass the value at `pos`, which is no string: the offset after it."""
    return end_of(_TOKEN(body, pos, limit))


# Numbers

_MAX_DIGITS: Final = 18  # digits up to which any integer fits into 64 bits
INFINITE: Final = (float("inf"), float("-inf"))


def infinite(found: re.Match[bytes]) -> BadLine:
    """Make the error of a field whose value is INFINITE."""
    return BadLine(f"{_of(found)} is too large for a float", found.start(FLOAT))


def to_integer(found: re.Match[bytes], group: int) -> int:
    """Convert the value of a field, INTEGER or UNSIGNED. Raises BadLine if it does not fit into 64 bits."""
    digits = found[group]
    if len(digits) > _MAX_DIGITS:
        digits = _without_zeros(digits)
        low, high = (-(1 << 63), (1 << 63) - 1) if group == INTEGER else (0, (1 << 64) - 1)
        if len(digits) > 20 or not low <= int(digits) <= high:
            raise BadLine(f"{_of(found)} is out of the range of 64 bits", found.start(group))
    return int(digits)


def to_time(digits: re.Match[bytes], unit: Unit | None, group: int = 0) -> int:
    """Convert a timestamp.

    Raises:
        BadLine: it has more than 64 bits, or is no time in this unit.
    """
    text = _without_zeros(digits[group])
    low, high = (MIN_NS, MAX_NS) if unit is None else (unit.low, unit.high)
    time = int(text) if len(text) <= 20 else MAX_NS + 1
    if low <= time <= high:
        return time
    reason = f"timestamp {quote(digits[group])} is out of the range of "
    if unit is None or not MIN_NS <= time <= MAX_NS:
        raise BadLine(reason + "64 bits", digits.start(group))
    raise BadLine(f"{reason}precision={unit.word} (use precision={fitting_unit(time)}?)", digits.start(group))


class Unit(NamedTuple):
    """The unit of a body's timestamps: its word in a query, and the least and the largest number of it."""

    word: str
    low: int
    high: int


UNITS: Final = {word: Unit(word, *range_of(word)) for word in UNIT_NS}


def _without_zeros(digits: bytes) -> bytes:
    """Drop leading zeros: Python converts long integers in quadratic time, or not at all."""
    if len(digits) <= _MAX_DIGITS:
        return digits
    sign = digits[:1] if digits.startswith(b"-") else b""
    return sign + (digits.lstrip(b"-0") or b"0")


# The errors of bad lines


def _token(body: bytes, pos: int) -> bytes:
    return body[pos : end_of(_TOKEN(body, pos, pos + WINDOW))]


def _of(found: re.Match[bytes]) -> str:
    """Name field and value, for an error text."""
    assert found.lastindex is not None
    return f"value {quote(found[found.lastindex])} of field {quote(found[1])}"


def bad_line_start(body: bytes, pos: int, escaping: Escaping) -> BadLine:
    """Say why measurement, tags and a space, as SERIES takes them, are not at `pos`.

    Raises:
        UnicodeDecodeError: the value of a tag before that is no UTF-8.
    """
    found = escaping.measurement(body, pos)
    if found is None:
        return BadLine("measurement is missing", pos)
    pos = found.end()
    while (found := escaping.tag(body, pos)) is not None:
        escaping.unescaped_tag(found[2]).decode()
        pos = found.end()
    return bad_series(body, pos, escaping)


def bad_series(body: bytes, pos: int, escaping: Escaping) -> BadLine:
    """Say why neither another tag nor a space is at `pos`, after the measurement or a tag."""
    char = body[pos : pos + 1]
    if char == b"=":  # can only be after a value
        return BadLine("'=' in a tag value is not escaped", pos)
    if char != b",":
        return BadLine("fields are missing", pos)
    name = escaping.name(body, pos + 1)
    if name is None:
        return BadLine("tag key is missing", pos + 1)
    end = name.end()
    if body[end : end + 1] != b"=":
        return _without_value("tag", name[0], body, end)
    value = escaping.tag_value(body, end + 1)
    if value is None:
        return BadLine(f"value of tag {quote(name[0])} is missing", end + 1)
    if body[value.end() : value.end() + 1] == b"=":
        return BadLine(f"'=' in the value of tag {quote(name[0])} is not escaped", value.end())
    return BadLine("fields are missing", value.end())


def _without_value(kind: str, name: bytes, body: bytes, end: int) -> BadLine:
    """Say that a name has no value. A CR at the end of the line does not belong to the name."""
    if name.endswith(b"\r") and body[end : end + 1] in (b"\n", b""):
        name, end = name[:-1], end - 1
    return BadLine(f"{kind} {quote(name)} has no value", end)


def bad_field(body: bytes, pos: int, escaping: Escaping) -> BadLine:
    """Say why there is no field at `pos`."""
    name = escaping.name(body, pos)
    if name is None or not name[0].strip(b"\t\r"):
        if body[pos : pos + 1] in (b"=", b",") or body[pos - 1 : pos] == b",":
            return BadLine("field key is missing", pos)
        return BadLine("fields are missing", pos)
    field, at = quote(name[0]), name.end()
    if body[at : at + 1] != b"=":
        return _without_value("field", name[0], body, at)
    at += 1
    if body[at : at + 1] == b'"':
        string = _OPEN_STRING(body, at)
        if string is None or not string[1]:
            return BadLine(f"the string of field {field} is not closed: it begins", at)
        return BadLine(f"the string of field {field} is followed by neither comma, space nor line end", string.end())
    value = _token(body, at)
    if not value:
        return BadLine(f"value of field {field} is missing", at)
    return BadLine(f"value {quote(value)} of field {field} is no number, boolean or quoted string", at)


def bad_tail(body: bytes, pos: int) -> BadLine:
    """Say why neither a timestamp nor the end of the line is at `pos`, after the fields."""
    pos = pass_spaces(body, pos, SPACES)
    token = _token(body, pos)
    if _IS_INTEGER(token):
        pos = pass_spaces(body, pos + len(token), SPACES)
        return BadLine(f"unexpected {quote(_token(body, pos) or b',')} after the timestamp", pos)
    if not token:
        return BadLine("unexpected ','", pos)
    return BadLine(f"timestamp {quote(token)} is no integer", pos)
