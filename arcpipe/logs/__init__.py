"""Log lines: the standard library's logging, to stderr, as text or as one JSON object per line.

Every record is one write to the file descriptor, because several processes share it and their lines must not
interleave. No process waits for the reader of its lines (`logs.stderr`). A repeated warning is written at most 20 times
in 10 seconds. After that time, and at the end of the process (`flush`), the last one that was held back follows, with
their number as `held_back`. While it goes on as fast, that line is all that each further 10 seconds have of it. This
module knows nothing of the settings: it gets level, format and name of the process.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from arcpipe.logs import stderr
from arcpipe.logs.lines import Lines, escaped, fields_of, is_journal, message_of, priority_prefix

log = logging.getLogger(__name__)

_STDERR: Final = 2
# At the end of a process, lines that nobody has read yet get this time.
_LAST_LINES_SECONDS: Final = 1.0

# Libraries that log every request at DEBUG; botocore even logs signed headers.
_TALKATIVE = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3")

# The same warning, with any arguments, is written _REPEATS times in _REPEAT_SECONDS. If it came more often in one such
# time, nothing of it is written in the next one but the last: a fault that lasts for days must not fill a disk.
_REPEATS: Final = 20
_REPEAT_SECONDS: Final = 10.0
# Different warnings that are counted at a time; further ones count as one.
_REPEATS_KNOWN: Final = 256
# Libraries put addresses and counters into the text itself, so numbers do not distinguish warnings. Nor does text after
# the first _KEY_CHARS characters.
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
_KEY_CHARS: Final = 512

EACH: Final = {"each": True}
"""`extra` of a logging call whose lines are never held back, because each one is the only report of some data."""

Remember = Callable[[int, int, str], None]


def setup(level: str | int, format: str, process: str, remember: Remember | None = None) -> None:
    """Log to stderr from now on. A forked child calls this again with its own name.

    `extra={"fields": {…}}` of a logging call adds fields: keys of the JSON object, ` key=value` in text. Uncaught
    exceptions and Python's own warnings become lines, too.

    Args:
        level: the lowest level that is logged, "DEBUG" to "ERROR" or its number.
        format: "text" or "json".
        process: name of the process in each line, such as "supervisor", "ingest 1" or "uploader".
        remember: called with time in µs, level and text of each line that is a warning or worse.
    """
    root = logging.getLogger()
    for handler in _handlers():
        root.removeHandler(handler)
    root.addHandler(_OneWriteHandler(Lines(format, process, is_journal(_STDERR, os.environ)), remember))
    set_level(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_end_of_thread
    sys.unraisablehook = _log_unraisable


def set_level(level: str | int) -> None:
    """Set the lowest level that is logged, by name or number. It costs nothing if that number is the level already."""
    root = logging.getLogger()
    if level == root.level:
        return
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def flush(patience_seconds: float = 0.0) -> None:
    """Report held-back warnings whose time is over, and write lines that stderr did not accept before.

    Call it about once a second.

    Args:
        patience_seconds: time for stderr to accept the lines. Above 0 all held-back warnings are reported, because the
            process ends or executes another program. (`logging` does this at a regular end of Python.)
    """
    for handler in _handlers():
        handler.tell_held_back(math.inf if patience_seconds else time.monotonic() - _REPEAT_SECONDS)
    dropped = stderr.flush(patience_seconds)
    if dropped:
        log.warning("%d lines of this log were dropped: nobody read them from stderr", dropped)


def are_json() -> bool:
    """Tell whether lines are JSON objects in this process."""
    return any(handler.lines.is_json for handler in _handlers())


def say(lines: Iterable[str]) -> None:
    """Write plain lines to stderr: the message of a command that fails."""
    before = priority_prefix(logging.CRITICAL) if is_journal(_STDERR, os.environ) else ""
    stderr.write("".join(f"{before}{escaped(line)}\n" for line in lines).encode("utf-8", "backslashreplace"))
    stderr.flush(_LAST_LINES_SECONDS)


class _OneWriteHandler(logging.Handler):
    """Writes each record with one write(2), without a buffer."""

    def __init__(self, lines: Lines, remember: Remember | None) -> None:
        super().__init__()
        self.lines = lines
        self._remember = remember
        self._repeats: dict[tuple[str, int, str], _Repeats] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and not getattr(record, "each", False):
            if self._is_one_too_many(record):
                return
        elif self._repeats:
            self._tell_held_back(time.monotonic() - _REPEAT_SECONDS)
        self._put(record)

    def close(self) -> None:
        """Report all held-back warnings. `logging` calls this at the end of the process."""
        self.tell_held_back(math.inf)
        stderr.flush(_LAST_LINES_SECONDS)
        super().close()

    def tell_held_back(self, before: float) -> None:
        """Report warnings that are held back since before a monotonic time."""
        if not self._repeats:
            return
        with self.lock or threading.Lock():
            self._tell_held_back(before)

    def _is_one_too_many(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        self._tell_held_back(now - _REPEAT_SECONDS)
        text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        key = (record.name, record.levelno, _VARYING.sub("#", text[:_KEY_CHARS]))
        repeats = self._repeats.get(key)
        if repeats is None and len(self._repeats) >= _REPEATS_KNOWN:  # all further ones count as one
            key = (record.name, record.levelno, "")
            repeats = self._repeats.get(key)
        if repeats is None:
            repeats = self._repeats[key] = _Repeats(now, _REPEATS)
        repeats.count += 1
        if repeats.count <= repeats.allowed:
            return False
        record.exc_info = None  # earlier ones showed it, and it would keep the frames alive
        repeats.latest = record
        return True

    def _tell_held_back(self, before: float) -> None:
        # A finalizer may log at any point here, and report some of them meanwhile.
        for key in [key for key, repeats in list(self._repeats.items()) if repeats.since < before]:
            repeats = self._repeats.pop(key, None)
            if repeats is None or (latest := repeats.latest) is None:
                continue
            if repeats.count > _REPEATS and before < math.inf:
                self._repeats[key] = _Repeats(before + _REPEAT_SECONDS, allowed=0)
            latest.fields = {**fields_of(latest), "held_back": repeats.count - repeats.allowed}
            self._put(latest)

    def _put(self, record: logging.LogRecord) -> None:
        try:
            stderr.write(self.lines.of(record))
            if self._remember is not None and record.levelno >= logging.WARNING:
                self._remember(int(record.created * 1e6), record.levelno, message_of(record))
        except Exception as error:  # must not reach the caller that logs
            stderr.write(f"BUG: a log line cannot be made: {error!r:.200}\n".encode())


class _Repeats:
    """A recent warning: when it is counted from, how many are written, their number, and the last one held back."""

    __slots__ = ("allowed", "count", "latest", "since")

    def __init__(self, since: float, allowed: int) -> None:
        self.since = since
        self.allowed = allowed
        self.count = 0
        self.latest: logging.LogRecord | None = None


def _handlers() -> list[_OneWriteHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _OneWriteHandler)]


# Hooks for errors that Python would print itself


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    log.critical("the process ends with an error that nobody caught: %s", error, exc_info=(kind, error, trace))


def _log_end_of_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is SystemExit or told.exc_value is None:
        return
    name = told.thread.name if told.thread is not None else "?"
    found = (told.exc_type, told.exc_value, told.exc_traceback)
    log.critical("thread %s ends with an error that nobody caught: %s", name, told.exc_value, exc_info=found)


def _log_unraisable(told: sys.UnraisableHookArgs) -> None:
    place = repr(told.object)
    if told.object is None and told.err_msg:  # from Python 3.14 on a finalizer is named in the message only
        place = told.err_msg.removeprefix("Exception ignored while calling deallocator ")
    log.error("an error that nobody can catch in %s: %r", place, told.exc_value, exc_info=told.exc_value)
