"""The grammar of line protocol as expressions, and what to say of what breaks it.

While an expression runs, no other thread of the process does. So none passes more than some `WINDOW` bytes in one call:
what may be longer (strings, whitespace, the rest of a bad line) is passed window by window, and no other part of a line
may be longer. The grammar itself is told in `arcpipe.codec.line_protocol`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Final

from arcpipe.codec.columns import quote

WINDOW: Final = 128 << 10
"""Bytes. No name, tag, number or timestamp may have this many: an expression passes them within 10 ms."""

# Bytes of a string or of the rest of a bad line that are passed at once: of nothing but escapes they take 3 ms.
_SLICE: Final = 64 << 10
# Newlines are counted among so many bytes at once: of nothing else they take 1 ms.
_COUNTED: Final = 256 << 10


class BadLine(Exception):
    """`args` are the reason and the offset in the body of what is wrong, or None where that says nothing."""


class BadText(Exception):
    """Something in the line is no UTF-8."""


# Everything is possessive: no expression ever goes back, so each is linear in what it passes, and none but that of
# strings passes a newline. A string ends at the next quote without a backslash, and no quote after `=` has one; so no
# two strings that are tried reach over one another, and all of them together are linear in the body.

_ESCAPED = rb"\\[^\n]?+"
MEASUREMENT: Final = re.compile(rb"(?:[^\\, \n]++|" + _ESCAPED + rb")++").match
_KEY = rb"(?:[^\\,= \n]++|" + _ESCAPED + rb")++"
NAME: Final = re.compile(_KEY).match
TAG: Final = re.compile(rb",(" + _KEY + rb")=(" + _KEY + rb")(?=[, ])").match
# Measurement and tags up to the first field, in one step; and the tags in that, which need no look ahead any more.
SERIES: Final = re.compile(
    rb"((?:[^\\, \n]++|" + _ESCAPED + rb")++)((?:," + _KEY + rb"=" + _KEY + rb"(?=[, ]))*+) [ \t]*+"
).match
PLAIN_TAGS: Final = re.compile(rb",(" + _KEY + rb")=(" + _KEY + rb")").findall
_TEXT = rb'(?:[^"\\]++|\\(?s:.))*+'
_STRING = rb'"(' + _TEXT + rb')"'
_AFTER = rb"(?=[, \t\r\n]|\Z)"
FLOAT, INTEGER, UNSIGNED, TEXT, TRUE, FALSE = range(2, 8)  # groups of a field, by which its type is known
FIELD: Final = re.compile(
    rb"(" + _KEY + rb")="
    rb"(?:(-?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)"
    rb"|(-?+[0-9]++)i|([0-9]++)u|" + _STRING + rb"|(t(?:rue)?+|T(?:rue|RUE)?+)|(f(?:alse)?+|F(?:alse|ALSE)?+))" + _AFTER
).match
TAIL: Final = re.compile(rb"(?: [ \t]*+(-?+[0-9]++))?+[ \t\r]*+(?:\n|\Z)").match
# What is no point: blank lines, comments, and the whitespace before a point.
BETWEEN: Final = re.compile(rb"(?:[ \t\r]*+(?:#[^\n]*+)?+\n)*+[ \t]*+(?:[ \t\r]*+(?:#[^\n]*+)?+\Z)?+").match
# A field with a string that is still open where the text ends.
OPEN_FIELD: Final = re.compile(_KEY + rb'="' + _TEXT + rb"\\?+\Z").match

DIGITS: Final = re.compile(rb"-?+[0-9]++").match
BLANKS: Final = re.compile(rb"[ \t]*+").match
SPACES: Final = re.compile(rb"[ \t\r]*+").match
_IS_INTEGER: Final = re.compile(rb"-?[0-9]++\Z").match
_TOKEN: Final = re.compile(rb"[^, \t\r\n]*+").match
_OPEN_STRING: Final = re.compile(rb'"' + _TEXT + rb'("?+)').match

# The rest of a bad line: to the end of its measurement and tags; and from there to the newline outside of strings. The
# latter, within a slice, ends also at a string that does not.
_SERIES: Final = re.compile(rb"(?:[^\\ \n]++|\\[^\n])*+").match
_INSIDE: Final = re.compile(_TEXT).match
_REST: Final = re.compile(rb'(?:[^"\n]++|(?<==)' + _STRING + _AFTER + rb'|")*+').match
_REST_OF_SLICE: Final = re.compile(
    rb'(?:[^"\n]++|(?<!=)"|(?<==)' + _STRING + rb'(?=[, \t\r\n])|(?<==)"(?=' + _TEXT + rb'"(?s:.)))*+'
).match
_NEWLINE: Final = ord("\n")
BEHIND_STRING: Final = (b",", b" ", b"\t", b"\r", b"\n", b"")


def end_of(found: re.Match[bytes] | None) -> int:
    """Where an expression that also matches nothing ends."""
    assert found is not None
    return found.end()


def unescaped_text(text: bytes) -> bytes:
    return b"\\".join([part.replace(b'\\"', b'"') for part in text.split(b"\\\\")])


def unescaped_key(text: bytes) -> bytes:
    """Of a tag key, a tag value or a field key."""
    return b"\\".join(
        [part.replace(b"\\,", b",").replace(b"\\=", b"=").replace(b"\\ ", b" ") for part in text.split(b"\\\\")]
    )


def unescaped_measurement(text: bytes) -> bytes:
    return b"\\".join([part.replace(b"\\,", b",").replace(b"\\ ", b" ") for part in text.split(b"\\\\")])


# What may be longer than a window


def pass_spaces(body: bytes, pos: int, spaces: Callable[[bytes, int, int], re.Match[bytes] | None]) -> int:
    """The offset behind any number of what `spaces` takes: BLANKS or SPACES."""
    while True:
        end = end_of(spaces(body, pos, pos + WINDOW))
        if end < pos + WINDOW:
            return end
        pos = end


def slices_of_text(body: bytes, pos: int) -> Iterator[tuple[int, int]]:
    """The content of a string that begins at `pos`, up to its closing quote or the end of the body, as slices.

    None ends within an escape.
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


