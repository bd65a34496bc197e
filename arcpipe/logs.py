"""Log lines: the standard library's logging, to stderr, as text or as one JSON object per line.

Every record is one write to the file descriptor, because several processes share it and their lines must not
interleave, and none waits for whoever reads them (`arcpipe.stderr`). A warning that repeats itself is written twenty
times in ten seconds; the last of those that were held back follows with their number as `held_back`. This room knows
nothing of the settings: it is told level, format and the name of the process.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from arcpipe import stderr

log = logging.getLogger(__name__)

# Libraries that tell the story of every request at DEBUG; botocore's version of it includes signed headers.
_TALKATIVE = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3")

# A message may quote what a client sent, which must neither start a forged line nor drive a terminal.
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
}


# A warning that comes again and again, whatever it is filled with, is written so often in so long.
_REPEATS: Final = 20
_REPEAT_SECONDS: Final = 10.0
_REPEATS_KNOWN: Final = 256
# Libraries put addresses and counters into the text itself: it is the same warning with others. Only the beginning of a
# text tells one warning from another.
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
_KEY_CHARS: Final = 512

Remember = Callable[[int, int, str], None]


def setup(level: str | int, format: str, process: str, remember: Remember | None = None) -> None:
    """Logs from `level` on ("DEBUG" to "ERROR", or its number) to stderr in `format` ("text" or "json").

    `process` says in each line who speaks ("supervisor", "ingest 1", "uploader"); a forked child calls this
    again with its own name. `extra={"fields": {…}}` of a logging call adds fields: keys of the JSON object,
    ` key=value` in text.

    `remember(time in µs, level, text)` is called for each line that is a warning or worse.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _OneWriteHandler):
            root.removeHandler(handler)
    handler = _OneWriteHandler(remember)
    handler.setFormatter(_JSONFormatter(process) if format == "json" else _TextFormatter(process))
    root.addHandler(handler)
    set_level(level)


def set_level(level: str | int) -> None:
    """Logs from `level` on: its name, or its number in `logging`. Costs nothing if that number is the level already."""
    root = logging.getLogger()
    if level == root.level:
        return
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def flush(patience_seconds: float = 0.0) -> None:
    """Writes what waits because stderr took nothing for a while, as far as it is taken by now, and tells what it cost.

    To be called now and then, and with some patience at the end of a process.
    """
    dropped = stderr.flush(patience_seconds)
    if dropped:
        log.warning("%d lines of this log were dropped: nobody took them from stderr", dropped)


class _OneWriteHandler(logging.Handler):
    """Writes each record with one write(2), past every buffer."""

    def __init__(self, remember: Remember | None) -> None:
        super().__init__()
        self._remember = remember
        self._repeats: dict[tuple[str, int, str], _Repeats] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            if self._is_one_too_many(record):
                return
        elif self._repeats:
            self._tell_held_back(time.monotonic())
        self._write(record)

    def _is_one_too_many(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        self._tell_held_back(now)
        key = (record.name, record.levelno, _VARYING.sub("#", str(record.msg)[:_KEY_CHARS]))
        repeats = self._repeats.get(key)
        if repeats is None and len(self._repeats) >= _REPEATS_KNOWN:  # all the others are one
            key = (record.name, record.levelno, "")
            repeats = self._repeats.get(key)
        if repeats is None:
            repeats = self._repeats[key] = _Repeats(now)
        repeats.count += 1
        repeats.latest = record
        return repeats.count > _REPEATS

    def _tell_held_back(self, now: float) -> None:
        over = [key for key, repeats in self._repeats.items() if now - repeats.since > _REPEAT_SECONDS]
        for key in over:
            repeats = self._repeats.pop(key)
            held_back = repeats.count - _REPEATS
            if held_back > 0 and repeats.latest is not None:
                latest = repeats.latest
                latest.fields = {**_fields(latest), "held_back": held_back}
                self._write(latest)

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
            if self._remember is not None and record.levelno >= logging.WARNING:
                self._remember(int(record.created * 1e6), record.levelno, record.getMessage())
        except Exception:
            self.handleError(record)
            return
        stderr.write(line)


class _Repeats:
    """A warning that came lately: since when, how often, and the last of them."""

    __slots__ = ("count", "latest", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.latest: logging.LogRecord | None = None


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
