"""Log lines: the standard library's logging, to stderr, as text or as one JSON object per line.

Every record is one write to the file descriptor, because several processes share it and their lines must not
interleave. This room knows nothing of the settings: it is told level, format and the name of the process.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

import orjson

_STDERR = 2

# Libraries that tell the story of every request at DEBUG; botocore's version of it includes signed headers.
_TALKATIVE = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3")

# A message may quote what a client sent, which must neither start a forged line nor drive a terminal.
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
}


def setup(level: str, format: str, process: str) -> None:
    """Logs from `level` on ("DEBUG" to "ERROR") to stderr in `format` ("text" or "json").

    `process` says in each line who speaks ("supervisor", "ingest 1", "uploader"); a forked child calls this
    again with its own name. `extra={"fields": {…}}` of a logging call adds fields: keys of the JSON object,
    ` key=value` in text.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _OneWriteHandler):
            root.removeHandler(handler)
    handler = _OneWriteHandler()
    handler.setFormatter(_JSONFormatter(process) if format == "json" else _TextFormatter(process))
    root.addHandler(handler)
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class _OneWriteHandler(logging.Handler):
    """Writes each record with one write(2), past every buffer."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:
            self.handleError(record)
            return
        try:
            while line:  # a pipe with little room takes a part
                line = line[os.write(_STDERR, line) :]
        except OSError:
            # There is no second place to say that stderr is gone, and it must not cost a request.
            pass


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().translate(_ESCAPED)
        fields = "".join(f" {key}={_text_value(value)}" for key, value in _fields(record).items())
        line = f"{_time(record, ' ')} [{record.levelname}] {self._process}: {message}{fields}"
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line


class _JSONFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record, "T") + "Z",
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := _traceback(self, record):
            entry["exception"] = trace
        entry = {**entry, **_fields(record), **entry}  # a field never replaces one of the above
        try:
            return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # Surrogates and integers above 64 bits, which orjson does not take.
            return json.dumps(entry, default=str)


def _time(record: logging.LogRecord, separator: str) -> str:
    # logging's own milliseconds: rounding once more here could show 1000 of them.
    second = datetime.fromtimestamp(int(record.created), UTC)
    return f"{second:%Y-%m-%d}{separator}{second:%H:%M:%S}.{int(record.msecs):03d}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _text_value(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and text != "" and not any(mark in text for mark in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False).translate(_ESCAPED)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
