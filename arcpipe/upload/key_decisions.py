"""Hold entries back until it is decided which of them count, by their idempotency keys. For the entries of one batch.

A decision costs the less the more are made at a time. So entries that come alone wait until there are some. Those of a
block are decided together, before any of it is taken. The order of the entries, and of the decisions, stays as it is.

This module must not know tables, files or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from arcpipe.codec.arrow.values import Ints, Mask
from arcpipe.upload.budget import Budget
from arcpipe.upload.fronts import Front
from arcpipe.upload.key_files import RECORD
from arcpipe.upload.layouts import Found
from arcpipe.upload.opened import Opened, OpenedBlock, record_of

_NAME: Final = b"key"  # of a key in the meta, in whatever way it is encoded

Decide = Callable[[Sequence[bytes]], list[bool]]
"""Tells which of some entries count, by their records as `key_record` makes them."""


class Held(NamedTuple):
    """An entry that waits until it is known whether it counts."""

    record: bytes | None  # None: it has no key
    timestamp_us: int
    payload: bytes | memoryview
    origin: int
    opened: Opened


class KeyDecisions:
    """Asks which entries count, for some at a time."""

    def __init__(self, decide: Decide | None, budget: Budget) -> None:
        """Ask `decide`; without it, all entries count."""
        self._decide = decide
        self._budget = budget
        self._held: list[Held] = []  # an entry with a key, and those after it
        self._bytes = 0  # of those that are decoded
        self._views_bytes = 0  # of the others

    def hold(self, timestamp_us: int, payload: bytes | memoryview, origin: int, opened: Opened) -> bool:
        """Keep an entry if it has a key, or comes after one that waits; return whether it does."""
        if self._decide is None:
            return False
        record = record_of(timestamp_us, payload, opened)
        if record is None and not self._held:
            return False
        self._held.append(Held(record, timestamp_us, payload, origin, opened))
        if isinstance(opened, Found):
            self._views_bytes += len(payload)
        else:
            self._bytes += len(payload)
        return True

    @property
    def are_due(self) -> bool:
        """Tell whether the entries that wait have reached a bound, so that `settle` has to be called."""
        budget = self._budget
        return (
            len(self._held) >= budget.held_entries
            or self._bytes >= budget.held_bytes
            or self._views_bytes >= budget.held_views_bytes
        )

    def settle(self) -> Iterator[Held]:
        """Decide, and yield the entries that count. Take each before the next."""
        held, self._held = self._held, []
        self._bytes = self._views_bytes = 0
        records = [entry.record for entry in held if entry.record is not None]
        counts = iter(self._decide(records) if records and self._decide is not None else ())
        held.reverse()
        while held:
            if held[-1].record is None or next(counts):
                yield held.pop()  # a large one makes room for the next
            else:
                held.pop()

    def of_block(self, block: OpenedBlock, fronted: Sequence[tuple[Front, Ints]]) -> Mask:
        """Tell which entries of a block count. Nothing must wait.

        Args:
            fronted: the fronts in the block, and the numbers of the entries that have them. Others that may have a key
                are opened.
        """
        assert not self._held, "BUG: entries wait that come before those of the block"
        counts: Mask = np.ones(len(block.small), np.bool_)
        if self._decide is None:
            return counts
        records = np.zeros(len(counts), RECORD)
        is_open, is_keyed = np.ones(len(counts), np.bool_), np.zeros(len(counts), np.bool_)
        for front, numbers in fronted:
            is_open[numbers] = False
            if front.key:
                records[numbers] = front.records(block.small.block, numbers, block.small.timestamps_us)
                is_keyed[numbers] = True
        for number in np.flatnonzero(is_open).tolist():
            if _NAME not in block.small.block.payload(number):
                continue  # no key: it is not kept open until its turn
            record = record_of(int(block.small.timestamps_us[number]), *block.open(number))
            if record is not None:
                records[number] = np.frombuffer(record, RECORD)[0]
                is_keyed[number] = True
        if is_keyed.any():
            counts[is_keyed] = self._decide(records[is_keyed].view(f"V{RECORD.itemsize}").tolist())
        return counts
