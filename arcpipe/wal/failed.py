"""Segments that failed: cut them back to what was acknowledged, or write that again into another segment."""

from __future__ import annotations

import logging

from arcpipe.wal.background_sync import BackgroundSync
from arcpipe.wal.factory import SegmentFactory
from arcpipe.wal.pipeline import Pipeline
from arcpipe.wal.segment import Segment, State

log = logging.getLogger(__name__)


class FailedSegments:
    """Cut back or replace the failed segments of one writer. For its thread."""

    def __init__(self, pipeline: Pipeline, factory: SegmentFactory, background: BackgroundSync | None) -> None:
        self._pipeline = pipeline
        self._factory = factory
        self._background = background
        self._successor: Segment | None = None  # in service already; the segment that it replaces must be cut back

    def close(self) -> None:
        """Close a segment that took the place of one that could not be cut back."""
        if self._successor is not None and self._successor.state is not State.CLOSED:
            self._successor.close()

    def cut_back(self, segment: Segment) -> None:
        """Cut off the part of a failed segment that was not acknowledged; do nothing if that is done.

        Raises:
            OSError: it could not be cut back; the call may be repeated.
        """
        if segment.state is not State.FAILED:
            return
        if self._background is not None:
            self._background.take_back(segment)
        else:
            segment.cut_back()

    @property
    def must_be_replaced(self) -> bool:
        """Whether a background sync failed: acknowledged groups of the segment may not be on disk."""
        return self._background is not None and self._background.error is not None

    def replace(self, failed: Segment) -> Segment:
        """Write the retained groups into a segment of their own, after a failed background sync.

        From the moment it has its name, the new segment replaces everything after the last good sync in the failed
        one. That part is cut off: by this process, or after a crash by recovery.
        """
        background = self._background
        assert background is not None
        if self._successor is not None and not self._successor.is_at_its_path():  # its directory was removed
            self._successor.close()
            self._successor = None
        if self._successor is None:
            retained, replaces = background.retained, (failed.name.seq, background.synced.offset)
            self._successor = self._pipeline.make_instead(lambda: self._factory.make(retained, replaces))
        self.cut_back_or_give_up(failed, background)
        following, self._successor = self._successor, None
        return following

    def cut_back_or_give_up(self, segment: Segment, background: BackgroundSync | None = None) -> None:
        """Cut a failed segment back, or close it if its disk is gone.

        Args:
            background: cut back to its last good sync instead of the last acknowledgement.

        Raises:
            OSError: it could not be cut back; the call may be repeated.
        """
        try:
            if background is not None:
                segment.cut_back(background.synced)
            else:
                self.cut_back(segment)
        except OSError as error:
            if segment.is_at_its_path():
                raise
            log.error("segment %s is on a disk that is not there any more: %s", segment.path, error)
            segment.close()
