"""How a log record becomes lines: text, or one JSON object, and before each line its priority where journald reads it.

Messages, fields and tracebacks quote what clients sent. Nothing of it ends a line, forges one, drives a terminal or
hides: whatever does not print is written as an escape. Each line of a traceback begins with a mark that no other line
has. Lines are bounded: journald splits those of 48 kB, and the rest of one would pass for a line of its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

# Characters of one message, value or line of a traceback; what is longer is cut.
_MAX_CHARS: Final = 8192
# Bytes of a whole line: below journald's LineMax=, which is 48 kB unless somebody has changed it.
_MAX_LINE_BYTES: Final = 40_000
# Lines of a traceback that are kept: the first say where it came from, the last what it was.
_FIRST_TRACE_LINES: Final = 50
_LAST_TRACE_LINES: Final = 150
_TRACE_MARK: Final = "  | "
# How deep the values of a field may be nested; what is deeper is shown as text.
_MAX_DEPTH: Final = 8

_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# syslog(3)'s numbers, by the least level that has each.
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY: Final = 7


def escaped(text: str) -> str:
    """A text on one line, of which every character prints: the others are written as escapes."""
    return text if text.isprintable() else "".join(map(_escape, text))


def message_of(record: logging.LogRecord) -> str:
    """The message of a record, even if its text does not go with its arguments."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"BUG: a log line cannot be made of {record.msg!r}: {error!r}"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that `extra={"fields": {…}}` of a logging call has added."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def priority_prefix(level: int) -> str:
    """What journald reads the priority of a line from, if it stands before it (sd-daemon(3))."""
    return f"<{next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)}>"


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether journald reads what is written to a descriptor (JOURNAL_STREAM of systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Lines:
    """Makes the lines of one process's records."""

    def __init__(self, format: str, process: str, for_journal: bool) -> None:
        """Args: for_journal: whether a priority stands before each line."""
        self.is_json = format == "json"
        self._process = process
        self._for_journal = for_journal

    def of(self, record: logging.LogRecord) -> bytes:
        """All lines of a record, each with its end."""
        lines = [self._json(record)] if self.is_json else self._text(record)
        before = priority_prefix(record.levelno) if self._for_journal else ""
        return "".join(f"{before}{line}\n" for line in lines).encode("utf-8", "backslashreplace")

    def _text(self, record: logging.LogRecord) -> list[str]:
        message = escaped(_cut(message_of(record), _MAX_CHARS))
        fields = "".join(f" {escaped(str(key))}={_text_value(value)}" for key, value in fields_of(record).items())
        head = f"{_time(record, ' ')} [{record.levelname}] {self._process}: {message}{fields}"
        trace = (_TRACE_MARK + escaped(_cut(line, _MAX_CHARS)) for line in _trace(record))
        return [_cut_bytes(line) for line in (head, *trace)]

    def _json(self, record: logging.LogRecord) -> str:
        given = fields_of(record)
        trace = "\n".join(_trace(record))
        fields, most = given, _MAX_CHARS
        while True:
            entry: dict[str, Any] = {
                "time": _time(record, "T") + "Z",
                "level": record.levelname,
                "process": self._process,
                "logger": record.name,
                "message": _cut(message_of(record), most),
            }
            if trace:
                entry["exception"] = _cut_middle(trace, 2 * most)
            line = _encode({**entry, **fields, **entry})  # a field never replaces one of the above
            if len(line.encode("utf-8", "backslashreplace")) <= _MAX_LINE_BYTES:
                return line
            most //= 2
            fields = {_cut(_str(key), most): _cut(_str(value), most) for key, value in list(given.items())[:most]}


def _time(record: logging.LogRecord, separator: str) -> str:
    # logging's own milliseconds: rounding once more here could show 1000 of them.
    second = datetime.fromtimestamp(int(record.created), UTC)
    return f"{second:%Y-%m-%d}{separator}{second:%H:%M:%S}.{int(record.msecs):03d}"


def _trace(record: logging.LogRecord) -> list[str]:
    """The lines of a traceback, without the middle of a long one."""
    text = ""
    if record.exc_info and record.exc_info[1] is not None:
        text = "".join(traceback.format_exception(record.exc_info[1]))
    if record.stack_info:
        text += record.stack_info
    lines = text.rstrip("\n").split("\n") if text else []
    left_out = len(lines) - _FIRST_TRACE_LINES - _LAST_TRACE_LINES
    if left_out <= 0:
        return lines
    return [*lines[:_FIRST_TRACE_LINES], f"… {left_out} lines are left out …", *lines[-_LAST_TRACE_LINES:]]


# Text


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _text_value(value: Any) -> str:
    text = _cut(_str(value), _MAX_CHARS)
    plain = text.isprintable() and text != "" and not any(mark in text for mark in ' "=')
    return text if plain else escaped(json.dumps(text, ensure_ascii=False))


def _str(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"{type(value).__name__} that cannot be shown: {type(error).__name__}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} characters more)"


def _cut_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 4]}\n… {len(text) - most} characters are left out …\n{text[-(most - most // 4) :]}"


def _cut_bytes(line: str) -> str:
    data = line.encode("utf-8", "backslashreplace")
    return line if len(data) <= _MAX_LINE_BYTES else data[:_MAX_LINE_BYTES].decode("utf-8", "ignore") + "…"


# JSON


def _encode(entry: dict[str, Any]) -> str:
    """An object as JSON that every reader takes: no NaN, no half of a character, nothing that does not print."""
    try:
        text = orjson.dumps(entry, default=_str, option=orjson.OPT_NON_STR_KEYS).decode()
    except Exception:  # surrogates, integers above 64 bits, objects within objects within objects
        text = json.dumps(_plain(entry, 0), ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() else "".join(map(_escape_json, text))


def _plain(value: Any, depth: int) -> Any:
    """A value of JSON's own types."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping() if depth < _MAX_DEPTH:
            return {_plain(_str(key), depth): _plain(one, depth + 1) for key, one in value.items()}
        case list() | tuple() if depth < _MAX_DEPTH:
            return [_plain(one, depth + 1) for one in value]
    return _plain(_str(value), depth)


def _escape_json(char: str) -> str:
    if char.isprintable():
        return char
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
