"""Formatting of log records: text or one JSON object, with the priority before each line if journald reads it.

Messages, fields and tracebacks quote clients. No quote can end a line, forge a line, control a terminal or hide:
characters that do not print are written as escapes. Each line of a traceback begins with a mark that no other line has.
The length of lines is bounded: journald splits lines at 48 KB, and the rest of one would look like a line of its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

# Characters of one message, value or line of a traceback; longer ones are cut.
_MAX_CHARS: Final = 8192
# Bytes of a whole line: below journald's LineMax=, which is 48 KB by default.
_MAX_LINE_BYTES: Final = 40_000
# Lines of a traceback that are kept: the first ones show the origin, the last ones the error.
_FIRST_TRACE_LINES: Final = 50
_LAST_TRACE_LINES: Final = 150
_TRACE_MARK: Final = "  | "
# Levels of nesting in a field; deeper values are shown as text.
_MAX_DEPTH: Final = 8

_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Priorities of syslog(3), each with the lowest level that has it.
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY: Final = 7


def escaped(text: str) -> str:
    """Return a text on one line, with escapes for all characters that do not print."""
    return text if text.isprintable() else _replaced(text, _escape)


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record, even if its text does not match its arguments."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"BUG: a log line cannot be made of {record.msg!r}: {error!r}"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that `extra={"fields": {…}}` of a logging call has added."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def priority_prefix(level: int) -> str:
    """Return the prefix by which journald recognises the priority of a line (sd-daemon(3))."""
    return f"<{next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)}>"


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Tell whether a descriptor leads to journald (JOURNAL_STREAM of systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Lines:
    """Formats the records of one process."""

    def __init__(self, format: str, process: str, for_journal: bool) -> None:
        """Keep the format.

        Args:
            format: "text" or "json".
            process: name of the process, for each line.
            for_journal: put a priority before each line.
        """
        self.is_json = format == "json"
        self._process = process
        self._for_journal = for_journal

    def of(self, record: logging.LogRecord) -> bytes:
        """Return all lines of a record, with their line ends."""
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
        if sum(len(value) for value in given.values() if isinstance(value, str)) > _MAX_LINE_BYTES:
            fields = _shortened(given, most)
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
            fields = _shortened(given, most)


def _time(record: logging.LogRecord, separator: str) -> str:
    # The milliseconds are those of `logging`: rounding again could give 1000.
    second = datetime.fromtimestamp(int(record.created), UTC)
    return f"{second:%Y-%m-%d}{separator}{second:%H:%M:%S}.{int(record.msecs):03d}"


def _trace(record: logging.LogRecord) -> list[str]:
    """Return the lines of a traceback, without the middle of a long one."""
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


def _replaced(text: str, escape: Callable[[str], str]) -> str:
    """Replace the characters that do not print: each different one is escaped once, as a text may have a million."""
    return text.translate({ord(char): escape(char) for char in set(text) if not char.isprintable()})


# Text


def _escape(char: str) -> str:
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


def _shortened(fields: Mapping[str, Any], most: int) -> dict[str, str]:
    return {_cut(_str(key), most): _cut(_str(value), most) for key, value in list(fields.items())[:most]}


def _cut_bytes(line: str) -> str:
    data = line.encode("utf-8", "backslashreplace")
    return line if len(data) <= _MAX_LINE_BYTES else data[:_MAX_LINE_BYTES].decode("utf-8", "ignore") + "…"


# JSON


def _encode(entry: dict[str, Any]) -> str:
    """Encode an object as JSON for every reader: no NaN, no lone surrogates, only printing characters."""
    try:
        text = orjson.dumps(entry, default=_str, option=orjson.OPT_NON_STR_KEYS).decode()
    except Exception:  # surrogates, integers above 64 bits, deep nesting
        text = json.dumps(_plain(entry, 0), ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() else _replaced(text, _escape_json)


def _plain(value: Any, depth: int) -> Any:
    """Convert a value to JSON's own types."""
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
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
