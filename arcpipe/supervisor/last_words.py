"""The last log line of an instance: whether everything is uploaded.

Operators delete the WAL directory because of this line. So it says "everything" only after it has seen all file names:
there is no segment in any state, no batch, no commit file, and no copy of a replay. If a part cannot be seen, the
result is "unknown", and the exit code says so, too.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Final, NamedTuple

from arcpipe.errors import WALError
from arcpipe.tables.commit_file import CommitFiles
from arcpipe.wal import acknowledged, findings
from arcpipe.wal.directory import ACTIVE, SEALED, WALDirectory, parse_filename

log = logging.getLogger(__name__)

EXIT_UNKNOWN: Final = 4
"""The exit code of an instance that does not know whether everything is uploaded."""

_BATCH: Final = re.compile(r"(.+-\d{8}T\d{6}-.+?)(?:\.uploaded)?\.(?:json|journal)\Z")
_COPY: Final = ".incoming"


class Left(NamedTuple):
    """The content of a directory that nobody writes to any more. All but `quarantined` and `found` wait for a start."""

    unsealed: int = 0  # segments that could not be recovered
    sealed: int = 0  # segments
    batches: int = 0
    copies: int = 0  # of an interrupted replay; their sources may be renamed already
    quarantined: int = 0  # files
    found: tuple[tuple[str, int], ...] = ()  # codes of `wal.findings`, with the number that nobody has acknowledged
    uncommitted: int = 0  # batches that tables do not have yet

    @property
    def waiting(self) -> str:
        """A list in words of all that waits for the next start; empty if nothing does."""
        return _listed(
            (self.unsealed, "segments that could not be recovered"),
            (self.sealed, "sealed segments"),
            (self.batches, "unfinished batches"),
            (self.uncommitted, "batches that are not committed to tables"),
            (self.copies, "copies of an interrupted replay"),
        )

    @property
    def exceptions(self) -> str:
        """A list in words of all that was never uploaded; empty if there is nothing."""
        lost = [(count, findings.UNITS[code]) for code, count in self.found if code in _NEVER_UPLOADED]
        return _listed((self.quarantined, "files in quarantine"), *lost)


# Without the code of dead letters, which are in the store.
_NEVER_UPLOADED: Final = (findings.DAMAGED, findings.LOST_SEGMENTS, findings.LOST_RECORDS)


def speak(directory: WALDirectory, doubt: str = "", lost_records: int = 0) -> int:
    """Log whether everything is uploaded.

    Args:
        doubt: a reason why the directory cannot tell; empty if there is none.
        lost_records: number of records that were acknowledged and lost, because the WAL is disabled.

    Returns:
        0, or `EXIT_UNKNOWN`.
    """
    try:
        left = look(directory)
        if lost_records:  # the finding of them may not have been written
            found = dict(left.found)
            found[findings.LOST_RECORDS] = max(lost_records, found.get(findings.LOST_RECORDS, 0))
            left = left._replace(found=tuple(found.items()))
    except (OSError, WALError) as error:
        doubt = doubt or str(error)
        left = Left()
    if doubt:
        log.warning("stopped; whether everything is uploaded is unknown: %s. Keep the WAL directory", doubt)
        return EXIT_UNKNOWN
    if left.waiting:
        log.warning("stopped; the next start goes on with %s. Keep the WAL directory", left.waiting)
    elif left.exceptions:
        log.warning("stopped; everything is uploaded but for %s. Keep the WAL directory", left.exceptions)
    else:
        log.info("stopped; everything is uploaded")
    return 0


def look(directory: WALDirectory) -> Left:
    """Look at a directory that nobody writes to any more. Only names count, so unreadable files are counted, too.

    Raises:
        OSError, WALError: a part of it cannot be seen, so the result is unknown.
    """
    names = _names(directory.path)
    states = [parsed[1] for parsed in map(parse_filename, names) if parsed is not None]
    batches = {found[1] for found in map(_BATCH.match, _names(directory.batches)) if found is not None}
    seen = acknowledged.look(directory)
    if problem := seen.quarantine_problem or seen.findings_problem:
        raise WALError(problem)
    return Left(
        unsealed=states.count(ACTIVE),
        sealed=states.count(SEALED),
        batches=len(batches),
        uncommitted=len(CommitFiles(directory.path).names()),
        copies=sum(name.endswith(_COPY) for name in names),
        quarantined=len(seen.all_files),
        found=tuple((code, one.count) for code, one in seen.findings.items()),
    )


def _names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _listed(*counts: tuple[int, str]) -> str:
    parts = [f"{count} {what}" for count, what in counts if count]
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)