def skip_line(body: bytes, start: int, pos: int, check: Callable[[], None]) -> int:
    """Where the line ends that begins at `start` and is bad at `pos`: at a newline, or at the end of the body."""
    end = body.find(b"\n", start, start + _SLICE)
    if pos <= end and body.find(b'"', start, end) < 0:
        return end
    return _skip_rest(body, max(pos, _skip_series(body, start, check)), check)


def _skip_series(body: bytes, pos: int, check: Callable[[], None]) -> int:
    """The offset of the first space or newline that is not escaped."""
    while True:
        end = end_of(_SERIES(body, pos, pos + _SLICE))
        char = body[end : end + 1]
        if char == b"\\" and body[end + 1 : end + 2] in (b"\n", b""):  # it escapes nothing
            return end + 1
        if not char or char in b" \n":
            return end
        pos = end
        check()


def _skip_rest(body: bytes, pos: int, check: Callable[[], None]) -> int:
    """The offset of the first newline outside of strings."""
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
        is_whole = body[end : end + 1] == b'"' and body[end + 1 : end + 2] in BEHIND_STRING
        pos = end + 1 if is_whole else pos + 1


def count_newlines(body: bytes, start: int, end: int) -> int:
    """How many there are from `start` to `end`."""
    count = 0
    for at in range(start, end, _COUNTED):
        count += body.count(b"\n", at, min(end, at + _COUNTED))
    return count


def count_characters(body: bytes, start: int, end: int) -> int:
    """Characters of UTF-8; bytes that are none count as Python replaces them."""
    if end - start <= _SLICE:
        return len(body[start:end].decode("utf-8", "replace"))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count = 0
    for at in range(start, end, _SLICE):
        stop = min(end, at + _SLICE)
        count += len(decoder.decode(body[at:stop], stop == end))
    return count


def find_bad_utf8(body: bytes, start: int, end: int, check: Callable[[], None]) -> int:
    """The offset of the first byte from `start` to `end` that is no UTF-8, or -1."""
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


def behind_token(body: bytes, pos: int, limit: int) -> int:
    """Where the text from `pos` on ends that has no comma, space or newline, but escaped ones."""
    found = MEASUREMENT(body, pos, limit)
    return pos if found is None else found.end()


def behind_value(body: bytes, pos: int, limit: int) -> int:
    """Where the value that begins at `pos`, and is no string, ends."""
    return end_of(_TOKEN(body, pos, limit))


# Numbers

_MAX_DIGITS: Final = 18  # any integer of so many digits has 64 bits
INFINITE: Final = (float("inf"), float("-inf"))


