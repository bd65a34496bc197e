"""Idempotency keys of one batch: which entries count, and which are dropped because an earlier one has their key.

The first entry of a key counts, in the order of batches and of the entries in each. A batch *claims* the keys of the
entries that count. Its claims are durable (`{batch id}.claims`) before anything of them is put. So a later try decides
the same, whatever became known meanwhile:

1. its key counted in this try, within the window: dropped;
2. an earlier try of this batch claimed its key for this very entry: counts;
3. another batch claimed its key, within the window: dropped;
4. any other: counts, and the batch claims its key.

A batch that is converted ahead of its turn begins when the one before has read all of its entries, and so sees its
claims. A key is known for `idempotency.window_seconds`, by the timestamps of both entries: never by a clock of now. An
entry may come late, because its segment could not be read for days: the window counts in both directions.

Where the disk is full, claims stay in memory until the end of the batch has freed its segments. A crash before that
forgets them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from arcpipe import durable
from arcpipe.errors import is_full
from arcpipe.upload.key_files import CLAIMS, RECORD, Header, KeyFile, Records, encode, encode_frame, encode_header
from arcpipe.upload.key_index import KeyIndex, Run, find_in, is_found
from arcpipe.upload.key_record import HASH_BYTES, unpack_facts
from arcpipe.wal.directory import WALDirectory

log = logging.getLogger(__name__)
T = TypeVar("T")

START_PAUSES: Final = (0.1, 0.5, 2.0)
"""Seconds between tries to read a file of keys at the start. After the last one, batches go on without it."""

# Failures on a full disk after which the upload goes on: the first ones make the uploader give free segments back.
_FULL_TRIES: Final = 2


class BatchClaims:
    """The keys that a batch has claimed, in all of its tries, and their file."""

    def __init__(self, directory: WALDirectory, folder: str, header: Header, clock: int, old: KeyFile | None) -> None:
        """Begin without claims, or with those of a file.

        Args:
            folder: of the file; made when it is needed.
            clock: the latest second of the batches before.
        """
        self.header = header
        self.path = os.path.join(folder, f"{header.batch}{CLAIMS}")
        self._index = KeyIndex(old.records if old is not None else None)
        self._unsorted: list[Records] = []  # claims that are not in the index yet
        self.clock = max(clock, old.clock if old is not None else 0)
        self.is_needed = old is not None  # an entry with a key was seen
        self.kept_as = ""  # its last name, once that is chosen
        self._directory = directory
        self._folder = folder
        self._end = old.end if old is not None else 0
        self._exists = self._end > 0
        self._unwritten: list[Records] = []
        if old is not None and not self._exists and len(old.records):  # its file is damaged
            self._unwritten.append(old.records)
        self._full_tries = 0
        self._lock = Lock()

    @property
    def index(self) -> KeyIndex:
        """All claims. They are sorted in once somebody looks, as other batches do: once, and not with each decision."""
        with self._lock:
            if self._unsorted:
                self._index.add(np.concatenate(self._unsorted))
                self._unsorted = []
            return self._index

    def note(self, claims: Records, second: int) -> None:
        """Take further claims, perhaps none. Durable after the next `persist`.

        Args:
            second: the latest one of all entries with keys that were seen.
        """
        with self._lock:
            self.is_needed = True
            self.clock = max(self.clock, second)
            if len(claims):
                self._unsorted.append(claims)
                self._unwritten.append(claims)

    def persist(self, must_succeed: bool = False) -> None:
        """Make the claims durable. On a full disk, give up after some tries, unless it must succeed. For a thread.

        Raises:
            OSError: they may be there or not. The next call writes over them.
        """
        with self._lock:
            taken, self._unwritten = self._unwritten, []
            clock, is_needed = self.clock, self.is_needed
        if not taken and (self._exists or not is_needed):
            return
        try:
            self._write(encode_frame(np.concatenate(taken), clock) if taken else b"")
        except OSError as error:
            with self._lock:
                self._unwritten = taken + self._unwritten
            self._full_tries += is_full(error)
            if must_succeed or not is_full(error) or self._full_tries <= _FULL_TRIES:
                raise
            if self._full_tries == _FULL_TRIES + 1:
                log.error("idempotency keys of batch %s wait in memory: %s", self.header.batch, error)

    def _write(self, frame: bytes) -> None:
        disk = self._directory.disk
        if not self._exists:
            self._create(encode_header(self.header) + frame)
            return
        try:
            fd = disk.open(self.path)
        except FileNotFoundError:  # somebody moved it away
            self._create(encode(self.header, self.records, self.clock))
            return
        try:
            disk.write(fd, [frame], self._end)
            disk.fdatasync(fd)
        finally:
            disk.close(fd)
        self._end += len(frame)

    def _create(self, content: bytes) -> None:
        durable.make_folder(self._directory.disk, self._folder)
        durable.replace(self._directory.disk, self.path, content)
        self._exists = True
        self._end = len(content)

    @property
    def records(self) -> Records:
        """Put all claims together."""
        return np.concatenate([np.empty(0, RECORD), *(run.records for run in self.index.runs)])

    def settle(self) -> None:
        """Make everything durable, and cut off what is no frame, before the file gets its last name. Raises OSError."""
        self.persist(must_succeed=True)
        disk = self._directory.disk
        size = disk.size(self.path)
        if size is not None:
            fd = disk.open(self.path)
            try:
                if size > self._end:
                    disk.truncate(fd, self._end)
                disk.fsync(fd)  # also what was read of a process that died before its sync
            finally:
                disk.close(fd)


class ClaimTry:
    """The decisions of one try at a batch. `decide` is for one thread."""

    def __init__(self, claims: BatchClaims, others: Iterable[Run], window_seconds: int) -> None:
        """Begin a try.

        Args:
            others: the keys of other batches, as they are now.
        """
        self.repeated = 0
        self.other_bodies = 0
        """Of the repeated entries: those with another body than the first."""
        self.example: tuple[int, int] | None = None
        """The sizes of the two bodies of one of them: of the dropped one, and of the first."""
        self._claims = claims
        self._others = list(others)
        self._window = window_seconds
        self._before = list(claims.index.runs)
        self._seen = KeyIndex()

    def decide(self, records: Sequence[bytes]) -> list[bool]:
        """Tell which of these entries count, in their order. The more there are at a time, the less each costs.

        Args:
            records: as `key_record` makes them, at least one.
        """
        unsorted = np.frombuffer(b"".join(records), RECORD)
        order = np.argsort(unsorted["high"], kind="stable")  # a search for sorted keys stays in the processor's caches
        wanted = unsorted[order]
        seen = find_in(self._seen.runs, wanted, self._window)
        theirs = find_in(self._others, wanted, self._window)
        claimed = np.zeros(len(wanted), np.bool_)
        for run in self._before:
            claimed |= run.holds(wanted)
        counts = ~is_found(theirs) | claimed if theirs is not None else np.ones(len(wanted), np.bool_)
        if seen is not None:
            counts &= ~is_found(seen)
        for found in (seen, theirs):
            if found is not None and not counts.all():
                self._compare(wanted, found, ~counts & is_found(found))
        if (wanted["high"][1:] == wanted["high"][:-1]).any():  # perhaps twice the same key
            self._drop_within([records[number] for number in order.tolist()], counts)
        if counts.any():
            self._seen.add(wanted[counts])
        self._claims.note(wanted[counts & ~claimed], int(wanted["second"].max()))
        self.repeated += len(records) - int(counts.sum())
        decided = np.empty(len(counts), np.bool_)
        decided[order] = counts
        in_order: list[bool] = decided.tolist()
        return in_order

    def _drop_within(self, records: Sequence[bytes], counts: npt.NDArray[np.bool_]) -> None:
        """Drop entries whose key counts for an earlier one of the same records."""
        counted: dict[bytes, list[bytes]] = {}
        for number in np.flatnonzero(counts).tolist():
            record = records[number]
            facts = unpack_facts(record)
            earlier = counted.setdefault(record[:HASH_BYTES], [])
            near = (known for known in map(unpack_facts, earlier) if abs(facts[0] - known[0]) <= self._window)
            first = next(near, None)
            if first is None:
                earlier.append(record)
                continue
            counts[number] = False
            if facts[1:] != first[1:]:
                self.other_bodies += 1
                self.example = facts[1], first[1]

    def _compare(self, wanted: Records, found: Records, which: npt.NDArray[np.bool_]) -> None:
        """Count entries with other bodies than those that were found, among some that are dropped."""
        mine, first = wanted[which], found[which]
        others = np.flatnonzero((mine["size"] != first["size"]) | (mine["crc"] != first["crc"]))
        if len(others):
            self.other_bodies += len(others)
            self.example = int(mine["size"][others[0]]), int(first["size"][others[0]])

    def persist(self) -> None:
        """Make the claims durable, as `BatchClaims.persist` does."""
        self._claims.persist()


def patiently(load: Callable[[], T], pauses: Iterable[float], path: str) -> T:
    """Load a file, and once more after each of these seconds if the disk fails. For a thread.

    Raises:
        OSError: of the last try.
    """
    for seconds in pauses:
        try:
            return load()
        except OSError as error:
            log.warning("%s cannot be read: %s; trying again in %.1f s", path, error, seconds)
            time.sleep(seconds)
    return load()
