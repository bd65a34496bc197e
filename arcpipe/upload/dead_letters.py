"""Hand over entries that cannot be converted, one dead letter at a time."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from arcpipe.upload.staging import EntryShape, Misfit


class DeadLetter(NamedTuple):
    """A WAL entry that cannot be converted, or one columnar map of an entry that has several."""

    database: str  # empty where that is not known either
    payload: bytes  # of an entry that holds this and nothing else
    origin: int  # the caller's number of the entry
    part: int  # the number of the map in its entry: (origin, part) comes once
    reason: str


OnDeadLetter = Callable[[DeadLetter], None]


class DeadLetters:
    """Count dead letters and give them to a callback, which is never called twice at once. Any thread may add."""

    def __init__(self, on_dead_letter: OnDeadLetter) -> None:
        self.count = 0
        self._on_dead_letter = on_dead_letter
        self._lock = Lock()

    def add(self, letter: DeadLetter) -> None:
        """Take a dead letter; raises what the callback raises."""
        with self._lock:
            self.count += 1
            self._on_dead_letter(letter)

    def add_misfit(self, shape: EntryShape, misfit: Misfit) -> None:
        """Take a columnar map of this shape whose columns are not arrays of one length."""
        self.add(DeadLetter(shape.database, misfit.payload, misfit.origin, misfit.part, misfit.reason))
