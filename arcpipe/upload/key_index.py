"""Find keys among many, by whole arrays: sorted runs that are merged when they are alike in size.

A run is sorted by the upper half of its hashes; the lower half decides where two keys share the upper one. A key takes
28 bytes. This module knows no files and no batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from arcpipe.upload.key_files import RECORD, REST, Records, Words

# Runs of one size that are merged at once: merging fewer more often costs more than searching these.
_ALIKE: Final = 8

Places = npt.NDArray[np.int64]
"""For each key that is looked for: its place in a run, or -1."""


class Run(NamedTuple):
    """Keys sorted by the upper half of their hashes. That is an array of its own, because a search must not copy it."""

    high: Words
    rest: Records

    @classmethod
    def of(cls, records: Records) -> Run:
        """Sort keys. Of equal records one stays; a key may have several, of entries that are far apart."""
        records = records[np.argsort(records["high"], kind="stable")]
        if (records["high"][1:] == records["high"][:-1]).any():
            records = np.unique(records)  # by all of their fields, of which the upper half is the first
        return cls(np.ascontiguousarray(records["high"]), rest_of(records))

    @classmethod
    def together(cls, runs: Sequence[Run]) -> Run:
        """Put runs together. Of equal records one stays."""
        high = np.concatenate([run.high for run in runs])
        order = np.argsort(high, kind="stable")  # it finds what is sorted already
        high = high[order]
        if (high[1:] == high[:-1]).any():
            return cls.of(np.concatenate([run.records for run in runs]))
        return cls(high, np.concatenate([run.rest for run in runs])[order])

    @property
    def records(self) -> Records:
        """Put the keys together again."""
        records = np.empty(len(self.high), RECORD)
        records["high"] = self.high
        for name in REST.fields or ():
            records[name] = self.rest[name]
        return records

    def find(self, wanted: Records, seconds: int = -1) -> Places:
        """Find keys, each claimed by an entry up to `seconds` before or after the wanted one; below 0, at any time."""
        low, second = wanted["low"], wanted["second"]

        def is_it(at: Places, number: Places) -> npt.NDArray[np.bool_]:
            same: npt.NDArray[np.bool_] = self.rest["low"][at] == low[number]
            if seconds >= 0:
                same &= np.abs(self.rest["second"][at].astype(np.int64) - second[number].astype(np.int64)) <= seconds
            return same

        return self._search(wanted, is_it)

    def holds(self, wanted: Records) -> npt.NDArray[np.bool_]:
        """Tell which of these very records are in the run."""
        rest = rest_of(wanted)
        found: npt.NDArray[np.bool_] = self._search(wanted, lambda at, number: self.rest[at] == rest[number]) >= 0
        return found

    def _search(self, wanted: Records, is_it: Callable[[Places, Places], npt.NDArray[np.bool_]]) -> Places:
        high = np.ascontiguousarray(wanted["high"])
        at = np.searchsorted(self.high, high)
        places = np.full(len(wanted), -1, np.int64)
        open_ = np.arange(len(wanted))
        while len(open_):  # once more for each other record that has the same upper half: hardly ever
            open_ = open_[at[open_] < len(self.high)]
            open_ = open_[self.high[at[open_]] == high[open_]]
            same = is_it(at[open_], open_)
            places[open_[same]] = at[open_[same]]
            open_ = open_[~same]
            at[open_] += 1
        return places


def rest_of(records: Records) -> Records:
    """Return records without the upper half of their hashes."""
    rest = np.empty(len(records), REST)
    for name in REST.fields or ():
        rest[name] = records[name]
    return rest


class KeyIndex:
    """A growing set of keys. Each addition costs little, and a search looks at few runs."""

    def __init__(self, records: Records | None = None) -> None:
        self.runs: list[Run] = []
        self.count = 0
        if records is not None and len(records):
            self.add(records)

    def add(self, records: Records) -> None:
        """Add keys."""
        self.count += len(records)
        self.runs.append(Run.of(records))
        while len(self.runs) >= _ALIKE and len(self.runs[-_ALIKE].high) <= 2 * len(self.runs[-1].high):
            self.runs[-_ALIKE:] = [Run.together(self.runs[-_ALIKE:])]


def find_in(runs: Iterable[Run], wanted: Records, seconds: int = -1) -> Records | None:
    """Look keys up in several runs.

    Args:
        seconds: as for `Run.find`.

    Returns:
        For each wanted key the rest of a record that was found, or one without content, which `is_found` tells; None
        if nothing at all was found.
    """
    found: Records | None = None
    for run in runs:
        places = run.find(wanted, seconds)
        hits = np.flatnonzero(places >= 0)
        if not len(hits):
            continue
        if found is None:
            found = np.full(len(wanted), NOT_FOUND, REST)
        news = hits[~is_found(found[hits])]
        found[news] = run.rest[places[news]]
    return found


NOT_FOUND = np.uint32(0xFFFF_FFFF)


def is_found(records: Records) -> npt.NDArray[np.bool_]:
    """Tell which of the results of `find_in` were found."""
    result: npt.NDArray[np.bool_] = records["size"] != NOT_FOUND
    return result
