"""Open entries one by one: find the columns of each by a layout, or decode it. For the entries of one batch.

This module must not know tables, files or threads.
"""

from __future__ import annotations

from typing import TypeAlias

from arcpipe.codec.entries import batch_length
from arcpipe.codec.envelope import ARROW_KIND, Envelope, decode_envelope
from arcpipe.upload.budget import Budget
from arcpipe.upload.key_record import key_record
from arcpipe.upload.layouts import Found, Layouts
from arcpipe.upload.small_entries import Small
from arcpipe.upload.staging import GroupKey, group_key

Opened: TypeAlias = Found | Envelope | None
"""The columns of an entry, or its envelope; None if only the slow road can read it."""


class Opener:
    """Opens the entries of a batch, and learns from them."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._layouts = Layouts()

    def open(self, payload: bytes | memoryview) -> Opened:
        """Open an entry."""
        found = self._layouts.find(payload)
        if found is not None:
            return found
        envelope = self._decode(payload)
        if envelope is not None and self._layouts.learn(payload, envelope):
            return self._layouts.find(payload) or envelope
        return envelope

    def _decode(self, payload: bytes | memoryview) -> Envelope | None:
        budget = self._budget
        if len(payload) <= budget.whole_batch_bytes or batch_length(payload) <= budget.whole_batch_maps:
            try:
                return decode_envelope(payload)
            except Exception:  # decode_entry finds out the reason
                return None
        return None


class OpenedBlock:
    """A block whose entries are opened where that is needed, once each."""

    __slots__ = ("_opened", "_opener", "small")

    def __init__(self, small: Small, opener: Opener) -> None:
        self.small = small
        self._opener = opener
        self._opened: dict[int, tuple[bytes, Opened]] = {}

    def open(self, number: int) -> tuple[bytes, Opened]:
        """Return the payload of an entry, opened; keep both."""
        opened = self._opened.get(number)
        if opened is None:
            payload = self.small.block.payload(number)
            opened = self._opened[number] = payload, self._opener.open(payload)
        return opened

    def take(self, number: int) -> tuple[int, bytes, int, Opened]:
        """Return timestamp, payload, origin and what is opened of an entry, and keep nothing of it."""
        payload, opened = self.open(number)
        del self._opened[number]
        return int(self.small.timestamps_us[number]), payload, int(self.small.origins[number]), opened


def record_of(timestamp_us: int, payload: bytes | memoryview, opened: Opened) -> bytes | None:
    """Make the record of an entry's idempotency key; None if it has none."""
    if isinstance(opened, Found):
        return opened.front.record(timestamp_us, payload)
    if opened is not None and opened.meta.key is None:
        return None
    return key_record(timestamp_us, payload, opened)


def groups_of(payload: bytes | memoryview, opened: Opened) -> list[GroupKey] | None:
    """Tell which groups have rows of an entry; None if they may be any."""
    if isinstance(opened, Found):
        return [opened.key]
    if opened is None:
        return [] if payload[1:2] == ARROW_KIND else None
    body = opened.body
    if body is None:
        return None
    maps = body if isinstance(body, list) else [body]
    return [group_key(opened.database, opened.meta.precision, columns) for columns in maps]
