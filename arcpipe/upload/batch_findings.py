"""Facts about a batch that an operator has to know: its damaged segments and its dead letters."""

from __future__ import annotations

import logging
import threading
from typing import Final

from arcpipe.errors import UnknownVersion
from arcpipe.wal import findings
from arcpipe.wal.directory import WALDirectory
from arcpipe.wal.findings import DAMAGED, DEAD_LETTERS, Finding

log = logging.getLogger(__name__)

# Damaged segments of a batch with a finding of their own. The journal has room for this many on a full disk, too.
_TOLD_SEGMENTS: Final = 50


class BatchFindings:
    """Collect the findings of one try at a batch. Any thread may add a dead letter."""

    def __init__(self, directory: WALDirectory, batch_id: str) -> None:
        self._directory = directory
        self._batch_id = batch_id
        self._damaged: list[Finding] = []  # one per segment
        self._dead_letters = 0
        self._first_letter = ""
        self._lock = threading.Lock()

    def add_damaged(self, segment: str, count: int, reason: str) -> None:
        """Take a damaged segment, with its number of damaged places."""
        self._damaged.append(Finding(DAMAGED, segment.partition(".")[0], count, reason))

    def add_dead_letter(self, reason: str) -> None:
        """Take a dead letter."""
        with self._lock:
            self._dead_letters += 1
            self._first_letter = self._first_letter or reason

    def all(self) -> list[Finding]:
        """List what was found so far."""
        found = self._damaged[:_TOLD_SEGMENTS]
        if others := self._damaged[_TOLD_SEGMENTS:]:
            count = sum(finding.count for finding in others)
            found.append(Finding(DAMAGED, self._batch_id, count, f"in {len(others)} more segments of the batch"))
        if self._dead_letters:
            found.append(Finding(DEAD_LETTERS, self._batch_id, self._dead_letters, self._first_letter))
        return found

    def note_early(self) -> None:
        """Note what was found so far, as the batch may wait long for its store. Its end notes all of it for certain."""
        found = self.all()
        if not found:
            return
        try:
            findings.note(self._directory, found)
        except (OSError, UnknownVersion) as error:
            log.warning("cannot note yet what was found in batch %s: %s", self._batch_id, error)
