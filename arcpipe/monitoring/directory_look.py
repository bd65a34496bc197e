"""A look at the files in the WAL directory, for monitoring.

A part that cannot be listed is left out and reported, never counted as empty. The look runs in a thread of its own, so
that `/metrics` can report a disk that does not answer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Final

from msgspec import Struct

from arcpipe.wal import acknowledged
from arcpipe.wal.acknowledged import QUARANTINE, Seen, latest_of
from arcpipe.wal.directory import ACTIVE, RECOVERED, SEALED, WALDirectory, parse_filename

# Longest wait for a look; a scrape of Prometheus waits for 10 s by default.
_PATIENCE_SECONDS: Final = 2.0
# Longest wait for a look that has already exceeded that.
_SHORT_PATIENCE_SECONDS: Final = 0.05

# The API and the metrics say "completed" for sealed.
_STATES: Final = {ACTIVE: "active", SEALED: "completed", RECOVERED: "recovered"}


class FileCount(Struct, frozen=True):
    """Segment files in one state."""

    files: int
    bytes: int


class Unacknowledged(Struct, frozen=True):
    """Findings of one kind, or files in quarantine, that no operator has acknowledged."""

    count: int
    total: int  # including acknowledged ones
    latest: str  # in words; empty if it is no longer known


class DirectoryLook(Struct, frozen=True):
    """The WAL directory at one moment."""

    segments: dict[str, FileCount]  # by state: active, completed, recovered, free, quarantine; those that can be listed
    unacknowledged: dict[str, Unacknowledged]  # by the code of the health issue
    problem: str = ""  # why some cannot be listed; empty if all can
    findings_problem: str = ""  # why findings or their acknowledgement are unknown; empty if they are known


def look(directory: WALDirectory) -> DirectoryLook:
    """Look at all parts of the directory."""
    segments: dict[str, FileCount] = {}
    seen = acknowledged.look(directory)
    problems = [_count_segments(directory, segments), _count_free(directory, segments), seen.quarantine_problem]
    if not seen.quarantine_problem:
        segments[QUARANTINE] = FileCount(len(seen.all_files), sum(file.size for file in seen.all_files))
    return DirectoryLook(
        segments,
        _unacknowledged(seen),
        next(filter(None, problems), ""),
        seen.findings_problem or seen.acknowledged_problem,
    )


def _unacknowledged(seen: Seen) -> dict[str, Unacknowledged]:
    found = {code: Unacknowledged(one.count, one.total, latest_of(one.latest)) for code, one in seen.findings.items()}
    if seen.files:
        latest = max(seen.files, key=lambda file: file.modified_ns).name
        found[QUARANTINE] = Unacknowledged(len(seen.files), len(seen.all_files), latest)
    return found


def _count_segments(directory: WALDirectory, counts: dict[str, FileCount]) -> str:
    """Count the segments in the directory by state; return the problem if some cannot be counted."""
    problem = ""
    sizes: dict[str, list[int]] = {name: [] for name in _STATES.values()}
    try:
        with os.scandir(directory.path) as entries:
            for entry in entries:
                parsed = parse_filename(entry.name)
                if parsed is None:
                    continue
                try:
                    size = entry.stat().st_size
                except FileNotFoundError:  # renamed or removed since the listing
                    continue
                except OSError as error:
                    problem, size = str(error), 0
                sizes[_STATES[parsed[1]]].append(size)
    except OSError as error:
        return str(error)
    counts.update((name, FileCount(len(found), sum(found))) for name, found in sizes.items())
    return problem


def _count_free(directory: WALDirectory, counts: dict[str, FileCount]) -> str:
    sizes = []
    try:
        with os.scandir(directory.free) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # taken since the listing
                    if entry.is_file(follow_symlinks=False):
                        sizes.append(entry.stat(follow_symlinks=False).st_size)
    except OSError as error:
        return str(error)
    counts["free"] = FileCount(len(sizes), sum(sizes))
    return ""


class Looker:
    """Looks at one directory with a time limit, even if its disk does not answer. Only one thread may use it."""

    def __init__(self, directory: WALDirectory, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._directory = directory
        self._patience_seconds = patience_seconds
        self._thread: threading.Thread | None = None  # of a look that is still running
        self._since = 0.0
        self._found: DirectoryLook | None = None

    def look(self) -> DirectoryLook:
        """Look at the directory, or report that a look is still running."""
        patience = _SHORT_PATIENCE_SECONDS
        if self._thread is None:
            patience = self._patience_seconds
            self._found = None
            self._since = time.monotonic()
            thread = threading.Thread(target=self._run, name="look", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                return DirectoryLook({}, {}, f"cannot start a thread for it: {error}", "it was not looked at")
            self._thread = thread
        self._thread.join(patience)
        if self._thread.is_alive():
            problem = f"its disk has not answered for {time.monotonic() - self._since:.0f} s"
            return DirectoryLook({}, {}, problem, problem)
        self._thread = None
        assert self._found is not None, "BUG: a look ended without an outcome"
        return self._found

    def _run(self) -> None:
        try:
            self._found = look(self._directory)
        except Exception as error:  # a bug: reported as a problem, and by the thread's traceback
            self._found = DirectoryLook({}, {}, repr(error), repr(error))
            raise