def infinite(found: re.Match[bytes]) -> BadLine:
    """What to say of a field whose value is INFINITE."""
    return BadLine(f"{_of(found)} is too large for a float", found.start(FLOAT))


def to_integer(found: re.Match[bytes], group: int) -> int:
    """The value of a field: INTEGER or UNSIGNED. Raises BadLine if it does not have 64 bits."""
    digits = found[group]
    if len(digits) > _MAX_DIGITS:
        digits = _without_zeros(digits)
        low, high = (-(1 << 63), (1 << 63) - 1) if group == INTEGER else (0, (1 << 64) - 1)
        if len(digits) > 20 or not low <= int(digits) <= high:
            raise BadLine(f"{_of(found)} is out of the range of 64 bits", found.start(group))
    return int(digits)


def to_time(digits: re.Match[bytes], group: int = 0) -> int:
    """A timestamp. Raises BadLine if it does not have 64 bits."""
    text = _without_zeros(digits[group])
    if len(text) <= 20:
        time = int(text)
        if -(1 << 63) <= time < 1 << 63:
            return time
    raise BadLine(f"timestamp {quote(digits[group])} is out of the range of 64 bits", digits.start(group))


def _without_zeros(digits: bytes) -> bytes:
    """The same integer; Python takes long ones in quadratic time, or not at all."""
    if len(digits) <= _MAX_DIGITS:
        return digits
    sign = digits[:1] if digits.startswith(b"-") else b""
    return sign + (digits.lstrip(b"-0") or b"0")


# What to say of a bad line


def _token(body: bytes, pos: int) -> bytes:
    return body[pos : end_of(_TOKEN(body, pos, pos + WINDOW))]


def _of(found: re.Match[bytes]) -> str:
    """Field and value, for an error text."""
    assert found.lastindex is not None
    return f"value {quote(found[found.lastindex])} of field {quote(found[1])}"


def bad_line_start(body: bytes, pos: int) -> BadLine:
    """Say why measurement, tags and a space, as SERIES takes them, are not at `pos`.

    Raises:
        UnicodeDecodeError: the value of a tag before that is no UTF-8.
    """
    found = MEASUREMENT(body, pos)
    if found is None:
        return BadLine("measurement is missing", pos)
    pos = found.end()
    while (found := TAG(body, pos)) is not None:
        unescaped_key(found[2]).decode()
        pos = found.end()
    return bad_series(body, pos)


def bad_series(body: bytes, pos: int) -> BadLine:
    """Why there is neither another tag nor a space at `pos`, behind the measurement or a tag."""
    char = body[pos : pos + 1]
    if char == b"=":  # can only be behind a value
        return BadLine("'=' in a tag value is not escaped", pos)
    if char != b",":
        return BadLine("fields are missing", pos)
    name = NAME(body, pos + 1)
    if name is None:
        return BadLine("tag key is missing", pos + 1)
    end = name.end()
    if body[end : end + 1] != b"=":
        return BadLine(f"tag {quote(name[0])} has no value", end)
    value = NAME(body, end + 1)
    if value is None:
        return BadLine(f"value of tag {quote(name[0])} is missing", end + 1)
    if body[value.end() : value.end() + 1] == b"=":
        return BadLine(f"'=' in the value of tag {quote(name[0])} is not escaped", value.end())
    return BadLine("fields are missing", value.end())


def bad_field(body: bytes, pos: int) -> BadLine:
    """Why there is no field at `pos`."""
    name = NAME(body, pos)
    if name is None or not name[0].strip(b"\t\r"):
        if body[pos : pos + 1] in (b"=", b",") or body[pos - 1 : pos] == b",":
            return BadLine("field key is missing", pos)
        return BadLine("fields are missing", pos)
    field, at = quote(name[0]), name.end()
    if body[at : at + 1] != b"=":
        return BadLine(f"field {field} has no value", at)
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
    """Why neither a timestamp nor the end of the line is at `pos`, behind the fields."""
    pos = pass_spaces(body, pos, SPACES)
    token = _token(body, pos)
    if _IS_INTEGER(token):
        pos = pass_spaces(body, pos + len(token), SPACES)
        return BadLine(f"unexpected {quote(_token(body, pos) or b',')} after the timestamp", pos)
    if not token:
        return BadLine("unexpected ','", pos)
    return BadLine(f"timestamp {quote(token)} is no integer", pos)
