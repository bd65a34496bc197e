"""A batch on its way: its manifest, its journal, and its state."""

from __future__ import annotations

from typing import Literal

from arcpipe.upload.journal import Converted, Journal
from arcpipe.upload.manifest import Decoded, Manifest
from arcpipe.upload.table_schema import TableName


class Batch:
    """A batch on its way: its manifest, its journal, and how far it got."""

    def __init__(self, manifest: Manifest, journal: Journal, path: str, old: Decoded | None = None) -> None:
        self.manifest = manifest
        self.journal = journal
        self.path = path  # of the manifest
        self.segments = list(manifest.segments)
        self.tries = 0  # of this process
        self.is_left_over = False  # an earlier process may have tried it
        self.careful: frozenset[TableName] = frozenset()
        """The tables of which the Parquet writer refused rows: further tries look for the entries at fault."""
        self.size = 0  # bytes of its segments, when it was planned or found
        self._old = old  # the manifest, if it is of version 1

    @property
    def batch_id(self) -> str:
        return self.manifest.batch_id

    @property
    def state(self) -> Literal["planned", "uploaded"]:
        return "uploaded" if self.journal.uploaded or self.is_named_uploaded or self._was_uploaded else "planned"

    @property
    def has_unlisted_keys(self) -> bool:
        """Whether objects may have been put whose keys are not in the journal."""
        return self.manifest.version == 1 or not self.journal.is_complete

    @property
    def is_named_uploaded(self) -> bool:
        return self.path.endswith(".uploaded.json")

    @property
    def _was_uploaded(self) -> bool:
        return self._old is not None and self._old.uploaded

    @property
    def converted(self) -> Converted:
        """The results of the conversion. If damage took them, every segment of an uploaded batch is kept."""
        if self._old is not None and self._old.uploaded:
            return Converted(self._old.archive, self._old.schema)
        return self.journal.converted or Converted(archive=self.segments if self.state == "uploaded" else [])
