"""The window of idempotency keys: all that are known, by batch, and their files.

    claims = window.begin(batch_id)       # a try at a batch: `key_claims`
    window.finish(batch_id)               # it is uploaded: its claims become a part of the window
    window.forget(batch_id)               # nothing of it was put, and it is planned anew
    window.hand_over(old_id, new_id)      # a part of it was put, and the rest is planned anew

At the end of a batch its claims get their last name, `{first}.keys`: a rename, which needs no space. It comes after the
batch is marked as uploaded and before its manifest goes. So claims without a batch are of one that an operator moved
away: its segments are planned again, and the claims mean nothing.

A file that lies beyond the *horizon* is not looked at: its keys are older than the window, by the clock of all entries
with keys, or there are `max_keys` newer ones. A batch keeps its horizon over all tries, and nothing that one may look
at is removed, up to WAITING_KEYS. So neither time nor other batches change a decision.

Small files are merged with their neighbours: written under the name of the older one, then the younger one is removed.
After a crash in between, the younger one lies within the older one, and goes.

Nothing here stops the uploads. A damaged file goes to quarantine, and its intact frames are used. One that cannot be
read stays, is tried again with each batch, and health tells: until then, retries of its keys are written twice.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock
from typing import Final, NamedTuple

import numpy as np

from arcpipe import durable, logs
from arcpipe.counters import Uploader
from arcpipe.errors import ArcpipeError, DamagedFile, UnknownVersion
from arcpipe.upload import key_files
from arcpipe.upload.key_claims import START_PAUSES, BatchClaims, ClaimTry, patiently
from arcpipe.upload.key_files import CLAIMS, KEYS, RECORD, KeyFile
from arcpipe.upload.key_index import Run
from arcpipe.wal.directory import WALDirectory

log = logging.getLogger(__name__)

# Most keys of a file that merging makes: 28 MB to write at once.
_MERGED_KEYS: Final = 1 << 20
# Parts of the window, by time and by number, that one file may have: it is forgotten as a whole. One part is added to
# the window for workers whose timestamps are behind those of others.
_PARTS: Final = 8
WAITING_KEYS: Final = 5_000_000
"""Most keys that are kept only for batches that wait, perhaps for weeks: 140 MB."""


class _File(NamedTuple):
    """A file of keys, and its content."""

    path: str
    first: int  # number of its first key
    run: Run
    clock: int  # the latest second of an entry with a key, up to its own

    @property
    def keys(self) -> int:
        return len(self.run.high)

    @property
    def last(self) -> int:
        return self.first + self.keys - 1


class KeyWindow:
    """The idempotency keys that an uploader knows.

    One thread at a time changes it, but a batch may begin meanwhile: it is converted ahead, while the one before ends.
    """

    def __init__(
        self,
        directory: WALDirectory,
        block: memoryview,
        window_seconds: float = 86_400.0,
        max_keys: int = 10_000_000,
        waiting_keys: int = WAITING_KEYS,
        pauses: Sequence[float] = START_PAUSES,
    ) -> None:
        """Begin without keys.

        Args:
            block: the uploader's counters.
            waiting_keys: the most that are kept besides `max_keys`, for batches that wait.
            pauses: seconds before each further try to read a file at the start.
        """
        self._directory = directory
        self._folder = os.path.join(directory.path, "idempotency")
        self._block = block
        self._window = math.ceil(window_seconds)
        self._max_keys = max_keys
        self._waiting_keys = waiting_keys
        self._pauses = pauses
        self._files: list[_File] = []  # oldest first
        self._claims: dict[str, BatchClaims] = {}  # by batch id
        self._unreadable: set[str] = set()  # names
        self._next = 0  # number of the next key
        self._lock = Lock()  # held while files and claims change: a key is in one of them at any moment
        self._has_cut = False  # whether it was told that a batch that waits lacks some

    # The start

    def load(self, batches: Mapping[str, str], kept: Collection[str] = ()) -> None:
        """Read what earlier processes left. Logs what cannot be used, and raises nothing of the kind.

        Args:
            batches: the batches that are under way, each with the id of the one that it replaces, or "".
            kept: damaged batches that wait for an operator.
        """
        self._files, self._claims, self._unreadable, self._next = [], {}, set(), 0
        try:
            names = patiently(self._names, self._pauses, self._folder)
        except OSError as error:
            log.error("idempotency keys are not known: %s; retries are written twice until they can be read", error)
            self._unreadable.add("")
            names = []
        if names:  # who gave a file its last name may have died before its sync
            self._try(f"syncing {self._folder}", lambda: self._directory.disk.sync_directory(self._folder))
        for name in sorted(names):
            if name.endswith(".tmp"):
                self._try(f"removing {name}", functools.partial(self._remove, os.path.join(self._folder, name)))
            elif name.endswith(KEYS) and name.removesuffix(KEYS).isdigit():
                self._load_file(name)
        for name in sorted(names):
            if name.endswith(CLAIMS):
                self._load_claims(name, batches, kept)
        self._show()

    def _load_file(self, name: str) -> None:
        found = self._read(name, may_be_torn=False, pauses=self._pauses)
        if found is None:
            return
        path = os.path.join(self._folder, name)
        file = _File(path, int(name.removesuffix(KEYS)), Run.of(found.records), found.clock)
        before = self._files[-1] if self._files else None
        if not file.keys or (before is not None and _was_merged(file, before)):
            self._try(f"removing {path}", lambda: self._remove(path))
            return
        self._files.append(file)
        self._next = max(self._next, file.last + 1)

    def _load_claims(self, name: str, batches: Mapping[str, str], kept: Collection[str]) -> None:
        batch_id = name.removesuffix(CLAIMS)
        path = os.path.join(self._folder, name)
        heir = next((new for new, old in batches.items() if old == batch_id), "")
        if batch_id not in batches and not heir:
            if batch_id not in kept:
                log.warning("%s is of a batch that is not there any more: its keys are forgotten", path)
                self._try(f"removing {path}", lambda: self._remove(path))
            return
        found = self._read(name, may_be_torn=True, pauses=self._pauses)
        if found is None:
            return
        self._claims[batch_id] = BatchClaims(self._directory, self._folder, found.header, self._clock, found)
        self._next = max(self._next, found.header.horizon)
        if heir:
            self._try(f"handing {path} over", lambda: self.hand_over(batch_id, heir))

    def _read(self, name: str, may_be_torn: bool, pauses: Sequence[float] = ()) -> KeyFile | None:
        """Read a file, perhaps after some pauses; None if it cannot be used."""
        path = os.path.join(self._folder, name)
        disk = self._directory.disk
        data = b""

        def decode(content: bytes) -> KeyFile:
            nonlocal data
            data = content
            return key_files.decode(content, may_be_torn)

        try:
            found = patiently(lambda: durable.load(disk, path, decode), pauses, path)
        except DamagedFile as error:
            log.error("%s; moved to %s: retries of its keys are written twice", error, self._quarantine(name))
            self._try(f"moving {path} away", lambda: durable.move(disk, path, self._quarantine(name)))
            return None
        except (OSError, UnknownVersion) as error:
            log.error("%s cannot be used: %s; retries of its keys are written twice until it can", path, error)
            if may_be_torn:  # its batch goes on, and makes another one
                self._try(f"moving {path} away", lambda: durable.move(disk, path, self._quarantine(name)))
            else:
                self._unreadable.add(name)
            return None
        if found is not None and found.damage:
            log.error(
                "%s is damaged: %s; it is kept as %s, and its intact part is used",
                *(path, found.damage, self._quarantine(name)),
                extra=logs.EACH,
            )
            self._try(f"keeping {path}", lambda: durable.replace(disk, self._quarantine(name), data))
            if may_be_torn:
                return found._replace(end=0)  # its batch writes it anew
            content = key_files.encode(found.header, found.records, found.clock)
            self._try(f"repairing {path}", lambda: durable.replace(disk, path, content))
        return found

    def _names(self) -> list[str]:
        disk = self._directory.disk
        return disk.names(self._folder) if disk.size(self._folder) is not None else []

    def _quarantine(self, name: str) -> str:
        return os.path.join(self._directory.quarantine, name)

    # Batches

    def begin(self, batch_id: str) -> ClaimTry:
        """Begin a try at a batch."""
        with self._lock:
            return self._begin(batch_id)

    def _begin(self, batch_id: str) -> ClaimTry:
        claims = self._claims.get(batch_id)
        if claims is None:
            horizon = self._files[start].first if (start := self._horizon()) < len(self._files) else self._next
            header = key_files.new_header(batch_id, horizon)
            claims = BatchClaims(self._directory, self._folder, header, self._clock, None)
            self._claims[batch_id] = claims
        runs = [file.run for file in self._files if file.last >= claims.header.horizon]
        for other_id, other in self._claims.items():
            if other_id != batch_id:
                runs += other.index.runs
        return ClaimTry(claims, runs, self._window)

    def finish(self, batch_id: str) -> None:
        """Make the claims of an uploaded batch a part of the window. May be done again. For a thread.

        Raises:
            OSError: they are not durable, or not under their last name.
        """
        claims = self._claims.get(batch_id)
        if claims is not None and claims.is_needed:
            claims.settle()
            self._keep(claims)
        with self._lock:
            self._claims.pop(batch_id, None)
        if self._files or self._unreadable:
            for name in sorted(self._unreadable):
                self._look_again(name)
            self._try("merging files of idempotency keys", self._merge)
            self._try("removing idempotency keys", self._expire)
        self._show()

    def _keep(self, claims: BatchClaims) -> None:
        disk = self._directory.disk
        if not claims.index.count:
            self._remove(claims.path)
            return
        path = claims.kept_as = claims.kept_as or self._free_path()
        if disk.size(claims.path) is not None:
            disk.rename(claims.path, path)
        elif disk.size(path) is None:  # no earlier call renamed it: somebody moved it away
            durable.make_folder(disk, self._folder)
            durable.replace(disk, path, key_files.encode(claims.header, claims.records, claims.clock))
        disk.sync_directory(self._folder)
        file = _File(path, self._next, Run.together(claims.index.runs), claims.clock)
        with self._lock:
            self._files = [*self._files, file]
            self._next = file.last + 1
            self._claims.pop(claims.header.batch, None)

    def _free_path(self) -> str:
        """Return the path of the next file, whose number is after the keys of all others. Raises OSError.

        Nobody knows how many keys are in a file that cannot be read: no more than its bytes have room for.
        """
        known = {os.path.basename(file.path) for file in self._files}
        for name in self._names():
            number = name.removesuffix(KEYS)
            if name.endswith(KEYS) and name not in known and number.isdigit():
                size = self._directory.disk.size(os.path.join(self._folder, name)) or 0
                self._next = max(self._next, int(number) + size // RECORD.itemsize + 1)
        return os.path.join(self._folder, f"{self._next:016d}{KEYS}")

    def forget(self, batch_id: str) -> None:
        """Forget the claims of a batch of which nothing was put. Raises OSError."""
        claims = self._claims.get(batch_id)
        if claims is not None:
            self._remove(claims.path)
            with self._lock:
                del self._claims[batch_id]

    def hand_over(self, old_id: str, new_id: str) -> None:
        """Give the claims of a batch to the one that takes its place. Raises OSError."""
        old = self._claims.get(old_id)
        if old is None:
            return
        if old.is_needed:
            old.settle()
            header = key_files.new_header(new_id, old.header.horizon)
            content = key_files.encode(header, old.records, old.clock)
            durable.replace(self._directory.disk, os.path.join(self._folder, f"{new_id}{CLAIMS}"), content)
            found = key_files.decode(content, may_be_torn=True)
            with self._lock:
                self._claims[new_id] = BatchClaims(self._directory, self._folder, header, old.clock, found)
            self._remove(old.path)
        with self._lock:
            del self._claims[old_id]

    def _remove(self, path: str) -> None:
        disk = self._directory.disk
        if disk.size(path) is not None:
            disk.unlink(path)
            disk.sync_directory(self._folder)

    # Upkeep

    @property
    def _clock(self) -> int:
        """The latest second of an entry with a key, of all batches that are uploaded."""
        return max((file.clock for file in self._files), default=0)

    def _horizon(self) -> int:
        """Return the index of the oldest file that a new batch looks at."""
        oldest = self._clock - self._window - self._window // _PARTS
        newer = 0
        for index in range(len(self._files) - 1, -1, -1):
            if newer >= self._max_keys or self._files[index].clock < oldest:
                return index + 1
            newer += self._files[index].keys
        return 0

    def _expire(self) -> None:
        """Remove the files that no batch looks at any more. The last one stays, for its number and its clock.

        A batch may wait for weeks, for a segment that cannot be read. What it alone looks at is bounded, too.
        """
        start = min(self._horizon(), len(self._files) - 1)
        with self._lock:
            needed = min((claims.header.horizon for claims in self._claims.values()), default=self._next)
        known = sum(file.keys for file in self._files)
        while start > 0 and (self._files[0].last < needed or known > self._max_keys + self._waiting_keys):
            file = self._files[0]
            known -= file.keys
            if file.last >= needed and not self._has_cut:
                self._has_cut = True
                log.error(
                    "idempotency keys are forgotten although a batch waits that may look at them, as too many newer "
                    "ones came: its retries of them are written twice"
                )
            self._remove(file.path)
            with self._lock:
                self._files = self._files[1:]
            start -= 1
            self._block[Uploader.KEYS_EXPIRED] += file.keys
            if file.clock >= self._clock - self._window:
                self._block[Uploader.KEYS_CUT] += file.keys

    def _merge(self) -> None:
        disk = self._directory.disk
        most = min(_MERGED_KEYS, self._max_keys // _PARTS)
        while len(self._files) > 1:
            older, younger = self._files[-2:]
            if (
                older.keys > 2 * younger.keys
                or older.keys + younger.keys > most
                or younger.clock - older.clock > self._window // _PARTS
            ):
                return
            run = Run.of(np.concatenate((older.run.records, younger.run.records)))
            durable.replace(disk, older.path, key_files.encode(key_files.new_header("", 0), run.records, younger.clock))
            with self._lock:
                self._files = [*self._files[:-2], _File(older.path, older.first, run, younger.clock)]
            self._remove(younger.path)

    def _look_again(self, name: str) -> None:
        """Try a file again that could not be read."""
        if not name:
            known = {os.path.basename(file.path) for file in self._files}
            with contextlib.suppress(OSError):
                self._unreadable |= {each for each in self._names() if each.endswith(KEYS) and each not in known}
                self._unreadable.discard("")
            return
        self._unreadable.discard(name)
        found = self._read(name, may_be_torn=False)
        if found is not None and len(found.records):
            path = os.path.join(self._folder, name)
            file = _File(path, int(name.removesuffix(KEYS)), Run.of(found.records), found.clock)
            with self._lock:
                self._files = sorted([*self._files, file], key=lambda each: each.first)
                self._next = max(self._next, file.last + 1)
            log.info("%s can be read again", path)

    @staticmethod
    def _try(what: str, work: Callable[[], object]) -> None:
        """Do work that nothing depends on."""
        try:
            work()
        except (OSError, ArcpipeError) as error:
            log.warning("%s: %s", what, error)

    def _show(self) -> None:
        count = sum(file.keys for file in self._files)
        with self._lock:
            claimed = sum(claims.index.count for claims in self._claims.values())
        self._block[Uploader.KEYS] = count + claimed
        self._block[Uploader.UNREADABLE_KEY_FILES] = len(self._unreadable)


def _was_merged(file: _File, before: _File) -> bool:
    """Tell whether a crash left a file whose keys were merged into the one before."""
    return file.last <= before.last and bool((before.run.find(file.run.records) >= 0).all())
